//! The end of an entity's generation, and of its reminders.
//!
//! A deletion is a turn. What is delayed for the generation becomes dead letters: what fits into one
//! page in the same commit, the rest behind it, a page at a time, with the entity's other operations
//! between. The rest is remembered by an inbox row of its own, so that it goes on after a restart, and
//! what becomes due meanwhile does not run.

use stead_entities::{EntityId, Error, ErrorKind, Timestamp};

use super::{
    Partition, READ_PAUSE,
    activations::WaitsForRead,
    envelope::{Cancel, Delete, Envelope, Letter, Occurrence, Purge, Row},
    idempotency::IdempotencyKeys,
    intake::{DELETED, PURGE},
    message::Output,
    reply::Response,
    turn::{self, guarded},
    write_group::Release,
};
use crate::{
    sabotage::Sabotage,
    store::{
        ReadResult, ReminderPage, Write,
        tables::{
            dead_letters::Cause,
            idempotency::Remembered,
            inbox::InboxRecord,
            reminders::{ReminderRecord, Slot},
            states::Ended,
        },
    },
};

/// The delayed signals of a generation that ends.
#[derive(Debug, Default)]
pub(super) struct Delayed {
    /// Those that become dead letters in the commit of the deletion.
    rows: Vec<(Slot, ReminderRecord)>,
    /// The slot behind which the others begin, which do so behind it, page by page.
    rest: Option<Slot>,
}

impl Partition {
    /// Busies an entity with something that waits for a read of its reminders, or of entries.
    pub(super) fn wait_for_read(&mut self, id: &EntityId, waits: WaitsForRead) {
        self.activations.of(id).wait_for_read(waits);
        self.ask_for_read(id);
    }

    /// Asks for the rows that something waits for, once the store shows everything that was accepted for the
    /// entity.
    pub(super) fn ask_for_read(&mut self, id: &EntityId) {
        let unreleased = self.unreleased(id);
        if unreleased > self.group.released() && !self.reads_early(id) {
            return self.group.resume_after(unreleased, id);
        }
        let activation = self.activations.of(id);
        let generation = activation.live_mut().version().map_or(0, |version| version.generation);
        let Some(waits) = activation.ask_for_read() else { return };
        self.outputs.push(match waits {
            WaitsForRead::Cancel(cancel) => Output::Reminder(id.clone(), cancel.slot.clone()),
            WaitsForRead::Purge(purge) => Output::Reminders(id.clone(), purge.after.clone()),
            WaitsForRead::Entries(lacking) => {
                Output::Entries(id.clone(), generation, lacking.miss.clone())
            }
            WaitsForRead::Delete(_) | WaitsForRead::Turn(..) | WaitsForRead::Expire(_) => {
                Output::Reminders(id.clone(), None)
            }
        });
    }

    /// Picks the delayed signals of a generation that ends now from a page of reminders.
    pub(super) fn delayed(
        &self,
        id: &EntityId,
        page: ReminderPage,
        accepted_at: Timestamp,
    ) -> Delayed {
        let rest = page.last_before_more().map(|(_, slot, _)| slot.clone());
        let rows = page.rows.into_iter().filter(|(_, slot, record)| {
            matches!(slot, Slot::Delayed(_)) && record.accepted_at <= accepted_at
        });
        let rows: Vec<_> = rows.map(|(_, slot, record)| (slot, record)).collect();
        if !rows.is_empty() {
            let (removed, more) = (rows.len(), rest.is_some());
            tracing::info!(entity = %id, removed, more, "delayed signals end with their entity");
        }
        Delayed { rows, rest }
    }

    /// Deletes an entity, as a caller outside asked for it.
    pub(super) fn delete(&mut self, id: &EntityId, delete: Delete, delayed: Delayed) {
        let Delayed { rows, rest } = delayed;
        self.begin_purge(id, delete.accepted_at, rest);
        self.end_generation(id, rows);
        let (now, key) = (self.moment.now, delete.key.as_ref());
        IdempotencyKeys::remember(key, Remembered::Accepted, now, &mut self.group);
        self.answer(id, delete.reply_to, Ok(Response::Done));
    }

    /// The first part of a deletion by a turn, before the turn's own effects: what it sends itself is
    /// for its next generation. Returns what [`Partition::end_generation`] ends.
    pub(super) fn begin_deletion(
        &mut self,
        id: &EntityId,
        accepted_at: Timestamp,
        delayed: Delayed,
    ) -> Vec<(Slot, ReminderRecord)> {
        self.begin_purge(id, accepted_at, delayed.rest);
        delayed.rows
    }

    /// Accepts the rest of a deletion, if there is more than a page of delayed signals.
    fn begin_purge(&mut self, id: &EntityId, accepted_at: Timestamp, rest: Option<Slot>) {
        if rest.is_none() {
            return;
        }
        let row = self.new_row(id);
        let token = self.environment.token();
        let record = InboxRecord::signal(token, PURGE.to_owned(), Vec::new(), accepted_at);
        self.inbox.take_in(row.clone(), 0);
        self.group.write(Write::Accept(row.clone(), record));
        self.reminders.purge(id, &row, accepted_at);
        let purge = Purge { row, after: rest, permit: None };
        self.activations.of(id).push(Envelope::Purge(Box::new(purge)));
    }

    /// Ends the generation of an entity. What was delayed, or waited for a retry, ends with it; what
    /// waits behind applies to the next generation.
    pub(super) fn end_generation(&mut self, id: &EntityId, delayed: Vec<(Slot, ReminderRecord)>) {
        let known = self.environment.served(id);
        let at = (self.moment.now, 0);
        let initial = guarded(|| {
            let mut state = known.initial_state();
            turn::activate(&*known, id, &mut state, at);
            state
        });
        let group = self.group.number();
        let activation = self.activations.of(id);
        activation.hold_until(group);
        let retries = activation.take_retries();
        let live = activation.live_mut();
        let (existed, is_unwritten) = (live.version().is_some(), live.is_unwritten());
        let (indexed, entries) = (live.indexed().clone(), live.rows());
        let heads = match initial {
            Ok(initial) => live.end_generation(initial),
            Err(_) => {
                let heads = live.reminders().to_vec();
                let error = format!("{id}: its first state cannot be made");
                let _nothing_runs = activation.make_unusable(Error::new(ErrorKind::Corrupt, error));
                heads
            }
        };
        if is_unwritten {
            self.group.forget_state_of(id);
        }
        if existed {
            let indexed =
                if Sabotage::IndexOutlivesState.is_on() { Default::default() } else { indexed };
            let entries = entries.filter(|_| !Sabotage::EntriesOutliveState.is_on());
            self.group.write(Write::DeleteState(id.clone(), Ended { indexed, entries }));
            self.activations.count_held(id);
        }
        for head in heads {
            let due = head.row_due();
            self.remove_reminder(id, &Slot::Named(head.name.into()), due, false);
        }
        self.dead_letter_delayed(id, delayed);
        for operation in retries {
            self.dead_letter(id, operation, Cause::Deleted, DELETED);
        }
        // Answers of which some are missing are the deleted generation's: their turn finds it gone.
        let activation = self.activations.of(id);
        activation.put_back_gathered();
        // Its lock has ended with it.
        activation.unpark();
    }

    /// Turns delayed signals into dead letters; those that are in their entity's order already go on.
    fn dead_letter_delayed(&mut self, id: &EntityId, delayed: Vec<(Slot, ReminderRecord)>) {
        for (slot, record) in delayed {
            if self.reminders.has_fired(id, &slot, record.number) {
                continue;
            }
            self.reminders.withdraw(id, &slot, &record);
            let occurrence = Occurrence::new(slot.clone(), &record);
            self.consume_row(id, &Row::Reminder(occurrence), record.input.len(), None);
            let letter = Letter::of_reminder(slot, record, Cause::Deleted, DELETED);
            self.keep_letter(id, letter);
        }
    }

    /// A page of the rest of a deletion.
    pub(super) fn purge_page(&mut self, id: &EntityId, mut purge: Box<Purge>, page: ReminderPage) {
        let rest = page.last_before_more().map(|(_, slot, _)| slot.clone());
        let partition = self.environment.number();
        let ended = |(slot, record): &(Slot, ReminderRecord)| {
            self.reminders.is_purged(partition, id, slot, record.accepted_at)
        };
        let rows = page.rows.into_iter().map(|(_, slot, record)| (slot, record));
        let ended: Vec<_> = rows.filter(ended).collect();
        let removed = self.reminders.count_purged(id, ended.len());
        self.dead_letter_delayed(id, ended);
        let group = self.group.number();
        self.activations.of(id).hold_until(group);
        if rest.is_none() {
            self.consume_row(id, &Row::Inbox(purge.row), 0, purge.permit);
            return tracing::info!(entity = %id, removed, "what was delayed for a deleted entity is gone");
        }
        purge.after = rest;
        // Behind whatever else the entity has to do.
        self.activations.of(id).push(Envelope::Purge(purge));
    }

    /// Tries a page of the rest of a deletion again, after it could not be read.
    pub(super) fn retry_purge(&mut self, id: &EntityId, purge: Box<Purge>) {
        self.activations.of(id).put_back(Envelope::Purge(purge));
        self.activations.retry(self.moment.now + READ_PAUSE, id);
    }

    /// Cancels a reminder or delayed signal, or waits for what the store has of it.
    pub(super) fn cancel(&mut self, id: &EntityId, cancel: Box<Cancel>) {
        if let Slot::Named(name) = &cancel.slot {
            let was_set = self.cancel_named(id, name);
            self.end_cancel(id, *cancel, was_set);
        } else if self.cancel_waiting(id, &cancel.slot) {
            self.end_cancel(id, *cancel, true);
        } else {
            self.wait_for_read(id, WaitsForRead::Cancel(cancel));
        }
    }

    /// Takes a delayed signal that is due, and waits for its turn or its retry, out of its entity's
    /// order.
    fn cancel_waiting(&mut self, id: &EntityId, slot: &Slot) -> bool {
        match self.activations.of(id).take_delayed(slot) {
            Some(Envelope::Operation(mut operation)) => self.consume(id, &mut operation),
            Some(Envelope::Undeliverable(it)) => {
                let row = Row::Reminder(it.occurrence);
                self.consume_row(id, &row, it.letter.input.len(), it.permit);
            }
            Some(_) | None => return false,
        }
        true
    }

    /// Takes what is stored of a delayed signal that is to be cancelled.
    pub(super) fn cancel_stored(
        &mut self,
        id: &EntityId,
        cancel: Cancel,
        found: ReadResult<Option<ReminderRecord>>,
    ) {
        let slot = &cancel.slot;
        match found {
            Err(error) => self.answer(id, cancel.reply_to, Err(unreadable(&error))),
            // It became due meanwhile, and waits behind this.
            Ok(_) if self.cancel_waiting(id, slot) => self.end_cancel(id, cancel, true),
            Ok(Some(record)) if !self.reminders.has_fired(id, slot, record.number) => {
                self.reminders.withdraw(id, slot, &record);
                self.remove_reminder(id, slot, record.due, record.origin.is_some());
                let occurrence = Occurrence::new(slot.clone(), &record);
                self.group.after_open(Release::Fired(id.clone(), occurrence));
                self.end_cancel(id, cancel, true);
            }
            Ok(_) => self.end_cancel(id, cancel, false),
        }
    }

    fn end_cancel(&mut self, id: &EntityId, cancel: Cancel, was_set: bool) {
        let group = self.group.number();
        if was_set {
            self.activations.of(id).hold_until(group);
        }
        let message = "there is no such reminder: it was applied, cancelled or never set";
        let result = was_set.then_some(Response::Done);
        let result = result.ok_or_else(|| Error::new(ErrorKind::NotFound, message));
        self.answer(id, cancel.reply_to, result);
    }
}

/// The error where reminders cannot be read.
pub(super) fn unreadable(error: &crate::store::ReadError) -> Error {
    Error::new(ErrorKind::Unavailable, format!("reminders cannot be read: {error}"))
}
