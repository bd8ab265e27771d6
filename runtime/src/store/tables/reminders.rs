//! Reminders and delayed signals by entity, reminders first.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stead_entities::{Cron, EntityId, Missed, Origin, ReminderId, Schedule, Timeout, Timestamp};

#[cfg(any(test, feature = "testing"))]
use super::Sample;
use super::{
    Description, Lifetime, Record, Table,
    key::{Reader, of_entity},
};
#[cfg(any(test, feature = "testing"))]
use crate::store::Write;
use crate::{
    sabotage::Sabotage,
    store::record::{self, Damaged},
};

pub(super) const TABLE: Description = Description {
    name: "reminders",
    since: 1,
    lifetime: Lifetime::Short,
    written_at: None,
    check: |key, value| {
        read_key(key)?;
        record::decode::<ReminderRecord>(value).map(drop)
    },
    #[cfg(any(test, feature = "testing"))]
    samples,
};

/// Delayed signals with an origin: each write of one changes the three tables that keep parts of it.
#[cfg(any(test, feature = "testing"))]
pub(super) fn samples() -> Vec<Sample> {
    let sample = |number| {
        let (id, slot) = (EntityId::new("sample", "a").expect("valid"), Slot::Delayed(number));
        let due = Timestamp::from_micros(number as i64);
        let record = |attempts| ReminderRecord {
            due,
            number,
            schedule: None,
            operation: "ring".into(),
            input: b"1".to_vec(),
            token: 2,
            attempts,
            accepted_at: Timestamp::from_micros(-1),
            sender: "sample/b".into(),
            origin: Origin::new(Some(format!("caller {attempts}")), None).expect("valid"),
        };
        let put = |attempts| Write::Remind(3, id.clone(), slot.clone(), record(attempts));
        let end = Write::CancelReminder {
            partition: 3,
            id: id.clone(),
            slot: slot.clone(),
            due,
            has_origin: true,
        };
        Sample { put: put(0), put_again: put(1), end }
    };
    vec![sample(3), sample(300)]
}

/// Which durable wake-up of an entity this is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// A reminder, by name.
    Named(Arc<str>),
    /// A delayed signal, by acceptance number.
    Delayed(u64),
}

impl From<ReminderId> for Slot {
    fn from(id: ReminderId) -> Self {
        match id {
            ReminderId::Named(name) => Self::Named(name.into()),
            ReminderId::Delayed(number) => Self::Delayed(number),
        }
    }
}

impl From<Slot> for ReminderId {
    fn from(slot: Slot) -> Self {
        match slot {
            Slot::Named(name) => Self::Named(name.to_string()),
            Slot::Delayed(number) => Self::Delayed(number),
        }
    }
}

/// A reminder or a delayed signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReminderRecord {
    /// When it is due.
    pub due: Timestamp,
    /// Which setting of the name, and which occurrence, this is.
    pub number: u64,
    /// How it recurs; `None` for a delayed signal.
    pub schedule: Option<StoredSchedule>,
    /// The name of the operation.
    pub operation: String,
    /// Its argument as JSON.
    pub input: Vec<u8>,
    /// The operation's name for the outside world.
    pub token: u128,
    /// How often this occurrence was tried in vain.
    pub attempts: u32,
    /// When it was set.
    pub accepted_at: Timestamp,
    /// The sender of a delayed signal: an entity's id, or empty for callers outside.
    pub sender: String,
    /// The origin of a delayed signal. It is kept beside this, in the table of [`super::origins`].
    #[serde(skip)]
    pub origin: Option<Arc<Origin>>,
}

/// A [`Schedule`] as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoredSchedule {
    /// One occurrence.
    Once,
    /// One occurrence after another, at an interval in microseconds. What is missed is caught up once.
    Every(u64),
    /// The same, where what is missed is caught up in full, or left out.
    EveryMissed(u64, StoredMissed),
    /// A cron expression, a zone, and what becomes of what is missed.
    Cron(String, String, StoredMissed),
}

/// A [`Missed`] as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoredMissed {
    /// It is caught up once.
    Once,
    /// Each is caught up.
    All,
    /// It is left out.
    None,
}

impl From<Missed> for StoredMissed {
    fn from(missed: Missed) -> Self {
        match missed {
            Missed::Once => Self::Once,
            Missed::All => Self::All,
            Missed::None => Self::None,
        }
    }
}

impl From<StoredMissed> for Missed {
    fn from(missed: StoredMissed) -> Self {
        match missed {
            StoredMissed::Once => Self::Once,
            StoredMissed::All => Self::All,
            StoredMissed::None => Self::None,
        }
    }
}

impl From<&Schedule> for StoredSchedule {
    fn from(schedule: &Schedule) -> Self {
        match schedule {
            Schedule::After(_) | Schedule::At(_) => Self::Once,
            Schedule::Every(interval, missed) => {
                let micros = interval.as_duration().as_micros();
                let micros = u64::try_from(micros).unwrap_or(u64::MAX);
                match missed {
                    // As earlier programs read it.
                    Missed::Once => Self::Every(micros),
                    missed => Self::EveryMissed(micros, (*missed).into()),
                }
            }
            Schedule::Cron(cron) => {
                let (expression, zone, missed) = cron.parts();
                Self::Cron(expression.to_owned(), zone.to_owned(), missed.into())
            }
        }
    }
}

impl StoredSchedule {
    /// How it recurs; `None` where it does not.
    pub fn recurring(&self) -> Option<Schedule> {
        Some(match self {
            Self::Once => return None,
            Self::Every(micros) => {
                Schedule::Every(Timeout::from_micros(*micros), Missed::default())
            }
            Self::EveryMissed(micros, missed) => {
                Schedule::Every(Timeout::from_micros(*micros), (*missed).into())
            }
            Self::Cron(expression, zone, missed) => {
                Cron::new(expression, zone).missed((*missed).into()).into()
            }
        })
    }

    /// The occurrence after the one that was due at `due` and is settled at `now`.
    pub fn next(&self, due: Timestamp, now: Timestamp) -> Option<Timestamp> {
        if let Some(Schedule::Cron(cron)) = self.recurring()
            && Sabotage::CronTwiceInFold.is_on()
        {
            // An hour later by the same clock.
            let later = due + std::time::Duration::from_secs(3_600);
            let wall = |moment| cron.local(moment).map(|local| local[..16].to_owned());
            if wall(due) == wall(later) {
                return Some(later);
            }
        }
        self.recurring()?.next(due, now)
    }

    /// Whether an occurrence that was due at `due` is too late at `now`.
    pub fn is_missed(&self, due: Timestamp, now: Timestamp) -> bool {
        self.recurring().is_some_and(|schedule| schedule.is_missed(due, now))
    }
}

/// The key of a row.
pub fn key(partition: u16, id: &EntityId, slot: &Slot) -> Vec<u8> {
    let mut key = of_entity(partition, id);
    push_slot(&mut key, slot);
    key
}

/// Reads [`key`].
///
/// # Errors
/// Where the bytes are not such a key.
pub fn read_key(key: &[u8]) -> Result<(EntityId, Slot), Damaged> {
    let mut rest = Reader(key);
    let _partition = u16::from_be_bytes(rest.take()?);
    Ok((rest.id()?, read_slot(&mut rest)?))
}

pub(super) fn push_slot(key: &mut Vec<u8>, slot: &Slot) {
    match slot {
        Slot::Named(name) => {
            key.push(1);
            key.extend(name.as_bytes());
        }
        Slot::Delayed(number) => {
            key.push(2);
            key.extend(number.to_be_bytes());
        }
    }
}

pub(super) fn read_slot(rest: &mut Reader<'_>) -> Result<Slot, Damaged> {
    match rest.take()? {
        [1] => {
            let name = str::from_utf8(rest.0).map_err(|_| Damaged("not UTF-8".into()))?;
            Ok(Slot::Named(Arc::from(name)))
        }
        [2] => Ok(Slot::Delayed(u64::from_be_bytes(rest.take()?))),
        _ => Err(Damaged("an unknown kind of reminder".into())),
    }
}

impl Record for ReminderRecord {
    const TABLE: Table = Table::Reminders;
    type Key = (u16, EntityId, Slot);
    fn key(of: &Self::Key) -> Vec<u8> {
        let (partition, id, slot) = of;
        key(*partition, id, slot)
    }
}
