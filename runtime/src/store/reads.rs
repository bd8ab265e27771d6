//! The typed reads of the tables, once for every back-end.

use stead_entities::{
    BoxFuture, EntityId, Timestamp,
    collections::{Loaded, Miss, Wanted},
};
use tokio::sync::oneshot;

use super::{
    DeadLetterFilter, DeadLetterHeads, DeadLetterPage, DueKey, Haste, InboxPage, OperationsByType,
    ReadError, ReadResult, ReminderPage, StatePage, Store, Waiting,
    rows::{self, Rows},
    tables::{
        self, Table,
        dead_letters::{DeadLetter, DeadLetterId},
        entries,
        idempotency::{IdempotencyKey, IdempotencyRecord},
        inbox::InboxKey,
        meta::Declarations,
        reminders::{ReminderRecord, Slot},
        states::StateRecord,
    },
};

/// The most entries that are looked for without waiting for a disk: the caller's thread has other work.
const KEYS_CACHED_MAX: usize = 16;

/// Reads of a store by what its rows mean. Each sees one view: a batch as a whole or not at all.
pub trait TypedReads: Store {
    /// Runs a read on one view.
    fn read<T: Send + 'static>(
        &self,
        haste: Haste,
        read: impl FnOnce(&dyn Rows) -> ReadResult<T> + Send + 'static,
    ) -> BoxFuture<'static, ReadResult<T>> {
        let (sender, found) = oneshot::channel();
        let viewed = self.read_view(
            haste,
            Box::new(move |rows| {
                let _nobody_waits = sender.send(read(rows));
            }),
        );
        Box::pin(async move {
            viewed.await?;
            let found = found.await;
            found.unwrap_or_else(|_| Err(ReadError::Unavailable("the read was not run".into())))
        })
    }

    /// The state of an entity if it is at hand without waiting for a disk; `None` if it is not.
    fn load_cached(&self, id: &EntityId) -> Option<ReadResult<Option<StateRecord>>> {
        let found = self.get_cached(Table::States, tables::states::key(id))?;
        let record = found.and_then(rows::decoded::<StateRecord>);
        // The rest of it would be of another view.
        let is_whole =
            |record: &Option<StateRecord>| record.as_ref().is_none_or(|record| !record.apart.body);
        (record.as_ref().map_or(true, is_whole)).then_some(record)
    }

    /// The record under an idempotency key if it is at hand without waiting for a disk; `None` if it is
    /// not.
    fn remembered_cached(
        &self,
        key: &IdempotencyKey,
    ) -> Option<ReadResult<Option<IdempotencyRecord>>> {
        let found = self.get_cached(Table::Idempotency, &tables::idempotency::key(key))?;
        Some(found.and_then(rows::decoded))
    }

    /// The state of an entity.
    fn load(&self, id: EntityId) -> BoxFuture<'static, ReadResult<Option<StateRecord>>> {
        self.read(Haste::Short, move |rows| state(rows, &id))
    }

    /// The state of an entity, and entries of its collections that somebody missed, of one view. What is of a
    /// collection that is not there any more has no rows.
    fn load_with(
        &self,
        id: EntityId,
        missed: Vec<Miss>,
    ) -> BoxFuture<'static, ReadResult<(Option<StateRecord>, Vec<Loaded>)>> {
        self.read(Haste::Short, move |rows| {
            let Some(record) = state(rows, &id)? else { return Ok((None, Vec::new())) };
            let generation = record.head.generation;
            let loaded = missed.iter().map(|miss| entries::load(rows, &id, generation, miss));
            let loaded = loaded.collect::<ReadResult<Vec<_>>>()?;
            Ok((Some(record), loaded))
        })
    }

    /// Entries that a turn missed, if they are at hand without waiting for a disk; `None` if they are not.
    fn entries_cached(
        &self,
        id: &EntityId,
        generation: u64,
        miss: &Miss,
    ) -> Option<ReadResult<Loaded>> {
        let Wanted::Keys(keys) = &miss.wanted else { return None };
        if keys.len() > KEYS_CACHED_MAX {
            return None;
        }
        let mut rows = Vec::with_capacity(keys.len());
        for entry in keys {
            let key = entries::key(id, generation, &(miss.number, entry.clone()));
            let found = self.get_cached(Table::Entries, &key)?;
            match found.and_then(rows::decoded::<entries::EntryRecord>) {
                Ok(Some(record)) => rows.push((entry.clone(), record.0)),
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
        }
        let (number, wanted) = (miss.number, miss.wanted.clone());
        Some(Ok(Loaded { number, wanted, rows, is_end: true }))
    }

    /// Entries of an entity's collections that a turn missed.
    fn entries(
        &self,
        id: EntityId,
        generation: u64,
        miss: Miss,
    ) -> BoxFuture<'static, ReadResult<Loaded>> {
        self.read(Haste::Short, move |rows| entries::load(rows, &id, generation, &miss))
    }

    /// Up to `limit` inbox rows of a receiver after `after`; fewer where they are large.
    fn inbox(
        &self,
        partition: u16,
        receiver: EntityId,
        after: Option<InboxKey>,
        limit: usize,
    ) -> BoxFuture<'static, ReadResult<InboxPage>> {
        self.read(Haste::Short, move |rows| {
            rows::inbox(rows, partition, &receiver, after.as_ref(), limit)
        })
    }

    /// The entities of a partition that have inbox rows.
    fn receivers(&self, partition: u16) -> BoxFuture<'static, ReadResult<Vec<EntityId>>> {
        self.read(Haste::Short, move |rows| rows::receivers(rows, partition))
    }

    /// Up to `limit` reminders of a partition that are due at `until` or before, in order, from behind
    /// `after`; fewer where they are large.
    fn due(
        &self,
        partition: u16,
        after: Option<DueKey>,
        until: Timestamp,
        limit: usize,
    ) -> BoxFuture<'static, ReadResult<ReminderPage>> {
        self.read(Haste::Short, move |rows| {
            rows::due(rows, partition, after.as_ref(), until, limit)
        })
    }

    /// One reminder or delayed signal.
    fn reminder(
        &self,
        partition: u16,
        id: EntityId,
        slot: Slot,
    ) -> BoxFuture<'static, ReadResult<Option<ReminderRecord>>> {
        self.read(Haste::Short, move |rows| rows::reminder(rows, &(partition, id, slot)))
    }

    /// Up to `limit` reminders and delayed signals of an entity behind `after`, reminders first;
    /// fewer where they are large.
    fn reminders(
        &self,
        haste: Haste,
        partition: u16,
        id: EntityId,
        after: Option<Slot>,
        limit: usize,
    ) -> BoxFuture<'static, ReadResult<ReminderPage>> {
        self.read(haste, move |rows| rows::reminders(rows, partition, &id, after.as_ref(), limit))
    }

    /// Up to `limit` stored signals and as many reminders for the entities of a type in a partition, but
    /// for those that name an operation of `except`; fewer where very many have to be looked at.
    fn waiting(
        &self,
        partition: u16,
        entity_type: String,
        except: Vec<String>,
        limit: usize,
    ) -> BoxFuture<'static, ReadResult<Vec<Waiting>>> {
        self.read(Haste::Long, move |rows| {
            rows::waiting(rows, partition, &entity_type, &except, limit)
        })
    }

    /// The record under an idempotency key.
    fn remembered(
        &self,
        key: IdempotencyKey,
    ) -> BoxFuture<'static, ReadResult<Option<IdempotencyRecord>>> {
        self.read(Haste::Short, move |rows| rows::get(rows, &key))
    }

    /// Up to `limit` entities of a type whose keys begin with `prefix`, after the key `after`.
    fn list(
        &self,
        entity_type: String,
        prefix: String,
        after: Option<String>,
        limit: usize,
    ) -> BoxFuture<'static, ReadResult<StatePage>> {
        self.read(Haste::Long, move |rows| {
            rows::list(rows, &entity_type, &prefix, after.as_deref(), limit)
        })
    }

    /// Up to `limit` dead letters behind `after` that fit the filter; fewer where they are large, or
    /// where many do not fit.
    fn dead_letters(
        &self,
        filter: DeadLetterFilter,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> BoxFuture<'static, ReadResult<DeadLetterPage>> {
        self.read(Haste::Long, move |rows| rows::dead_letters(rows, &filter, after, limit))
    }

    /// The heads of up to `limit` dead letters of a partition behind `after`.
    fn dead_letter_heads(
        &self,
        partition: u16,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> BoxFuture<'static, ReadResult<DeadLetterHeads>> {
        self.read(Haste::Long, move |rows| rows::dead_letter_heads(rows, partition, after, limit))
    }

    /// One dead letter.
    fn dead_letter(&self, id: DeadLetterId) -> BoxFuture<'static, ReadResult<Option<DeadLetter>>> {
        self.read(Haste::Short, move |rows| rows::get(rows, &id))
    }

    /// The stored layouts of an entity type, by version.
    fn layouts(&self, entity_type: String) -> BoxFuture<'static, ReadResult<Vec<(u32, String)>>> {
        self.read(Haste::Short, move |rows| rows::layouts(rows, &entity_type))
    }

    /// The names of the operations that each entity type has, or had, by type.
    fn operations(&self) -> BoxFuture<'static, ReadResult<OperationsByType>> {
        self.read(Haste::Short, rows::operations)
    }

    /// How often programs have declared something anew; none before the first time.
    fn declarations(&self) -> BoxFuture<'static, ReadResult<Option<Declarations>>> {
        self.read(Haste::Short, |rows| rows::get(rows, &()))
    }
}

impl<S: Store + ?Sized> TypedReads for S {}

fn state(rows: &dyn Rows, id: &EntityId) -> ReadResult<Option<StateRecord>> {
    let stored = rows.get(Table::States, tables::states::key(id))?;
    stored.map(|stored| tables::states::read(rows, id, &stored)).transpose()
}
