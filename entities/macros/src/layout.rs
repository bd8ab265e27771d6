//! `derive(Layout)`: field and variant order, names and types, and a refusal of the serde attributes
//! that a codec without field names cannot carry.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Attribute, Data, DeriveInput, Error, Field, Fields, LitStr, Result};

const REFUSED: [(&str, &str); 10] = [
    (
        "skip_serializing_if",
        "use Option without it: states are stored by position, JSON is only shown",
    ),
    ("flatten", "nest the struct, or copy its fields"),
    ("untagged", "let the enum be tagged"),
    ("tag", "use the default enum representation"),
    ("content", "use the default enum representation"),
    ("skip_serializing", "use `skip`, which leaves the field out both ways"),
    ("skip_deserializing", "use `skip`, which leaves the field out both ways"),
    ("from", "declare the field that holds this type `#[layout(opaque = \"name/v1\")]`"),
    ("into", "declare the field that holds this type `#[layout(opaque = \"name/v1\")]`"),
    ("try_from", "declare the field that holds this type `#[layout(opaque = \"name/v1\")]`"),
];

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    serde_words(&input.attrs)?;
    let model = crate::model();
    let name = &input.ident;
    let parts = match &input.data {
        Data::Struct(data) => fields(&model, &data.fields)?,
        Data::Enum(data) => {
            let mut all = Vec::new();
            for variant in &data.variants {
                own_functions(&serde_words(&variant.attrs)?, variant)?;
                let place = format!("::{}", variant.ident);
                let inner = fields(&model, &variant.fields)?;
                all.push(
                    quote!(__layout.place(#place, |__layout| { __layout.leaf("variant"); #inner });),
                );
            }
            quote!(#(#all)*)
        }
        Data::Union(_) => return Err(Error::new_spanned(name, "a union has no layout")),
    };
    let mut generics = input.generics.clone();
    for parameter in generics.type_params_mut() {
        parameter.bounds.push(syn::parse_quote!(#model::Layout));
    }
    let (impl_generics, type_generics, bounds) = generics.split_for_impl();
    let kind = if matches!(input.data, Data::Enum(_)) { "enum" } else { "struct" };
    Ok(quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #impl_generics #model::Layout for #name #type_generics #bounds {
            fn describe(__layout: &mut #model::state::LayoutText) {
                __layout.composite::<Self>(#kind, |__layout| { #parts });
            }
        }
    })
}

fn fields(model: &TokenStream, fields: &Fields) -> Result<TokenStream> {
    let mut parts = Vec::new();
    for (index, field) in fields.iter().enumerate() {
        let words = serde_words(&field.attrs)?;
        if words.iter().any(|word| word == "skip") {
            continue;
        }
        let name = field.ident.clone().unwrap_or_else(|| format_ident!("_{index}"));
        // A raw name keeps its `r#`, as in the layouts that are stored with states.
        let place = format!(".{name}");
        parts.push(match opaque(field)? {
            Some(what) => quote!(__layout.opaque(#place, #what);),
            None => {
                own_functions(&words, field)?;
                let ty = &field.ty;
                quote!(__layout.place(#place, <#ty as #model::Layout>::describe);)
            }
        });
    }
    Ok(quote!(let _ = &__layout; #(#parts)*))
}

/// Refuses serde functions of an author's own, which write what nobody else knows.
fn own_functions(words: &[String], place: &dyn quote::ToTokens) -> Result<()> {
    if words.iter().any(|word| ["with", "serialize_with", "deserialize_with"].contains(&&**word)) {
        let fix = "a field with its own serde functions has a layout of its own: declare it \
                   `#[layout(opaque = \"name/v1\")]`";
        return Err(Error::new_spanned(place, fix));
    }
    Ok(())
}

fn opaque(field: &Field) -> Result<Option<String>> {
    let mut found = None;
    for attribute in field.attrs.iter().filter(|attribute| attribute.path().is_ident("layout")) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("opaque") {
                return Err(meta.error("expected `opaque = \"name/v1\"`"));
            }
            found = Some(meta.value()?.parse::<LitStr>()?.value());
            Ok(())
        })?;
    }
    Ok(found)
}

/// The names of the serde attributes, none of which is a refused one.
fn serde_words(attributes: &[Attribute]) -> Result<Vec<String>> {
    let mut words = Vec::new();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        attribute.parse_nested_meta(|meta| {
            let word = meta.path.require_ident().map(ToString::to_string).unwrap_or_default();
            if let Some((_, fix)) = REFUSED.iter().find(|(refused, _)| *refused == word) {
                let message = format!("`{word}` cannot be stored by position: {fix}");
                return Err(meta.error(message));
            }
            if meta.input.peek(syn::Token![=]) {
                meta.value()?.parse::<syn::Expr>()?;
            } else if meta.input.peek(syn::token::Paren) {
                let inner;
                syn::parenthesized!(inner in meta.input);
                inner.parse::<TokenStream>()?;
            }
            words.push(word);
            Ok(())
        })?;
    }
    Ok(words)
}
