//! Entities whose states come near the limit of their bytes: the log names each once at half of it, and once
//! at four fifths, before its turns fail.

use stead_entities::EntityId;

use crate::map::Map;

/// The shares of the limit that are told, in hundredths.
const SHARES: [usize; 2] = [50, 80];
/// The most entities that are remembered as told. More of them are told again.
const TOLD_MAX: usize = 10_000;

/// The entities of which the log was told, with the share that it was told of last.
#[derive(Default)]
pub(super) struct LargeStates {
    told: Map<EntityId, usize>,
}

impl LargeStates {
    /// Notes the bytes of a state that is written.
    pub(super) fn note(&mut self, id: &EntityId, bytes: usize, limit: usize) {
        if let Some(share) = self.news(id, bytes, limit) {
            tracing::warn!(
                entity = %id, bytes, limit,
                "the state takes more than {share} % of what it may: a turn that would leave more than all of it fails"
            );
        }
    }

    /// The share that a state has passed and that was not told of it yet.
    fn news(&mut self, id: &EntityId, bytes: usize, limit: usize) -> Option<usize> {
        let is_over = |share: &usize| bytes > limit / 100 * share;
        let share = SHARES.into_iter().rev().find(is_over)?;
        if self.told.get(id).is_some_and(|told| *told >= share) {
            return None;
        }
        if self.told.len() >= TOLD_MAX {
            self.told.clear();
        }
        self.told.insert(id.clone(), share);
        Some(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_share_is_told_once_of_each_entity() {
        let id = |key: &str| EntityId::new("log", key).expect("valid");
        let mut large = LargeStates::default();
        let told: Vec<_> = [10, 499, 500, 501, 600, 801, 700, 900, 100, 501]
            .into_iter()
            .map(|bytes| large.news(&id("a"), bytes, 1_000))
            .collect();
        let none = None::<usize>;
        let expected = [none, none, none, Some(50), none, Some(80), none, none, none, none];
        assert_eq!(told, expected);
        assert_eq!(large.news(&id("b"), 999, 1_000), Some(80), "the higher one says enough");
        for number in 0..TOLD_MAX {
            large.news(&id(&number.to_string()), 999, 1_000);
        }
        assert!(large.told.len() <= TOLD_MAX);
    }
}
