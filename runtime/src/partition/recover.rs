//! How a generation begins and ends: barrier, what is on disk, restart.

use stead_entities::{EntityId, Error, ErrorKind};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Activation, FAILURES_MAX, Item, Output, Partition, Phase, Row, Stage,
    activation::Queued,
    delete::PURGE,
    message::{Input, Work},
    reply::CallResult,
    run::Next,
    turn::guarded,
};
use crate::{
    sabotage,
    store::{
        InboxPage, ReadError, ReadResult,
        record::{Cause, InboxKey, InboxRecord, StateRecord},
    },
    types::State,
};

/// How many entities with rows of an earlier generation are woken at one time.
const RECOVERING_MAX: usize = 64;
/// The most recovered operations of one entity that are counted at one time.
const RECOVER_SHARE_MAX: usize = 64;
/// The wait before the store is read again.
pub(super) const RECOVERY_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

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

    /// Starts over after a panic of its own. An entity that was being worked on too often when that
    /// happened is left alone from here on.
    pub(crate) fn panicked(&mut self, error: &Error) {
        if let Some(id) = self.running.take() {
            let failures = self.failures.entry(id.clone()).or_default();
            *failures += 1;
            tracing::error!(entity = %id, failures, "a partition failed while it ran this entity");
        }
        self.restart(error);
    }

    /// Ends a generation whose write group was not committed. Everything in memory was built on it.
    pub(crate) fn restart(&mut self, error: &Error) {
        self.refuse_all(error);
        self.begin_generation();
    }

    /// Ends for good; what is to be done is told to nobody but those who wait, in these and in
    /// earlier inputs.
    pub(crate) fn dissolve(
        &mut self,
        error: &Error,
        inputs: impl IntoIterator<Item = Input>,
    ) -> Vec<Output> {
        let early = std::mem::take(&mut self.early);
        let pending = early.into_iter().chain(inputs).filter_map(Input::into_reply_to);
        let pending = pending.chain(self.draining.take());
        self.outputs.extend(pending.map(|reply_to| Output::Reply(reply_to, Err(error.clone()))));
        self.refuse_all(error);
        std::mem::take(&mut self.outputs)
    }

    fn refuse_all(&mut self, error: &Error) {
        let refused: CallResult = Err(error.clone());
        // Reads that were asked for belong to this generation; answers and write groups left it already.
        self.outputs.retain(|output| matches!(output, Output::Reply(..) | Output::WriteGroup(_)));
        let open = std::mem::take(&mut self.open);
        for (reply_to, _) in open.replies {
            self.outputs.push(Output::Reply(reply_to, refused.clone()));
        }
        // In an order that does not depend on how tables hash.
        let mut table: Vec<_> = std::mem::take(&mut self.table).into_iter().collect();
        table.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        for (_, activation) in table {
            for item in activation.items() {
                self.outputs.extend(item.reply_to.map(|t| Output::Reply(t, refused.clone())));
            }
        }
        let mut keys: Vec<_> = std::mem::take(&mut self.keys).into_iter().collect();
        keys.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        for (_, pending) in keys {
            for reply_to in pending.waiters {
                self.outputs.push(Output::Reply(reply_to, refused.clone()));
            }
        }
        self.ready.clear();
        self.dirty.clear();
        self.known.clear();
        self.held_bytes = 0;
        self.on_release.clear();
        self.backlog.clear();
        self.recovering.clear();
        self.retries.clear();
        self.replayed.clear();
        self.purges.clear();
        self.letters.clear();
        self.due.clear();
        self.rescan = super::rescan::Rescan::default();
        self.sent = 0;
        self.released = 0;
    }

    pub(super) fn recover(&mut self) {
        self.phase = Phase::Recovering;
        self.outputs.push(Output::Recover);
    }

    pub(super) fn recovered(&mut self, receivers: ReadResult<Vec<EntityId>>) {
        let Some(receivers) = self.readable(receivers) else { return };
        self.phase = Phase::Serving;
        self.add_backlogs(receivers);
        self.scan_due();
        self.outputs.push(Output::Letters(None));
        for input in std::mem::take(&mut self.early) {
            self.take(input);
        }
    }

    pub(super) fn wake_recovering(&mut self) {
        let mut room = RECOVERING_MAX.saturating_sub(self.backlog.len() - self.recovering.len());
        while room > 0
            && let Some(id) = self.recovering.pop_front()
        {
            // It is activated when its rows are there.
            self.page(&id);
            room -= 1;
        }
    }

    /// Makes sure that an entity has a row in the table, and that its state is on its way.
    pub(super) fn activate(&mut self, id: &EntityId) -> &mut Activation {
        if !self.table.contains_key(id) {
            self.table.insert(id.clone(), Box::new(Activation::loading(self.now)));
            self.outputs.push(Output::Load(id.clone()));
        }
        self.table.get_mut(id).expect("inserted above")
    }

    pub(super) fn loaded(&mut self, id: &EntityId, loaded: ReadResult<Option<StateRecord>>) {
        self.running = Some(id.clone());
        let read = match loaded {
            Err(ReadError::Unavailable(why)) => {
                tracing::error!(entity = %id, why, "a state cannot be read at the moment");
                Err(Stage::Unreadable(self.now + RECOVERY_PAUSE))
            }
            read => self.decoded(id, read).map_err(|error| {
                tracing::error!(%error, "an entity is left as it is stored");
                Stage::Unusable(error)
            }),
        };
        self.running = None;
        let Some(activation) = self.table.get_mut(id) else {
            return;
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
            Err(stage) => activation.stage = stage,
        }
        self.make_ready(id);
    }

    fn decoded(
        &self,
        id: &EntityId,
        read: ReadResult<Option<StateRecord>>,
    ) -> Result<(State, Option<StateRecord>), Error> {
        let corrupt = |why: &dyn std::fmt::Display| corrupt(id, why);
        let known = self.type_of(id).ok_or_else(|| corrupt(&"the entity type is not served"))?;
        if self.failures.get(id).is_some_and(|failures| *failures >= FAILURES_MAX) {
            let why = "the partition failed each time it ran this entity, which is left alone";
            return Err(corrupt(&format!("{why} until the next start")));
        }
        let fresh = || guarded(|| known.fresh()).map_err(|error| corrupt(&error));
        match read {
            Err(_) if sabotage::is("X12") => Ok((fresh()?, None)),
            Err(error) => Err(corrupt(&error)),
            Ok(None) => Ok((fresh()?, None)),
            Ok(Some(record)) if !known.knows(record.version) => {
                let (stored, present) = (record.version, known.version());
                let message = format!(
                    "{id} is stored in version {stored} of its type, and this node knows version \
                     {present}: run a newer program; the entity is left as it is"
                );
                Err(Error::new(ErrorKind::Unavailable, message))
            }
            Ok(Some(record)) => {
                let state = guarded(|| known.decode(record.version, &record.state));
                match state.map_err(|error| corrupt(&error))? {
                    Ok(state) => Ok((state, Some(record))),
                    Err(_) if sabotage::is("X12") => Ok((fresh()?, Some(record))),
                    Err(error) => Err(corrupt(&error)),
                }
            }
        }
    }

    /// Reads the next inbox rows of an entity, if there are any and it has room.
    pub(super) fn page(&mut self, id: &EntityId) {
        let Some(backlog) = self.backlog.get_mut(id) else {
            return;
        };
        let limit = self.environment.config.mailbox_max;
        let has_room =
            self.table.get(id).is_none_or(|entry| entry.mailbox.is_empty() && entry.held() < limit);
        if backlog.is_loading || !has_room || backlog.since > self.released {
            return;
        }
        backlog.is_loading = true;
        self.outputs.push(Output::Inbox(id.clone(), backlog.after.clone()));
    }

    pub(super) fn page_read(
        &mut self,
        id: &EntityId,
        page: ReadResult<InboxPage>,
        mut permits: OwnedSemaphorePermit,
    ) {
        let Some(backlog) = self.backlog.get_mut(id) else {
            return;
        };
        backlog.is_loading = false;
        let gone = std::mem::take(&mut backlog.gone);
        let InboxPage { rows, is_end } = match page {
            Ok(page) => page,
            Err(error) => {
                tracing::error!(entity = %id, %error, "the inbox of an entity cannot be read");
                self.known_gone(gone);
                return self.page_failed(id, &error);
            }
        };
        backlog.after = rows.last().map(|(key, _)| key.clone());
        if is_end && backlog.again {
            backlog.again = false;
            backlog.after = None;
        } else if is_end {
            self.backlog.remove(id);
        }
        for (key, record) in rows {
            if !self.known.contains(&key) {
                self.admit_row(key, record, permits.split(1));
            }
        }
        self.known_gone(gone);
        if !self.backlog.contains_key(id) {
            let behind = self.table.get_mut(id).map(|entry| std::mem::take(&mut entry.behind));
            for mut item in behind.unwrap_or_default() {
                self.retire_if_purged(id, &mut item);
                if let Some(activation) = self.table.get_mut(id) {
                    activation.mailbox.push_back(item);
                }
            }
            self.wake_recovering();
        } else if !self.table.contains_key(id) {
            // Every row of the page was known, or damaged: the next page follows at once.
            self.page(id);
        }
        self.make_ready(id);
    }

    fn page_failed(&mut self, id: &EntityId, error: &ReadError) {
        match (error, self.table.get_mut(id)) {
            (ReadError::Damaged(reason), Some(activation)) => {
                activation.stage = Stage::Unusable(corrupt(id, reason));
                self.make_ready(id);
            }
            (ReadError::Damaged(reason), None) => {
                let stage = Stage::Unusable(corrupt(id, reason));
                let mut activation = Box::new(Activation::loading(self.now));
                activation.stage = stage;
                self.table.insert(id.clone(), activation);
                self.make_ready(id);
            }
            _ => drop(self.retries.insert((self.now + RECOVERY_PAUSE, id.clone()))),
        }
    }

    fn known_gone(&mut self, gone: Vec<InboxKey>) {
        for key in gone {
            self.known.remove(&key);
        }
    }

    /// The row is gone from the store; but a page that is being read may still show it.
    pub(super) fn row_gone(&mut self, key: InboxKey) {
        match self.backlog.get_mut(&key.receiver) {
            Some(backlog) if backlog.is_loading => backlog.gone.push(key),
            _ => drop(self.known.remove(&key)),
        }
    }

    /// Puts a row of the inbox into the mailbox.
    pub(super) fn admit_row(
        &mut self,
        key: InboxKey,
        record: InboxRecord,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let id = key.receiver.clone();
        self.known.insert(key.clone());
        self.held_bytes += record.input.len();
        let Some(mut item) = self.item_of(key, &record) else {
            return;
        };
        item.is_recovered = self.is_recovered(&id, &item);
        let activation = self.activate(&id);
        item.permit = permit.filter(|_| !activation.is_busy());
        activation.mailbox.push_back(item);
        self.make_ready(&id);
    }

    /// Whether an operation that was left behind may run without its attempt being counted first: one
    /// that did not run when the process ended. It is marked while it runs.
    pub(super) fn is_cleared(&self, id: &EntityId, item: &mut Item) -> bool {
        let awaits = matches!(item.work, Work::Operation { awaits: true, .. });
        if self.environment.marks.is_none() || awaits {
            return false;
        }
        item.is_marked = true;
        let was_counted = self.counted.contains_key(&(id.clone(), item.row.clone()));
        if self.environment.ran.contains(&item.token) && !was_counted {
            return false;
        }
        item.is_recovered = false;
        true
    }

    /// Whether an operation was left behind by an unclean stop, which it may have caused, and its
    /// attempt was not yet counted since.
    pub(super) fn is_recovered(&self, id: &EntityId, item: &Item) -> bool {
        let began = match &item.row {
            Row::Reminder(_, due, _) => *due,
            Row::None | Row::Inbox(_) => item.accepted_at,
        };
        let known = self.counted.get(&(id.clone(), item.row.clone()));
        self.environment.was_unclean
            && item.work != Work::Purge
            && began <= self.started_at
            && known.is_none_or(|attempts| item.attempts < *attempts)
    }

    /// What an unclean stop left behind may be what ended the process: its attempt is counted, and
    /// durable, before it runs. First for one operation of an entity, then for twice as many each
    /// time, so that few are counted that do not run.
    pub(super) fn count_attempts(&mut self, id: &EntityId, item: Item) -> Next {
        self.put_back(id, item);
        let (number, retries) = (self.open_number(), self.environment.config.retries);
        let Some(activation) = self.table.get_mut(id) else {
            return Next::Waits;
        };
        // Where what ran is known, one was running.
        let share = if self.environment.marks.is_some() { 1 } else { activation.recover_share };
        activation.recover_share = (2 * share).min(RECOVER_SHARE_MAX);
        let mut mailbox = std::mem::take(&mut activation.mailbox);
        let mut has_written = false;
        for item in mailbox.iter_mut().take(share).filter(|item| item.is_recovered) {
            item.is_recovered = false;
            item.attempts += 1;
            if item.attempts <= retries.saturating_add(1) && !sabotage::is("X32") {
                item.counted = number;
                self.counted.insert((id.clone(), item.row.clone()), item.attempts);
                self.record(id, item);
                has_written = true;
            }
        }
        if let Some(activation) = self.table.get_mut(id) {
            activation.mailbox = mailbox;
            if has_written {
                activation.unreleased = number;
                self.after_open(super::Release::Resume(id.clone()));
            }
        }
        if !has_written {
            self.make_ready(id);
        }
        Next::Waits
    }

    /// The item that a row stands for; a row that nobody can run becomes a dead letter.
    pub(super) fn item_of(&mut self, key: InboxKey, record: &InboxRecord) -> Option<Item> {
        let id = key.receiver.clone();
        let sender = (!key.sender.is_empty()).then(|| key.sender.clone());
        let keyed = record.idempotency.as_ref().filter(|_| record.is_call);
        let keyed = keyed.map(|key| self.pending_key(&id, key));
        let (input, at) = (record.input.clone(), record.accepted_at);
        let mut item = Box::new(Queued {
            is_call: record.is_call,
            sender,
            row: Row::Inbox(key),
            key: keyed,
            attempts: record.attempts,
            deadline: record.deadline,
            ..Queued::new(Work::State, input, record.token, at)
        });
        if record.operation == PURGE {
            return self.purge_of(&id, item);
        }
        match self.work_of(&id, &record.operation) {
            Ok(work) => {
                item.work = work;
                Some(item)
            }
            Err(reason) => {
                self.dead_letter_as(
                    &id,
                    item,
                    record.operation.clone(),
                    Cause::Undecodable,
                    &reason,
                );
                None
            }
        }
    }

    /// Reads again what could not be read.
    pub(super) fn retry_recovery(&mut self) {
        if self.recover_at.is_some_and(|at| at <= self.now) {
            self.recover_at = None;
            match self.phase {
                Phase::Serving => self.read_receivers(),
                Phase::Fencing => {}
                Phase::Recovering => self.recover(),
            }
        }
    }
}

fn corrupt(id: &EntityId, why: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{id} cannot be read: {why}"))
}
