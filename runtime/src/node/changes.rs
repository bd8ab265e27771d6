//! The changes of one entity as a stream: its committed states, and its deletion.
//!
//! A stream reads the store whenever there is news, at whichever node is asked, so it shows nothing that was not
//! committed, survives hand-offs, and holds one event at a time: who reads slowly skips revisions. A commit of this
//! node wakes it at once. Among others, a look at the store a few times a second finds what they have committed.
//! What must never happen: a stream goes back to an earlier version, or rests at one that is not the last.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    str::FromStr as _,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt, stream};
use stead_entities::{Entity, EntityId, Error, ErrorKind, Version};

use super::{Inner, Node, lists::Snapshot};
use crate::{
    clock,
    commit::{Subscription, Watched},
    map::Map,
    partition::reply::StateView,
    sabotage::Sabotage,
    store::{
        Haste, TypedReads as _, change_log,
        tables::{Table, changes::Place, states},
    },
};

/// The shortest time between two events of one stream; what is committed meanwhile is one of them.
pub(super) const EVENT_PAUSE: Duration = Duration::from_millis(5);
/// The wait before a store that could not be read is asked again.
pub(super) const READ_PAUSE: Duration = Duration::from_millis(200);
/// How often a node among others looks for what they have committed.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
/// The end of the position of a deletion.
const DELETED: &str = "-deleted";

/// An event of a stream of changes, and where the stream goes on behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChangeEvent<S> {
    /// The position to go on from, for [`Node::changes`]; none of a gap. A text of at most 64 bytes.
    pub position: Option<String>,
    /// The event.
    pub change: Change<S>,
}

/// The news of an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change<S> {
    /// Its newest committed state. Revisions rise, and may skip.
    State(S),
    /// It was deleted. A state behind it is of another generation.
    Deleted,
    /// The position to go on from is not of this entity's past: what follows is its present state.
    Gap,
}

/// The changes of one entity, from its present state on.
pub type Changes<S> = Events<ChangeEvent<S>>;

/// A stream of events. It ends when its node stops, and behind an error; go on from the last position, at any node.
/// Dropping it ends it.
pub struct Events<E>(Pin<Box<dyn Stream<Item = Result<E, Error>> + Send>>);

/// The position of a stream: the version that it has shown, and whether the entity was deleted since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    version: Version,
    is_deleted: bool,
}

impl Position {
    /// Reads a position of an entity of this store, whose seal it has.
    fn read(text: &str, seal: u32) -> Option<Self> {
        let (text, is_deleted) = match text.strip_suffix(DELETED) {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let (version, of) = text.rsplit_once('-')?;
        let version = Version::from_str(version).ok()?;
        (of == format!("{seal:08x}")).then_some(Self { version, is_deleted })
    }

    fn write(self, seal: u32) -> String {
        let end = if self.is_deleted { DELETED } else { "" };
        format!("{}-{seal:08x}{end}", self.version)
    }
}

/// The part of a position that only this entity of this store has, so that those of others are told from it.
fn seal_of(node: &Node, id: &EntityId) -> u32 {
    let settings = &node.0.host.store().opened().settings;
    settings.fingerprint(&[b"changes", id.as_str().as_bytes()]) as u32
}

/// The events between a position and the present version of an entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Gap,
    Deleted,
    State,
}

/// The steps that lead from a position to the present version; none where nothing has happened since.
fn steps(last: Option<Position>, present: Option<Version>) -> &'static [Step] {
    use Step::{Deleted, Gap, State};
    match (last, present) {
        (None, None) => &[],
        (None, Some(_)) => &[State],
        (Some(last), None) if last.is_deleted => &[],
        (Some(_), None) => &[Deleted],
        (Some(last), Some(present)) => {
            let (was, is) = (last.version, present);
            match (is.generation.cmp(&was.generation), is.revision.cmp(&was.revision)) {
                (std::cmp::Ordering::Greater, _) if last.is_deleted => &[State],
                (std::cmp::Ordering::Greater, _) => &[Deleted, State],
                (std::cmp::Ordering::Equal, std::cmp::Ordering::Greater) if !last.is_deleted => {
                    &[State]
                }
                (std::cmp::Ordering::Equal, std::cmp::Ordering::Equal) if !last.is_deleted => &[],
                _of_a_future => &[Gap, State],
            }
        }
    }
}

/// A stream under way.
struct Feed {
    node: Node,
    id: EntityId,
    seal: u32,
    news: Subscription,
    last: Option<Position>,
    /// Events that are due, before the store is read again.
    due: VecDeque<ChangeEvent<StateView>>,
    /// Whether the store was read, so that it is read again when there is news.
    has_begun: bool,
    /// When it is read again at the earliest.
    not_before: Instant,
    has_ended: bool,
}

impl Feed {
    /// The next event; none when the node stops.
    async fn next(&mut self) -> Option<Result<ChangeEvent<StateView>, Error>> {
        loop {
            if let Some(event) = self.due.pop_front() {
                return Some(Ok(event));
            }
            if self.has_ended {
                return None;
            }
            if self.has_begun {
                if !self.news.news().await {
                    return None;
                }
                clock::sleep_until(self.not_before).await;
                self.not_before = clock::deadline_after(EVENT_PAUSE);
            }
            match self.node.committed_state_of(&self.id).await {
                Ok(view) => {
                    self.has_begun = true;
                    self.take(view);
                }
                Err(error) => match error.kind() {
                    ErrorKind::Unavailable | ErrorKind::Overloaded | ErrorKind::Fenced => {
                        clock::sleep(READ_PAUSE).await;
                        // Whatever happened meanwhile is read in any case.
                        self.has_begun = false;
                    }
                    ErrorKind::Closed => return None,
                    _ => {
                        self.has_ended = true;
                        return Some(Err(error));
                    }
                },
            }
        }
    }

    fn take(&mut self, view: Option<StateView>) {
        let present = view.as_ref().map(StateView::version);
        let mut view = view;
        for step in steps(self.last, present) {
            let (position, change) = match step {
                Step::Gap => (None, Change::Gap),
                Step::Deleted => {
                    let last = self.last.map(|last| Position { is_deleted: true, ..last });
                    (last, Change::Deleted)
                }
                Step::State => {
                    let Some(view) = view.take() else { continue };
                    let position = Position { version: view.version(), is_deleted: false };
                    (Some(position), Change::State(view))
                }
            };
            self.last = position.or(self.last);
            let position = position.map(|position| position.write(self.seal));
            self.due.push_back(ChangeEvent { position, change });
        }
    }
}

/// The changes of an entity behind a position.
pub(super) fn of(
    node: &Node,
    id: &EntityId,
    after: Option<&str>,
) -> Result<Changes<StateView>, Error> {
    node.0.local().check_served(id.entity_type())?;
    let seal = seal_of(node, id);
    let mut feed = Feed {
        node: node.clone(),
        id: id.clone(),
        seal,
        news: node.0.host.subscribers().subscribe(Watched::Entity(id.clone()))?,
        last: after.and_then(|after| Position::read(after, seal)),
        due: VecDeque::new(),
        has_begun: false,
        not_before: clock::monotonic(),
        has_ended: false,
    };
    if after.is_some() && feed.last.is_none() {
        feed.due.push_back(ChangeEvent { position: None, change: Change::Gap });
    }
    Ok(Events::of(stream::unfold(feed, async |mut feed| {
        let event = feed.next().await?;
        Some((event, feed))
    })))
}

impl Changes<StateView> {
    /// The same with states of a type.
    pub(super) fn typed<E: Entity>(self) -> Changes<Snapshot<E>> {
        self.map(|ChangeEvent { position, change }| {
            let change = match change {
                Change::State(view) => Change::State(Snapshot::new(view)?),
                Change::Deleted => Change::Deleted,
                Change::Gap => Change::Gap,
            };
            Ok(ChangeEvent { position, change })
        })
    }
}

impl<E: Send + 'static> Events<E> {
    /// These events, up to the first error.
    pub(super) fn of(events: impl Stream<Item = Result<E, Error>> + Send + 'static) -> Self {
        let until_error = events.scan(false, |has_failed, event| {
            let is_over = std::mem::replace(has_failed, event.is_err());
            std::future::ready((!is_over).then_some(event))
        });
        Self(Box::pin(until_error))
    }

    /// The same events as something else.
    pub(super) fn map<T: Send + 'static>(
        self,
        become_other: impl Fn(E) -> Result<T, Error> + Send + 'static,
    ) -> Events<T> {
        Events::of(StreamExt::map(self, move |event| event.and_then(&become_other)))
    }
}

impl<E> Events<E> {
    /// The next event: none when the node stops, or behind an error that ends the stream, such as a state that
    /// cannot be read. Cancel safe: an event that nobody has taken comes the next time.
    pub async fn next(&mut self) -> Option<Result<E, Error>> {
        StreamExt::next(&mut self.0).await
    }
}

impl<E> Stream for Events<E> {
    type Item = Result<E, Error>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl<E> fmt::Debug for Events<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Inner {
    /// Begins to look for what other nodes have committed of the entities that somebody waits for; it ends with
    /// the node.
    pub(super) fn start_looking(self: &Arc<Self>) {
        if self.cluster().is_some() && !Sabotage::OthersChangesSkipped.is_on() {
            drop(self.host.threads().runtime.spawn(look(Arc::downgrade(self))));
        }
    }
}

async fn look(inner: Weak<Inner>) {
    let (mut seen, mut ends_seen) = (Map::default(), Map::default());
    loop {
        clock::sleep(LOOK_PAUSE).await;
        let Some(node) = inner.upgrade() else { return };
        let (ids, types) = node.host.subscribers().all();
        look_at_types(&node, types, &mut ends_seen).await;
        look_at_entities(&node, ids, &mut seen).await;
    }
}

/// Tells of types in whose logs there is more than before.
async fn look_at_types(
    node: &Inner,
    types: Vec<Box<str>>,
    seen: &mut Map<Box<str>, Vec<(u64, Place)>>,
) {
    let before = std::mem::take(seen);
    for name in types {
        let of = name.clone();
        let reading = node.host.store().read(Haste::Long, move |rows| change_log::ends(rows, &of));
        // What cannot be read now is read the next time.
        let Ok(ends) = reading.await else { continue };
        if before.get(&name) != Some(&ends) {
            node.host.subscribers().tell(&Watched::Type(name.clone()));
        }
        seen.insert(name, ends);
    }
}

/// Tells of entities that have other versions than before.
async fn look_at_entities(
    node: &Inner,
    ids: Vec<EntityId>,
    seen: &mut Map<EntityId, Option<Version>>,
) {
    let before = std::mem::take(seen);
    if !ids.is_empty() {
        let keys: Vec<_> = ids.iter().map(|id| states::key(id).to_vec()).collect();
        let reading = node.host.store().read(Haste::Long, move |rows| {
            let mut heads = Vec::with_capacity(keys.len());
            rows.get_each(Table::States, &keys, true, &mut |value| {
                let head = value.map(states::read_head).transpose();
                // One that cannot be read is told to whoever reads it.
                heads.push(head.ok().flatten());
                Ok(())
            })?;
            Ok(heads)
        });
        let Ok(heads) = reading.await else { return };
        for (id, head) in ids.into_iter().zip(heads) {
            let version = head.map(|head| head.version());
            if before.get(&id) != Some(&version) {
                node.host.subscribers().tell(&Watched::Entity(id.clone()));
            }
            seen.insert(id, version);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_leads_to_the_present_version_and_never_back() {
        use Step::{Deleted, Gap, State};
        let version = |generation, revision| Version { generation, revision };
        let at = |generation, revision, is_deleted| {
            Some(Position { version: version(generation, revision), is_deleted })
        };
        for (last, present, expected) in [
            (None, None, &[][..]),
            (None, Some(version(7, 1)), &[State][..]),
            (at(7, 1, false), Some(version(7, 1)), &[]),
            (at(7, 1, false), Some(version(7, 9)), &[State]),
            (at(7, 9, false), Some(version(7, 1)), &[Gap, State]),
            (at(7, 1, false), Some(version(8, 1)), &[Deleted, State]),
            (at(8, 1, false), Some(version(7, 1)), &[Gap, State]),
            (at(7, 1, false), None, &[Deleted]),
            (at(7, 1, true), None, &[]),
            (at(7, 1, true), Some(version(8, 3)), &[State]),
            (at(7, 1, true), Some(version(7, 3)), &[Gap, State]),
        ] {
            assert_eq!(steps(last, present), expected, "{last:?} {present:?}");
        }
    }

    #[test]
    fn positions_are_read_as_they_are_written() {
        for is_deleted in [false, true] {
            let version = Version { generation: u64::MAX, revision: u64::MAX };
            let position = Position { version, is_deleted };
            assert_eq!(Position::read(&position.write(0xBEEF), 0xBEEF), Some(position));
            assert_eq!(Position::read(&position.write(0xBEEF), 0xBEE), None, "of another entity");
            assert!(position.write(u32::MAX).len() <= 64);
        }
        for text in ["", "7", "7-1", "x-1-00000007", "-deleted", "7-1-7", "7-1-00000007-gone"] {
            assert_eq!(Position::read(text, 7), None, "{text}");
        }
    }
}
