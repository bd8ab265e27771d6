//! The methods that a type names for the runtime to call: `on_dead_letter` and `on_activate`.

use proc_macro2::{Span, TokenStream};
use quote::quote_spanned;
use syn::{
    Error, Ident, ImplItem, ImplItemFn, ItemImpl, ReceiverKind, Result, Type, Visibility,
    spanned::Spanned,
};

use super::{
    Settings,
    generate::{Generator, own, respanned},
    method::Method,
    types::bare,
};

/// Refuses a name that is no method, or not one that can be called so.
pub(super) fn check(settings: &Settings, block: &ItemImpl, methods: &[Method]) -> Result<()> {
    if let Some(name) = &settings.on_dead_letter {
        let rule = "`on_dead_letter` names an operation of this block: `pub(crate) fn name(&mut self, \
                    letter: DeadLetter)`, with or without `ctx`";
        let found = methods.iter().find(|method| method.name == *name);
        let found = found.ok_or_else(|| Error::new_spanned(name, rule))?;
        if found.is_query || found.takes_answer || matches!(found.visibility, Visibility::Public(_))
        {
            return Err(Error::new_spanned(name, rule));
        }
    }
    if let Some(name) = &settings.on_activate {
        let rule = "`on_activate` names a private method of this block: `fn name(&mut self)` or \
                    `fn name(&mut self, ctx: &Context)`";
        let is_right = |item: &ImplItemFn| {
            let is_plain = item.sig.asyncness.is_none() && item.sig.generics.params.is_empty();
            let changes = item.sig.receiver().is_some_and(|receiver| {
                matches!(receiver.kind, ReceiverKind::Reference(_, _, Some(_)))
            });
            is_plain && changes && matches!(item.vis, Visibility::Inherited)
        };
        if !method(block, name).is_some_and(is_right) {
            return Err(Error::new_spanned(name, rule));
        }
    }
    Ok(())
}

fn method<'b>(block: &'b ItemImpl, name: &Ident) -> Option<&'b ImplItemFn> {
    block.items.iter().find_map(|item| match item {
        ImplItem::Fn(item) if item.sig.ident == *name => Some(item),
        _ => None,
    })
}

impl Generator<'_> {
    /// The items of the trait that tell the runtime what to call.
    pub(super) fn hooks(&self) -> TokenStream {
        let (model, entity) = (&self.model, self.entity);
        let letters = self.settings.on_dead_letter.as_ref().map(|name| {
            let text = name.to_string();
            own! {
                const ON_DEAD_LETTER: ::core::option::Option<&'static ::core::primitive::str> =
                    ::core::option::Option::Some(#text);
            }
        });
        let activate = self.settings.on_activate.as_ref().map(|name| {
            let name = respanned(name);
            let takes_context = method(self.block, &name).is_some_and(|it| it.sig.inputs.len() > 1);
            let ctx = takes_context.then(|| own!(, __ctx));
            own! {
                const ON_ACTIVATE: ::core::option::Option<fn(&mut Self, &#model::Context)> =
                    ::core::option::Option::Some(|__state, __ctx| {
                        let _ = __ctx;
                        <#entity>::#name(__state #ctx);
                    });
            }
        });
        own!(#letters #activate)
    }

    /// Has the compiler check the argument of the operation that hears of dead letters.
    pub(super) fn letter_check(&self) -> Option<TokenStream> {
        let name = self.settings.on_dead_letter.as_ref()?;
        let row = self.methods.iter().find(|row| row.method.name == *name)?;
        let (model, conditions) = (&self.model, &row.method.conditions);
        let types: Vec<&Type> = row.inputs.iter().map(|input| bare(input.ty)).collect();
        let place = types.first().map_or(name.span(), |ty| ty.span());
        let place = place.resolved_at(Span::mixed_site());
        let check = quote_spanned!(place=> #model::entity::is_dead_letter::<(#(#types,)*)>());
        Some(own! {
            #(#[cfg(#conditions)])*
            const _: () = #check;
        })
    }
}
