//! The entities of a partition that are in memory: which there are, which can run, which wait for a
//! retry, and which are forgotten because nobody used them for a while.
//!
//! It knows neither the store nor what an operation does. What must never happen: an entity is
//! forgotten while something of it is not durable, waits, or runs; an entity that can run waits for
//! ever.

mod activation;
mod large;
mod live;
mod parked;
mod table;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use stead_entities::{EntityId, Error, Timestamp};

pub(super) use self::{
    activation::{Activation, Lacking, Stage, WaitsForRead},
    live::{Live, Sent},
};
use self::{large::LargeStates, table::Table};
use super::{
    READ_PAUSE,
    envelope::{Envelope, Retry},
    loaded::{self, corrupt},
};
use crate::{
    map::Map,
    memory::{self, EntityShare, Memory},
    rules::Rule,
    sabotage::Sabotage,
    store::{ReadError, ReadResult, tables::states::StateRecord},
    types::EntityType,
};

/// How often a partition may fail while it runs an entity, before the entity is left alone.
pub(super) const FAILURES_MAX: u32 = 3;
/// The wait before entities that all were in use are asked to leave again.
const SHED_PAUSE: Duration = Duration::from_millis(100);

/// The entities in memory.
pub(super) struct Activations {
    table: Table,
    /// Those that have something to run, each once.
    ready: VecDeque<EntityId>,
    retries: BTreeSet<Retry>,
    /// The entity that is being worked on, to be blamed where the partition fails.
    running: Option<EntityId>,
    failures: Map<EntityId, u32>,
    large: LargeStates,
    swept_at: Timestamp,
    share: EntityShare,
    /// When entities may be asked to leave again.
    shed_at: Timestamp,
}

impl Activations {
    pub(super) fn new(now: Timestamp, memory: Arc<Memory>) -> Self {
        Self {
            table: Table::default(),
            ready: VecDeque::new(),
            retries: BTreeSet::new(),
            running: None,
            failures: Map::default(),
            large: LargeStates::default(),
            swept_at: now,
            share: EntityShare::new(memory),
            shed_at: now,
        }
    }

    pub(super) fn get(&self, id: &EntityId) -> Option<&Activation> {
        self.table.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &EntityId) -> Option<&mut Activation> {
        self.table.get_mut(id)
    }

    /// An entity that work is done for, so that it is in memory.
    pub(super) fn of(&mut self, id: &EntityId) -> &mut Activation {
        match self.table.get_mut(id) {
            Some(activation) => activation,
            None => Rule::EntityIsActive.broken(),
        }
    }

    /// Makes sure that an entity is in memory, and says whether its state is to be read because it
    /// was not.
    pub(super) fn activate(&mut self, id: &EntityId, now: Timestamp) -> (&mut Activation, bool) {
        let is_new = self.table.get_mut(id).is_none();
        if is_new {
            self.table.insert(id.clone(), Activation::loading(now));
            self.count(id, 0);
        }
        (self.of(id), is_new)
    }

    /// Notes the bytes of a state that is written; the log is told where they come near the limit.
    pub(super) fn note_size(&mut self, id: &EntityId, bytes: usize, limit: usize) {
        self.large.note(id, bytes, limit);
        self.count(id, bytes);
    }

    /// Counts what an entity has in memory beside its state.
    pub(super) fn count_held(&mut self, id: &EntityId) {
        let activation = self.of(id);
        let bytes = match activation.live().is_some() {
            true => activation.live_mut().state_mut().held_bytes(),
            false => 0,
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let before = std::mem::replace(&mut activation.held, bytes);
        self.share.replace(before as usize, bytes as usize);
    }

    /// Counts what an entity takes whose state has so many bytes.
    fn count(&mut self, id: &EntityId, state: usize) {
        if let Some(activation) = self.table.get_mut(id) {
            let bytes = u32::try_from(memory::entity_bytes(state)).unwrap_or(u32::MAX);
            let before = std::mem::replace(&mut activation.bytes, bytes);
            self.share.replace(before as usize, bytes as usize);
        }
    }

    pub(super) fn contains(&self, id: &EntityId) -> bool {
        self.table.get(id).is_some()
    }

    /// Lets an entity run when its turn among its neighbours comes, if it is in memory.
    pub(super) fn make_ready(&mut self, id: &EntityId) {
        if let Some(activation) = self.table.get_mut(id)
            && !std::mem::replace(&mut activation.is_queued, true)
        {
            self.ready.push_back(id.clone());
        }
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes the next entity that has something to run, and notes that it is worked on until
    /// [`Activations::end_running`].
    pub(super) fn begin_running(&mut self) -> Option<EntityId> {
        while let Some(id) = self.ready.pop_front() {
            if let Some(activation) = self.table.get_mut(&id) {
                activation.is_queued = false;
                self.running = Some(id.clone());
                return Some(id);
            }
        }
        None
    }

    pub(super) fn end_running(&mut self) {
        self.running = None;
    }

    /// Blames the entity that is worked on for a failure of the partition. One that failed it too
    /// often is left alone from then on.
    pub(super) fn blame_running(&mut self) {
        let Some(id) = self.running.take() else { return };
        let failures = self.failures.entry(id.clone()).or_default();
        *failures += 1;
        tracing::error!(entity = %id, failures, "a partition failed while it ran this entity");
    }

    /// Has an entity tried again at a time.
    pub(super) fn retry(&mut self, at: Timestamp, id: &EntityId) {
        self.retries.insert((at, id.clone()));
    }

    /// The next entity whose time has come.
    pub(super) fn next_retry(&mut self, now: Timestamp) -> Option<EntityId> {
        let is_due = self.retries.first().is_some_and(|(at, _)| *at <= now);
        is_due.then(|| self.retries.pop_first()).flatten().map(|(_, id)| id)
    }

    /// When something is to be done by itself: a retry, or forgetting who is idle.
    pub(super) fn next_wake(&self, idle: Duration) -> [Option<Timestamp>; 2] {
        let retry = self.retries.first().map(|(at, _)| *at);
        let sweep = (self.table.len() > 0).then(|| self.swept_at + idle / 4);
        [retry, sweep]
    }

    /// Forgets entities that were not used for a while, each for its own, but for those that `keeps` says of. Says
    /// whether it was time for that, which the shortest of the whiles decides.
    pub(super) fn sweep(
        &mut self,
        now: Timestamp,
        (idle_min, idle): (Duration, impl Fn(&EntityId) -> Duration),
        released: u64,
        keeps: impl Fn(&EntityId) -> bool,
    ) -> bool {
        if now < self.swept_at + idle_min / 4 {
            return false;
        }
        self.swept_at = now;
        self.retain(|id, entry| {
            let idle = i64::try_from(idle(id).as_micros()).unwrap_or(i64::MAX / 2);
            let since = Timestamp::from_micros(now.as_micros() - idle);
            !entry.is_idle(released, since) || keeps(id)
        });
        true
    }

    /// Forgets entities that were not used for longest, where all of the node take more than they may, but for those
    /// that `keeps` says of.
    pub(super) fn shed(
        &mut self,
        now: Timestamp,
        released: u64,
        keeps: impl Fn(&EntityId) -> bool,
    ) {
        let surplus = if now < self.shed_at { 0 } else { self.share.surplus() };
        if surplus == 0 || Sabotage::BudgetIgnored.is_on() {
            return;
        }
        let ever = Timestamp::from_micros(i64::MAX);
        let idle = self.table.values().filter(|entry| entry.is_idle(released, ever));
        let mut idle: Vec<_> = idle.map(|entry| (entry.used_at, entry.bytes())).collect();
        idle.sort_unstable();
        let mut bytes = 0;
        let last = idle.iter().find(|(_, of)| {
            bytes += of;
            bytes >= surplus
        });
        let Some((until, _)) = last.or(idle.last()) else {
            self.shed_at = now + SHED_PAUSE;
            return;
        };
        let (since, before) = (*until + Duration::from_micros(1), self.share.bytes());
        self.retain(|id, entry| !entry.is_idle(released, since) || keeps(id));
        if self.share.bytes() == before {
            self.shed_at = now + SHED_PAUSE;
        }
    }

    fn retain(&mut self, keeps: impl Fn(&EntityId, &Activation) -> bool) {
        let share = &mut self.share;
        self.table.retain(|id, entry| {
            let is_kept = keeps(id, entry);
            if !is_kept {
                share.replace(entry.bytes(), 0);
            }
            is_kept
        });
    }

    /// Takes what the store has of an entity that waits for it, and lets it run.
    pub(super) fn loaded(
        &mut self,
        id: &EntityId,
        known: Option<&Arc<dyn EntityType>>,
        read: ReadResult<Option<StateRecord>>,
        now: Timestamp,
    ) {
        self.running = Some(id.clone());
        if let Ok(Some(record)) = &read {
            self.count(id, record.state.len());
        }
        let stage = match read {
            Err(ReadError::Unavailable(why)) => {
                tracing::error!(entity = %id, why, "a state cannot be read at the moment");
                Stage::Unreadable(now + READ_PAUSE)
            }
            read => match self.decoded(id, known, read, now) {
                Ok(live) => Stage::Ready(live),
                Err(error) => {
                    tracing::error!(%error, "an entity is left as it is stored");
                    Stage::Unusable(error)
                }
            },
        };
        self.running = None;
        if let Some(activation) = self.table.get_mut(id) {
            activation.loaded(stage);
            self.make_ready(id);
        }
    }

    fn decoded(
        &self,
        id: &EntityId,
        known: Option<&Arc<dyn EntityType>>,
        read: ReadResult<Option<StateRecord>>,
        now: Timestamp,
    ) -> Result<Live, Error> {
        let corrupt = |why: &dyn std::fmt::Display| corrupt(id, why);
        let known = known.ok_or_else(|| corrupt(&"the entity type is not served"))?;
        if self.failures.get(id).is_some_and(|failures| *failures >= FAILURES_MAX) {
            let why = "the partition failed each time it ran this entity, which is left alone";
            return Err(corrupt(&format!("{why} until the next start")));
        }
        let (state, record) = loaded::state(&**known, id, read, (now, true))?;
        Ok(Live::new(state, record))
    }

    /// Forgets an entity as if it had never been loaded.
    #[cfg(feature = "sabotage")]
    pub(super) fn forget(&mut self, id: &EntityId) {
        if let Some(activation) = self.table.get(id) {
            self.share.replace(activation.bytes(), 0);
        }
        self.table.remove(id);
    }

    /// Gives back the permits of everything that waits for its turn.
    pub(super) fn drop_permits(&mut self) {
        self.table.values_mut().for_each(|entry| entry.drop_permits());
    }

    /// Whether a caller waits for anything, or an operation awaits.
    pub(super) fn is_awaited(&self) -> bool {
        self.table.values().any(|entry| entry.is_awaited())
    }

    /// Ends the term: forgets every entity. Returns what waited for them, in the order of their ids,
    /// which does not depend on how tables hash.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = Envelope> + use<> {
        self.share.replace(self.share.bytes(), 0);
        let table = std::mem::take(&mut self.table).into_sorted();
        self.ready.clear();
        self.retries.clear();
        table.into_iter().flat_map(|(_, activation)| activation.end())
    }
}

#[cfg(test)]
mod tests {
    use stead_entities::ErrorKind;

    use super::*;
    use crate::Config;

    fn id(key: &str) -> EntityId {
        EntityId::new("log", key).expect("valid")
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn an_entity_runs_once_however_often_it_is_made_ready() {
        let mut entities = Activations::new(at(0), Memory::of(&Config::default()));
        for key in ["a", "b"] {
            assert!(entities.activate(&id(key), at(0)).1, "its state is to be read");
            assert!(!entities.activate(&id(key), at(0)).1, "once");
            entities.make_ready(&id(key));
            entities.make_ready(&id(key));
        }
        entities.make_ready(&id("nobody"));
        let order: Vec<_> = std::iter::from_fn(|| entities.begin_running()).collect();
        assert_eq!(order, [id("a"), id("b")]);
        entities.make_ready(&id("a"));
        assert!(entities.has_ready(), "also again");
    }

    #[test]
    fn who_is_idle_is_forgotten_and_who_waits_is_not() {
        let mut entities = Activations::new(at(0), Memory::of(&Config::default()));
        let idle = Duration::from_secs(60);
        for key in ["idle", "used", "loading", "held", "kept"] {
            entities.activate(&id(key), at(0));
        }
        for key in ["idle", "used", "held", "kept"] {
            let error = Error::new(ErrorKind::Corrupt, "on purpose");
            entities.of(&id(key)).loaded(Stage::Unusable(error));
        }
        entities.of(&id("used")).use_at(at(100));
        entities.of(&id("held")).hold_until(7);
        assert!(!entities.sweep(at(10), (idle, |_: &EntityId| idle), 6, |_| false), "not yet");
        assert!(entities.sweep(at(120), (idle, |_: &EntityId| idle), 6, |it| *it == id("kept")));
        let known = |key: &str| entities.contains(&id(key));
        assert_eq!(
            ["idle", "used", "loading", "held", "kept"].map(known),
            [false, true, true, true, true]
        );
    }

    #[test]
    fn who_was_not_used_for_longest_leaves_when_memory_is_used_up() {
        let config = Config { memory: 64 << 20, ..Config::default() };
        let memory = Memory::of(&config);
        let mut entities = Activations::new(at(0), memory.clone());
        let mib = 1 << 20;
        for (key, used) in [("c", 3), ("a", 1), ("d", 4), ("b", 2), ("kept", 0), ("loading", 0)] {
            entities.activate(&id(key), at(0));
            if key != "loading" {
                let error = Error::new(ErrorKind::Corrupt, "on purpose");
                entities.of(&id(key)).loaded(Stage::Unusable(error));
            }
            entities.of(&id(key)).use_at(at(used));
            entities.note_size(&id(key), 2 * mib, 16 * mib);
        }
        let known = |entities: &Activations| {
            ["a", "b", "c", "d", "kept", "loading"]
                .into_iter()
                .filter(|key| entities.contains(&id(key)))
                .collect::<Vec<_>>()
        };
        let keeps = |of: &EntityId| of.key() == "kept";
        assert!(memory.has_surplus(), "24 MiB of 18");
        entities.shed(at(10), 0, keeps);
        assert_eq!(known(&entities), ["c", "d", "kept", "loading"]);
        assert!(!memory.has_surplus());
        entities.shed(at(20), 0, keeps);
        assert_eq!(known(&entities).len(), 4, "nobody has to leave");
        assert_eq!(entities.clear().count(), 0);
        assert!(!memory.has_surplus());
    }

    #[test]
    fn retries_come_in_the_order_of_their_times() {
        let mut entities = Activations::new(at(0), Memory::of(&Config::default()));
        entities.retry(at(9), &id("late"));
        entities.retry(at(3), &id("early"));
        assert_eq!(entities.next_retry(at(2)), None);
        assert_eq!(entities.next_wake(Duration::from_secs(60)), [Some(at(3)), None]);
        assert_eq!(entities.next_retry(at(9)), Some(id("early")));
        assert_eq!(entities.next_retry(at(9)), Some(id("late")));
        assert_eq!(entities.next_retry(at(9)), None);
    }
}
