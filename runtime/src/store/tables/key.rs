//! The parts of keys. Ids hold no control characters, so a zero byte ends one.

use stead_entities::EntityId;

use crate::store::record::Damaged;

/// Everything of one entity in a table that is ordered by partition and entity.
pub fn of_entity(partition: u16, id: &EntityId) -> Vec<u8> {
    let mut key = Vec::with_capacity(id.as_str().len() + 40);
    key.extend(partition.to_be_bytes());
    key.extend(id.as_str().as_bytes());
    key.push(0);
    key
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

/// The first key behind `key`: nothing sorts between a key and itself with a zero byte.
pub(crate) fn behind(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// Reads the parts of a key one after the other.
pub(super) struct Reader<'b>(pub(super) &'b [u8]);

impl Reader<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or_else(short)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn text(&mut self) -> Result<String, Damaged> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or_else(short)?;
        let text = str::from_utf8(&self.0[..end]).map_err(|_| Damaged("not UTF-8".into()))?;
        let text = text.to_owned();
        self.0 = &self.0[end + 1..];
        Ok(text)
    }

    pub(super) fn id(&mut self) -> Result<EntityId, Damaged> {
        EntityId::parse(&self.text()?).map_err(|error| Damaged(error.to_string()))
    }
}

fn short() -> Damaged {
    Damaged("it is too short".into())
}
