//! The core of a run in memory: what the author's code has begun, and what came of it. The handle, the operations and
//! the combinators talk to it, inside a poll; the activation hands it what was delivered, between polls.
//!
//! What must never happen: an operation gets its identity from who polls it first; something in here depends on how
//! tables hash, on a clock or on chance; dropping the future of a run that goes on cancels anything.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem::{replace, take},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use smallvec::SmallVec;

use super::{
    BEGUN_BYTES_PER_TURN_MAX, BEGUN_PER_TURN_MAX, OUTSTANDING_MAX,
    history::{Begun, Delivery, Kind, Payload, Turn},
    open::{EventWaits, Open, OpenOperations},
    place::{Place, Scope},
    section::Locks,
};
use crate::{EntityId, Failure, Timestamp, ask::answer_json, effect::Delay, sabotage::Sabotage};

/// Everything that is the same throughout a run.
#[derive(Debug, Clone)]
pub(super) struct RunIdentity {
    pub(super) id: EntityId,
    pub(super) version: u32,
    pub(super) run: u32,
    /// Drawn when the run began; random numbers and tokens derive from it.
    pub(super) seed: u128,
    /// When the run was rewound: what was outstanding then began once more.
    pub(super) rewound_at: Timestamp,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The workflow returned this answer.
    Returned(Payload),
    /// It goes on as a new run with this input.
    Continued(Payload),
}

/// The wishes of a turn that its history does not keep.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// The delays of signals, by their places.
    pub(super) delays: BTreeMap<Place, Delay>,
    /// The locks under which calls began, by the places of the calls.
    pub(super) fences: BTreeMap<Place, Place>,
    /// The text of the status, as JSON.
    pub(super) status: Option<Payload>,
    /// Operations that were given up, for those who are to be told.
    pub(super) given_up: Vec<Begun>,
}

/// The core of one run; shared by the handles that the author's code has.
pub(super) struct Core(Mutex<State>);

/// Everything behind the lock of a core.
pub(super) struct State {
    pub(super) identity: Arc<RunIdentity>,
    /// The time of the present turn.
    pub(super) now: Timestamp,
    pub(super) scope: Scope,
    /// The place in history of the newest delivery, and the newest one that the polled branch rests on.
    delivered: u64,
    seen: u64,
    open: OpenOperations,
    /// How many of them have no outcome, and how many of those are steps, and children.
    outstanding: usize,
    steps: usize,
    children: usize,
    /// The moments at which something is due by itself.
    due: BTreeSet<(Timestamp, Place)>,
    waits: EventWaits,
    /// The locks of the section that the run is in, or enters.
    pub(super) locks: Option<Locks>,
    /// Operations that are to begin when there is room for them.
    queue: VecDeque<Waker>,
    patches: Option<Box<Patches>>,
    is_closed: bool,
    pub(super) is_long: bool,
    pub(super) end: Option<End>,
    /// None of a run that rests, of which there are many.
    working: Option<Box<Working>>,
}

/// The work of a turn, until it ends.
#[derive(Default)]
struct Working {
    turn: Turn,
    wishes: Wishes,
    /// How many operations, and how many bytes of them, may yet begin.
    room: (usize, usize),
    /// The due times of the timers that it began when it was recorded.
    recorded_due: BTreeMap<Place, Timestamp>,
    is_replayed: bool,
}

/// The answers of patches for the run, and the calls of patches that were answered with yes.
#[derive(Default)]
struct Patches {
    of_run: BTreeMap<Box<str>, bool>,
    calls: BTreeSet<(Box<str>, Place)>,
}

impl Core {
    pub(super) fn new(identity: RunIdentity) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            identity: Arc::new(identity),
            now: Timestamp::default(),
            scope: Scope::default(),
            delivered: 0,
            seen: 0,
            open: OpenOperations::default(),
            outstanding: 0,
            steps: 0,
            children: 0,
            due: BTreeSet::new(),
            waits: EventWaits::default(),
            locks: None,
            queue: VecDeque::new(),
            patches: None,
            is_closed: false,
            is_long: false,
            end: None,
            working: None,
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of the author's code ends the activation, whatever it has locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation, if there is room for one more. Else it is to be polled again, which is seen to.
    pub(super) fn begin(&self, ready: &mut Option<Box<Open>>, waker: &Waker) -> bool {
        let mut state = self.lock();
        let bytes = ready.as_ref().map_or(0, |ready| ready.begun.argument.len());
        let room = state.working().room;
        if state.outstanding >= OUTSTANDING_MAX || room.0 == 0 || room.1 < bytes {
            state.queue.push_back(waker.clone());
            return false;
        }
        if let Some(ready) = ready.take() {
            match state.breach(&ready.begun) {
                None => state.add(ready),
                Some(failure) => state.refuse(ready, failure),
            }
        }
        true
    }

    /// Begins what has no outcome.
    pub(super) fn send(&self, begun: Begun, delay: Option<Delay>) {
        let mut state = self.lock();
        state.use_room(&begun);
        let working = state.working();
        working.wishes.delays.extend(delay.map(|delay| (begun.place.clone(), delay)));
        working.turn.begun.push(begun);
    }

    /// Takes the outcome of an operation that began, or has `waker` woken when it is there.
    pub(super) fn take(&self, place: &Place, waker: &Waker) -> Option<Payload> {
        let mut state = self.lock();
        let (mut done, old_waker) = state.open.take_done(place, waker);
        let outcome = done.as_mut().and_then(|open| open.outcome.take());
        state.seen = state.seen.max(outcome.as_ref().map_or(0, |(at, _)| *at));
        drop(state);
        // They may hold what is the author's, which locks the core when it is dropped.
        drop((done, old_waker));
        outcome.map(|(_, outcome)| outcome)
    }

    /// Gives up an operation that began, and whose future is dropped.
    pub(super) fn give_up(&self, place: &Place) {
        let mut state = self.lock();
        let given_up = match state.is_closed {
            true => state.open.remove(place),
            false => state.give_up(place),
        };
        drop(state);
        // It may hold futures of the author's, which lock the core when they are dropped.
        drop(given_up);
    }

    /// Enters a scope; returns the outer one, and what the outer branch rests on.
    pub(super) fn enter(&self, scope: Scope) -> (Scope, u64) {
        let mut state = self.lock();
        (replace(&mut state.scope, scope), take(&mut state.seen))
    }

    /// Leaves a scope for the outer one; returns it, and what its branch rests on.
    pub(super) fn leave(&self, (scope, seen): (Scope, u64)) -> (Scope, u64) {
        let mut state = self.lock();
        (replace(&mut state.scope, scope), replace(&mut state.seen, seen))
    }

    /// Notes that the polled branch rests on this place in history.
    pub(super) fn rest_on(&self, seen: u64) {
        let mut state = self.lock();
        state.seen = state.seen.max(seen);
    }

    /// Begins a turn; one that is replayed does what was recorded.
    pub(super) fn begin_turn(&self, now: Timestamp, recorded: Option<&Turn>) {
        let mut state = self.lock();
        state.now = now;
        let working = state.working();
        working.begin(now, recorded.is_some());
        for begun in recorded.iter().flat_map(|turn| &turn.begun) {
            working.recorded_due.extend(begun.due.map(|due| (begun.place.clone(), due)));
        }
        for (name, place) in recorded.iter().flat_map(|turn| &turn.patches) {
            let patches = state.patches.get_or_insert_default();
            match place.clone() {
                Some(place) => drop(patches.calls.insert((name.clone(), place))),
                None => drop(patches.of_run.insert(name.clone(), true)),
            }
        }
    }

    /// Ends a turn, and returns what it did.
    pub(super) fn end_turn(&self) -> (Turn, Wishes) {
        let Working { mut turn, wishes, .. } = *self.lock().working.take().unwrap_or_default();
        turn.sort();
        (turn, wishes)
    }

    /// Has what was done in a turn, which is replayed, compared with what is recorded. Another turn is to follow.
    pub(super) fn compare_turn<T>(&self, compare: impl FnOnce(&Turn) -> T) -> T {
        let mut state = self.lock();
        let turn = &mut state.working().turn;
        turn.sort();
        compare(turn)
    }

    /// Hands over a delivery; the workflow is to be polled then. Says whether it changes anything: what has no
    /// outstanding operation to end does not.
    pub(super) fn deliver(&self, delivery: Delivery) -> bool {
        let mut state = self.lock();
        let at = state.delivered + 1;
        // Of one, mostly: it needs no memory.
        let woken: SmallVec<[Waker; 1]> = match &delivery {
            Delivery::Start(_) | Delivery::Room => SmallVec::new(),
            Delivery::Done(place, outcome) => match state.end_operation(place, (at, outcome)) {
                Some(waker) => waker.into_iter().collect(),
                None if Sabotage::LateOutcomesKept.is_on() => SmallVec::new(),
                None => return false,
            },
            Delivery::Cancel => state.cancel_all(at).into(),
        };
        state.delivered = at;
        state.working().turn.deliveries.push(delivery);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        true
    }

    /// Wakes as many of the operations that wait for room as have it now. Says how many began before, unless there are none.
    pub(super) fn wake_queued(&self) -> Option<usize> {
        let mut state = self.lock();
        if state.queue.is_empty() {
            return None;
        }
        let begun = state.begun_count();
        let room = state.working().room.0.min(OUTSTANDING_MAX.saturating_sub(state.outstanding));
        let count = room.min(state.queue.len());
        let woken: Vec<_> = state.queue.drain(..count).collect();
        drop(state);
        (woken.into_iter().map(Waker::wake).count() > 0).then_some(begun)
    }

    /// Ends the activation: nothing that is dropped from here on is cancelled.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
    }

    /// Drops what a closed one still holds.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        let held = (take(&mut state.open), take(&mut state.queue));
        drop(state);
        drop(held);
    }
}

impl Working {
    /// Begins a turn, in the memory of the one before.
    fn begin(&mut self, at: Timestamp, is_replayed: bool) {
        self.turn.clear(at);
        self.wishes = Wishes::default();
        self.room = (BEGUN_PER_TURN_MAX, BEGUN_BYTES_PER_TURN_MAX);
        self.recorded_due.clear();
        self.is_replayed = is_replayed;
    }
}

impl State {
    /// The present turn.
    fn working(&mut self) -> &mut Working {
        self.working.get_or_insert_default()
    }

    /// An operation as it is made: it begins when it is polled.
    pub(super) fn new_operation(&mut self, begun: Begun) -> Box<Open> {
        Box::new(Open { begun, since: self.now, options: None, waker: None, outcome: None })
    }

    /// Has an operation fail that does not begin.
    fn refuse(&mut self, mut open: Box<Open>, failure: Failure) {
        open.outcome = Some((0, answer_json(Err(failure)).into()));
        self.open.insert(open);
    }

    /// Ends the section that the run is in: its locks are let go.
    pub(super) fn end_section(&mut self) {
        let Some(locks) = self.locks.take().filter(|_| !self.is_closed) else { return };
        for (place, target) in locks.held() {
            let begun = Begun::new(place.clone(), Kind::Lock, "");
            let working = self.working();
            working.wishes.given_up.push(Begun { target: target.into(), ..begun });
            working.turn.cancelled.push(place.clone());
        }
    }

    /// The locks that the run has, or waits for, with their places.
    pub(super) fn all_locks(&self) -> Vec<(Place, Box<str>)> {
        // No lock is asked for outside of a section: most turns look at no operation here.
        let Some(locks) = &self.locks else { return Vec::new() };
        let held = locks.held().map(|(place, target)| (place.clone(), target.into()));
        let awaited = self.awaited_locks();
        let awaited = awaited.map(|begun| (begun.place.clone(), begun.target.clone()));
        let mut all: Vec<_> = held.chain(awaited).collect();
        all.sort_unstable();
        all
    }

    /// The locks that the run has asked for and not taken.
    pub(super) fn awaited_locks(&self) -> impl Iterator<Item = &Begun> {
        self.open.iter().map(|open| &open.begun).filter(|begun| begun.kind == Kind::Lock)
    }

    fn use_room(&mut self, begun: &Begun) {
        let room = &mut self.working().room;
        *room = (room.0.saturating_sub(1), room.1.saturating_sub(begun.argument.len()));
    }

    fn add(&mut self, mut open: Box<Open>) {
        let place = open.begun.place.clone();
        open.since = self.now.max(self.identity.rewound_at);
        match open.begun.kind {
            Kind::Timer => {
                let due = self.working().recorded_due.get(&place).copied().or(open.begun.due);
                open.begun.due = due;
                self.due.extend(due.map(|due| (due, place.clone())));
            }
            Kind::Event => {
                self.waits.push(&open.begun.name, place.clone());
            }
            Kind::Call => {
                let lock = self.lock_of(&open.begun.target).cloned();
                self.working().wishes.fences.extend(lock.map(|lock| (place.clone(), lock)));
            }
            Kind::Step | Kind::Signal | Kind::Child | Kind::Detached | Kind::Lock => {}
        }
        if let Some(deadline) = open.options.as_ref().and_then(|it| it.deadline) {
            self.due.insert((open.since + deadline, place.clone()));
        }
        self.use_room(&open.begun);
        let begun = open.begun.clone();
        self.working().turn.begun.push(begun);
        self.outstanding += 1;
        self.steps += usize::from(open.begun.kind == Kind::Step);
        self.children += usize::from(open.begun.kind == Kind::Child);
        self.open.insert(open);
    }

    /// Has an operation have its outcome; returns who waits for it. `None` where it is not outstanding.
    fn end_operation(
        &mut self,
        place: &Place,
        (at, outcome): (u64, &Payload),
    ) -> Option<Option<Waker>> {
        let open = self.outstanding(place)?;
        open.outcome = Some((at, outcome.clone()));
        let waker = open.waker.take();
        self.settle(place);
        Some(waker)
    }

    /// Takes note that an operation is not outstanding any more.
    fn settle(&mut self, place: &Place) {
        self.outstanding -= 1;
        let Some(open) = self.open.get(place) else { return };
        self.steps -= usize::from(open.begun.kind == Kind::Step);
        self.children -= usize::from(open.begun.kind == Kind::Child);
        let deadline = open.options.as_ref().and_then(|it| it.deadline);
        for due in open.begun.due.into_iter().chain(deadline.map(|length| open.since + length)) {
            self.due.remove(&(due, place.clone()));
        }
        let stays = open.outcome.is_none() && Sabotage::CancelledWaitTakes.is_on();
        if open.begun.kind == Kind::Event && !stays {
            self.waits.remove(&open.begun.name, place);
        }
    }

    fn give_up(&mut self, place: &Place) -> Option<Box<Open>> {
        let open = self.open.get(place)?;
        let is_done = open.outcome.is_some();
        // A lock that is there, and that nobody has taken, is let go too.
        if !is_done || open.begun.kind == Kind::Lock {
            let begun = open.begun.clone();
            let working = self.working();
            working.wishes.given_up.push(begun);
            working.turn.cancelled.push(place.clone());
        }
        if !is_done {
            self.settle(place);
        }
        self.open.remove(place)
    }

    /// Has who runs a step told that nobody waits for it any more.
    pub(super) fn give_step_up(&mut self, place: &Place) {
        let given_up = self.open.get(place).map(|open| open.begun.clone());
        self.working().wishes.given_up.extend(given_up);
    }

    /// Ends everything that is outstanding; returns who waits for it, in the order of places.
    fn cancel_all(&mut self, at: u64) -> Vec<Waker> {
        let begun: Vec<_> = self.all_outstanding().map(|open| open.begun.clone()).collect();
        let places: Vec<_> = begun.iter().map(|begun| begun.place.clone()).collect();
        self.working().wishes.given_up.extend(begun);
        let outcome: Payload = answer_json(Err(Failure::Cancelled)).into();
        let ended = places.iter().filter_map(|place| self.end_operation(place, (at, &outcome)));
        let wakers = ended.flatten().collect();
        self.working().turn.cancelled.extend(places);
        wakers
    }

    /// Whether nothing is outstanding, so that nothing can ever wake the workflow.
    pub(super) fn is_idle(&self) -> bool {
        self.outstanding == 0 && self.queue.is_empty()
    }

    /// Whether operations wait for room that the next turn has.
    pub(super) fn waits_for_turn(&self) -> bool {
        !self.queue.is_empty() && self.outstanding < OUTSTANDING_MAX
    }

    /// Whether they do, and this turn has handed over nothing yet that would have them begin.
    pub(super) fn begins_more(&self) -> bool {
        let is_handed_over = |it: &Working| !it.turn.deliveries.is_empty();
        self.waits_for_turn() && !self.working.as_deref().is_some_and(is_handed_over)
    }

    /// An operation that is outstanding.
    pub(super) fn outstanding(&mut self, place: &Place) -> Option<&mut Open> {
        self.open.get_mut(place).filter(|open| open.outcome.is_none())
    }

    /// All operations that are outstanding, in the order of their places.
    pub(super) fn all_outstanding(&self) -> impl Iterator<Item = &Open> {
        self.open.iter().filter(|open| open.outcome.is_none())
    }

    /// About how many bytes it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        let due = self.due.len() * size_of::<(Timestamp, Place)>();
        size_of::<Self>() + self.open.bytes() + self.waits.bytes() + due
    }

    pub(super) fn outstanding_count(&self) -> usize {
        self.outstanding
    }

    pub(super) fn outstanding_steps(&self) -> usize {
        self.steps
    }

    pub(super) fn outstanding_children(&self) -> usize {
        self.children
    }

    /// The oldest wait for an event.
    pub(super) fn wait_for(&self, event: &str) -> Option<&Place> {
        self.waits.first(event)
    }

    /// The names of the events that are waited for.
    pub(super) fn awaited_events(&self) -> impl Iterator<Item = &str> {
        self.waits.names()
    }

    /// The first moment at which something is due by itself, and the operation.
    pub(super) fn next_due(&self) -> Option<&(Timestamp, Place)> {
        self.due.first()
    }

    /// Whether something else is due by itself in the present turn, which is no replay.
    pub(super) fn has_due(&mut self) -> bool {
        !self.working().is_replayed && self.next_due().is_some_and(|(at, _)| *at <= self.now)
    }

    /// Whether an operation began in this turn.
    pub(super) fn has_begun(&self, place: &Place) -> bool {
        let begun = self.working.as_deref().map_or(&[][..], |working| &working.turn.begun);
        begun.iter().any(|begun| begun.place == *place)
    }

    /// How many operations began in this turn.
    pub(super) fn begun_count(&self) -> usize {
        self.working.as_deref().map_or(0, |working| working.turn.begun.len())
    }

    pub(super) fn set_status(&mut self, status: Payload) {
        self.working().wishes.status = Some(status);
    }

    /// The answer of a patch for the whole run: whether the run reached it for the first time with a program that
    /// has it.
    pub(super) fn patched(&mut self, name: &str) -> bool {
        let answer = !self.working().is_replayed || Sabotage::PatchByProgram.is_on();
        let patches = self.patches.get_or_insert_default();
        if let Some(known) = patches.of_run.get(name) {
            return *known;
        }
        patches.of_run.insert(name.into(), answer);
        if answer {
            self.working().turn.patches.push((name.into(), None));
        }
        answer
    }

    /// The answer of a patch for this call, behind the operation that was made last.
    pub(super) fn patched_now(&mut self, name: &str) -> bool {
        let call = (Box::from(name), self.scope.last());
        let is_replayed = self.working().is_replayed;
        let calls = &mut self.patches.get_or_insert_default().calls;
        if is_replayed || calls.contains(&call) {
            return calls.contains(&call);
        }
        calls.insert(call.clone());
        self.working().turn.patches.push((call.0, Some(call.1)));
        true
    }

    /// The next random number of the scope.
    pub(super) fn random(&mut self) -> u64 {
        self.scope.draws += 1;
        let path = self.scope.path().iter().map(|number| u64::from(*number));
        let words = path.chain([u64::MAX, self.scope.draws]);
        mixed(self.identity.seed, words)
    }
}

/// Mixes numbers into a seed: for each one step of SplitMix64 (Steele, Lea and Flood, 2014).
pub(super) fn mixed(seed: u128, words: impl IntoIterator<Item = u64>) -> u64 {
    let mut state = (seed as u64) ^ ((seed >> 64) as u64).rotate_left(32);
    for word in words {
        state =
            state.wrapping_add(0x9E37_79B9_7F4A_7C15) ^ word.wrapping_mul(0xD1B5_4A32_D192_ED03);
        state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        state ^= state >> 31;
    }
    state
}
