//! Reads the methods of an `impl` block, and refuses what cannot be an operation, with the fix.

use syn::{
    Attribute, Error, Expr, ExprLit, FnArg, Ident, ImplItemFn, Lit, Meta, Pat, Result, ReturnType,
    Type, Visibility,
    visit_mut::{self, VisitMut},
};

/// One method that callers, reminders or entities can name.
pub(super) struct Method {
    pub(super) name: Ident,
    /// Its documentation.
    pub(super) attributes: Vec<Attribute>,
    /// When it exists at all: its `cfg` attributes.
    pub(super) conditions: Vec<Attribute>,
    pub(super) visibility: Visibility,
    pub(super) is_query: bool,
    pub(super) is_async: bool,
    /// In the order of the signature; `None` is the context.
    pub(super) arguments: Vec<Option<(Ident, Type)>>,
    pub(super) result: Type,
}

/// Reads one method; `None` for helpers.
pub(super) fn read(entity: &Type, item: &ImplItemFn) -> Result<Option<Method>> {
    let signature = &item.sig;
    if signature.ident == "of" {
        let rule = "the name `of` is taken by the typed reference: rename this function";
        return Err(Error::new_spanned(&signature.ident, rule));
    }
    let Some(receiver) = signature.receiver() else {
        return Ok(None);
    };
    if matches!(item.vis, Visibility::Inherited) {
        return Ok(None);
    }
    let syn::ReceiverKind::Reference(_, _, mutability) = &receiver.kind else {
        let rule = "an operation takes `&mut self`, a query `&self`; make this method private";
        return Err(Error::new_spanned(receiver, rule));
    };
    let is_query = mutability.is_none();
    if is_query && !matches!(item.vis, Visibility::Public(_)) {
        return Ok(None);
    }
    if !signature.generics.params.is_empty() {
        let rule =
            "an operation is not generic: it is called by name, with JSON; use concrete types";
        return Err(Error::new_spanned(&signature.generics, rule));
    }
    if is_query && signature.asyncness.is_some() {
        let rule = "a query does not await: make it an operation (`&mut self`) or not `async`";
        return Err(Error::new_spanned(signature.asyncness, rule));
    }
    let mut arguments = Vec::new();
    for input in signature.inputs.iter().skip(1) {
        arguments.push(read_argument(entity, is_query, input)?);
    }
    let mut result = match &signature.output {
        ReturnType::Default => syn::parse_quote!(()),
        ReturnType::Type(_, ty) => (**ty).clone(),
    };
    check_result(&result)?;
    if let Some(value) = value_of(&result) {
        result = value;
    }
    SelfIs(entity).visit_type_mut(&mut result);
    Ok(Some(Method {
        name: signature.ident.clone(),
        attributes: named(&item.attrs, "doc"),
        conditions: named(&item.attrs, "cfg"),
        visibility: item.vis.clone(),
        is_query,
        is_async: signature.asyncness.is_some(),
        arguments,
        result,
    }))
}

fn read_argument(entity: &Type, is_query: bool, input: &FnArg) -> Result<Option<(Ident, Type)>> {
    let FnArg::Typed(input) = input else {
        return Err(Error::new_spanned(input, "expected an argument"));
    };
    if let Type::Reference(reference) = &*input.ty {
        if is_context(&reference.elem) {
            if is_query && reference.mutability.is_some() {
                let rule = "a query has no effects: take `ctx: &Context`";
                return Err(Error::new_spanned(reference, rule));
            }
            return Ok(None);
        }
        let rule = "an argument comes from JSON and is owned: take `String` for `&str`, `Vec<T>` \
                    for `&[T]`, `T` for `&T`";
        return Err(Error::new_spanned(reference, rule));
    }
    if let Type::ImplTrait(ty) = &*input.ty {
        let rule = "an argument has a concrete type, since it comes from JSON";
        return Err(Error::new_spanned(ty, rule));
    }
    let Pat::Ident(pattern) = &*input.pat else {
        let rule = "an argument is a plain name: take the value apart in the body";
        return Err(Error::new_spanned(&input.pat, rule));
    };
    let mut ty = (*input.ty).clone();
    SelfIs(entity).visit_type_mut(&mut ty);
    Ok(Some((pattern.ident.clone(), ty)))
}

fn is_context(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|s| s.ident == "Context"))
}

/// `Result<T, E>` with another `E` than `Rejection` would be sent as a value.
fn check_result(result: &Type) -> Result<()> {
    let refuse = |what: &dyn quote::ToTokens, rule: &str| Err(Error::new_spanned(what, rule));
    match result {
        Type::Reference(reference) => {
            refuse(reference, "a result leaves as JSON and is owned: return the value itself")
        }
        Type::ImplTrait(ty) => refuse(ty, "a result has a concrete type"),
        Type::Path(path) => {
            let Some(last) = path.path.segments.last().filter(|s| s.ident == "Result") else {
                return Ok(());
            };
            let syn::PathArguments::AngleBracketed(inside) = &last.arguments else {
                return Ok(());
            };
            match inside.args.iter().nth(1) {
                Some(syn::GenericArgument::Type(Type::Path(error)))
                    if error.path.segments.last().is_some_and(|s| s.ident == "Rejection") =>
                {
                    Ok(())
                }
                Some(error) => refuse(
                    error,
                    "the only error that an operation returns is `Rejection`: turn this one into \
                     a rejection, or panic where it is a bug",
                ),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// The `T` of `Result<T, Rejection>`.
fn value_of(result: &Type) -> Option<Type> {
    let Type::Path(path) = result else {
        return None;
    };
    let last = path.path.segments.last().filter(|segment| segment.ident == "Result")?;
    let syn::PathArguments::AngleBracketed(inside) = &last.arguments else {
        return None;
    };
    match inside.args.first()? {
        syn::GenericArgument::Type(value) => Some(value.clone()),
        _ => None,
    }
}

fn named(attributes: &[Attribute], name: &str) -> Vec<Attribute> {
    attributes.iter().filter(|attribute| attribute.path().is_ident(name)).cloned().collect()
}

pub(super) fn doc_text(attributes: &[Attribute]) -> String {
    let mut lines = Vec::new();
    for attribute in attributes {
        if let Meta::NameValue(pair) = &attribute.meta
            && attribute.path().is_ident("doc")
            && let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = &pair.value
        {
            lines.push(text.value().trim().to_owned());
        }
    }
    lines.join("\n").trim().to_owned()
}

/// Replaces `Self`, which means something else in the typed reference.
struct SelfIs<'t>(&'t Type);

impl VisitMut for SelfIs<'_> {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        if matches!(ty, Type::Path(path) if path.qself.is_none() && path.path.is_ident("Self")) {
            *ty = self.0.clone();
        } else {
            visit_mut::visit_type_mut(self, ty);
        }
    }
}
