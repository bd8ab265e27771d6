//! A driver whose entity type is forgotten, so that drivers of several types go into one map.

use std::any::Any;

use super::Driver;
use crate::{
    BoxFuture, CallError, Dependencies, Entity, Request, Timestamp,
    context::AnswerTo,
    effect::{Effect, Signal},
};

/// A [`Driver`] of any type.
pub(super) trait Driven: Any + Send + Sync {
    fn run<'a>(&'a mut self, request: &'a Request) -> BoxFuture<'a, Result<Vec<u8>, CallError>>;
    fn query(&self, request: &Request) -> Result<Vec<u8>, CallError>;
    fn fire<'a>(&'a mut self, name: &'a str) -> BoxFuture<'a, Result<Vec<u8>, CallError>>;
    fn next_reminder(&self) -> Option<(Timestamp, String)>;
    fn put_expiry_off(&mut self, until: Timestamp);
    /// The operation of a reminder, as a signal of the entity to itself.
    fn reminder(&self, name: &str) -> Option<Signal>;
    fn revision(&self) -> u64;
    /// The operation that hears of dead letters.
    fn on_dead_letter(&self) -> Option<&'static str>;
    /// The signals and asks since the last time, in order.
    fn take_sent(&mut self) -> Vec<Effect>;
    /// Sets the one who hears the answer of the next operation.
    fn set_answer_to(&mut self, answer_to: AnswerTo);
    /// Whether the last operation answers later.
    fn is_deferred(&self) -> bool;
    fn set_clock(&mut self, now: Timestamp);
    fn set_number(&mut self, number: u64);
    fn give(&mut self, given: &Dependencies);
}

impl<E: Entity> Driven for Driver<E> {
    fn run<'a>(&'a mut self, request: &'a Request) -> BoxFuture<'a, Result<Vec<u8>, CallError>> {
        Box::pin(self.run(request))
    }
    fn query(&self, request: &Request) -> Result<Vec<u8>, CallError> {
        self.read(request)
    }
    fn fire<'a>(&'a mut self, name: &'a str) -> BoxFuture<'a, Result<Vec<u8>, CallError>> {
        Box::pin(self.fire(name))
    }
    fn next_reminder(&self) -> Option<(Timestamp, String)> {
        self.next_reminder()
    }
    fn put_expiry_off(&mut self, until: Timestamp) {
        self.expires_at = Some(until);
    }
    fn reminder(&self, name: &str) -> Option<Signal> {
        let ((_, reminder), target) = self.reminders.get(name).zip(self.id.clone())?;
        let (operation, input) = (reminder.operation.clone(), reminder.input.clone());
        Some(Signal { target, operation, input, delay: None })
    }
    fn revision(&self) -> u64 {
        self.revision
    }
    fn on_dead_letter(&self) -> Option<&'static str> {
        E::ON_DEAD_LETTER
    }
    fn take_sent(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.sent)
    }
    fn set_answer_to(&mut self, answer_to: AnswerTo) {
        self.answer_to = answer_to;
    }
    fn is_deferred(&self) -> bool {
        self.is_deferred
    }
    fn set_clock(&mut self, now: Timestamp) {
        self.now = now;
    }
    fn set_number(&mut self, number: u64) {
        self.number = number;
    }
    fn give(&mut self, given: &Dependencies) {
        self.give(given);
    }
}
