//! The versions in which the states of a type are stored: counted, for who asks, and so that a version of
//! which nothing is stored can be left out of a program.

use std::collections::BTreeMap;

use super::Host;
use crate::store::{ReadResult, Store, TypedReads as _};

/// How many states are read at one time.
const PAGE_ROWS: usize = 1_000;

/// The states of a type by the version in which they are stored.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    pub(crate) states: BTreeMap<u32, u64>,
    /// Whether there are no more.
    pub(crate) is_complete: bool,
}

/// Counts the states of a type by version: `max` of them, rounded up to whole pages.
pub(crate) async fn count(store: &dyn Store, entity_type: &str, max: usize) -> ReadResult<Counted> {
    let (mut counted, mut looked_at, mut after) = (Counted::default(), 0, None);
    while looked_at < max {
        let page = store.list(entity_type.to_owned(), String::new(), after, PAGE_ROWS).await?;
        for (_, head) in &page.rows {
            *counted.states.entry(head.version).or_default() += 1;
        }
        looked_at += page.rows.len();
        after = page.last_before_more().map(|(id, _)| id.key().to_owned());
        if after.is_none() {
            counted.is_complete = true;
            break;
        }
    }
    Ok(counted)
}

/// A version that a program does not read, though the store has its layout, and of which how many states are
/// stored.
#[derive(Debug)]
pub(crate) struct LeftOut {
    pub(crate) entity_type: &'static str,
    pub(crate) version: u32,
    pub(crate) states: u64,
}

/// The earlier versions that the program of a node leaves out. Reads every state of a type that leaves one
/// out; of others none.
pub(crate) async fn left_out(node: &Host) -> ReadResult<Vec<LeftOut>> {
    let mut found = Vec::new();
    for known in node.types().values() {
        let (entity_type, present) = (known.name(), known.version());
        let stored = node.store().layouts(entity_type.to_owned()).await?;
        let versions = stored.into_iter().map(|(version, _)| version);
        let unknown: Vec<_> =
            versions.filter(|version| *version < present && !known.knows(*version)).collect();
        if unknown.is_empty() {
            continue;
        }
        tracing::info!(entity_type, versions = ?unknown, "looking for states of versions left out");
        let counted = count(&**node.store(), entity_type, usize::MAX).await?;
        found.extend(unknown.into_iter().map(|version| LeftOut {
            entity_type,
            version,
            states: counted.states.get(&version).copied().unwrap_or_default(),
        }));
    }
    Ok(found)
}
