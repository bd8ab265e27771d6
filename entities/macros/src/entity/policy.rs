//! The policies that attributes name: `deadline = ...`, `retries = ...` and so on, of a type in
//! `#[entity(...)]`, of an operation in `#[operation(...)]`.

use proc_macro2::TokenStream;
use syn::{
    Attribute, Error, Expr, Ident, ImplItem, ItemImpl, LitStr, Result, Token, Type,
    parse::{Parse, ParseStream},
};

use super::{generate::own, index::INDEX};

/// The words of a policy that operations and types have.
const OF_ALL: [&str; 3] = ["deadline", "retries", "backoff"];
/// The words that only types have.
const OF_TYPES: [&str; 6] = ["mailbox", "idle", "retention", "ttl", "dead_letters", "changes"];

/// A policy as it is written.
#[derive(Default)]
pub(super) struct Policy {
    values: Vec<(Ident, Expr)>,
    /// Whether callers outside are kept away.
    pub(super) is_internal: bool,
    /// Whether answers leave before what they rest on is flushed.
    is_buffered: bool,
}

impl Policy {
    /// Reads what stands behind a word, if it is one of a policy. Says whether it is.
    pub(super) fn read(
        &mut self,
        word: &Ident,
        is_type: bool,
        input: ParseStream<'_>,
    ) -> Result<bool> {
        let is_known = |words: &[&str]| words.iter().any(|known| word == known);
        if word == "visibility" {
            input.parse::<Token![=]>()?;
            let visibility = input.parse::<LitStr>()?;
            match visibility.value().as_str() {
                "internal" => self.is_internal = true,
                "public" => {}
                _ => {
                    let rule = "a visibility is \"public\" or \"internal\"";
                    return Err(Error::new_spanned(visibility, rule));
                }
            }
            return Ok(true);
        }
        if word == "durability" && is_type {
            input.parse::<Token![=]>()?;
            let durability = input.parse::<LitStr>()?;
            self.is_buffered = match durability.value().as_str() {
                "buffered" => true,
                "durable" => false,
                _ => {
                    let rule = "a durability is \"durable\" or \"buffered\"";
                    return Err(Error::new_spanned(durability, rule));
                }
            };
            return Ok(true);
        }
        if !(is_known(&OF_ALL) || is_type && is_known(&OF_TYPES)) {
            return Ok(false);
        }
        input.parse::<Token![=]>()?;
        self.values.push((word.clone(), input.parse()?));
        Ok(true)
    }

    /// An expression for it; `None` where nothing is set.
    pub(super) fn expression(&self, model: &TokenStream) -> Option<TokenStream> {
        let values = self.values.iter().map(|(word, value)| own!(.#word(#value)));
        let buffered =
            self.is_buffered.then(|| own!(.durability(#model::policy::Durability::Buffered)));
        (!self.values.is_empty() || self.is_buffered).then(
            || own!(<#model::Policy as ::core::default::Default>::default() #(#values)* #buffered),
        )
    }
}

/// The content of `#[operation(...)]`.
#[derive(Default)]
pub(super) struct OperationSettings {
    pub(super) policy: Policy,
    /// The names that it had before.
    pub(super) renamed_from: Vec<LitStr>,
    /// The type of the details of its rejections.
    pub(super) rejection: Option<Type>,
}

impl Parse for OperationSettings {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut settings = Self::default();
        while !input.is_empty() {
            let word: Ident = input.parse()?;
            if word == "renamed_from" {
                input.parse::<Token![=]>()?;
                settings.renamed_from.push(input.parse()?);
            } else if word == "rejection" {
                input.parse::<Token![=]>()?;
                settings.rejection = Some(input.parse()?);
            } else if !settings.policy.read(&word, false, input)? {
                let rule = if word == "durability" || OF_TYPES.iter().any(|known| word == known) {
                    "this is a policy of the type: `#[entity(...)]`"
                } else {
                    "expected `deadline`, `retries`, `backoff`, `visibility`, `renamed_from` or `rejection`"
                };
                return Err(Error::new(word.span(), rule));
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(settings)
    }
}

impl OperationSettings {
    /// The settings of a method.
    pub(super) fn of(attributes: &[Attribute]) -> Result<Self> {
        let mut own = attributes.iter().filter(|attribute| attribute.path().is_ident("operation"));
        let settings = own.next().map_or(Ok(Self::default()), Attribute::parse_args)?;
        match own.next() {
            None => Ok(settings),
            Some(second) => Err(Error::new_spanned(second, "a method has one `#[operation(...)]`")),
        }
    }
}

/// Takes `#[operation(...)]` and `#[index]` off the methods of a block: they are this macro's alone.
pub(crate) fn strip(block: &mut ItemImpl) {
    let is_own = |attribute: &Attribute| {
        attribute.path().is_ident("operation") || attribute.path().is_ident(INDEX)
    };
    for item in &mut block.items {
        if let ImplItem::Fn(item) = item {
            item.attrs.retain(|attribute| !is_own(attribute));
        }
    }
}
