//! Writes the implementation, the handle's methods and the typed reference. Names are made up as `entity::generate` says.

use proc_macro2::{Span, TokenStream};
use quote::format_ident;
use syn::{Ident, ItemImpl, Type, ext::IdentExt};

use super::{
    Event, Settings,
    read::{Functions, StepMethod},
};
use crate::entity::{conditions, own, respanned};

pub(super) struct Generator<'f> {
    model: TokenStream,
    settings: &'f Settings,
    workflow: &'f Type,
    name: &'f Ident,
    reference: Ident,
    /// The trait with the handle's methods.
    handle: Ident,
    conditions: Vec<TokenStream>,
    functions: &'f Functions,
}

/// The argument that several ones are together, or one, or none.
struct Bundle<'f> {
    /// The struct of several, in a name of its own.
    name: Ident,
    text: String,
    inputs: &'f [(Ident, Type)],
}

impl Bundle<'_> {
    fn ty(&self) -> TokenStream {
        match self.inputs {
            [] => own!(()),
            [(_, ty)] => own!(#ty),
            _ => {
                let name = &self.name;
                own!(#name)
            }
        }
    }

    fn names(&self) -> Vec<Ident> {
        self.inputs.iter().map(|(name, _)| respanned(name)).collect()
    }

    /// The value, of variables that have the names of the arguments.
    fn value(&self) -> TokenStream {
        let names = self.names();
        match &names[..] {
            [] => own!(()),
            [name] => own!(#name),
            _ => {
                let bundle = &self.name;
                own!(#bundle { #(#names),* })
            }
        }
    }

    /// Takes the variable `__input` apart again.
    fn take(&self) -> TokenStream {
        let value = self.value();
        own!(let #value = __input;)
    }

    fn definition(&self, model: &TokenStream) -> Option<TokenStream> {
        if self.inputs.len() < 2 {
            return None;
        }
        let (name, names, text) = (&self.name, self.names(), &self.text);
        let types: Vec<&Type> = self.inputs.iter().map(|(_, ty)| ty).collect();
        let serde = format!("{model}::serde").replace(' ', "");
        let schemars = format!("{model}::schemars").replace(' ', "");
        Some(own! {
            #[derive(#model::serde::Serialize, #model::serde::Deserialize, #model::JsonSchema)]
            #[serde(crate = #serde)]
            #[schemars(crate = #schemars, rename = #text)]
            #[doc(hidden)]
            pub struct #name { #(#names: #types),* }

            impl ::core::convert::From<(#(#types,)*)> for #name {
                fn from((#(#names,)*): (#(#types,)*)) -> Self {
                    Self { #(#names),* }
                }
            }
        })
    }
}

impl<'f> Generator<'f> {
    pub(super) fn new(
        settings: &'f Settings,
        block: &ItemImpl,
        (workflow, name): (&'f Type, &'f Ident),
        functions: &'f Functions,
    ) -> Self {
        Self {
            model: crate::model(),
            settings,
            workflow,
            name,
            reference: respanned(&format_ident!("{}Ref", name)),
            handle: respanned(&format_ident!("{}Context", name)),
            conditions: conditions(&block.attrs),
            functions,
        }
    }

    fn bundle(&self, of: &str, inputs: &'f [(Ident, Type)]) -> Bundle<'f> {
        let name = format!("__{}_{of}_Input", self.name.unraw());
        let mut text = String::new();
        for part in of.split('_') {
            let mut letters = part.chars();
            text.extend(letters.next().map(|first| first.to_ascii_uppercase()));
            text.extend(letters);
        }
        Bundle { name: Ident::new(&name, Span::mixed_site()), text: format!("{text}Input"), inputs }
    }

    fn input(&self) -> Bundle<'f> {
        self.bundle("run", &self.functions.inputs)
    }

    fn argument_of(&self, step: &'f StepMethod) -> Bundle<'f> {
        self.bundle(&step.name.unraw().to_string(), &step.inputs)
    }

    pub(super) fn all(&self) -> TokenStream {
        let (model, conditions) = (&self.model, &self.conditions);
        let steps =
            self.functions.steps.iter().map(|step| self.argument_of(step).definition(model));
        let bundles = steps.chain([self.input().definition(model)]).flatten().map(|definition| {
            own! {
                #(#[cfg(#conditions)])*
                #[allow(missing_docs, non_camel_case_types, unreachable_pub, private_interfaces)]
                #definition
            }
        });
        let (handle, reference) = (self.handle(), self.reference());
        let (implementation, handle_methods) = (self.implementation(), self.handle_methods());
        own! {
            #(#bundles)*
            #handle
            #reference
            #(#[cfg(#conditions)])*
            #[allow(
                dead_code, deprecated, missing_docs, private_interfaces, unreachable_pub,
                clippy::needless_pass_by_value
            )]
            const _: () = {
                #implementation
                #handle_methods
            };
        }
    }

    fn implementation(&self) -> TokenStream {
        let (model, workflow) = (&self.model, self.workflow);
        let Settings { name, version, events, also, retention, changes } = self.settings;
        let (description, result) = (&self.functions.description, &self.functions.result);
        let input = self.input();
        let (ty, take, names) = (input.ty(), input.take(), input.names());
        let steps = self.functions.steps.iter().map(|step| self.step(step));
        let events = events.iter().map(|Event { name, payload }| {
            let text = name.unraw().to_string();
            own!(#model::workflow::EventType::new::<#payload>(#text))
        });
        let earlier = also.iter().map(|(_, ty)| own!(#model::workflow::Program::of::<#ty>()));
        let checks = also.iter().map(|(version, ty)| {
            let rule = format!("`also({version} = ..)` names code of another version");
            own! {
                const _: () = ::core::assert!(
                    <#ty as #model::workflow::WorkflowType>::VERSION == #version,
                    #rule
                );
            }
        });
        let retention = retention
            .as_ref()
            .map(|retention| own!(const RETENTION: ::core::time::Duration = #retention;));
        let changes = changes.as_ref().map(|changes| {
            own! {
                const CHANGES: ::core::option::Option<::core::time::Duration> =
                    ::core::option::Option::Some(#changes);
            }
        });
        own! {
            #(#checks)*
            impl #model::workflow::WorkflowType for #workflow {
                const NAME: &'static ::core::primitive::str = #name;
                const VERSION: ::core::primitive::u32 = #version;
                const DESCRIPTION: &'static ::core::primitive::str = #description;
                #retention
                #changes
                type Input = #ty;
                type Output = <#result as #model::workflow::WorkflowResult>::Value;
                fn run(
                    __ctx: #model::workflow::Workflow<Self>,
                    __input: Self::Input,
                ) -> impl ::core::future::Future<
                    Output = ::core::result::Result<Self::Output, #model::Failure>,
                > + ::core::marker::Send + 'static {
                    #take
                    <#workflow>::run(__ctx, #(#names),*)
                }
                fn steps() -> ::std::vec::Vec<#model::workflow::StepType<Self>> {
                    ::std::vec::Vec::from([#(#steps),*])
                }
                fn events() -> ::std::vec::Vec<#model::workflow::EventType> {
                    ::std::vec::Vec::from([#(#events),*])
                }
                fn earlier() -> ::std::vec::Vec<#model::workflow::Program> {
                    ::std::vec::Vec::from([#(#earlier),*])
                }
            }
        }
    }

    /// The row of the table of steps.
    fn step(&self, step: &'f StepMethod) -> TokenStream {
        let (model, workflow, name) = (&self.model, self.workflow, &step.name);
        let (text, description) = (name.unraw().to_string(), &step.description);
        let argument = self.argument_of(step);
        let (ty, take, names) = (argument.ty(), argument.take(), argument.names());
        let attempt = step.takes_step.then(|| own!(&__step,));
        let limit = step.running_max.as_ref().map(|limit| own!(.at_most(#limit)));
        own! {
            #model::workflow::StepType::new(
                #text,
                |__given: ::std::sync::Arc<#workflow>, __step: #model::workflow::Step, __input: #ty| async move {
                    let _ = &__step;
                    #take
                    #model::workflow::StepReturn::into_result(
                        <#workflow>::#name(&__given, #attempt #(#names),*).await
                    )
                },
            ).described(#description)#limit
        }
    }

    /// The trait with the handle's methods. It is in scope where the workflow is defined; elsewhere it is imported.
    fn handle(&self) -> TokenStream {
        let (model, handle, conditions) = (&self.model, &self.handle, &self.conditions);
        let steps = self.functions.steps.iter().map(|step| {
            let (signature, attributes) = (self.step_signature(step), &step.attributes);
            own!(#(#attributes)* #signature;)
        });
        let events = self.settings.events.iter().map(|event| {
            let signature = self.event_signature(event);
            let about = format!("The next event `{}`, also one that came before.", event.name);
            own!(#[doc = #about] #signature;)
        });
        let about = format!(
            "The steps and events of `{}`, as methods of its handle: operations that begin when they are awaited.",
            self.settings.name.value()
        );
        let _ = model;
        own! {
            #(#[cfg(#conditions)])*
            #[doc = #about]
            #[allow(dead_code, missing_docs, private_interfaces, private_bounds, unreachable_pub)]
            pub(crate) trait #handle {
                #(#steps)*
                #(#events)*
            }
        }
    }

    fn step_signature(&self, step: &StepMethod) -> TokenStream {
        let (model, name, result) = (&self.model, respanned(&step.name), &step.result);
        let names = step.inputs.iter().map(|(name, _)| respanned(name));
        let types = step.inputs.iter().map(|(_, ty)| ty);
        own! {
            fn #name(&self, #(#names: #types),*) -> #model::workflow::StepOperation<
                <#result as #model::workflow::StepReturn>::Value
            >
        }
    }

    fn event_signature(&self, event: &Event) -> TokenStream {
        let (model, payload, name) = (&self.model, &event.payload, respanned(&event.name));
        own!(fn #name(&self) -> #model::workflow::EventWait<#payload>)
    }

    fn handle_methods(&self) -> TokenStream {
        let (model, workflow, handle) = (&self.model, self.workflow, &self.handle);
        let steps = self.functions.steps.iter().map(|step| {
            let (signature, text) = (self.step_signature(step), step.name.unraw().to_string());
            let value = self.argument_of(step).value();
            own!(#signature { self.method(#text, &#value) })
        });
        let events = self.settings.events.iter().map(|event| {
            let (signature, text) = (self.event_signature(event), event.name.unraw().to_string());
            own!(#signature { self.event(#text) })
        });
        own! {
            impl #handle for #model::workflow::Workflow<#workflow> {
                #(#steps)*
                #(#events)*
            }
        }
    }

    fn reference(&self) -> TokenStream {
        let (model, workflow, reference) = (&self.model, self.workflow, &self.reference);
        let (conditions, name) = (&self.conditions, self.name.unraw());
        let text = self.settings.name.value();
        let about = format!(
            "A typed reference to one `{text}`: its methods make operations; what it does not have itself is on \
             [`InstanceReference`]({}::workflow::InstanceReference).",
            model.to_string().replace(' ', "").trim_start_matches("::")
        );
        let of = format!("The typed reference to the {name} named `key`, without a node.");
        let methods = self.reference_methods();
        own! {
            #(#[cfg(#conditions)])*
            #[doc = #about]
            #[derive(::core::fmt::Debug, ::core::clone::Clone)]
            #[allow(unreachable_pub)]
            pub struct #reference<B = #model::Unbound>(#model::workflow::InstanceReference<B>);

            #(#[cfg(#conditions)])*
            #[allow(dead_code, deprecated, private_interfaces, unreachable_pub)]
            impl #workflow {
                #[doc = #of]
                pub fn of(
                    key: impl ::core::convert::AsRef<::core::primitive::str>,
                ) -> #reference {
                    #reference(#model::workflow::InstanceReference::new(
                        <Self as #model::workflow::WorkflowType>::NAME,
                        ::core::convert::AsRef::as_ref(&key),
                    ))
                }
            }

            #methods

            #(#[cfg(#conditions)])*
            impl<B> ::core::ops::Deref for #reference<B> {
                type Target = #model::workflow::InstanceReference<B>;
                fn deref(&self) -> &Self::Target {
                    &self.0
                }
            }

            #(#[cfg(#conditions)])*
            impl #model::workflow::TypedWorkflow for #workflow {
                type Reference<B: ::core::clone::Clone> = #reference<B>;
                fn reference<B: ::core::clone::Clone>(
                    instance: #model::workflow::InstanceReference<B>,
                ) -> #reference<B> {
                    #reference(instance)
                }
            }
        }
    }

    /// The methods that an author calls on the typed reference.
    fn reference_methods(&self) -> TokenStream {
        let (model, workflow, reference) = (&self.model, self.workflow, &self.reference);
        let (conditions, input) = (&self.conditions, self.input());
        let (value, names) = (input.value(), input.names());
        let output = own!(<#workflow as #model::workflow::WorkflowType>::Output);
        let types = input.inputs.iter().map(|(_, ty)| ty);
        let events = self.settings.events.iter().map(|Event { name, payload }| {
            let (text, name) = (name.unraw().to_string(), respanned(name));
            let about = format!("Raises the event `{text}`.");
            own! {
                #[doc = #about]
                pub fn #name(&self, payload: #payload) -> #model::Operation<(), B> {
                    self.0.event(#text, &payload)
                }
            }
        });
        own! {
            #(#[cfg(#conditions)])*
            #[allow(dead_code, deprecated, private_interfaces, unreachable_pub)]
            impl<B: ::core::clone::Clone> #reference<B> {
                /// Starts it, or joins it where it goes on with the same input.
                pub fn start(&self, #(#names: #types),*) -> #model::workflow::Start<#workflow, B> {
                    self.0.start_of(&#value)
                }

                /// Its status, with its result where it has one.
                pub fn status(&self) -> #model::Query<#model::workflow::StatusView<#output>, B> {
                    self.0.status_of()
                }

                /// Waits for its result, however long it takes. Dropping the future cancels nothing.
                ///
                /// # Errors
                /// The failure that it ended with, or why it could not be asked.
                pub async fn result(
                    &self,
                ) -> ::core::result::Result<#output, #model::workflow::ResultError>
                where
                    B: #model::workflow::WorkflowCaller,
                {
                    self.0.result_of().await
                }
                #(#events)*
            }
        }
    }
}
