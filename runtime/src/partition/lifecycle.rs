//! The phases of a partition between its start and its end.
//!
//! A partition begins a *term* each time it starts over: it passes a barrier in the committer, reads
//! what is on disk, and serves. A write group that is not committed ends the term, because everything
//! in memory was built on it. A partition that drains begins nothing more.

use std::collections::VecDeque;

use super::{message::Input, reply::ReplySender};

/// The phase of a partition.
pub(super) struct Lifecycle {
    phase: Phase,
    term: u64,
    /// How many operations that await were started.
    runs: u64,
    /// The inputs that arrived before this term could begin.
    early: VecDeque<Input>,
    /// The caller to tell when everything that was taken is durable.
    draining: Option<ReplySender>,
    is_stopping: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The committer has not yet settled what earlier terms sent.
    Fencing,
    /// The store is being read.
    Recovering,
    Serving,
}

impl Lifecycle {
    /// Behind `term`, which ended.
    pub(super) fn new(term: u64) -> Self {
        Self {
            phase: Phase::Fencing,
            term,
            runs: 0,
            early: VecDeque::new(),
            draining: None,
            is_stopping: false,
        }
    }

    pub(super) fn term(&self) -> u64 {
        self.term
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// Whether it drains, or has drained.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    /// Whether somebody waits for it to have drained.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Begins a term.
    pub(super) fn begin_term(&mut self) -> u64 {
        self.term += 1;
        self.phase = Phase::Fencing;
        self.term
    }

    /// Notes that the committer has settled what earlier terms sent.
    pub(super) fn begin_recovery(&mut self) {
        self.phase = Phase::Recovering;
    }

    /// Notes that the store was read. Returns what arrived before that.
    pub(super) fn begin_service(&mut self) -> VecDeque<Input> {
        self.phase = Phase::Serving;
        std::mem::take(&mut self.early)
    }

    /// Keeps what arrives before the term can begin.
    pub(super) fn keep_early(&mut self, input: Input) {
        self.early.push_back(input);
    }

    /// Begins nothing more; tells `reply_to` when everything that was taken is durable.
    pub(super) fn drain(&mut self, reply_to: ReplySender) {
        self.draining = Some(reply_to);
        self.is_stopping = true;
    }

    /// Ends the draining. Returns who waits for that.
    pub(super) fn end_drain(&mut self) -> Option<ReplySender> {
        self.draining.take()
    }

    /// Ends for good. Returns who waits for anything that was not begun.
    pub(super) fn end(&mut self) -> impl Iterator<Item = ReplySender> + use<> {
        let early = std::mem::take(&mut self.early);
        early.into_iter().filter_map(Input::into_reply_to).chain(self.draining.take())
    }

    /// The number of the next run of an operation that awaits.
    pub(super) fn next_run(&mut self) -> u64 {
        self.runs += 1;
        self.runs
    }
}
