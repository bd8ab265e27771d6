//! What a turn leaves behind: its state and effects in the open write group, or nothing but an attempt.

use std::sync::Arc;

use stead_entities::{
    EntityId, Error, ErrorKind, Rejection,
    context::Effects,
    effect::{Effect, Reminder, Signal, check_reminders},
};

use super::{
    Item, Partition, Release, Row,
    message::{Delivery, Work},
    reply::Response,
    turn::{Turned, guarded},
};
use crate::{
    map::Set,
    sabotage,
    store::{
        Write,
        record::{
            Cause, InboxKey, InboxRecord, Remembered, ReminderHead, ReminderRecord, Slot,
            StoredSchedule,
        },
    },
    types::State,
};

impl Partition {
    pub(super) fn settle_turn(&mut self, id: &EntityId, item: Item, turned: Turned) {
        match self.within_limits(id, turned) {
            Turned::Applied { state, encoded, effects, json } => {
                self.apply(id, item, state, encoded, effects, json);
            }
            Turned::Rejected(rejection) => self.reject(id, item, rejection),
            Turned::Undecodable(error) if item.is_signal() => {
                self.accepted_late(&item);
                self.dead_letter(id, item, Cause::Undecodable, &error.to_string());
            }
            Turned::Undecodable(error) => {
                self.refuse(item, Error::new(ErrorKind::Invalid, error.to_string()));
            }
            Turned::Failed(error) => self.fail(id, item, error),
        }
    }

    /// A turn that would leave its entity with too many reminders fails.
    fn within_limits(&self, id: &EntityId, turned: Turned) -> Turned {
        let Turned::Applied { effects, .. } = &turned else {
            return turned;
        };
        if let Err(error) = self.check_reminders(id, effects) {
            return Turned::Failed(error);
        }
        let heads = self.table.get(id).map_or(&[][..], |entry| &entry.reminders);
        let mut names: Set<&str> = Set::default();
        for effect in &effects.list {
            if let Effect::Remind(reminder) = effect
                && !heads.iter().any(|head| head.name == reminder.name)
            {
                names.insert(&reminder.name);
            }
        }
        let limit = self.environment.config.reminders_max;
        if names.is_empty() || heads.len() + names.len() <= limit {
            return turned;
        }
        let message = format!("an entity has at most {limit} reminders");
        Turned::Failed(Error::new(ErrorKind::Invalid, message))
    }

    /// A reminder names an operation that its entity has, with an argument that fits: what it would
    /// do when it is due must not be found out then.
    fn check_reminders(&self, id: &EntityId, effects: &Effects) -> Result<(), Error> {
        check_reminders(&effects.list, |operation, input| {
            let work = self.work_of(id, operation)?;
            if let (Work::Operation { index, .. }, Some(known)) = (work, self.type_of(id)) {
                known.check(index, input).map_err(|error| error.to_string())?;
            }
            Ok(())
        })
    }

    fn apply(
        &mut self,
        id: &EntityId,
        mut item: Item,
        state: State,
        encoded: Vec<u8>,
        effects: Effects,
        json: Vec<u8>,
    ) {
        let number = self.open_number();
        let generation = self.table.get(id).map_or(0, |entry| entry.generation);
        let generation = if generation == 0 { self.mint() } else { generation };
        let now = self.now;
        let Some(activation) = self.table.get_mut(id) else {
            return;
        };
        if activation.encoded.is_none() {
            self.dirty.push(id.clone());
        }
        activation.state = Some(state);
        activation.encoded = Some(encoded);
        activation.generation = generation;
        activation.revision += 1;
        activation.committed_at = activation.committed_at.max(now);
        activation.unreleased = number;
        let revision = activation.revision;
        self.consume(id, &mut item);
        if effects.deleted {
            // Before its own effects: what it sends itself is for its next incarnation.
            self.begin_purge(id, &mut item);
        }
        for (index, effect) in (0_u32..).zip(effects.list) {
            match effect {
                Effect::Signal(signal) => self.send(id, (generation, revision, index), signal),
                Effect::Remind(reminder) => self.remind(id, reminder),
                Effect::CancelReminder(name) => self.cancel(id, &name),
            }
        }
        if effects.deleted {
            self.delete_entity(id, item.delayed.take().unwrap_or_default());
        }
        self.conclude(item, Ok(json));
    }

    /// Tells how an operation came out, once the open write group is durable.
    fn conclude(&mut self, mut item: Item, result: Result<Vec<u8>, Rejection>) {
        self.drop_replayed(&mut item);
        let (remembered, answer) = match result {
            _ if !item.is_call => (Remembered::Accepted, Response::Done),
            Ok(json) => (Remembered::Replied(json.clone()), Response::Replied(json)),
            Err(no) => (Remembered::Rejected(no.reason().to_owned()), Response::Rejected(no)),
        };
        self.remember(&item, remembered);
        if let Some(reply_to) = item.reply_to {
            if sabotage::is("X2") {
                reply_to.answer(Ok(answer));
            } else {
                self.open.replies.push((reply_to, Ok(answer)));
            }
        }
    }

    /// Takes an applied operation off the disk.
    pub(super) fn consume(&mut self, id: &EntityId, item: &mut Item) {
        self.open.permits.extend(item.permit.take());
        if item.row != Row::None {
            // Until that is durable the store still shows it.
            let number = self.open_number();
            if let Some(activation) = self.table.get_mut(id) {
                activation.unreleased = number;
            }
        }
        match &item.row {
            Row::None => {}
            Row::Inbox(key) => {
                self.open.writes.push(Write::Consume(key.clone()));
                self.held_bytes = self.held_bytes.saturating_sub(item.input.len());
                self.counted.remove(&(id.clone(), item.row.clone()));
                self.after_open(Release::Row(key.clone()));
            }
            Row::Reminder(slot, due, number) => {
                self.counted.remove(&(id.clone(), item.row.clone()));
                self.consume_reminder(id, slot, *due, *number);
            }
        }
    }

    fn consume_reminder(
        &mut self,
        id: &EntityId,
        slot: &Slot,
        due: stead_entities::Timestamp,
        number: u64,
    ) {
        let partition = self.environment.number;
        self.open.writes.push(Write::CancelReminder(partition, id.clone(), slot.clone(), due));
        self.after_open(Release::Fired(id.clone(), slot.clone(), number));
        let Some(record) = self.due.fired(id, slot, number) else {
            return;
        };
        let Slot::Named(name) = slot else { return };
        let heads = self.table.get(id).map_or(&[][..], |entry| &entry.reminders);
        if !heads.iter().any(|head| head.number == number) {
            // It was cancelled, or its entity deleted, while it waited for a retry.
            return;
        }
        let next = record.schedule.and_then(|schedule| schedule.next(due, self.now));
        let head =
            next.map(|due| ReminderHead { name: name.to_string(), due, number: self.mint() });
        self.replace_head(id, name, head.clone());
        if let Some(head) = head {
            let next = ReminderRecord { due: head.due, number: head.number, attempts: 0, ..record };
            self.set_reminder(id, slot.clone(), next);
        }
    }

    fn replace_head(&mut self, id: &EntityId, name: &str, head: Option<ReminderHead>) {
        let number = self.open_number();
        let Some(activation) = self.table.get_mut(id) else {
            return;
        };
        activation.reminders.retain(|known| known.name != name);
        activation.reminders.extend(head);
        if activation.encoded.is_none()
            && activation.generation > 0
            && let Some(state) = &activation.state
            && let Ok(Ok(encoded)) = guarded(|| state.encode())
        {
            // Nothing but the list changed: the same state is written again, with the list.
            activation.encoded = Some(encoded);
            activation.unreleased = number;
            self.dirty.push(id.clone());
        }
    }

    fn send(&mut self, from: &EntityId, place: (u64, u64, u32), signal: Signal) {
        let partition = self.environment.settings.partition_of(&signal.target);
        let token = self.environment.entropy.next_wide();
        let operation = signal.operation.into_owned();
        if let Some(delay) = signal.delay {
            let number = self.mint();
            let record = ReminderRecord {
                due: delay.due(self.now),
                number,
                schedule: None,
                operation,
                input: signal.input,
                token,
                attempts: 0,
                accepted_at: self.now,
                sender: from.to_string(),
            };
            let slot = Slot::Delayed(number);
            let row = Write::Remind(partition, signal.target.clone(), slot.clone(), record.clone());
            self.open.writes.push(row);
            let delivery = Delivery::Delayed(signal.target, slot, record);
            return self.open.deliveries.push((partition, delivery));
        }
        let (generation, revision, index) = place;
        let key = InboxKey {
            partition,
            receiver: signal.target,
            sender: Arc::from(from.as_str()),
            generation,
            revision,
            index,
        };
        let record = InboxRecord {
            token,
            operation,
            input: signal.input,
            is_call: false,
            attempts: 0,
            accepted_at: self.now,
            deadline: None,
            idempotency: None,
            trace: None,
        };
        if !sabotage::is("X3") {
            self.open.writes.push(Write::Accept(key.clone(), record.clone()));
        }
        self.open.deliveries.push((partition, Delivery::Signal(key, record)));
    }

    fn remind(&mut self, id: &EntityId, reminder: Reminder) {
        self.cancel(id, &reminder.name);
        let head = ReminderHead {
            name: reminder.name.clone(),
            due: reminder.schedule.first(self.now),
            number: self.mint(),
        };
        let record = ReminderRecord {
            due: head.due,
            number: head.number,
            schedule: Some(StoredSchedule::from(reminder.schedule)),
            operation: reminder.operation.into_owned(),
            input: reminder.input,
            token: self.environment.entropy.next_wide(),
            attempts: 0,
            accepted_at: self.now,
            sender: String::new(),
        };
        self.replace_head(id, &reminder.name, Some(head));
        self.set_reminder(id, Slot::Named(reminder.name.into()), record);
    }

    /// Takes a named reminder off the disk, if it is set.
    pub(super) fn cancel(&mut self, id: &EntityId, name: &str) {
        let Some(activation) = self.table.get(id) else {
            return;
        };
        let head = activation.reminders.iter().find(|head| head.name == name).cloned();
        if let Some(head) = head {
            let slot = Slot::Named(name.into());
            let partition = self.environment.number;
            self.open.writes.push(Write::CancelReminder(partition, id.clone(), slot, head.due));
            self.replace_head(id, name, None);
        }
    }

    /// Writes a reminder and watches its due time.
    pub(super) fn set_reminder(&mut self, id: &EntityId, slot: Slot, record: ReminderRecord) {
        let (partition, number) = (self.environment.number, self.open_number());
        let row = Write::Remind(partition, id.clone(), slot.clone(), record.clone());
        self.open.writes.push(row);
        if matches!(slot, Slot::Delayed(_))
            && let Some(activation) = self.table.get_mut(id)
        {
            activation.unreleased = number;
        }
        self.set_due(number, id.clone(), slot, record);
    }

    /// A rejection: no state, no effects, but the operation is done with.
    fn reject(&mut self, id: &EntityId, mut item: Item, rejection: Rejection) {
        if item.is_signal() {
            self.accepted_late(&item);
            return self.dead_letter(id, item, Cause::Rejection, rejection.reason());
        }
        self.consume(id, &mut item);
        let writes = item.key.is_some() || item.row != Row::None;
        let unreleased = self.unreleased(id);
        match &item.reply_to {
            // Without a key or a row there is nothing to write; the answer rests on earlier turns.
            Some(reply_to) if !writes => {
                self.answer(unreleased, reply_to.clone(), Ok(Response::Rejected(rejection)));
            }
            _ => self.conclude(item, Err(rejection)),
        }
    }

    /// A call that failed: its caller hears it, and nothing is remembered.
    pub(super) fn refuse(&mut self, mut item: Item, error: Error) {
        if let Row::Inbox(key) = &item.row {
            let id = key.receiver.clone();
            self.consume(&id, &mut item);
            self.forget_stored(&item, &error);
        } else {
            self.forget_key(&item, &error);
        }
        if let Some(reply_to) = item.reply_to.take() {
            self.open.replies.push((reply_to, Err(error)));
        }
    }

    /// A failure: nothing of the turn stays. A signal is tried again, a bounded number of times.
    pub(super) fn fail(&mut self, id: &EntityId, mut item: Item, error: Error) {
        tracing::warn!(entity = %id, kind = ?error.kind(), %error, attempts = item.attempts, "a turn failed");
        if !item.is_signal() {
            return self.refuse(item, error);
        }
        // It is accepted with this attempt, which its condition allowed.
        item.condition = None;
        if std::mem::take(&mut item.counted) == 0 {
            item.attempts += 1;
        }
        if item.attempts > self.environment.config.retries {
            self.accepted_late(&item);
            return self.dead_letter(id, item, Cause::Failure, error.message());
        }
        if !(sabotage::is("X32") && item.row != Row::None) {
            self.record(id, &mut item);
        }
        self.accepted(&mut item);
        if let Some(sender) = item.sender() {
            let retry_at = self.now + self.environment.config.retry_after(item.attempts);
            self.block_lane(id, item, sender, retry_at);
        }
    }

    /// A signal that dies in its first turn was accepted all the same: the dead letter says so.
    fn accepted_late(&mut self, item: &Item) {
        self.remember(item, Remembered::Accepted);
        if let Some(reply_to) = &item.reply_to {
            self.open.replies.push((reply_to.clone(), Ok(Response::Done)));
        }
    }
}
