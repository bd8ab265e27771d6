//! The settings of a partition, and its only sources of numbers and randomness.

use std::{sync::Arc, time::Duration};

use stead_entities::{
    EntityId, Policy, Timeout, Timestamp, entity::OperationKind, policy::Durability,
};

use super::watch::Watch;
use crate::{
    config::{Config, Limits},
    entropy::Entropy,
    map::{Set, SharedSet},
    memory::Memory,
    sabotage::Sabotage,
    store::{
        Write,
        tables::meta::{NotIndexed, Settings},
    },
    types::{EntityType, EntityTypes},
};

/// How far minted numbers may run ahead of the clock, one for each microsecond.
const MINT_MARGIN: Duration = Duration::from_secs(1);
/// The bits of a minted number that name its partition.
const PARTITION_BITS: u32 = 12;

/// The partition that minted a number.
pub(super) fn number_of_partition(number: u64) -> u16 {
    (number & ((1 << PARTITION_BITS) - 1)) as u16
}

/// An index that others declared, as this program does not: type, name, and the version of the type.
pub(crate) type ForeignIndex = (String, String, u32);

/// The settings of a partition that do not change.
pub(crate) struct Identity {
    pub(crate) number: u16,
    /// The incarnation of the node.
    pub(crate) incarnation: u64,
    pub(crate) settings: Settings,
    pub(crate) types: Arc<EntityTypes>,
    pub(crate) config: Arc<Config>,
    pub(crate) watch: Arc<Watch>,
    /// How far minted numbers are ahead of the clock.
    pub(crate) numbers_ahead: Duration,
    /// The entity types that partitions of the node met and that it does not serve.
    pub(crate) unserved: Arc<SharedSet<String>>,
    pub(crate) memory: Arc<Memory>,
    /// The number of this hosting of the partition among all of the node.
    pub(crate) hosting: u64,
    /// The indexes that states lack which this node writes.
    pub(crate) foreign: Arc<[ForeignIndex]>,
}

/// The settings of a partition, and its sources of numbers and randomness.
pub(super) struct Environment {
    identity: Identity,
    entropy: Entropy,
    /// Microseconds of the last number that was minted.
    minted: u64,
    /// The entity types that this node does not serve and that something waits for, as far as the
    /// log was told.
    unserved: Set<String>,
    /// Whether any type is buffered.
    has_buffered: bool,
}

fn is_buffered(known: &dyn EntityType) -> bool {
    known.policy().durability == Some(Durability::Buffered)
}

impl Environment {
    pub(super) fn new(identity: Identity, entropy: Entropy, now: Timestamp) -> Self {
        // Numbers of the incarnation before this one may be ahead of its last commit's time.
        let minted = (now + identity.numbers_ahead + MINT_MARGIN).as_micros().unsigned_abs();
        let has_buffered = identity.types.values().any(|known| is_buffered(&**known));
        Self { identity, entropy, minted, unserved: Set::default(), has_buffered }
    }

    pub(super) fn number(&self) -> u16 {
        self.identity.number
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.identity.incarnation
    }

    pub(super) fn config(&self) -> &Config {
        &self.identity.config
    }

    /// The limits of the entities of a type, or of one of its operations.
    pub(super) fn limits(&self, id: &EntityId, operation: Option<usize>) -> Limits {
        let config = &self.identity.config;
        match (self.type_of(id), operation) {
            (Some(known), Some(index)) => config.limits(known.policy_of(index)),
            (Some(known), None) => config.limits(known.policy()),
            (None, _) => config.limits(&Policy::default()),
        }
    }

    /// How long the dead letters of a type are kept.
    pub(super) fn letter_age(&self, entity_type: &str, is_rejection: bool) -> Duration {
        let config = &self.identity.config;
        let of_type = self.identity.types.get(entity_type);
        let of_type = of_type.and_then(|known| known.policy().dead_letters);
        let of_node = if is_rejection { config.rejections_age } else { config.dead_letters_age };
        of_type.map_or(of_node, |length| length.as_duration())
    }

    /// The memory of the node.
    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.identity.memory
    }

    /// The most bytes of stored signals, and half as many of reminders, that the partition holds in memory.
    pub(super) fn row_bytes_max(&self) -> usize {
        self.identity.memory.request_share(self.identity.settings.partitions)
    }

    /// How long the changes of a type are kept.
    pub(super) fn changes_kept(&self, entity_type: &str) -> Option<Timeout> {
        self.identity.types.get(entity_type)?.policy().changes
    }

    /// The shortest of the times that unused entities stay in memory.
    pub(super) fn idle_min(&self) -> Duration {
        let types = self.identity.types.values().filter_map(|known| known.policy().idle);
        let times = types.map(|length| length.as_duration());
        times.chain([self.identity.config.idle]).min().unwrap_or(self.identity.config.idle)
    }

    pub(super) fn watch(&self) -> &Watch {
        &self.identity.watch
    }

    /// The hash of bytes, which nobody who does not know the store's key can have collide.
    pub(super) fn hash(&self, bytes: &[u8]) -> u128 {
        self.identity.settings.fingerprint(&[bytes])
    }

    /// The partition of an entity.
    pub(super) fn partition_of(&self, id: &EntityId) -> u16 {
        self.identity.settings.partition_of(id)
    }

    /// The time of the store's clock as numbers count it: a clock that was set back is behind them.
    pub(super) fn numbered(&self, now: Timestamp) -> Timestamp {
        now + self.identity.numbers_ahead
    }

    /// A number that only grows, also over restarts, and that no other partition mints: microseconds
    /// of the store's time, then the partition. They last until the year 2112.
    pub(super) fn mint(&mut self, now: Timestamp) -> u64 {
        let now = u64::try_from(self.numbered(now).as_micros()).unwrap_or(0);
        self.minted = now.max(self.minted + 1);
        (self.minted << PARTITION_BITS) | u64::from(self.identity.number)
    }

    /// The keyed hash of some parts.
    pub(super) fn fingerprint(&self, parts: &[&[u8]]) -> u128 {
        self.identity.settings.fingerprint(parts)
    }

    /// A token for an operation.
    pub(super) fn token(&mut self) -> u128 {
        self.entropy.next_wide()
    }

    /// The seed of a turn.
    pub(super) fn seed(&mut self) -> u64 {
        self.entropy.next()
    }

    /// The type of an entity, where this node serves it.
    pub(super) fn type_of(&self, id: &EntityId) -> Option<&Arc<dyn EntityType>> {
        self.identity.types.get(id.entity_type())
    }

    /// Whether any type is buffered.
    pub(super) fn has_buffered(&self) -> bool {
        self.has_buffered
    }

    /// Whether what an entity has written may be answered before it is flushed.
    pub(super) fn is_buffered(&self, id: &EntityId) -> bool {
        self.type_of(id).is_some_and(|known| is_buffered(&**known))
    }

    /// The type of an entity that is served: else nothing of it could be in a mailbox.
    pub(super) fn served(&self, id: &EntityId) -> Arc<dyn EntityType> {
        self.type_of(id).expect("what is in a mailbox is of a type that is served").clone()
    }

    /// The operation of a name, for rows and reminders; internal ones included.
    ///
    /// # Errors
    /// Why the entity cannot apply it, in words.
    pub(super) fn operation(&self, id: &EntityId, name: &str) -> Result<(usize, bool), String> {
        let known = self.type_of(id).ok_or("the entity type is not served")?;
        let found = known.find_stored(name).ok_or_else(|| format!("no operation {name}"))?;
        match found.kind {
            OperationKind::Operation => Ok((found.index, false)),
            OperationKind::Async => Ok((found.index, true)),
            OperationKind::Query => Err(format!("{name} is a query")),
        }
    }

    /// The number of this hosting of the partition among all of the node.
    pub(super) fn hosting(&self) -> u64 {
        self.identity.hosting
    }

    /// The notes that states of this partition may lack the indexes that this program does not have.
    pub(super) fn foreign_notes(&self) -> Vec<Write> {
        let is_told = !Sabotage::ForeignIndexNotNoted.is_on();
        let foreign = self.identity.foreign.iter().filter(|_| is_told).cloned();
        let key = |(entity_type, index, version)| (entity_type, index, version, self.number());
        foreign.map(|index| Write::put(&key(index), &NotIndexed)).collect()
    }

    /// Says once of a type, until the node starts anew, that something waits for it.
    pub(super) fn note_unserved(&mut self, id: &EntityId) {
        if self.unserved.insert(id.entity_type().to_owned()) {
            self.identity.unserved.insert(id.entity_type().to_owned());
            tracing::warn!(entity = %id, "signals or reminders wait for an entity type that is not served");
        }
    }

    /// Replaces settings, as another node would have them.
    #[cfg(test)]
    pub(super) fn set_config(&mut self, change: impl FnOnce(&mut Config)) {
        change(Arc::make_mut(&mut self.identity.config));
    }
}
