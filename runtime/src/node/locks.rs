//! Locks of entities as operators see them: which workflow has one.

use serde::Serialize;
use stead_entities::{EntityId, Error, Timestamp};

use super::{Inner, lists::room_for_a_page};
use crate::store::TypedReads as _;

/// The lock of an entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LockView {
    /// The id of the workflow that has it.
    pub holder: String,
    /// Since when.
    pub since: Timestamp,
}

/// The lock of an entity, as the store has it.
pub(super) async fn of(node: &Inner, id: &EntityId) -> Result<Option<LockView>, Error> {
    node.local().check_served(id.entity_type())?;
    let _room = room_for_a_page(node)?;
    let state = node.host.store().load(id.clone()).await?;
    let lock = state.and_then(|state| state.lock);
    Ok(lock.map(|lock| LockView { holder: lock.holder, since: lock.since }))
}
