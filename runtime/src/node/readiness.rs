//! Whether a node can do its work: asked for, and proven by commits.

use std::{sync::PoisonError, time::Duration};

use super::Inner;
use crate::{
    commit::Fatal,
    partition::{
        message::Input,
        reply::{ReplyReceiver, ReplySender},
    },
    placement::cluster::Stop,
    sabotage::Sabotage,
};

/// How old the last probe may be for readiness to rest on it.
const PROBE_AGE: Duration = Duration::from_secs(1);
/// How long readiness waits for the commits it asks for.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);

impl Inner {
    /// Whether every partition commits; what is in the way, in words.
    pub(super) async fn ready(&self) -> Result<(), String> {
        if Sabotage::AlwaysReady.is_on() {
            return Ok(());
        }
        let is_leaving = self.cluster().is_some_and(|it| *it.stop.borrow() != Stop::No);
        if is_leaving || self.local().is_closing() {
            return Err("the node is stopping".into());
        }
        if let Some(fatal) = &*self.host.fatal().borrow() {
            return Err(format!("the node cannot go on: {fatal:?}"));
        }
        let blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(name) = blocked {
            return Err(format!("an operation blocks its thread: {name}"));
        }
        let now = self.host.clock().now();
        let probed_at = *self.probed_at.lock().unwrap_or_else(PoisonError::into_inner);
        if probed_at.is_some_and(|at| at + PROBE_AGE > now) {
            return Ok(());
        }
        self.probe().await?;
        *self.probed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        Ok(())
    }

    /// Gives every partition of this node the same input.
    pub(super) fn submit_to_all(
        &self,
        input: fn(ReplySender) -> Input,
        timeout: Duration,
    ) -> Vec<(usize, ReplyReceiver)> {
        let partitions = self.host.partitions().iter().enumerate();
        let submitted = partitions.filter_map(|(number, handle)| {
            let (reply_to, answered) = ReplySender::new(timeout, None);
            handle.submit(&reply_to, input).is_ok().then_some((number, answered))
        });
        submitted.collect()
    }

    async fn probe(&self) -> Result<(), String> {
        let session = self.host.session().ok_or("the node is joining")?;
        if !session.incarnation.lease.holds() {
            return Err("the lease has run out".into());
        }
        let mut stuck = Vec::new();
        for (number, answered) in self.submit_to_all(Input::Probe, PROBE_DEADLINE) {
            if let Err(error) = answered.await {
                stuck.push(format!("{number} ({error})"));
            }
        }
        if stuck.is_empty() {
            return Ok(());
        }
        let first: Vec<_> = stuck.iter().take(3).map(String::as_str).collect();
        Err(format!("{} partitions do not commit, among them {}", stuck.len(), first.join(", ")))
    }

    /// Waits until the node cannot go on, and says why.
    pub(super) async fn failed(&self) -> Fatal {
        let mut fatal = self.host.fatal().subscribe();
        loop {
            let known = fatal.borrow_and_update().clone();
            if let Some(fatal) = known {
                return fatal;
            }
            if fatal.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
