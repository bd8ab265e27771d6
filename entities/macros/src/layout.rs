//! `derive(Layout)`: field and variant order, names and types, and a refusal of the serde attributes
//! that a codec without field names cannot carry.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::{
    Attribute, Data, DeriveInput, Error, Field, Fields, LitStr, Result, Type, spanned::Spanned as _,
};

const REFUSED: [(&str, &str); 13] = [
    (
        "skip_serializing_if",
        "use Option without it: states are stored by position, JSON is only shown",
    ),
    ("flatten", "nest the struct, copy its fields, or hold it as `Json<T>`"),
    ("untagged", "let the enum be tagged, or hold it as `Json<T>`"),
    ("tag", "use the default enum representation, or hold it as `Json<T>`"),
    ("content", "use the default enum representation, or hold it as `Json<T>`"),
    ("skip_serializing", "use `skip`, which leaves the field out both ways"),
    ("skip_deserializing", "use `skip`, which leaves the field out both ways"),
    ("from", "declare the field that holds this type `#[layout(opaque = \"name/v1\")]`"),
    ("into", "declare the field that holds this type `#[layout(opaque = \"name/v1\")]`"),
    ("try_from", "declare the field that holds this type `#[layout(opaque = \"name/v1\")]`"),
    ("remote", "derive `Layout` for the type that is stored"),
    ("field_identifier", "it is read as a name, which is not stored"),
    ("variant_identifier", "it is read as a name, which is not stored"),
];

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let words = serde_words(&input.attrs)?;
    no_layout_attribute(&input.attrs)?;
    let model = crate::model();
    let name = &input.ident;
    let parts = match &input.data {
        Data::Struct(data) => fields(&model, &data.fields)?,
        Data::Enum(data) => {
            let mut all = Vec::new();
            for variant in &data.variants {
                let words = serde_words(&variant.attrs)?;
                no_layout_attribute(&variant.attrs)?;
                own_functions(&words, variant)?;
                if words.iter().any(|word| word == "skip") {
                    let fix = "a variant is stored by its place among all, and read by its place \
                               among those that are not skipped: remove it, or let it be stored";
                    return Err(Error::new_spanned(variant, fix));
                }
                let place = format!("::{}", variant.ident);
                let inner = fields(&model, &variant.fields)?;
                all.push(quote!(__layout.variant(#place, |__layout| { #inner });));
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
    let stored = stored_types(&input.data)?;
    let collections = collections(&model, &input.data)?;
    let is_transparent = words.iter().any(|word| word == "transparent");
    let key = key(&model, &input.data, &stored, is_transparent);
    let scalar = scalar(&model, &input.data, &stored, is_transparent);
    // A generic type is checked where it is used: its own check could ask for itself.
    let check = input.generics.params.is_empty().then(|| {
        let checks = stored.iter().map(|ty| {
            // An error points at the field.
            quote_spanned!(ty.span()=> let () = <#ty as #model::Layout>::CHECK;)
        });
        quote! {
            #[allow(deprecated)]
            const _: () = { #(#checks)* };
        }
    });
    Ok(quote! {
        #check
        #[automatically_derived]
        #[allow(deprecated)]
        impl #impl_generics #model::Layout for #name #type_generics #bounds {
            const IS_JSON_KEY: bool = #key;
            const SCALAR: ::core::option::Option<#model::index::Scalar> = #scalar;
            fn describe(__layout: &mut #model::state::LayoutText) {
                __layout.composite::<Self>(#kind, |__layout| { #parts });
            }
            fn each_collection(
                &mut self,
                __each: &mut dyn ::core::ops::FnMut(&mut dyn #model::collections::Collection),
            ) {
                #collections
            }
        }
    })
}

/// Hands out the collections in the parts that are described by their own layouts.
fn collections(model: &TokenStream, data: &Data) -> Result<TokenStream> {
    let each = |ty: &Type, part: TokenStream| quote!(<#ty as #model::Layout>::each_collection(#part, __each););
    let parts = match data {
        Data::Struct(data) => {
            let mut parts = Vec::new();
            for (index, field) in data.fields.iter().enumerate() {
                if is_described(field)? {
                    let index = syn::Index::from(index);
                    let name = field.ident.as_ref().map_or(quote!(#index), |name| quote!(#name));
                    parts.push(each(&field.ty, quote!(&mut self.#name)));
                }
            }
            quote!(#(#parts)*)
        }
        Data::Enum(data) => {
            let mut arms = Vec::new();
            for variant in &data.variants {
                let (mut places, mut parts) = (Vec::new(), Vec::new());
                for (index, field) in variant.fields.iter().enumerate() {
                    if is_described(field)? {
                        let bound = format_ident!("__part_{index}");
                        let index = syn::Index::from(index);
                        let name =
                            field.ident.as_ref().map_or(quote!(#index), |name| quote!(#name));
                        places.push(quote!(#name: #bound));
                        parts.push(each(&field.ty, quote!(#bound)));
                    }
                }
                let name = &variant.ident;
                if !parts.is_empty() {
                    arms.push(quote!(Self::#name { #(#places,)* .. } => { #(#parts)* }));
                }
            }
            // Without such parts there is nothing to tell apart, and an enum without variants has no value.
            if arms.is_empty() {
                quote!()
            } else {
                quote!(match self { #(#arms)* #[allow(unreachable_patterns)] _ => {} })
            }
        }
        Data::Union(_) => quote!(),
    };
    Ok(quote!(let _ = &__each; #parts))
}

/// Whether a field is described by the layout of its type.
fn is_described(field: &Field) -> Result<bool> {
    let is_skipped = serde_words(&field.attrs)?.iter().any(|word| word == "skip");
    Ok(!is_skipped && opaque(field)?.is_none())
}

/// The types of the parts that are described by their own layouts.
fn stored_types(data: &Data) -> Result<Vec<Type>> {
    let all: Vec<&Field> = match data {
        Data::Struct(data) => data.fields.iter().collect(),
        Data::Enum(data) => data.variants.iter().flat_map(|variant| &variant.fields).collect(),
        Data::Union(_) => Vec::new(),
    };
    let mut types = Vec::new();
    for field in all {
        if is_described(field)? {
            types.push(field.ty.clone());
        }
    }
    Ok(types)
}

/// The one type that a newtype is stored as.
fn newtype_of<'t>(data: &Data, stored: &'t [Type], is_transparent: bool) -> Option<&'t Type> {
    let Data::Struct(data) = data else { return None };
    match (&data.fields, stored) {
        (Fields::Unnamed(fields), [inner]) if fields.unnamed.len() == 1 => Some(inner),
        (_, [inner]) if is_transparent => Some(inner),
        _ => None,
    }
}

/// Whether it is an enum without fields.
fn is_plain_enum(data: &Data) -> bool {
    let Data::Enum(data) = data else { return false };
    data.variants.iter().all(|variant| matches!(variant.fields, Fields::Unit))
}

/// Whether JSON can show the type as a key: a newtype of what it can, or an enum without fields.
fn key(model: &TokenStream, data: &Data, stored: &[Type], is_transparent: bool) -> TokenStream {
    match newtype_of(data, stored, is_transparent) {
        Some(inner) => quote!(<#inner as #model::Layout>::IS_JSON_KEY),
        None => {
            let is_plain = is_plain_enum(data);
            quote!(#is_plain)
        }
    }
}

/// The kind of an indexed value of the type: that of what it is a newtype of, or the name of a variant.
fn scalar(model: &TokenStream, data: &Data, stored: &[Type], is_transparent: bool) -> TokenStream {
    match newtype_of(data, stored, is_transparent) {
        Some(inner) => quote!(<#inner as #model::Layout>::SCALAR),
        None if is_plain_enum(data) => {
            quote!(::core::option::Option::Some(#model::index::Scalar::Text))
        }
        None => quote!(::core::option::Option::None),
    }
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

/// Refuses an attribute that would be passed over: a field is opaque, and nothing else is.
fn no_layout_attribute(attributes: &[Attribute]) -> Result<()> {
    match attributes.iter().find(|attribute| attribute.path().is_ident("layout")) {
        Some(attribute) => {
            Err(Error::new_spanned(attribute, "`#[layout(...)]` belongs on a field"))
        }
        None => Ok(()),
    }
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
            let has_two_names = meta.input.peek(syn::token::Paren) && word.starts_with("rename");
            if has_two_names {
                let fix = "a name that is written and another one that is read cannot be read back: \
                           give one name";
                return Err(meta.error(fix));
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
