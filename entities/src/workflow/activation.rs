//! A run in memory: the author's future with its core. It is handed one delivery, polled until it rests, and then the
//! next one: so what it begins follows from the deliveries and their order, whatever it is made of.
//!
//! It is a cache of the history. Dropping it cancels nothing; replaying the history brings it back.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use super::{
    core::{Core, End, RunIdentity, Wishes},
    guard::guarded,
    history::{Begun, Delivery, Payload, Turn},
    place::Place,
    program::Program,
};
use crate::{BoxFuture, Timestamp, sabotage::Sabotage};

/// The most times that a future which wakes itself is polled for one delivery.
const POLLS_MAX: usize = 1_000_000;

/// A run in memory.
pub(super) struct Activation {
    future: Option<BoxFuture<'static, Payload>>,
    pub(super) core: Arc<Core>,
    watch: Arc<Watch>,
    waker: Waker,
}

/// Why a turn is discarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The code does not do what the history says that it did.
    Mismatch(String),
    /// The code panicked, or waits for what is not the workflow's.
    Refused(String),
    /// The process ended each time this was tried, or it took too long.
    Poisoned(String),
}

impl Problem {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Mismatch(text) | Self::Refused(text) | Self::Poisoned(text) => text,
        }
    }
}

impl Activation {
    /// Begins a run: what it does comes with its first delivery.
    pub(super) fn new(
        program: &Program,
        identity: RunIdentity,
        input: &Payload,
    ) -> Result<Self, Problem> {
        let core = Core::new(identity);
        let future = program.start(&core, input.bytes()).map_err(|error| {
            Problem::Refused(format!("the input does not fit the code any more: {error}"))
        })?;
        let watch = Arc::new(Watch::default());
        let waker = Waker::from(watch.clone());
        Ok(Self { future: Some(future), core, watch, waker })
    }

    /// Runs a turn again as it is recorded.
    pub(super) fn replay(&mut self, recorded: &Turn) -> Result<(), Problem> {
        self.deliver_again(recorded, recorded.deliveries.len())?;
        self.core.compare_turn(|found| compare(recorded, found))
    }

    /// The same, where the arguments have to be those that are recorded, too. A node does not ask for that: it takes long.
    pub(super) fn replay_exactly(&mut self, recorded: &Turn) -> Result<(), Problem> {
        self.replay(recorded)?;
        self.core.compare_turn(|found| same_arguments(recorded, found))
    }

    /// Runs the first deliveries of a turn again; returns what it does on them.
    pub(super) fn replay_part(&mut self, recorded: &Turn, count: usize) -> Result<Turn, Problem> {
        self.deliver_again(recorded, count)?;
        Ok(self.core.end_turn().0)
    }

    fn deliver_again(&mut self, recorded: &Turn, count: usize) -> Result<(), Problem> {
        self.core.begin_turn(recorded.at, Some(recorded));
        let mut deliveries = recorded.deliveries[..count].iter().cloned();
        deliveries.try_for_each(|delivery| self.deliver(delivery).map(drop))
    }

    /// About how many bytes it takes in memory; what the author's future owns beside itself is not known.
    pub(super) fn bytes(&self) -> usize {
        let future = self.future.as_deref().map_or(0, size_of_val);
        future + size_of::<Watch>() + self.core.lock().bytes()
    }

    /// Begins a turn.
    pub(super) fn begin_turn(&self, now: Timestamp) {
        self.core.begin_turn(now, None);
    }

    /// Ends a turn.
    pub(super) fn end_turn(&self) -> (Turn, Wishes) {
        self.core.end_turn()
    }

    /// Hands over a delivery and polls until the run rests. Says whether the delivery changed anything.
    pub(super) fn deliver(&mut self, delivery: Delivery) -> Result<bool, Problem> {
        self.watch.begin()?;
        let begins = matches!(delivery, Delivery::Start(_));
        if !self.core.deliver(delivery) {
            self.watch.end();
            return Ok(false);
        }
        if begins {
            self.watch.wake_by_ref();
        }
        if Sabotage::TwoDeliveriesAPoll.is_on() && self.core.lock().has_due() {
            self.watch.end();
            return Ok(true);
        }
        let rested = self.poll_to_rest();
        self.watch.end();
        rested.map(|()| true)
    }

    fn poll_to_rest(&mut self) -> Result<(), Problem> {
        for _ in 0..POLLS_MAX {
            if self.watch.take_woken() {
                self.poll()?;
                continue;
            }
            let woken = self.core.wake_queued().filter(|_| self.watch.take_woken());
            let Some(begun) = woken else { return self.check_rest() };
            self.poll()?;
            if self.core.lock().begun_count() == begun {
                return self.check_rest();
            }
        }
        Err(Problem::Refused(format!(
            "it was polled {POLLS_MAX} times and wakes itself without end"
        )))
    }

    /// Polls once; the end of the run is noted in the core.
    fn poll(&mut self) -> Result<(), Problem> {
        let Some(future) = &mut self.future else { return Ok(()) };
        let mut cx = Context::from_waker(&self.waker);
        let poll = || catch_unwind(AssertUnwindSafe(|| Pin::new(future).poll(&mut cx)));
        let polled = guarded(poll).map_err(|why| self.refused(&why))?;
        match polled {
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                Err(self.refused(&foreign(text.unwrap_or("no message"))))
            }
            Ok(Poll::Ready(answer)) => {
                self.drop_future();
                self.core.lock().end = Some(End::Returned(answer));
                Ok(())
            }
            Ok(Poll::Pending) => {
                if self.core.lock().end.is_some() {
                    self.drop_future();
                }
                Ok(())
            }
        }
    }

    /// Drops the future of a run that has ended: what it waited for is given up.
    fn drop_future(&mut self) {
        self.future = None;
    }

    fn check_rest(&self) -> Result<(), Problem> {
        match self.future.is_some() && self.core.lock().is_idle() {
            true if Sabotage::IdleUnseen.is_on() => Ok(()),
            true => Err(self.refused("waits for something that is not the workflow's")),
            false => Ok(()),
        }
    }

    fn refused(&self, what: &str) -> Problem {
        let state = self.core.lock();
        let (identity, place) = (&state.identity, state.scope.last());
        Problem::Refused(format!(
            "{} (version {}) {what}, behind place {place}. A workflow awaits only its own operations: move this into a \
             step, or use `ctx.sleep`",
            identity.id, identity.version
        ))
    }
}

impl Drop for Activation {
    fn drop(&mut self) {
        self.core.close();
        // The author's code may panic here as everywhere.
        let future = self.future.take();
        let _dropped = catch_unwind(AssertUnwindSafe(|| drop(future)));
        self.core.clear();
    }
}

/// Names what code did that has panicked: tokio does where there is nothing of it to wait with.
fn foreign(text: &str) -> String {
    let is_tokio = text.contains("Tokio 1.x");
    match () {
        () if is_tokio && text.contains("timers are disabled") => {
            "awaited tokio's timer".to_owned()
        }
        () if is_tokio && text.contains("IO is disabled") => {
            "used tokio's sockets or files".to_owned()
        }
        () => format!("panicked: {text}"),
    }
}

/// Compares what a replayed turn did with what is recorded of it.
fn compare(recorded: &Turn, found: &Turn) -> Result<(), Problem> {
    let fit = |(was, is): (&Begun, &Begun)| was.place == is.place && was.fits(is);
    let is_same_count = recorded.begun.len() == found.begun.len();
    // As nearly always.
    if !(is_same_count && recorded.begun.iter().zip(&found.begun).all(fit)) {
        for Begun { place, .. } in recorded.begun.iter().chain(&found.begun) {
            let (was, is) = (recorded.begun_at(place), found.begun_at(place));
            if !was.zip(is).is_some_and(|(was, is)| was.fits(is)) {
                let shown =
                    |begun: Option<&Begun>| begun.map_or("nothing".to_owned(), Begun::to_string);
                let from = was.map_or("a place before it".to_owned(), |_| from_there(place));
                return Err(mismatch((place, &from), &shown(was), &shown(is), "began"));
            }
        }
    }
    let differs =
        |one: &[Place], other: &[Place]| one.iter().find(|place| !other.contains(place)).cloned();
    if recorded.cancelled != found.cancelled {
        let (was, is) = (&recorded.cancelled, &found.cancelled);
        if let Some(place) = differs(was, is) {
            return Err(mismatch((&place, &from_there(&place)), "gave it up", "did not", ""));
        }
        if let Some(place) = differs(is, was) {
            return Err(mismatch((&place, &from_there(&place)), "kept it", "gave it up", ""));
        }
    }
    Ok(())
}

/// Compares the arguments in a replayed turn with those that are recorded.
fn same_arguments(recorded: &Turn, found: &Turn) -> Result<(), Problem> {
    for begun in &recorded.begun {
        let Some(is) = found.begun_at(&begun.place) else { continue };
        if !is.argument.is_same(&begun.argument) {
            return Err(Problem::Mismatch(format!(
                "{begun} had the argument {:?}, and the code gives it {:?}: give the change a new version, or put it \
                 behind `ctx.patched(..)`",
                begun.argument, is.argument
            )));
        }
    }
    Ok(())
}

fn from_there(place: &Place) -> String {
    format!("there, `rewind?place={place}`")
}

fn mismatch((place, from): (&Place, &str), was: &str, is: &str, verb: &str) -> Problem {
    let space = if verb.is_empty() { "" } else { " " };
    Problem::Mismatch(format!(
        "at place {place} the history {verb}{space}{was}, and the code {verb}{space}{is}: deploy code that fits, with the \
         change behind `ctx.patched(..)` or in a new version, or have it go on with this code from {from}"
    ))
}

/// The waker of a run. It notes wakes that do not come from a delivery.
#[derive(Default)]
struct Watch {
    /// The thread that delivers; 0 where none does.
    delivering: AtomicU64,
    is_woken: AtomicBool,
    is_foreign: AtomicBool,
}

impl Watch {
    fn begin(&self) -> Result<(), Problem> {
        if self.is_foreign.load(Ordering::Acquire) {
            let why = "it was woken by something that is not the workflow's, such as a channel, a task or a thread: \
                       move it into a step";
            return Err(Problem::Refused(why.to_owned()));
        }
        self.delivering.store(thread(), Ordering::Release);
        Ok(())
    }

    fn end(&self) {
        self.delivering.store(0, Ordering::Release);
    }

    fn take_woken(&self) -> bool {
        self.is_woken.swap(false, Ordering::AcqRel)
    }

    fn wake_by_ref(&self) {
        match self.delivering.load(Ordering::Acquire) == thread() {
            true => self.is_woken.store(true, Ordering::Release),
            false if Sabotage::ForeignWakes.is_on() => self.is_woken.store(true, Ordering::Release),
            false => self.is_foreign.store(true, Ordering::Release),
        }
    }
}

impl Wake for Watch {
    fn wake(self: Arc<Self>) {
        Watch::wake_by_ref(&self);
    }
    fn wake_by_ref(self: &Arc<Self>) {
        Watch::wake_by_ref(self);
    }
}

/// A number of this thread that no other living one has: an address of its own.
fn thread() -> u64 {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark).addr() as u64)
}
