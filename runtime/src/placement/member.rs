//! Membership: joining, renewing the lease, and starting over under a new incarnation when it is
//! lost.
//!
//! It runs on a thread of its own, so that an operation which blocks its thread does not cost the
//! lease. What must never happen: a renewal that came late extends the lease; anything of an
//! incarnation goes on after it was lost.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use stead_entities::{Error, ErrorKind};
use tokio::sync::oneshot;

use super::{
    cluster::{Cluster, Stop},
    links::Links,
    owner::Owner,
};
use crate::{
    clock::{self, deadline_after, monotonic},
    commit::{Fatal, Incarnation},
    host::{
        Host, Session,
        layouts::{self, LayoutError},
        versions::LeftOut,
    },
    lease::Lease,
    store::shared::{Joined, MemberError},
};

/// How many renewals a lease has room for.
const RENEWALS: u32 = 4;
/// How long a store that does not answer is asked before the first join fails.
const JOIN_DEADLINE: Duration = Duration::from_secs(10);
/// How often a node joins again whose lease was lost before it could begin.
const LOST_MAX: u32 = 5;
/// The wait before a store that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a node cannot join, or join again. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    /// A layout changed without a new version, or a version is not known.
    #[error("{}", .0.join("\n"))]
    Layout(Vec<String>),
    /// The store cannot be read or written.
    #[error("{0}")]
    Unavailable(String),
    /// Another node is alive under this one's name.
    #[error("{0}")]
    InUse(String),
    /// The nodes that are alive have another secret.
    #[error("{0}")]
    Stranger(String),
    /// The lease was lost before the node could begin.
    #[error(
        "the lease is lost before the layouts are compared: see to it that the store answers, and start again"
    )]
    Lost,
}

impl From<LayoutError> for JoinError {
    fn from(error: LayoutError) -> Self {
        match error {
            LayoutError::Changed(problems) => Self::Layout(problems),
            LayoutError::Unavailable(why) | LayoutError::Failed(why) => Self::Unavailable(why),
            LayoutError::Lost => Self::Lost,
        }
    }
}

/// How a membership ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Somebody else may have its partitions.
    Lost,
    /// Everything was handed over.
    Left,
    /// The node is gone.
    Gone,
}

/// Ends the node should its membership panic: nothing would renew its lease.
struct Alarm(Arc<Cluster>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            Fatal::Poisoned("its membership failed".into()).report(&self.0.fatal);
        }
    }
}

/// Told how the first join came out.
pub(crate) type Started = oneshot::Sender<Result<(), JoinError>>;

/// Keeps a node a member until it leaves, or cannot go on.
pub(crate) async fn run(
    cluster: Arc<Cluster>,
    node: Weak<Host>,
    left_out: Vec<LeftOut>,
    started: Started,
) {
    // Compared once, in the first incarnation that can.
    let mut left_out = Some(left_out);
    let mut lost = 0;
    let _alarm = Alarm(cluster.clone());
    let mut started = Some(started);
    loop {
        let (asked, joined) = match join(&cluster, &node, started.is_some()).await {
            Ok(joined) => joined,
            Err(error) => return fail(&cluster, started, error),
        };
        let begun = begin(&cluster, &node, left_out.as_deref(), asked, joined).await;
        let session = match begun {
            Ok(Some(session)) => session,
            Ok(None) => return,
            Err(JoinError::Lost) if lost < LOST_MAX => {
                lost += 1;
                tracing::warn!("the lease is lost before the node begins: joining again");
                continue;
            }
            Err(error) => {
                let _or_it_runs_out = cluster.store.leave(joined.incarnation).await;
                return fail(&cluster, started, error);
            }
        };
        left_out = None;
        if let Some(started) = started.take() {
            // Who starts a node waits for it.
            let _gone = started.send(Ok(()));
        }
        let ended = serve(&cluster, &node, &session).await;
        session.incarnation.lease.end();
        if let Some(host) = node.upgrade() {
            host.end_session(&Error::new(ErrorKind::Fenced, "the node has lost its lease"));
        }
        match ended {
            Ended::Lost if *cluster.stop.borrow() == Stop::No => {
                tracing::warn!("the lease is lost: joining again");
            }
            // Where it was lost, others have its partitions.
            Ended::Lost | Ended::Left => {
                cluster.has_left.send_replace(true);
                return;
            }
            Ended::Gone => return,
        }
    }
}

fn fail(cluster: &Cluster, started: Option<Started>, error: JoinError) {
    match started {
        Some(started) => drop(started.send(Err(error))),
        None => {
            tracing::error!(%error, "the node cannot join again");
            Fatal::Fenced.report(&cluster.fatal);
        }
    }
}

/// Joins. A name that is held is waited for as long as its lease lasts; if it is renewed meanwhile,
/// another node is alive under it.
async fn join(
    cluster: &Cluster,
    node: &Weak<Host>,
    is_first: bool,
) -> Result<(Instant, Joined), JoinError> {
    let deadline = deadline_after(JOIN_DEADLINE);
    let mut waited_for = None;
    loop {
        if *cluster.stop.borrow() != Stop::No || (node.strong_count() == 0) {
            return Err(JoinError::Unavailable("the node is stopping".into()));
        }
        let asked = monotonic();
        let joining = cluster.store.join(cluster.registration.clone());
        let joined = clock::within(JOIN_DEADLINE, joining).await;
        match joined {
            Some(Ok(joined)) => return Ok((asked, joined)),
            Some(Err(MemberError::Held { incarnation, left }))
                if waited_for != Some(incarnation) =>
            {
                // It may also be this node's own, of a join whose answer did not arrive.
                waited_for = Some(incarnation);
                let name = &cluster.registration.name;
                tracing::info!(%name, ?left, "the name is held; waiting for the lease to run out");
                clock::sleep(left + Duration::from_millis(20)).await;
            }
            Some(Err(MemberError::Held { .. })) => {
                let name = &cluster.registration.name;
                return Err(JoinError::InUse(format!(
                    "another node is alive under the name {name}: stop it, or choose another name"
                )));
            }
            Some(Err(error @ MemberError::Stranger(_))) => {
                return Err(JoinError::Stranger(format!(
                    "{error}: give all nodes the same secret; to change it, stop them all first"
                )));
            }
            Some(Err(error)) if is_first && monotonic() >= deadline => {
                return Err(JoinError::Unavailable(error.to_string()));
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot join; trying again");
                clock::sleep(PAUSE).await;
            }
            None if is_first => {
                return Err(JoinError::Unavailable("the store does not answer".into()));
            }
            None => {}
        }
    }
}

/// Makes an incarnation of what a join brought; none where the node is gone.
async fn begin(
    cluster: &Arc<Cluster>,
    node: &Weak<Host>,
    left_out: Option<&[LeftOut]>,
    asked: Instant,
    joined: Joined,
) -> Result<Option<Arc<Session>>, JoinError> {
    let Some(host) = node.upgrade() else { return Ok(None) };
    host.clock().advance_to(joined.time);
    let mut last_batch = 0;
    if let Some(left_out) = left_out {
        let lane = (joined.incarnation, last_batch);
        last_batch += layouts::guard(&host, left_out, lane).await?;
    }
    let lease = Arc::new(Lease::given(asked, cluster.registration.lease));
    let number = joined.incarnation;
    let incarnation = Incarnation { number, last_batch, lease, link: Arc::default() };
    let incarnation = Arc::new(incarnation);
    let (partitions, runtime) = (host.partitions().clone(), host.threads().runtime.clone());
    let links = Links::new(cluster.clone(), incarnation.clone(), partitions, runtime);
    let session = host.begin_session(incarnation, Some(links));
    session.map(Some).map_err(|error| JoinError::Unavailable(error.to_string()))
}

async fn serve(cluster: &Arc<Cluster>, node: &Weak<Host>, session: &Arc<Session>) -> Ended {
    let mut owner = Owner::new(cluster.clone(), node.clone(), session.clone());
    tokio::select! {
        biased;
        () = renew(cluster, node, session) => Ended::Lost,
        () = session.cannot_go_on() => Ended::Lost,
        ended = owner.run() => ended,
    }
}

/// Renews the lease until it is lost.
async fn renew(cluster: &Cluster, node: &Weak<Host>, session: &Session) {
    let (number, lease) = (session.incarnation.number, &session.incarnation.lease);
    let length = cluster.registration.lease;
    let interval = length / RENEWALS;
    loop {
        clock::sleep(interval).await;
        let asked = monotonic();
        // Soon enough for another try, should a connection have died without a word.
        let renewed = clock::within(length / 2, cluster.store.renew(number)).await;
        match renewed {
            Some(Ok(renewed)) => {
                let Some(host) = node.upgrade() else { return };
                host.clock().advance_to(renewed.time);
                let had_run_out = !lease.holds();
                lease.extend(asked, length);
                if had_run_out {
                    host.resume();
                }
                let view = &cluster.seen().view;
                let is_known = renewed.membership == view.membership
                    && renewed.ownership == view.ownership()
                    && !renewed.has_expired;
                if !is_known {
                    cluster.look.notify_one();
                }
            }
            Some(Err(MemberError::Lost | MemberError::Held { .. } | MemberError::Stranger(_))) => {
                return;
            }
            Some(Err(error)) => tracing::warn!(%error, "the lease cannot be renewed"),
            None => tracing::warn!("the lease cannot be renewed: the store does not answer"),
        }
    }
}
