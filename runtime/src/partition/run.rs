//! Running: the head of each ready mailbox, a bounded number of turns at a time.

use std::{collections::VecDeque, time::Duration};

use stead_entities::{Context, EntityId, Error, ErrorKind, Timestamp, Version, context::Turn};

use super::{
    Item, Output, Partition, Row, Stage, TURNS_PER_ENTITY_MAX, TURNS_PER_STEP_MAX,
    activation::{Lane, Sender, Undeliverable},
    arrive::withdrawn,
    dead_letter::ENDED_THE_PROCESS,
    message::Work,
    reply::{Response, StateView},
    turn::{self, guarded},
};
use crate::{
    sabotage,
    store::record::{Cause, Damaged, Slot},
};

/// The wait before what writes is tried again on a disk that is nearly full.
const ROOM_PAUSE: Duration = Duration::from_millis(500);

/// Whether the next item of a mailbox can follow.
pub(super) enum Next {
    Goes,
    Waits,
}

impl Partition {
    pub(super) fn run_ready(&mut self) {
        let mut turns = TURNS_PER_STEP_MAX;
        let mut later = VecDeque::new();
        while turns > 0
            && !self.is_full()
            && let Some(id) = self.ready.pop_front()
        {
            let Some(activation) = self.table.get_mut(&id) else {
                continue;
            };
            activation.is_queued = false;
            if self.is_stopping && !activation.is_awaited() {
                continue;
            }
            let share = turns.min(TURNS_PER_ENTITY_MAX);
            self.running = Some(id.clone());
            let used = self.run_entity(&id, share);
            self.running = None;
            turns -= used;
            if used == share
                && let Some(activation) = self.table.get_mut(&id)
                && !std::mem::replace(&mut activation.is_queued, true)
            {
                // The rest goes behind the neighbours.
                later.push_back(id);
            }
        }
        self.ready.extend(later);
    }

    fn run_entity(&mut self, id: &EntityId, turns: usize) -> usize {
        for used in 0..turns {
            let Some(activation) = self.table.get_mut(id) else {
                return used;
            };
            match &activation.stage {
                Stage::Ready => {}
                Stage::Unusable(error) => {
                    let error = error.clone();
                    self.refuse_unusable(id, &error);
                    return used;
                }
                Stage::Unreadable(at) => {
                    let at = *at;
                    self.read_again(id, at);
                    return used;
                }
                Stage::Loading | Stage::Busy(..) | Stage::Listing(_) => return used,
            }
            let Some(item) = activation.mailbox.pop_front() else {
                self.page(id);
                return used;
            };
            activation.used_at = self.now;
            if let Next::Waits = self.run_item(id, item) {
                return used;
            }
        }
        turns
    }

    /// Nothing can be done with this entity; what is stored of it stays.
    fn refuse_unusable(&mut self, id: &EntityId, error: &Error) {
        let Some(activation) = self.table.get_mut(id) else {
            return;
        };
        let mailbox = std::mem::take(&mut activation.mailbox);
        let behind = std::mem::take(&mut activation.behind);
        for item in mailbox.into_iter().chain(behind) {
            self.forget_key(&item, error);
            match item.row {
                Row::None => {}
                Row::Inbox(key) => {
                    self.held_bytes = self.held_bytes.saturating_sub(item.input.len());
                    self.row_gone(key);
                }
                Row::Reminder(slot, _, number) => self.due.leave(id, slot, number),
            }
            if let Some(reply_to) = item.reply_to {
                self.outputs.push(Output::Reply(reply_to, Err(error.clone())));
            }
        }
        if self.backlog.remove(id).is_some() {
            self.wake_recovering();
        }
    }

    /// Asks the store again for a state that it could not read. Callers who wait are refused; what
    /// was accepted stays.
    fn read_again(&mut self, id: &EntityId, at: Timestamp) {
        let Some(activation) = self.table.get_mut(id) else {
            return;
        };
        if at <= self.now {
            activation.stage = Stage::Loading;
            return self.outputs.push(Output::Load(id.clone()));
        }
        let waiting = std::mem::take(&mut activation.mailbox);
        let (mut kept, refused): (VecDeque<_>, VecDeque<_>) =
            waiting.into_iter().partition(|item| item.row != Row::None);
        kept.iter_mut().for_each(|item| item.permit = None);
        activation.mailbox = kept;
        let error = Error::new(ErrorKind::Unavailable, "the store cannot read at the moment");
        for item in refused {
            self.forget_key(&item, &error);
            self.outputs.extend(item.reply_to.map(|t| Output::Reply(t, Err(error.clone()))));
        }
        self.retries.insert((at, id.clone()));
    }

    pub(super) fn run_item(&mut self, id: &EntityId, mut item: Item) -> Next {
        if self.is_looking(&item) {
            return self.put_back(id, item);
        }
        if let Some(sender) = item.sender()
            && !sabotage::is("X31")
            && self.table.get_mut(id).is_some_and(|entry| entry.lane(&sender).is_some())
        {
            return self.block(id, item, &sender);
        }
        if item.row == Row::None && item.reply_to.as_ref().is_some_and(|reply_to| !reply_to.take())
        {
            self.forget_key(&item, &withdrawn());
            return Next::Goes;
        }
        if !self.is_current(id, &item) {
            return Next::Goes;
        }
        // It is judged again each time the operation is put back before it begins.
        if let Some(condition) = &item.condition
            && !condition.holds(self.version_of(id))
        {
            self.refuse_condition(id, item);
            return Next::Goes;
        }
        if !self.has_room && item.writes() {
            return self.wait_for_room(id, item);
        }
        if item.due.is_some_and(|due| due > self.now) {
            self.record(id, &mut item);
            self.accepted(&mut item);
            return Next::Goes;
        }
        // What is due is an operation like any other.
        item.due = None;
        if item.is_recovered && !self.is_cleared(id, &mut item) {
            return self.count_attempts(id, item);
        }
        if item.counted > self.released {
            return self.put_back(id, item);
        }
        if let Some(Undeliverable { operation, cause, reason }) =
            item.undeliverable.take().map(|undeliverable| *undeliverable)
        {
            self.dead_letter_as(id, item, operation, cause, &reason);
            return Next::Goes;
        }
        if item.attempts > self.environment.config.retries.saturating_add(1) {
            self.dead_letter(id, item, Cause::Failure, ENDED_THE_PROCESS);
            return Next::Goes;
        }
        if let Some(turned) = item.turned.take() {
            return self.settle(id, item, *turned);
        }
        match item.work {
            Work::State => self.show_state(id, item),
            Work::Query { index } => self.run_query(id, index, item),
            Work::Delete => return self.run_delete(id, item),
            Work::Purge => return self.list_delayed(id, item),
            Work::Cancel => return self.run_cancel(id, item),
            Work::Operation { awaits: true, .. } => return self.start(id, item),
            Work::Operation { index, awaits: false } => return self.run_turn(id, index, item),
        }
        Next::Goes
    }

    /// What would write waits while the disk is nearly full; who waits for it is refused.
    fn wait_for_room(&mut self, id: &EntityId, mut item: Item) -> Next {
        let again = self.now + ROOM_PAUSE;
        if item.row == Row::None
            && let Some(reply_to) = item.reply_to.take()
        {
            let error = Error::new(ErrorKind::Full, "the disk is nearly full");
            self.forget_key(&item, &error);
            self.outputs.push(Output::Reply(reply_to, Err(error)));
            return Next::Goes;
        }
        item.permit = None;
        if let Some(sender) = item.sender() {
            self.block_lane(id, item, sender, again);
            return Next::Goes;
        }
        self.retries.insert((again, id.clone()));
        if item.work == Work::Purge {
            // What only reads goes before it meanwhile.
            if let Some(activation) = self.table.get_mut(id) {
                activation.mailbox.push_back(item);
            }
            return Next::Waits;
        }
        self.put_back(id, item)
    }

    /// The newest state of an entity, which may not be durable yet.
    fn version_of(&self, id: &EntityId) -> Option<Version> {
        let entry = self.table.get(id).filter(|entry| entry.generation > 0)?;
        Some(Version { generation: entry.generation, revision: entry.revision })
    }

    fn refuse_condition(&mut self, id: &EntityId, item: Item) {
        let message = match self.version_of(id) {
            Some(version) => format!("{id} is at version {version}, and not at the one required"),
            None => format!("{id} has no state"),
        };
        let error = Error::new(ErrorKind::Precondition, message);
        if item.row != Row::None {
            return self.refuse(item, error);
        }
        self.forget_key(&item, &error);
        let unreleased = self.unreleased(id);
        if let Some(reply_to) = item.reply_to {
            self.answer(unreleased, reply_to, Err(error));
        }
    }

    pub(super) fn put_back(&mut self, id: &EntityId, item: Item) -> Next {
        if let Some(activation) = self.table.get_mut(id) {
            activation.mailbox.push_front(item);
        }
        Next::Waits
    }

    pub(super) fn unreleased(&self, id: &EntityId) -> u64 {
        self.table.get(id).map_or(0, |entry| entry.unreleased)
    }

    /// A reminder that was cancelled or set again since it fired is nothing to run.
    fn is_current(&mut self, id: &EntityId, item: &Item) -> bool {
        let Row::Reminder(Slot::Named(name), _, number) = &item.row else {
            return true;
        };
        let heads = self.table.get(id).map(|entry| &entry.reminders);
        let is_current = heads.is_some_and(|heads| {
            heads
                .iter()
                .any(|head| *head.name == **name && (head.number == *number || sabotage::is("X10")))
        });
        if !is_current {
            self.due.forget(id, &Slot::Named(name.clone()), *number);
        }
        is_current
    }

    /// A signal that arrived behind one of the same sender that waits for its retry.
    fn block(&mut self, id: &EntityId, mut item: Item, sender: &Sender) -> Next {
        item.permit = None;
        let kept = if item.row == Row::None { self.accept(id, item) } else { Some(item) };
        if let Some(lane) = self.table.get_mut(id).and_then(|entry| entry.lane(sender)) {
            lane.items.extend(kept);
        }
        Next::Goes
    }

    pub(super) fn new_context(&mut self, id: &EntityId, token: u128) -> Context {
        let seed = self.environment.entropy.next();
        let entry = self.table.get(id);
        let (revision, last) =
            entry.map_or((0, self.now), |entry| (entry.revision, entry.committed_at));
        Context::new(Turn { id: id.clone(), now: self.now.max(last), revision, seed, token })
    }

    fn show_state(&mut self, id: &EntityId, item: Item) {
        let Some(entry) = self.table.get(id) else {
            return;
        };
        let unreleased = entry.unreleased;
        let view = match &entry.state {
            Some(state) if entry.generation > 0 => guarded(|| state.json()).map(|json| {
                json.map(|json| {
                    Some(StateView {
                        generation: entry.generation,
                        revision: entry.revision,
                        committed_at: entry.committed_at,
                        state: json,
                    })
                })
            }),
            _ => Ok(Ok(None)),
        };
        let response = view.and_then(|view| {
            let internal = |why: Damaged| Error::new(ErrorKind::Internal, why.to_string());
            view.map(Response::State).map_err(internal)
        });
        if let Some(reply_to) = item.reply_to {
            self.answer(unreleased, reply_to, response);
        }
    }

    fn run_query(&mut self, id: &EntityId, index: usize, item: Item) {
        let (Some(known), Some(reply_to)) = (self.type_of(id), item.reply_to.clone()) else {
            return;
        };
        let ctx = self.new_context(id, item.token);
        let Some(entry) = self.table.get(id) else {
            return;
        };
        let (unreleased, Some(state)) = (entry.unreleased, &entry.state) else {
            return;
        };
        self.environment.watch.begin(id, known.name_of(index), item.reply_to.as_ref(), &item.row);
        let turned = turn::run(&*known, index, state, ctx, &item.input, usize::MAX);
        self.environment.watch.end();
        let response = match turned {
            turn::Turned::Applied { json, .. } => Ok(Response::Replied(json)),
            turn::Turned::Rejected(rejection) => Ok(Response::Rejected(rejection)),
            turn::Turned::Undecodable(error) => {
                Err(Error::new(ErrorKind::Invalid, error.to_string()))
            }
            turn::Turned::Failed(error) => Err(error),
        };
        self.answer(unreleased, reply_to, response);
    }

    fn run_turn(&mut self, id: &EntityId, index: usize, item: Item) -> Next {
        let Some(known) = self.type_of(id) else {
            return Next::Goes;
        };
        let ctx = self.new_context(id, item.token);
        let limit = self.environment.config.state_bytes_max;
        let Some(state) = self.table.get(id).and_then(|entry| entry.state.as_ref()) else {
            return Next::Goes;
        };
        self.environment.watch.begin(id, known.name_of(index), item.reply_to.as_ref(), &item.row);
        let marks = self.environment.marks.as_ref().filter(|_| item.is_marked);
        let mark =
            |token| marks.iter().for_each(|marks| marks.mark(self.environment.number, token));
        mark(Some(item.token));
        let turned = turn::run(&*known, index, state, ctx, &item.input, limit);
        mark(None);
        let turned = match self.environment.watch.end() {
            false => turned,
            true => turn::Turned::Failed(self.late()),
        };
        let is_discarded = !matches!(turned, turn::Turned::Applied { .. });
        let next = self.settle(id, item, turned);
        if is_discarded && sabotage::is("X28") {
            self.table.remove(id);
            self.activate(id);
        }
        next
    }

    pub(super) fn late(&self) -> Error {
        let limit = self.environment.config.turn_deadline;
        Error::new(ErrorKind::Deadline, format!("the turn took longer than {limit:?}"))
    }

    /// Settles a turn; one that deletes its entity first needs to know what is delayed.
    pub(super) fn settle(&mut self, id: &EntityId, mut item: Item, turned: turn::Turned) -> Next {
        if matches!(&turned, turn::Turned::Applied { effects, .. } if effects.deleted)
            && item.delayed.is_none()
        {
            item.turned = Some(Box::new(turned));
            return self.list_delayed(id, item);
        }
        self.settle_turn(id, item, turned);
        Next::Goes
    }

    /// The signals of a sender wait until the first of them may be tried again.
    pub(super) fn block_lane(
        &mut self,
        id: &EntityId,
        mut item: Item,
        sender: Sender,
        retry_at: Timestamp,
    ) {
        item.permit = None;
        if let Some(activation) = self.table.get_mut(id) {
            match activation.lane(&sender) {
                // A sender has one lane: what it waits for first is tried first.
                Some(lane) => lane.items.push_back(item),
                None => {
                    let lane = Lane { sender, retry_at, items: VecDeque::from([item]) };
                    activation.blocked.push(lane);
                }
            }
        }
        self.retries.insert((retry_at, id.clone()));
    }

    /// Lets the lanes whose time has come go first.
    pub(super) fn unblock(&mut self, id: &EntityId) {
        let now = self.now;
        let Some(activation) = self.table.get_mut(id) else {
            // Rows that could not be read are read again.
            return self.page(id);
        };
        let lanes = std::mem::take(&mut activation.blocked);
        let (due, waiting): (Vec<Lane>, Vec<Lane>) =
            lanes.into_iter().partition(|lane| lane.retry_at <= now);
        activation.blocked = waiting;
        for lane in due {
            for item in lane.items.into_iter().rev() {
                activation.mailbox.push_front(item);
            }
        }
        self.make_ready(id);
    }
}
