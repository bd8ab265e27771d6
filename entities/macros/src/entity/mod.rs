//! `#[entity]`: reads the methods of an `impl` block and writes the table of operations and the
//! typed reference.

mod attributes;
mod generate;
mod hooks;
mod index;
mod method;
mod policy;
mod reference;
mod types;

use proc_macro2::TokenStream;
use syn::{
    Error, Ident, ImplItem, ItemImpl, LitInt, LitStr, Result, Token, Type,
    parse::{Parse, ParseStream},
};

pub(crate) use self::{
    attributes::{conditions, doc_text},
    generate::{own, respanned},
    policy::strip,
    types::{SelfIs, argument, bare, last},
};
use self::{generate::Generator, method::read, policy::Policy};

/// `name = "...", version = N, upgrade_from(1 = Type, ...), on_dead_letter = method, on_activate = method`,
/// `index(field: Type, ...)`, `needs(Type, ...)`, and a policy.
pub(crate) struct Settings {
    name: LitStr,
    version: u32,
    upgrades: Vec<(u32, Type)>,
    on_dead_letter: Option<Ident>,
    on_activate: Option<Ident>,
    indexes: Vec<index::Field>,
    needs: Vec<Type>,
    policy: Policy,
}

impl Parse for Settings {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let (mut name, mut version, mut upgrades) = (None, 1, Vec::new());
        let (mut on_dead_letter, mut on_activate) = (None, None);
        let (mut indexes, mut needs, mut policy) = (Vec::new(), Vec::new(), Policy::default());
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
                "upgrade_from" => upgrades.extend(by_version(input)?),
                "needs" => {
                    let inner;
                    syn::parenthesized!(inner in input);
                    needs.extend(inner.parse_terminated(Type::parse, Token![,])?);
                }
                "index" => {
                    let inner;
                    syn::parenthesized!(inner in input);
                    indexes.extend(inner.parse_terminated(index::Field::parse, Token![,])?);
                }
                "on_dead_letter" => {
                    input.parse::<Token![=]>()?;
                    on_dead_letter = Some(input.parse::<Ident>()?);
                }
                "on_activate" => {
                    input.parse::<Token![=]>()?;
                    on_activate = Some(input.parse::<Ident>()?);
                }
                _ if policy.read(&word, true, input)? => {}
                _ => {
                    let rule = "expected `name`, `version`, `upgrade_from`, `index`, `needs`, \
                                `on_dead_letter`, `on_activate`, `visibility`, or a policy: `deadline`, `retries`, \
                                `backoff`, `mailbox`, `idle`, `retention`, `ttl`, `dead_letters`, `changes`, `durability`";
                    return Err(Error::new(word.span(), rule));
                }
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        let missing = "an entity has a name: `#[entity(name = \"counter\")]`";
        let name = name.ok_or_else(|| input.error(missing))?;
        check_name(&name, "an entity's")?;
        if let Some((from, ty)) = upgrades.iter().find(|(from, _)| *from >= version) {
            let rule = format!("version {version} cannot upgrade from version {from}");
            return Err(Error::new_spanned(ty, rule));
        }
        Ok(Self { name, version, upgrades, on_dead_letter, on_activate, indexes, needs, policy })
    }
}

/// Types by version, `(1 = Type, ...)`.
pub(crate) fn by_version(input: ParseStream<'_>) -> Result<Vec<(u32, Type)>> {
    let inner;
    syn::parenthesized!(inner in input);
    let one = |input: ParseStream<'_>| {
        let version = input.parse::<LitInt>()?.base10_parse()?;
        input.parse::<Token![=]>()?;
        Ok((version, input.parse()?))
    };
    Ok(inner.parse_terminated(one, Token![,])?.into_iter().collect())
}

pub(crate) fn check_name(name: &LitStr, whose: &str) -> Result<()> {
    let text = name.value();
    let tail =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if first && text.len() <= 64 && text.bytes().all(tail) {
        return Ok(());
    }
    let rule =
        format!("{whose} name is a lower-case letter followed by up to 63 of a-z, 0-9, - and _");
    Err(Error::new_spanned(name, rule))
}

pub(crate) fn expand(settings: &Settings, block: &ItemImpl) -> Result<TokenStream> {
    if let Some((path, _)) = &block.trait_ {
        return Err(Error::new_spanned(path, "#[entity] goes on an inherent `impl` block"));
    }
    if !block.generics.params.is_empty() {
        let rule = "an entity is not generic: name the concrete type";
        return Err(Error::new_spanned(&block.generics, rule));
    }
    let entity = bare(&block.self_ty);
    let Some(name) = last(entity) else {
        return Err(Error::new_spanned(entity, "#[entity] goes on a named type"));
    };
    let mut methods = Vec::new();
    for item in &block.items {
        if let ImplItem::Fn(item) = item {
            methods.extend(read(entity, item)?);
        }
    }
    hooks::check(settings, block, &methods)?;
    let indexes = index::read(&settings.indexes, block)?;
    Ok(Generator::new(settings, block, (entity, name), &methods, indexes).all())
}
