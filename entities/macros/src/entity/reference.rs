//! Writes the typed reference.

use proc_macro2::TokenStream;
use syn::{Ident, ext::IdentExt};

use super::{
    generate::{Generator, Row, own, respanned},
    method::Method,
};

impl Generator<'_> {
    /// The methods that an author calls on it.
    pub(super) fn reference_methods(&self) -> TokenStream {
        let (model, entity, reference) = (&self.model, self.entity, &self.reference);
        let methods = self.methods.iter().map(|row| self.reference_method(row));
        own! {
            impl<__Bound: ::core::clone::Clone> #reference<__Bound> {
                #(#methods)*
            }

            impl #model::TypedReference for #entity {
                type Reference<__Bound: ::core::clone::Clone> = #reference<__Bound>;
                fn reference<__Bound: ::core::clone::Clone>(
                    __reference: #model::Reference<__Bound>,
                ) -> #reference<__Bound> {
                    #reference(__reference)
                }
            }
        }
    }

    fn reference_method(&self, row: &Row<'_>) -> TokenStream {
        let (model, method) = (&self.model, row.method);
        let (name, text) = (respanned(&method.name), method.text());
        let Method { attributes, conditions, visibility, answer, .. } = method;
        // The author's names, as documentation shows them.
        let names: Vec<Ident> = row.inputs.iter().map(|input| respanned(input.name)).collect();
        let types = row.inputs.iter().map(|input| input.ty);
        if method.takes_answer {
            return self.then_method(row, &names);
        }
        let input = match &names[..] {
            [] => own!(::core::option::Option::None),
            [name] => own!(::core::option::Option::Some(&#name)),
            _ => {
                let bundle = &row.bundle;
                own!(::core::option::Option::Some(&#bundle { #(#names),* }))
            }
        };
        let (ty, make) = if method.is_query {
            (own!(Query), own!(query))
        } else {
            (own!(Operation), own!(operation))
        };
        let value = match &answer.value {
            Some(value) => own!(#value),
            None => {
                let (ty, is_fallible) = (&answer.ty, &row.is_fallible);
                own!(<#ty as #model::entity::Returned<#is_fallible>>::Value)
            }
        };
        // Every type has trait methods of these names that take it by value, and they come before
        // a method of the type's own that borrows it.
        let receiver = match &*text {
            "into" | "try_into" => own!(self),
            _ => own!(&self),
        };
        own! {
            #(#[cfg(#conditions)])*
            #(#attributes)*
            #visibility fn #name(#receiver, #(#names: #types),*) -> #model::#ty<#value, __Bound> {
                #model::Reference::#make(&self.0, #text, #input)
            }
        }
    }

    /// The method of an operation that takes an answer: what to do with it, given the other arguments.
    fn then_method(&self, row: &Row<'_>, names: &[Ident]) -> TokenStream {
        let (model, method) = (&self.model, row.method);
        let (name, text) = (respanned(&method.name), method.text());
        let Method { attributes, conditions, visibility, .. } = method;
        let answer = row.inputs[0].ty;
        let others: Vec<&Ident> = names.iter().skip(1).collect();
        let types = row.inputs.iter().skip(1).map(|input| input.ty);
        let texts = others.iter().map(|name| name.unraw().to_string());
        let argument = match &others[..] {
            [] => String::new(),
            _ => names[0].unraw().to_string(),
        };
        own! {
            #(#[cfg(#conditions)])*
            #(#attributes)*
            #visibility fn #name(&self, #(#others: #types),*) -> #model::Then<#answer> {
                #model::Reference::then(
                    &self.0,
                    #text,
                    #argument,
                    &[#((#texts, &#others)),*],
                )
            }
        }
    }

    /// The items that an author names: the typed reference, and the function that makes it.
    pub(super) fn reference(&self) -> TokenStream {
        let (model, entity, reference) = (&self.model, self.entity, &self.reference);
        let (conditions, name) = (&self.conditions, self.name.unraw());
        let index_functions = self.index_functions();
        let about = format!(
            "A typed reference to one `{}`: its methods make operations and queries.",
            self.settings.name.value()
        );
        let of = format!("The typed reference to the {name} named `key`, without a node.");
        own! {
            #(#[cfg(#conditions)])*
            #[doc = #about]
            #[derive(::core::fmt::Debug, ::core::clone::Clone)]
            #[allow(unreachable_pub)]
            pub struct #reference<B = #model::Unbound>(#model::Reference<B>);

            #(#[cfg(#conditions)])*
            #[allow(dead_code, deprecated, private_interfaces, unreachable_pub)]
            impl #entity {
                #[doc = #of]
                pub fn of(
                    key: impl ::core::convert::AsRef<::core::primitive::str>,
                ) -> #reference {
                    <Self as #model::TypedReference>::unbound(
                        ::core::convert::AsRef::as_ref(&key),
                    )
                }

                #index_functions
            }
        }
    }
}
