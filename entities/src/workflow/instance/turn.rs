//! Turns of an instance: what arrived is handed to the run, one after the other, and what the run begins on it becomes
//! history and effects.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{
    Answered, Attempted, Live, Position, Programs, Slot, State,
    events::KeptEvent,
    head::{Arrived, Head, Kept, Status, Stuck},
};
use crate::{
    Context, Failure, Timestamp,
    ask::answer_json,
    sabotage::Sabotage,
    workflow::{
        DELIVERED_BYTES_PER_TURN_MAX, DELIVERIES_PER_TURN_MAX, LONG_BYTES, LONG_DELIVERIES,
        STUCK_RETRIES_MAX, STUCK_RETRY,
        activation::{Activation, Problem},
        core::{End, RunIdentity},
        history::{Begun, Delivery, Kind, Payload},
        place::Place,
        start::cut,
    },
};

/// A turn of an instance.
pub(super) struct Engine<'e> {
    pub(super) state: &'e mut State,
    pub(super) slot: &'e Slot,
    pub(super) programs: &'e Programs,
    pub(super) ctx: &'e mut Context,
}

/// Something to hand over: what was kept has a number.
struct Item {
    number: Option<u64>,
    at: Timestamp,
    what: Arrived,
}

/// Deliveries of a run that are handed over once more, in their order.
#[derive(Default)]
pub(super) struct Again {
    /// Each with the operation whose end it is, where that began in the turn that is cut.
    pub(super) arrivals: Vec<(Arrived, Option<Begun>)>,
    /// The operation from whose beginning on failures are left out, and what began in the turn that is cut.
    pub(super) until: Option<Place>,
}

impl Engine<'_> {
    pub(super) fn head(&mut self) -> &mut Head {
        self.state.head_mut()
    }

    /// Whether it was started, and has not ended.
    pub(super) fn runs(&self) -> bool {
        let goes_on = |status: Status| {
            !status.is_end() || status == Status::Terminated && Sabotage::TerminatedGoesOn.is_on()
        };
        self.state.started().is_some_and(|head| goes_on(head.status))
    }

    /// Hands over what has arrived, or keeps it.
    pub(super) fn arrive(&mut self, new: Vec<Arrived>) {
        if let Some(why) = self.ctx.failure() {
            let problem = Problem::Poisoned(why.to_owned());
            return self.become_stuck(&problem, new);
        }
        let head = self.head();
        let is_suspended = !head.suspended.is_empty();
        if head.stuck.is_some() || is_suspended {
            if is_suspended && new.is_empty() && Sabotage::TimersWhileSuspended.is_on() {
                return self.drive_or_stick(new);
            }
            return self.keep_all(new);
        }
        self.drive_or_stick(new);
    }

    /// Hands over what has arrived and what was kept. Where the code refuses, nothing of the turn stays but that.
    fn drive_or_stick(&mut self, new: Vec<Arrived>) {
        let (before, at) = (self.state.clone(), self.ctx.now());
        let arrived = new.iter().map(|what| Kept { at, what: what.clone() });
        if let Err(problem) = self.drive(arrived.collect()) {
            *self.state = before;
            if matches!(problem, Problem::Mismatch(_)) && Sabotage::MismatchFails.is_on() {
                let failed = answer_json(Err(Failure::Failed(problem.text().to_owned())));
                return self.end_run(End::Returned(failed.into()));
            }
            let lost = Sabotage::LostWhenStuck.is_on();
            self.become_stuck(&problem, if lost { Vec::new() } else { new });
        }
    }

    pub(super) fn keep_all(&mut self, new: Vec<Arrived>) {
        let now = self.ctx.now();
        for what in new {
            self.state.keep(now, what);
        }
        self.mark();
    }

    fn become_stuck(&mut self, problem: &Problem, new: Vec<Arrived>) {
        let now = self.ctx.now();
        self.keep_all(new);
        let head = self.head();
        let (since, attempts) = match &head.stuck {
            Some(stuck) => (stuck.since, stuck.attempts + 1),
            None => (now, 1),
        };
        let retry_at = match problem {
            Problem::Refused(_) if attempts <= STUCK_RETRIES_MAX => {
                Some(now + STUCK_RETRY * (1 << (attempts - 1)))
            }
            Problem::Refused(_) | Problem::Mismatch(_) | Problem::Poisoned(_) => None,
        };
        let is_poisoned = matches!(problem, Problem::Poisoned(_));
        let attempts = if is_poisoned { 0 } else { attempts };
        let reason = cut(problem.text().to_owned());
        let trouble = format!("run {} of version {} is stuck: {reason}", head.run, head.version);
        head.stuck = Some(Box::new(Stuck { since, reason, attempts, retry_at }));
        self.ctx.tell_trouble(trouble);
        self.wake_by(retry_at);
        self.mark();
    }

    /// The run, replayed where it is not in memory as it was at a position, behind which these events were kept.
    fn live(&mut self, position: Position, new: Vec<KeptEvent>) -> Result<Box<Live>, Problem> {
        if let Some(mut live) = self.slot.take()
            && live.position == position
            && !self.lacks_code(&live)
        {
            for (name, number) in new {
                live.events.entry(name).or_default().push_back(number);
            }
            return Ok(live);
        }
        // What is read comes first: a turn that lacks entries is run again.
        let events = self.kept_events();
        let mut activation = self.replayed()?;
        if Sabotage::DropCancels.is_on()
            && let Some(activation) = &mut activation
        {
            activation.begin_turn(self.ctx.now());
            activation.deliver(Delivery::Cancel)?;
        }
        Ok(Box::new(Live { position, activation, events }))
    }

    /// The run where its history ends; none where that has no beginning.
    fn replayed(&self) -> Result<Option<Activation>, Problem> {
        let head = self.state.head.as_deref();
        let forgets = Sabotage::OutcomesForgotten.is_on() && head.is_some_and(|it| it.lacks_steps);
        let turns = head.map_or(0, |head| head.history.turns);
        let turns = turns.saturating_sub(u64::from(forgets)).max(1);
        let (mut activation, mut number) = (None::<Activation>, 0);
        self.state.history.each(Problem::Refused, |turn| {
            number += 1;
            if number > turns {
                return Ok(());
            }
            if number == 1
                && let Some(Delivery::Start(input)) = turn.deliveries.first()
            {
                activation = Some(self.activation(input)?);
            }
            activation.as_mut().map_or(Ok(()), |activation| activation.replay(&turn))
        })?;
        Ok(activation)
    }

    /// The numbers of the events that wait, by name.
    pub(super) fn kept_events(&mut self) -> BTreeMap<Box<str>, VecDeque<u64>> {
        let mut events = BTreeMap::<Box<str>, VecDeque<u64>>::new();
        if self.head().kept.events > 0 {
            for (number, kept) in self.state.kept.read_all() {
                if let Arrived::Event(name, _) = &kept.what {
                    events.entry(name.as_str().into()).or_default().push_back(*number);
                }
            }
        }
        events
    }

    pub(super) fn activation(&self, input: &Payload) -> Result<Activation, Problem> {
        let id = self.ctx.id().clone();
        let head = self.state.head.as_deref().expect("an instance that has begun");
        let (version, run, seed) = (head.version, head.code_run(), head.seed);
        let rewound_at = head.rewound_at;
        let polled = if Sabotage::NewestPolled.is_on() { self.programs.newest } else { version };
        let program = self.programs.get(polled).ok_or_else(|| {
            Problem::Mismatch(format!(
                "the run began with version {version} of {}, which this program does not have: deploy one that has \
                 it, `also({version} = ..)`",
                self.programs.name
            ))
        })?;
        let identity = RunIdentity { id, version, run, seed, rewound_at };
        Activation::new(program, identity, input)
    }

    /// Hands over one thing after the other: what was kept before what is new, and timers in between, at their times.
    pub(super) fn drive(&mut self, new: Vec<Kept>) -> Result<(), Problem> {
        let position = self.state.position();
        // What is read comes first, while the run is in memory: a turn that lacks entries is run again.
        let events = self.keep_later();
        let live = self.live(position, events)?;
        self.drive_live(live, Again::default(), new)
    }

    /// The same, behind what is handed over once more, which is older than all of it.
    pub(super) fn drive_behind(&mut self, again: Again) -> Result<(), Problem> {
        let live = self.live(self.state.position(), Vec::new())?;
        self.drive_live(live, again, Vec::new())
    }

    fn drive_live(
        &mut self,
        mut live: Box<Live>,
        again: Again,
        new: Vec<Kept>,
    ) -> Result<(), Problem> {
        let now = self.ctx.now();
        if let Some(activation) = &live.activation {
            activation.begin_turn(now);
        }
        self.tell_length(&live);
        self.hand_over_again(&mut live, again, now)?;
        let mut queue = self.queue(new);
        let (mut delivered, mut bytes) = (0, 0);
        let is_full = |delivered: usize, bytes: usize| {
            delivered >= DELIVERIES_PER_TURN_MAX || bytes >= DELIVERED_BYTES_PER_TURN_MAX
        };
        while !live.has_ended() && !is_full(delivered, bytes) {
            let mut until = queue.front().map_or(now, |item| item.at);
            if Sabotage::TimersEarly.is_on() {
                until = until + Duration::from_secs(1);
            }
            delivered += 1;
            if let Some(of_event) = self.hand_over_event(&mut live)? {
                bytes += of_event;
                continue;
            }
            if self.hand_over_due(&mut live, until)? {
                continue;
            }
            let Some(item) = queue.pop_front() else { break };
            bytes += item.what.len();
            if let Some(number) = item.number {
                self.state.take_kept(number);
            }
            self.hand_over(&mut live, item)?;
        }
        if live.activation.as_ref().is_some_and(|it| it.core.lock().begins_more()) {
            deliver(&mut live, Delivery::Room)?;
        }
        let has_more = !queue.is_empty() || is_full(delivered, bytes) || self.has_room_for_later();
        // What did not fit waits for the next turn, or for its end with the run.
        for item in queue.into_iter().filter(|item| item.number.is_none()) {
            self.state.keep(item.at, item.what);
        }
        self.finish(live, has_more)
    }

    /// Hands over what was handed over before, in that order, whatever is due since then.
    fn hand_over_again(
        &mut self,
        live: &mut Live,
        again: Again,
        at: Timestamp,
    ) -> Result<(), Problem> {
        for (what, of) in again.arrivals {
            let is_behind = again.until.as_ref().is_some_and(|until| live.has_begun(until));
            let is_void = match &of {
                // The code may begin something else there by now.
                Some(begun) => is_behind || !live.waits_for(begun),
                None => is_behind && what.is_failure(),
            };
            if !(live.has_ended() || is_void) {
                self.hand_over(live, Item { number: None, at, what })?;
            }
        }
        Ok(())
    }

    /// Lists what is to be handed over: what is no event and was kept, in its order, and what is new.
    fn queue(&mut self, new: Vec<Kept>) -> VecDeque<Item> {
        let mut queue = VecDeque::with_capacity(new.len());
        if self.state.head_mut().kept.others > 0 {
            for (number, Kept { at, what }) in self.state.kept.read_all() {
                if !matches!(what, Arrived::Event(..)) {
                    queue.push_back(Item { number: Some(*number), at: *at, what: what.clone() });
                }
            }
        }
        queue.extend(new.into_iter().map(|Kept { at, what }| Item { number: None, at, what }));
        queue
    }

    /// Hands over the first event that a wait can take: the one that came first. Says how many bytes it has.
    fn hand_over_event(&mut self, live: &mut Live) -> Result<Option<usize>, Problem> {
        let Some(activation) = &live.activation else { return Ok(None) };
        if live.events.is_empty() {
            return Ok(None);
        }
        let state = activation.core.lock();
        let ready = state
            .awaited_events()
            .filter_map(|name| Some((*live.events.get(name)?.front()?, Box::<str>::from(name))));
        let ready = ready.min();
        let place = ready.as_ref().and_then(|(_, name)| state.wait_for(name).cloned());
        drop(state);
        let Some(((number, name), place)) = ready.zip(place) else { return Ok(None) };
        let waiting = live.events.get_mut(&name);
        let is_last = waiting.is_some_and(|numbers| {
            numbers.pop_front();
            numbers.is_empty()
        });
        if is_last {
            live.events.remove(&name);
        }
        match self.state.take_kept(number).map(|kept| kept.what) {
            Some(Arrived::Event(_, payload)) => {
                let is_taken = self.deliver_event(live, place, &payload)?;
                Ok(is_taken.then_some(payload.len()))
            }
            _ => Err(Problem::Refused(format!("the event {number} is not there any more"))),
        }
    }

    fn deliver_event(
        &mut self,
        live: &mut Live,
        place: Place,
        payload: &Payload,
    ) -> Result<bool, Problem> {
        let json = if payload.is_empty() { b"null" } else { payload.bytes() };
        deliver(live, Delivery::Done(place, answer_json(Ok(json)).into()))
    }

    /// Hands over what is due by itself until a moment: a timer, or the end of a step's time.
    fn hand_over_due(&mut self, live: &mut Live, until: Timestamp) -> Result<bool, Problem> {
        let Some(activation) = &live.activation else { return Ok(false) };
        let mut state = activation.core.lock();
        let due = state.next_due().filter(|(at, _)| *at <= until).cloned();
        let Some((_, place)) = due else { return Ok(false) };
        let is_timer = state.outstanding(&place).is_some_and(|open| open.begun.kind == Kind::Timer);
        if !is_timer {
            state.give_step_up(&place);
        }
        drop(state);
        let outcome = match is_timer {
            true => answer_json(Ok(b"null")),
            false => answer_json(Err(Failure::TimedOut)),
        };
        self.head().attempts.retain(|step| step.place != place);
        deliver(live, Delivery::Done(place, outcome.into()))
    }

    fn hand_over(&mut self, live: &mut Live, item: Item) -> Result<(), Problem> {
        match item.what {
            Arrived::Start(input) => {
                let activation = self.activation(&input)?;
                activation.begin_turn(self.ctx.now());
                live.activation = Some(activation);
                deliver(live, Delivery::Start(input))?;
            }
            Arrived::Event(name, payload) => {
                let waiting = live
                    .activation
                    .as_ref()
                    .and_then(|activation| activation.core.lock().wait_for(&name).cloned());
                match waiting {
                    Some(place) => drop(self.deliver_event(live, place, &payload)?),
                    None => {
                        let number =
                            self.state.keep(item.at, Arrived::Event(name.clone(), payload));
                        live.events.entry(name.into()).or_default().push_back(number);
                    }
                }
            }
            Arrived::Answer(place, outcome) => drop(deliver(live, Delivery::Done(place, outcome))?),
            Arrived::Attempt(place, end) => self.hand_over_attempt(live, place, end)?,
            Arrived::Cancel => drop(deliver(live, Delivery::Cancel)?),
        }
        Ok(())
    }

    /// Tells the run whether its history is long.
    fn tell_length(&mut self, live: &Live) {
        let counts = self.head().history;
        if let Some(activation) = &live.activation {
            activation.core.lock().is_long =
                counts.deliveries >= LONG_DELIVERIES || counts.bytes >= LONG_BYTES;
        }
    }

    /// Takes an answer, unless it is one to an earlier run.
    pub(super) fn answered(&mut self, answered: Answered) {
        let Answered { answer, place, run } = answered;
        self.arrive_in_run(run, Arrived::Answer(place, answer));
    }

    /// Hands over what belongs to a run. Where that is over, or does not wait for it any more, nothing changes.
    fn arrive_in_run(&mut self, run: u32, what: Arrived) {
        if !self.runs() || self.head().run != run {
            return self.ctx.leave_as_it_was();
        }
        let before = (self.state.head.clone(), self.state.position());
        self.arrive(vec![what]);
        if (&self.state.head, self.state.position()) == (&before.0, before.1) {
            self.ctx.leave_as_it_was();
        }
    }

    /// Takes the end of an attempt, unless it is one of an earlier run.
    pub(super) fn step_ended(&mut self, ended: Attempted) {
        let Attempted { place, run, end, .. } = ended;
        self.arrive_in_run(run, Arrived::Attempt(place, end));
    }

    /// Hands over what is due.
    pub(super) fn wake(&mut self) {
        if self.state.started().is_none() && self.state.head.is_some() {
            return self.give_up_events();
        }
        if !self.runs() {
            return self.ctx.leave_as_it_was();
        }
        self.head().wake_at = None;
        let now = self.ctx.now();
        let is_due = |stuck: &Stuck| stuck.retry_at.is_some_and(|at| at <= now);
        if self.head().stuck.as_deref().is_some_and(is_due) {
            return self.try_again();
        }
        let cancels = self.pass_deadline();
        if self.runs() {
            self.arrive(cancels);
        }
    }

    /// Goes on where the last turn has stopped.
    pub(super) fn go_on(&mut self) {
        match &self.state.head {
            Some(head) if head.status.is_end() => self.drain_events(|_| true),
            Some(head) if head.run == 0 => self.give_up_events(),
            Some(_) => self.arrive(Vec::new()),
            None => self.ctx.leave_as_it_was(),
        }
    }

    /// Tries a stuck instance again.
    pub(super) fn try_again(&mut self) {
        if self.ctx.failure().is_some() || !self.head().suspended.is_empty() {
            return self.arrive(Vec::new());
        }
        let before = self.state.clone();
        self.head().stuck = None;
        if let Err(problem) = self.drive(Vec::new()) {
            *self.state = before;
            return self.become_stuck(&problem, Vec::new());
        }
        self.restart_attempts();
    }

    /// Goes on after an operator had it wait.
    pub(super) fn continue_after_pause(&mut self) {
        self.arrive(Vec::new());
        self.restart_attempts();
    }

    /// Brings back what ended with the process: steps begin again, and what is stuck is tried again.
    pub(super) fn hosted(&mut self) {
        if !self.runs() {
            return self.ctx.leave_as_it_was();
        }
        let was_interrupted = self.ctx.was_interrupted();
        let head = self.head();
        (head.is_marked, head.lacks_steps) = (false, true);
        head.was_interrupted |= was_interrupted;
        match &head.stuck {
            // Each process that hosts it would end.
            Some(stuck) if stuck.is_poisoned() => {}
            Some(_) => self.try_again(),
            None => self.continue_after_pause(),
        }
        self.mark();
    }
}

/// Hands over one delivery. Says whether it changed anything.
pub(super) fn deliver(live: &mut Live, delivery: Delivery) -> Result<bool, Problem> {
    let activation = live.activation.as_mut();
    activation.map_or(Ok(false), |activation| activation.deliver(delivery))
}

impl Live {
    /// About how many bytes it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        let waiting: usize = self.events.values().map(|numbers| 96 + 8 * numbers.len()).sum();
        let activation = self.activation.as_ref().map_or(0, Activation::bytes);
        size_of::<Self>() + waiting + activation
    }

    /// Whether an operation has begun in this turn.
    fn has_begun(&self, place: &Place) -> bool {
        self.activation.as_ref().is_some_and(|activation| activation.core.lock().has_begun(place))
    }

    /// Whether the run waits for an operation that it would begin again so.
    fn waits_for(&self, begun: &Begun) -> bool {
        self.activation.as_ref().is_some_and(|activation| {
            let mut state = activation.core.lock();
            state.outstanding(&begun.place).is_some_and(|open| open.begun.fits(begun))
        })
    }

    fn has_ended(&self) -> bool {
        self.activation.as_ref().is_some_and(|activation| activation.core.lock().end.is_some())
    }
}
