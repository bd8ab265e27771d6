//! Reading the changes of a type: first every entity that is there, then what the log of changes has behind the place
//! at which that began.
//!
//! Each incarnation of a node has a log of its own, in which rows only come behind others. So a position is one place
//! for each incarnation that may still write, and a number up to which all others are read to their ends. An
//! incarnation can write no more once it is no member and a later one is. A row says that an entity has changed; what
//! is shown is the state that the same view has, so a stream never goes back, and rows that are not the newest of
//! their entity are passed over. What must never happen: a position is behind a change that was not shown.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use stead_entities::{EntityId, Timestamp, index::ValueRange};

use super::{
    ReadResult,
    find::{self, Readiness, WholeStates, readable, take_states},
    rows::{self, Limit, Rows, take},
    tables::{
        self, Record as _, Table,
        changes::{ChangeKey, ChangeRecord, Place},
        indexes::IndexedValues,
        meta::{CHANGES_NOTE, KeptChanges},
        states::StateRecord,
    },
};
use crate::{map::Map, sabotage::Sabotage};

/// The most rows of the log that one page looks at, and the most entities of one page of the list.
const ROWS_MAX: usize = 128;
/// The most bytes of the states of one page; it has one state in any case. A follower who does not read holds a page.
pub(crate) const FOLLOWED_BYTES_MAX: usize = 64 << 10;
/// How far the clock of the node that gave a position may be ahead of this one's.
const LEAD_MAX: Duration = Duration::from_secs(60);

/// The changes that are meant.
#[derive(Debug, Clone)]
pub(crate) struct Followed {
    pub(crate) entity_type: String,
    /// The version of the type whose program asks.
    pub(crate) version: u32,
    /// The indexed values that a state must have.
    pub(crate) filters: Vec<(String, ValueRange)>,
    /// The beginning of the keys of the entities.
    pub(crate) prefix: String,
}

impl Followed {
    /// Whether a state with these values is meant.
    fn fits(&self, values: &IndexedValues) -> bool {
        let mut filters = self.filters.iter();
        filters.all(|(index, range)| values.get(index).is_some_and(|value| range.contains(value)))
    }

    /// Whether a state that had these values may have been told. Where one is not known it may.
    fn may_have_fit(&self, values: &IndexedValues) -> bool {
        let mut filters = self.filters.iter();
        filters.all(|(index, range)| values.get(index).is_none_or(|value| range.contains(value)))
    }

    fn id(&self, key: &str) -> Option<EntityId> {
        EntityId::new(&self.entity_type, key).ok()
    }
}

/// A position in the changes of a type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogPosition {
    /// The number under which changes are kept.
    since: u64,
    /// Everything that was committed before this had been shown: the time of the last page at whose end there was
    /// nothing more, or of the beginning.
    at: Timestamp,
    /// Incarnations up to this one are read to their ends, but for those below.
    passed: u64,
    /// Up to where incarnations are read.
    places: BTreeMap<u64, Place>,
    /// The key behind which the list of what is there goes on; none once all of it was shown.
    listed: Option<String>,
}

impl LogPosition {
    /// Whether an incarnation is read up to a place.
    fn is_at(&self, incarnation: u64, end: Place) -> bool {
        match self.places.get(&incarnation) {
            Some(place) => *place >= end,
            None => incarnation <= self.passed,
        }
    }

    /// Notes that an incarnation that has ended is read to its end. Whoever lives and has an earlier number is not
    /// passed with it.
    fn pass(&mut self, ended: u64, living: &Living) {
        let earlier = living.incarnations.range(..ended).filter(|it| **it > self.passed);
        for earlier in earlier.filter(|it| !living.has_lost(**it)) {
            self.places.entry(*earlier).or_default();
        }
        self.places.remove(&ended);
        self.passed = self.passed.max(ended);
    }
}

/// The moment of a look at the changes, from before its view began.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    /// The incarnations that may still write.
    pub(crate) living: Living,
    pub(crate) now: Timestamp,
    /// Which look of its stream this is. At the first one, 0, the position is one that a client has brought; each
    /// begins with another log.
    pub(crate) number: usize,
}

/// The incarnations that may still write.
#[derive(Debug, Clone)]
pub(crate) struct Living {
    incarnations: BTreeSet<u64>,
    /// Whether there can be no later ones.
    are_all: bool,
}

impl Living {
    /// These members, as seen before the log is read.
    pub(crate) fn members(incarnations: impl IntoIterator<Item = u64>) -> Self {
        Self { incarnations: incarnations.into_iter().collect(), are_all: false }
    }

    /// The one node of a store.
    pub(crate) fn alone(incarnation: u64) -> Self {
        Self { incarnations: BTreeSet::from([incarnation]), are_all: true }
    }

    fn last(&self) -> u64 {
        self.incarnations.last().copied().unwrap_or(0)
    }

    /// Whether a position names an incarnation that there cannot have been, as after a backup was restored.
    fn never_had(&self, position: &LogPosition) -> bool {
        let last = position.places.keys().last().copied().unwrap_or(0);
        self.are_all && last.max(position.passed) > self.last()
    }

    /// Whether an incarnation can write no more. A later one may have joined since the members were seen.
    fn has_lost(&self, incarnation: u64) -> bool {
        let is_member =
            self.incarnations.contains(&incarnation) && !Sabotage::LivingLogPassed.is_on();
        !is_member && incarnation <= self.last()
    }
}

/// The news of an entity.
#[derive(Debug)]
pub(crate) enum Event {
    State(Box<StateRecord>),
    /// It is there, and no longer among those that are meant.
    Left,
    Deleted,
}

/// Some of the changes behind a position.
#[derive(Debug)]
pub(crate) struct ChangePage {
    /// Whether the position was not one to go on from, and all of it begins anew.
    pub(crate) has_gap: bool,
    /// The events, each with the position behind it.
    pub(crate) events: Vec<(EntityId, Event, LogPosition)>,
    /// The position behind the page.
    pub(crate) position: LogPosition,
    /// Whether there was nothing more.
    pub(crate) is_end: bool,
}

/// The outcome of a look at the changes, or what cannot answer, and why.
pub(crate) type Followings = ReadResult<Result<ChangePage, (String, Readiness)>>;

/// The changes behind a position, or from the beginning on.
pub(crate) fn page(
    rows: &dyn Rows,
    followed: &Followed,
    position: Option<LogPosition>,
    look: &Look,
) -> Followings {
    let kept = match kept(rows, followed)? {
        Ok(kept) => kept,
        Err(not_ready) => return Ok(Err(not_ready)),
    };
    let was_given = position.is_some();
    let position = position.filter(|position| {
        let age = look.now.since(position.at);
        position.since == kept.since
            && age < kept.retention.as_duration()
            && position.at <= look.now + LEAD_MAX
            && !look.living.never_had(position)
    });
    let known = match position {
        Some(position) if look.number > 0 || is_of_this_past(rows, followed, &position)? => {
            Some(position)
        }
        _ => None,
    };
    let mut page = ChangePage {
        has_gap: was_given && known.is_none(),
        events: Vec::new(),
        position: match known {
            Some(position) => position,
            None => beginning(rows, followed, kept.since, look)?,
        },
        is_end: false,
    };
    match page.position.listed.take() {
        Some(after) => {
            page.list(rows, followed, &after)?;
            if Sabotage::PlacedAfterList.is_on() && page.position.listed.is_none() {
                page.position = beginning(rows, followed, kept.since, look)?;
                page.position.listed = None;
            }
        }
        None => page.follow(rows, followed, look)?,
    }
    if page.is_end {
        page.position.at = look.now;
    }
    Ok(Ok(page))
}

/// Whether the changes are kept, of every partition, and every filter has its index.
fn kept(
    rows: &dyn Rows,
    followed: &Followed,
) -> ReadResult<Result<KeptChanges, (String, Readiness)>> {
    let name = || CHANGES_NOTE.to_owned();
    let Some(kept) = rows::get::<KeptChanges>(rows, &followed.entity_type)? else {
        return Ok(Err((name(), Readiness::Unknown)));
    };
    let notes = find::not_indexed(rows, &followed.entity_type, CHANGES_NOTE, 0)?;
    if !notes.is_empty() {
        return Ok(Err((name(), Readiness::Building(notes.len()))));
    }
    for (index, _) in &followed.filters {
        let of = (followed.entity_type.clone(), index.clone());
        match find::readiness_of(rows, of, followed.version)? {
            Readiness::Complete => {}
            other => return Ok(Err((index.clone(), other))),
        }
    }
    Ok(Ok(kept))
}

/// Whether no place of a position is behind the last row of its incarnation, as that of another past is. Where rows
/// are forgotten out of order it may seem so of one that is not.
fn is_of_this_past(
    rows: &dyn Rows,
    followed: &Followed,
    position: &LogPosition,
) -> ReadResult<bool> {
    for (incarnation, place) in &position.places {
        let last = last_place(rows, &followed.entity_type, *incarnation)?;
        if last.is_some_and(|last| last < *place) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The position before the list of what is there.
fn beginning(
    rows: &dyn Rows,
    followed: &Followed,
    since: u64,
    Look { living, now, .. }: &Look,
) -> ReadResult<LogPosition> {
    let (passed, now) = (living.last(), *now);
    let mut places: BTreeMap<_, _> =
        living.incarnations.iter().map(|it| (*it, Place::default())).collect();
    for (incarnation, place) in ends(rows, &followed.entity_type)? {
        if !living.has_lost(incarnation) {
            places.insert(incarnation, place);
        }
    }
    Ok(LogPosition { since, at: now, passed, places, listed: Some(String::new()) })
}

/// The incarnations with rows of a type, the last one first, each with the place of its last row.
pub(crate) fn ends(rows: &dyn Rows, entity_type: &str) -> ReadResult<Vec<(u64, Place)>> {
    let mut found = Vec::new();
    let from = tables::changes::of_type(entity_type);
    let mut to = tables::key::after(&from);
    while let Some(ChangeKey { incarnation, place, .. }) = last_key(rows, &from, &to)? {
        found.push((incarnation, place));
        to = tables::changes::of_incarnation(entity_type, incarnation);
    }
    Ok(found)
}

fn last_place(rows: &dyn Rows, entity_type: &str, incarnation: u64) -> ReadResult<Option<Place>> {
    let from = tables::changes::of_incarnation(entity_type, incarnation);
    let to = tables::key::after(&from);
    Ok(last_key(rows, &from, &to)?.map(|key| key.place))
}

/// The last key of a range.
fn last_key(rows: &dyn Rows, from: &[u8], to: &[u8]) -> ReadResult<Option<ChangeKey>> {
    let mut found = None;
    let limit = Limit { descends: true, ..Limit::page(1) };
    rows.scan(Table::Changes, from, to, limit, &mut |key, _| {
        found = Some(tables::changes::read_key(key)?);
        Ok(false)
    })?;
    Ok(found)
}

impl ChangePage {
    /// Shows the next entities that are there.
    fn list(&mut self, rows: &dyn Rows, followed: &Followed, after: &str) -> ReadResult<()> {
        let after = Some(after).filter(|after| !after.is_empty());
        let (from, to) = tables::states::range(&followed.entity_type, &followed.prefix, after);
        let limit = Limit::bytes(ROWS_MAX, FOLLOWED_BYTES_MAX);
        let fits = |record: &StateRecord| followed.fits(&record.indexed);
        let (page, last) = take_states(rows, (&from, &to), limit, fits)?;
        for (id, record) in page.rows {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    tracing::error!(entity = %id, %error, "a state is left out of the changes");
                    continue;
                }
            };
            let position =
                LogPosition { listed: Some(id.key().to_owned()), ..self.position.clone() };
            self.events.push((id, Event::State(Box::new(record)), position));
        }
        self.position.listed = match last {
            Some(last) if !page.is_end => Some(tables::states::read_key(&last)?.key().to_owned()),
            _ => None,
        };
        Ok(())
    }

    /// Shows what has changed behind the position.
    fn follow(&mut self, rows: &dyn Rows, followed: &Followed, look: &Look) -> ReadResult<()> {
        let living = &look.living;
        let ends = ends(rows, &followed.entity_type)?.into_iter();
        let unread = ends.filter(|(incarnation, end)| !self.position.is_at(*incarnation, *end));
        let unread: BTreeSet<_> = unread.map(|(incarnation, _)| incarnation).collect();
        let known: BTreeSet<_> = self.position.places.keys().copied().collect();
        let mut states = States { followed, found: Map::default(), whole: WholeStates::default() };
        // Those that have ended come first, so that a position names few of them.
        for ended in known.union(&unread).filter(|it| living.has_lost(**it)) {
            if unread.contains(ended)
                && !self.read_log(rows, followed, *ended, ROWS_MAX, &mut states)?
            {
                return Ok(());
            }
            self.position.pass(*ended, living);
        }
        let mut open: Vec<_> = unread.into_iter().filter(|it| !living.has_lost(*it)).collect();
        // Where the first of them fills the page, another one is the first of the next page.
        let first = look.number.checked_rem(open.len()).unwrap_or(0);
        open.rotate_left(first);
        let share = (ROWS_MAX / open.len().max(1)).max(1);
        self.is_end = true;
        for incarnation in open {
            self.is_end &= self.read_log(rows, followed, incarnation, share, &mut states)?;
        }
        Ok(())
    }

    /// Reads on in the log of one incarnation; says whether that was all of it.
    fn read_log(
        &mut self,
        rows: &dyn Rows,
        followed: &Followed,
        incarnation: u64,
        limit: usize,
        states: &mut States<'_>,
    ) -> ReadResult<bool> {
        let place = self.position.places.get(&incarnation).copied().unwrap_or_default();
        let key = ChangeKey { entity_type: followed.entity_type.clone(), incarnation, place };
        let from = tables::key::behind(&ChangeRecord::key(&key));
        let to = tables::changes::of_incarnation(&followed.entity_type, incarnation);
        let to = tables::key::after(&to);
        let table = (Table::Changes, "a change");
        let (page, last) = take(rows, table, (&from, &to), Limit::page(limit), |key, value| {
            Ok(Some((tables::changes::read_key(key)?.place, ChangeRecord::decode(value)?)))
        })?;
        let mut left = &page.rows[..];
        while !left.is_empty() {
            if states.whole.fill(FOLLOWED_BYTES_MAX) {
                return Ok(false);
            }
            let (part, rest) =
                left.split_at(states.whole.fitting(FOLLOWED_BYTES_MAX).min(left.len()));
            states.fetch(rows, part.iter().map(|(_, change)| &*change.key))?;
            for (place, change) in part {
                self.position.places.insert(incarnation, *place);
                if let Some((id, event)) = states.event(change) {
                    self.events.push((id, event, self.position.clone()));
                }
            }
            left = rest;
        }
        if let Some(last) = last {
            let place = tables::changes::read_key(&last)?.place;
            self.position.places.insert(incarnation, place);
        }
        Ok(page.is_end)
    }
}

/// The states of the entities that a page names, as far as they were looked at.
struct States<'f> {
    followed: &'f Followed,
    /// None of an entity whose state cannot be read.
    found: Map<String, Option<Option<StateRecord>>>,
    whole: WholeStates,
}

impl States<'_> {
    /// Reads the states of these keys that are meant and not known.
    fn fetch<'k>(
        &mut self,
        rows: &dyn Rows,
        keys: impl Iterator<Item = &'k str>,
    ) -> ReadResult<()> {
        let meant = keys.filter(|key| key.starts_with(&self.followed.prefix));
        let unknown: BTreeSet<_> = meant.filter(|key| !self.found.contains_key(*key)).collect();
        let ids: Vec<_> = unknown.into_iter().filter_map(|key| self.followed.id(key)).collect();
        let keys: Vec<_> = ids.iter().map(|id| tables::states::key(id).to_vec()).collect();
        let mut ids = ids.iter();
        rows.get_each(Table::States, &keys, false, &mut |value| {
            let Some(id) = ids.next() else { return Ok(()) };
            let record = value.map(|value| tables::states::read(rows, id, value)).transpose();
            let record = readable(record)?;
            let body = record.as_ref().ok().and_then(Option::as_ref).map_or(0, |it| it.state.len());
            self.whole.note(value.map_or(0, <[u8]>::len) + body);
            let record = record.inspect_err(|error| {
                tracing::error!(entity = %id, %error, "a state is left out of the changes");
            });
            self.found.insert(id.key().to_owned(), record.ok());
            Ok(())
        })
    }

    /// The news that a change is: none where a later row has it.
    fn event(&self, change: &ChangeRecord) -> Option<(EntityId, Event)> {
        let followed = self.followed;
        let present = self.found.get(&change.key)?.as_ref()?;
        let had_left = || change.replaced.as_ref().is_some_and(|it| followed.may_have_fit(it));
        let event = match present {
            Some(record) if followed.fits(&record.indexed) => {
                let is_newest = change.version() == Some(record.head.version());
                is_newest.then(|| Event::State(Box::new(record.clone())))
            }
            Some(_) => had_left().then_some(Event::Left),
            None if followed.filters.is_empty() => {
                change.version.is_none().then_some(Event::Deleted)
            }
            None => had_left().then_some(Event::Deleted),
        };
        Some((followed.id(&change.key)?, event?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(passed: u64, places: &[(u64, u64)]) -> LogPosition {
        let place = |number| Place { number, index: 0 };
        LogPosition {
            since: 1,
            at: Timestamp::default(),
            passed,
            places: places.iter().map(|(of, number)| (*of, place(*number))).collect(),
            listed: None,
        }
    }

    #[test]
    fn a_position_of_a_later_incarnation_is_none_of_the_one_node_of_a_store() {
        let alone = Living::alone(6);
        assert!(!alone.never_had(&position(5, &[(6, 9)])));
        assert!(!alone.never_had(&position(6, &[])));
        assert!(alone.never_had(&position(7, &[])), "of before a backup was restored");
        assert!(alone.never_had(&position(5, &[(7, 1)])));
        let members = Living::members([3, 6]);
        assert!(!members.never_had(&position(6, &[(7, 1)])), "one has joined since they were seen");
    }

    #[test]
    fn whoever_lives_is_not_passed_with_a_later_incarnation_that_has_ended() {
        let living = Living::members([3, 9]);
        let lost: Vec<_> = [2, 3, 5, 9, 10].into_iter().filter(|of| living.has_lost(*of)).collect();
        assert_eq!(lost, [2, 5], "a later one may have joined");
        let mut at = position(1, &[(2, 7)]);
        at.pass(2, &living);
        assert_eq!(at, position(2, &[]));
        at.pass(5, &living);
        assert_eq!(at, position(5, &[(3, 0)]));
    }
}
