//! The tasks in which attempts of steps run, beside their partition.
//!
//! A task waits for room, runs the attempt, and hands back how it ended. Told to end, an attempt may go on for a grace,
//! and is dropped then; what it comes to is of no use. With its partition it ends at once.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use stead_entities::{
    Dependencies, Error,
    workflow::{CANCEL_GRACE, StepError, StepId, StepResult, StepStart},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
};
use tracing::Instrument as _;

use super::{
    envelope::Row,
    handle::Handle,
    message::Input,
    steps::{NewStep, StepEnded, StepsToEnd},
    task::{self, spawn},
    turn::panicked,
    watch::Watches,
};
use crate::{
    clock,
    config::Limits,
    map::{Map, SharedMap},
    telemetry,
};

/// How many attempts of steps a node runs at one time.
const RUNNING_MAX: usize = 1_024;

/// The room for attempts of steps on a node.
pub(crate) struct StepRoom {
    all: Arc<Semaphore>,
    /// Of steps that have a limit of their own, by the type of the workflow and the name of the step.
    by_name: SharedMap<(String, String), Arc<Semaphore>>,
}

impl StepRoom {
    pub(crate) fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(RUNNING_MAX)), by_name: SharedMap::default() }
    }

    /// The room of a step that has a limit of its own.
    fn of(&self, start: &StepStart) -> Option<Arc<Semaphore>> {
        let limit = start.running_max()?;
        let of = start.id().workflow().entity_type().to_owned();
        let room = self.by_name.entry((of, start.name().to_owned()));
        Some(room.or_insert_with(|| Arc::new(Semaphore::new(limit.max(1)))).clone())
    }
}

async fn enter(room: Arc<Semaphore>) -> OwnedSemaphorePermit {
    room.acquire_owned().await.expect("the semaphore of a node is never closed")
}

/// The services of a node that an attempt uses.
pub(super) struct Services {
    pub(super) handle: Handle,
    pub(super) watches: Arc<Watches>,
    pub(super) room: Arc<StepRoom>,
    /// The limits of one poll.
    pub(super) polled: Limits,
    pub(super) given: Arc<Dependencies>,
    pub(super) term: u64,
}

/// The attempts of a partition that are under way.
#[derive(Default)]
pub(super) struct StepTasks(Map<StepId, (StepStart, AbortHandle)>);

impl StepTasks {
    /// Begins an attempt.
    pub(super) fn begin(&mut self, new: NewStep, services: Services) {
        let NewStep { start, origin } = new;
        let id = start.id().clone();
        let span = telemetry::turn(id.workflow(), "step", origin.as_deref());
        let attempt = start.clone();
        let work = async move {
            let Some(result) = run(&attempt, &services).await else { return };
            let (id, input) = (attempt.id().workflow().clone(), attempt.ended(result));
            services
                .handle
                .push(Input::StepEnded(services.term, Box::new(StepEnded { id, input, origin })));
        };
        let task = spawn(work.instrument(span));
        if self.0.len() == self.0.capacity() {
            self.0.retain(|_, (_, task)| !task.is_finished());
        }
        self.0.insert(id, (start, task));
    }

    /// Tells attempts that they are to end.
    pub(super) fn end(&mut self, which: &StepsToEnd) {
        match which {
            StepsToEnd::One(step) => {
                if let Some((start, _)) = self.0.remove(step) {
                    start.cancellation().cancel();
                }
            }
            StepsToEnd::OfRun(workflow, run) => {
                self.end_those(|id| id.workflow() == workflow && id.run() == *run);
            }
            StepsToEnd::All => self.end_those(|_| true),
        }
    }

    fn end_those(&mut self, are_those: impl Fn(&StepId) -> bool) {
        self.0.retain(|id, (start, _)| {
            let ends = are_those(id);
            if ends {
                start.cancellation().cancel();
            }
            !ends
        });
    }

    /// Ends all of them at once.
    pub(super) fn abort(&mut self) {
        for (_, (start, task)) in self.0.drain() {
            start.cancellation().cancel();
            task.abort();
        }
    }
}

/// Runs an attempt: its result, `Some(None)` where it took too long, `None` where nobody waits for it any more.
async fn run(start: &StepStart, services: &Services) -> Option<Option<StepResult>> {
    // Room among its own kind first: who waits for that takes nothing from other steps.
    let _of_its_name = match services.room.of(start) {
        Some(room) => Some(enter(room).await),
        None => None,
    };
    let _room = enter(services.room.all.clone()).await;
    if start.cancellation().is_cancelled() {
        return None;
    }
    let (watch, polled) = (services.watches.add(), services.polled);
    let seen = || watch.begin(start.id().workflow(), "step", None, &Row::None, polled);
    let (begun, given) = (start.clone(), services.given.clone());
    let running = AssertUnwindSafe(async move { begun.begin(&given).await }).catch_unwind();
    let running = task::Polled { running: Box::pin(running), seen, watch: &watch };
    let cancelled = async {
        start.cancellation().clone().await;
        clock::sleep(CANCEL_GRACE).await;
    };
    tokio::select! {
        result = running => (!start.cancellation().is_cancelled()).then(|| Some(ended(result))),
        () = too_long(start.timeout()) => {
            start.cancellation().cancel();
            Some(None)
        }
        () = cancelled => None,
    }
}

async fn too_long(timeout: Option<Duration>) {
    match timeout {
        Some(length) => clock::sleep(length).await,
        None => std::future::pending().await,
    }
}

fn ended(result: Result<StepResult, Box<dyn std::any::Any + Send>>) -> StepResult {
    result.unwrap_or_else(|panic| {
        let error: Error = panicked(&*panic);
        Err(StepError::new(error.message()))
    })
}
