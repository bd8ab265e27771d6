//! Attempts of steps: which begin with a turn, what comes of one that has ended, and when the next one begins.

use std::time::Duration;

use super::{
    Live,
    head::{Arrived, StepAttempts, StepEnd},
    turn::{Engine, deliver},
};
use crate::{
    Failure, Timestamp,
    ask::answer_json,
    effect::Effect,
    sabotage::Sabotage,
    workflow::{
        ATTEMPTS, BACKOFF, BACKOFF_MAX, INTERRUPTED_MAX,
        activation::{Activation, Problem},
        core::mixed,
        history::{Delivery, Kind, Turn},
        open::Open,
        place::Place,
        start::{NewAttempt, StepStart},
    },
};

impl Engine<'_> {
    /// Hands over the outcome of a step, or has it tried again.
    pub(super) fn hand_over_attempt(
        &mut self,
        live: &mut Live,
        place: Place,
        end: StepEnd,
    ) -> Result<(), Problem> {
        let Some(activation) = &live.activation else { return Ok(()) };
        let mut state = activation.core.lock();
        let Some(open) = state.outstanding(&place) else { return Ok(()) };
        let known = self.attempts_of(&place);
        let failed = known.failed + 1;
        let (attempts, backoff, may_retry) = rules_of(open, &end);
        drop(state);
        let outcome = match end {
            StepEnd::Outcome(outcome) => outcome,
            StepEnd::Retry(reason, _) if failed >= attempts || !may_retry => {
                let times =
                    if failed == 1 { "1 attempt".to_owned() } else { format!("{failed} attempts") };
                answer_json(Err(Failure::Failed(format!("{reason} ({times})")))).into()
            }
            StepEnd::TimedOut if failed >= attempts || !may_retry => {
                answer_json(Err(Failure::TimedOut)).into()
            }
            StepEnd::Retry(..) | StepEnd::TimedOut => {
                let pause = match end {
                    StepEnd::Retry(_, Some(after)) => after.as_duration(),
                    _ => self.pause(&place, failed, backoff),
                };
                let next_at = Some((self.ctx.now() + pause).min(Timestamp::MAX));
                self.note_attempts(StepAttempts { failed, next_at, ..known });
                return Ok(());
            }
        };
        self.head().attempts.retain(|step| step.place != place);
        deliver(live, Delivery::Done(place, outcome))?;
        Ok(())
    }

    pub(super) fn attempts_of(&mut self, place: &Place) -> StepAttempts {
        let known = self.head().attempts.iter().find(|step| step.place == *place);
        known.cloned().unwrap_or_else(|| StepAttempts::none(place.clone()))
    }

    fn note_attempts(&mut self, attempts: StepAttempts) {
        let all = &mut self.head().attempts;
        all.retain(|step| step.place != attempts.place);
        all.push(attempts);
    }

    /// The wait before the next attempt: doubled with each, and up to a tenth longer or shorter.
    fn pause(
        &mut self,
        place: &Place,
        failed: u32,
        (first, longest): (Duration, Duration),
    ) -> Duration {
        let doubled = first.saturating_mul(1_u32.checked_shl(failed - 1).unwrap_or(u32::MAX));
        let pause = doubled.min(longest).as_micros() as u64;
        let tenth = pause / 10;
        let words = place
            .numbers()
            .iter()
            .map(|number| u64::from(*number))
            .chain([u64::MAX, u64::from(failed)]);
        let chance = mixed(self.head().seed, words) % (2 * tenth).max(1);
        Duration::from_micros(pause - tenth + chance)
    }

    /// Begins the attempts of steps that the turn began, and of those that are to be tried again.
    pub(super) fn start_attempts(&mut self, activation: &Activation, turn: &Turn) {
        let now = self.ctx.now();
        let begun = turn.begun.iter().filter(|begun| begun.kind == Kind::Step);
        let mut places: Vec<_> = begun.map(|begun| begun.place.clone()).collect();
        for step in &mut self.head().attempts {
            if step.next_at.is_some_and(|at| at <= now) {
                step.next_at = None;
                places.push(step.place.clone());
            }
        }
        for place in places {
            self.start_attempt(activation, place);
        }
    }

    /// Begins an attempt of a step that is outstanding.
    pub(super) fn start_attempt(&mut self, activation: &Activation, place: Place) {
        let (number, id) = (self.attempts_of(&place).number(), self.step_id(place.clone()));
        let head = self.head();
        let (version, seed, run) = (head.version, head.seed, u64::from(head.run));
        let Some(program) = self.programs.get(version).cloned() else { return };
        let mut state = activation.core.lock();
        let Some(open) = state.outstanding(&place) else { return };
        let of = if Sabotage::TokenOfAttempt.is_on() { run << 8 | u64::from(number) } else { run };
        let words =
            |half| place.numbers().iter().map(|number| u64::from(*number)).chain([of, half]);
        let token = u128::from(mixed(seed, words(1))) << 64 | u128::from(mixed(seed, words(2)));
        let start = StepStart::new(NewAttempt {
            id,
            name: open.begun.name.clone(),
            token,
            number,
            timeout: open.options.as_ref().and_then(|options| options.timeout),
            argument: open.begun.argument.clone(),
            program,
            body: open.options.as_mut().and_then(|options| options.body.take()),
        });
        drop(state);
        self.ctx.emit(Effect::Step(start));
    }

    /// Begins the steps that were under way when the partition was hosted by another process, unless it does not go on.
    pub(super) fn restart_attempts(&mut self) {
        let head = self.head();
        let goes_on = !head.status.is_end() && head.stuck.is_none() && head.suspended.is_empty();
        if !goes_on || !std::mem::take(&mut head.lacks_steps) {
            return;
        }
        let Some(live) = self.slot.take() else { return };
        let mut given_up = Vec::new();
        if let Some(activation) = &live.activation {
            let state = activation.core.lock();
            let steps = state.all_outstanding().filter(|open| open.begun.kind == Kind::Step);
            let places: Vec<_> = steps.map(|open| open.begun.place.clone()).collect();
            drop(state);
            let was_interrupted = std::mem::take(&mut self.head().was_interrupted);
            for place in places {
                let mut known = self.attempts_of(&place);
                if known.next_at.is_some() {
                    continue;
                }
                if was_interrupted {
                    known.interrupted += 1;
                    if known.interrupted >= INTERRUPTED_MAX {
                        let why = format!("the process ended during {INTERRUPTED_MAX} attempts");
                        let outcome = answer_json(Err(Failure::Failed(why)));
                        given_up.push(Arrived::Attempt(place, StepEnd::Outcome(outcome.into())));
                        continue;
                    }
                    self.note_attempts(known);
                }
                self.start_attempt(activation, place);
            }
        }
        self.slot.put(live);
        if !given_up.is_empty() {
            self.arrive(given_up);
        }
    }
    /// Whether a step in place is to be tried again whose code was used up: replaying makes it anew.
    pub(super) fn lacks_code(&self, live: &Live) -> bool {
        let Some(activation) = &live.activation else { return false };
        let now = self.ctx.now();
        let head = self.state.head.as_ref();
        let due = head.iter().flat_map(|head| &head.attempts);
        let mut due = due.filter(|step| step.next_at.is_some_and(|at| at <= now)).peekable();
        if due.peek().is_none() {
            return false;
        }
        let mut state = activation.core.lock();
        due.any(|step| state.outstanding(&step.place).is_some_and(|open| open.lacks_body()))
    }
}

/// How often a step is tried, with which waits, and whether it may be tried again after this end.
fn rules_of(open: &Open, end: &StepEnd) -> (u32, (Duration, Duration), bool) {
    let options = open.options.as_deref();
    let attempts = options.and_then(|options| options.attempts).unwrap_or(ATTEMPTS);
    let backoff = options.and_then(|options| options.backoff).unwrap_or((BACKOFF, BACKOFF_MAX));
    let retry_if = options.and_then(|options| options.retry_if.as_ref());
    let may_retry = match (end, retry_if) {
        (StepEnd::Retry(reason, _), Some(again)) => again(reason),
        _ => true,
    };
    (attempts, backoff, may_retry)
}
