//! Types of arguments and results: what they say in an `impl` block, said elsewhere.

use quote::ToTokens;
use syn::{
    Error, ExprPath, GenericArgument, Ident, Lifetime, Path, PathArguments, QSelf, Result, Token,
    Type, TypePath,
    punctuated::Punctuated,
    visit_mut::{self, VisitMut},
};

/// A result as the author wrote it, and the type of its value as far as the syntax tells.
pub(super) struct Returns {
    /// The whole result.
    pub(super) ty: Type,
    /// The value of a result that is one by name; `None` where only the compiler can tell, because
    /// the name may be an alias.
    pub(super) value: Option<Type>,
    /// Whether the result is written `Result<T, Rejection>` or with a `Failure`.
    pub(super) is_fallible: bool,
    /// The place at which a mistake is shown.
    pub(super) place: Type,
}

impl Returns {
    pub(super) fn read(entity: &Type, result: &Type) -> Result<Self> {
        check_result(result)?;
        let mut ty = bare(result).clone();
        SelfIs(entity).visit_type_mut(&mut ty);
        let place = error_of(bare(result)).unwrap_or(result).clone();
        let is_fallible = error_of(&ty)
            .and_then(last)
            .is_some_and(|name| name == "Rejection" || name == "Failure");
        let value = if is_fallible { value_of(&ty) } else { is_plain(&ty).then(|| ty.clone()) };
        Ok(Self { ty, value, is_fallible, place })
    }
}

/// Types that hold nothing but themselves, by every name that an author gives them.
const PLAIN: [&str; 21] = [
    "bool", "char", "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128",
    "isize", "f32", "f64", "String", "Vec", "Option", "BTreeMap", "HashMap",
];

fn is_plain(ty: &Type) -> bool {
    match ty {
        Type::Path(_) => last(ty).is_some_and(|name| PLAIN.iter().any(|plain| name == plain)),
        Type::Tuple(_) | Type::Array(_) => true,
        _ => false,
    }
}

/// A type without the brackets around it, which a macro of the author's may have left.
pub(crate) fn bare(ty: &Type) -> &Type {
    match ty {
        Type::Group(group) => bare(&group.elem),
        Type::Paren(paren) => bare(&paren.elem),
        _ => ty,
    }
}

/// The last name of a path.
pub(crate) fn last(ty: &Type) -> Option<&Ident> {
    match bare(ty) {
        Type::Path(path) => path.path.segments.last().map(|segment| &segment.ident),
        _ => None,
    }
}

/// The arguments in angle brackets of a type of this name.
fn parameters<'t>(ty: &'t Type, name: &str) -> Option<&'t Punctuated<GenericArgument, Token![,]>> {
    let Type::Path(path) = bare(ty) else {
        return None;
    };
    let last = path.path.segments.last().filter(|segment| segment.ident == name)?;
    match &last.arguments {
        PathArguments::AngleBracketed(inside) => Some(&inside.args),
        _ => None,
    }
}

fn parameter(ty: &Type, index: usize) -> Option<&Type> {
    match parameters(ty, "Result")?.iter().nth(index)? {
        GenericArgument::Type(ty) => Some(bare(ty)),
        _ => None,
    }
}

/// The `T` of `Result<T, E>`.
fn value_of(ty: &Type) -> Option<Type> {
    parameter(ty, 0).cloned()
}

/// The `E` of `Result<T, E>`.
fn error_of(ty: &Type) -> Option<&Type> {
    parameter(ty, 1)
}

/// Whether a type is an answer to an ask, or a list of such, by name: `Answer<R>`, `Vec<Answer<R>>`.
pub(super) fn is_answer(ty: &Type) -> bool {
    only_parameter(ty, "Answer").is_some()
        || only_parameter(ty, "Vec").is_some_and(|it| only_parameter(it, "Answer").is_some())
}

/// The `T` of `Name<T>`, where there is nothing beside it.
fn only_parameter<'t>(ty: &'t Type, name: &str) -> Option<&'t Type> {
    let parameters = parameters(ty, name).filter(|parameters| parameters.len() == 1)?;
    match parameters.first()? {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    }
}

/// The error that a result can have, for a message.
pub(super) const ONLY_ERROR: &str = "the errors that an operation returns are `Rejection` and \
                                     `Failure`: `Rejection::new(..)` says no, `Failure::retry(..)` has it \
                                     tried again, `Failure::fatal(..)` gives it up";

/// Whether a reference to this type can be meant as the context. Where the name is another one than
/// `Context`, the compiler decides.
pub(super) fn may_be_context(ty: &Type) -> bool {
    let is_known = |name: &Ident| name == "str" || PLAIN.iter().any(|plain| name == plain);
    last(ty).is_some_and(|name| !is_known(name))
}

/// Refuses what is visibly not a result of an operation.
fn check_result(result: &Type) -> Result<()> {
    if let Some(error) = error_of(bare(result)) {
        let name = last(error).map(ToString::to_string).unwrap_or_default();
        let is_foreign = name.ends_with("Error") || PLAIN.contains(&&*name) || name == "Box";
        if is_foreign || !matches!(error, Type::Path(_)) {
            return Err(Error::new_spanned(error, ONLY_ERROR));
        }
    }
    let rule = "a result leaves as JSON and is owned: return the value itself";
    Borrows::refuse(result, rule, "a result has a concrete type")
}

/// The type of an argument, as it is between the caller and the method.
pub(crate) fn argument(entity: &Type, ty: &Type) -> Result<Type> {
    let rule = "an argument comes from JSON and is owned: take `String` for `&str`, `Vec<T>` for \
                `&[T]`, `T` for `&T`";
    let mut ty = ty.clone();
    Unnamed.visit_type_mut(&mut ty);
    Borrows::refuse(&ty, rule, "an argument has a concrete type, since it comes from JSON")?;
    SelfIs(entity).visit_type_mut(&mut ty);
    Ok(ty)
}

/// Finds the first part of a type that is borrowed or not concrete.
struct Borrows {
    borrowed: &'static str,
    vague: &'static str,
    found: Option<Error>,
}

impl Borrows {
    fn refuse(ty: &Type, borrowed: &'static str, vague: &'static str) -> Result<()> {
        let mut borrows = Self { borrowed, vague, found: None };
        borrows.visit_type_mut(&mut ty.clone());
        borrows.found.map_or(Ok(()), Err)
    }

    fn add(&mut self, place: &dyn ToTokens, rule: &str) {
        self.found.get_or_insert_with(|| Error::new_spanned(place, rule));
    }
}

impl VisitMut for Borrows {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        match ty {
            Type::Reference(reference) => self.add(reference, self.borrowed),
            Type::ImplTrait(ty) => self.add(ty, self.vague),
            Type::FnPtr(_) => {}
            _ => visit_mut::visit_type_mut(self, ty),
        }
    }

    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        if lifetime.ident != "static" {
            self.add(lifetime, self.borrowed);
        }
    }
}

/// Makes `'static` of `'_`: what comes from JSON borrows from nobody.
struct Unnamed;

impl VisitMut for Unnamed {
    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        if lifetime.ident == "_" {
            *lifetime = Lifetime::new("'static", lifetime.span());
        }
    }

    fn visit_type_reference_mut(&mut self, _: &mut syn::TypeReference) {}
}

/// Replaces `Self`, which means something else in the generated items.
pub(crate) struct SelfIs<'t>(pub(crate) &'t Type);

impl SelfIs<'_> {
    /// `Self::NAME` as `<Entity>::NAME`.
    fn qualify(&self, qself: &mut Option<QSelf>, path: &mut Path) {
        let starts_with_self = path.segments.first().is_some_and(|first| first.ident == "Self");
        if qself.is_some() || !starts_with_self || path.segments.len() < 2 {
            return;
        }
        let ty = Box::new(self.0.clone());
        let (lt_token, gt_token) = (<Token![<]>::default(), <Token![>]>::default());
        *qself = Some(QSelf { lt_token, ty, position: 0, as_token: None, gt_token });
        path.leading_colon = Some(<Token![::]>::default());
        path.segments = std::mem::take(&mut path.segments).into_iter().skip(1).collect();
    }
}

impl VisitMut for SelfIs<'_> {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        if matches!(ty, Type::Path(path) if path.qself.is_none() && path.path.is_ident("Self")) {
            *ty = self.0.clone();
        } else {
            visit_mut::visit_type_mut(self, ty);
        }
    }

    fn visit_type_path_mut(&mut self, path: &mut TypePath) {
        self.qualify(&mut path.qself, &mut path.path);
        visit_mut::visit_type_path_mut(self, path);
    }

    fn visit_expr_path_mut(&mut self, path: &mut ExprPath) {
        self.qualify(&mut path.qself, &mut path.path);
        visit_mut::visit_expr_path_mut(self, path);
    }
}
