//! The tables as ordered rows of bytes: what all stores have in common. Ownership is none of them.

use std::sync::Arc;

use stead_entities::{EntityId, Origin, Timestamp};

use super::{
    DeadLetterFilter, DeadLetterHead, DeadLetterHeads, DeadLetterPage, DueKey, InboxPage,
    OperationsByType, Page, ReadError, ReadResult, Reminder, ReminderPage, StatePage, Waiting,
    record::{self, Damaged},
    tables::{
        self, Record, Table,
        dead_letters::{DeadLetter, DeadLetterId},
        inbox::{InboxKey, InboxRecord},
        origins::StoredOrigin,
        reminders::{ReminderRecord, Slot},
    },
};

#[cfg(feature = "postgres")]
pub(super) type Row = (Vec<u8>, Vec<u8>);

/// The most bytes of the rows that one page reads; a page has one row in any case.
pub(crate) const PAGE_BYTES_MAX: usize = 4 << 20;
/// The most bytes of the inbox rows, or of the due reminders, that are read at one time.
const WORK_BYTES_MAX: usize = 256 << 10;
/// The most rows that one page looks through, where a filter may leave many of them out.
const LOOKED_AT_MAX: usize = 10_000;

/// How much a scan reads.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// The most rows that are kept.
    pub(super) rows: usize,
    /// The most bytes that are read.
    pub(super) bytes: usize,
    /// Whether only the first bytes of each value are needed, [`tables::states::HEAD_BYTES_MAX`] of them.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "others read no less"))]
    pub(super) heads_only: bool,
    /// Whether the rows are read from the last one on.
    pub(super) descends: bool,
}

impl Limit {
    const fn rows(rows: usize) -> Self {
        Self { rows, bytes: usize::MAX, heads_only: false, descends: false }
    }

    pub(super) const fn bytes(rows: usize, bytes: usize) -> Self {
        Self { rows, bytes, heads_only: false, descends: false }
    }

    /// All rows.
    #[cfg(feature = "testing")]
    pub(crate) const fn all() -> Self {
        Self::rows(usize::MAX)
    }

    pub(super) const fn page(rows: usize) -> Self {
        Self::bytes(rows, PAGE_BYTES_MAX)
    }
}

/// Is handed the value of a key, where there is one.
pub type EachValue<'e> = dyn FnMut(Option<&[u8]>) -> ReadResult<()> + 'e;
/// Is handed key and value of a row; says whether to go on.
pub type EachRow<'e> = dyn FnMut(&[u8], &[u8]) -> ReadResult<bool> + 'e;

/// One view of the committed rows: a batch is seen as a whole or not at all.
pub trait Rows {
    /// The value of a key.
    fn get(&self, table: Table, key: &[u8]) -> ReadResult<Option<Vec<u8>>>;
    /// Hands out the values of keys, in their order. Where `heads_only`, only the first bytes of each are
    /// needed, [`tables::states::HEAD_BYTES_MAX`] of them.
    fn get_each(
        &self,
        table: Table,
        keys: &[Vec<u8>],
        heads_only: bool,
        each: &mut EachValue<'_>,
    ) -> ReadResult<()> {
        let _ = heads_only;
        keys.iter().try_for_each(|key| each(self.get(table, key)?.as_deref()))
    }
    /// Hands out the rows with `from <= key < to`, in the order of `limit`, until `each` does not go on.
    /// `limit` says how many are likely to be read, too.
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: Limit,
        each: &mut EachRow<'_>,
    ) -> ReadResult<()>;
}

/// The rows that `read` keeps, up to a limit, and the key of the last row that was looked at. A row
/// that is damaged is left as it is and does not keep its neighbours from being read.
pub(super) fn take<R>(
    rows: &dyn Rows,
    (table, what): (Table, &str),
    (from, to): (&[u8], &[u8]),
    limit: Limit,
    mut read: impl FnMut(&[u8], &[u8]) -> ReadResult<Option<R>>,
) -> ReadResult<(Page<R>, Option<Vec<u8>>)> {
    take_whole(rows, table, (from, to), limit, |key, value| match read(key, value) {
        Err(ReadError::Damaged(error)) => {
            tracing::error!(%error, "{what} cannot be read and is left as it is");
            Ok(None)
        }
        read => read,
    })
}

/// The same, where a row that is damaged ends the reading.
pub(super) fn take_whole<R>(
    rows: &dyn Rows,
    table: Table,
    range: (&[u8], &[u8]),
    limit: Limit,
    mut read: impl FnMut(&[u8], &[u8]) -> ReadResult<Option<R>>,
) -> ReadResult<(Page<R>, Option<Vec<u8>>)> {
    take_counted(rows, table, range, limit, |key, value| Ok((read(key, value)?, 0)))
}

/// The same, where `read` says how many bytes it has read beside the row.
pub(super) fn take_counted<R>(
    rows: &dyn Rows,
    table: Table,
    (from, to): (&[u8], &[u8]),
    limit: Limit,
    mut read: impl FnMut(&[u8], &[u8]) -> ReadResult<(Option<R>, usize)>,
) -> ReadResult<(Page<R>, Option<Vec<u8>>)> {
    let mut page = Page { rows: Vec::new(), is_end: true };
    let (mut bytes, mut looked_at, mut last) = (0_usize, 0_usize, None::<Vec<u8>>);
    rows.scan(table, from, to, limit, &mut |key, value| {
        if page.rows.len() >= limit.rows || bytes >= limit.bytes || looked_at >= LOOKED_AT_MAX {
            page.is_end = false;
            return Ok(false);
        }
        looked_at += 1;
        let last = last.get_or_insert_with(Vec::new);
        last.clear();
        last.extend_from_slice(key);
        let (kept, beside) = read(key, value)?;
        bytes = bytes.saturating_add(key.len() + value.len() + beside);
        page.rows.extend(kept);
        Ok(true)
    })?;
    Ok((page, last))
}

pub(super) fn decoded<R: Record>(bytes: Option<Vec<u8>>) -> ReadResult<Option<R>> {
    Ok(bytes.map(|bytes| R::decode(&bytes)).transpose()?)
}

/// The record of a key.
pub(super) fn get<R: Record>(rows: &dyn Rows, key: &R::Key) -> ReadResult<Option<R>> {
    rows.get(R::TABLE, &R::key(key)).and_then(decoded)
}

pub(super) fn inbox(
    rows: &dyn Rows,
    partition: u16,
    receiver: &EntityId,
    after: Option<&InboxKey>,
    limit: usize,
) -> ReadResult<InboxPage> {
    let prefix = tables::key::of_entity(partition, receiver);
    let to = tables::key::after(&prefix);
    let from = after.map_or(prefix, |key| tables::key::behind(&tables::inbox::key(key)));
    let limit = Limit::bytes(limit, WORK_BYTES_MAX);
    // A damaged row ends its entity, whose order would have a hole.
    let (page, _) = take_whole(rows, Table::Inbox, (&from, &to), limit, |key, value| {
        Ok(Some((tables::inbox::read_key(key)?, InboxRecord::decode(value)?)))
    })?;
    Ok(page)
}

pub(super) fn receivers(rows: &dyn Rows, partition: u16) -> ReadResult<Vec<EntityId>> {
    let mut from = partition.to_be_bytes().to_vec();
    let to = tables::key::after(&from);
    let mut found = Vec::new();
    // One seek for each entity, however many rows it has.
    while let Some(next) = first_receiver(rows, &from, &to)? {
        from = match next {
            Ok(receiver) => {
                let next = tables::key::after(&tables::key::of_entity(partition, &receiver));
                found.push(receiver);
                next
            }
            Err(key) => tables::key::behind(&key),
        };
    }
    Ok(found)
}

/// The receiver of the first row, or its key where that cannot be understood.
fn first_receiver(
    rows: &dyn Rows,
    from: &[u8],
    to: &[u8],
) -> ReadResult<Option<Result<EntityId, Vec<u8>>>> {
    let mut found = None;
    rows.scan(Table::Inbox, from, to, Limit::rows(1), &mut |key, _| {
        found = Some(tables::inbox::read_key(key).map(|known| known.receiver).map_err(|error| {
            tracing::error!(%error, "an inbox row cannot be read and is left as it is");
            key.to_vec()
        }));
        Ok(false)
    })?;
    Ok(found)
}

pub(super) fn due(
    rows: &dyn Rows,
    partition: u16,
    after: Option<&DueKey>,
    until: Timestamp,
    limit: usize,
) -> ReadResult<ReminderPage> {
    let from = match after {
        Some((due, id, slot)) => tables::key::behind(&tables::due::key(partition, *due, id, slot)),
        None => tables::due::first_key(partition, Timestamp::from_micros(i64::MIN)),
    };
    let to = Timestamp::from_micros(until.as_micros().saturating_add(1));
    let to = tables::due::first_key(partition, to);
    let (mut page, mut bytes) = (Page { rows: Vec::new(), is_end: true }, 0);
    rows.scan(Table::Due, &from, &to, Limit::rows(limit), &mut |key, value| {
        if page.rows.len() >= limit || bytes >= WORK_BYTES_MAX {
            page.is_end = false;
            return Ok(false);
        }
        match one_due(rows, partition, key, value == tables::due::HAS_ORIGIN) {
            Ok(reminder) => {
                bytes += key.len() + reminder.2.input.len();
                page.rows.push(reminder);
            }
            Err(ReadError::Damaged(error)) => {
                tracing::error!(%error, "a reminder cannot be read and is left as it is");
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    })?;
    Ok(page)
}

fn one_due(rows: &dyn Rows, partition: u16, key: &[u8], has_origin: bool) -> ReadResult<Reminder> {
    let (due, id, slot) = tables::due::read_key(key)?;
    let key = (partition, id, slot);
    let reminder: Option<ReminderRecord> = get(rows, &key)?;
    let mut reminder = reminder.ok_or_else(|| {
        Damaged(format!("the reminder of {} that is due at {due} is not there", key.1))
    })?;
    if has_origin {
        reminder.origin = origin(rows, &key)?;
    }
    let (_, id, slot) = key;
    Ok((id, slot, reminder))
}

/// One reminder or delayed signal, with its origin.
pub(super) fn reminder(
    rows: &dyn Rows,
    key: &(u16, EntityId, Slot),
) -> ReadResult<Option<ReminderRecord>> {
    let mut reminder: Option<ReminderRecord> = get(rows, key)?;
    if let (Some(record), (.., Slot::Delayed(_))) = (&mut reminder, key) {
        record.origin = origin(rows, key)?;
    }
    Ok(reminder)
}

/// The origin of a delayed signal. One that is damaged or missing counts as not known.
fn origin(rows: &dyn Rows, key: &(u16, EntityId, Slot)) -> ReadResult<Option<Arc<Origin>>> {
    match get(rows, key) {
        Err(ReadError::Damaged(error)) => {
            tracing::error!(entity = %key.1, %error, "an origin counts as not known");
            Ok(Some(Arc::default()))
        }
        found => Ok(found?.map(|StoredOrigin(origin)| origin)),
    }
}

pub(super) fn reminders(
    rows: &dyn Rows,
    partition: u16,
    id: &EntityId,
    after: Option<&Slot>,
    limit: usize,
) -> ReadResult<ReminderPage> {
    let prefix = tables::key::of_entity(partition, id);
    let to = tables::key::after(&prefix);
    let from = after
        .map_or(prefix, |slot| tables::key::behind(&tables::reminders::key(partition, id, slot)));
    let table = (Table::Reminders, "a reminder");
    let read = |key: &[u8], value: &[u8]| {
        let (id, slot) = tables::reminders::read_key(key)?;
        Ok(Some((id, slot, record::decode(value)?)))
    };
    let mut page = take(rows, table, (&from, &to), Limit::page(limit), read)?.0;
    if let Some((_, last @ Slot::Delayed(_), _)) = page.rows.last() {
        let to = tables::key::behind(&tables::reminders::key(partition, id, last));
        add_origins(rows, (&from, &to), &mut page)?;
    }
    Ok(page)
}

/// Adds the origins of the delayed signals of a page, whose keys are in a range. There may be more, which
/// programs left that do not know them.
fn add_origins(
    rows: &dyn Rows,
    (from, to): (&[u8], &[u8]),
    page: &mut ReminderPage,
) -> ReadResult<()> {
    let table = (Table::Origins, "an origin");
    let read = |key: &[u8], value: &[u8]| {
        let (_, slot) = tables::reminders::read_key(key)?;
        let StoredOrigin(origin) = record::decode(value)?;
        Ok(Some((slot, origin)))
    };
    let (found, _) = take(rows, table, (from, to), Limit::rows(usize::MAX), read)?;
    let mut found = found.rows.into_iter().peekable();
    for (_, slot, record) in &mut page.rows {
        while found.next_if(|(other, _)| other < slot).is_some() {}
        record.origin = found.next_if(|(other, _)| other == slot).map(|(_, origin)| origin);
    }
    Ok(())
}

pub(super) fn waiting(
    rows: &dyn Rows,
    partition: u16,
    entity_type: &str,
    except: &[String],
    limit: usize,
) -> ReadResult<Vec<Waiting>> {
    let mut from = partition.to_be_bytes().to_vec();
    from.extend(entity_type.as_bytes());
    from.push(b'/');
    let to = tables::key::after(&from);
    let (range, limit) = ((&from[..], &to[..]), Limit::page(limit));
    let meant = |id, operation, input, is_reminder| {
        let is_meant = !except.contains(&operation);
        Ok(is_meant.then_some(Waiting { id, operation, input, is_reminder }))
    };
    let (signals, _) = take(rows, (Table::Inbox, "an inbox row"), range, limit, |key, value| {
        let (key, record) = (tables::inbox::read_key(key)?, InboxRecord::decode(value)?);
        let InboxRecord { operation, input, .. } = record;
        let input = (!key.is_answer()).then_some(input);
        meant(key.receiver, operation, input, false)
    })?;
    let (reminders, _) =
        take(rows, (Table::Reminders, "a reminder"), range, limit, |key, value| {
            let ((id, _), record) = (tables::reminders::read_key(key)?, record::decode(value)?);
            let ReminderRecord { operation, input, .. } = record;
            meant(id, operation, Some(input), true)
        })?;
    Ok([signals.rows, reminders.rows].concat())
}

pub(super) fn list(
    rows: &dyn Rows,
    entity_type: &str,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> ReadResult<StatePage> {
    let (from, to) = tables::states::range(entity_type, prefix, after);
    let limit = Limit { heads_only: true, ..Limit::page(limit) };
    let read = |key: &[u8], value: &[u8]| {
        Ok(Some((tables::states::read_key(key)?, tables::states::read_head(value)?)))
    };
    Ok(take(rows, (Table::States, "a state"), (&from, &to), limit, read)?.0)
}

pub(super) fn dead_letters(
    rows: &dyn Rows,
    filter: &DeadLetterFilter,
    after: Option<DeadLetterId>,
    limit: usize,
) -> ReadResult<DeadLetterPage> {
    let from = after.map_or(Vec::new(), |id| tables::key::behind(&tables::dead_letters::key(id)));
    let to = [u8::MAX; 12];
    let table = (Table::DeadLetters, "a dead letter");
    let (page, last) = take(rows, table, (&from, &to), Limit::page(limit), |key, value| {
        let (id, letter) = (tables::dead_letters::read_key(key)?, record::decode(value)?);
        Ok(filter.fits(&letter).then_some((id, letter)))
    })?;
    let next = last
        .filter(|_| !page.is_end)
        .map(|key| tables::dead_letters::read_key(&key))
        .transpose()?;
    Ok(DeadLetterPage { rows: page.rows, next })
}

pub(super) fn dead_letter_heads(
    rows: &dyn Rows,
    partition: u16,
    after: Option<DeadLetterId>,
    limit: usize,
) -> ReadResult<DeadLetterHeads> {
    let from = match after {
        Some(id) => tables::key::behind(&tables::dead_letters::key(id)),
        None => partition.to_be_bytes().to_vec(),
    };
    let to = tables::key::after(&partition.to_be_bytes());
    let table = (Table::DeadLetters, "a dead letter");
    let read = |key: &[u8], value: &[u8]| {
        let (id, letter): (_, DeadLetter) =
            (tables::dead_letters::read_key(key)?, record::decode(value)?);
        let entity_type = letter.entity.split('/').next().unwrap_or_default().to_owned();
        let at = letter.dead_lettered_at;
        Ok(Some(DeadLetterHead { id, entity_type, at, bytes: value.len() }))
    };
    Ok(take(rows, table, (&from, &to), Limit::page(limit), read)?.0)
}

/// Hands out the rows of the table [`Table::Meta`] whose keys begin with `prefix`, by the rest of their
/// keys.
pub(super) fn each_meta(rows: &dyn Rows, prefix: &[u8], each: &mut EachRow<'_>) -> ReadResult<()> {
    let to = tables::key::after(prefix);
    rows.scan(Table::Meta, prefix, &to, Limit::rows(64), &mut |key, value| {
        each(&key[prefix.len()..], value)
    })
}

pub(super) fn layouts(rows: &dyn Rows, entity_type: &str) -> ReadResult<Vec<(u32, String)>> {
    let mut found = Vec::new();
    each_meta(rows, &tables::meta::layouts(entity_type), &mut |version, value| {
        let (_, version) =
            version.split_last_chunk::<4>().ok_or(Damaged("a layout's key".into()))?;
        found.push((u32::from_be_bytes(*version), record::decode(value)?));
        Ok(true)
    })?;
    Ok(found)
}

pub(super) fn operations(rows: &dyn Rows) -> ReadResult<OperationsByType> {
    let mut found = Vec::new();
    each_meta(rows, &tables::meta::operations(""), &mut |name, value| {
        let name = str::from_utf8(name).map_err(|_| Damaged("not UTF-8".into()))?;
        found.push((name.to_owned(), record::decode(value)?));
        Ok(true)
    })?;
    // Programs that stored no operations stored layouts.
    let layouts = tables::meta::layouts("");
    let prefix = layouts.split_last().map_or(&[][..], |(_, start)| start);
    each_meta(rows, prefix, &mut |rest, _| {
        let name = rest.split(|byte| *byte == b'/').next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        if !found.iter().any(|(known, _)| *known == name) {
            found.push((name, Vec::new()));
        }
        Ok(true)
    })?;
    Ok(found)
}
