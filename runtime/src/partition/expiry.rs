//! Expiry: a turn by which an entity ends at or after a time that its turns have set.
//!
//! The time is kept as a reminder of the entity under a name that no author can use, and is put off as
//! reminders are. Where accepted work waits when it has come, in memory, on disk, for a retry or delayed, or
//! an ask has a timeout to come, the expiry is put off, durably: nothing that was accepted ends with the
//! entity, and the time that the work sets counts.

use std::time::Duration;

use stead_entities::{
    EntityId, Timeout, Timestamp, context::RUNTIME_NAMES, effect::Reminder, schedule::Schedule,
};

use super::{
    Partition,
    activations::WaitsForRead,
    envelope::{Envelope, Expire, Row},
    named::Standing,
};
use crate::{
    sabotage::Sabotage,
    store::{ReadResult, ReminderPage, tables::reminders::Slot},
};

/// The name of the reminder.
const EXPIRY: &str = "?expiry";
/// The operation that it names, which no entity has.
pub(crate) const EXPIRE: &str = "~expire";
/// How long an expiry is put off where work waits that is not for a later time.
const PAUSE: Duration = Duration::from_secs(1);

impl Partition {
    /// Sets when an entity expires, as its turn says, or else its type.
    pub(super) fn arm_expiry(&mut self, id: &EntityId, wanted: Option<Option<Timeout>>) {
        let of_type = self.environment.type_of(id).and_then(|known| known.policy().ttl);
        match (wanted, of_type) {
            (Some(Some(length)), _) | (None, Some(length)) => {
                let (name, schedule) = (EXPIRY.to_owned(), Schedule::After(length));
                let (operation, input) = (EXPIRE.into(), Vec::new());
                self.remind(id, Reminder { name, schedule, operation, input });
            }
            (Some(None), _) => drop(self.cancel_named(id, EXPIRY)),
            (None, None) => {}
        }
    }

    /// Begins the expiry of an entity whose time has come; says whether something is waited for.
    pub(super) fn run_expiry(&mut self, id: &EntityId, mut expire: Box<Expire>) -> bool {
        let standing = self.standing(id, &expire.occurrence);
        if !self.moment.has_room && standing != Standing::Gone {
            // What only reads goes before it meanwhile.
            expire.permit = None;
            let activation = self.activations.of(id);
            let is_alone = activation.waiting() == 0;
            activation.push(Envelope::Expire(expire));
            self.activations.retry(self.moment.now + PAUSE, id);
            return is_alone;
        }
        match standing {
            Standing::Gone => self.reminders.gone(id, &expire.occurrence),
            Standing::Moved(due) => self.put_off(id, &expire.occurrence, due, expire.permit),
            Standing::Current | Standing::Missed => match self.work_until(id) {
                Some(until) => self.put_off(id, &expire.occurrence, until, expire.permit),
                None => {
                    self.wait_for_read(id, WaitsForRead::Expire(expire));
                    return true;
                }
            },
        }
        false
    }

    /// Ends an entity, unless something is delayed for it, or came meanwhile.
    pub(super) fn expire(&mut self, id: &EntityId, expire: Expire, page: ReadResult<ReminderPage>) {
        let Expire { occurrence, permit } = expire;
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                tracing::error!(entity = %id, %error, "reminders cannot be read");
                let later = self.moment.now + PAUSE;
                return self.put_off(id, &occurrence, later, permit);
            }
        };
        let delayed = page.rows.iter().filter(|(_, slot, _)| matches!(slot, Slot::Delayed(_)));
        let delayed = delayed.map(|(_, _, record)| record.due.max(self.moment.now) + PAUSE).max();
        if let Some(until) = delayed.or(self.work_until(id))
            && !Sabotage::ExpiryWhileWorkWaits.is_on()
        {
            return self.put_off(id, &occurrence, until, permit);
        }
        tracing::debug!(entity = %id, "an entity expires");
        self.consume_row(id, &Row::Reminder(occurrence), 0, permit);
        self.end_generation(id, Vec::new());
    }

    /// Until when an entity has work that it knows of; `None` where it has none.
    fn work_until(&mut self, id: &EntityId) -> Option<Timestamp> {
        if Sabotage::ExpiryWhileWorkWaits.is_on() {
            return None;
        }
        let (now, has_backlog) = (self.moment.now, self.inbox.has_backlog(id));
        let is_rescanning = self.links.is_rescanning();
        let activation = self.activations.of(id);
        let asks = activation.live_mut().reminders().iter();
        let asks = asks.filter(|head| is_timeout(&head.name)).map(|head| head.due + PAUSE).max();
        let works =
            has_backlog || is_rescanning || activation.waiting() > 0 || activation.has_gathered();
        asks.or(works.then_some(now + PAUSE))
    }
}

/// Whether a reminder is the timeout of an ask.
fn is_timeout(name: &str) -> bool {
    name.strip_prefix(RUNTIME_NAMES).is_some_and(|number| number.parse::<u64>().is_ok())
}

impl Envelope {
    /// The expiry that a reminder brings about.
    pub(super) fn expire(occurrence: super::envelope::Occurrence) -> Self {
        Self::Expire(Box::new(Expire { occurrence, permit: None }))
    }
}
