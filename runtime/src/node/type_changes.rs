//! The changes of all entities of a type as a stream, for types that keep them: who is there, then who has changed.
//!
//! A stream reads pages of the store ([`change_log`]) whenever there is news, at whichever node is asked, and holds
//! one page at a time. Its position is sealed with the store's key and with what is followed, so that one of
//! something else is told from it. What must never happen: a stream rests, and an entity's newest version was not
//! shown.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use futures_util::stream;
use stead_entities::{Entity, EntityId, Error, ErrorKind};

use super::{
    Node,
    changes::{EVENT_PAUSE, Events, READ_PAUSE},
    committed::shown,
    find::not_ready,
    lists::Snapshot,
    sealed,
};
use crate::{
    clock,
    commit::{Subscription, Watched},
    partition::reply::StateView,
    store::{
        Haste, Rows, TypedReads as _,
        change_log::{
            self, ChangePage, Event, FOLLOWED_BYTES_MAX, Followed, Living, LogPosition, Look,
        },
        record,
        tables::{meta::Settings, states::StateRecord},
    },
};

/// How long a stream that shows nothing keeps its position.
const POSITION_PAUSE: Duration = Duration::from_secs(60);

/// An event of the changes of a type, and where the stream goes on behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TypeChangeEvent<S> {
    /// The position to go on from; none of a gap. A text that grows with the number of nodes that are there, 40
    /// bytes for each, and with the length of a key.
    pub position: Option<String>,
    /// The event.
    pub change: TypeChange<S>,
}

/// The news of the entities of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TypeChange<S> {
    /// The newest committed state of an entity. It may come more than once; revisions never go back.
    State {
        /// The entity's key.
        key: String,
        /// Its state.
        state: S,
    },
    /// An entity is there, and no longer among those that are followed.
    Left {
        /// The entity's key.
        key: String,
    },
    /// An entity was deleted.
    Deleted {
        /// The entity's key.
        key: String,
    },
    /// The position to go on from is too old, or of something else: every entity that is there follows, up to
    /// [`TypeChange::CaughtUp`]. One that is not shown until then is not there.
    Gap,
    /// Everything that had been committed was shown. It comes when a stream has caught up first, and once a minute
    /// while it shows nothing else, with a position that is as new.
    CaughtUp,
}

/// The changes of the entities of a type, which [`Find::changes`](super::Find::changes) begins. The stream ends when
/// its node stops, and behind an error; go on from the last position, at any node. Dropping it ends it.
pub type TypeChanges<S> = Events<TypeChangeEvent<S>>;

type Told = TypeChangeEvent<StateView>;

/// A stream under way.
struct Feed {
    node: Node,
    followed: Followed,
    news: Subscription,
    position: Option<LogPosition>,
    /// How many pages it has read.
    pages: usize,
    due: VecDeque<Told>,
    /// Whether the stream is at its end, so that it is read again when there is news.
    is_at_end: bool,
    /// When it said first, or again, that it has caught up.
    caught_up: Option<Instant>,
    not_before: Instant,
}

/// Follows the changes behind a position, once they can be.
pub(super) async fn begin(
    node: &Node,
    followed: Followed,
    after: Option<&str>,
) -> Result<TypeChanges<StateView>, Error> {
    let known = node.0.local().known_type(&followed.entity_type)?;
    if known.policy().changes.is_none() {
        let message = format!(
            "the changes of {} are not kept: `#[entity(changes = Duration::from_secs(86_400))]` keeps them for a day",
            known.name()
        );
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let of = Watched::Type(followed.entity_type.as_str().into());
    let mut feed = Feed {
        node: node.clone(),
        news: node.0.host.subscribers().subscribe(of)?,
        position: None,
        pages: 0,
        due: VecDeque::new(),
        is_at_end: false,
        caught_up: None,
        not_before: clock::monotonic(),
        followed,
    };
    feed.position = after.and_then(|after| feed.read_position(after));
    if after.is_some() && feed.position.is_none() {
        feed.due.push_back(TypeChangeEvent { position: None, change: TypeChange::Gap });
    }
    let page = feed.page().await??;
    feed.take(page);
    Ok(Events::of(stream::unfold(feed, async |mut feed| {
        let event = feed.next().await?;
        Some((event, feed))
    })))
}

impl Feed {
    /// The next event; none when the node stops.
    async fn next(&mut self) -> Option<Result<Told, Error>> {
        loop {
            if let Some(event) = self.due.pop_front() {
                return Some(Ok(event));
            }
            if self.is_at_end {
                match clock::within(self.until_silent(), self.news.news()).await {
                    Some(false) => return None,
                    Some(true) => clock::sleep_until(self.not_before).await,
                    None => {}
                }
                self.not_before = clock::deadline_after(EVENT_PAUSE);
            }
            match self.page().await {
                Ok(Ok(page)) => self.take(page),
                Ok(Err(not_ready)) => return Some(Err(not_ready)),
                Err(error) => match error.kind() {
                    ErrorKind::Unavailable | ErrorKind::Overloaded | ErrorKind::Fenced => {
                        clock::sleep(READ_PAUSE).await;
                    }
                    ErrorKind::Closed => return None,
                    _ => return Some(Err(error)),
                },
            }
        }
    }

    /// How long it may show nothing, before it says that it has caught up.
    fn until_silent(&self) -> Duration {
        let said = self.caught_up.unwrap_or_else(clock::monotonic);
        (said + POSITION_PAUSE).saturating_duration_since(clock::monotonic())
    }

    /// Reads the next page, in one view of the store; or says why changes cannot be followed now.
    async fn page(&self) -> Result<Result<ChangePage, Error>, Error> {
        let node = &self.node.0;
        // A commit wakes all followers of a type; few of them take room at one time.
        let _turn = node.host.subscribers().page().await;
        let _room = node.local().admit(FOLLOWED_BYTES_MAX)?;
        let living = match node.cluster() {
            None => Living::alone(node.host.store().opened().incarnation),
            Some(cluster) => {
                let seen = cluster.seen();
                Living::members(seen.view.members.iter().map(|member| member.incarnation))
            }
        };
        let (now, number) = (node.host.clock().now(), self.pages);
        let look = Look { living, now, number };
        let (followed, position) = (self.followed.clone(), self.position.clone());
        let read = move |rows: &dyn Rows| change_log::page(rows, &followed, position, &look);
        let page = node.host.store().read(Haste::Long, read).await?;
        let Followed { entity_type, version, .. } = &self.followed;
        let of = (&**entity_type, *version);
        Ok(page.map_err(|(index, readiness)| not_ready(node, of, &index, readiness)))
    }

    fn take(&mut self, page: ChangePage) {
        self.pages += 1;
        if page.has_gap {
            self.due.push_back(TypeChangeEvent { position: None, change: TypeChange::Gap });
            self.caught_up = None;
        }
        for (id, event, position) in page.events {
            let key = id.key().to_owned();
            let change = match event {
                Event::Left => TypeChange::Left { key },
                Event::Deleted => TypeChange::Deleted { key },
                Event::State(record) => match self.shown(&id, *record) {
                    Ok(Some(state)) => TypeChange::State { key, state },
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::error!(%error, "an entity is left out of the changes");
                        continue;
                    }
                },
            };
            let position = Some(self.write_position(&position));
            self.due.push_back(TypeChangeEvent { position, change });
        }
        self.is_at_end = page.is_end;
        let is_due = self.caught_up.is_none() || self.until_silent().is_zero();
        if page.is_end && is_due {
            self.caught_up = Some(clock::monotonic());
            let position = Some(self.write_position(&page.position));
            self.due.push_back(TypeChangeEvent { position, change: TypeChange::CaughtUp });
        }
        self.position = Some(page.position);
    }

    fn shown(&self, id: &EntityId, record: StateRecord) -> Result<Option<StateView>, Error> {
        let node = &self.node.0;
        let known = node.local().known_type(id.entity_type())?;
        shown(known, id, Ok(Some(record)), node.host.clock().now())
    }

    fn write_position(&self, position: &LogPosition) -> String {
        sealed::write(self.settings(), self.parts(), &record::encode(position))
    }

    /// Reads a position in what is followed.
    fn read_position(&self, text: &str) -> Option<LogPosition> {
        record::decode(&sealed::read(self.settings(), self.parts(), text)?).ok()
    }

    fn settings(&self) -> &Settings {
        &self.node.0.host.store().opened().settings
    }

    /// The entities that a position is of: those that are followed.
    fn parts(&self) -> sealed::Parts<'_> {
        let Followed { entity_type, filters, prefix, .. } = &self.followed;
        let mut parts: sealed::Parts<'_> =
            vec![b"changes of a type", entity_type.as_bytes(), prefix.as_bytes()];
        sealed::of_filters(&mut parts, filters);
        parts
    }
}

impl TypeChanges<StateView> {
    /// The same with states of a type.
    pub(super) fn typed<E: Entity>(self) -> TypeChanges<Snapshot<E>> {
        self.map(|TypeChangeEvent { position, change }| {
            let change = match change {
                TypeChange::State { key, state } => {
                    TypeChange::State { key, state: Snapshot::new(state)? }
                }
                TypeChange::Left { key } => TypeChange::Left { key },
                TypeChange::Deleted { key } => TypeChange::Deleted { key },
                TypeChange::Gap => TypeChange::Gap,
                TypeChange::CaughtUp => TypeChange::CaughtUp,
            };
            Ok(TypeChangeEvent { position, change })
        })
    }
}
