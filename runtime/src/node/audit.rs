//! What an operator should know though the node serves: looked for every five minutes, said once in the log,
//! and shown beside readiness.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{Inner, Node};
use crate::{
    clock::{self, AHEAD_MAX},
    rules,
};

/// How often it is looked for.
const INTERVAL: Duration = Duration::from_secs(300);

/// What was found last.
#[derive(Debug, Default)]
pub(super) struct Audit {
    /// What waits for types and operations that nobody serves.
    unserved: Mutex<Vec<String>>,
    /// Whether the log was told that the clock is ahead.
    is_ahead: AtomicBool,
    /// The entity types that partitions met and that this node does not serve.
    pub(super) met: Arc<Mutex<BTreeSet<String>>>,
}

impl Node {
    /// What an operator should know though the node serves, in words: a clock far ahead of the wall
    /// clock, safety rules of the runtime that were broken, signals and reminders that nobody can apply. Readiness shows it too.
    pub fn notes(&self) -> Vec<String> {
        let mut notes: Vec<_> = self.0.clock_note().into_iter().collect();
        let broken = rules::broken();
        notes.extend((broken > 0).then(|| {
            format!(
                "safety rules were broken {broken} times: the log names them; report it as a bug"
            )
        }));
        let unserved = self.0.audit.unserved.lock().unwrap_or_else(PoisonError::into_inner);
        notes.extend(unserved.iter().cloned());
        notes
    }

    /// Begins to look; it ends with the node.
    pub(super) fn start_audit(&self) {
        if self.0.threads.is_shared {
            // A test that repeats everything that happens asks when it wants to know.
            return;
        }
        let inner = Arc::downgrade(&self.0);
        drop(self.0.threads.runtime.spawn(audit(inner)));
    }
}

async fn audit(inner: Weak<Inner>) {
    while let Some(node) = inner.upgrade().map(Node) {
        match node.unserved().await {
            Ok(found) => {
                let texts: Vec<_> = found.iter().map(super::UnservedView::text).collect();
                let mut known =
                    node.0.audit.unserved.lock().unwrap_or_else(PoisonError::into_inner);
                texts.iter().filter(|text| !known.contains(text)).for_each(|text| {
                    tracing::warn!("{text}; GET /v1/unserved lists them");
                });
                *known = texts;
            }
            Err(error) => tracing::warn!(%error, "what nobody serves cannot be looked for"),
        }
        drop(node);
        clock::sleep(INTERVAL).await;
    }
}

impl Inner {
    fn clock_note(&self) -> Option<String> {
        let ahead = self.clock.ahead();
        (ahead > AHEAD_MAX).then(|| {
            format!(
                "the store's clock is {} s ahead of the wall clock, and ticks on from there: check \
                 the machine's clock, then see \"The store's clock\" in the operations guide",
                ahead.as_secs()
            )
        })
    }

    /// Says in the log, once each time, that the clock is far ahead. Cheap: called by the watchdog.
    pub(super) fn check_clock(&self) {
        let note = self.clock_note();
        let was_ahead = self.audit.is_ahead.swap(note.is_some(), Ordering::Relaxed);
        if let Some(note) = note.filter(|_| !was_ahead) {
            tracing::warn!("{note}");
        }
    }
}
