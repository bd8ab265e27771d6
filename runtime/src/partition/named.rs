//! An entity's named reminders: set, moved, cancelled, and put right where one fires before its time.
//!
//! A reminder that is set again under its name, with the same operation and argument and for a later time,
//! as a turn does that puts a timeout off, writes no row: its entity's state, which the turn writes anyway,
//! says when it is due, and its row stays at the earlier time. When that has come the row follows, once.
//!
//! What must never happen: a reminder causes a turn before its time, or at a time that it was moved away
//! from.

use std::sync::Arc;

use stead_entities::{EntityId, Timestamp, effect::Reminder, schedule::Schedule};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Partition,
    envelope::{Occurrence, Row, Undeliverable},
    write_group::Release,
};
use crate::{
    sabotage::Sabotage,
    store::tables::{
        reminders::{ReminderRecord, Slot, StoredSchedule},
        states::ReminderHead,
    },
};

/// The standing of an occurrence of a reminder whose turn has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Current,
    /// It was cancelled, or set again, since it fired.
    Gone,
    /// It was moved to this time.
    Moved(Timestamp),
    /// It is too late for a turn, which its schedule does not want to be caught up.
    Missed,
}

impl Partition {
    pub(super) fn remind(&mut self, id: &EntityId, reminder: Reminder) {
        let now = self.moment.now;
        // The turn was refused where there is none.
        let Ok(due) = reminder.schedule.first(now) else { return };
        let content = match reminder.schedule {
            Schedule::After(_) | Schedule::At(_) => {
                let parts = [reminder.operation.as_bytes(), &reminder.input[..]];
                Some(self.environment.fingerprint(&parts))
            }
            Schedule::Every(..) | Schedule::Cron(_) => None,
        };
        if self.activations.of(id).live_mut().move_reminder(&reminder.name, due, content) {
            return self.write_state_of(id);
        }
        self.cancel_named(id, &reminder.name);
        let number = self.environment.mint(now);
        let head = ReminderHead { content, ..ReminderHead::new(&reminder.name, due, number) };
        let record = ReminderRecord {
            due,
            number,
            schedule: Some(StoredSchedule::from(&reminder.schedule)),
            operation: reminder.operation.into_owned(),
            input: reminder.input,
            token: self.environment.token(),
            attempts: 0,
            accepted_at: now,
            sender: String::new(),
            origin: None,
        };
        self.replace_reminder(id, &reminder.name, Some(head));
        self.set_reminder(id, Slot::Named(reminder.name.into()), record);
    }

    /// Sets or removes what an entity remembers of a reminder of this name; it is written with its
    /// state, also where nothing else of that changes.
    pub(super) fn replace_reminder(
        &mut self,
        id: &EntityId,
        name: &str,
        head: Option<ReminderHead>,
    ) {
        self.activations.of(id).live_mut().replace_reminder(name, head);
        self.write_state_of(id);
    }

    /// Takes a named reminder off the disk, if it is set.
    pub(super) fn cancel_named(&mut self, id: &EntityId, name: &str) -> bool {
        let heads = self.activations.of(id).live_mut().reminders();
        let head = heads.iter().find(|head| head.name == name);
        let Some(due) = head.map(ReminderHead::row_due) else {
            return false;
        };
        self.remove_reminder(id, &Slot::Named(name.into()), due, false);
        self.replace_reminder(id, name, None);
        true
    }

    /// The standing of an occurrence whose turn has come; a delayed signal is current.
    pub(super) fn standing(&mut self, id: &EntityId, occurrence: &Occurrence) -> Standing {
        let Occurrence { slot: Slot::Named(name), due, number, .. } = occurrence else {
            return Standing::Current;
        };
        let live = self.activations.of(id).live_mut();
        let known = live.reminders().iter().find(|head| head.number == *number);
        let is_set_under_its_name = Sabotage::CancelByNameOnly.is_on()
            && live.reminders().iter().any(|head| *head.name == **name);
        match known {
            Some(head) if head.due > *due && !Sabotage::MovedReminderFires.is_on() => {
                Standing::Moved(head.due)
            }
            Some(_) if self.reminders.is_missed(id, occurrence, self.moment.now) => {
                Standing::Missed
            }
            Some(_) => Standing::Current,
            None if is_set_under_its_name => Standing::Current,
            None => Standing::Gone,
        }
    }

    /// Ends a reminder or delayed signal that cannot run as a dead letter, unless it was put off, cancelled or
    /// set again since it fired.
    pub(super) fn end_undeliverable(&mut self, id: &EntityId, undeliverable: Undeliverable) {
        let Undeliverable { occurrence, letter, permit } = undeliverable;
        match self.standing(id, &occurrence) {
            Standing::Gone => self.reminders.gone(id, &occurrence),
            Standing::Moved(due) => self.put_off(id, &occurrence, due, permit),
            Standing::Current | Standing::Missed => {
                let row = Row::Reminder(occurrence);
                self.consume_row(id, &row, letter.input.len(), permit);
                self.keep_letter(id, letter);
            }
        }
    }

    /// Puts an occurrence that fired off to a later time: its row follows.
    pub(super) fn put_off(
        &mut self,
        id: &EntityId,
        occurrence: &Occurrence,
        due: Timestamp,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let Slot::Named(name) = &occurrence.slot else { return };
        self.group.hold(permit);
        self.attempts.forget(id, &Row::Reminder(occurrence.clone()));
        let record = self.reminders.consume(id, occurrence);
        let heads = self.activations.of(id).live_mut().reminders();
        let content = heads.iter().find(|head| *head.name == **name).and_then(|head| head.content);
        self.remove_reminder(id, &occurrence.slot, occurrence.due, false);
        self.group.after_open(Release::Fired(id.clone(), occurrence.clone()));
        let (number, name) = (self.environment.mint(self.moment.now), Arc::clone(name));
        let head = ReminderHead { content, ..ReminderHead::new(&*name, due, number) };
        self.replace_reminder(id, &name, Some(head));
        let record = ReminderRecord { due, number, attempts: 0, ..record };
        self.set_reminder(id, Slot::Named(name), record);
    }
}
