//! What clients do with workflows of random programs while everything goes wrong, and what must hold of them in the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, read_to_string},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use stead::{
    CallError, ErrorKind, Rejection,
    workflow::{
        InstanceReference, Kind, SavedHistory, StartPolicy, Status, StatusView, StepError,
        WorkflowCaller,
    },
};

use crate::{
    programs::{EVENTS, Interpreter, LOCKED, Making, Program, SIGNALLED},
    random::Random,
};

/// The name of the type.
pub const TYPE: &str = "interpreter";
/// How long a client waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How often a start is sent until it is acknowledged.
const TRIES: usize = 1_000;

/// An interpreter whose steps write down, in a file, which workflow asks with which token. They fail now and then; what
/// they return follows from the token.
///
/// # Errors
/// Where there can be no such file.
pub fn interpreter(outside: &Path) -> std::io::Result<Interpreter> {
    let file = Arc::new(File::options().create(true).append(true).open(outside)?);
    Ok(Interpreter(Arc::new(move |step, _| {
        let (token, attempt) = (step.token(), u64::from(step.attempt()));
        let line = format!("{} {token}\n", step.workflow().key());
        let noted = (&*file).write_all(line.as_bytes());
        let value = u64::from_str_radix(&token[..8], 16).unwrap_or_default();
        Box::pin(async move {
            noted?;
            tokio::time::sleep(Duration::from_millis(value % 40)).await;
            match (value / 40 + attempt) % 16 {
                0..4 => Err(StepError::new("busy")),
                4 => Err(StepError::fatal("broken")),
                5 => Err(Rejection::new("no").into()),
                _ => Ok(value),
            }
        })
    })))
}

/// The tokens with which the steps of each workflow have asked, by its key, as the file of an [`interpreter`] has them.
pub fn asked(outside: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut asked = BTreeMap::<_, BTreeSet<_>>::new();
    for line in read_to_string(outside).unwrap_or_default().lines() {
        let (key, token) = line.split_once(' ').unwrap_or((line, ""));
        asked.entry(key.to_owned()).or_default().insert(token.to_owned());
    }
    asked
}

/// The workflows that clients have started.
#[derive(Debug)]
pub struct Workflows {
    /// The file in which steps write.
    outside: PathBuf,
    making: Making,
    /// By key, those of which a start was sent.
    started: Mutex<BTreeMap<String, Start>>,
    wrong: Mutex<Vec<String>>,
}

/// What is known of a start.
#[derive(Debug, Clone, Copy)]
struct Start {
    /// Whether its program calls and signals.
    has_effects: bool,
    is_acknowledged: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workflows {
    /// None so far.
    pub fn new(outside: PathBuf, longest: Duration) -> Self {
        let making = Making { depth: 3, longest, has_effects: true, in_section: false };
        Self { outside, making, started: Mutex::default(), wrong: Mutex::default() }
    }

    /// Does something with one of them, by way of any node that `any` names.
    pub async fn act<C: WorkflowCaller + Clone>(
        &self,
        random: &mut Random,
        new_key: &str,
        mut any: impl FnMut(&mut Random, &str) -> Option<InstanceReference<C>>,
    ) {
        let action = random.below(20);
        let known: Vec<_> = lock(&self.started).keys().cloned().collect();
        let Some(key) = known.get(random.below(known.len().max(1) as u64) as usize) else {
            return self.start(random, new_key, &mut any).await;
        };
        let Some(instance) = any(random, key) else { return };
        let has_effects = lock(&self.started)[key].has_effects;
        let name = format!("event-{}", random.below(EVENTS));
        let acted = async {
            match action {
                0..6 => self.start(random, new_key, &mut any).await,
                6..12 => drop(instance.event(&name, &random.below(1_000)).await),
                12 => drop(instance.suspend("for a while").await),
                13..15 => drop(instance.resume().await),
                15 => drop(instance.cancel().await),
                16 => drop(instance.terminate("enough").await),
                17 if !has_effects => drop(instance.rewind().await),
                _ => self.look(key, instance.status_of().committed().await),
            }
        };
        if action < 6 {
            return acted.await;
        }
        // What became of it is told by the status.
        let _unknown = tokio::time::timeout(TIMEOUT, acted).await;
    }

    fn look(&self, key: &str, status: Result<StatusView<u64>, CallError>) {
        let Ok(status) = status else { return };
        let is_lost = status.status.is_none() && lock(&self.started)[key].is_acknowledged;
        if is_lost || status.stuck.is_some() {
            lock(&self.wrong).push(format!("{key} is {status:?}"));
        }
    }

    /// Starts one, until that is acknowledged.
    async fn start<C: WorkflowCaller + Clone>(
        &self,
        random: &mut Random,
        key: &str,
        any: &mut impl FnMut(&mut Random, &str) -> Option<InstanceReference<C>>,
    ) {
        let (runs, has_effects) = if random.below(3) == 0 { (2, false) } else { (1, true) };
        let making = Making { has_effects, ..self.making };
        let parts = (0..3).map(|_| Program::random(&mut |limit| random.below(limit), making));
        let program = Program::InOrder(parts.collect());
        let sent = Start { has_effects, is_acknowledged: false };
        lock(&self.started).insert(key.to_owned(), sent);
        for _ in 0..TRIES {
            let Some(instance) = any(random, key) else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let start = instance.start_of::<Interpreter>(&(program.clone(), runs));
            let start = start.policy(StartPolicy::Once).into_future();
            match tokio::time::timeout(TIMEOUT, start).await {
                Ok(Ok(_)) => {
                    let known = Start { is_acknowledged: true, ..sent };
                    lock(&self.started).insert(key.to_owned(), known);
                    return;
                }
                Ok(Err(CallError::Rejected(why))) => {
                    return lock(&self.wrong).push(format!("{key} does not start: {why}"));
                }
                Ok(Err(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        lock(&self.wrong).push(format!("{key} was never started"));
    }

    /// Waits until all have ended, at most so long, and says which have not; see [`Workflows::finish`].
    pub async fn end<C: WorkflowCaller + Clone>(
        &self,
        any: impl Fn(&str) -> InstanceReference<C>,
        limit: Duration,
    ) -> Vec<String> {
        let began = tokio::time::Instant::now();
        loop {
            let open = self.finish(&any).await;
            if open.is_empty() || began.elapsed() > limit {
                return open;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Has each of them go on, raises the events that it waits for, and says which have not ended.
    pub async fn finish<C: WorkflowCaller + Clone>(
        &self,
        any: impl Fn(&str) -> InstanceReference<C>,
    ) -> Vec<String> {
        let mut open = Vec::new();
        for (key, start) in self.with_children() {
            let instance = any(&key);
            let status = instance.status_of::<u64>().committed().into_future();
            let status = match tokio::time::timeout(TIMEOUT, status).await {
                Ok(Ok(status)) if status.status.is_none() && !start.is_acknowledged => continue,
                Ok(Err(CallError::Failed(error)))
                    if error.kind() == ErrorKind::NotFound && !start.is_acknowledged =>
                {
                    continue;
                }
                Ok(Ok(status)) => status,
                Ok(Err(error)) => {
                    open.push(format!("{key} cannot be read: {error}"));
                    continue;
                }
                Err(_) => {
                    open.push(format!("{key} cannot be read in time"));
                    continue;
                }
            };
            if status.status.is_some_and(Status::is_end) {
                continue;
            }
            let helped = async {
                drop(instance.resume().await);
                for wait in status.waits_for.iter().filter(|wait| wait.kind == Kind::Event) {
                    drop(instance.event(&wait.name, &1).await);
                }
            };
            let _unknown = tokio::time::timeout(TIMEOUT, helped).await;
            let waits: Vec<_> =
                status.waits_for.iter().map(|wait| (wait.kind, &*wait.name)).collect();
            let (is, stuck) = (status.status, status.stuck);
            open.push(format!("{key} is {is:?}, stuck: {stuck:?}, and waits for {waits:?}"));
        }
        open
    }

    /// Compares their histories, once all have ended, with each other, with the outside, and with what `count` says of
    /// the two counters; for so long nothing may begin before. Returns what is wrong.
    pub async fn compare<C: WorkflowCaller + Clone>(
        &self,
        any: impl Fn(&str) -> InstanceReference<C>,
        count: impl AsyncFn(&'static str) -> Result<i64, CallError>,
        quiet: Duration,
    ) -> Vec<String> {
        let attempts = self.attempts();
        tokio::time::sleep(quiet).await;
        let mut wrong = lock(&self.wrong).clone();
        if self.attempts() != attempts {
            wrong.push("steps were begun when everything had ended".into());
        }
        let counted = (count(LOCKED[0]).await, count(SIGNALLED).await);
        let (Ok(called), Ok(signalled)) = counted else {
            wrong.push(format!("the counters cannot be read: {counted:?}"));
            return wrong;
        };
        let asked = asked(&self.outside);
        let (mut calls, mut signals) = (0, 0);
        for (key, Start { has_effects, is_acknowledged }) in &self.with_children() {
            let history = match any(key).history().await {
                Ok(history) => history,
                Err(CallError::Failed(error))
                    if error.kind() == ErrorKind::NotFound && !is_acknowledged =>
                {
                    continue;
                }
                Err(error) => {
                    wrong.push(format!("the history of {key} cannot be read: {error}"));
                    continue;
                }
            };
            if let Err(why) = history.replay::<Interpreter>() {
                wrong.push(format!("{key} does something else on a replay: {why}"));
            }
            let found = Found::of(&history);
            let tokens = asked.get(key).cloned().unwrap_or_default();
            wrong.extend(found.strange(&tokens).map(|why| format!("{key}: {why}")));
            if *has_effects && tokens.len() > found.steps.len() {
                let (asked, steps) = (tokens.len(), found.steps.len());
                wrong.push(format!("{key} asks with {asked} tokens for {steps} steps"));
            }
            calls += found.calls;
            signals += found.signals;
        }
        if (calls, signals) != (called, signalled) {
            wrong.push(format!(
                "histories have {calls} of calls and {signals} of signals, entities {called} and {signalled}"
            ));
        }
        wrong
    }

    /// All that were started, with those that they have started and that have asked.
    fn with_children(&self) -> BTreeMap<String, Start> {
        let mut all = lock(&self.started).clone();
        for key in asked(&self.outside).into_keys() {
            let parent = key.split_once('~').and_then(|(first, _)| all.get(first)).copied();
            if let Some(parent) = parent {
                all.insert(key, Start { is_acknowledged: false, ..parent });
            }
        }
        all
    }

    /// How often steps have asked.
    pub fn attempts(&self) -> usize {
        read_to_string(&self.outside).unwrap_or_default().lines().count()
    }

    /// How many were started.
    pub fn len(&self) -> usize {
        lock(&self.started).len()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a history says.
#[derive(Debug, Default)]
struct Found {
    /// The places of the steps that are methods, with the values that they returned.
    steps: BTreeMap<String, Option<u64>>,
    calls: i64,
    signals: i64,
}

impl Found {
    fn of(history: &SavedHistory) -> Self {
        let mut found = Self::default();
        let history = serde_json::to_value(history).unwrap_or_default();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for turn in list(&history["turns"]) {
            for done in list(&turn["deliveries"]).iter().map(|delivery| &delivery["Done"]) {
                if let Some(returned) = found.steps.get_mut(&text(&done[0])) {
                    *returned = done[1]["Ok"].as_u64();
                }
            }
            for begun in list(&turn["begun"]) {
                let (place, argument) = (text(&begun["place"]), begun["argument"].as_i64());
                // What is given up at once is never sent.
                if list(&turn["cancelled"]).iter().any(|given_up| text(given_up) == place) {
                    continue;
                }
                let target = text(&begun["target"]);
                match (&*text(&begun["kind"]), &*text(&begun["name"])) {
                    ("step", "work") => drop(found.steps.insert(place, None)),
                    ("call", _) if target == format!("counter/{}", LOCKED[0]) => {
                        found.calls += argument.unwrap_or_default();
                    }
                    ("signal", _) if target == format!("counter/{SIGNALLED}") => {
                        found.signals += argument.unwrap_or_default();
                    }
                    _ => {}
                }
            }
        }
        found
    }

    /// Results of steps that nobody returned, or that two have.
    fn strange(&self, tokens: &BTreeSet<String>) -> impl Iterator<Item = String> {
        let returned: Vec<u64> = self.steps.values().flatten().copied().collect();
        let known: BTreeSet<u64> = tokens
            .iter()
            .filter_map(|token| u64::from_str_radix(token.get(..8)?, 16).ok())
            .collect();
        let distinct: BTreeSet<u64> = returned.iter().copied().collect();
        let doubled = (distinct.len() < returned.len())
            .then(|| format!("two steps have one result: {returned:?}"));
        let unknown: Vec<_> = distinct.difference(&known).copied().collect();
        let unknown = (!unknown.is_empty()).then(|| format!("{unknown:?} were never returned"));
        doubled.into_iter().chain(unknown)
    }
}
