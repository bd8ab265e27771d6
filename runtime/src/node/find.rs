//! Entities found by their indexed values, at whichever node is asked: it reads the store, and shows what is
//! durable.

use std::{fmt, marker::PhantomData, time::Duration};

use serde::Serialize;
use serde_json::{Map, Value};
use stead_entities::{
    Entity, Error, ErrorKind, Index,
    index::{Filter, IndexDescription, ValueRange, text},
};

use super::{
    Inner, Node,
    committed::shown,
    lists::{EntityView, Listed, PAGE_ROWS_MAX, Snapshot, room_for_a_page},
    sealed,
    type_changes::{self, TypeChanges},
};
use crate::{
    partition::reply::StateView,
    store::{
        Haste, ReadResult, Rows, TypedReads as _,
        change_log::Followed,
        find::{self, Found, Hits, Lookup, Readiness},
        tables::meta::{CHANGES_NOTE, Settings},
    },
    types::EntityType,
};

/// How many entities a page has unless the search says otherwise.
const PAGE: usize = 100;
/// When to ask again for an index that is being built.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A search for entities of the type `E` by its indexes, which [`Node::find`] begins. It is read when it is
/// asked for a page, for states, or for their number.
///
/// One index is read in order: that of [`Find::order_by`], else the first with a filter for one value, else the
/// first with a filter. What other filters must have is looked at row by row; at most 10,000 rows for a page,
/// which can be empty though there is a next one.
pub struct Find<E> {
    node: Node,
    entity_type: String,
    filters: Vec<Result<(String, ValueRange), String>>,
    prefix: String,
    order: Option<String>,
    descends: bool,
    after: Option<String>,
    limit: usize,
    of: PhantomData<fn() -> E>,
}

/// An entity that was found, with fields of its state.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SelectedView {
    /// The entity.
    #[serde(flatten)]
    pub entity: EntityView,
    /// The fields that were asked for.
    pub state: Map<String, Value>,
}

impl<E> Clone for Find<E> {
    fn clone(&self) -> Self {
        let Self { node, entity_type, filters, prefix, order, descends, after, limit, of } = self;
        Self {
            node: node.clone(),
            entity_type: entity_type.clone(),
            filters: filters.clone(),
            prefix: prefix.clone(),
            order: order.clone(),
            descends: *descends,
            after: after.clone(),
            limit: *limit,
            of: *of,
        }
    }
}

impl<E> fmt::Debug for Find<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Find").field("entity_type", &self.entity_type).finish_non_exhaustive()
    }
}

impl<E> Find<E> {
    pub(super) fn new(node: &Node, entity_type: impl Into<String>) -> Self {
        Self {
            node: node.clone(),
            entity_type: entity_type.into(),
            filters: Vec::new(),
            prefix: String::new(),
            order: None,
            descends: false,
            after: None,
            limit: PAGE,
            of: PhantomData,
        }
    }

    /// Finds only what fits this text, too: filters as [`stead_entities::index::text`] describes them.
    #[must_use]
    pub fn matching(mut self, filters: &str) -> Self {
        let known = self.node.0.local().known_type(&self.entity_type).ok();
        let read = |(index, value): (&str, &str)| {
            let range = known.and_then(|known| known.index_range(index, value));
            // What the type does not have is said when the search is read.
            Ok((index.to_owned(), range.unwrap_or_else(|| Ok(ValueRange::all()))?))
        };
        let filters = match text::filters(filters) {
            Ok(filters) => filters.into_iter().map(read).collect(),
            Err(why) => vec![Err(why)],
        };
        self.filters.extend(filters);
        self
    }

    /// Finds only entities whose keys begin so, too.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The entities come in the order of this index, by name; equal values by key.
    #[must_use]
    pub fn order_by_name(mut self, index: impl Into<String>) -> Self {
        self.order = Some(index.into());
        self
    }

    /// They come in the opposite order.
    #[must_use]
    pub fn descending(mut self) -> Self {
        self.descends = true;
        self
    }

    /// Begins behind a page: at its `next`. The search must be the same otherwise.
    #[must_use]
    pub fn after(mut self, cursor: impl Into<String>) -> Self {
        self.after = Some(cursor.into());
        self
    }

    /// A page has at most so many entities, and at most 1,000. It is 100 unless set.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// A page of the entities, in the order of the index.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a type that this node does not serve, [`ErrorKind::Invalid`] for an index that
    /// the type does not have, a value that its index cannot have, or the cursor of another search,
    /// [`ErrorKind::Unavailable`] while the index is built, and what can befall any list.
    pub async fn page(&self) -> Result<Listed<EntityView>, Error> {
        let (lookup, limit) = (self.lookup()?, self.limit.clamp(1, PAGE_ROWS_MAX));
        let is_short = lookup.is_exact() && limit <= PAGE;
        let haste = if is_short { Haste::Short } else { Haste::Long };
        let read = move |rows: &dyn Rows, lookup: &Lookup| find::heads(rows, lookup, limit);
        let found = self.read(haste, lookup.clone(), read).await?;
        let rows = found.rows.iter().map(|(id, head)| EntityView::new(id, head)).collect();
        Ok(Listed { rows, next: self.cursor(&lookup, found.next) })
    }

    /// A page of the entities with these fields of their states; fewer where states are large. One whose state
    /// cannot be read is left out, and the log says so.
    ///
    /// # Errors
    /// As [`Find::page`]; [`ErrorKind::Invalid`] for a field that the state does not have.
    pub async fn select(&self, fields: &[&str]) -> Result<Listed<SelectedView>, Error> {
        let known = self.node.0.local().known_type(&self.entity_type)?;
        let has = known.fields();
        if let Some(unknown) = fields.iter().find(|field| !has.iter().any(|of| of == *field)) {
            let message = match has.is_empty() {
                true => format!("the state of {} has no fields to select", self.entity_type),
                false => format!(
                    "the state of {} has no field {unknown:?}; there are: {}",
                    self.entity_type,
                    has.join(", ")
                ),
            };
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let found = self.read_states().await?;
        let selected = |(entity, view): (EntityView, StateView)| {
            let state: Map<String, Value> = serde_json::from_slice(&view.state).ok()?;
            let fields = state.into_iter().filter(|(name, _)| fields.contains(&name.as_str()));
            Some(SelectedView { entity, state: fields.collect() })
        };
        Ok(Listed { rows: found.rows.into_iter().filter_map(selected).collect(), next: found.next })
    }

    /// How many there are. Reads rows of the index, 10,000 in one view, and no state. While values change, an entity
    /// that moves from one view to another counts twice, or not at all; so it is with a search of several pages.
    ///
    /// # Errors
    /// As [`Find::page`].
    pub async fn count(&self) -> Result<u64, Error> {
        let (mut lookup, mut count) = (self.lookup()?, 0);
        loop {
            let found = self.read(Haste::Long, lookup.clone(), find::count).await?;
            count += found.rows.len() as u64;
            match found.next {
                Some(next) => lookup.after = Some(next),
                None => return Ok(count),
            }
        }
    }

    /// The changes of the entities that are searched for, as a stream, for types that keep them
    /// (`#[entity(changes = ...)]`): all that are there, then each that changes, leaves what is searched for, or is
    /// deleted. `after` is the position of the last event that was seen. Order and limit have no meaning here.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a type that keeps no changes, an index that it does not have and a value that its
    /// index cannot have, [`ErrorKind::NotFound`] for a type that this node does not serve,
    /// [`ErrorKind::Unavailable`] while an index is built, or while programs run that do not keep the changes.
    pub async fn change_views(&self, after: Option<&str>) -> Result<TypeChanges<StateView>, Error> {
        let known = self.node.0.local().known_type(&self.entity_type)?;
        let followed = Followed {
            entity_type: known.name().to_owned(),
            version: known.version(),
            filters: self.ranges(known)?,
            prefix: self.prefix.clone(),
        };
        type_changes::begin(&self.node, followed, after).await
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// A page of the entities with their states; fewer where states are large.
    pub(crate) async fn read_states(&self) -> Result<Listed<(EntityView, StateView)>, Error> {
        let (lookup, limit) = (self.lookup()?, self.limit.clamp(1, PAGE_ROWS_MAX));
        let read = move |rows: &dyn Rows, lookup: &Lookup| find::states(rows, lookup, limit);
        let found = self.read(Haste::Long, lookup.clone(), read).await?;
        let known = self.node.0.local().known_type(&self.entity_type)?;
        let now = self.node.0.host.clock().now();
        let mut rows = Vec::with_capacity(found.rows.len());
        for (id, record) in found.rows {
            let entity = record.as_ref().map(|record| EntityView::new(&id, &record.head)).ok();
            match shown(known, &id, record.map(Some), now) {
                Ok(view) => rows.extend(entity.zip(view)),
                Err(error) => tracing::error!(%error, "an entity is left out of what was found"),
            }
        }
        Ok(Listed { rows, next: self.cursor(&lookup, found.next) })
    }

    /// Reads one view of the store.
    async fn read<R: Send + 'static>(
        &self,
        haste: Haste,
        lookup: Lookup,
        read: impl FnOnce(&dyn Rows, &Lookup) -> Found<R> + Send + 'static,
    ) -> Result<Hits<R>, Error> {
        let node = &self.node.0;
        let _room = room_for_a_page(node)?;
        let of = lookup.clone();
        let found: ReadResult<_> = node.host.store().read(haste, move |rows| read(rows, &of)).await;
        let of = (&*lookup.entity_type, lookup.version);
        found?.map_err(|(index, readiness)| not_ready(node, of, &index, readiness))
    }

    /// The values that each index must have.
    fn ranges(&self, known: &dyn EntityType) -> Result<Vec<(String, ValueRange)>, Error> {
        let mut filters: Vec<(String, ValueRange)> = Vec::new();
        for filter in self.filters.iter().cloned() {
            let (index, values) = filter.map_err(|why| Error::new(ErrorKind::Invalid, why))?;
            // One index has one range: what all of its filters mean.
            match filters.iter_mut().find(|(of, _)| *of == index) {
                Some((_, known)) => *known = known.and(&values),
                None => filters.push((index, values)),
            }
        }
        let has = known.indexes();
        let named = filters.iter().map(|(index, _)| index).chain(&self.order);
        if let Some(unknown) =
            named.into_iter().find(|name| !has.iter().any(|of| of.name == **name))
        {
            let why = format!("{} has no index {unknown:?}; {}", known.name(), there_are(&has));
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        Ok(filters)
    }

    fn lookup(&self) -> Result<Lookup, Error> {
        let known = self.node.0.local().known_type(&self.entity_type)?;
        let mut filters = self.ranges(known)?;
        let chosen = match &self.order {
            Some(order) => filters.iter().position(|(index, _)| index == order),
            None => Some(filters.iter().position(|(_, values)| values.is_one()).unwrap_or(0)),
        };
        let chosen =
            chosen.filter(|place| *place < filters.len()).map(|place| filters.remove(place));
        let (index, values) = match (chosen, &self.order) {
            (Some(chosen), _) => chosen,
            (None, Some(order)) => (order.clone(), ValueRange::all()),
            (None, None) => {
                let has = there_are(&known.indexes());
                let why = format!("a search needs a filter or an order by an index; {has}");
                return Err(Error::new(ErrorKind::Invalid, why));
            }
        };
        let mut lookup = Lookup {
            entity_type: known.name().to_owned(),
            version: known.version(),
            index,
            values,
            others: filters,
            prefix: self.prefix.clone(),
            descends: self.descends,
            after: None,
        };
        lookup.after = self.after.as_ref().map(|cursor| self.place(&lookup, cursor)).transpose()?;
        Ok(lookup)
    }

    /// The cursor that means a place of a search in this store.
    fn cursor(&self, lookup: &Lookup, place: Option<Vec<u8>>) -> Option<String> {
        Some(sealed::write(self.settings(), parts(lookup), &place?))
    }

    fn place(&self, lookup: &Lookup, cursor: &str) -> Result<Vec<u8>, Error> {
        sealed::read(self.settings(), parts(lookup), cursor).ok_or_else(|| {
            let why = "`after` is the `next` of a page of the same search in this store: the same type, \
                       filters and order; leave it out to begin anew";
            Error::new(ErrorKind::Invalid, why)
        })
    }

    fn settings(&self) -> &Settings {
        &self.node.0.host.store().opened().settings
    }
}

/// The search that a cursor is of.
fn parts(lookup: &Lookup) -> sealed::Parts<'_> {
    let Lookup { entity_type, index, values, others, prefix, descends, .. } = lookup;
    let (from, to) = values.bytes();
    let order: &[u8] = if *descends { b"descends" } else { b"ascends" };
    let mut parts: sealed::Parts<'_> = vec![entity_type.as_bytes(), index.as_bytes(), from, to];
    parts.extend([prefix.as_bytes(), order]);
    sealed::of_filters(&mut parts, others);
    parts
}

impl<E: Entity> Find<E> {
    /// The changes of the entities that are searched for, as a stream: [`Find::change_views`] with states of the type.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use serde::{Deserialize, Serialize};
    /// # use stead::{JsonSchema, Layout, Node, TypeChange, entity, store::memory::MemoryDisk};
    /// # #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    /// # pub struct Order { is_open: bool }
    /// #[entity(name = "order", index(is_open: bool), changes = Duration::from_secs(86_400))]
    /// impl Order {
    ///     pub fn open(&mut self) { self.is_open = true; }
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = MemoryDisk::new().open()?;
    /// # let node = Node::builder().store(store).entity::<Order>().start().await?;
    /// node.entity::<Order>("one").open().await?;
    /// let mut changes = node.find::<Order>().filter(Order::by_is_open().is(true)).changes(None).await?;
    /// let Some(Ok(event)) = changes.next().await else { return Ok(()) };
    /// assert!(matches!(event.change, TypeChange::State { key, .. } if key == "one"));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Find::change_views`].
    pub async fn changes(&self, after: Option<&str>) -> Result<TypeChanges<Snapshot<E>>, Error> {
        Ok(self.change_views(after).await?.typed())
    }

    /// Finds only what fits this filter, too.
    #[must_use]
    pub fn filter(mut self, filter: Filter<E>) -> Self {
        self.filters.push(filter.into_parts());
        self
    }

    /// The entities come in the order of this index; equal values by key.
    #[must_use]
    pub fn order_by<V>(mut self, index: Index<E, V>) -> Self {
        self.order = Some(index.name().to_owned());
        self
    }

    /// A page of the entities with their states, by key; fewer where states are large. One whose state cannot be
    /// read is left out, and the log says so.
    ///
    /// # Errors
    /// As [`Find::page`].
    pub async fn states(&self) -> Result<Listed<(String, Snapshot<E>)>, Error> {
        let found = self.read_states().await?;
        let typed =
            |(entity, view): (EntityView, StateView)| Ok((entity.key, Snapshot::new(view)?));
        let rows = found.rows.into_iter().map(typed).collect::<Result<_, Error>>()?;
        Ok(Listed { rows, next: found.next })
    }
}

fn there_are(indexes: &[IndexDescription]) -> String {
    match indexes.is_empty() {
        true => "it has none: `#[entity(index(field: Type))]` declares them".to_owned(),
        false => {
            let names = indexes.iter().map(|of| format!("{} ({})", of.name, of.values));
            format!("there are: {}", names.collect::<Vec<_>>().join(", "))
        }
    }
}

/// Why an index, or the log of changes, cannot answer a program of a version of its type.
pub(super) fn not_ready(
    node: &Inner,
    (entity_type, version): (&str, u32),
    index: &str,
    readiness: Readiness,
) -> Error {
    let all = node.host.store().opened().settings.partitions;
    let what = match index {
        CHANGES_NOTE => format!("the changes of {entity_type}"),
        index => format!("the index {index} of {entity_type}"),
    };
    let why = match readiness {
        Readiness::Complete => "it answers".to_owned(),
        Readiness::Building(left) if index == CHANGES_NOTE => {
            format!("in {left} of {all} partitions a program that does not keep them has written")
        }
        Readiness::Building(left) => format!(
            "it is being built, and states of {left} of {all} partitions are not indexed yet"
        ),
        Readiness::OtherVersion(other) => format!(
            "it belongs to version {other} of the type, and this node runs a program of version {version}"
        ),
        Readiness::Unknown => "it is not declared in the store".to_owned(),
    };
    let message = format!("{what} cannot answer: {why}");
    let error = Error::new(ErrorKind::Unavailable, message);
    error.with_retry_after(RETRY_AFTER)
}
