//! The lists that a node shows of its store, page by page: entities, reminders, dead letters.
//!
//! Lists read the store whichever node is asked, show what is durable, and are admitted like other
//! requests: each takes room for a page of the node's limits while it is read.

use std::{str::FromStr as _, time::Duration};

use serde::Serialize;
use serde_json::value::RawValue;
use stead_entities::{
    Entity, EntityId, Error, ErrorKind, Missed, ReminderId, Schedule, Timeout, Timestamp, Version,
};

#[cfg(feature = "http")]
use super::committed::shown;
use super::{Inner, router::Command};
use crate::{
    admission::Permit,
    clock,
    partition::reply::StateView,
    store::{
        DeadLetterFilter, Haste, PAGE_BYTES_MAX, Reminder, TypedReads as _,
        tables::{
            dead_letters::{Cause, DeadLetter, DeadLetterId},
            reminders::{Slot, StoredSchedule},
            states::StateHead,
        },
    },
};

/// The most rows of a page.
pub(crate) const PAGE_ROWS_MAX: usize = 1_000;
/// How many letters of a filter are replayed or dropped at one time.
const LETTERS_AT_ONCE: usize = 64;
/// The wait before a bulk operation asks for room again.
pub(super) const ROOM_PAUSE: Duration = Duration::from_millis(50);

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listed<R> {
    /// The rows, in the order of the list.
    pub rows: Vec<R>,
    /// The value of `after` for the next page; none behind the last one.
    pub next: Option<String>,
}

/// An entity as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EntityView {
    /// The entity's type.
    #[serde(rename = "type")]
    pub entity_type: String,
    /// The entity's key.
    pub key: String,
    /// How many turns were committed.
    pub revision: u64,
    /// When the last of them was.
    pub committed_at: Timestamp,
}

impl EntityView {
    pub(super) fn new(id: &EntityId, head: &StateHead) -> Self {
        Self {
            entity_type: id.entity_type().to_owned(),
            key: id.key().to_owned(),
            revision: head.revision,
            committed_at: head.committed_at,
        }
    }
}

/// A state at a version.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot<E> {
    /// The state.
    pub state: E,
    /// Its version.
    pub version: Version,
    /// When it was committed.
    pub committed_at: Timestamp,
}

impl<E: Entity> Snapshot<E> {
    /// The state that a node shows, as its type.
    pub(super) fn new(view: StateView) -> Result<Self, Error> {
        let (version, committed_at) = (view.version(), view.committed_at);
        let state = serde_json::from_slice(&view.state).map_err(|error| {
            let message = "the state does not have the type that is expected";
            Error::new(ErrorKind::Internal, message).with_source(error)
        })?;
        Ok(Self { state, version, committed_at })
    }
}

/// A reminder or a delayed signal that is not yet applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReminderView {
    /// Its name in paths, also for cancelling it.
    #[serde(serialize_with = "as_text")]
    pub id: ReminderId,
    /// The name of a reminder; none for a delayed signal.
    pub name: Option<String>,
    /// Whether it is a delayed signal.
    pub is_delayed_signal: bool,
    /// When it is due.
    pub due: Timestamp,
    /// How often it recurs, if it does at an interval.
    pub every: Option<Timeout>,
    /// The cron expression and the time zone by which it recurs, if it does.
    pub cron: Option<CronView>,
    /// The fate of occurrences that are missed, if it recurs.
    pub missed: Option<Missed>,
    /// When it is due after that, if it recurs: the next five times.
    pub next: Vec<Timestamp>,
    /// The operation that it applies.
    pub operation: String,
    /// Its argument; a text where it is no JSON, `null` where it takes none.
    #[serde(serialize_with = "as_json")]
    pub input: Vec<u8>,
    /// How often it was tried in vain.
    pub attempts: u32,
}

/// A cron expression, its zone, and when it is due next as clocks there show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CronView {
    /// The expression.
    pub expression: String,
    /// The name of the zone.
    pub zone: String,
    /// The due time, in the form of RFC 9557.
    pub local: Option<String>,
}

/// How many occurrences of a recurring reminder are shown behind the next one.
const OCCURRENCES_SHOWN: usize = 5;

fn as_json<S: serde::Serializer>(input: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    if input.is_empty() {
        return serializer.serialize_none();
    }
    match serde_json::from_slice::<&RawValue>(input) {
        Ok(json) => json.serialize(serializer),
        Err(_) => String::from_utf8_lossy(input).serialize(serializer),
    }
}

fn as_text<S: serde::Serializer>(id: &ReminderId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

impl From<Reminder> for ReminderView {
    fn from((_, slot, record): Reminder) -> Self {
        let schedule = record.schedule.as_ref().and_then(StoredSchedule::recurring);
        let (every, cron, missed) = match &schedule {
            Some(Schedule::Every(interval, missed)) => (Some(*interval), None, Some(*missed)),
            Some(Schedule::Cron(cron)) => {
                let (expression, zone, missed) = cron.parts();
                let (expression, zone) = (expression.to_owned(), zone.to_owned());
                let local = cron.local(record.due);
                (None, Some(CronView { expression, zone, local }), Some(missed))
            }
            _ => (None, None, None),
        };
        let next = schedule.map(|it| it.upcoming(record.due, OCCURRENCES_SHOWN));
        let id = ReminderId::from(slot);
        let name = match &id {
            ReminderId::Named(name) => Some(name.clone()),
            ReminderId::Delayed(_) => None,
        };
        Self {
            id,
            is_delayed_signal: name.is_none(),
            name,
            due: record.due,
            every,
            cron,
            missed,
            next: next.unwrap_or_default(),
            operation: record.operation,
            input: record.input,
            attempts: record.attempts,
        }
    }
}

/// A dead letter: an operation that will not be tried again.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DeadLetterView {
    /// Its name in paths.
    pub id: String,
    /// The entity that it was for, as `type/key`.
    pub entity: String,
    /// The sender: an entity's id, `reminder NAME`, or nothing for a caller outside.
    pub sender: String,
    /// The operation.
    pub operation: String,
    /// Its argument; a text where it is no JSON.
    pub input: Box<RawValue>,
    /// Why it is dead.
    pub cause: Cause,
    /// The reason in words.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// When it died.
    pub dead_lettered_at: Timestamp,
}

impl DeadLetterView {
    fn new(id: DeadLetterId, letter: DeadLetter) -> Self {
        let input = serde_json::from_slice::<Box<RawValue>>(&letter.input);
        let input = input.or_else(|_| {
            serde_json::value::to_raw_value(&String::from_utf8_lossy(&letter.input).into_owned())
        });
        Self {
            id: id.to_string(),
            entity: letter.entity,
            sender: letter.sender,
            operation: letter.operation,
            input: input.unwrap_or_else(|_| RawValue::NULL.to_owned()),
            cause: letter.cause,
            reason: letter.reason,
            attempts: letter.attempts,
            accepted_at: letter.accepted_at,
            dead_lettered_at: letter.dead_lettered_at,
        }
    }
}

/// The outcome of replaying or dropping dead letters by a filter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BulkView {
    /// How many letters were replayed, or dropped.
    pub done: u64,
    /// How many could not be, and are still there.
    pub failed: u64,
    /// Why the first of those could not be.
    pub reason: Option<String>,
}

/// A page of the entities of a type.
pub(super) async fn entities(
    node: &Inner,
    entity_type: &str,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<Listed<EntityView>, Error> {
    node.local().check_served(entity_type)?;
    let _room = room_for_a_page(node)?;
    let (entity_type, prefix) = (entity_type.to_owned(), prefix.to_owned());
    let after = after.map(str::to_owned);
    let limit = limit.clamp(1, PAGE_ROWS_MAX);
    let page = node.host.store().list(entity_type, prefix, after, limit).await?;
    let next = page.last_before_more().map(|(id, _)| id.key().to_owned());
    let rows = page.rows.iter().map(|(id, head)| EntityView::new(id, head));
    Ok(Listed { rows: rows.collect(), next })
}

/// A page as that of [`entities`], with the states; fewer where they are large. One whose state cannot be read is left out,
/// and the log says so.
#[cfg(feature = "http")]
pub(super) async fn states(
    node: &Inner,
    entity_type: &str,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<Listed<(EntityView, StateView)>, Error> {
    let page = entities(node, entity_type, prefix, after, limit).await?;
    let _room = room_for_a_page(node)?;
    let (known, now) = (node.local().known_type(entity_type)?, node.host.clock().now());
    let (mut rows, mut bytes, mut next) = (Vec::with_capacity(page.rows.len()), 0, page.next);
    for row in page.rows {
        if bytes >= PAGE_BYTES_MAX {
            next = rows.last().map(|(row, _): &(EntityView, _)| row.key.clone());
            break;
        }
        let id = EntityId::new(entity_type, &row.key)?;
        let record = node.host.store().load(id.clone()).await;
        match shown(known, &id, record, now) {
            Ok(view) => {
                bytes += view.as_ref().map_or(0, |view| view.state.len());
                rows.extend(view.map(|view| (row, view)));
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::error!(%error, "an entity is left out of a list");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Listed { rows, next })
}

/// A page of the reminders and delayed signals of an entity.
pub(super) async fn reminders(
    node: &Inner,
    id: &EntityId,
    after: Option<&ReminderId>,
    limit: usize,
) -> Result<Listed<ReminderView>, Error> {
    node.local().check_served(id.entity_type())?;
    let _room = room_for_a_page(node)?;
    let after = after.cloned().map(Slot::from);
    let (partition, limit) = (node.host.partition_of(id), limit.clamp(1, PAGE_ROWS_MAX));
    let store = node.host.store();
    let mut page = store.reminders(Haste::Long, partition, id.clone(), after, limit).await?;
    let next = page.last_before_more();
    let next = next.map(|(_, slot, _)| ReminderId::from(slot.clone()).to_string());
    if page.rows.iter().any(|(_, slot, _)| matches!(slot, Slot::Named(_))) {
        // The row of a reminder that was put off stays at the earlier time.
        let state = store.load(id.clone()).await;
        let heads = state.ok().flatten().map_or_else(Vec::new, |state| state.reminders);
        for (_, _, record) in &mut page.rows {
            let head = heads.iter().find(|head| head.number == record.number);
            record.due = head.map_or(record.due, |head| head.due);
        }
    }
    Ok(Listed { rows: page.rows.into_iter().map(ReminderView::from).collect(), next })
}

/// A page of the dead letters that fit a filter.
pub(super) async fn dead_letters(
    node: &Inner,
    filter: &DeadLetterFilter,
    after: Option<&str>,
    limit: usize,
) -> Result<Listed<DeadLetterView>, Error> {
    let _room = room_for_a_page(node)?;
    let after = after.map(DeadLetterId::from_str).transpose()?;
    let limit = limit.clamp(1, PAGE_ROWS_MAX);
    let page = node.host.store().dead_letters(filter.clone(), after, limit).await?;
    let next = page.next.map(|next| next.to_string());
    let rows = page.rows.into_iter().map(|(id, letter)| DeadLetterView::new(id, letter));
    Ok(Listed { rows: rows.collect(), next })
}

/// Does something with every dead letter that fits a filter and was there when this began.
pub(super) async fn each_letter(
    node: &Inner,
    filter: &DeadLetterFilter,
    command: fn(DeadLetterId) -> Command,
) -> Result<BulkView, Error> {
    let (mut after, mut done) = (None, BulkView::default());
    let began = node.host.clock().now();
    loop {
        let room = match room_for_a_page(node) {
            Ok(room) => room,
            Err(error) if done == BulkView::default() => return Err(error),
            // What was begun goes on when there is room.
            Err(_) => {
                clock::sleep(ROOM_PAUSE).await;
                continue;
            }
        };
        let reading = node.host.store().dead_letters(filter.clone(), after, LETTERS_AT_ONCE);
        let page = match reading.await {
            Ok(page) => page,
            // What was done is told.
            Err(error) if done != BulkView::default() => {
                done.reason.get_or_insert_with(|| error.to_string());
                return Ok(done);
            }
            Err(error) => return Err(error.into()),
        };
        drop(room);
        for (id, letter) in page.rows {
            // One that was replayed in vain is a new letter, and not tried again.
            if letter.dead_lettered_at > began {
                continue;
            }
            match node.router.perform(command(id)).await {
                Ok(_) => done.done += 1,
                Err(error) => {
                    done.failed += 1;
                    done.reason.get_or_insert_with(|| error.to_string());
                }
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(done),
        }
    }
}

/// Room for a page in the node's limits, given back when the page is read.
pub(super) fn room_for_a_page(node: &Inner) -> Result<Permit, Error> {
    let share = PAGE_BYTES_MAX.min(node.host.config().request_bytes_max);
    node.local().admit(share)
}
