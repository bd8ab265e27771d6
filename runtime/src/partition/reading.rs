//! Reads in an entity's order: its state, and queries. They run on the state itself, and change nothing.

use stead_entities::{Context, EntityId, Error, ErrorKind};

use super::{
    Partition,
    envelope::{Envelope, FirstTry, Query, Read, ReadKind, Row},
    reply::{ReplySender, Response},
    turn::{self, Halt},
};
use crate::telemetry;

impl Partition {
    /// Shows the state, or answers a query.
    pub(super) fn read(&mut self, id: &EntityId, read: Read) {
        let Read { mut what, condition, reply_to, first_try } = read;
        if !reply_to.take() {
            return;
        }
        if let Some(error) = self.objection(id, condition.as_ref()) {
            return self.answer(id, reply_to, Err(error));
        }
        let first = first_try.map_or_else(|| self.first_try(id), |first| *first);
        let result = match &mut what {
            ReadKind::State => self.show_state(id),
            ReadKind::Query(query) => self.query(id, query, &first, &reply_to),
        };
        match result {
            Ok(response) => self.answer(id, reply_to, Ok(response)),
            Err(Halt::Failed(error)) => self.answer(id, reply_to, Err(error)),
            Err(Halt::Missed(miss)) => {
                let first_try = Some(Box::new(first));
                let read = Read { what, condition, reply_to, first_try };
                self.wait_for_entries(id, Envelope::Read(Box::new(read)), miss);
            }
        }
    }

    fn show_state(&mut self, id: &EntityId) -> Result<Response, Halt> {
        let known = self.environment.served(id);
        let live = self.activations.of(id).live_mut();
        let Some(version) = live.version() else {
            return Ok(Response::State(None));
        };
        turn::show(&*known, live.state(), version, live.committed_at())
            .map(|view| Response::State(Some(view)))
    }

    fn query(
        &mut self,
        id: &EntityId,
        Query { index, argument, input, origin }: &mut Query,
        first: &FirstTry,
        reply_to: &ReplySender,
    ) -> Result<Response, Halt> {
        let known = self.environment.served(id);
        let (index, origin) = (*index, origin.clone());
        let decode = || {
            let decoded = known.decode_argument(index, input);
            decoded.map_err(|why| Halt::Failed(Error::new(ErrorKind::Invalid, why.to_string())))
        };
        // It is used up where the query was run before.
        let argument = argument.take().map_or_else(decode, Ok)?;
        let span = telemetry::turn(id, known.name_of(index), origin.as_deref());
        let ctx = Context::new(self.new_turn(id, first.token, origin, first));
        let ctx = ctx.with_dependencies(known.dependencies().clone());
        let (name, limits) = (known.name_of(index), self.environment.limits(id, None));
        self.environment.watch().begin(id, name, Some(reply_to), &Row::None, limits);
        let state = self.activations.of(id).live_mut().state();
        let result = span.in_scope(|| turn::query(&*known, index, state, &ctx, argument));
        self.environment.watch().end();
        result.map(Response::from)
    }
}
