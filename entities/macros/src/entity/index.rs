//! The indexes of a type: `index(field: Type)` in `#[entity(...)]`, and `#[index]` on a method.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote_spanned};
use syn::{
    Error, FnArg, Ident, ImplItem, ImplItemFn, ItemImpl, Meta, ReceiverKind, Result, ReturnType,
    Token, Type,
    ext::IdentExt,
    parse::{Parse, ParseStream},
    spanned::Spanned as _,
};

use super::{
    attributes::conditions,
    generate::{Generator, own, respanned},
    types::bare,
};

/// The attribute of a method that computes an indexed value.
pub(super) const INDEX: &str = "index";

/// A field that is indexed: `name: Type`.
pub(crate) struct Field {
    name: Ident,
    ty: Type,
}

impl Parse for Field {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let name = input.parse()?;
        input.parse::<Token![:]>()?;
        Ok(Self { name, ty: input.parse()? })
    }
}

/// One index of a type.
pub(super) struct Index {
    name: Ident,
    ty: Type,
    is_field: bool,
    /// When it exists at all: the predicates of the method's `cfg` attributes.
    conditions: Vec<TokenStream>,
}

/// The indexes of a type, and a refusal of methods that cannot be one.
pub(super) fn read(fields: &[Field], block: &ItemImpl) -> Result<Vec<Index>> {
    let fields = fields.iter().map(|Field { name, ty }| Index {
        name: name.clone(),
        ty: ty.clone(),
        is_field: true,
        conditions: Vec::new(),
    });
    let mut indexes: Vec<Index> = fields.collect();
    for item in &block.items {
        if let ImplItem::Fn(item) = item
            && let Some(attribute) = item.attrs.iter().find(|it| it.path().is_ident(INDEX))
        {
            if !matches!(attribute.meta, Meta::Path(_)) {
                let rule =
                    "`#[index]` stands alone: the index has the name and the type of the method";
                return Err(Error::new_spanned(attribute, rule));
            }
            indexes.push(of_method(item)?);
        }
    }
    Ok(indexes)
}

fn of_method(item: &ImplItemFn) -> Result<Index> {
    let rule = "an indexed value follows from the state alone: `fn name(&self) -> T`";
    let signature = &item.sig;
    let reads = signature
        .receiver()
        .is_some_and(|receiver| matches!(receiver.kind, ReceiverKind::Reference(_, _, None)));
    let is_plain = signature.asyncness.is_none() && signature.generics.params.is_empty();
    let others = signature.inputs.iter().filter(|input| !matches!(input, FnArg::Receiver(_)));
    let ReturnType::Type(_, ty) = &signature.output else {
        return Err(Error::new_spanned(signature, rule));
    };
    if !reads || !is_plain || others.count() > 0 {
        return Err(Error::new_spanned(signature, rule));
    }
    if let Type::Reference(borrowed) = bare(ty) {
        let rule = "an indexed value is owned: return `String` for `&str`";
        return Err(Error::new_spanned(borrowed, rule));
    }
    Ok(Index {
        name: signature.ident.clone(),
        ty: (**ty).clone(),
        is_field: false,
        conditions: conditions(&item.attrs),
    })
}

impl Generator<'_> {
    /// The item of the trait that lists the indexes.
    pub(super) fn indexes(&self) -> Option<TokenStream> {
        if self.indexes.is_empty() {
            return None;
        }
        let (model, entity) = (&self.model, self.entity);
        let rows = self.indexes.iter().map(|Index { name, ty, is_field, conditions }| {
            let text = name.unraw().to_string();
            let value = match is_field {
                true => own!(&__state.#name),
                false => own!(&<#entity>::#name(__state)),
            };
            own! {
                #(#[cfg(#conditions)])*
                #model::IndexType::new::<#ty>(#text, |__state: &#entity| {
                    #model::index::encode::<#ty>(#value)
                })
            }
        });
        Some(own! {
            fn indexes() -> ::std::vec::Vec<#model::IndexType<Self>> {
                ::std::vec::Vec::from([#(#rows),*])
            }
        })
    }

    /// Has the compiler check that each value is a scalar, and point at its type.
    pub(super) fn index_checks(&self) -> TokenStream {
        let model = &self.model;
        let checks = self.indexes.iter().map(|Index { ty, conditions, .. }| {
            let place = ty.span().resolved_at(Span::mixed_site());
            let check = quote_spanned!(place=>
                ::core::assert!(<#ty as #model::Layout>::SCALAR.is_some(), "{}", #model::index::NO_SCALAR)
            );
            own! {
                #(#[cfg(#conditions)])*
                const _: () = #check;
            }
        });
        own!(#(#checks)*)
    }

    /// The functions that an author names to find entities: one for each index.
    pub(super) fn index_functions(&self) -> TokenStream {
        let (model, entity) = (&self.model, self.entity);
        let functions = self.indexes.iter().map(|Index { name, ty, conditions, .. }| {
            let text = name.unraw().to_string();
            let function = respanned(&format_ident!("by_{}", name.unraw(), span = name.span()));
            let about = format!("The index `{text}`, for finding entities.");
            own! {
                #(#[cfg(#conditions)])*
                #[doc = #about]
                pub const fn #function() -> #model::Index<#entity, #ty> {
                    #model::Index::named(#text)
                }
            }
        });
        own!(#(#functions)*)
    }
}
