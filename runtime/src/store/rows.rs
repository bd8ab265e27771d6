//! The tables as ordered rows of bytes: what all stores have in common. Ownership is none of them.

use stead_entities::{EntityId, Timestamp};

use super::{
    Batch, DeadLetterPage, InboxPage, Page, ReadError, ReadResult, ReminderRows, StatePage, Write,
    keys::{self, Table},
    record::{
        self, Damaged, DeadLetter, DeadLetterId, IdempotencyKey, IdempotencyRecord, InboxKey,
        LaneRecord, ReminderRecord, Slot, StateRecord,
    },
};

pub(super) type Row = (Vec<u8>, Vec<u8>);

/// The most bytes of the rows of one page; a page has one row in any case.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// How much a scan returns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) rows: usize,
    bytes: usize,
}

impl Limit {
    const NONE: Self = Self::rows(usize::MAX);

    const fn rows(rows: usize) -> Self {
        Self { rows, bytes: usize::MAX }
    }

    const fn page(rows: usize) -> Self {
        Self { rows, bytes: PAGE_BYTES_MAX }
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    rows: Vec<Row>,
    /// Whether there were no more.
    is_end: bool,
}

impl Scanned {
    /// Takes rows up to a limit.
    pub(super) fn take(
        found: impl Iterator<Item = ReadResult<Row>>,
        limit: Limit,
    ) -> ReadResult<Self> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for row in found {
            if rows.len() >= limit.rows || bytes >= limit.bytes {
                return Ok(Self { rows, is_end: false });
            }
            let row = row?;
            bytes += row.0.len() + row.1.len();
            rows.push(row);
        }
        Ok(Self { rows, is_end: true })
    }
}

/// Reads of committed rows.
pub(super) trait Rows {
    fn get(&self, table: Table, key: &[u8]) -> ReadResult<Option<Vec<u8>>>;
    /// The rows with `from <= key < to`, in order, up to a limit.
    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: Limit) -> ReadResult<Scanned>;
}

/// One change of one row.
pub(super) struct Change<'b> {
    pub(super) table: Table,
    pub(super) key: &'b [u8],
    pub(super) value: Option<&'b [u8]>,
    /// Whether the row must have been there.
    pub(super) must_exist: bool,
}

/// Hands out the changes of a batch in order, the lane first, until one is refused.
pub(super) fn each_change<E>(
    batch: &Batch,
    mut change: impl FnMut(Change<'_>) -> Result<(), E>,
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
    rows.put(Table::Meta, keys::LANE, &lane)?;
    batch.writes.iter().try_for_each(|write| rows.of(write))
}

struct Changes<'c, C> {
    change: &'c mut C,
    value: Vec<u8>,
}

impl<E, C: FnMut(Change<'_>) -> Result<(), E>> Changes<'_, C> {
    fn of(&mut self, write: &Write) -> Result<(), E> {
        match write {
            Write::PutState(id, state) => self.put(Table::States, id.as_str().as_bytes(), state),
            Write::DeleteState(id) => self.delete(Table::States, id.as_str().as_bytes()),
            Write::Accept(key, signal) | Write::Retry(key, signal) => {
                self.put(Table::Inbox, &keys::inbox(key), signal)
            }
            Write::Consume(key) => {
                let key = &keys::inbox(key);
                (self.change)(Change { table: Table::Inbox, key, value: None, must_exist: true })
            }
            Write::Remind(partition, id, slot, reminder) => {
                let key = keys::reminder(*partition, id, slot);
                self.put(Table::Reminders, &key, reminder)?;
                let key = &keys::due(*partition, reminder.due, id, slot);
                let value = Some(&[][..]);
                (self.change)(Change { table: Table::Due, key, value, must_exist: false })
            }
            Write::CancelReminder(partition, id, slot, due) => {
                let key = &keys::reminder(*partition, id, slot);
                // A delayed signal is applied once: whoever finds it gone was told of it too late.
                let must_exist = matches!(slot, Slot::Delayed(_));
                (self.change)(Change { table: Table::Reminders, key, value: None, must_exist })?;
                self.delete(Table::Due, &keys::due(*partition, *due, id, slot))
            }
            Write::Remember(key, what) => {
                self.put(Table::Idempotency, &keys::idempotency(key), what)
            }
            Write::Forget(key) => self.delete(Table::Idempotency, &keys::idempotency(key)),
            Write::Bury(id, letter) => {
                self.put(Table::DeadLetters, &keys::dead_letter(*id), letter)
            }
            Write::Exhume(id) => self.delete(Table::DeadLetters, &keys::dead_letter(*id)),
            Write::PutLayout(entity_type, version, text) => {
                self.put(Table::Meta, &keys::layout(entity_type, *version), text)
            }
            Write::Release(_) => Ok(()),
        }
    }

    fn put(&mut self, table: Table, key: &[u8], record: &impl serde::Serialize) -> Result<(), E> {
        self.value.clear();
        record::encode_to(&mut self.value, record);
        let value = Some(&self.value[..]);
        (self.change)(Change { table, key, value, must_exist: false })
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), E> {
        (self.change)(Change { table, key, value: None, must_exist: false })
    }
}

pub(super) fn state(bytes: Option<Vec<u8>>) -> ReadResult<Option<StateRecord>> {
    Ok(bytes.map(|bytes| record::decode(&bytes)).transpose()?)
}

pub(super) fn load(rows: &dyn Rows, id: &EntityId) -> ReadResult<Option<StateRecord>> {
    rows.get(Table::States, id.as_str().as_bytes()).and_then(state)
}

pub(super) fn inbox(
    rows: &dyn Rows,
    partition: u16,
    receiver: &EntityId,
    after: Option<&InboxKey>,
    limit: usize,
) -> ReadResult<InboxPage> {
    let prefix = keys::of_entity(partition, receiver);
    let to = keys::after(&prefix);
    // The first key after this one: nothing sorts between a key and itself with a zero byte.
    let from = after.map_or(prefix, |key| [keys::inbox(key), vec![0]].concat());
    let Scanned { rows, is_end } = rows.scan(Table::Inbox, &from, &to, Limit::page(limit))?;
    let read = |(key, value): &Row| Ok((keys::read_inbox(key)?, record::decode(value)?));
    Ok(Page { rows: rows.iter().map(read).collect::<ReadResult<_>>()?, is_end })
}

pub(super) fn receivers(rows: &dyn Rows, partition: u16) -> ReadResult<Vec<EntityId>> {
    let mut from = partition.to_be_bytes().to_vec();
    let to = keys::after(&from);
    let mut found = Vec::new();
    // One seek for each entity, however many rows it has.
    while let Some((key, _)) = rows.scan(Table::Inbox, &from, &to, Limit::rows(1))?.rows.first() {
        match keys::read_inbox(key) {
            Ok(known) => {
                from = keys::after(&keys::of_entity(partition, &known.receiver));
                found.push(known.receiver);
            }
            Err(error) => {
                skip("an inbox row", &error);
                from = [&key[..], &[0]].concat();
            }
        }
    }
    Ok(found)
}

pub(super) fn due(
    rows: &dyn Rows,
    partition: u16,
    until: Timestamp,
    limit: usize,
) -> ReadResult<ReminderRows> {
    let from = keys::due_from(partition, Timestamp::from_micros(i64::MIN));
    let after = Timestamp::from_micros(until.as_micros().saturating_add(1));
    let mut found = Vec::new();
    let to = keys::due_from(partition, after);
    for (key, _) in rows.scan(Table::Due, &from, &to, Limit::rows(limit))?.rows {
        match one_due(rows, partition, &key) {
            Ok(reminder) => found.push(reminder),
            Err(ReadError::Damaged(error)) => skip("a reminder", &error),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn one_due(
    rows: &dyn Rows,
    partition: u16,
    key: &[u8],
) -> ReadResult<(EntityId, Slot, ReminderRecord)> {
    let (due, id, slot) = keys::read_due(key)?;
    let reminder = rows.get(Table::Reminders, &keys::reminder(partition, &id, &slot))?;
    let reminder = reminder.ok_or_else(|| {
        Damaged(format!("the reminder of {id} that is due at {due} is not there"))
    })?;
    Ok((id, slot, record::decode(&reminder)?))
}

/// One damaged row is left as it is and does not keep its neighbours from being read.
fn skip(what: &str, error: &Damaged) {
    tracing::error!(%error, "{what} cannot be read and is left as it is");
}

pub(super) fn reminders(
    rows: &dyn Rows,
    partition: u16,
    id: &EntityId,
    limit: Option<usize>,
) -> ReadResult<ReminderRows> {
    let from = keys::of_entity(partition, id);
    let limit = limit.map_or(Limit::NONE, Limit::page);
    let found = rows.scan(Table::Reminders, &from, &keys::after(&from), limit)?.rows;
    let read = |(key, value): &Row| {
        let (id, slot): (EntityId, Slot) = keys::read_reminder(key)?;
        Ok((id, slot, record::decode(value)?))
    };
    found.iter().map(read).collect()
}

pub(super) fn remembered(
    rows: &dyn Rows,
    key: &IdempotencyKey,
) -> ReadResult<Option<IdempotencyRecord>> {
    let found = rows.get(Table::Idempotency, &keys::idempotency(key))?;
    Ok(found.map(|bytes| record::decode(&bytes)).transpose()?)
}

pub(super) fn list(
    rows: &dyn Rows,
    entity_type: &str,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> ReadResult<StatePage> {
    let first = format!("{entity_type}/{prefix}").into_bytes();
    let to = keys::after(&first);
    let from = match after {
        Some(key) => first.max(format!("{entity_type}/{key}\0").into_bytes()),
        None => first,
    };
    let Scanned { rows, is_end } = rows.scan(Table::States, &from, &to, Limit::page(limit))?;
    let mut page = Page { rows: Vec::new(), is_end };
    for (key, value) in rows {
        match one_state(&key, &value) {
            Ok(state) => page.rows.push(state),
            Err(error) => skip("a state", &error),
        }
    }
    Ok(page)
}

fn one_state(key: &[u8], value: &[u8]) -> Result<(EntityId, StateRecord), Damaged> {
    let path = str::from_utf8(key).map_err(|_| Damaged("an id is not UTF-8".into()))?;
    let id = EntityId::parse(path).map_err(|error| Damaged(error.to_string()))?;
    Ok((id, record::decode(value)?))
}

pub(super) fn dead_letters(
    rows: &dyn Rows,
    after: Option<DeadLetterId>,
    limit: usize,
) -> ReadResult<DeadLetterPage> {
    let from = after.map_or(Vec::new(), |id| [keys::dead_letter(id), vec![0]].concat());
    let to = [u8::MAX; 12];
    let Scanned { rows, is_end } = rows.scan(Table::DeadLetters, &from, &to, Limit::page(limit))?;
    let mut page = Page { rows: Vec::new(), is_end };
    for (key, value) in rows {
        let letter = keys::read_dead_letter(&key)
            .and_then(|id| record::decode(&value).map(|letter: DeadLetter| (id, letter)));
        match letter {
            Ok(letter) => page.rows.push(letter),
            Err(error) => skip("a dead letter", &error),
        }
    }
    Ok(page)
}

pub(super) fn dead_letter(rows: &dyn Rows, id: DeadLetterId) -> ReadResult<Option<DeadLetter>> {
    let found = rows.get(Table::DeadLetters, &keys::dead_letter(id))?;
    Ok(found.map(|bytes| record::decode(&bytes)).transpose()?)
}

pub(super) fn layouts(rows: &dyn Rows, entity_type: &str) -> ReadResult<Vec<(u32, String)>> {
    let from = format!("layout/{entity_type}/").into_bytes();
    let found = rows.scan(Table::Meta, &from, &keys::after(&from), Limit::NONE)?.rows;
    let read = |(key, value): &Row| {
        let (_, version) = key.split_last_chunk::<4>().ok_or(Damaged("a layout's key".into()))?;
        Ok((u32::from_be_bytes(*version), record::decode(value)?))
    };
    found.iter().map(read).collect()
}

/// The methods of [`super::Store`] that only read, by way of `$run`, which is handed a closure that
/// takes the rows.
macro_rules! reads {
    ($run:ident) => {
        fn load(&self, id: EntityId) -> BoxFuture<'static, ReadResult<Option<StateRecord>>> {
            self.$run(move |rows| rows::load(rows, &id))
        }
        fn inbox(
            &self,
            partition: u16,
            receiver: EntityId,
            after: Option<InboxKey>,
            limit: usize,
        ) -> BoxFuture<'static, ReadResult<InboxPage>> {
            self.$run(move |rows| rows::inbox(rows, partition, &receiver, after.as_ref(), limit))
        }
        fn receivers(&self, partition: u16) -> BoxFuture<'static, ReadResult<Vec<EntityId>>> {
            self.$run(move |rows| rows::receivers(rows, partition))
        }
        fn due(
            &self,
            partition: u16,
            until: Timestamp,
            limit: usize,
        ) -> BoxFuture<'static, ReadResult<ReminderRows>> {
            self.$run(move |rows| rows::due(rows, partition, until, limit))
        }
        fn reminders(
            &self,
            partition: u16,
            id: EntityId,
            limit: Option<usize>,
        ) -> BoxFuture<'static, ReadResult<ReminderRows>> {
            self.$run(move |rows| rows::reminders(rows, partition, &id, limit))
        }
        fn remembered(
            &self,
            key: IdempotencyKey,
        ) -> BoxFuture<'static, ReadResult<Option<IdempotencyRecord>>> {
            self.$run(move |rows| rows::remembered(rows, &key))
        }
        fn list(
            &self,
            entity_type: String,
            prefix: String,
            after: Option<String>,
            limit: usize,
        ) -> BoxFuture<'static, ReadResult<StatePage>> {
            self.$run(move |rows| rows::list(rows, &entity_type, &prefix, after.as_deref(), limit))
        }
        fn dead_letters(
            &self,
            after: Option<DeadLetterId>,
            limit: usize,
        ) -> BoxFuture<'static, ReadResult<DeadLetterPage>> {
            self.$run(move |rows| rows::dead_letters(rows, after, limit))
        }
        fn dead_letter(
            &self,
            id: DeadLetterId,
        ) -> BoxFuture<'static, ReadResult<Option<DeadLetter>>> {
            self.$run(move |rows| rows::dead_letter(rows, id))
        }
        fn layouts(
            &self,
            entity_type: String,
        ) -> BoxFuture<'static, ReadResult<Vec<(u32, String)>>> {
            self.$run(move |rows| rows::layouts(rows, &entity_type))
        }
    };
}
pub(super) use reads;
