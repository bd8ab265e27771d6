//! Attributes of methods and arguments: which of them the generated items share.

use proc_macro2::{TokenStream, TokenTree};
use quote::quote;
use syn::{
    Attribute, Expr, ExprLit, Lit, Meta, Result, Token,
    parse::{Parse, ParseStream},
    punctuated::Punctuated,
};

/// The attributes that a method of the typed reference has in common with its operation.
const SHARED: [&str; 2] = ["doc", "deprecated"];

/// `cfg_attr(predicate, attribute, ...)`.
struct Conditional {
    predicate: TokenStream,
    attributes: Vec<Meta>,
}

impl Parse for Conditional {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut predicate = TokenStream::new();
        while !input.is_empty() && !input.peek(Token![,]) {
            predicate.extend([input.parse::<TokenTree>()?]);
        }
        if !input.is_empty() {
            input.parse::<Token![,]>()?;
        }
        let attributes = Punctuated::<Meta, Token![,]>::parse_terminated(input)?;
        Ok(Self { predicate, attributes: attributes.into_iter().collect() })
    }
}

impl Conditional {
    fn of(meta: &Meta) -> Option<Self> {
        match meta {
            Meta::List(list) if list.path.is_ident("cfg_attr") => {
                syn::parse2(list.tokens.clone()).ok()
            }
            _ => None,
        }
    }
}

/// The predicates that all hold where the item exists, from `cfg` and from `cfg` within `cfg_attr`.
pub(crate) fn conditions(attributes: &[Attribute]) -> Vec<TokenStream> {
    attributes.iter().flat_map(|attribute| conditions_of(&attribute.meta)).collect()
}

fn conditions_of(meta: &Meta) -> Vec<TokenStream> {
    if let Meta::List(list) = meta
        && list.path.is_ident("cfg")
    {
        return vec![list.tokens.clone()];
    }
    let Some(Conditional { predicate, attributes }) = Conditional::of(meta) else {
        return Vec::new();
    };
    let inner = attributes.iter().flat_map(conditions_of);
    inner.map(|condition| quote!(any(not(#predicate), #condition))).collect()
}

/// The attributes that the typed reference repeats, also those within `cfg_attr`.
pub(super) fn shared(attributes: &[Attribute]) -> Vec<TokenStream> {
    let metas = attributes.iter().filter_map(|attribute| shared_of(&attribute.meta));
    metas.map(|meta| quote!(#[#meta])).collect()
}

fn shared_of(meta: &Meta) -> Option<TokenStream> {
    if SHARED.iter().any(|name| meta.path().is_ident(name)) {
        return Some(quote!(#meta));
    }
    let Conditional { predicate, attributes } = Conditional::of(meta)?;
    let inner: Vec<TokenStream> = attributes.iter().filter_map(shared_of).collect();
    (!inner.is_empty()).then(|| quote!(cfg_attr(#predicate, #(#inner),*)))
}

/// The documentation as text.
pub(crate) fn doc_text(attributes: &[Attribute]) -> String {
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
