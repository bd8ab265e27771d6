//! Events of an instance: taken at the door, kept before its start, and given up behind its end.

use std::{borrow::Cow, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    GO_ON,
    control::{check_length, refused, within},
    head::Arrived,
    turn::Engine,
};
use crate::{
    Rejection, Timestamp,
    effect::{Effect, Signal},
    input::InputError,
    sabotage::Sabotage,
    workflow::{EVENT_BYTES_KEPT_MAX, EVENTS_KEPT_MAX, EventType, history::Payload},
};

/// How long events wait for a start.
const EVENTS_BEFORE_START: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many events that nobody has taken become dead letters in one turn.
const DRAINED_PER_TURN: usize = 1_000;

/// An event that arrives.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EventArrived {
    name: String,
    #[serde(default)]
    payload: Payload,
    /// Whether the instance gave it up, so that it waits for no start.
    #[serde(default)]
    is_late: bool,
}

impl EventArrived {
    /// Checks the payload, where the type of the event is known.
    pub(super) fn check(&self, known: &[EventType]) -> Result<(), InputError> {
        let payload = if self.payload.is_empty() { b"null" } else { self.payload.bytes() };
        check_length(payload)?;
        match known.iter().find(|event| event.name() == self.name) {
            Some(event) => event.check(payload).map_err(|error| within("payload", error)),
            None => Ok(()),
        }
    }
}

impl Engine<'_> {
    /// Takes an event, for a wait that there is or that is to come.
    ///
    /// A signal that comes before the start waits for it: its sender hears of no rejection.
    pub(super) fn event(&mut self, event: EventArrived) -> Result<(), Rejection> {
        let EventArrived { name, payload, is_late } = event;
        let waits = !is_late && !self.ctx.is_heard() && !Sabotage::EarlyEventsRefused.is_on();
        let is_early = waits && self.state.started().is_none();
        if !is_early {
            self.running()?;
        }
        let declared = &self.programs.events;
        if !declared.is_empty() && !declared.iter().any(|known| known.name() == name) {
            let known: Vec<_> = declared.iter().map(EventType::name).collect();
            let why = format!(
                "{} has no event {name:?}: it has {}",
                self.programs.name,
                known.join(", ")
            );
            return Err(refused("unknown_event", why));
        }
        let kept = self.state.head.as_deref().map(|head| head.kept).unwrap_or_default();
        let bytes = kept.event_bytes + (name.len() + payload.len()) as u64;
        if kept.events >= EVENTS_KEPT_MAX || bytes > EVENT_BYTES_KEPT_MAX {
            let why = format!(
                "{} events of {} bytes wait for the instance: it takes more when it has taken some",
                kept.events, kept.event_bytes
            );
            return Err(refused("too_many_events", why));
        }
        let arrived = vec![Arrived::Event(name, payload)];
        match is_early {
            true => self.keep_for_start(arrived),
            false => self.arrive(arrived),
        }
        Ok(())
    }

    /// Keeps events in a head with run 0, which is of an instance that is not started.
    fn keep_for_start(&mut self, events: Vec<Arrived>) {
        self.state.head.get_or_insert_default();
        let until = self.ctx.now() + EVENTS_BEFORE_START;
        self.wake_by(Some(until));
        self.keep_all(events);
    }

    /// Has the events become dead letters for which no start came in time, of an instance that is not started.
    pub(super) fn give_up_events(&mut self) {
        let now = self.ctx.now();
        self.drain_events(|at| at + EVENTS_BEFORE_START <= now);
        self.head().wake_at = None;
        let oldest = self.state.kept.read_all().next().map(|(_, kept)| kept.at);
        match oldest.map(|at| at + EVENTS_BEFORE_START) {
            None => self.ctx.delete(),
            Some(until) => self.wake_by(Some(until).filter(|until| *until > now)),
        }
    }

    /// Has events of these times that nobody has taken become dead letters: the instance refuses them when they come back
    /// to it.
    pub(super) fn drain_events(&mut self, is_over: impl Fn(Timestamp) -> bool) {
        if self.head().kept.events == 0 {
            return;
        }
        let all = self.state.kept.read_all().filter(|(_, kept)| is_over(kept.at));
        let numbers: Vec<u64> = all.map(|(number, _)| *number).collect();
        let target = self.ctx.id().clone();
        for number in numbers.iter().take(DRAINED_PER_TURN) {
            let Some(Arrived::Event(name, payload)) =
                self.state.take_kept(*number).map(|kept| kept.what)
            else {
                continue;
            };
            let name = serde_json::Value::from(name);
            let payload = if payload.is_empty() { b"null" } else { payload.bytes() };
            let head = format!("{{\"name\":{name},\"is_late\":true,\"payload\":");
            let input = [head.as_bytes(), payload, b"}"].concat();
            let (target, operation) = (target.clone(), Cow::Borrowed("event"));
            self.ctx.emit(Effect::Signal(Signal { target, operation, input, delay: None }));
        }
        if numbers.len() > DRAINED_PER_TURN {
            self.signal_self(GO_ON);
        }
    }
}
