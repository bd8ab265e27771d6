//! Stored signals and reminders that nobody can apply: their type is not served, their operation is gone, or
//! their argument no longer fits.
//!
//! A program that is started over stored data should say so at once, and not only when such a row is due. So
//! it is looked for at the start and from time to time, by bounded reads.

use std::collections::BTreeMap;

use serde::Serialize;
use stead_entities::{Error, entity::OperationKind};

use super::{Inner, lists::room_for_a_page};
use crate::{
    partition::{EXPIRE, PURGE},
    store::{TypedReads as _, Waiting},
    types::EntityType,
};

/// How many signals, and as many reminders, of one type and partition are counted, or have their arguments
/// looked at.
const UNSERVED_ROWS_MAX: usize = 1_000;

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Rows whose type or operation is not known.
    Names,
    /// The arguments of the others too.
    Arguments,
}

/// Stored signals and reminders that nobody can apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UnservedView {
    /// The entity type.
    #[serde(rename = "type")]
    pub entity_type: String,
    /// The operation that the type no longer has, or that takes another argument; none where no node serves
    /// the type.
    pub operation: Option<String>,
    /// Why the first of the arguments does not fit; none where the operation or the type is what is missing.
    pub argument: Option<String>,
    /// How many signals name it; of each partition at most 1,000 are counted.
    pub signals: u64,
    /// How many reminders and delayed signals do; counted likewise.
    pub reminders: u64,
    /// One of the entities that they are for.
    pub example: String,
}

impl UnservedView {
    /// The same in words, for logs and readiness.
    pub(super) fn text(&self) -> String {
        let Self { entity_type, operation, argument, signals, reminders, example } = self;
        let what = format!("{signals} signals and {reminders} reminders, such as of {example},");
        match (operation, argument) {
            (Some(operation), Some(why)) => {
                format!(
                    "{what} have an argument that {entity_type}.{operation} does not take: {why}"
                )
            }
            (Some(operation), None) => {
                format!("{what} name {entity_type}.{operation}, which does not exist")
            }
            (None, _) => format!("{what} wait for the type {entity_type}, which no node serves"),
        }
    }
}

/// The findings by type, operation, and whether it is the argument that does not fit.
type Found = BTreeMap<(String, Option<String>, bool), UnservedView>;

/// The one who wants to know: a caller takes room of the node, as for other lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// Somebody who has asked.
    Caller,
    /// The node itself, which reads one page after the other and keeps no caller waiting.
    Node,
}

/// Looks for stored signals and reminders that nobody can apply.
pub(super) async fn look(
    node: &Inner,
    depth: Depth,
    whom: For,
) -> Result<Vec<UnservedView>, Error> {
    let mut found = Found::new();
    unknown_names(node, whom, &mut found).await?;
    if depth == Depth::Arguments {
        for known in node.host.sorted_types() {
            misfits(node, whom, &**known, &mut found).await?;
        }
    }
    Ok(found.into_values().collect())
}

/// Finds rows whose type or operation nobody has. The rows of a type are read only where it lacks one of the
/// operations that it had.
async fn unknown_names(node: &Inner, whom: For, found: &mut Found) -> Result<(), Error> {
    let mut types = node.host.store().operations().await?;
    types.extend(node.host.met_unserved().into_iter().map(|name| (name, Vec::new())));
    types.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    types.dedup_by(|other, one| one.0 == other.0);
    for (entity_type, known) in types {
        let served = node.host.types().get(entity_type.as_str());
        if served.is_none() && node.local().serves(&entity_type) {
            // Other nodes know what it has.
            continue;
        }
        let has = |name: &str| {
            let found = served.and_then(|served| served.find_stored(name));
            // One that has become a query changes nothing any more.
            found.is_some_and(|found| found.kind != OperationKind::Query)
        };
        if served.is_some() && known.iter().all(|name| has(name)) {
            continue;
        }
        let served_names = served.map_or_else(Vec::new, |served| served.all_names());
        each_row((node, whom), &entity_type, &served_names, |row| {
            let operation = served.is_some().then(|| row.operation.clone());
            add(found, &entity_type, operation, None, &row);
        })
        .await?;
    }
    Ok(())
}

/// Finds rows of a type whose arguments do not fit.
async fn misfits(
    node: &Inner,
    whom: For,
    known: &dyn EntityType,
    found: &mut Found,
) -> Result<(), Error> {
    each_row((node, whom), known.name(), &[], |row| {
        let operation = known.find_stored(&row.operation);
        let operation = operation.filter(|found| found.kind != OperationKind::Query);
        let (Some(operation), Some(input)) = (operation, &row.input) else { return };
        if let Err(why) = known.decode_argument(operation.index, input) {
            add(found, known.name(), Some(row.operation.clone()), Some(why.to_string()), &row);
        }
    })
    .await
}

/// Hands out the rows for the entities of a type, but for those of these operations and the runtime's own.
async fn each_row(
    (node, whom): (&Inner, For),
    entity_type: &str,
    except: &[&str],
    mut each: impl FnMut(Waiting),
) -> Result<(), Error> {
    let except: Vec<_> = [PURGE, EXPIRE].iter().chain(except).map(|it| (*it).to_owned()).collect();
    let store = node.host.store();
    for partition in 0..store.opened().settings.partitions {
        let _room = (whom == For::Caller).then(|| room_for_a_page(node)).transpose()?;
        let (name, except) = (entity_type.to_owned(), except.clone());
        let rows = store.waiting(partition, name, except, UNSERVED_ROWS_MAX).await?;
        rows.into_iter().for_each(&mut each);
    }
    Ok(())
}

fn add(
    found: &mut Found,
    entity_type: &str,
    operation: Option<String>,
    argument: Option<String>,
    row: &Waiting,
) {
    let key = (entity_type.to_owned(), operation.clone(), argument.is_some());
    let view = found.entry(key).or_insert_with(|| UnservedView {
        entity_type: entity_type.to_owned(),
        operation,
        argument,
        signals: 0,
        reminders: 0,
        example: row.id.to_string(),
    });
    view.signals += u64::from(!row.is_reminder);
    view.reminders += u64::from(row.is_reminder);
}
