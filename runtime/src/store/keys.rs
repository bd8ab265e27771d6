//! The keys of every table, to the byte. Ids hold no control characters, so a zero byte ends one.

use std::sync::Arc;

use stead_entities::{EntityId, Timestamp};

use super::record::{Damaged, DeadLetterId, IdempotencyKey, InboxKey, Slot};

/// A table of the store: a column family, or a map in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Settings, lanes, layouts.
    Meta,
    /// `type/key` to state.
    States,
    /// Accepted and not yet applied.
    Inbox,
    /// Reminders and delayed signals by entity.
    Reminders,
    /// The same by due time; the values are empty.
    Due,
    /// Idempotency keys.
    Idempotency,
    /// Dead letters.
    DeadLetters,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 7] = [
        Self::Meta,
        Self::States,
        Self::Inbox,
        Self::Reminders,
        Self::Due,
        Self::Idempotency,
        Self::DeadLetters,
    ];

    /// The name of the column family.
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "default",
            Self::States => "states",
            Self::Inbox => "inbox",
            Self::Reminders => "reminders",
            Self::Due => "due",
            Self::Idempotency => "idempotency",
            Self::DeadLetters => "dead_letters",
        }
    }
}

/// The key of the store's settings.
pub const SETTINGS: &[u8] = b"settings";
/// The key of the lane of a single node.
pub const LANE: &[u8] = b"lane/0";

/// The key of the chain of batches, of which RocksDB keeps the ends.
pub const HISTORY: &[u8] = b"history";
/// The key of how far minted numbers are ahead of the clock, where that was set back.
pub const NUMBERS_AHEAD: &[u8] = b"numbers_ahead";

/// What the keys of the layouts of an entity type begin with.
pub fn layouts(entity_type: &str) -> Vec<u8> {
    format!("layout/{entity_type}/").into_bytes()
}

/// The key of a layout.
pub fn layout(entity_type: &str, version: u32) -> Vec<u8> {
    let mut key = layouts(entity_type);
    key.extend(version.to_be_bytes());
    key
}

/// The key of the names of the operations that an entity type has, or had.
pub fn operations(entity_type: &str) -> Vec<u8> {
    format!("operations/{entity_type}").into_bytes()
}

/// Everything of one entity in a table that is ordered by partition and entity.
pub fn of_entity(partition: u16, id: &EntityId) -> Vec<u8> {
    let mut key = Vec::with_capacity(id.as_str().len() + 40);
    key.extend(partition.to_be_bytes());
    key.extend(id.as_str().as_bytes());
    key.push(0);
    key
}

/// An inbox record's key.
pub fn inbox(of: &InboxKey) -> Vec<u8> {
    let mut key = of_entity(of.partition, &of.receiver);
    key.extend(of.sender.as_bytes());
    key.push(0);
    key.extend(of.generation.to_be_bytes());
    key.extend(of.revision.to_be_bytes());
    key.extend(of.index.to_be_bytes());
    key
}

/// Reads [`inbox`].
///
/// # Errors
/// Where the bytes are not such a key.
pub fn read_inbox(key: &[u8]) -> Result<InboxKey, Damaged> {
    let mut rest = Reader(key);
    let partition = u16::from_be_bytes(rest.take()?);
    let receiver = rest.id()?;
    let sender = rest.text()?;
    let generation = u64::from_be_bytes(rest.take()?);
    let revision = u64::from_be_bytes(rest.take()?);
    let index = u32::from_be_bytes(rest.take()?);
    Ok(InboxKey { partition, receiver, sender: sender.into(), generation, revision, index })
}

/// A reminder's key.
pub fn reminder(partition: u16, id: &EntityId, slot: &Slot) -> Vec<u8> {
    let mut key = of_entity(partition, id);
    push_slot(&mut key, slot);
    key
}

/// The key of a reminder by its due time.
pub fn due(partition: u16, due: Timestamp, id: &EntityId, slot: &Slot) -> Vec<u8> {
    let mut key = due_from(partition, due);
    key.extend(id.as_str().as_bytes());
    key.push(0);
    push_slot(&mut key, slot);
    key
}

/// The first key of a partition that is due at `due` or later.
pub fn due_from(partition: u16, due: Timestamp) -> Vec<u8> {
    let mut key = partition.to_be_bytes().to_vec();
    // With its sign bit turned over, a number sorts as its bytes do.
    key.extend((due.as_micros() ^ i64::MIN).to_be_bytes());
    key
}

/// Reads [`due`].
///
/// # Errors
/// Where the bytes are not such a key.
pub fn read_due(key: &[u8]) -> Result<(Timestamp, EntityId, Slot), Damaged> {
    let mut rest = Reader(key);
    let _partition = u16::from_be_bytes(rest.take()?);
    let due = Timestamp::from_micros(i64::from_be_bytes(rest.take()?) ^ i64::MIN);
    let id = rest.id()?;
    Ok((due, id, rest.slot()?))
}

/// Reads [`reminder`].
///
/// # Errors
/// Where the bytes are not such a key.
pub fn read_reminder(key: &[u8]) -> Result<(EntityId, Slot), Damaged> {
    let mut rest = Reader(key);
    let _partition = u16::from_be_bytes(rest.take()?);
    Ok((rest.id()?, rest.slot()?))
}

/// The key of what is remembered.
pub fn idempotency(of: &IdempotencyKey) -> Vec<u8> {
    let mut key = of_entity(of.partition, &of.id);
    key.extend(of.caller.as_bytes());
    key.push(0);
    key.extend(of.key.as_bytes());
    key
}

/// A dead letter's key.
pub fn dead_letter(id: DeadLetterId) -> Vec<u8> {
    let mut key = id.partition.to_be_bytes().to_vec();
    key.push(u8::from(id.is_rejection));
    key.extend(id.number.to_be_bytes());
    key
}

/// Reads [`dead_letter`].
///
/// # Errors
/// Where the bytes are not such a key.
pub fn read_dead_letter(key: &[u8]) -> Result<DeadLetterId, Damaged> {
    let mut rest = Reader(key);
    let partition = u16::from_be_bytes(rest.take()?);
    let [class] = rest.take()?;
    let number = u64::from_be_bytes(rest.take()?);
    Ok(DeadLetterId { partition, is_rejection: class == 1, number })
}

/// The first key after all keys that begin with `prefix`.
pub fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

fn push_slot(key: &mut Vec<u8>, slot: &Slot) {
    match slot {
        Slot::Named(name) => {
            key.push(1);
            key.extend(name.as_bytes());
        }
        Slot::Delayed(number) => {
            key.push(2);
            key.extend(number.to_be_bytes());
        }
    }
}

struct Reader<'b>(&'b [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or_else(short)?;
        self.0 = rest;
        Ok(*head)
    }

    fn text(&mut self) -> Result<String, Damaged> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or_else(short)?;
        let text = str::from_utf8(&self.0[..end]).map_err(|_| Damaged("not UTF-8".into()))?;
        let text = text.to_owned();
        self.0 = &self.0[end + 1..];
        Ok(text)
    }

    fn id(&mut self) -> Result<EntityId, Damaged> {
        EntityId::parse(&self.text()?).map_err(|error| Damaged(error.to_string()))
    }

    fn slot(&mut self) -> Result<Slot, Damaged> {
        match self.take()? {
            [1] => {
                let name = str::from_utf8(self.0).map_err(|_| Damaged("not UTF-8".into()))?;
                Ok(Slot::Named(Arc::from(name)))
            }
            [2] => Ok(Slot::Delayed(u64::from_be_bytes(self.take()?))),
            _ => Err(Damaged("an unknown kind of reminder".into())),
        }
    }
}

fn short() -> Damaged {
    Damaged("the key is too short".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_what_they_write_and_sort_by_their_parts() {
        let receiver = EntityId::new("counter", "a/b").expect("valid");
        let key = |sender: &str, revision| InboxKey {
            partition: 7,
            receiver: receiver.clone(),
            sender: sender.into(),
            generation: 1,
            revision,
            index: 0,
        };
        assert_eq!(read_inbox(&inbox(&key("permit/1", 3))), Ok(key("permit/1", 3)));
        assert_eq!(read_inbox(&inbox(&key("", 3))), Ok(key("", 3)));
        assert!(inbox(&key("permit/1", 3)) < inbox(&key("permit/1", 256)));
        let at = |micros| due(7, Timestamp::from_micros(micros), &receiver, &Slot::Delayed(1));
        assert!(at(-5) < at(3) && at(3) < at(300));
        let (when, id, slot) = read_due(&at(-5)).expect("readable");
        assert_eq!((when.as_micros(), id, slot), (-5, receiver.clone(), Slot::Delayed(1)));
        assert_eq!(after(&[1, 255]), [2]);
    }
}
