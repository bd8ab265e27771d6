//! Steps of workflows: begun when the turn that asked for them is durable, run in tasks beside the partition, and back
//! as operations of their instance. And what else workflows need of a partition: a row by which an instance is found
//! where the partition is hosted anew, and answers that are given later.
//!
//! What must never happen: a step begins before its turn, and all outcomes that this rests on, are durable; an instance
//! with steps under way has no row; a deferred answer leaves outside the commit of the turn that gives it.

use std::{borrow::Cow, sync::Arc};

use stead_entities::{
    EntityId, Origin,
    effect::ReplyAddress,
    stored,
    workflow::{STEP_ENDED, StepId, StepStart},
};

use super::{
    Partition,
    envelope::{Envelope, Operation, Row, Stored},
    write_group::Release,
};
use crate::{
    config::Limits,
    sabotage::Sabotage,
    store::{
        Write,
        tables::{
            inbox::{Asked, InboxKey, InboxRecord},
            meta::HasWorkflows,
            origins::StoredOrigin,
        },
    },
};

/// An attempt of a step that is to begin.
#[derive(Debug)]
pub(crate) struct NewStep {
    pub(crate) start: StepStart,
    /// The origin of the turn that asked for it, which its outcome has too.
    pub(crate) origin: Option<Arc<Origin>>,
}

/// The attempts of steps that are to end.
#[derive(Debug)]
pub(crate) enum StepsToEnd {
    One(StepId),
    /// Those of a run of a workflow.
    OfRun(EntityId, u32),
    All,
}

/// An attempt of a step that has ended.
pub(crate) struct StepEnded {
    pub(crate) id: EntityId,
    /// The argument of the operation that tells the instance.
    pub(crate) input: Vec<u8>,
    pub(crate) origin: Option<Arc<Origin>>,
}

/// The key of a question, as a reply address carries it: partition, receiver, sender, generation, revision, index.
type Question = (u16, String, String, u64, u64, u32);

impl Partition {
    /// Begins an attempt of a step once the open write group is durable.
    pub(super) fn begin_step(&mut self, start: StepStart, origin: Option<Arc<Origin>>) {
        let new = Box::new(NewStep { start, origin });
        match Sabotage::StepBeforeCommit.is_on() {
            true => self.outputs.push(super::message::Output::Step(new)),
            false => self.group.after_open(Release::Step(new)),
        }
    }

    /// Ends attempts of steps once the open write group is durable.
    pub(super) fn end_steps(&mut self, which: StepsToEnd) {
        self.group.after_open(Release::EndSteps(which));
    }

    /// The limits of one poll of a step of a workflow.
    pub(super) fn poll_limits(&self, id: &EntityId) -> Limits {
        self.environment.limits(id, None).at_most(self.environment.config().turn_deadline)
    }

    /// Notes, once in a term, that the store has workflows, in the commit of the first one.
    pub(super) fn note_workflows(&mut self) {
        if !self.group.has_noted_workflows() {
            self.group.write(Write::put(&(), &HasWorkflows));
        }
    }

    /// Takes the end of an attempt, as an operation of its instance.
    pub(super) fn step_ended(&mut self, ended: StepEnded) {
        let StepEnded { id, input, origin } = ended;
        let Ok((index, awaits)) = self.environment.operation(&id, STEP_ENDED) else { return };
        let (token, accepted_at) = (self.environment.token(), self.moment.now);
        let stored = Stored { input, token, origin, accepted_at, attempts: 0 };
        let operation = Operation::stored(index, awaits, Row::None, stored);
        self.enqueue(&id, Envelope::Operation(Box::new(operation)));
    }

    /// Has an operation of an entity applied where the partition is hosted anew, or none.
    pub(super) fn on_hosting(&mut self, id: &EntityId, operation: Option<Cow<'static, str>>) {
        if let Some(key) = self.inbox.take_hosting_row(id) {
            self.consume_row(id, &Row::Inbox(key), 0, None);
        }
        let Some(operation) = operation.filter(|_| !Sabotage::NoHostingRow.is_on()) else { return };
        let (key, token) = (self.new_row(id), self.environment.token());
        let record =
            InboxRecord::signal(token, operation.into_owned(), Vec::new(), self.moment.now);
        self.inbox.take_in(key.clone(), 0);
        self.hold_until_durable(id);
        self.group.write(Write::Accept(key.clone(), record));
        self.inbox.keep_hosting_row(key);
    }

    /// The address to which the answer of an operation goes, where another entity has asked for it.
    pub(super) fn reply_address(&self, operation: &Operation) -> Option<ReplyAddress> {
        let (key, asked) = operation.question()?;
        let InboxKey { partition, receiver, sender, generation, revision, index } = key;
        let ids = (receiver.to_string(), sender.to_string());
        let question: Question = (*partition, ids.0, ids.1, *generation, *revision, *index);
        stored::encode(&(question, asked)).ok().map(ReplyAddress)
    }

    /// Answers a question whose answer was deferred.
    pub(super) fn answer_later(
        &mut self,
        address: &ReplyAddress,
        answer: Vec<u8>,
        origin: Option<Arc<Origin>>,
    ) {
        let decoded = stored::decode::<(Question, Asked)>(&address.0);
        let read = decoded.map_err(|error| error.to_string()).and_then(|(question, asked)| {
            let (partition, receiver, sender, generation, revision, index) = question;
            let receiver = EntityId::parse(&receiver).map_err(|error| error.to_string())?;
            let sender = sender.into();
            Ok((InboxKey { partition, receiver, sender, generation, revision, index }, asked))
        });
        match read {
            Ok((key, asked)) => self.send_answer(&key, &asked, origin.map(StoredOrigin), answer),
            Err(why) => tracing::error!(why, "nobody can be told a deferred answer"),
        }
    }
}
