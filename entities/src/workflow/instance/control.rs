//! Requests of callers and operators to an instance: to begin, to end, to wait.

use std::{borrow::Cow, ops::Range, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    GO_ON, State, WAKE,
    head::{Arrived, Head, Status},
    turn::Engine,
};
use crate::{
    EntityId, Failure, Rejection, Timeout, Timestamp,
    ask::answer_json,
    effect::{Effect, Signal},
    input::{InputError, canonical, decode},
    sabotage::Sabotage,
    workflow::{
        PAYLOAD_BYTES_MAX, SavedHistory, WorkflowType,
        core::{End, mixed},
        history::{Delivery, Kind, Payload},
    },
};

/// How long after its deadline an instance is terminated that does not end on being cancelled.
const OVERDUE_GRACE: Duration = Duration::from_secs(60);

/// The effect of a start where there is an instance of the id already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StartPolicy {
    /// Joins one that goes on, where the input is the same, and takes the place of one that has ended.
    #[default]
    Join,
    /// Is refused, until the instance is purged; but a start with the same input joins it.
    Once,
    /// Takes its place; one that goes on is terminated first.
    Replace,
}

/// The argument of a start.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StartArgument {
    #[serde(default)]
    input: Payload,
    #[serde(default)]
    policy: StartPolicy,
    /// How long the whole may take: then it is cancelled, and terminated a minute later.
    #[serde(default)]
    deadline: Option<Timeout>,
    /// Whether who asks hears of the end, and not of the beginning.
    #[serde(default)]
    is_child: bool,
    /// Whether the parent has asked before, and was rewound.
    #[serde(default)]
    is_again: bool,
}

/// The answer of a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// Whether this start began a run; else it has joined one.
    pub is_new: bool,
    /// The number of the run.
    pub run: u32,
}

/// Why an operator asks for something.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Reason {
    reason: String,
}

/// How an instance is started again.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Restart {
    /// The key of the new instance; the same one where there is none.
    key: Option<String>,
}

/// Whether children go too.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Purge {
    recursive: bool,
}

/// A page of a history.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HistoryPage {
    after: u64,
    limit: Option<u64>,
}

/// A part of the history, and where the next page begins.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Turns {
    #[schemars(with = "serde_json::Value")]
    #[serde(flatten)]
    history: SavedHistory,
    next: Option<u64>,
}

impl StartArgument {
    fn of(input: Payload) -> Self {
        let policy = StartPolicy::default();
        Self { input, policy, deadline: None, is_child: false, is_again: false }
    }

    /// Whether an instance was started with this input.
    pub(super) fn has_input_of(&self, head: &Head) -> bool {
        head.fingerprint == fingerprint(self.input.bytes())
    }

    /// Checks the input against the type of the workflow.
    pub(super) fn check<W: WorkflowType>(&self) -> Result<(), InputError> {
        let input = if self.input.is_empty() { b"null" } else { self.input.bytes() };
        check_length(input)?;
        decode::<W::Input>(input).map(drop).map_err(|error| within("input", error))
    }
}

pub(super) fn check_length(json: &[u8]) -> Result<(), InputError> {
    let length = json.len();
    if length <= PAYLOAD_BYTES_MAX {
        return Ok(());
    }
    let message = format!("it has {length} bytes, the limit is {PAYLOAD_BYTES_MAX}");
    Err(InputError { path: "$".into(), message, malformed: false })
}

pub(super) fn within(field: &str, error: InputError) -> InputError {
    let path = error.path.strip_prefix('$').unwrap_or(&error.path);
    InputError { path: format!("$.{field}{path}"), ..error }
}

pub(super) fn refused(code: &str, reason: impl Into<String>) -> Rejection {
    Rejection::new(reason).with_code(code)
}

impl Engine<'_> {
    /// Begins a run, or joins one.
    pub(super) fn start(&mut self, mut start: StartArgument) -> Result<Started, Rejection> {
        if std::mem::take(&mut start.is_again) {
            return self.start_again(start);
        }
        let fingerprint = fingerprint(start.input.bytes());
        if let Some(head) = self.state.started() {
            let is_same = head.fingerprint == fingerprint && !start.is_child;
            let joined = Started { is_new: false, run: head.run };
            match (start.policy, head.status.is_end()) {
                (StartPolicy::Join, false) | (StartPolicy::Once, _)
                    if is_same && !Sabotage::StartsUnchecked.is_on() =>
                {
                    return Ok(joined);
                }
                (StartPolicy::Join, false) if Sabotage::StartsUnchecked.is_on() => {}
                (StartPolicy::Join, false) => {
                    let why = "an instance of this id goes on with another input, or belongs to another parent";
                    return Err(refused("conflict", why));
                }
                (StartPolicy::Once, _) => {
                    return Err(refused(
                        "conflict",
                        "there was an instance of this id: purge it first",
                    ));
                }
                (StartPolicy::Replace, false) => {
                    self.end(
                        Status::Terminated,
                        Failure::Terminated("replaced by another start".into()),
                    );
                }
                (StartPolicy::Join | StartPolicy::Replace, true) => {}
            }
        }
        let reply_to = if start.is_child { self.ctx.defer() } else { None };
        let now = self.ctx.now();
        let last = self.state.head.as_deref();
        let (run, kept) = last.map_or_else(Default::default, |head| (head.run, head.kept));
        let later = last.and_then(|head| head.later.clone());
        if last.is_some_and(|head| head.wake_at.is_some()) {
            self.ctx.emit(Effect::CancelReminder(WAKE.into()));
        }
        self.state.head = Some(Box::new(Head {
            run,
            kept,
            later,
            fingerprint,
            created_at: now,
            updated_at: now,
            reply_to: reply_to.map(Box::new),
            deadline: start.deadline.map(|length| (now + length.as_duration()).min(Timestamp::MAX)),
            ..Head::default()
        }));
        // One that has ended was to be deleted by itself.
        self.ctx.emit(Effect::Expire(None));
        self.begin_run(start.input);
        let head = self.head();
        let (deadline, run) = (head.deadline, head.run);
        if self.runs() {
            self.wake_by(deadline);
        }
        Ok(Started { is_new: true, run })
    }

    /// Begins anew in the place of one that has ended.
    pub(super) fn start_over(&mut self, start: StartArgument) -> Result<Started, Rejection> {
        self.start(StartArgument { policy: StartPolicy::Replace, ..start })
    }

    /// Begins a run of the newest version.
    fn begin_run(&mut self, input: Payload) {
        let seed = u128::from(self.ctx.entropy()) << 64 | u128::from(self.ctx.entropy());
        self.state.begin_run(seed, self.programs.newest);
        self.arrive(vec![Arrived::Start(input)]);
    }

    /// An instance that goes on, or why there is none.
    pub(super) fn running(&self) -> Result<(), Rejection> {
        match self.state.started() {
            None => Err(refused("unknown", "there is no such instance: start it first")),
            Some(head) if head.status.is_end() => Err(refused(
                "ended",
                format!("the instance has ended: it is {}", head.status.name()),
            )),
            Some(_) => Ok(()),
        }
    }

    /// Has everything that is outstanding fail, so that the code ends in order.
    pub(super) fn cancel(&mut self) -> Result<(), Rejection> {
        self.running()?;
        self.arrive(vec![Arrived::Cancel]);
        Ok(())
    }

    /// Ends it at once, without its code.
    pub(super) fn terminate(&mut self, reason: Reason) -> Result<(), Rejection> {
        self.running()?;
        self.end(Status::Terminated, Failure::Terminated(reason.reason));
        self.drain_events(|_| true);
        Ok(())
    }

    pub(super) fn suspend(&mut self, reason: Reason) -> Result<(), Rejection> {
        self.running()?;
        let head = self.head();
        head.status = Status::Suspended;
        head.suspended =
            if reason.reason.is_empty() { "suspended".into() } else { reason.reason.into() };
        Ok(())
    }

    pub(super) fn resume(&mut self) -> Result<(), Rejection> {
        self.running()?;
        let head = self.head();
        if head.status == Status::Suspended {
            head.status = Status::Running;
            head.suspended = Box::default();
            self.continue_after_pause();
        }
        Ok(())
    }

    /// Tries a stuck instance again.
    pub(super) fn retry(&mut self) -> Result<(), Rejection> {
        self.running()?;
        if self.head().stuck.is_some() {
            self.try_again();
        }
        Ok(())
    }

    /// Begins a new run with the input of the last one; of another instance where a key is given.
    pub(super) fn restart(&mut self, restart: Restart) -> Result<Started, Rejection> {
        let Some(head) = self.state.started() else {
            return Err(refused("unknown", "there is no such instance"));
        };
        let turns = self.state.history.all().map_err(|why| refused("unreadable", why))?;
        let first = turns.first().and_then(|turn| turn.deliveries.first());
        let input = match first {
            Some(Delivery::Start(input)) => input.clone(),
            _ => return Err(refused("unreadable", "its input is not there")),
        };
        match restart.key {
            Some(key) if key != self.ctx.key() => {
                let target = EntityId::new(self.ctx.id().entity_type(), &key);
                let target = target.map_err(|error| refused("invalid", error.to_string()))?;
                let json = if input.is_empty() { b"null" } else { input.bytes() };
                let input = [&b"{\"input\":"[..], json, b"}"].concat();
                let operation = Cow::Borrowed("start");
                self.ctx.emit(Effect::Signal(Signal { target, operation, input, delay: None }));
                Ok(Started { is_new: true, run: 1 })
            }
            _ if head.status.is_end() => self.start_over(StartArgument::of(input)),
            _ => Err(refused(
                "conflict",
                "the instance goes on: terminate it first, or give another key",
            )),
        }
    }

    /// Deletes one that has ended, with everything of it.
    pub(super) fn purge(&mut self, purge: Purge) -> Result<(), Rejection> {
        match self.state.started() {
            None => return Err(refused("unknown", "there is no such instance")),
            Some(head) if !head.status.is_end() => {
                return Err(refused("conflict", "the instance goes on: terminate it first"));
            }
            Some(_) => {}
        }
        if self.state.waiting_events() > 0 {
            return self.purge_later(&purge);
        }
        if purge.recursive {
            for child in self.children(false) {
                self.signal_child(&child, "purge", b"{\"recursive\":true}");
            }
        }
        self.ctx.delete();
        Ok(())
    }

    /// Purges it once all events that nobody took are dead letters.
    fn purge_later(&mut self, purge: &Purge) -> Result<(), Rejection> {
        if self.ctx.is_heard() {
            let why =
                "events that nobody has taken are on their way to the dead letters: ask again";
            return Err(refused("conflict", why));
        }
        let input = format!("{{\"recursive\":{}}}", purge.recursive);
        let own = self.ctx.id().to_string();
        self.signal_child(&own, "purge", input.as_bytes());
        Ok(())
    }

    /// The ids of the children of the present run; those that have not ended, or all.
    pub(super) fn children(&self, outstanding: bool) -> Vec<Box<str>> {
        let Ok(turns) = self.state.history.all() else { return Vec::new() };
        let mut children = std::collections::BTreeMap::new();
        for turn in &turns {
            for begun in &turn.begun {
                if begun.kind == Kind::Child || (!outstanding && begun.kind == Kind::Detached) {
                    children.insert(begun.place.clone(), begun.target.clone());
                }
            }
            if outstanding {
                let done = turn.deliveries.iter().filter_map(|delivery| match delivery {
                    Delivery::Done(place, _) => Some(place),
                    _ => None,
                });
                done.chain(&turn.cancelled).for_each(|place| drop(children.remove(place)));
            }
        }
        children.into_values().collect()
    }

    /// Cancels it where the deadline of the whole has passed, and ends it where that is long ago.
    pub(super) fn pass_deadline(&mut self) -> Vec<Arrived> {
        let now = self.ctx.now();
        let head = self.head();
        if head.deadline.is_none_or(|deadline| deadline > now) {
            return Vec::new();
        }
        if head.is_overdue {
            self.end(
                Status::Terminated,
                Failure::Terminated("it took longer than its deadline".into()),
            );
            self.drain_events(|_| true);
            return Vec::new();
        }
        head.is_overdue = true;
        head.deadline = Some(now + OVERDUE_GRACE);
        vec![Arrived::Cancel]
    }

    /// Ends a run whose code has ended it.
    pub(super) fn end_run(&mut self, end: End) {
        match end {
            End::Returned(answer) => {
                let status = match answer.bytes() {
                    json if json.starts_with(b"{\"Ok\"") => Status::Completed,
                    b"{\"Err\":\"cancelled\"}" => Status::Cancelled,
                    _ => Status::Failed,
                };
                self.settle_end(status, answer);
                self.drain_events(|_| true);
            }
            End::Continued(input) => {
                self.drop_kept_of_run();
                if Sabotage::ParentForgotten.is_on() {
                    self.head().reply_to = None;
                }
                let (seed, run) = (self.head().seed, u64::from(self.head().run));
                let next =
                    u128::from(mixed(seed, [run, 1])) << 64 | u128::from(mixed(seed, [run, 2]));
                self.state.begin_run(next, self.programs.newest);
                self.head().has_steps = false;
                let now = self.ctx.now();
                self.state.keep(now, Arrived::Start(input));
                self.mark();
                self.signal_self(GO_ON);
            }
        }
    }

    /// Ends it without its code: what it has begun is told. The events that wait are left for another run.
    fn end(&mut self, status: Status, failure: Failure) {
        if Sabotage::TerminatedUntold.is_on() {
            return self.settle_end(status, answer_json(Err(failure)).into());
        }
        if self.head().children > 0 {
            for child in self.children(true) {
                match status {
                    Status::Terminated => self.terminate_child(&child, "the parent was terminated"),
                    _ => self.signal_child(&child, "cancel", b"{}"),
                }
            }
        }
        self.end_attempts();
        self.unlock_all();
        self.settle_end(status, answer_json(Err(failure)).into());
    }

    /// Tells the attempts of the run that they are to end.
    pub(super) fn end_attempts(&mut self) {
        let (workflow, run) = (self.ctx.id().clone(), self.head().run);
        self.ctx.emit(Effect::CancelSteps(workflow, run));
    }

    fn settle_end(&mut self, status: Status, answer: Payload) {
        // Its run is of no use any more.
        if !Sabotage::EndedRunsStay.is_on() {
            drop(self.slot.take());
        }
        self.drop_kept_of_run();
        let now = self.ctx.now();
        let head = self.head();
        head.status = status;
        head.outcome = answer.clone();
        head.updated_at = now;
        (head.outstanding, head.children, head.has_steps) = (0, 0, false);
        (head.stuck, head.deadline) = (None, None);
        head.suspended = Box::default();
        // Those of its code were let go with it.
        head.locks.clear();
        drop((std::mem::take(&mut head.attempts), std::mem::take(&mut head.waits)));
        if let Some(reply_to) = head.reply_to.take() {
            self.ctx.emit(Effect::Answer(*reply_to, answer.bytes().to_vec()));
        }
        if self.head().wake_at.take().is_some() {
            self.ctx.emit(Effect::CancelReminder(WAKE.into()));
        }
        self.mark();
        self.ctx.emit(Effect::Expire(Some(self.programs.retention.into())));
    }

    /// Drops what waits for a run that has ended, and is no event.
    fn drop_kept_of_run(&mut self) {
        let all = Sabotage::EventsEndWithRun.is_on();
        self.drop_kept(|what| all || !matches!(what, Arrived::Event(..)));
    }

    /// Drops what was kept, is no event, and is void.
    pub(super) fn drop_kept(&mut self, is_void: impl Fn(&Arrived) -> bool) {
        if self.head().kept.others == 0 && !Sabotage::EventsEndWithRun.is_on() {
            return;
        }
        let kept = self.state.kept.read_all().filter(|(_, kept)| is_void(&kept.what));
        let void: Vec<u64> = kept.map(|(number, _)| *number).collect();
        void.into_iter().for_each(|number| drop(self.state.take_kept(number)));
    }
}

impl State {
    /// The answer that it ended with, if it has.
    pub(super) fn outcome(&self) -> Result<Payload, Rejection> {
        match self.started() {
            None => Err(refused("unknown", "there is no such instance: start it first")),
            Some(head) => Ok(head.outcome.clone()),
        }
    }

    /// A page of the history of the present run.
    pub(super) fn page(&self, id: &EntityId, page: &HistoryPage) -> Turns {
        let length = self.history.len();
        let limit = page.limit.unwrap_or(100).clamp(1, 1_000);
        let from = page.after.min(length);
        let to = self.history.end_of_turn(from.saturating_add(limit).min(length));
        Turns { history: self.saved(id, from..to), next: (to < length).then_some(to) }
    }

    /// A part of the history of the present run, of which all entries are in memory.
    pub(super) fn saved(&self, id: &EntityId, entries: Range<u64>) -> SavedHistory {
        let empty = Head::default();
        let head = self.head.as_deref().unwrap_or(&empty);
        SavedHistory {
            id: id.to_string(),
            version: head.version,
            run: head.code_run(),
            rewinds: head.rewinds,
            seed: format!("{:032x}", head.seed),
            turns: self.history.turns(entries).unwrap_or_default(),
        }
    }
}

/// The identity of an input, however it is written.
fn fingerprint(input: &[u8]) -> u128 {
    let text = canonical(input);
    let words = || {
        text.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        })
    };
    let length = text.len() as u64;
    u128::from(mixed(1, words().chain([length]))) << 64
        | u128::from(mixed(2, words().chain([length])))
}
