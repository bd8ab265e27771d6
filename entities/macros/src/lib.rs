//! The attribute `#[entity]` and the derive `Layout`. Use them through `stead` or `stead-entities`,
//! which re-export them; the generated code finds either.

mod entity;
mod layout;
mod workflow;

use proc_macro::TokenStream;
use proc_macro_crate::{FoundCrate, crate_name};
use proc_macro2::Span;
use quote::quote;
use syn::{Ident, parse_macro_input};

/// Makes an entity of a type: `pub` methods with `&mut self` become operations, `pub` methods with
/// `&self` queries, `pub(crate)` methods with `&mut self` operations for reminders and other
/// entities only. Private methods and associated functions stay what they are.
///
/// `#[entity(name = "approval", version = 2, upgrade_from(1 = ApprovalV1))]`: the name is required,
/// the version is 1 unless stated, and every earlier type is `Into<Self>`.
///
/// `index(status: Status, due: Option<Timestamp>)` names fields by which entities are found, with their types,
/// and `#[index]` on a method `fn name(&self) -> T` a value that is computed; `Order::by_status()` is such an
/// index.
///
/// `needs(HttpClient, Pool)` names the values of the program that operations that await, and queries, get by
/// `ctx.get::<HttpClient>()`. `on_dead_letter = method` names the operation that hears of the entity's dead
/// letters, `on_activate = method` a private method that readies a state that comes into memory. `deadline`,
/// `retries`, `backoff`, `mailbox`, `idle`, `retention`, `ttl`, `dead_letters`, `changes`, `durability = "buffered"`
/// and `visibility = "internal"` set a policy of the type, and the first three and the last, as
/// `#[operation(deadline = Duration::from_secs(30))]`, one of a method: what is not set comes from the type, and
/// then from the node. `#[operation(renamed_from = "old")]` has it take what was stored under a name that it had
/// before, `#[operation(rejection = Missing)]` declares the type of the details of its rejections.
///
/// The typed reference to an `Order` is called `OrderRef`, and `Order::of(key)` makes one; both names
/// are taken. A name in URLs, JSON and schemas is the Rust name without `r#`: the operation of
/// `fn r#move` is `move`. Arguments and methods may have any name but `of`, may have a `cfg`, and
/// `Self` is the entity.
///
/// An argument comes from JSON and is owned; so is a result, which is a value or a `Result` with a
/// `Rejection` or a `Failure`. A type alias of the latter is one too. A `Result` with another error
/// does not compile.
#[proc_macro_attribute]
pub fn entity(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let settings = parse_macro_input!(attribute as entity::Settings);
    let mut block = parse_macro_input!(item as syn::ItemImpl);
    let expanded = entity::expand(&settings, &block);
    entity::strip(&mut block);
    match expanded {
        Ok(generated) => quote!(#block #generated).into(),
        Err(error) => {
            let error = error.to_compile_error();
            quote!(#block #error).into()
        }
    }
}

/// Makes a workflow of a type: `pub async fn run(ctx: Workflow<Self>, ..) -> Result<T, Failure>` is its code, `async`
/// methods with `&self` that are not `pub` are its steps. Other functions stay what they are. A value of the type is what
/// its steps need: a client, a pool.
///
/// `#[workflow(name = "order", version = 2, events(approval: Approval), also(1 = OrdersV1), retention = DAYS_30)]`: the
/// name is required, the version of the code is 1 unless stated. `events` names the events that it takes, with the types
/// of their payloads. `also` names types with the code of earlier versions, for runs that began with it. `retention` is
/// how long an instance that has ended stays, a week unless stated. `changes` is how long the changes of all instances
/// are kept for those who follow them.
///
/// `ctx.charge(order)` is the step `charge`, `ctx.approval()` the next event `approval`: methods of the trait
/// `OrdersContext`, which other modules import. A step may ask for `step: &Step` before its arguments, and
/// `#[step(at_most = 32)]` limits how many run on a node at one time. It returns a `Result<T, StepError>`.
///
/// The typed reference to an `Orders` is called `OrdersRef`, and `Orders::of(key)` makes one. Arguments come from JSON
/// and are owned; several are a JSON object by name.
#[proc_macro_attribute]
pub fn workflow(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let settings = parse_macro_input!(attribute as workflow::Settings);
    let mut block = parse_macro_input!(item as syn::ItemImpl);
    let expanded = workflow::expand(&settings, &block);
    workflow::strip(&mut block);
    match expanded {
        Ok(generated) => quote!(#block #generated).into(),
        Err(error) => {
            let error = error.to_compile_error();
            quote!(#block #error).into()
        }
    }
}

/// Describes what the store's codec writes for a type; a foreign type inside is declared with
/// `#[layout(opaque = "name/v1")]` on its field.
#[proc_macro_derive(Layout, attributes(layout, serde))]
pub fn layout(item: TokenStream) -> TokenStream {
    let input = parse_macro_input!(item as syn::DeriveInput);
    layout::expand(&input).unwrap_or_else(|error| error.to_compile_error()).into()
}

/// The crate that the author depends on, as a path.
fn model() -> proc_macro2::TokenStream {
    // A library of entities may depend on `stead` for its tests only: what it builds on comes first.
    for name in ["stead-entities", "stead"] {
        match crate_name(name) {
            Ok(FoundCrate::Name(found)) => {
                let found = Ident::new(&found, Span::call_site());
                return quote!(::#found);
            }
            Ok(FoundCrate::Itself) => {
                let itself = Ident::new(&name.replace('-', "_"), Span::call_site());
                return quote!(::#itself);
            }
            Err(_) => {}
        }
    }
    quote!(::stead)
}
