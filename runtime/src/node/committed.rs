//! Reads beside an entity's order: of the last state that the store shows, which is durable.
//!
//! Such a read waits for no operation of the entity and asks no partition: it reads one row, at this node,
//! whoever owns the entity. So it is never ahead of what was acknowledged, and it shows everything that was
//! acknowledged before it began.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use stead_entities::{
    EntityId, Error, ErrorKind, Origin, Request, Timestamp,
    collections::{Loaded, Miss, check_loaded},
    context::{Context, Turn},
    entity::Argument,
};

use super::local::{Local, Use};
use crate::{
    clock,
    partition::{
        Row, loaded,
        reply::{CallResult, Response, StateView},
        turn::{self, Halt},
    },
    sabotage::Sabotage,
    store::{ReadError, ReadResult, TypedReads as _, tables::states::StateRecord},
    telemetry,
    types::{EntityType, State},
};

/// A query: its place among the operations of its type, its argument, and its origin.
struct Query {
    index: usize,
    argument: Argument,
    origin: Option<Arc<Origin>>,
}

/// A stored state, decoded, and when it was read.
struct Stored {
    state: State,
    record: Option<StateRecord>,
    now: Timestamp,
}

impl Local {
    /// Answers a query of the last durable state.
    pub(super) async fn committed_query(&self, request: Request, timeout: Duration) -> CallResult {
        if Sabotage::CommittedReadOfLive.is_on() {
            return self.submit(request, Use::Query)?.await;
        }
        let (found, argument) = self.checked(&request, Use::Query)?;
        let (origin, mut argument) = (request.origin()?, Some(argument));
        self.with_stored(&request.id, timeout, |known, stored| {
            // It is used up where the query was run before.
            let argument = argument.take().map_or_else(
                || self.checked(&request, Use::Query).map(|(_, argument)| argument),
                Ok,
            );
            let argument = argument.map_err(Halt::Failed)?;
            let query = Query { index: found.index, argument, origin: origin.clone() };
            self.answer(known, &request.id, stored, query)
        })
        .await
    }

    /// Shows the last durable state.
    pub(super) async fn committed_state(&self, id: &EntityId, timeout: Duration) -> CallResult {
        self.with_stored(id, timeout, |known, Stored { state, record, .. }| {
            let Some(StateRecord { head, .. }) = record else { return Ok(Response::State(None)) };
            let shown = turn::show(known, &state, head.version(), head.committed_at)?;
            Ok(Response::State(Some(shown)))
        })
        .await
    }

    /// Does something with the stored state of an entity; again, with another view of the store, where it lacks
    /// entries of collections, until it lacks nothing.
    async fn with_stored(
        &self,
        id: &EntityId,
        timeout: Duration,
        mut work: impl FnMut(&dyn EntityType, Stored) -> Result<Response, Halt>,
    ) -> CallResult {
        self.partition(self.host.partition_of(id))?;
        let known = self.known_type(id.entity_type())?;
        let now = self.host.clock().now();
        let deadline = clock::deadline_after(timeout);
        let (mut missed, mut loaded, mut known_version) = (Vec::new(), Vec::new(), None);
        loop {
            // Entries of one version of the state stay as they are: only the last ones are read, where it is the same.
            let last = missed.last().cloned();
            let (mut record, more) = self.stored(id, last.as_slice(), deadline).await?;
            let version = |record: &ReadResult<Option<StateRecord>>| {
                record.as_ref().ok().and_then(Option::as_ref).map(|record| record.head.version())
            };
            if missed.len() > 1 && version(&record) != known_version {
                (record, loaded) = self.stored(id, &missed, deadline).await?;
            } else {
                loaded.extend(more);
            }
            known_version = version(&record);
            let (mut state, record) = loaded::state(known, id, record, (now, false))?;
            let (mut entries, mut bytes) = (0, 0);
            for loaded in &loaded {
                entries += loaded.entries();
                bytes += loaded.bytes();
                state.supply(loaded).map_err(|why| {
                    Error::new(
                        ErrorKind::Corrupt,
                        format!("an entry of {id} cannot be read: {why}"),
                    )
                })?;
            }
            check_loaded(entries, bytes).map_err(|why| Error::new(ErrorKind::Internal, why))?;
            match work(known, Stored { state, record, now }) {
                Ok(done) => return Ok(done),
                Err(Halt::Failed(error)) => return Err(error),
                Err(Halt::Missed(miss)) => missed.push(miss),
            }
        }
    }

    /// The stored row of an entity, and entries of its collections that were missed, of one view.
    async fn stored(
        &self,
        id: &EntityId,
        missed: &[Miss],
        deadline: Instant,
    ) -> Result<(ReadResult<Option<StateRecord>>, Vec<Loaded>), Error> {
        let store = self.host.store();
        if missed.is_empty()
            && let Some(found) = store.load_cached(id)
        {
            return Ok((found, Vec::new()));
        }
        let _room = self.admit(0)?;
        let unavailable = |why: String| Error::new(ErrorKind::Unavailable, why);
        let reading = store.load_with(id.clone(), missed.to_vec());
        let left = deadline.saturating_duration_since(clock::monotonic());
        match clock::within(left, reading).await {
            Some(Err(ReadError::Unavailable(why))) => Err(unavailable(why)),
            Some(Err(error)) => Ok((Err(error), Vec::new())),
            Some(Ok((record, loaded))) => Ok((Ok(record), loaded)),
            None => Err(unavailable(format!("{id} could not be read in time"))),
        }
    }

    fn answer(
        &self,
        known: &dyn EntityType,
        id: &EntityId,
        Stored { state, record, now }: Stored,
        query: Query,
    ) -> Result<Response, Halt> {
        let Query { index, argument, origin } = query;
        let head = record.map(|record| (record.head.revision, record.head.committed_at));
        let (revision, committed_at) = head.unwrap_or((0, Timestamp::default()));
        let (name, limits) = (known.name_of(index), self.host.limits(id));
        let span = telemetry::turn(id, name, origin.as_deref());
        let turn = Turn::new(id.clone(), now.max(committed_at), revision, (0, 0));
        let turn = Turn { origin, ..turn };
        let ctx = Context::new(turn).with_dependencies(known.dependencies().clone());
        let watch = self.host.watches().add();
        watch.begin(id, name, None, &Row::None, limits);
        let result = span.in_scope(|| turn::query(known, index, &state, &ctx, argument));
        watch.end();
        result.map(Response::from)
    }
}

/// A stored state as lists show it, without entries of its collections; none where nothing is stored.
pub(super) fn shown(
    known: &dyn EntityType,
    id: &EntityId,
    record: ReadResult<Option<StateRecord>>,
    now: Timestamp,
) -> Result<Option<StateView>, Error> {
    let (state, record) = loaded::state(known, id, record, (now, false))?;
    let shown = record.map(|StateRecord { head, .. }| {
        turn::show_lengths(&state, head.version(), head.committed_at)
    });
    shown.transpose()
}
