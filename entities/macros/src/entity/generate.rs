//! Writes the table of operations and the typed reference.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Ident, ItemImpl, Type, Visibility};

use super::{
    Settings,
    method::{Method, doc_text},
};

impl Method {
    fn inputs(&self) -> Vec<&(Ident, Type)> {
        self.arguments.iter().flatten().collect()
    }

    /// The struct that several arguments travel in, as an object by name.
    fn bundle(&self) -> Ident {
        let mut name = String::new();
        for part in self.name.to_string().split('_') {
            let mut letters = part.chars();
            name.extend(letters.next().map(|first| first.to_ascii_uppercase()));
            name.extend(letters);
        }
        format_ident!("{name}Input")
    }

    fn bundle_definition(&self, model: &TokenStream) -> Option<TokenStream> {
        let inputs = self.inputs();
        if inputs.len() < 2 {
            return None;
        }
        let (bundle, serde) = (self.bundle(), format!("{model}::serde").replace(' ', ""));
        let schemars = format!("{model}::schemars").replace(' ', "");
        let (names, types): (Vec<&Ident>, Vec<&Type>) =
            inputs.iter().map(|(name, ty)| (name, ty)).unzip();
        let conditions = &self.conditions;
        Some(quote! {
            #(#conditions)*
            #[derive(#model::serde::Serialize, #model::serde::Deserialize, #model::JsonSchema)]
            #[serde(crate = #serde)]
            #[schemars(crate = #schemars)]
            struct #bundle { #(#names: #types),* }
        })
    }

    /// The row of the table of operations.
    fn row(&self, model: &TokenStream, entity: &Type) -> TokenStream {
        let (name, text) = (&self.name, self.name.to_string());
        let description = doc_text(&self.attributes);
        let inputs = self.inputs();
        let (input, take) = match &inputs[..] {
            [] => (quote!(()), quote!(let () = input;)),
            [(name, ty)] => (quote!(#ty), quote!(let #name = input;)),
            _ => {
                let (bundle, names) = (self.bundle(), inputs.iter().map(|(name, _)| name));
                (quote!(#bundle), quote!(let #bundle { #(#names),* } = input;))
            }
        };
        let pass = self.arguments.iter().map(|argument| match argument {
            Some((name, _)) => quote!(#name),
            None if self.is_async => quote!(&mut ctx),
            None => quote!(ctx),
        });
        let row = if self.is_query {
            quote!(query(#text, |state: &#entity, ctx: &#model::Context, input: #input| {
                let _ = ctx;
                #take
                state.#name(#(#pass),*)
            }))
        } else if self.is_async {
            quote!(async_operation(#text, |mut state: #entity, mut ctx: #model::Context, input: #input| {
                async move {
                    let _ = &mut ctx;
                    #take
                    let answer = state.#name(#(#pass),*).await;
                    (state, ctx, answer)
                }
            }))
        } else {
            quote!(operation(#text, |state: &mut #entity, ctx: &mut #model::Context, input: #input| {
                let _ = &ctx;
                #take
                state.#name(#(#pass),*)
            }))
        };
        let internal = match self.visibility {
            Visibility::Public(_) => quote!(),
            _ => quote!(.internal()),
        };
        let conditions = &self.conditions;
        quote!(#(#conditions)* #model::OperationType::#row.described(#description)#internal)
    }

    /// The method of the typed reference.
    fn maker(&self, model: &TokenStream) -> TokenStream {
        let (name, text, result) = (&self.name, self.name.to_string(), &self.result);
        let (attributes, visibility) = (&self.attributes, &self.visibility);
        let conditions = &self.conditions;
        let inputs = self.inputs();
        let (names, types): (Vec<&Ident>, Vec<&Type>) =
            inputs.iter().map(|(name, ty)| (name, ty)).unzip();
        let input = match &inputs[..] {
            [] => quote!(::core::option::Option::None),
            [(name, _)] => quote!(::core::option::Option::Some(&#name)),
            _ => {
                let bundle = self.bundle();
                quote!(::core::option::Option::Some(&#bundle { #(#names),* }))
            }
        };
        let (ty, make) = if self.is_query {
            (quote!(Query), quote!(query))
        } else {
            (quote!(Operation), quote!(operation))
        };
        quote! {
            #(#conditions)*
            #(#attributes)*
            #visibility fn #name(&self, #(#names: #types),*)
                -> #model::#ty<#result, B>
            {
                self.0.#make(#text, #input)
            }
        }
    }
}

pub(super) fn implementation(
    settings: &Settings,
    block: &ItemImpl,
    methods: &[Method],
) -> TokenStream {
    let (model, entity) = (crate::model(), &block.self_ty);
    let Settings { name, version, upgrades } = settings;
    let description = doc_text(&block.attrs);
    let bundles = methods.iter().filter_map(|method| method.bundle_definition(&model));
    let rows = methods.iter().map(|method| method.row(&model, entity));
    let makers = methods.iter().map(|method| method.maker(&model));
    let reference = reference_name(entity);
    let (from, types): (Vec<u32>, Vec<&Type>) =
        upgrades.iter().map(|(from, ty)| (*from, ty)).unzip();
    let upgrade = (!upgrades.is_empty()).then(|| {
        quote! {
            fn upgrade<D: #model::entity::StateDecoder>(
                version: u32,
                decoder: D,
            ) -> ::core::result::Result<Self, D::Error> {
                match version {
                    #(#from => decoder.decode::<#types>().map(::core::convert::Into::into),)*
                    _ => ::core::result::Result::Err(decoder.unknown_version(version)),
                }
            }
            fn earlier_layouts() -> ::std::vec::Vec<(u32, ::std::string::String)> {
                ::std::vec![#((#from, #model::state::LayoutText::of::<#types>())),*]
            }
        }
    });
    quote! {
        const _: () = {
            #(#bundles)*

            impl #model::Entity for #entity {
                const NAME: &'static str = #name;
                const VERSION: u32 = #version;
                const DESCRIPTION: &'static str = #description;
                fn operations() -> ::std::vec::Vec<#model::OperationType<Self>> {
                    ::std::vec::Vec::from([#(#rows),*])
                }
                #upgrade
            }

            #[allow(private_interfaces, clippy::needless_pass_by_value)]
            impl<B: ::core::clone::Clone> #reference<B> {
                #(#makers)*
            }
        };
    }
}

fn reference_name(entity: &Type) -> Ident {
    match entity {
        Type::Path(path) => match path.path.segments.last() {
            Some(last) => format_ident!("{}Ref", last.ident),
            None => format_ident!("EntityRef"),
        },
        _ => format_ident!("EntityRef"),
    }
}

pub(super) fn reference(settings: &Settings, entity: &Type, ident: &Ident) -> TokenStream {
    let (model, reference) = (crate::model(), reference_name(entity));
    let about = format!(
        "A typed reference to one `{}`: its methods make operations and queries.",
        settings.name.value()
    );
    let of = format!("The typed reference to the {ident} named `key`, without a node.");
    quote! {
        #[doc = #about]
        #[derive(Debug, Clone)]
        #[allow(unreachable_pub)]
        pub struct #reference<B = #model::Unbound>(#model::Reference<B>);

        impl #entity {
            #[doc = #of]
            #[allow(unreachable_pub, private_interfaces, dead_code)]
            pub fn of(key: impl ::core::convert::AsRef<str>) -> #reference {
                <Self as #model::TypedReference>::unbound(key.as_ref())
            }
        }

        #[allow(private_interfaces)]
        impl #model::TypedReference for #entity {
            type Reference<B: ::core::clone::Clone> = #reference<B>;
            fn reference<B: ::core::clone::Clone>(reference: #model::Reference<B>) -> #reference<B> {
                #reference(reference)
            }
        }
    }
}
