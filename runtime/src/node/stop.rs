//! How a node ends: in order, or at once.

use std::time::Duration;

use stead_entities::{Error, ErrorKind};
use tokio::sync::oneshot;

use super::Inner;
use crate::{
    clock,
    partition::message::{CommitRequest, Input},
    placement::cluster::{Cluster, Stop},
    store::CommitOutcome,
};

/// How long the last commit, and closing the store, may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);
/// The error of a stop that was not in order.
const LATE: &str = "not everything ended within the drain deadline; what was accepted is kept";

impl Inner {
    /// Stops in order.
    pub(super) async fn drain(&self) -> Result<(), Error> {
        self.host.subscribers().close();
        if let Some(cluster) = self.cluster() {
            return self.leave(cluster).await;
        }
        self.local().close();
        let waiting = self.submit_to_all(Input::Drain, self.host.config().drain_deadline);
        let mut is_clean = true;
        for (_, answered) in waiting {
            is_clean &= answered.await.is_ok();
        }
        self.close(is_clean).await
    }

    /// Stops at once: nothing is finished or given up.
    #[cfg(feature = "testing")]
    pub(super) async fn abort(&self) {
        self.host.subscribers().close();
        self.local().close();
        if let Some(cluster) = self.cluster() {
            cluster.stop.send_replace(Stop::Abort);
        }
        if let Some(session) = self.host.session() {
            session.incarnation.lease.end();
        }
        self.host.end_session(&Error::new(ErrorKind::Closed, "the node has stopped"));
        self.end().await;
    }

    /// Hands everything over, then stops.
    async fn leave(&self, cluster: &Cluster) -> Result<(), Error> {
        cluster.stop.send_replace(Stop::Leave);
        let deadline = 2 * self.host.config().drain_deadline;
        let has_left = clock::within(deadline, cluster.left()).await.is_some();
        self.local().close();
        cluster.stop.send_replace(Stop::Abort);
        self.host.end_session(&Error::new(ErrorKind::Closed, "the node has stopped"));
        // Peers that have not seen yet who owns what are told to look.
        let _or_one_hangs = clock::within(CLOSE_DEADLINE, cluster.transport.close()).await;
        self.end().await;
        match has_left {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Unavailable, LATE)),
        }
    }

    async fn close(&self, is_clean: bool) -> Result<(), Error> {
        let mut outcome = None;
        if is_clean {
            let (tx, rx) = oneshot::channel();
            if let Some(session) = self.host.session()
                && session.committer.send(CommitRequest::Close(tx)).await.is_ok()
            {
                outcome = clock::within(CLOSE_DEADLINE, rx).await.and_then(Result::ok);
            }
        }
        self.end().await;
        if outcome == Some(CommitOutcome::Committed) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unavailable, LATE))
    }

    /// Stops the partitions, and closes the store.
    async fn end(&self) {
        let partitions = self.host.partitions();
        for handle in partitions.iter() {
            handle.stop();
            handle.expire(None);
        }
        let stopped = async {
            for handle in partitions.iter() {
                handle.stopped().await;
            }
        };
        let _or_one_blocks = clock::within(CLOSE_DEADLINE, stopped).await;
        // A flush that does not return must not keep the process from ending.
        let _or_out_of_time = clock::within(CLOSE_DEADLINE, self.host.store().close()).await;
    }
}
