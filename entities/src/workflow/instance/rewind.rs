//! Rewinding: a run that has ended, or is stuck, goes on from an earlier place of its history.
//!
//! What is before the cut stays as it was, and is replayed; what is behind it is void. The run has a new number, so that
//! nothing that was on its way to the old one arrives, and the tokens of its steps are others. What began before the cut
//! and is not done begins again: steps, calls, children. A child that has failed is rewound too, one that has completed
//! answers with its result, one that was purged begins anew. A child that began behind the cut and goes on is terminated.
//!
//! What must never happen: a success before the cut is lost, or asked for again; the code draws other random numbers, or
//! names its children otherwise, than it did.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    GO_ON, Live,
    control::{StartArgument, Started, refused},
    head::{Arrived, Status},
    history::History,
    turn::{Again, Engine},
};
use crate::{
    Failure, Rejection,
    ask::answer_json,
    effect::{Effect, ReplyAddress},
    sabotage::Sabotage,
    workflow::{
        activation::{Activation, Problem},
        core::Wishes,
        history::{Begun, Delivery, Kind, Payload, Turn},
        place::Place,
    },
};

/// The place from which a run goes on.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rewind {
    /// The place of the operation that is to be made again, with everything behind it; without one the failures are made
    /// again with which the run ended.
    place: Option<String>,
}

/// The most bytes of a history that is rewound: one turn writes it anew.
const REWOUND_BYTES_MAX: u64 = 12 << 20;

/// A history, cut.
struct Cut<'t> {
    /// The turns that stay whole.
    whole: &'t [Turn],
    /// The deliveries that stay of the turn behind them.
    part: Option<(&'t Turn, usize)>,
    /// Deliveries behind the cut that are handed over once more, in their order, each with the operation whose end it is,
    /// where that began behind the cut too.
    again: Vec<(&'t Delivery, Option<&'t Begun>)>,
    /// The operation from whose beginning on no failure is one of them.
    until: Option<&'t Place>,
}

impl Engine<'_> {
    /// Goes on from an earlier place.
    pub(super) fn rewind(&mut self, rewind: &Rewind) -> Result<Started, Rejection> {
        let Some(head) = self.state.started() else {
            return Err(refused("unknown", "there is no such instance"));
        };
        let is_stuck = head.stuck.is_some();
        if !head.status.is_end() && !is_stuck {
            return Err(refused("conflict", "the instance goes on: terminate it first"));
        }
        let place = rewind.place.as_deref().map(str::parse::<Place>).transpose();
        let place = place.map_err(|why| refused("invalid", why))?;
        if place.is_none() && (is_stuck || head.status == Status::Completed) {
            let why = "nothing of it has failed: say at which place it is to go on, `place=3`; its history has them";
            return Err(refused("conflict", why));
        }
        if head.history.bytes > REWOUND_BYTES_MAX {
            let why = format!(
                "its history has {} bytes, of which at most {REWOUND_BYTES_MAX} are written anew: restart it",
                head.history.bytes
            );
            return Err(refused("conflict", why));
        }
        let turns = self.state.history.all().map_err(|why| refused("unreadable", why))?;
        let cut = match &place {
            Some(place) => before(place, &turns)?,
            None => behind_failures(&turns),
        };
        if is_stuck {
            self.end_attempts();
            self.unlock_all();
        }
        self.go_on_from(&cut).map_err(|problem| {
            let why = format!("it cannot go on from there: {}", problem.text());
            refused("conflict", why)
        })?;
        Ok(Started { is_new: true, run: self.head().run })
    }

    /// Begins a child whose parent is rewound: it goes on where it has failed, and answers where it has a result.
    pub(super) fn start_again(&mut self, start: StartArgument) -> Result<Started, Rejection> {
        let Some(head) = self.state.started() else { return self.start(start) };
        if !start.has_input_of(head) {
            return self.start(start);
        }
        let (status, run) = (head.status, head.run);
        let reply_to = self.ctx.defer();
        if status == Status::Completed {
            let outcome = head.outcome.bytes().to_vec();
            self.answer(reply_to, outcome);
            return Ok(Started { is_new: false, run });
        }
        if status.is_end() && self.rewind(&Rewind::default()).is_err() {
            // It has failed by itself: all of it is made again.
            return self.start_over(start);
        }
        if !self.runs() {
            // It has ended in this turn already.
            let outcome = self.head().outcome.bytes().to_vec();
            self.answer(reply_to, outcome);
            return Ok(Started { is_new: false, run: self.head().run });
        }
        let old = std::mem::replace(&mut self.head().reply_to, reply_to.map(Box::new));
        let outdated = answer_json(Err(Failure::Cancelled));
        self.answer(old.map(|old| *old), outdated);
        Ok(Started { is_new: false, run: self.head().run })
    }

    fn go_on_from(&mut self, cut: &Cut<'_>) -> Result<(), Problem> {
        let before = self.state.clone();
        let went_on = self.try_to_go_on_from(cut);
        if went_on.is_err() {
            *self.state = before;
        }
        went_on
    }

    fn try_to_go_on_from(&mut self, cut: &Cut<'_>) -> Result<(), Problem> {
        let (attached, now) = (self.children(true), self.ctx.now());
        drop(self.slot.take());
        self.state.history = History::default();
        let head = self.head();
        head.run += 1;
        head.rewinds += 1;
        head.rewound_at = now;
        (head.lacks_steps, head.was_interrupted) = (false, false);
        (head.status, head.outcome) = (Status::Running, Payload::default());
        (head.history, head.stuck) = (Default::default(), None);
        (head.deadline, head.is_overdue, head.has_steps) = (None, false, false);
        head.suspended = Box::default();
        drop((std::mem::take(&mut head.attempts), std::mem::take(&mut head.waits)));
        let activation = self.replay_to(cut)?;
        let ended = activation.as_ref().is_some_and(|it| it.core.lock().end.is_some());
        if ended {
            let why = "no operation of it has failed, the code ended by itself: say at which place it is to go on";
            return Err(Problem::Refused(why.to_owned()));
        }
        if activation.as_ref().is_some_and(|it| !it.core.lock().all_locks().is_empty()) {
            let why = "the place is in a critical section, whose locks were let go: say one before it, or behind it";
            return Err(Problem::Refused(why.to_owned()));
        }
        let outstanding: Vec<Begun> = activation.iter().flat_map(outstanding).collect();
        self.drop_kept_but_of(&outstanding);
        for child in attached {
            if !outstanding.iter().any(|begun| begun.target == child) {
                // Cancelled, it would be in the way of one that the code begins anew until it has ended.
                self.terminate_child(&child, "the parent was rewound");
            }
        }
        let (position, events) = (self.state.position(), Default::default());
        self.slot.put(Box::new(Live { position, activation, events }));
        self.ctx.emit(Effect::Expire(None));
        let arrivals = cut.again.iter().filter_map(|(delivery, of)| {
            let what = match delivery {
                Delivery::Start(input) => Arrived::Start(input.clone()),
                Delivery::Done(place, outcome) => Arrived::Answer(place.clone(), outcome.clone()),
                Delivery::Cancel => Arrived::Cancel,
                Delivery::Room => return None,
            };
            Some((what, of.cloned()))
        });
        let again = Again { arrivals: arrivals.collect(), until: cut.until.cloned() };
        self.drive_behind(again)?;
        self.begin_again(outstanding);
        Ok(())
    }

    /// The run as it was at the cut, with its history; none where that is before its beginning.
    fn replay_to(&mut self, cut: &Cut<'_>) -> Result<Option<Activation>, Problem> {
        let first = cut.whole.first().or(cut.part.map(|(turn, _)| turn));
        let Some(Delivery::Start(input)) = first.and_then(|turn| turn.deliveries.first()) else {
            return Ok(None);
        };
        let mut activation = self.activation(input)?;
        for turn in cut.whole {
            activation.replay(turn)?;
            self.record(turn)?;
        }
        if let Some((recorded, count)) = cut.part {
            let turn = activation.replay_part(recorded, count)?;
            // Their answers were given, and are no news.
            self.record(&Turn { patches: recorded.patches.clone(), ..turn })?;
        }
        Ok(Some(activation))
    }

    /// Drops what has arrived for operations that the code makes anew.
    fn drop_kept_but_of(&mut self, outstanding: &[Begun]) {
        self.drop_kept(|what| {
            let place = what.place();
            place.is_some_and(|place| !outstanding.iter().any(|begun| begun.place == *place))
        });
    }

    fn answer(&mut self, to: Option<ReplyAddress>, answer: Vec<u8>) {
        if let Some(to) = to {
            self.ctx.emit(Effect::Answer(to, answer));
        }
    }

    /// Begins what is outstanding since before the cut once more.
    fn begin_again(&mut self, outstanding: Vec<Begun>) {
        let Some(mut live) = self.slot.take() else { return };
        live.events = self.kept_events();
        if !live.events.is_empty() {
            self.signal_self(GO_ON);
        }
        let kept = self.state.kept.read_all().filter_map(|(_, kept)| kept.what.place().cloned());
        let kept: BTreeSet<Place> = kept.collect();
        if let Some(activation) = &live.activation {
            // What was handed over, or will be in the next turn, is not asked for once more.
            let is_open = |begun: &Begun| {
                !kept.contains(&begun.place)
                    && activation.core.lock().outstanding(&begun.place).is_some()
            };
            let again: Vec<_> = outstanding.into_iter().filter(is_open).collect();
            for begun in again.iter().filter(|begun| begun.kind == Kind::Step) {
                if self.attempts_of(&begun.place).next_at.is_none() {
                    self.start_attempt(activation, begun.place.clone());
                }
            }
            let begun = again.into_iter().map(as_again).collect();
            let turn = Turn { begun, ..Turn::default() };
            self.emit_begun(&turn, &Wishes::default());
        }
        self.slot.put(live);
    }
}

fn outstanding(activation: &Activation) -> Vec<Begun> {
    let state = activation.core.lock();
    state.all_outstanding().map(|open| open.begun.clone()).collect()
}

/// An operation that is asked for once more: a child is told that it was there before.
fn as_again(mut begun: Begun) -> Begun {
    if begun.kind == Kind::Child
        && let Some(argument) = begun.argument.bytes().strip_suffix(b"}")
    {
        begun.argument = [argument, b",\"is_again\":true}"].concat().into();
    }
    begun
}

/// Cuts before the turn that began the operation at a place. What led to that is handed over once more: it is not made
/// again.
fn before<'t>(place: &'t Place, turns: &'t [Turn]) -> Result<Cut<'t>, Rejection> {
    let at = turns.iter().position(|turn| turn.begun_at(place).is_some()).ok_or_else(|| {
        let why = format!("its history began no operation at place {place}");
        refused("unknown_place", why)
    })?;
    let turn = &turns[at];
    let again = turn.deliveries.iter().map(|delivery| match delivery {
        Delivery::Done(place, _) => (delivery, turn.begun_at(place)),
        Delivery::Start(_) | Delivery::Cancel | Delivery::Room => (delivery, None),
    });
    let again = again.collect();
    Ok(Cut { whole: &turns[..at], part: None, again, until: Some(place) })
}

/// Cuts before the failures with which the run has ended: those that came since it last began something, so that the
/// successes among them stay; where there are none, the last one, with everything behind it.
fn behind_failures(turns: &[Turn]) -> Cut<'_> {
    let last_begun = turns.iter().rposition(|turn| !turn.begun.is_empty());
    let (whole, rest) = turns.split_at(last_begun.map_or(0, |at| at + 1));
    let since = || rest.iter().flat_map(|turn| &turn.deliveries);
    if since().any(is_failure) {
        let again = since().filter(|delivery| !is_failure(delivery)).map(|it| (it, None)).collect();
        return Cut { whole, part: None, again, until: None };
    }
    let failures = |turn: &Turn| turn.deliveries.iter().rposition(is_failure);
    let last = turns.iter().enumerate().rev().find_map(|(at, turn)| Some((at, failures(turn)?)));
    match last {
        Some((at, count)) => {
            let part = (count > 0).then(|| (&turns[at], count));
            Cut { whole: &turns[..at], part, again: Vec::new(), until: None }
        }
        None => Cut { whole: turns, part: None, again: Vec::new(), until: None },
    }
}

fn is_failure(delivery: &Delivery) -> bool {
    match delivery {
        Delivery::Start(_) | Delivery::Room => false,
        Delivery::Done(_, outcome) if Sabotage::FailuresByType.is_on() => {
            outcome.bytes().starts_with(b"{\"Err\":{\"rejected\"")
        }
        Delivery::Done(_, outcome) => outcome.is_failure(),
        Delivery::Cancel => true,
    }
}
