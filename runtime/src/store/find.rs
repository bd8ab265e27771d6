//! Finding entities by their indexed values: one index is read in order, the others are looked at in its rows.
//!
//! An index answers for every state of its type, or says that it cannot: a partition whose states were written
//! by programs without the index is noted as not indexed until its owner has gone through them
//! ([`NotIndexed`](tables::meta::NotIndexed)).

use stead_entities::{EntityId, index::ValueRange};

use super::{
    Page, ReadError, ReadResult,
    record::Damaged,
    rows::{self, Limit, Rows, take},
    tables::{
        self, Record as _, Table,
        indexes::IndexedValues,
        meta::{DeclaredIndex, KeptChanges},
        states::{StateHead, StateRecord},
    },
};

/// How many states are read at one time where each is read as a whole: at first, and at most.
const WHOLE_AT_FIRST: usize = 4;
const WHOLE_AT_ONCE: usize = 64;

/// The bytes of states that were read as a whole for one page.
#[derive(Debug, Default)]
pub(super) struct WholeStates {
    bytes: usize,
    largest: usize,
}

impl WholeStates {
    /// Notes one that was read.
    pub(super) fn note(&mut self, bytes: usize) {
        (self.bytes, self.largest) = (self.bytes + bytes, self.largest.max(bytes));
    }

    /// Whether a page of so many bytes is full.
    pub(super) fn fill(&self, page: usize) -> bool {
        self.bytes >= page
    }

    /// How many are read next for a page of so many bytes: few at first, and as many as fit by what was met.
    pub(super) fn fitting(&self, page: usize) -> usize {
        let fitting = page.checked_div(self.largest).unwrap_or(WHOLE_AT_FIRST);
        fitting.clamp(1, WHOLE_AT_ONCE)
    }
}

/// The entities that are meant, and the index by which they are read.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    pub(crate) entity_type: String,
    /// The version of the type whose program asks.
    pub(crate) version: u32,
    pub(crate) index: String,
    pub(crate) values: ValueRange,
    /// The values that other indexes must have.
    pub(crate) others: Vec<(String, ValueRange)>,
    /// The beginning of the keys of the entities.
    pub(crate) prefix: String,
    pub(crate) descends: bool,
    /// The place in the index behind which to begin.
    pub(crate) after: Option<Vec<u8>>,
}

/// Whether an index answers for every state of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readiness {
    Complete,
    /// States of so many partitions are not indexed yet.
    Building(usize),
    /// Programs of another version of the type use the index.
    OtherVersion(u32),
    /// No program has declared it.
    Unknown,
}

/// The outcome of a look into an index, or which index cannot answer, and why.
pub(crate) type Found<R> = ReadResult<Result<Hits<R>, (String, Readiness)>>;

/// Some of the entities that were looked up, in the order of the index.
#[derive(Debug)]
pub(crate) struct Hits<R> {
    pub(crate) rows: Vec<R>,
    /// The place behind which there may be more.
    pub(crate) next: Option<Vec<u8>>,
}

impl Lookup {
    /// Whether every row that is read is one that is meant.
    pub(crate) fn is_exact(&self) -> bool {
        self.others.is_empty() && self.prefix.is_empty() && self.values.is_one()
    }

    /// The keys of the rows that are meant.
    fn range(&self) -> (Vec<u8>, Vec<u8>) {
        let prefix = tables::indexes::prefix(&self.entity_type, &self.index);
        let (from, to) = self.values.bytes();
        let (mut from, mut to) = ([&prefix, from].concat(), [&prefix, to].concat());
        if let Some(after) = &self.after {
            let after = [&prefix[..], after].concat();
            match self.descends {
                true => to = to.min(after),
                false => from = from.max(tables::key::behind(&after)),
            }
        }
        (from, to)
    }

    /// Whether the row of an entity has what the other indexes must have.
    fn fits(&self, row: &[u8]) -> ReadResult<bool> {
        if self.others.is_empty() {
            return Ok(true);
        }
        let values = IndexedValues::decode(row)?;
        for (index, range) in &self.others {
            let lacks = || Damaged(format!("a row of an index lacks {index}"));
            if !range.contains(values.get(index).ok_or_else(lacks)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has_prefix(&self, row: &[u8]) -> ReadResult<bool> {
        if self.prefix.is_empty() {
            return Ok(true);
        }
        Ok(tables::indexes::read_key(row)?.id.key().starts_with(&self.prefix))
    }

    /// The entities of the next rows that are meant.
    fn ids(&self, view: &dyn Rows, limit: usize) -> ReadResult<Hits<EntityId>> {
        self.read(view, limit, |key| Ok(tables::indexes::read_key(key)?.id))
    }

    fn read<R>(
        &self,
        view: &dyn Rows,
        limit: usize,
        read: impl Fn(&[u8]) -> ReadResult<R>,
    ) -> ReadResult<Hits<R>> {
        let (from, to) = self.range();
        let limit = Limit { descends: self.descends, ..Limit::page(limit) };
        let table = (Table::Indexes, "a row of an index");
        let (page, last) = take(view, table, (&from, &to), limit, |key, value| {
            let is_meant = self.fits(value)? && self.has_prefix(key)?;
            is_meant.then(|| read(key)).transpose()
        })?;
        let prefix = tables::indexes::prefix(&self.entity_type, &self.index).len();
        let next = last.filter(|_| !page.is_end).map(|key| key[prefix..].to_vec());
        Ok(Hits { rows: page.rows, next })
    }
}

/// Whether every index that is looked at answers for every state; else the first that does not, and why.
fn readiness(rows: &dyn Rows, lookup: &Lookup) -> ReadResult<Result<(), (String, Readiness)>> {
    let others = lookup.others.iter().map(|(index, _)| index);
    for index in std::iter::once(&lookup.index).chain(others) {
        let of = (lookup.entity_type.clone(), index.clone());
        match readiness_of(rows, of, lookup.version)? {
            Readiness::Complete => {}
            other => return Ok(Err((index.clone(), other))),
        }
    }
    Ok(Ok(()))
}

/// Whether an index, by type and name, answers a program of a version of the type.
pub(super) fn readiness_of(
    rows: &dyn Rows,
    key: (String, String),
    version: u32,
) -> ReadResult<Readiness> {
    let declared: Option<DeclaredIndex> = rows::get(rows, &key)?;
    Ok(match declared {
        None => Readiness::Unknown,
        Some(declared) if declared.version != version => Readiness::OtherVersion(declared.version),
        Some(_) => match not_indexed(rows, &key.0, &key.1, version)?.len() {
            0 => Readiness::Complete,
            left => Readiness::Building(left),
        },
    })
}

/// The partitions with states that an index of a version of its type lacks.
pub(crate) fn not_indexed(
    rows: &dyn Rows,
    entity_type: &str,
    index: &str,
    version: u32,
) -> ReadResult<Vec<u16>> {
    let mut found = Vec::new();
    let prefix = tables::meta::not_indexed(entity_type, index, version);
    rows::each_meta(rows, &prefix, &mut |partition, _| {
        found.extend(<[u8; 2]>::try_from(partition).ok().map(u16::from_be_bytes));
        Ok(true)
    })?;
    Ok(found)
}

/// The indexes that programs have declared, by type and name.
pub(crate) fn declared_indexes(
    rows: &dyn Rows,
) -> ReadResult<Vec<(String, String, DeclaredIndex)>> {
    let mut found = Vec::new();
    rows::each_meta(rows, tables::meta::INDEX, &mut |key, value| {
        if let Some((entity_type, index)) =
            str::from_utf8(key).ok().and_then(|key| key.split_once('/'))
        {
            let declared = DeclaredIndex::decode(value)?;
            found.push((entity_type.to_owned(), index.to_owned(), declared));
        }
        Ok(true)
    })?;
    Ok(found)
}

/// The types whose changes are kept.
pub(crate) fn kept_changes(rows: &dyn Rows) -> ReadResult<Vec<(String, KeptChanges)>> {
    let mut found = Vec::new();
    rows::each_meta(rows, tables::meta::CHANGES, &mut |name, value| {
        let name = str::from_utf8(name).map_err(|_| Damaged("not UTF-8".into()))?;
        found.push((name.to_owned(), KeptChanges::decode(value)?));
        Ok(true)
    })?;
    Ok(found)
}

/// Up to `limit` entities, with what lists show of them.
pub(crate) fn heads(
    rows: &dyn Rows,
    lookup: &Lookup,
    limit: usize,
) -> Found<(EntityId, StateHead)> {
    if let Err(not_ready) = readiness(rows, lookup)? {
        return Ok(Err(not_ready));
    }
    let found = lookup.ids(rows, limit)?;
    let mut heads = Vec::with_capacity(found.rows.len());
    let keys: Vec<_> = found.rows.iter().map(|id| tables::states::key(id).to_vec()).collect();
    let mut ids = found.rows.into_iter();
    rows.get_each(Table::States, &keys, true, &mut |value| {
        let Some(id) = ids.next() else { return Ok(()) };
        match value.map(tables::states::read_head).transpose() {
            Ok(head) => heads.extend(head.map(|head| (id, head))),
            Err(error) => {
                tracing::error!(entity = %id, %error, "a state is left out of what was found")
            }
        }
        Ok(())
    })?;
    Ok(Ok(Hits { rows: heads, next: found.next }))
}

/// The same with their states: fewer where those are large.
pub(crate) fn states(
    rows: &dyn Rows,
    lookup: &Lookup,
    limit: usize,
) -> Found<(EntityId, ReadResult<StateRecord>)> {
    if let Err(not_ready) = readiness(rows, lookup)? {
        return Ok(Err(not_ready));
    }
    let (mut states, mut whole) = (Vec::new(), WholeStates::default());
    let mut lookup = lookup.clone();
    loop {
        let part = (limit - states.len()).min(whole.fitting(rows::PAGE_BYTES_MAX));
        let found = lookup.ids(rows, part)?;
        // Fewer than were asked for: as many rows were looked at as one page may.
        let was_cut = found.rows.len() < part;
        let keys: Vec<_> = found.rows.iter().map(|id| tables::states::key(id).to_vec()).collect();
        let mut ids = found.rows.into_iter();
        rows.get_each(Table::States, &keys, false, &mut |value| {
            let Some((id, value)) = ids.next().zip(value) else { return Ok(()) };
            let record = readable(tables::states::read(rows, &id, value))?;
            whole.note(value.len() + record.as_ref().map_or(0, |record| record.state.len()));
            states.push((id, record));
            Ok(())
        })?;
        let is_full = was_cut || states.len() >= limit || whole.fill(rows::PAGE_BYTES_MAX);
        if found.next.is_none() || is_full {
            return Ok(Ok(Hits { rows: states, next: found.next }));
        }
        lookup.after = found.next;
    }
}

/// How many of the next entities are meant, and the place behind which to go on.
pub(crate) fn count(rows: &dyn Rows, lookup: &Lookup) -> Found<()> {
    if let Err(not_ready) = readiness(rows, lookup)? {
        return Ok(Err(not_ready));
    }
    lookup.read(rows, usize::MAX, |_| Ok(())).map(Ok)
}

/// A page of states, each with whether it can be read.
pub(crate) type ReadStates = Page<(EntityId, ReadResult<StateRecord>)>;

/// A page of the states of a type behind a key, each with whether it can be read.
pub(crate) fn all_states(
    rows: &dyn Rows,
    entity_type: &str,
    after: Option<&str>,
    limit: usize,
) -> ReadResult<ReadStates> {
    let (from, to) = tables::states::range(entity_type, "", after);
    Ok(take_states(rows, (&from, &to), Limit::page(limit), |_| true)?.0)
}

/// The states in a range of keys that fit, up to a limit of what is read for them, each with whether it can be read;
/// and the key of the last one that was looked at.
pub(crate) fn take_states(
    rows: &dyn Rows,
    range: (&[u8], &[u8]),
    limit: Limit,
    fits: impl Fn(&StateRecord) -> bool,
) -> ReadResult<(ReadStates, Option<Vec<u8>>)> {
    rows::take_counted(rows, Table::States, range, limit, |key, value| {
        let id = match tables::states::read_key(key) {
            Ok(id) => id,
            Err(error) => {
                tracing::error!(%error, "a state cannot be read and is left as it is");
                return Ok((None, 0));
            }
        };
        let record = match StateRecord::decode(value) {
            Ok(record) if !fits(&record) => return Ok((None, 0)),
            Ok(record) => readable(tables::states::with_body(rows, &id, record))?,
            Err(error) => Err(error.into()),
        };
        let body = record.as_ref().ok().filter(|record| record.apart.body);
        let body = body.map_or(0, |record| record.state.len());
        Ok((Some((id, record)), body))
    })
}

/// One row that was read, or why that is damaged.
///
/// # Errors
/// Where the store could not read it: then nothing is known of the row.
pub(crate) fn readable<R>(read: ReadResult<R>) -> ReadResult<ReadResult<R>> {
    match read {
        Err(error @ ReadError::Unavailable(_)) => Err(error),
        read => Ok(read),
    }
}
