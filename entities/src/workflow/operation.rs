//! The operations of a workflow as futures. Each claims its place where it is made, begins when it is first polled, and
//! is given up when it is dropped before it is done.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::{
    combine::{Branches as _, Of2, private::Handle},
    core::Core,
    history::{Begun, Kind, Payload},
    open::Open,
    place::Place,
    step::StepOptions,
};
use crate::{Answer, Failure, Timeout, Timestamp, sabotage::Sabotage};

/// An operation of a workflow: a future of what comes of it.
#[must_use = "an operation begins when it is awaited"]
pub struct Operation<T> {
    core: Arc<Core>,
    place: Place,
    /// The operation, until it begins.
    ready: Option<Box<Open>>,
    is_done: bool,
    read: fn(&[u8]) -> Result<T, Failure>,
}

impl<T> Operation<T> {
    pub(super) fn new(
        core: &Arc<Core>,
        ready: Box<Open>,
        read: fn(&[u8]) -> Result<T, Failure>,
    ) -> Self {
        let place = ready.begun.place.clone();
        Self { core: core.clone(), place, ready: Some(ready), is_done: false, read }
    }

    /// Its place, and the id of the entity that is asked, before it begins.
    pub(super) fn identity(&self) -> (Place, Box<str>) {
        let target = self.ready.as_ref().map(|ready| ready.begun.target.clone());
        (self.place.clone(), target.unwrap_or_default())
    }

    fn options(&mut self) -> Option<&mut StepOptions> {
        self.ready.as_mut().map(|ready| &mut **ready.options.get_or_insert_default())
    }
}

impl<T> Future for Operation<T> {
    type Output = Result<T, Failure>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(ready) = this.ready.as_mut().filter(|_| Sabotage::PlaceAtFirstPoll.is_on()) {
            ready.begun.place = this.core.lock().scope.claim();
            this.place = ready.begun.place.clone();
        }
        if this.ready.is_some() && !this.core.begin(&mut this.ready, cx.waker()) {
            return Poll::Pending;
        }
        match this.core.take(&this.place, cx.waker()) {
            Some(outcome) => {
                this.is_done = true;
                Poll::Ready((this.read)(outcome.bytes()))
            }
            None => Poll::Pending,
        }
    }
}

impl<T> Drop for Operation<T> {
    fn drop(&mut self) {
        if self.ready.is_none() && !self.is_done {
            self.core.give_up(&self.place);
        }
    }
}

impl<T> fmt::Debug for Operation<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Operation").field(&self.place).finish()
    }
}

/// Reads what is recorded: an answer.
pub(super) fn read_answer<T: DeserializeOwned>(outcome: &[u8]) -> Result<T, Failure> {
    let answer: Result<Answer<T>, _> = serde_json::from_slice(outcome);
    answer.unwrap_or_else(|error| {
        Err(Failure::Failed(format!("the result does not have the type that is expected: {error}")))
    })
}

/// A step that was made and not awaited: its options are set before it begins.
#[must_use = "a step begins when it is awaited"]
#[derive(Debug)]
pub struct StepOperation<T>(pub(super) Operation<T>);

impl<T> StepOperation<T> {
    /// Has it tried so often before it fails; at least once. Without it [`ATTEMPTS`](super::ATTEMPTS) times.
    pub fn attempts(self, attempts: u32) -> Self {
        self.change(|options| options.attempts = Some(attempts.max(1)))
    }

    /// Sets the wait before the second attempt, which doubles with each further one up to `longest`. Each wait is up to
    /// a tenth longer or shorter.
    pub fn backoff(self, first: Duration, longest: Duration) -> Self {
        self.change(|options| options.backoff = Some((first, longest)))
    }

    /// Sets how long one attempt may take, in place of [`ATTEMPT_TIMEOUT`](super::ATTEMPT_TIMEOUT). What it did until
    /// then may have happened; it is tried again.
    pub fn timeout(self, length: Duration) -> Self {
        self.change(|options| options.timeout = Some(length.max(Duration::from_millis(1))))
    }

    /// Lets an attempt take as long as it does.
    pub fn no_timeout(self) -> Self {
        self.change(|options| options.timeout = Some(Duration::ZERO))
    }

    /// Sets how long the step may take with all its attempts and waits; its outcome is [`Failure::TimedOut`] then.
    pub fn deadline(self, length: Duration) -> Self {
        self.change(|options| options.deadline = Some(length))
    }

    /// Has it tried again only where `again` says so of the text of its failure.
    pub fn retry_if(self, again: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.change(|options| options.retry_if = Some(Arc::new(again)))
    }

    fn change(mut self, change: impl FnOnce(&mut StepOptions)) -> Self {
        if let Some(options) = self.0.options() {
            change(options);
        }
        self
    }
}

impl<T> Future for StepOperation<T> {
    type Output = Result<T, Failure>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// A wait for the next event of a name.
#[must_use = "it waits when it is awaited"]
#[derive(Debug)]
pub struct EventWait<T> {
    pub(super) event: Operation<T>,
}

impl<T: Send + 'static> EventWait<T> {
    /// Waits for so long, and gives up then: `None`.
    pub fn within(
        self,
        length: impl Into<Timeout>,
    ) -> impl Future<Output = Result<Option<T>, Failure>> + Send {
        let core = self.event.core.clone();
        let timer = timer(&core, |now| now + length.into().as_duration());
        let race = (self.event, timer).race(&Handle(core));
        async move {
            match race.await {
                Of2::First(event) => event.map(Some),
                Of2::Second(passed) => passed.map(|()| None),
            }
        }
    }
}

impl<T> Future for EventWait<T> {
    type Output = Result<T, Failure>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.event).poll(cx)
    }
}

/// A timer that is due at a moment.
pub(super) fn timer(core: &Arc<Core>, due: impl FnOnce(Timestamp) -> Timestamp) -> Operation<()> {
    let mut state = core.lock();
    let due = due(state.now).min(Timestamp::MAX);
    let place = state.scope.claim();
    let begun = Begun { due: Some(due), ..Begun::new(place, Kind::Timer, "") };
    let ready = state.new_operation(begun);
    drop(state);
    Operation::new(core, ready, read_answer)
}

impl Begun {
    pub(super) fn new(place: Place, kind: Kind, name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            place,
            kind,
            name: name.into(),
            target: "".into(),
            argument: Payload::default(),
            due: None,
        }
    }
}
