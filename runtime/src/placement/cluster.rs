//! The state that the parts of a node share which know of other nodes.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, watch};

use super::plan::Seen;
use crate::{
    clock,
    commit::Fatal,
    store::shared::{Member, Registration, SharedStore},
    transport::Transport,
};

/// How long a look may take after the node has left.
const LATE_LOOK_DEADLINE: Duration = Duration::from_secs(1);

/// How a membership is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    No,
    /// In order: everything is handed over first.
    Leave,
    /// At once, as a crash would.
    Abort,
}

/// A node's way to the others.
pub(crate) struct Cluster {
    pub(crate) store: Arc<dyn SharedStore>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) registration: Registration,
    /// How long a partition that moves may take to finish.
    pub(crate) handoff_deadline: Duration,
    pub(crate) fatal: watch::Sender<Option<Fatal>>,
    pub(crate) stop: watch::Sender<Stop>,
    seen: Mutex<Arc<Seen>>,
    /// Whoever waits for something new to be seen is woken in turn.
    news: Notify,
    pub(super) look: Notify,
    /// Held by whoever looks after the node has left.
    late_look: tokio::sync::Mutex<()>,
    pub(super) has_left: watch::Sender<bool>,
    /// Whether somebody waits for a partition to move.
    pub(super) is_awaited: AtomicBool,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("node", &self.registration.name).finish_non_exhaustive()
    }
}

impl Cluster {
    pub(crate) fn new(
        store: Arc<dyn SharedStore>,
        transport: Arc<dyn Transport>,
        registration: Registration,
        handoff_deadline: Duration,
        fatal: watch::Sender<Option<Fatal>>,
    ) -> Self {
        Self {
            store,
            transport,
            registration,
            handoff_deadline,
            fatal,
            stop: watch::Sender::new(Stop::No),
            seen: Mutex::default(),
            news: Notify::new(),
            look: Notify::new(),
            late_look: tokio::sync::Mutex::default(),
            has_left: watch::Sender::new(false),
            is_awaited: AtomicBool::new(false),
        }
    }

    /// The last view of the cluster.
    pub(crate) fn seen(&self) -> Arc<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn show(&self, seen: Seen) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(seen);
        self.news.notify_waiters();
    }

    /// The owner of a partition in the last view.
    pub(crate) fn owner(&self, partition: u16) -> Option<Member> {
        self.seen().owner(partition).cloned()
    }

    /// Whether any member serves an entity type.
    pub(crate) fn serves(&self, name: &str) -> bool {
        let seen = self.seen();
        seen.view.members.iter().any(|member| member.types.iter().any(|known| known == name))
    }

    /// Has somebody look, and waits until something new was seen, at most for `timeout`.
    pub(crate) async fn look(&self, timeout: Duration) {
        if *self.has_left.borrow() {
            return self.look_after_leaving(timeout).await;
        }
        let mut news = std::pin::pin!(self.news.notified());
        news.as_mut().enable();
        self.is_awaited.store(true, Ordering::SeqCst);
        self.look.notify_one();
        let _as_before = clock::within(timeout, news).await;
    }

    /// Looks for requests that are on their way through a node which has left: nobody else does any more.
    async fn look_after_leaving(&self, pause: Duration) {
        let before = self.seen();
        clock::sleep(pause).await;
        let _one_looks = self.late_look.lock().await;
        if !Arc::ptr_eq(&before, &self.seen()) {
            return;
        }
        // As before, where the store does not answer.
        if let Some(Ok(view)) = clock::within(LATE_LOOK_DEADLINE, self.store.view()).await {
            self.show(Seen::new(view, self.store.opened().settings.seed, &before));
        }
    }

    /// Waits until the membership has ended in order.
    pub(crate) async fn left(&self) {
        let mut has_left = self.has_left.subscribe();
        // The sender lives as long as this.
        let _gone = has_left.wait_for(|has_left| *has_left).await.is_err();
    }
}
