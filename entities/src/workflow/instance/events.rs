//! Events of an instance: taken at the door, kept before its start, and given up behind its end.
//!
//! Those that wait for a wait of their name are known to the run, each by its number. Where they are too many, callers are
//! refused, and signals wait behind them in a log, which is read when others were taken: memory is bounded, and the order
//! of all events is that in which they came.

use std::{borrow::Cow, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    GO_ON, State,
    control::{check_length, refused, within},
    head::{Arrived, Kept},
    turn::Engine,
};
use crate::{
    Layout, Log, Rejection, Timestamp,
    effect::{Effect, Signal},
    input::InputError,
    sabotage::Sabotage,
    workflow::{EVENT_BYTES_LATER_MAX, EVENTS_LATER_MAX, EventType, history::Payload},
};

/// How long events wait for a start.
const EVENTS_BEFORE_START: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many events that nobody has taken become dead letters in one turn.
const DRAINED_PER_TURN: usize = 1_000;

/// How many events are read at one time for which there was no room, and about how many bytes of them.
const LATER_AT_ONCE: u64 = 256;
const LATER_BYTES_AT_ONCE: u64 = 4 << 20;

/// The name and the number of an event that is kept.
pub(super) type KeptEvent = (Box<str>, u64);

/// Events that came when too many waited, in their order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, Layout)]
pub(super) struct Later {
    events: Log<Arrived>,
    bytes: u64,
    /// The bytes of the largest one since there were none.
    largest: u64,
}

impl Later {
    fn has_room_for(&self, event: &Arrived) -> bool {
        self.events.len() < EVENTS_LATER_MAX
            && self.bytes + event.len() as u64 <= EVENT_BYTES_LATER_MAX
    }

    fn push(&mut self, at: Timestamp, event: Arrived) {
        let bytes = event.len() as u64;
        self.bytes += bytes;
        self.largest = self.largest.max(bytes);
        self.events.push(at, event);
    }

    /// When the first one came.
    fn first_at(&self) -> Option<Timestamp> {
        Some(self.events.get(self.events.indexes().start)?.at)
    }

    /// Takes the first ones, as long as they are of such times.
    fn take_first(&mut self, is_wanted: impl Fn(Timestamp) -> bool) -> Vec<Kept> {
        let count = (LATER_BYTES_AT_ONCE / self.largest.max(1)).clamp(1, LATER_AT_ONCE);
        let first = self.events.indexes().start;
        let wanted = self.events.range(first..first + count).map(|(_, event)| event);
        let wanted = wanted.take_while(|event| is_wanted(event.at));
        let taken: Vec<Kept> =
            wanted.map(|event| Kept { at: event.at, what: event.value.clone() }).collect();
        self.events.trim_to(self.events.len() - taken.len() as u64);
        self.bytes -= taken.iter().map(|kept| kept.what.len() as u64).sum::<u64>();
        if self.events.is_empty() {
            self.largest = 0;
        }
        taken
    }
}

impl State {
    /// How many events wait.
    pub(super) fn waiting_events(&self) -> u64 {
        let Some(head) = self.head.as_deref() else { return 0 };
        let later = head.later.as_deref().map_or(0, |later| later.events.len());
        u64::from(head.kept.events) + later
    }

    /// Those for which there was no room, where there are any.
    fn waiting_later(&mut self) -> Option<&mut Later> {
        self.head.as_mut()?.later.as_deref_mut().filter(|later| !later.events.is_empty())
    }
}

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
        let event = Arrived::Event(name, payload);
        let has_room = self.state.head.as_deref().is_none_or(|head| head.kept.has_room());
        let passes = Sabotage::LaterEventsPass.is_on();
        if !has_room || self.state.waiting_later().is_some() && !passes {
            return self.keep_for_later(event);
        }
        let arrived = vec![event];
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

    /// Keeps an event for which there is no room, unless somebody hears that there is none.
    fn keep_for_later(&mut self, event: Arrived) -> Result<(), Rejection> {
        let (now, is_heard) = (self.ctx.now(), self.ctx.is_heard());
        let count = self.state.waiting_events();
        let later = self.head().later.get_or_insert_default();
        if is_heard || !later.has_room_for(&event) {
            let why = format!(
                "{count} events wait for the instance: it takes more when it has taken some"
            );
            return Err(refused("too_many_events", why));
        }
        later.push(now, event);
        Ok(())
    }

    /// Whether there is room again for events that came when there was none.
    pub(super) fn has_room_for_later(&mut self) -> bool {
        self.head().kept.has_room() && self.state.waiting_later().is_some()
    }

    /// Keeps the next events that came when there was no room, where there is some now.
    pub(super) fn keep_later(&mut self) -> Vec<KeptEvent> {
        if !self.has_room_for_later() {
            return Vec::new();
        }
        let events = self.state.waiting_later().map(|later| later.take_first(|_| true));
        let events = events.into_iter().flatten().filter_map(|Kept { at, what }| {
            let Arrived::Event(name, _) = &what else { return None };
            let name = name.as_str().into();
            Some((name, self.state.keep(at, what)))
        });
        events.collect()
    }

    /// Has the events become dead letters for which no start came in time, of an instance that is not started.
    pub(super) fn give_up_events(&mut self) {
        let now = self.ctx.now();
        self.drain_events(|at| at + EVENTS_BEFORE_START <= now);
        self.head().wake_at = None;
        let oldest = self.state.kept.read_all().next().map(|(_, kept)| kept.at);
        let oldest = oldest.or_else(|| self.state.waiting_later()?.first_at());
        match oldest.map(|at| at + EVENTS_BEFORE_START) {
            None => self.ctx.delete(),
            Some(until) => self.wake_by(Some(until).filter(|until| *until > now)),
        }
    }

    /// Has events of these times that nobody has taken become dead letters: the instance refuses them when they come back
    /// to it.
    pub(super) fn drain_events(&mut self, is_over: impl Fn(Timestamp) -> bool) {
        if self.state.waiting_events() == 0 {
            return;
        }
        let all = self.state.kept.read_all().filter(|(_, kept)| is_over(kept.at));
        let numbers: Vec<u64> = all.map(|(number, _)| *number).collect();
        let now_over = numbers.iter().take(DRAINED_PER_TURN);
        let given_up: Vec<Kept> =
            now_over.filter_map(|number| self.state.take_kept(*number)).collect();
        let mut has_more = numbers.len() > DRAINED_PER_TURN;
        given_up.into_iter().for_each(|kept| self.signal_late(kept));
        // Behind all of those.
        if self.head().kept.events == 0
            && let Some(later) = self.state.waiting_later()
        {
            let given_up = later.take_first(&is_over);
            has_more = !given_up.is_empty() && self.state.waiting_later().is_some();
            given_up.into_iter().for_each(|kept| self.signal_late(kept));
        }
        if has_more {
            self.signal_self(GO_ON);
        }
    }

    /// Has an event come back to this instance, which refuses it.
    fn signal_late(&mut self, kept: Kept) {
        let Arrived::Event(name, payload) = kept.what else { return };
        let name = serde_json::Value::from(name);
        let payload = if payload.is_empty() { b"null" } else { payload.bytes() };
        let head = format!("{{\"name\":{name},\"is_late\":true,\"payload\":");
        let input = [head.as_bytes(), payload, b"}"].concat();
        let (target, operation) = (self.ctx.id().clone(), Cow::Borrowed("event"));
        self.ctx.emit(Effect::Signal(Signal { target, operation, input, delay: None }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_room_is_bounded_and_read_in_parts() {
        let event = |bytes: usize| Arrived::Event("e".into(), vec![b'1'; bytes - 1].into());
        let (mut later, at) = (Later::default(), Timestamp::from_micros(1));
        later.bytes = EVENT_BYTES_LATER_MAX - 5;
        assert!(later.has_room_for(&event(5)) && !later.has_room_for(&event(6)));
        later.bytes = 0;
        for number in 0..EVENTS_LATER_MAX {
            assert!(later.has_room_for(&event(1)), "{number}");
            later.push(at, event(1));
        }
        assert!(!later.has_room_for(&event(1)));
        assert_eq!(later.take_first(|_| true).len(), 256);
        assert_eq!(later.bytes, EVENTS_LATER_MAX - 256);
        later.push(Timestamp::from_micros(2), event(1 << 20));
        assert_eq!(later.take_first(|_| true).len(), 4, "they may all be as large as the largest");
        assert!(later.take_first(|time| time > at).is_empty());
    }
}
