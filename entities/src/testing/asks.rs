//! Asks among driven entities: their questions, and what becomes of the answers.

use std::sync::Arc;

use super::{Drivers, drivers::Sent};
use crate::{
    EntityId, Failure, Origin, Timestamp,
    ask::{Ask, answer_json},
    effect::Signal,
};

/// An ask of which answers are missing.
pub(super) struct OpenAsk {
    pub(super) asker: EntityId,
    pub(super) ask: Ask,
    /// The answers as JSON, in the order of the questions.
    pub(super) answers: Vec<Option<Vec<u8>>>,
    /// When it is given up.
    pub(super) due: Option<Timestamp>,
    pub(super) origin: Option<Arc<Origin>>,
}

impl Drivers {
    /// Sends the questions of an ask.
    pub(super) fn open_ask(&mut self, asker: &EntityId, ask: Ask, origin: Option<Arc<Origin>>) {
        self.last_ask += 1;
        for (part, question) in ask.questions.iter().enumerate() {
            let (sender, signal) = (Some(asker.clone()), question.clone());
            let asked = Some((self.last_ask, part));
            let (origin, fence) = (origin.clone(), ask.fence.clone());
            self.accept(Sent { sender, signal, origin, asked, fence });
        }
        let due = ask.timeout.map(|timeout| self.clock.now + timeout.as_duration());
        let answers = vec![None; ask.questions.len()];
        let open = OpenAsk { asker: asker.clone(), ask, answers, due, origin };
        let is_nobody_asked = open.answers.is_empty();
        self.asks.insert(self.last_ask, open);
        if is_nobody_asked {
            self.end_ask(self.last_ask);
        }
    }

    /// Takes the answer to a question, and sends it on where it was the last one.
    pub(super) fn answer(&mut self, (number, part): (u64, usize), answer: Vec<u8>) {
        let Some(open) = self.asks.get_mut(&number) else { return };
        open.answers[part] = Some(answer);
        if open.answers.iter().all(Option::is_some) {
            self.end_ask(number);
        }
    }

    /// Sends what answers an ask has to its asker.
    pub(super) fn end_ask(&mut self, number: u64) {
        let Some(OpenAsk { asker, ask, answers, origin, .. }) = self.asks.remove(&number) else {
            return;
        };
        let late = answer_json(Err(Failure::TimedOut));
        let answers = answers.iter().map(|answer| answer.as_deref().unwrap_or(&late));
        let (input, operation) = (ask.then.input(answers), ask.then.operation);
        let signal = Signal { target: asker, operation, input, delay: None };
        self.due.push_back(Sent { origin, ..Sent::new(signal) });
    }
}
