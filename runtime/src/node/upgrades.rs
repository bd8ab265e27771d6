//! States of earlier versions: how many there are, and their rewriting, page by page.
//!
//! A page lists states by key and has those of earlier versions written anew by their owners, many at one
//! time. What was rewritten is not rewritten again, so whoever is interrupted begins again, or goes on behind
//! the last key.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stead_entities::{EntityId, Error, ErrorKind};
use tokio::task::JoinSet;

use super::{
    Inner,
    lists::{PAGE_ROWS_MAX, ROOM_PAUSE, room_for_a_page},
    router::{Command, Router},
};
use crate::{
    clock::{self, deadline_after, monotonic},
    host::versions,
    store::{StatePage, TypedReads as _},
};

/// How many states are rewritten at one time.
pub(super) const STATES_AT_ONCE: usize = 64;
/// How long a state is tried.
const ROOM_DEADLINE: Duration = Duration::from_secs(10);
/// How many states of a type are counted by version where nobody asks for all.
#[cfg(feature = "http")]
pub(crate) const COUNTED_MAX: usize = 10_000;

/// How many states of a type are stored in one of its versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VersionView {
    /// The version.
    pub version: u32,
    /// How many entities are stored in it.
    pub entities: u64,
}

/// The states of a type by version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VersionsView {
    /// The versions of which there is a state, the earliest first.
    pub versions: Vec<VersionView>,
    /// Whether every state was counted.
    pub is_complete: bool,
}

/// The outcome of rewriting states of earlier versions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UpgradeView {
    /// How many states of earlier versions were looked at and are not stored in those any more.
    pub rewritten: u64,
    /// How many could not be rewritten, and are stored as before.
    pub failed: u64,
    /// Why the first of those could not be.
    pub reason: Option<String>,
    /// How many states were looked at.
    pub looked_at: u64,
    /// The key behind which to go on; none behind the last state.
    pub next: Option<String>,
}

/// The states of a type by version: `max` of them, rounded up to whole pages.
pub(super) async fn versions(
    node: &Inner,
    entity_type: &str,
    max: usize,
) -> Result<VersionsView, Error> {
    node.local().check_served(entity_type)?;
    let _room = room_for_a_page(node)?;
    let counted = versions::count(&**node.host.store(), entity_type, max).await?;
    let states = counted.states.into_iter();
    let versions = states.map(|(version, entities)| VersionView { version, entities });
    Ok(VersionsView { versions: versions.collect(), is_complete: counted.is_complete })
}

/// Rewrites those of the first `limit` states of a type behind `after` that are of an earlier version.
pub(super) async fn page(
    node: &Inner,
    entity_type: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<UpgradeView, Error> {
    let present = node.local().known_type(entity_type)?.version();
    let page = listed(node, entity_type, after, limit).await?;
    let next = page.last_before_more().map(|(id, _)| id.key().to_owned());
    let mut done = UpgradeView { looked_at: page.rows.len() as u64, next, ..Default::default() };
    let earlier = page.rows.into_iter().filter(|(_, head)| head.version < present);
    let mut rewriting = JoinSet::new();
    for (id, _) in earlier {
        if rewriting.len() == STATES_AT_ONCE {
            done.add(rewriting.join_next().await);
        }
        let router = node.router.clone();
        rewriting.spawn(async move { rewrite(&router, &id, present).await });
    }
    while !rewriting.is_empty() {
        done.add(rewriting.join_next().await);
    }
    Ok(done)
}

/// Has the owner of an entity store its state in this version of its type, unless it is stored so.
pub(super) async fn rewrite(router: &Router, id: &EntityId, version: u32) -> Result<(), Error> {
    let deadline = deadline_after(ROOM_DEADLINE);
    loop {
        match router.perform(Command::Upgrade(id.clone(), version)).await {
            // Callers come first.
            Err(error) if error.kind() == ErrorKind::Overloaded && monotonic() < deadline => {
                clock::sleep(ROOM_PAUSE).await;
            }
            told => return told.map(drop),
        }
    }
}

async fn listed(
    node: &Inner,
    entity_type: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<StatePage, Error> {
    let _room = room_for_a_page(node)?;
    let (entity_type, after) = (entity_type.to_owned(), after.map(str::to_owned));
    let limit = limit.clamp(1, PAGE_ROWS_MAX);
    Ok(node.host.store().list(entity_type, String::new(), after, limit).await?)
}

impl UpgradeView {
    fn add<T>(&mut self, rewritten: Option<Result<Result<T, Error>, tokio::task::JoinError>>) {
        let why = match rewritten {
            None => return,
            Some(Ok(Ok(_))) => {
                self.rewritten += 1;
                return;
            }
            Some(Ok(Err(error))) => error.to_string(),
            Some(Err(error)) => Error::new(ErrorKind::Internal, error.to_string()).to_string(),
        };
        self.failed += 1;
        self.reason.get_or_insert(why);
    }

    /// Adds the outcome of the page behind this one.
    pub(crate) fn and_then(&mut self, page: Self) {
        self.rewritten += page.rewritten;
        self.failed += page.failed;
        self.looked_at += page.looked_at;
        self.reason = self.reason.take().or(page.reason);
        self.next = page.next;
    }
}
