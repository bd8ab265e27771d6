//! How a generation begins and ends: barrier, what is on disk, restart.

use stead_entities::{EntityId, Error};

use super::{
    Activation, Backlog, INBOX_PAGE, Item, Output, Partition, Phase, Row, Stage, ticket::Response,
};
use crate::{
    sabotage,
    store::{
        ReadResult,
        record::{Cause, InboxKey, InboxRecord, StateRecord},
    },
};

/// How many entities with rows of an earlier generation are woken at one time.
const RECOVERING_MAX: usize = 64;
/// The wait before the store is read again.
const RECOVERY_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

impl Partition {
    /// Starts over: the next thing that is read is behind the committer's barrier.
    pub(super) fn begin_generation(&mut self) {
        self.generation += 1;
        self.phase = Phase::Fencing;
        if sabotage::is("X26") {
            self.recover();
        } else {
            self.outputs.push(Output::Barrier(self.generation));
        }
    }

    /// Ends a generation whose burst was not committed. Everything in memory was built on it.
    pub(super) fn restart(&mut self, error: &Error) {
        let refused: Response = Err(error.clone());
        let open = std::mem::take(&mut self.open);
        for (ticket, _) in open.replies {
            self.outputs.push(Output::Reply(ticket, refused.clone()));
        }
        for activation in std::mem::take(&mut self.table).into_values() {
            for item in activation.items() {
                self.outputs.extend(item.ticket.map(|t| Output::Reply(t, refused.clone())));
            }
        }
        for pending in std::mem::take(&mut self.keys).into_values() {
            for ticket in pending.waiters {
                self.outputs.push(Output::Reply(ticket, refused.clone()));
            }
        }
        self.ready.clear();
        self.dirty.clear();
        self.known.clear();
        self.on_release.clear();
        self.backlog.clear();
        self.recovering.clear();
        self.retries.clear();
        self.due.clear();
        self.sent = 0;
        self.released = 0;
        self.begin_generation();
    }

    pub(super) fn recover(&mut self) {
        self.phase = Phase::Recovering;
        self.outputs.push(Output::Recover);
    }

    pub(super) fn recovered(&mut self, receivers: ReadResult<Vec<EntityId>>) {
        let receivers = match receivers {
            Ok(receivers) => receivers,
            Err(error) => {
                tracing::error!(partition = self.number(), %error, "the inbox cannot be read");
                self.recover_at = Some(self.now + RECOVERY_PAUSE);
                return self.outputs.push(Output::WakeAt(self.now + RECOVERY_PAUSE));
            }
        };
        self.phase = Phase::Serving;
        let is_recovered = self.around.was_unclean || self.generation > 1;
        for id in receivers {
            if self.type_of(&id).is_none() {
                tracing::warn!(entity = %id, "signals wait for an entity type that is not served");
                continue;
            }
            let backlog = Backlog { is_recovered, ..Backlog::default() };
            self.backlog.insert(id.clone(), backlog);
            self.recovering.push_back(id);
        }
        self.wake_recovering();
        self.scan_due();
        for input in std::mem::take(&mut self.early) {
            self.take(input);
        }
    }

    pub(super) fn wake_recovering(&mut self) {
        let mut room = RECOVERING_MAX.saturating_sub(self.backlog.len() - self.recovering.len());
        while room > 0
            && let Some(id) = self.recovering.pop_front()
        {
            self.activate(&id);
            self.make_ready(&id);
            room -= 1;
        }
    }

    /// Makes sure that an entity has a row in the table, and that its state is on its way.
    pub(super) fn activate(&mut self, id: &EntityId) -> &mut Activation {
        if !self.table.contains_key(id) {
            self.table.insert(id.clone(), Activation::loading(self.now));
            self.outputs.push(Output::Load(id.clone()));
        }
        self.table.get_mut(id).expect("inserted above")
    }

    pub(super) fn loaded(&mut self, id: &EntityId, loaded: ReadResult<Option<StateRecord>>) {
        let Some(known) = self.type_of(id) else {
            return;
        };
        let Some(activation) = self.table.get_mut(id) else {
            return;
        };
        let read = match loaded {
            Err(_) if sabotage::is("X12") => Ok((known.fresh(), None)),
            Err(error) => Err(error.to_string()),
            Ok(None) => Ok((known.fresh(), None)),
            Ok(Some(record)) => match known.decode(record.version, &record.state) {
                Ok(state) => Ok((state, Some(record))),
                Err(_) if sabotage::is("X12") => Ok((known.fresh(), Some(record))),
                Err(error) => Err(error.to_string()),
            },
        };
        match read {
            Ok((state, record)) => {
                activation.state = Some(state);
                activation.stage = Stage::Ready;
                if let Some(record) = record {
                    activation.generation = record.generation;
                    activation.revision = record.revision;
                    activation.sent_revision = record.revision;
                    activation.committed_at = record.committed_at;
                    activation.reminders = record.reminders;
                }
            }
            Err(reason) => {
                tracing::error!(entity = %id, reason, "the stored state cannot be read");
                activation.stage = Stage::Corrupt(reason);
            }
        }
        self.make_ready(id);
    }

    /// Reads the next inbox rows of an entity, if there are any and it has room.
    pub(super) fn page(&mut self, id: &EntityId) {
        let Some(backlog) = self.backlog.get_mut(id) else {
            return;
        };
        let has_room = self.table.get(id).is_some_and(|entry| entry.mailbox.is_empty());
        if backlog.is_loading || !has_room || backlog.since > self.released {
            return;
        }
        backlog.is_loading = true;
        self.outputs.push(Output::Inbox(id.clone(), backlog.after.clone()));
    }

    pub(super) fn page_read(
        &mut self,
        id: &EntityId,
        rows: ReadResult<Vec<(InboxKey, InboxRecord)>>,
    ) {
        let Some(backlog) = self.backlog.get_mut(id) else {
            return;
        };
        backlog.is_loading = false;
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(entity = %id, %error, "the inbox of an entity cannot be read");
                if let Some(activation) = self.table.get_mut(id) {
                    activation.stage = Stage::Corrupt(error.to_string());
                }
                return self.make_ready(id);
            }
        };
        let is_recovered = backlog.is_recovered;
        let is_end = rows.len() < INBOX_PAGE;
        backlog.after = rows.last().map(|(key, _)| key.clone());
        if is_end && backlog.again {
            backlog.again = false;
            backlog.after = None;
            backlog.is_recovered = false;
        } else if is_end {
            self.backlog.remove(id);
        }
        for (key, record) in rows {
            if self.known.contains(&key) {
                continue;
            }
            if is_recovered {
                self.admit_recovered(key, record);
            } else {
                self.admit_row(key, record);
            }
        }
        if is_end && !self.backlog.contains_key(id) {
            if let Some(activation) = self.table.get_mut(id) {
                let behind = std::mem::take(&mut activation.behind);
                activation.mailbox.extend(behind);
            }
            self.wake_recovering();
        }
        self.make_ready(id);
    }

    /// A row that an unclean stop left behind may be what ended the process: its attempt is counted,
    /// and durable, before it runs.
    fn admit_recovered(&mut self, key: InboxKey, mut record: InboxRecord) {
        record.attempts += 1;
        let id = key.receiver.clone();
        if record.attempts > self.around.config.retries + 1 {
            self.known.insert(key.clone());
            let Some(mut item) = self.item_of(key, &record) else {
                return;
            };
            item.attempts = record.attempts - 1;
            return self.bury(&id, item, Cause::Failure, super::bury::ENDED_THE_PROCESS);
        }
        if !sabotage::is("X32") {
            self.open.writes.push(crate::store::Write::Accept(key.clone(), record.clone()));
        }
        self.admit_row(key, record);
        let number = self.open_number();
        if let Some(activation) = self.table.get_mut(&id) {
            activation.unreleased = number;
            if let Some(item) = activation.mailbox.back_mut() {
                item.counted = number;
            }
        }
        self.after_open(super::Release::Resume(id));
    }

    /// Puts a row of the inbox into the mailbox.
    pub(super) fn admit_row(&mut self, key: InboxKey, record: InboxRecord) {
        let id = key.receiver.clone();
        self.known.insert(key.clone());
        let Some(item) = self.item_of(key, &record) else {
            return;
        };
        self.activate(&id).mailbox.push_back(item);
        self.make_ready(&id);
    }

    /// The item that a row stands for; a row that nobody can run becomes a dead letter.
    pub(super) fn item_of(&mut self, key: InboxKey, record: &InboxRecord) -> Option<Item> {
        let id = key.receiver.clone();
        let sender = (!key.sender.is_empty()).then(|| key.sender.clone());
        let keyed = record.idempotency.as_ref().filter(|_| record.is_call);
        let keyed = keyed.map(|key| self.pending_key(&id, key));
        let (input, at) = (record.input.clone(), record.accepted_at);
        let mut item = Item {
            is_call: record.is_call,
            sender,
            row: Row::Inbox(key),
            key: keyed,
            attempts: record.attempts,
            deadline: record.deadline,
            ..Item::new(super::message::Work::State, input, record.token, at)
        };
        match self.work_of(&id, &record.operation) {
            Ok(work) => {
                item.work = work;
                Some(item)
            }
            Err(reason) => {
                self.bury_as(&id, item, record.operation.clone(), Cause::Undecodable, &reason);
                None
            }
        }
    }

    /// Reads again what could not be read.
    pub(super) fn retry_recovery(&mut self) {
        if self.recover_at.is_some_and(|at| at <= self.now) {
            self.recover_at = None;
            self.recover();
        }
    }
}
