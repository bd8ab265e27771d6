//! Writes the table of operations; `reference` writes the typed reference.
//!
//! What is written stands among names that an author chose, so it uses none that an author could
//! mean: paths begin with `::`, and every name of a variable, parameter or item that the macro makes
//! up begins with two underscores. That the names of variables have a span of their own is not
//! enough: a pattern would still be taken for a constant of the same name.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote_spanned};
use syn::{Ident, ItemImpl, Type, Visibility, spanned::Spanned};

use super::{
    Settings,
    attributes::{conditions, doc_text},
    index::Index,
    method::{Argument, Method},
    types::{ONLY_ERROR, last},
};

/// `quote!` whose own words are not the author's, also for lints.
macro_rules! own {
    ($($tokens:tt)*) => {
        quote::quote_spanned!(proc_macro2::Span::mixed_site()=> $($tokens)*)
    };
}
pub(crate) use own;

pub(super) struct Generator<'m> {
    pub(super) model: TokenStream,
    pub(super) settings: &'m Settings,
    pub(super) entity: &'m Type,
    /// The last name of the entity's type.
    pub(super) name: &'m Ident,
    pub(super) reference: Ident,
    /// The predicates of the `impl` block's `cfg` attributes.
    pub(super) conditions: Vec<TokenStream>,
    description: String,
    pub(super) block: &'m ItemImpl,
    pub(super) methods: Vec<Row<'m>>,
    pub(super) indexes: Vec<Index>,
}

/// A method and the names that are made up for it.
pub(super) struct Row<'m> {
    pub(super) method: &'m Method,
    pub(super) inputs: Vec<Input<'m>>,
    /// The struct that several arguments travel in, as an object by name.
    pub(super) bundle: Ident,
    /// Whether its answer may be a rejection or a failure.
    pub(super) is_fallible: Ident,
}

/// One argument that comes from JSON.
pub(super) struct Input<'m> {
    pub(super) name: &'m Ident,
    pub(super) ty: &'m Type,
    variable: Ident,
}

/// The same name at the same place, but not the author's for lints.
pub(crate) fn respanned(name: &Ident) -> Ident {
    let mut name = name.clone();
    name.set_span(name.span().resolved_at(Span::mixed_site()));
    name
}

fn made_up(name: &str, index: usize) -> Ident {
    Ident::new(&format!("__{name}_{index}"), Span::mixed_site())
}

impl<'m> Row<'m> {
    fn new(index: usize, method: &'m Method) -> Self {
        let inputs = method.arguments.iter().filter_map(|argument| match argument {
            Argument::Input(name, ty) => Some((name, ty)),
            Argument::Context(_) => None,
        });
        let inputs = inputs.enumerate().map(|(index, (name, ty))| Input {
            name,
            ty,
            variable: made_up("argument", index),
        });
        Self {
            method,
            inputs: inputs.collect(),
            bundle: made_up("Input", index),
            is_fallible: made_up("IS_FALLIBLE", index),
        }
    }

    /// The name of the bundle in schemas.
    fn bundle_text(&self) -> String {
        let mut name = String::new();
        for part in self.method.text().split('_') {
            let mut letters = part.chars();
            name.extend(letters.next().map(|first| first.to_ascii_uppercase()));
            name.extend(letters);
        }
        format!("{name}Input")
    }

    /// The type of the argument and how it is taken apart.
    fn input(&self) -> (TokenStream, TokenStream) {
        let variables = self.inputs.iter().map(|input| &input.variable);
        match &self.inputs[..] {
            [] => (own!(()), own!(let () = __input;)),
            [Input { ty, variable, .. }] => (own!(#ty), own!(let #variable = __input;)),
            inputs => {
                let (bundle, names) = (&self.bundle, inputs.iter().map(|input| input.name));
                (own!(#bundle), own!(let #bundle { #(#names: #variables),* } = __input;))
            }
        }
    }
}

impl<'m> Generator<'m> {
    pub(super) fn new(
        settings: &'m Settings,
        block: &'m ItemImpl,
        (entity, name): (&'m Type, &'m Ident),
        methods: &'m [Method],
        indexes: Vec<Index>,
    ) -> Self {
        Self {
            model: crate::model(),
            settings,
            entity,
            name,
            reference: respanned(&format_ident!("{}Ref", name)),
            conditions: conditions(&block.attrs),
            description: doc_text(&block.attrs),
            block,
            methods: methods.iter().enumerate().map(|(at, method)| Row::new(at, method)).collect(),
            indexes,
        }
    }

    pub(super) fn all(&self) -> TokenStream {
        let (conditions, reference) = (&self.conditions, self.reference());
        let bundles = self.methods.iter().filter_map(|row| self.bundle(row));
        let contexts = self.methods.iter().flat_map(|row| self.contexts(row));
        let answers = self.methods.iter().filter_map(|row| self.answer(row));
        let (implementation, operations) = (self.implementation(), self.reference_methods());
        let (letter_check, index_checks) = (self.letter_check(), self.index_checks());
        own! {
            #reference
            #(#[cfg(#conditions)])*
            // Operations may be nobody's concern but a reminder's, and use what is deprecated.
            #[allow(
                dead_code, deprecated, missing_docs, private_interfaces, unreachable_pub,
                clippy::needless_pass_by_value
            )]
            const _: () = {
                #(#bundles)*
                #(#contexts)*
                #(#answers)*
                #letter_check
                #index_checks
                #implementation
                #operations
            };
        }
    }

    /// The struct of several arguments. Its schema is that of a twin, because a derived schema is
    /// known by its name and module, and the author may have a type of that name there.
    fn bundle(&self, row: &Row<'_>) -> Option<TokenStream> {
        if row.inputs.len() < 2 {
            return None;
        }
        let (model, bundle, text) = (&self.model, &row.bundle, row.bundle_text());
        let conditions = &row.method.conditions;
        let serde = format!("{model}::serde").replace(' ', "");
        let schemars = format!("{model}::schemars").replace(' ', "");
        let names: Vec<Ident> = row.inputs.iter().map(|input| respanned(input.name)).collect();
        let types: Vec<&Type> = row.inputs.iter().map(|input| input.ty).collect();
        let expecting = format!("struct {text}");
        let id = format!("#[entity] {}, arguments of {}", self.name, row.method.text());
        // An answer is only read.
        let written = (!row.method.takes_answer).then(|| own!(#model::serde::Serialize,));
        Some(own! {
            #(#[cfg(#conditions)])*
            #[derive(#written #model::serde::Deserialize)]
            #[serde(crate = #serde, expecting = #expecting)]
            struct #bundle { #(#names: #types),* }

            #(#[cfg(#conditions)])*
            impl #model::JsonSchema for #bundle {
                fn schema_name() -> ::std::borrow::Cow<'static, ::core::primitive::str> {
                    ::std::borrow::Cow::Borrowed(#text)
                }
                fn schema_id() -> ::std::borrow::Cow<'static, ::core::primitive::str> {
                    ::std::borrow::Cow::Borrowed(
                        ::core::concat!(::core::module_path!(), "::", #id)
                    )
                }
                fn json_schema(
                    __generator: &mut #model::schemars::SchemaGenerator,
                ) -> #model::schemars::Schema {
                    #[derive(#model::JsonSchema)]
                    #[schemars(crate = #schemars)]
                    struct __Twin { #(#names: #types),* }
                    <__Twin as #model::JsonSchema>::json_schema(__generator)
                }
            }
        })
    }

    /// Asks the compiler whether what is borrowed is the context, where it has another name.
    fn contexts(&self, row: &Row<'_>) -> Vec<TokenStream> {
        let (model, conditions) = (&self.model, &row.method.conditions);
        let contexts = row.method.arguments.iter().filter_map(|argument| match argument {
            Argument::Context(ty) if last(ty).is_none_or(|name| name != "Context") => Some(ty),
            _ => None,
        });
        let checks = contexts.map(|ty| {
            own! {
                #(#[cfg(#conditions)])*
                const _: () = #model::entity::is_context::<#ty>();
            }
        });
        checks.collect()
    }

    /// Asks the compiler what an answer is, where the syntax does not show it, and refuses a
    /// `Result` with another error.
    fn answer(&self, row: &Row<'_>) -> Option<TokenStream> {
        let (model, name, answer) = (&self.model, &row.is_fallible, &row.method.answer);
        if answer.value.is_some() && !answer.is_fallible {
            return None;
        }
        let (ty, conditions) = (&answer.ty, &row.method.conditions);
        let may_be_plain = answer.value.is_none();
        let place = answer.place.span().resolved_at(Span::mixed_site());
        let refused = quote_spanned!(place=> ::core::panic!(#ONLY_ERROR));
        Some(own! {
            #(#[cfg(#conditions)])*
            const #name: ::core::primitive::bool = {
                use #model::entity::PlainResult as _;
                type __Kind = #model::entity::ResultKind<#ty>;
                if __Kind::IS_RESULT != __Kind::IS_FALLIBLE
                    || !(#may_be_plain || __Kind::IS_FALLIBLE)
                {
                    #refused
                }
                __Kind::IS_FALLIBLE
            };
        })
    }

    fn implementation(&self) -> TokenStream {
        let (model, entity, description) = (&self.model, self.entity, &self.description);
        let (Settings { name, version, upgrades, .. }, hooks) = (self.settings, self.hooks());
        let indexes = self.indexes();
        let policy = self
            .settings
            .policy
            .expression(model)
            .map(|policy| own!(fn policy() -> #model::Policy { #policy }));
        let needs = &self.settings.needs;
        let dependencies = (!needs.is_empty()).then(|| {
            own! {
                fn dependencies() -> ::std::vec::Vec<#model::Dependency> {
                    ::std::vec::Vec::from([#(#model::Dependency::of::<#needs>()),*])
                }
            }
        });
        let rows = self.methods.iter().map(|row| self.row(row));
        let from: Vec<u32> = upgrades.iter().map(|(from, _)| *from).collect();
        let types: Vec<&Type> = upgrades.iter().map(|(_, ty)| ty).collect();
        let upgrade = (!upgrades.is_empty()).then(|| {
            own! {
                fn upgrade<__Decoder: #model::entity::StateDecoder>(
                    __version: ::core::primitive::u32,
                    __decoder: __Decoder,
                ) -> ::core::result::Result<Self, __Decoder::Error> {
                    match __version {
                        #(#from => #model::entity::StateDecoder::decode::<#types>(__decoder)
                            .map(::core::convert::Into::into),)*
                        _ => ::core::result::Result::Err(
                            #model::entity::StateDecoder::unknown_version(__decoder, __version)
                        ),
                    }
                }
                fn earlier_layouts()
                    -> ::std::vec::Vec<(::core::primitive::u32, ::std::string::String)>
                {
                    ::std::vec::Vec::from([#((#from, #model::state::LayoutText::of::<#types>())),*])
                }
            }
        });
        own! {
            impl #model::Entity for #entity {
                const NAME: &'static ::core::primitive::str = #name;
                const VERSION: ::core::primitive::u32 = #version;
                const DESCRIPTION: &'static ::core::primitive::str = #description;
                fn operations() -> ::std::vec::Vec<#model::OperationType<Self>> {
                    ::std::vec::Vec::from([#(#rows),*])
                }
                #upgrade
                #indexes
                #hooks
                #policy
                #dependencies
            }
        }
    }

    /// The row of the table of operations. Methods are called by path: a method call would prefer
    /// a trait's method that takes `self` by value.
    fn row(&self, row: &Row<'_>) -> TokenStream {
        let (model, entity, method) = (&self.model, self.entity, row.method);
        let Method { name, description, conditions, .. } = method;
        let text = method.text();
        let (input, take) = row.input();
        let mut variables = row.inputs.iter().map(|input| &input.variable);
        let pass = method.arguments.iter().map(|argument| match argument {
            Argument::Input(..) => {
                let variable = variables.next();
                own!(#variable)
            }
            Argument::Context(_) if method.is_async => own!(&mut __ctx),
            Argument::Context(_) => own!(__ctx),
        });
        let make = if method.is_query {
            own!(query(#text, |__state: &#entity, __ctx: &#model::Context, __input: #input| {
                let _ = __ctx;
                #take
                <#entity>::#name(__state, #(#pass),*)
            }))
        } else if method.is_async {
            own!(async_operation(#text, |mut __state: #entity, mut __ctx: #model::Context, __input: #input| {
                async move {
                    let _ = &mut __ctx;
                    #take
                    let __answer = <#entity>::#name(&mut __state, #(#pass),*).await;
                    (__state, __ctx, __answer)
                }
            }))
        } else {
            own!(operation(#text, |__state: &mut #entity, __ctx: &mut #model::Context, __input: #input| {
                let _ = &__ctx;
                #take
                <#entity>::#name(__state, #(#pass),*)
            }))
        };
        let is_internal = method.settings.policy.is_internal
            || (self.settings.policy.is_internal && !method.is_query)
            || !matches!(method.visibility, Visibility::Public(_));
        let internal = is_internal.then(|| own!(.internal()));
        let policy = method.settings.policy.expression(model).map(|it| own!(.with_policy(#it)));
        let answers = method.takes_answer.then(|| own!(.taking_answers()));
        let renamed = &method.settings.renamed_from;
        let rejection = method.settings.rejection.as_ref();
        let rejection = rejection.map(|details| own!(.rejecting_with::<#details>()));
        own! {
            #(#[cfg(#conditions)])*
            #model::OperationType::#make.described(#description)#internal #answers #policy
                #(.renamed_from(#renamed))* #rejection
        }
    }
}
