//! Reads beside an entity's order: of the last state that the store shows, which is durable.
//!
//! Such a read waits for no operation of the entity and asks no partition: it reads one row, at this node,
//! whoever owns the entity. So it is never ahead of what was acknowledged, and it shows everything that was
//! acknowledged before it began.

use std::{sync::Arc, time::Duration};

use stead_entities::{
    EntityId, Error, ErrorKind, Origin, Request, Timestamp,
    context::{Context, Turn},
    entity::Argument,
};

use super::local::{Local, Use};
use crate::{
    clock,
    partition::{
        Row, loaded,
        reply::{CallResult, Response, StateView},
        turn,
    },
    sabotage::Sabotage,
    store::{ReadError, ReadResult, TypedReads as _, tables::states::StateRecord},
    telemetry,
    types::EntityType,
};

/// A query: its place among the operations of its type, its argument, and its origin.
struct Query {
    index: usize,
    argument: Argument,
    origin: Option<Arc<Origin>>,
}

impl Local {
    /// Answers a query of the last durable state.
    pub(super) async fn committed_query(&self, request: Request, timeout: Duration) -> CallResult {
        if Sabotage::CommittedReadOfLive.is_on() {
            return self.submit(request, Use::Query)?.await;
        }
        let (found, argument) = self.checked(&request, Use::Query)?;
        let query = Query { index: found.index, argument, origin: request.origin()? };
        let record = self.stored(&request.id, timeout).await?;
        let known = self.known_type(request.id.entity_type())?;
        self.answer(known, &request.id, record, query)
    }

    /// Shows the last durable state.
    pub(super) async fn committed_state(&self, id: &EntityId, timeout: Duration) -> CallResult {
        let record = self.stored(id, timeout).await?;
        let known = self.known_type(id.entity_type())?;
        shown(known, id, record, self.host.clock().now()).map(Response::State)
    }

    /// The stored row of an entity.
    async fn stored(
        &self,
        id: &EntityId,
        timeout: Duration,
    ) -> Result<ReadResult<Option<StateRecord>>, Error> {
        self.partition(self.host.partition_of(id))?;
        let store = self.host.store();
        if let Some(found) = store.load_cached(id) {
            return Ok(found);
        }
        let _room = self.admit(0)?;
        let unavailable = |why: String| Error::new(ErrorKind::Unavailable, why);
        match clock::within(timeout, store.load(id.clone())).await {
            Some(Err(ReadError::Unavailable(why))) => Err(unavailable(why)),
            Some(read) => Ok(read),
            None => Err(unavailable(format!("{id} could not be read in {timeout:?}"))),
        }
    }

    fn answer(
        &self,
        known: &dyn EntityType,
        id: &EntityId,
        record: ReadResult<Option<StateRecord>>,
        query: Query,
    ) -> CallResult {
        let Query { index, argument, origin } = query;
        let now = self.host.clock().now();
        let (state, record) = loaded::state(known, id, record, (now, false))?;
        let head = record.map(|record| (record.head.revision, record.head.committed_at));
        let (revision, committed_at) = head.unwrap_or((0, Timestamp::default()));
        let (name, limits) = (known.name_of(index), self.host.limits(id));
        let span = telemetry::turn(id, name, origin.as_deref());
        let turn = Turn {
            id: id.clone(),
            now: now.max(committed_at),
            revision,
            seed: 0,
            token: 0,
            origin,
        };
        let ctx = Context::new(turn).with_dependencies(known.dependencies().clone());
        let watch = self.host.watches().add();
        watch.begin(id, name, None, &Row::None, limits);
        let result = span.in_scope(|| turn::query(known, index, &state, &ctx, argument));
        watch.end();
        result.map(Response::from)
    }
}

/// A stored state as it is shown; none where nothing is stored.
pub(super) fn shown(
    known: &dyn EntityType,
    id: &EntityId,
    record: ReadResult<Option<StateRecord>>,
    now: Timestamp,
) -> Result<Option<StateView>, Error> {
    let (state, record) = loaded::state(known, id, record, (now, false))?;
    let shown = record
        .map(|StateRecord { head, .. }| turn::show(&state, head.version(), head.committed_at));
    shown.transpose()
}
