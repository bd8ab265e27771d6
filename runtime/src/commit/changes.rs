//! The log of changes, of the types that keep one: a row of each state that a batch writes or ends, in that batch.
//!
//! The rows of an incarnation are in the order of its batches, so who has read up to one of them misses nothing by
//! going on behind it; see `node::type_changes`.

use std::time::Duration;

use stead_entities::{EntityId, Timestamp};

use crate::{
    map::Map,
    sabotage::Sabotage,
    store::{
        Fence, Write,
        tables::{
            changes::{ChangeKey, ChangeRecord, Place},
            indexes::IndexedValues,
            states::StateHead,
        },
    },
    types::EntityTypes,
};

/// How much longer a row is kept than positions before it are taken: a commit may take a while to be seen, and the
/// read of a page to begin.
const SLACK: Duration = Duration::from_secs(60);

/// How long the changes of types are kept, of those that keep them.
#[derive(Debug, Default)]
pub(crate) struct ChangeLog(Map<&'static str, Duration>);

impl ChangeLog {
    /// The log of these types.
    pub(crate) fn of(types: &EntityTypes) -> Self {
        let retentions = types
            .iter()
            .filter_map(|(name, known)| Some((*name, known.policy().changes?.as_duration())));
        Self(retentions.collect())
    }

    /// Adds the rows of what a batch writes at this time.
    pub(super) fn add(&self, writes: &mut Vec<Write>, fence: Fence, now: Timestamp) {
        if self.0.is_empty() || Sabotage::ChangeNotInCommit.is_on() {
            return;
        }
        let rows = writes.iter().filter_map(|write| match write {
            Write::PutState(id, record) => {
                let replaced = Some(&record.replaces).filter(|it| **it != record.indexed);
                Some((id, Some(record.head), replaced))
            }
            Write::DeleteState(id, ended) => Some((id, None, Some(&ended.indexed))),
            _ => None,
        });
        let rows = rows.filter_map(|row| Some((row, *self.0.get(row.0.entity_type())?)));
        let rows: Vec<_> = (0..)
            .zip(rows)
            .map(|(index, (row, retention))| {
                let place = Place { number: fence.number, index };
                write(row, fence.incarnation, place, now + retention + retention / 8 + SLACK)
            })
            .collect();
        writes.extend(rows);
    }
}

fn write(
    (id, head, replaced): (&EntityId, Option<StateHead>, Option<&IndexedValues>),
    incarnation: u64,
    place: Place,
    kept_until: Timestamp,
) -> Write {
    let key = ChangeKey { entity_type: id.entity_type().to_owned(), incarnation, place };
    let record = ChangeRecord {
        key: id.key().to_owned(),
        version: head.map(|head| (head.generation, head.revision)),
        kept_until,
        replaced: replaced.filter(|it| !it.is_empty()).cloned(),
    };
    Write::put(&key, &record)
}
