//! Reads the methods of an `impl` block, and refuses what cannot be an operation, with the fix.

use std::rc::Rc;

use proc_macro2::TokenStream;
use quote::quote;
use syn::{
    Attribute, Error, FnArg, Ident, ImplItemFn, Pat, ReceiverKind, Result, ReturnType, Signature,
    Type, Visibility, ext::IdentExt,
};

use super::{
    attributes::{conditions, doc_text, shared},
    policy::OperationSettings,
    types::{Returns, argument, bare, is_answer, may_be_context},
};

/// The most arguments of one method that have a `cfg`: each of them doubles what is generated.
const CONDITIONAL_ARGUMENTS_MAX: usize = 4;

/// One method that callers, reminders or entities can name.
pub(super) struct Method {
    pub(super) name: Ident,
    /// The attributes that the typed reference repeats: documentation, and deprecation.
    pub(super) attributes: Vec<TokenStream>,
    pub(super) description: String,
    /// When it exists at all: the predicates of its `cfg` attributes.
    pub(super) conditions: Vec<TokenStream>,
    pub(super) visibility: Visibility,
    pub(super) is_query: bool,
    pub(super) is_async: bool,
    pub(super) settings: Rc<OperationSettings>,
    /// Whether its first argument is the answer to an ask.
    pub(super) takes_answer: bool,
    /// In the order of the signature.
    pub(super) arguments: Vec<Argument>,
    pub(super) answer: Returns,
}

pub(super) enum Argument {
    /// An argument that a caller gives.
    Input(Ident, Type),
    /// The context, under the name that the author has for its type.
    Context(Type),
}

impl Method {
    /// The name in URLs and schemas.
    pub(super) fn text(&self) -> String {
        self.name.unraw().to_string()
    }
}

/// Reads one method. There are none for a helper, and several where arguments have a `cfg`: one for
/// each set of arguments that it may have.
pub(super) fn read(entity: &Type, item: &ImplItemFn) -> Result<Vec<Method>> {
    let signature = &item.sig;
    if signature.ident.unraw() == "of" {
        let rule = "the name `of` is taken by the typed reference: rename this function";
        return Err(Error::new_spanned(&signature.ident, rule));
    }
    let Some(is_query) = kind(item)? else {
        return match item.attrs.iter().find(|attribute| attribute.path().is_ident("operation")) {
            None => Ok(Vec::new()),
            Some(attribute) => {
                let rule = "a helper has no `#[operation(...)]`: make it `pub` or `pub(crate)`";
                Err(Error::new_spanned(attribute, rule))
            }
        };
    };
    if !signature.generics.params.is_empty() {
        let rule =
            "an operation is not generic: it is called by name, with JSON; use concrete types";
        return Err(Error::new_spanned(&signature.generics, rule));
    }
    if is_query && signature.asyncness.is_some() {
        let rule = "a query does not await: make it an operation (`&mut self`) or not `async`";
        return Err(Error::new_spanned(signature.asyncness, rule));
    }
    let result = match &signature.output {
        ReturnType::Default => syn::parse_quote!(()),
        ReturnType::Type(_, ty) => (**ty).clone(),
    };
    let settings = Rc::new(OperationSettings::of(&item.attrs)?);
    let mut methods = Vec::new();
    for (mut needed, inputs) in variants(signature)? {
        let read = inputs.into_iter().map(|input| read_argument(entity, is_query, input));
        let arguments = read.collect::<Result<Vec<_>>>()?;
        let takes_answer = takes_answer(item, is_query, &arguments)?;
        needed.extend(conditions(&item.attrs));
        methods.push(Method {
            name: signature.ident.clone(),
            attributes: shared(&item.attrs),
            description: doc_text(&item.attrs),
            conditions: needed,
            visibility: item.vis.clone(),
            is_query,
            is_async: signature.asyncness.is_some(),
            settings: Rc::clone(&settings),
            takes_answer,
            arguments,
            answer: Returns::read(entity, &result)?,
        });
    }
    Ok(methods)
}

/// Whether a method is a query or an operation; `None` for helpers.
fn kind(item: &ImplItemFn) -> Result<Option<bool>> {
    let Some(receiver) = item.sig.receiver() else {
        return Ok(None);
    };
    if matches!(item.vis, Visibility::Inherited) {
        return Ok(None);
    }
    let mutability = match &receiver.kind {
        ReceiverKind::Reference(_, _, mutability) => Some(mutability),
        ReceiverKind::Typed(_, ty) => match bare(ty) {
            Type::Reference(reference) => Some(&reference.mutability),
            _ => None,
        },
        _ => None,
    };
    let Some(mutability) = mutability else {
        let rule = "an operation takes `&mut self`, a query `&self`; make this method private";
        return Err(Error::new_spanned(receiver, rule));
    };
    let is_query = mutability.is_none();
    Ok((!is_query || matches!(item.vis, Visibility::Public(_))).then_some(is_query))
}

/// Some of the arguments, and the predicates under which the method has exactly these.
type Variant<'s> = (Vec<TokenStream>, Vec<&'s FnArg>);

fn variants(signature: &Signature) -> Result<Vec<Variant<'_>>> {
    let mut variants: Vec<Variant<'_>> = vec![(Vec::new(), Vec::new())];
    for input in signature.inputs.iter().skip(1) {
        let present = conditions(attributes(input));
        let mut without = Vec::new();
        if !present.is_empty() {
            if variants.len() >= 1 << CONDITIONAL_ARGUMENTS_MAX {
                let rule = format!(
                    "at most {CONDITIONAL_ARGUMENTS_MAX} arguments of an operation have a `cfg`"
                );
                return Err(Error::new_spanned(input, rule));
            }
            without = variants.clone();
            for (needed, _) in &mut without {
                needed.push(quote!(not(all(#(#present),*))));
            }
        }
        for (needed, inputs) in &mut variants {
            needed.extend(present.iter().cloned());
            inputs.push(input);
        }
        variants.extend(without);
    }
    Ok(variants)
}

fn attributes(input: &FnArg) -> &[Attribute] {
    match input {
        FnArg::Receiver(receiver) => &receiver.attrs,
        FnArg::Typed(typed) => &typed.attrs,
    }
}

/// Whether the first argument is the answer to an ask, which only the runtime gives.
fn takes_answer(item: &ImplItemFn, is_query: bool, arguments: &[Argument]) -> Result<bool> {
    let types = arguments.iter().filter_map(|argument| match argument {
        Argument::Input(_, ty) => Some(ty),
        Argument::Context(_) => None,
    });
    let answers: Vec<(usize, &Type)> = types.enumerate().filter(|(_, ty)| is_answer(ty)).collect();
    let Some((place, ty)) = answers.last() else {
        return Ok(false);
    };
    if *place > 0 {
        let rule = "the answer to an ask is the first argument, and the only one";
        return Err(Error::new_spanned(ty, rule));
    }
    if is_query || matches!(item.vis, Visibility::Public(_)) {
        let rule = "answers come from the runtime alone: an operation that takes one is \
                    `pub(crate)`, with `&mut self`";
        return Err(Error::new_spanned(ty, rule));
    }
    Ok(true)
}

fn read_argument(entity: &Type, is_query: bool, input: &FnArg) -> Result<Argument> {
    let FnArg::Typed(input) = input else {
        return Err(Error::new_spanned(input, "expected an argument"));
    };
    if let Type::Reference(reference) = bare(&input.ty)
        && may_be_context(&reference.elem)
    {
        if is_query && reference.mutability.is_some() {
            let rule = "a query has no effects: take `ctx: &Context`";
            return Err(Error::new_spanned(reference, rule));
        }
        return Ok(Argument::Context((*reference.elem).clone()));
    }
    let ty = argument(entity, &input.ty)?;
    match &*input.pat {
        Pat::Ident(pattern) => Ok(Argument::Input(pattern.ident.clone(), ty)),
        Pat::Wild(wild) => {
            let rule = "an argument has a name, which JSON shows: `_` and a name is one";
            Err(Error::new_spanned(wild, rule))
        }
        other => {
            let rule = "an argument is a plain name: take the value apart in the body";
            Err(Error::new_spanned(other, rule))
        }
    }
}
