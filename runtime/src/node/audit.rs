//! The warnings for an operator of a node that serves: looked for every five minutes, said once in the log,
//! and shown beside readiness.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    Inner,
    unserved::{self, Depth, For, UnservedView},
};
use crate::{
    clock::{self, AHEAD_MAX},
    rules,
};

/// How often it is looked for.
const INTERVAL: Duration = Duration::from_secs(300);

/// The findings of the last look.
#[derive(Debug, Default)]
pub(super) struct Audit {
    /// The types and operations that something waits for and nobody serves.
    unserved: Mutex<Vec<String>>,
    /// Whether the log was told that the clock is ahead.
    is_ahead: AtomicBool,
}

impl Inner {
    /// The warnings for an operator of a node that serves.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<_> = self.clock_note().into_iter().collect();
        let broken = rules::broken();
        notes.extend((broken > 0).then(|| {
            format!(
                "safety rules were broken {broken} times: the log names them; report it as a bug"
            )
        }));
        let unserved = self.audit.unserved.lock().unwrap_or_else(PoisonError::into_inner);
        notes.extend(unserved.iter().cloned());
        notes
    }

    /// Begins to look; it ends with the node.
    pub(super) fn start_audit(self: &Arc<Self>) {
        let threads = self.host.threads();
        if threads.is_shared {
            // A test that repeats everything that happens asks when it wants to know.
            return;
        }
        drop(threads.runtime.spawn(audit(Arc::downgrade(self))));
    }

    fn clock_note(&self) -> Option<String> {
        let ahead = self.host.clock().ahead();
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

async fn audit(inner: Weak<Inner>) {
    // Arguments are looked at when the node has started, and again until all fit. What nodes of an earlier program
    // store later is met where it is applied.
    let mut depth = Depth::Arguments;
    while let Some(node) = inner.upgrade() {
        match unserved::look(&node, depth, For::Node).await {
            Ok(found) => {
                if !found.iter().any(|it| it.argument.is_some()) {
                    depth = Depth::Names;
                }
                let texts: Vec<_> = found.iter().map(UnservedView::text).collect();
                let mut known = node.audit.unserved.lock().unwrap_or_else(PoisonError::into_inner);
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
