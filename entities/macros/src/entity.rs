//! `#[entity]`: reads the methods of an `impl` block and writes the table of operations and the
//! typed reference.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Attribute, Error, Expr, ExprLit, FnArg, Ident, ImplItem, ImplItemFn, ItemImpl, Lit, LitInt,
    LitStr, Meta, Pat, Result, ReturnType, Token, Type, Visibility,
    parse::{Parse, ParseStream},
    visit_mut::{self, VisitMut},
};

/// `name = "...", version = N, upgrade_from(1 = Type, ...)`.
pub(crate) struct Settings {
    name: LitStr,
    version: u32,
    upgrades: Vec<(u32, Type)>,
}

impl Parse for Settings {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let (mut name, mut version, mut upgrades) = (None, 1, Vec::new());
        while !input.is_empty() {
            let word: Ident = input.parse()?;
            match word.to_string().as_str() {
                "name" => {
                    input.parse::<Token![=]>()?;
                    name = Some(input.parse::<LitStr>()?);
                }
                "version" => {
                    input.parse::<Token![=]>()?;
                    version = input.parse::<LitInt>()?.base10_parse()?;
                }
                "upgrade_from" => {
                    let inner;
                    syn::parenthesized!(inner in input);
                    while !inner.is_empty() {
                        let from = inner.parse::<LitInt>()?.base10_parse()?;
                        inner.parse::<Token![=]>()?;
                        upgrades.push((from, inner.parse()?));
                        if !inner.is_empty() {
                            inner.parse::<Token![,]>()?;
                        }
                    }
                }
                _ => {
                    let rule = "expected `name`, `version` or `upgrade_from`";
                    return Err(Error::new(word.span(), rule));
                }
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        let missing = "an entity has a name: `#[entity(name = \"counter\")]`";
        let name = name.ok_or_else(|| input.error(missing))?;
        check_name(&name)?;
        if let Some((from, ty)) = upgrades.iter().find(|(from, _)| *from >= version) {
            let rule = format!("version {version} cannot upgrade from version {from}");
            return Err(Error::new_spanned(ty, rule));
        }
        Ok(Self {
            name,
            version,
            upgrades,
        })
    }
}

fn check_name(name: &LitStr) -> Result<()> {
    let text = name.value();
    let tail =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    let first = text
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_lowercase());
    if first && text.len() <= 64 && text.bytes().all(tail) {
        return Ok(());
    }
    let rule = "an entity's name is a lower-case letter followed by up to 63 of a-z, 0-9, - and _";
    Err(Error::new_spanned(name, rule))
}

/// One method that callers, reminders or entities can name.
struct Method {
    name: Ident,
    attributes: Vec<Attribute>,
    visibility: Visibility,
    is_query: bool,
    is_async: bool,
    /// In the order of the signature; `None` is the context.
    arguments: Vec<Option<(Ident, Type)>>,
    result: Type,
}

pub(crate) fn expand(settings: &Settings, block: &ItemImpl) -> Result<TokenStream> {
    if let Some((path, _)) = &block.trait_ {
        return Err(Error::new_spanned(
            path,
            "#[entity] goes on an inherent `impl` block",
        ));
    }
    if !block.generics.params.is_empty() {
        let rule = "an entity is not generic: name the concrete type";
        return Err(Error::new_spanned(&block.generics, rule));
    }
    let entity = &*block.self_ty;
    let Type::Path(path) = entity else {
        return Err(Error::new_spanned(entity, "#[entity] goes on a named type"));
    };
    let Some(last) = path.path.segments.last() else {
        return Err(Error::new_spanned(entity, "#[entity] goes on a named type"));
    };
    let mut methods = Vec::new();
    for item in &block.items {
        if let ImplItem::Fn(item) = item {
            methods.extend(read(entity, item)?);
        }
    }
    let implementation = implementation(settings, block, &methods);
    let reference = reference(settings, entity, &last.ident);
    Ok(quote!(#implementation #reference))
}

/// Reads one method; `None` for helpers.
fn read(entity: &Type, item: &ImplItemFn) -> Result<Option<Method>> {
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
        attributes: docs(&item.attrs),
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
        Type::Reference(reference) => refuse(
            reference,
            "a result leaves as JSON and is owned: return the value itself",
        ),
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
                    if error
                        .path
                        .segments
                        .last()
                        .is_some_and(|s| s.ident == "Rejection") =>
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
    let last = path
        .path
        .segments
        .last()
        .filter(|segment| segment.ident == "Result")?;
    let syn::PathArguments::AngleBracketed(inside) = &last.arguments else {
        return None;
    };
    match inside.args.first()? {
        syn::GenericArgument::Type(value) => Some(value.clone()),
        _ => None,
    }
}

fn docs(attributes: &[Attribute]) -> Vec<Attribute> {
    attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("doc"))
        .cloned()
        .collect()
}

fn doc_text(attributes: &[Attribute]) -> String {
    let mut lines = Vec::new();
    for attribute in attributes {
        if let Meta::NameValue(pair) = &attribute.meta
            && attribute.path().is_ident("doc")
            && let Expr::Lit(ExprLit {
                lit: Lit::Str(text),
                ..
            }) = &pair.value
        {
            lines.push(text.value().trim().to_owned());
        }
    }
    lines.join("\n").trim().to_owned()
}

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
        Some(quote! {
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
                (
                    quote!(#bundle),
                    quote!(let #bundle { #(#names),* } = input;),
                )
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
        quote!(#model::OperationType::#row.described(#description)#internal)
    }

    /// The method of the typed reference.
    fn maker(&self, model: &TokenStream) -> TokenStream {
        let (name, text, result) = (&self.name, self.name.to_string(), &self.result);
        let (attributes, visibility) = (&self.attributes, &self.visibility);
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
            #(#attributes)*
            #visibility fn #name(&self, #(#names: #types),*)
                -> #model::#ty<#result, B>
            {
                self.0.#make(#text, #input)
            }
        }
    }
}

fn implementation(settings: &Settings, block: &ItemImpl, methods: &[Method]) -> TokenStream {
    let (model, entity) = (crate::model(), &block.self_ty);
    let Settings {
        name,
        version,
        upgrades,
    } = settings;
    let description = doc_text(&block.attrs);
    let bundles = methods
        .iter()
        .filter_map(|method| method.bundle_definition(&model));
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
                    ::std::vec![#(#rows),*]
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

fn reference(settings: &Settings, entity: &Type, ident: &Ident) -> TokenStream {
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
