//! Indexes that were declared later are built from the states that are stored, by the owners of those.
//!
//! For each type, its states are gone through once, page by page, and those without the values of its indexes are
//! written anew in their entities' order, many at one time. Then the notes that partitions are not indexed are
//! taken away, of those that were hosted here all the while. What was written anew is passed over the next time,
//! so whoever is interrupted goes on. What must never happen: a note is taken away though a state lacks the index.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use stead_entities::{EntityId, Error, ErrorKind};
use tokio::task::JoinSet;

use super::{
    Inner,
    lists::{PAGE_ROWS_MAX, ROOM_PAUSE, room_for_a_page},
    upgrades::{STATES_AT_ONCE, rewrite},
};
use crate::{
    clock,
    partition::{
        ForeignIndex,
        message::{Indexed, Input},
        reply::ReplySender,
    },
    store::{Haste, ReadResult, Rows, TypedReads as _, find, tables::meta::CHANGES_NOTE},
    types::EntityType,
};

/// The wait before what could not be indexed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// The longest of those waits, each of which is twice the one before.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(600);
/// How often a node among others looks for indexes that became incomplete.
const LOOK_PAUSE: Duration = Duration::from_secs(30);
/// How long the end of the notes of a partition may take.
const NOTE_DEADLINE: Duration = Duration::from_secs(10);

/// The indexes that states of a partition lack, and the number of its hosting.
type Lacking = BTreeMap<u16, (u64, Vec<ForeignIndex>)>;

impl Inner {
    /// Begins to build what is not complete, now and whenever partitions come to be hosted; it ends with the
    /// node.
    pub(super) fn start_indexing(self: &Arc<Self>) {
        drop(self.host.threads().runtime.spawn(build(Arc::downgrade(self))));
    }
}

async fn build(inner: Weak<Inner>) {
    let mut pause = RETRY_PAUSE;
    while let Some(node) = inner.upgrade() {
        let (mut is_complete, has_hosted) = (true, node.host.has_hosted.clone());
        let is_shared = node.cluster().is_some();
        for known in node.host.sorted_types() {
            match of_type(&node, &**known).await {
                Ok(is_done) => is_complete &= is_done,
                Err(error) => {
                    is_complete = false;
                    tracing::warn!(entity_type = known.name(), %error, "an index cannot be built now");
                }
            }
        }
        drop(node);
        // Others may declare an index at any time; what failed is tried again, ever more seldom.
        let news = has_hosted.notified();
        match (is_complete, is_shared) {
            (true, false) => news.await,
            (true, true) => drop(clock::within(LOOK_PAUSE, news).await),
            (false, _) => drop(clock::within(pause, news).await),
        }
        pause = if is_complete { RETRY_PAUSE } else { (2 * pause).min(RETRY_PAUSE_MAX) };
    }
}

/// Builds the indexes of a type in the partitions that are hosted here. Says whether nothing is left to do.
async fn of_type(node: &Arc<Inner>, known: &dyn EntityType) -> Result<bool, Error> {
    let lacking = lacking(node, known).await?;
    // Changes begin anew with the end of their notes: there is nothing to go through.
    let lacks_index = |of: &[ForeignIndex]| of.iter().any(|(_, index, _)| index != CHANGES_NOTE);
    let meant = lacking.iter().filter(|(_, (_, of))| lacks_index(of));
    let meant: BTreeSet<_> = meant.map(|(partition, _)| *partition).collect();
    let failed = match meant.is_empty() {
        true => BTreeSet::new(),
        false => index_states(node, known, &meant).await?,
    };
    let gone_through = lacking.into_iter().filter(|(partition, _)| !failed.contains(partition));
    Ok(take_notes_away(node, gone_through.collect()).await && failed.is_empty())
}

/// Has the states of some partitions indexed, and returns those of which one could not be.
async fn index_states(
    node: &Arc<Inner>,
    known: &dyn EntityType,
    partitions: &BTreeSet<u16>,
) -> Result<BTreeSet<u16>, Error> {
    let entity_type = known.name();
    tracing::info!(entity_type, partitions = partitions.len(), "indexes are being built");
    let (mut failed, mut rewritten) = (BTreeSet::new(), 0_u64);
    let (mut after, mut looked_at) = (None, 0_u64);
    loop {
        let room = match room_for_a_page(node) {
            Ok(room) => room,
            // Callers come first.
            Err(_) => {
                clock::sleep(ROOM_PAUSE).await;
                continue;
            }
        };
        let (of, behind) = (entity_type.to_owned(), after.take());
        let read =
            move |rows: &dyn Rows| find::all_states(rows, &of, behind.as_deref(), PAGE_ROWS_MAX);
        let page = node.host.store().read(Haste::Long, read).await?;
        drop(room);
        looked_at += page.rows.len() as u64;
        after = page.last_before_more().map(|(id, _)| id.key().to_owned());
        let mut left = Vec::new();
        for (id, record) in page.rows {
            let is_meant = partitions.contains(&node.host.partition_of(&id));
            match record {
                Ok(record) if is_meant && !known.is_indexed(&record) => {
                    left.push(id);
                }
                Ok(_) => {}
                // Nobody can read it, and so nobody can find it.
                Err(error) => tracing::error!(entity = %id, %error, "a state cannot be indexed"),
            }
        }
        rewritten += write_anew(node, known.version(), left, &mut failed).await;
        if after.is_none() {
            break;
        }
        tracing::info!(entity_type, looked_at, rewritten, "indexes are being built");
    }
    tracing::info!(entity_type, looked_at, rewritten, failed = failed.len(), "indexes were built");
    Ok(failed)
}

/// The partitions that are hosted here and lack indexes of a type.
async fn lacking(node: &Inner, known: &dyn EntityType) -> ReadResult<Lacking> {
    let mut lacking = Lacking::new();
    let indexes = known.indexes().into_iter().map(|index| (index.name.to_owned(), known.version()));
    let changes = known.policy().changes.map(|_| (CHANGES_NOTE.to_owned(), 0));
    for (index, version) in indexes.chain(changes) {
        let of = (known.name().to_owned(), index);
        let key = of.clone();
        let read = move |rows: &dyn Rows| find::not_indexed(rows, &key.0, &key.1, version);
        for partition in node.host.store().read(Haste::Short, read).await? {
            if let Some(hosting) = node.host.handle(partition).hosting() {
                let (_, indexes) = lacking.entry(partition).or_insert((hosting, Vec::new()));
                indexes.push((of.0.clone(), of.1.clone(), version));
            }
        }
    }
    Ok(lacking)
}

/// Has states written anew by their entities; notes the partitions of which one could not be. Returns how many
/// were.
async fn write_anew(
    node: &Arc<Inner>,
    version: u32,
    ids: Vec<EntityId>,
    failed: &mut BTreeSet<u16>,
) -> u64 {
    let (mut rewriting, mut count) = (JoinSet::new(), 0);
    let mut ids = ids.into_iter();
    loop {
        while rewriting.len() < STATES_AT_ONCE
            && let Some(id) = ids.next()
        {
            let node = node.clone();
            rewriting.spawn(async move { (rewrite(&node.router, &id, version).await, id) });
        }
        match rewriting.join_next().await {
            None => return count,
            Some(Ok((Ok(()), _))) => count += 1,
            Some(Ok((Err(error), id))) if error.kind() == ErrorKind::Corrupt => {
                tracing::error!(entity = %id, %error, "a state cannot be indexed");
            }
            Some(Ok((Err(error), id))) => {
                if failed.insert(node.host.partition_of(&id)) {
                    tracing::warn!(entity = %id, %error, "a state is not indexed yet");
                }
            }
            // It panicked, and nobody knows whose it was.
            Some(Err(error)) => {
                tracing::error!(%error, "a state is not indexed yet");
                failed.extend(0..node.host.store().opened().settings.partitions);
            }
        }
    }
}

/// Takes the notes of partitions away, and says whether none is left of those that are still hosted here.
async fn take_notes_away(node: &Inner, gone_through: Lacking) -> bool {
    let mut waiting = Vec::new();
    for (partition, (hosting, indexes)) in gone_through {
        let (reply_to, answered) = ReplySender::new(NOTE_DEADLINE, None);
        let indexed = Indexed { hosting, indexes };
        let input = |reply_to| Input::Indexed(indexed, reply_to);
        // Where it has moved, its next owner goes through it.
        if node.host.handle(partition).submit(&reply_to, input).is_ok() {
            waiting.push(answered);
        }
    }
    let mut is_done = true;
    for answered in waiting {
        // Where it has moved meanwhile, there is one look more than needed.
        is_done &= answered.await.is_ok();
    }
    is_done
}
