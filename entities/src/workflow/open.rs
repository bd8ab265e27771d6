//! The operations of a run that began and are not done, and who waits for events among them. Runs at rest are many, and have
//! few of either: both tables are small where they hold little.

use std::{cmp::Ordering, collections::VecDeque, task::Waker};

use super::{
    history::{Begun, Payload},
    place::Place,
    step::StepOptions,
};
use crate::Timestamp;

/// About how many bytes the names and the argument of an operation take in memory.
const BESIDE: usize = 64;

/// An operation that began and is not done.
pub(super) struct Open {
    pub(super) begun: Begun,
    /// Since when it is outstanding.
    pub(super) since: Timestamp,
    /// Those of a step that has some.
    pub(super) options: Option<Box<StepOptions>>,
    pub(super) waker: Option<Waker>,
    /// The place in history of its end, and that.
    pub(super) outcome: Option<(u64, Payload)>,
}

impl Open {
    /// Whether it is a step in place whose code was used up.
    pub(super) fn lacks_body(&self) -> bool {
        self.options.as_ref().is_some_and(|it| it.is_in_place && it.body.is_none())
    }
}

/// Operations in the order of their places: most begin at the end, and most are done at the beginning.
#[derive(Default)]
pub(super) struct OpenOperations(VecDeque<Box<Open>>);

impl OpenOperations {
    /// The index of an operation, or where it would be.
    fn index_of(&self, place: &Place) -> Result<usize, usize> {
        let at = |open: Option<&Box<Open>>| open.map(|open| open.begun.place.cmp(place));
        match (at(self.0.front()), at(self.0.back())) {
            (Some(Ordering::Equal), _) => Ok(0),
            (_, None | Some(Ordering::Less)) => Err(self.0.len()),
            _ => self.0.binary_search_by(|open| open.begun.place.cmp(place)),
        }
    }

    pub(super) fn get(&self, place: &Place) -> Option<&Open> {
        Some(&self.0[self.index_of(place).ok()?])
    }

    pub(super) fn get_mut(&mut self, place: &Place) -> Option<&mut Open> {
        let index = self.index_of(place).ok()?;
        Some(&mut self.0[index])
    }

    pub(super) fn insert(&mut self, open: Box<Open>) {
        match self.index_of(&open.begun.place) {
            Ok(index) => self.0[index] = open,
            Err(index) => self.0.insert(index, open),
        }
    }

    pub(super) fn remove(&mut self, place: &Place) -> Option<Box<Open>> {
        self.0.remove(self.index_of(place).ok()?)
    }

    /// Removes an operation that is done. Another one keeps `waker` for its end; returns the waker that this replaces.
    pub(super) fn take_done(
        &mut self,
        place: &Place,
        waker: &Waker,
    ) -> (Option<Box<Open>>, Option<Waker>) {
        let Ok(index) = self.index_of(place) else { return (None, None) };
        let open = &mut self.0[index];
        if open.outcome.is_some() {
            return (self.0.remove(index), None);
        }
        let is_known = open.waker.as_ref().is_some_and(|known| known.will_wake(waker));
        (None, if is_known { None } else { open.waker.replace(waker.clone()) })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Open> {
        self.0.iter().map(|open| &**open)
    }

    /// About how many bytes they take in memory.
    pub(super) fn bytes(&self) -> usize {
        self.0.len() * (size_of::<Open>() + BESIDE)
    }
}

/// Waits for events by name, the first one of each first.
#[derive(Default)]
pub(super) struct EventWaits(Vec<(Box<str>, VecDeque<Place>)>);

impl EventWaits {
    fn index_of(&self, event: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(name, _)| (**name).cmp(event))
    }

    pub(super) fn push(&mut self, event: &str, place: Place) {
        match self.index_of(event) {
            Ok(index) => self.0[index].1.push_back(place),
            Err(index) => {
                self.0.reserve_exact(1);
                self.0.insert(index, (event.into(), VecDeque::from([place])));
            }
        }
    }

    pub(super) fn remove(&mut self, event: &str, place: &Place) {
        let Ok(index) = self.index_of(event) else { return };
        let waits = &mut self.0[index].1;
        // Mostly it is the first one.
        match waits.front() == Some(place) {
            true => drop(waits.pop_front()),
            false => waits.retain(|other| other != place),
        }
        if waits.is_empty() {
            self.0.remove(index);
        }
    }

    /// The oldest wait for an event.
    pub(super) fn first(&self, event: &str) -> Option<&Place> {
        self.0[self.index_of(event).ok()?].1.front()
    }

    /// The names, in their order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    /// About how many bytes they take in memory.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|(_, waits)| waits.capacity() * size_of::<Place>()).sum()
    }
}
