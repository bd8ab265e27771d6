//! The end of a turn: what the run did becomes a row of history, a new head, and effects.

use std::borrow::Cow;

use super::{
    ANSWERED, GO_ON, HOSTED, Live, WAKE,
    head::{HeldLock, Status, WAITS_SHOWN_MAX, Wait},
    locks::{fence, locking},
    turn::Engine,
};
use crate::{
    Delay, EntityId, Schedule, Timestamp,
    ask::{Ask, Continuation},
    effect::{Effect, Reminder, Signal},
    sabotage::Sabotage,
    schedule::At,
    workflow::{
        HISTORY_BYTES_MAX, HISTORY_DELIVERIES_MAX,
        activation::{Activation, Problem},
        core::Wishes,
        history::{Begun, Kind, Turn},
        open::Open,
        place::Place,
        start::StepId,
    },
};

impl Engine<'_> {
    /// Makes history and effects of what the run did.
    pub(super) fn finish(&mut self, mut live: Box<Live>, has_more: bool) -> Result<(), Problem> {
        let Some(activation) = &live.activation else {
            self.slot.put(live);
            return Ok(());
        };
        let (turn, wishes) = activation.end_turn();
        self.record(&turn)?;
        let now = self.ctx.now();
        let (end, next_due, goes_on) = {
            let mut state = activation.core.lock();
            (state.end.take(), state.next_due().map(|(at, _)| *at), state.waits_for_turn())
        };
        let head = self.head();
        if !turn.deliveries.is_empty() {
            head.updated_at = now;
        }
        if let Some(shown) = wishes.status.clone() {
            head.shown = shown;
        }
        if head.status == Status::Pending {
            head.status = Status::Running;
        }
        self.emit_begun(&turn, &wishes);
        self.give_up(&wishes.given_up);
        if let Some(end) = end {
            self.end_run(end);
            if Sabotage::EndedRunsStay.is_on() {
                self.slot.put(live);
            }
            return Ok(());
        }
        self.start_attempts(activation, &turn);
        self.describe_waits(activation);
        self.mark();
        let retries = self.head().attempts.iter().filter_map(|step| step.next_at).min();
        let deadline = self.head().deadline;
        self.wake_by([next_due, retries, deadline].into_iter().flatten().min());
        if has_more || goes_on {
            self.signal_self(GO_ON);
        }
        live.position = self.state.position();
        self.slot.put(live);
        Ok(())
    }

    /// Adds the turn to the history, unless nothing was handed over.
    pub(super) fn record(&mut self, turn: &Turn) -> Result<(), Problem> {
        if turn.deliveries.is_empty() {
            return Ok(());
        }
        let bytes = self.state.history.push(turn).map_err(Problem::Refused)?;
        let counts = &mut self.head().history;
        counts.turns += 1;
        counts.deliveries += turn.deliveries.len() as u64;
        counts.bytes += bytes as u64;
        if counts.deliveries > HISTORY_DELIVERIES_MAX || counts.bytes > HISTORY_BYTES_MAX {
            return Err(Problem::Mismatch(format!(
                "its history has {} deliveries and {} bytes, the limit is {HISTORY_DELIVERIES_MAX} and \
                 {HISTORY_BYTES_MAX}: let the code `continue_as` a new run when `history_is_long`, and rewind or \
                 restart this one",
                counts.deliveries, counts.bytes
            )));
        }
        Ok(())
    }

    /// Sends what the turn began, and did not give up at once.
    pub(super) fn emit_begun(&mut self, turn: &Turn, wishes: &Wishes) {
        let head = self.head();
        let (run, seed) = (head.run, head.seed);
        for begun in &turn.begun {
            let place = &begun.place;
            if turn.cancelled.binary_search(place).is_ok() {
                continue;
            }
            let effect = match begun.kind {
                Kind::Step | Kind::Timer | Kind::Event => continue,
                Kind::Signal | Kind::Detached => {
                    let delay = wishes.delays.get(place).copied();
                    signal(begun, delay).map(Effect::Signal)
                }
                Kind::Call | Kind::Child => {
                    let lock = wishes.fences.get(place).map(|lock| fence((run, seed), lock));
                    question(begun, run).map(|ask| Effect::Ask(Ask { fence: lock, ..ask }))
                }
                Kind::Lock => locking(begun, (run, seed)).map(Effect::Ask),
            };
            // Ids were checked where they were made.
            effect.into_iter().for_each(|effect| self.ctx.emit(effect));
        }
    }

    /// Tells steps and children that nobody waits for them any more.
    fn give_up(&mut self, given_up: &[Begun]) {
        for begun in given_up {
            match begun.kind {
                Kind::Step => {
                    self.head().attempts.retain(|step| step.place != begun.place);
                    let id = self.step_id(begun.place.clone());
                    self.ctx.emit(Effect::CancelStep(id));
                }
                Kind::Child => self.signal_child(&begun.target, "cancel", b"{}"),
                Kind::Lock => self.unlock(&begun.target, &begun.place),
                _ => {}
            }
        }
    }

    pub(super) fn signal_child(&mut self, target: &str, operation: &'static str, input: &[u8]) {
        if let Ok(target) = EntityId::parse(target) {
            let (operation, input) = (Cow::Borrowed(operation), input.to_vec());
            self.ctx.emit(Effect::Signal(Signal { target, operation, input, delay: None }));
        }
    }

    pub(super) fn terminate_child(&mut self, child: &str, why: &str) {
        self.signal_child(child, "terminate", format!("{{\"reason\":\"{why}\"}}").as_bytes());
    }

    pub(super) fn step_id(&mut self, place: Place) -> StepId {
        StepId { workflow: self.ctx.id().clone(), run: self.head().run, place }
    }

    /// Notes what the run waits for.
    fn describe_waits(&mut self, activation: &Activation) {
        let state = activation.core.lock();
        let (outstanding, children) = (state.outstanding_count(), state.outstanding_children());
        let shown = |open: &Open| Wait {
            place: open.begun.place.clone(),
            kind: open.begun.kind,
            name: open.begun.name.clone(),
            target: open.begun.target.clone(),
            since: open.since,
            due: open.begun.due,
        };
        // Of many the first ones are not worth looking for with each turn.
        let mut waits: Vec<_> = match outstanding <= 4 * WAITS_SHOWN_MAX {
            true => state.all_outstanding().take(WAITS_SHOWN_MAX).map(shown).collect(),
            false => Vec::new(),
        };
        // It stays with an instance at rest, of which there are many.
        waits.shrink_to_fit();
        let has_steps = state.outstanding_steps() > 0;
        let locks = state.all_locks().into_iter();
        let locks = locks.map(|(place, target)| HeldLock { place, target: target.into() });
        let locks = locks.collect();
        drop(state);
        let head = self.head();
        head.locks = locks;
        (head.outstanding, head.children) = (outstanding as u32, children as u32);
        (head.waits, head.has_steps) = (waits, has_steps);
    }

    /// Sees to it that the instance is brought back where its partition is hosted anew, while anything is under way
    /// that ends with the process.
    pub(super) fn mark(&mut self) {
        let head = self.head();
        let wants = !head.status.is_end() && (head.has_steps || head.stuck.is_some());
        if head.is_marked != wants {
            head.is_marked = wants;
            self.ctx.emit(Effect::OnHosting(wants.then_some(HOSTED.into())));
        }
    }

    /// Sees to it that the instance is woken at a time, or before.
    pub(super) fn wake_by(&mut self, at: Option<Timestamp>) {
        let Some(at) = at else { return };
        let head = self.head();
        if head.wake_at.is_some_and(|known| known <= at) {
            return;
        }
        head.wake_at = Some(at);
        self.ctx.emit(Effect::Remind(Reminder {
            name: WAKE.into(),
            schedule: Schedule::from(At(at)),
            operation: WAKE.into(),
            input: Vec::new(),
        }));
    }

    pub(super) fn signal_self(&mut self, operation: &'static str) {
        let target = self.ctx.id().clone();
        let operation = Cow::Borrowed(operation);
        self.ctx.emit(Effect::Signal(Signal { target, operation, input: Vec::new(), delay: None }));
    }
}

fn signal(begun: &Begun, delay: Option<Delay>) -> Option<Signal> {
    let target = EntityId::parse(&begun.target).ok()?;
    let operation = begun.name.clone();
    Some(Signal { target, operation, input: begun.argument.bytes().to_vec(), delay })
}

/// The question of a call or of the start of a child, whose answer comes to the place where it began.
pub(super) fn question(begun: &Begun, run: u32) -> Option<Ask> {
    let others = format!("{{\"place\":\"{}\",\"run\":{run}}}", begun.place);
    let then = Continuation {
        operation: ANSWERED.into(),
        argument: "answer".into(),
        others: others.into_bytes(),
        takes_list: false,
    };
    Some(Ask { questions: vec![signal(begun, None)?], then, timeout: None, fence: None })
}
