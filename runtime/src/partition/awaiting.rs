//! Operations that await: started when everything they rest on is durable, settled as a turn when they
//! come back.

use stead_entities::EntityId;

use super::{
    Item, Output, Partition, Row, Stage,
    message::{Returned, Start, Work},
    run::Next,
    turn::{self, guarded},
};

impl Partition {
    /// Starts an operation that awaits, once its inbox row and all earlier turns are durable.
    pub(super) fn start(&mut self, id: &EntityId, mut item: Item) -> Next {
        if item.row == Row::None {
            if !item.is_call {
                // A signal is accepted here, where its condition holds.
                item.condition = None;
            }
            self.record(id, &mut item);
            if !item.is_call {
                self.accepted(&mut item);
            }
        }
        let unreleased = self.unreleased(id);
        if unreleased > self.released {
            self.resume_after(unreleased, id);
            self.put_back(id, item);
            self.record_waiting(id);
            return Next::Waits;
        }
        let Work::Operation { index, .. } = item.work else {
            return Next::Goes;
        };
        self.runs += 1;
        // What awaits may do so for long, and keeps nobody else from being due.
        item.permit = None;
        let (run, input) = (self.runs, item.input.clone());
        let (row, reply_to) = (item.row.clone(), item.reply_to.clone());
        let ctx = self.new_context(id, item.token);
        let Some(activation) = self.table.get_mut(id) else {
            return Next::Goes;
        };
        let Some(state) = activation.state.as_ref().map(|state| guarded(|| state.clone_state()))
        else {
            return Next::Goes;
        };
        let state = match state {
            Ok(state) => state,
            Err(error) => return self.settle(id, item, turn::Turned::Failed(error)),
        };
        activation.stage = Stage::Busy(run, item);
        let start = Start { id: id.clone(), run, index, state, ctx, input, row, reply_to };
        self.outputs.push(Output::Start(Box::new(start)));
        self.record_waiting(id);
        Next::Waits
    }

    /// An operation that awaited is back; what it did becomes a turn, or nothing.
    pub(super) fn returned(&mut self, returned: Returned) {
        let id = returned.id;
        let limit = self.environment.config.state_bytes_max;
        let Some(activation) = self.table.get_mut(&id) else {
            return;
        };
        let Stage::Busy(run, _) = &activation.stage else {
            return;
        };
        if *run != returned.run {
            return;
        }
        let Stage::Busy(_, item) = std::mem::replace(&mut activation.stage, Stage::Ready) else {
            return;
        };
        let known = self.type_of(&id);
        let turned = match (returned.result, known) {
            (Ok((state, ctx, outcome)), Some(known)) => {
                turn::settle(&*known, state, ctx, outcome, limit)
            }
            (Err(error), _) => turn::Turned::Failed(error),
            (Ok(_), None) => unreachable!("an operation of a type that is served"),
        };
        self.settle(&id, item, turned);
        self.make_ready(&id);
    }
}
