//! A batch as changes of rows, in order: what all stores have in common of a commit.

use stead_entities::{EntityId, collections::EntryChanges};

use super::{
    Batch, Write,
    tables::{
        self, Record, Table,
        entries::EntryRecord,
        indexes::IndexedValues,
        meta::LaneRecord,
        origins::StoredOrigin,
        reminders::Slot,
        states::{Ended, EndedRows},
    },
};
use crate::sabotage::Sabotage;

/// One change of one row.
pub(super) struct RowChange<'b> {
    pub(super) table: Table,
    pub(super) key: &'b [u8],
    pub(super) value: Option<&'b [u8]>,
    /// The row that must have been there.
    pub(super) before: Before<'b>,
    /// The key before which all rows from `key` on end, where not only one does.
    pub(super) to: Option<&'b [u8]>,
}

/// The row that a change of it needs to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before<'b> {
    /// Nothing in particular.
    Any,
    /// A row.
    Row,
    /// This record, or no row.
    Record(Option<&'b [u8]>),
}

impl Before<'_> {
    /// Whether what was found is what is needed; where nothing is, it need not be looked for.
    pub(super) fn is(self, found: Option<&[u8]>) -> bool {
        match self {
            Self::Any => true,
            Self::Row => found.is_some(),
            Self::Record(record) => found == record,
        }
    }
}

impl<'b> RowChange<'b> {
    fn of(table: Table, key: &'b [u8], value: Option<&'b [u8]>) -> Self {
        Self { table, key, value, before: Before::Any, to: None }
    }
}

/// Hands out the changes of a batch in order, the lane first, until one is refused.
pub(super) fn each_change<E>(
    batch: &Batch,
    mut change: impl FnMut(RowChange<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let lane = LaneRecord {
        incarnation: batch.fence.incarnation,
        lane: batch.fence.lane,
        number: batch.fence.number,
        owner: batch.owner.to_string(),
        time: batch.time,
        is_clean: batch.is_clean,
    };
    // One buffer for all values: a batch may have thousands.
    let mut rows = Changes { change: &mut change, value: Vec::new() };
    rows.put(tables::meta::LANE, &lane)?;
    batch.writes.iter().try_for_each(|write| rows.of(write))
}

struct Changes<'c, C> {
    change: &'c mut C,
    value: Vec<u8>,
}

impl<E, C: FnMut(RowChange<'_>) -> Result<(), E>> Changes<'_, C> {
    fn of(&mut self, write: &Write) -> Result<(), E> {
        match write {
            Write::PutState(id, state) => {
                self.put(tables::states::key(id), state)?;
                self.index(id, &state.replaces, &state.indexed)?;
                self.end_entries(id, state.ends)?;
                match &state.changes {
                    Some(changes) => self.entries(id, state.head.generation, changes),
                    None => Ok(()),
                }
            }
            Write::DeleteState(id, Ended { indexed, entries }) => {
                self.delete(Table::States, tables::states::key(id))?;
                self.index(id, indexed, &IndexedValues::default())?;
                self.end_entries(id, *entries)
            }
            Write::Accept(key, signal) | Write::Retry(key, signal) => {
                self.put(&tables::inbox::key(key), signal)
            }
            Write::Consume(key) => {
                let gone = &tables::inbox::key(key);
                let gone = RowChange::of(Table::Inbox, gone, None);
                (self.change)(RowChange { before: Before::Row, ..gone })
            }
            Write::Remind(partition, id, slot, reminder) => {
                let key = tables::reminders::key(*partition, id, slot);
                self.put(&key, reminder)?;
                if let Some(origin) = &reminder.origin {
                    self.put(&key, &StoredOrigin(origin.clone()))?;
                }
                let key = &tables::due::key(*partition, reminder.due, id, slot);
                let value = Some(match reminder.origin {
                    None => tables::due::PLAIN,
                    Some(_) => tables::due::HAS_ORIGIN,
                });
                (self.change)(RowChange::of(Table::Due, key, value))
            }
            Write::CancelReminder { partition, id, slot, due, has_origin } => {
                let key = &tables::reminders::key(*partition, id, slot);
                if *has_origin {
                    self.delete(Table::Origins, key)?;
                }
                // A delayed signal is applied once: whoever finds it gone was told of it too late.
                let is_applied_once = matches!(slot, Slot::Delayed(_));
                let before = if is_applied_once { Before::Row } else { Before::Any };
                let gone = RowChange::of(Table::Reminders, key, None);
                (self.change)(RowChange { before, ..gone })?;
                self.delete(Table::Due, &tables::due::key(*partition, *due, id, slot))
            }
            Write::Put(table, key, value) => (self.change)(RowChange::of(*table, key, Some(value))),
            Write::Replace { table, key, before, value } => {
                let put = RowChange::of(*table, key, Some(value));
                (self.change)(RowChange { before: Before::Record(before.as_deref()), ..put })
            }
            Write::Delete(table, key) => self.delete(*table, key),
            Write::FreePartition(_) => Ok(()),
        }
    }

    /// Has the rows of an entity's indexed values follow its state.
    fn index(
        &mut self,
        id: &EntityId,
        before: &IndexedValues,
        present: &IndexedValues,
    ) -> Result<(), E> {
        if before == present || Sabotage::IndexNotInCommit.is_on() {
            return Ok(());
        }
        for (index, value) in before.iter() {
            if present.get(index) != Some(value) {
                self.delete(Table::Indexes, &tables::indexes::key(index, value, id))?;
            }
        }
        // Each row has all values.
        for (index, value) in present.iter() {
            self.put(&tables::indexes::key(index, value, id), present)?;
        }
        Ok(())
    }

    /// Ends what a generation has beside its record.
    fn end_entries(&mut self, id: &EntityId, rows: Option<EndedRows>) -> Result<(), E> {
        match rows {
            None => Ok(()),
            Some(EndedRows::Body(generation)) => {
                let body = tables::entries::key(id, generation, &tables::entries::body());
                self.delete(Table::Entries, &body)
            }
            Some(EndedRows::All(generation)) => {
                let mut from = tables::entries::of_generation(id, generation);
                if Sabotage::PurgeByPrefix.is_on() {
                    from = id.as_str().into();
                }
                self.delete_range(Table::Entries, &from, &tables::key::after(&from))
            }
        }
    }

    /// Changes the entries of a state: ranges end first.
    fn entries(&mut self, id: &EntityId, generation: u64, changes: &EntryChanges) -> Result<(), E> {
        for range in &changes.ended {
            let (from, to) = tables::entries::range(id, generation, range);
            self.delete_range(Table::Entries, &from, &to)?;
        }
        for (entry, stored) in &changes.entries {
            let key = &tables::entries::key(id, generation, entry);
            self.value.clear();
            let value = stored.as_ref().map(|stored| {
                EntryRecord::write(stored, &mut self.value);
                &self.value[..]
            });
            (self.change)(RowChange::of(Table::Entries, key, value))?;
        }
        Ok(())
    }

    fn delete_range(&mut self, table: Table, key: &[u8], to: &[u8]) -> Result<(), E> {
        (self.change)(RowChange { to: Some(to), ..RowChange::of(table, key, None) })
    }

    fn put<R: Record>(&mut self, key: &[u8], record: &R) -> Result<(), E> {
        self.value.clear();
        record.encode_to(&mut self.value);
        (self.change)(RowChange::of(R::TABLE, key, Some(&self.value)))
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), E> {
        (self.change)(RowChange::of(table, key, None))
    }
}
