//! The turn that runs at present: the partition notes it, the watchdog looks.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use stead_entities::{EntityId, Error, ErrorKind};

use super::{envelope::Row, reply::ReplySender};
use crate::{
    clock::{monotonic, since},
    config::Limits,
};

/// The turn that runs at present in one partition, for the watchdog.
#[derive(Debug, Default)]
pub(crate) struct Watch(Mutex<Option<Running>>);

#[derive(Debug)]
struct Running {
    id: EntityId,
    operation: &'static str,
    /// When the watchdog first saw it: a clock read for each turn would cost more than a late look.
    seen: Option<Instant>,
    reply_to: Option<ReplySender>,
    row: Row,
    limits: Limits,
    is_late: bool,
}

impl Watch {
    pub(crate) fn begin(
        &self,
        id: &EntityId,
        operation: &'static str,
        reply_to: Option<&ReplySender>,
        row: &Row,
        limits: Limits,
    ) {
        let (id, reply_to, row) = (id.clone(), reply_to.cloned(), row.clone());
        let running = Running { id, operation, seen: None, reply_to, row, limits, is_late: false };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
    }

    /// Ends the turn; says whether it took too long and its caller was told so.
    pub(crate) fn end(&self) -> bool {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        running.is_some_and(|running| running.is_late)
    }

    /// The turn that runs, if it has run for longer than its deadline, or than any turn may; it is then
    /// discarded when it ends.
    pub(crate) fn check(&self, block_limit: Duration) -> Option<Late> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = running.as_mut()?;
        let elapsed = since(*running.seen.get_or_insert_with(monotonic));
        if elapsed < running.limits.deadline.min(block_limit) {
            return None;
        }
        let name = format!("{} of {}", running.operation, running.id);
        let is_news = !std::mem::replace(&mut running.is_late, true);
        let reply_to = running.reply_to.clone().filter(|_| is_news);
        let (id, row) = (running.id.clone(), running.row.clone());
        let retries = running.limits.retries;
        Some(Late { id, name, elapsed, row, retries, is_news, reply_to })
    }
}

/// The watches of a node: one for each partition, and one for each operation that awaits.
#[derive(Debug, Default)]
pub(crate) struct Watches(Mutex<Vec<Weak<Watch>>>);

impl Watches {
    /// A new watch, looked at for as long as somebody holds it.
    pub(crate) fn add(&self) -> Arc<Watch> {
        let watch = Arc::new(Watch::default());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == all.capacity() {
            all.retain(|watch| watch.strong_count() > 0);
        }
        all.push(Arc::downgrade(&watch));
        watch
    }

    /// Every turn that has run for longer than its deadline, or than any turn may.
    pub(crate) fn check(&self, block_limit: Duration) -> Vec<Late> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(|watch| watch.upgrade()?.check(block_limit)).collect()
    }
}

/// A turn that has run for longer than its deadline.
#[derive(Debug)]
pub(crate) struct Late {
    pub(crate) id: EntityId,
    /// Operation and entity, for people.
    pub(crate) name: String,
    pub(crate) elapsed: Duration,
    pub(crate) row: Row,
    /// How often it is tried again.
    pub(crate) retries: u32,
    is_news: bool,
    reply_to: Option<ReplySender>,
}

impl Late {
    /// Tells its caller, the first time.
    pub(crate) fn tell(&self) {
        if self.is_news {
            tracing::error!(name = self.name, elapsed = ?self.elapsed, "an operation blocks its thread");
        }
        if let Some(reply_to) = &self.reply_to {
            let message = "the operation runs past its deadline and cannot be stopped";
            reply_to.answer(Err(Error::new(ErrorKind::Unknown, message)));
        }
    }
}
