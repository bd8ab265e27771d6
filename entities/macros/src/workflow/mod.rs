//! `#[workflow]`: reads the functions of an `impl` block and writes the implementation of `WorkflowType`, the methods of
//! the handle that make steps and waits, and the typed reference.

mod generate;
mod read;

use proc_macro2::TokenStream;
use syn::{
    Error, Expr, Ident, ItemImpl, LitInt, LitStr, Result, Token, Type,
    parse::{Parse, ParseStream},
};

use self::{generate::Generator, read::Functions};
use crate::entity::{bare, by_version, check_name, last};

pub(crate) use self::read::strip;

/// Names of the reference's methods, which no event can have.
const TAKEN: [&str; 18] = [
    "rewind",
    "rewind_to",
    "restart",
    "restart_as",
    "start",
    "event",
    "cancel",
    "terminate",
    "suspend",
    "resume",
    "retry",
    "status",
    "result",
    "purge",
    "purge_all",
    "bind",
    "of",
    "clone",
];

/// `name = "...", version = N, events(name: Type, ...), also(1 = Type, ...), retention = Duration, changes = Duration`.
pub(crate) struct Settings {
    name: LitStr,
    version: u32,
    events: Vec<Event>,
    also: Vec<(u32, Type)>,
    retention: Option<Expr>,
    changes: Option<Expr>,
}

/// An event with the type of its payload.
struct Event {
    name: Ident,
    payload: Type,
}

impl Parse for Event {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let name: Ident = input.parse()?;
        if TAKEN.iter().any(|taken| name == taken) {
            let rule =
                format!("no event can be named `{name}`: the reference has a method of this name");
            return Err(Error::new(name.span(), rule));
        }
        input.parse::<Token![:]>()?;
        Ok(Self { name, payload: input.parse()? })
    }
}

impl Parse for Settings {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let (mut name, mut version) = (None, 1);
        let (mut events, mut also) = (Vec::new(), Vec::new());
        let (mut retention, mut changes) = (None, None);
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
                "events" => {
                    let inner;
                    syn::parenthesized!(inner in input);
                    events.extend(inner.parse_terminated(Event::parse, Token![,])?);
                }
                "also" => also.extend(by_version(input)?),
                "retention" => {
                    input.parse::<Token![=]>()?;
                    retention = Some(input.parse()?);
                }
                "changes" => {
                    input.parse::<Token![=]>()?;
                    changes = Some(input.parse()?);
                }
                _ => {
                    let rule =
                        "expected `name`, `version`, `events`, `also`, `retention` or `changes`";
                    return Err(Error::new(word.span(), rule));
                }
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        let missing = "a workflow has a name: `#[workflow(name = \"order\")]`";
        let name = name.ok_or_else(|| input.error(missing))?;
        check_name(&name, "a workflow's")?;
        if let Some((earlier, ty)) = also.iter().find(|(earlier, _)| *earlier == version) {
            let rule =
                format!("version {earlier} is this one: raise `version`, or leave it out here");
            return Err(Error::new_spanned(ty, rule));
        }
        let mut names: Vec<&Ident> = events.iter().map(|event| &event.name).collect();
        names.sort();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::new(pair[1].span(), "two events have this name"));
        }
        Ok(Self { name, version, events, also, retention, changes })
    }
}

pub(crate) fn expand(settings: &Settings, block: &ItemImpl) -> Result<TokenStream> {
    if let Some((path, _)) = &block.trait_ {
        return Err(Error::new_spanned(path, "#[workflow] goes on an inherent `impl` block"));
    }
    if !block.generics.params.is_empty() {
        let rule = "a workflow is not generic: name the concrete type";
        return Err(Error::new_spanned(&block.generics, rule));
    }
    let workflow = bare(&block.self_ty);
    let Some(name) = last(workflow) else {
        return Err(Error::new_spanned(workflow, "#[workflow] goes on a named type"));
    };
    let functions = Functions::read(workflow, block)?;
    let clash = functions
        .steps
        .iter()
        .find(|step| settings.events.iter().any(|event| event.name == step.name));
    if let Some(step) = clash {
        let rule = "an event has this name: `ctx` has one method for each step and each event";
        return Err(Error::new(step.name.span(), rule));
    }
    Ok(Generator::new(settings, block, (workflow, name), &functions).all())
}
