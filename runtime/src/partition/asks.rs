//! Asks: questions that leave with a turn, the answer in the commit in which a question ends, and what
//! takes it at the asker.
//!
//! An answer has the key of its question, with the two entities in each other's place, so that a question
//! has one answer. Where many were asked, their answers stay in the inbox, and are gathered in memory
//! until the last one is there: its turn takes all of them. The timeout of an ask is a reminder of the
//! asker under a name that no author can use; whoever comes first, the last answer or the timeout, ends
//! it in its turn, and the other finds it gone.
//!
//! What must never happen: a question ends without its answer in the same commit; an ask is answered twice,
//! or at another generation of its asker.

use std::{borrow::Cow, sync::Arc};

use stead_entities::{
    Answer, EntityId, Failure, Origin, Timeout, Version,
    ask::{Ask, Continuation, answer_json},
    context::RUNTIME_NAMES,
    effect::Reminder,
    schedule::Schedule,
};

use super::{
    Partition,
    envelope::{Operation, Row},
};
use crate::{
    sabotage::Sabotage,
    store::tables::{
        dead_letters::Cause,
        inbox::{Asked, InboxKey, InboxRecord},
        origins::StoredOrigin,
        reminders::Slot,
    },
};

const ORPHAN: &str = "the entity that asked was deleted before the answer arrived";

/// The name of the reminder that ends an ask.
fn timeout_name(ask: u64) -> String {
    format!("{RUNTIME_NAMES}{ask}")
}

/// The ask that the reminder of this name ends.
fn ask_of(slot: &Slot) -> Option<u64> {
    match slot {
        Slot::Named(name) => name.strip_prefix(RUNTIME_NAMES)?.parse().ok(),
        Slot::Delayed(_) => None,
    }
}

impl Operation {
    /// The argument as JSON. That of an answer is made of it, of those that it takes along, and of the
    /// other arguments that the ask has named.
    pub(super) fn argument_json(&self) -> Cow<'_, [u8]> {
        match (self.answer(), &self.gathered[..]) {
            (Some((_, asked)), gathered) => {
                let answers = std::iter::once(self).chain(gathered);
                composed(asked, answers, None).into()
            }
            (None, [first, ..]) => match first.answer() {
                Some((_, asked)) => composed(asked, self.gathered.iter(), Some(&self.input)).into(),
                None => (&self.input).into(),
            },
            (None, []) => (&self.input).into(),
        }
    }
}

/// The argument of an operation that takes these answers, of which those that are missing have timed out.
/// `without` is the argument of the timeout, in which all have.
fn composed<'o>(
    asked: &Asked,
    answers: impl Iterator<Item = &'o Operation>,
    without: Option<&[u8]>,
) -> Vec<u8> {
    let timed_out = answer_json(Err(Failure::TimedOut));
    let mut parts = vec![&timed_out[..]; asked.parts as usize];
    let others = without.map(|without| others_of(asked, &timed_out, without));
    let mut others = others.unwrap_or_default();
    for operation in answers {
        let Some((_, of)) = operation.answer() else { continue };
        if let Some(part) = parts.get_mut(of.part as usize) {
            *part = &operation.input;
        }
        if !of.then.others.is_empty() {
            others.clone_from(&of.then.others);
        }
    }
    Continuation { others, ..asked.then.clone() }.input(parts)
}

/// The other arguments, as a JSON object, in the argument of a timeout: there they follow the answers.
fn others_of(asked: &Asked, timed_out: &[u8], argument: &[u8]) -> Vec<u8> {
    let alone = Continuation { others: Vec::new(), ..asked.then.clone() };
    let alone = alone.input(std::iter::repeat_n(timed_out, asked.parts as usize));
    match argument.get(alone.len().saturating_sub(1)..) {
        Some([b',', rest @ ..]) if !asked.then.argument.is_empty() => [b"{", rest].concat(),
        _ => Vec::new(),
    }
}

impl Partition {
    /// Sends the questions of an ask, from the place `first` among the effects of a turn on. Returns the
    /// place behind them.
    pub(super) fn ask(
        &mut self,
        id: &EntityId,
        (version, first): (Version, u32),
        ask: Ask,
        origin: Option<&Arc<Origin>>,
    ) -> u32 {
        let Ask { questions, then, timeout, fence } = ask;
        let number = self.environment.mint(self.moment.now);
        let parts = u32::try_from(questions.len()).expect("effects of a turn are limited");
        // Where nobody is asked, all have answered at once.
        let timeout = if parts == 0 { Some(Timeout::default()) } else { timeout };
        if let Some(timeout) = timeout {
            let timed_out = answer_json(Err(Failure::TimedOut));
            self.remind(
                id,
                Reminder {
                    name: timeout_name(number),
                    schedule: Schedule::After(timeout),
                    operation: then.operation.clone(),
                    input: then.input(questions.iter().map(|_| &timed_out[..])),
                },
            );
        }
        let has_timeout = timeout.is_some();
        for (part, question) in (0..parts).zip(questions) {
            let others = if part == 0 { then.others.clone() } else { Vec::new() };
            let then = Continuation { others, ..then.clone() };
            let fence = fence.clone();
            let asked = Box::new(Asked { number, part, parts, has_timeout, then, fence });
            self.send(id, (version, first + part), question, origin.cloned(), Some(asked));
        }
        first + parts
    }

    /// Answers the question that an operation is, if it is one.
    pub(super) fn answer_question(&mut self, operation: &Operation, answer: Answer<&[u8]>) {
        if let Some((key, asked)) = operation.question() {
            let origin = operation.origin.clone().map(StoredOrigin);
            self.send_answer(key, asked, origin, answer_json(answer));
        }
    }

    /// Sends the answer, as JSON, to the question that has this key.
    pub(super) fn send_answer(
        &mut self,
        question: &InboxKey,
        asked: &Asked,
        origin: Option<StoredOrigin>,
        answer: Vec<u8>,
    ) {
        let key = match question.of_answer(|asker| self.environment.partition_of(asker)) {
            Ok(key) => key,
            Err(error) => return tracing::error!(%error, "nobody can be told the answer"),
        };
        let (token, now) = (self.environment.token(), self.moment.now);
        let operation = asked.then.operation.clone().into_owned();
        let record = InboxRecord {
            origin,
            asked: Some(Box::new(Asked { fence: None, ..asked.clone() })),
            ..InboxRecord::signal(token, operation, answer, now)
        };
        self.send_row(key, record, !Sabotage::AnswerOutsideCommit.is_on());
    }

    /// Readies an answer, or the timeout of an ask, for its turn. `None` where no turn follows: an answer
    /// was kept until the others are there, came behind the timeout, or its asker was deleted.
    pub(super) fn gather(
        &mut self,
        id: &EntityId,
        mut operation: Box<Operation>,
    ) -> Option<Box<Operation>> {
        if let Row::Reminder(occurrence) = &operation.row {
            if let Some(ask) = ask_of(&occurrence.slot) {
                operation.gathered.extend(self.activations.of(id).take_answers(ask));
            }
            return Some(operation);
        }
        let Some((key, asked)) = operation.answer() else { return Some(operation) };
        let (generation, ask, parts) = (key.generation, asked.number, asked.parts as usize);
        let is_over = asked.has_timeout && !self.has_timeout(id, ask);
        let version = self.activations.of(id).live_mut().version();
        if version.is_none_or(|version| version.generation != generation) {
            self.dead_letter(id, *operation, Cause::Orphan, ORPHAN);
            return None;
        }
        if is_over && !Sabotage::LateAnswerApplied.is_on() {
            self.consume(id, &mut operation);
            return None;
        }
        if operation.gathered.len() + 1 == parts {
            return Some(operation);
        }
        operation.permit = None;
        self.activations.of(id).gather(ask, parts, operation)
    }

    /// Whether the timeout of an ask is still to come, or waits for its turn.
    fn has_timeout(&mut self, id: &EntityId, ask: u64) -> bool {
        let name = timeout_name(ask);
        self.activations.of(id).live_mut().reminders().iter().any(|head| head.name == name)
    }

    /// Ends the ask whose answers an operation took: no timeout, and no row of them, stays.
    pub(super) fn end_ask(&mut self, id: &EntityId, operation: &Operation) {
        for answer in &operation.gathered {
            self.consume_row(id, &answer.row, answer.input.len(), None);
        }
        if let Some((_, asked)) = operation.answer()
            && asked.has_timeout
        {
            self.cancel_named(id, &timeout_name(asked.number));
        }
    }
}
