//! The history of a run as entries of the instance: each turn is one, or several where it is large.

use std::{ops::Range, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    Layout, Log, Timestamp,
    collections::{Collection, EntryChanges, Loaded, Wanted, log_key},
    state::LayoutText,
    stored::{self, Checks},
    workflow::history::{Payload, Turn},
};

/// The most bytes of a turn in one entry.
const PIECE_BYTES_MAX: usize = 512 << 10;

/// A part of a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Layout)]
struct Piece {
    /// Whether the turn ends with it.
    is_last: bool,
    bytes: Bytes,
}

/// Bytes that are stored at one time, and not one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bytes(Payload);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.collect_seq(self.0.bytes()),
            false => self.0.serialize(serializer),
        }
    }
}
impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.is_human_readable() {
            true => Vec::<u8>::deserialize(deserializer).map(|bytes| Self(bytes.into())),
            false => Payload::deserialize(deserializer).map(Self),
        }
    }
}
impl Layout for Bytes {
    fn describe(layout: &mut LayoutText) {
        Payload::describe(layout);
    }
}

/// An entry of the log, as it is stored.
#[derive(Deserialize)]
struct StoredPiece<'a> {
    _at: Timestamp,
    is_last: bool,
    #[serde(borrow)]
    bytes: &'a [u8],
}

/// The turns of a run. Unlike another log it keeps nothing in memory that is stored: who goes on has the run itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct History {
    log: Log<Piece>,
    /// The oldest entries, as they were read for a turn: a long history is read at one time, and only once.
    read: Option<Arc<Read>>,
}

/// Entries that were read, from the oldest one on.
#[derive(Debug, Clone, Default, PartialEq)]
struct Read {
    bytes: Vec<u8>,
    /// Up to where each of them goes, and whether a turn ends with it.
    ends: Vec<(usize, bool)>,
}

impl Read {
    /// Those of these entries that were read: whether a turn ends with each, and its bytes.
    fn pieces(&self, entries: Range<usize>) -> impl Iterator<Item = (bool, &[u8])> {
        let mut from = entries.start.checked_sub(1).map_or(0, |before| self.ends[before].0);
        self.ends[entries].iter().map(move |(to, is_last)| {
            let bytes = &self.bytes[from..*to];
            from = *to;
            (*is_last, bytes)
        })
    }
}

impl History {
    /// Adds a turn, and returns its bytes.
    pub(super) fn push(&mut self, turn: &Turn) -> Result<usize, String> {
        let bytes = stored::encode(turn).map_err(|error| error.to_string())?;
        let count = bytes.chunks(PIECE_BYTES_MAX).count();
        for (at, piece) in bytes.chunks(PIECE_BYTES_MAX).enumerate() {
            let piece = Piece { is_last: at + 1 == count, bytes: Bytes(piece.into()) };
            self.log.push(turn.at, piece);
        }
        Ok(bytes.len())
    }

    /// How many entries it has.
    pub(super) fn len(&self) -> u64 {
        self.log.len()
    }

    /// Up to where the turn goes that ends at an entry or behind it. Gives the turn up where it is not in memory.
    pub(super) fn end_of_turn(&self, mut end: u64) -> u64 {
        while (1..self.len()).contains(&end) && !self.is_last(end - 1) {
            end += 1;
        }
        end
    }

    /// Whether a turn ends with an entry.
    fn is_last(&self, entry: u64) -> bool {
        let read = self.read.as_deref().map_or(&[][..], |read| &read.ends);
        match usize::try_from(entry).ok().and_then(|entry| read.get(entry)) {
            Some((_, is_last)) => *is_last,
            None => self.log.read(entry..entry + 1).next().is_none_or(|piece| piece.is_last),
        }
    }

    /// The turns in these entries, which begin with one. Gives the turn up where they are not in memory.
    pub(super) fn turns(&self, entries: Range<u64>) -> Result<Vec<Turn>, String> {
        let mut turns = Vec::new();
        self.each_turn(entries, std::convert::identity, |turn| {
            turns.push(turn);
            Ok(())
        })?;
        Ok(turns)
    }

    /// Reads the turns in these entries one by one, which begin with one. Gives the turn up where they are not in memory.
    fn each_turn<E>(
        &self,
        entries: Range<u64>,
        wrong: impl Fn(String) -> E,
        mut each: impl FnMut(Turn) -> Result<(), E>,
    ) -> Result<(), E> {
        let read = self.read.as_deref();
        let count = read.map_or(0, |read| read.ends.len());
        let index = |entry: u64| usize::try_from(entry).unwrap_or(usize::MAX).min(count);
        let range = index(entries.start)..index(entries.end);
        let rest = entries.start.max(count as u64)..entries.end;
        // What is not there is asked for first: nothing is decoded in vain.
        let rest: Vec<_> = self.log.read(rest).collect();
        let rest = rest.into_iter().map(|piece| (piece.is_last, piece.bytes.0.bytes()));
        let mut first_pieces = Vec::new();
        for (is_last, bytes) in
            read.into_iter().flat_map(|read| read.pieces(range.clone())).chain(rest)
        {
            if !is_last {
                first_pieces.extend_from_slice(bytes);
                continue;
            }
            let turn = match first_pieces.is_empty() {
                true => stored::decode(bytes),
                false => stored::decode(&[&*std::mem::take(&mut first_pieces), bytes].concat()),
            };
            let unreadable =
                |error| wrong(format!("a turn of the history cannot be read: {error}"));
            each(turn.map_err(unreadable)?)?;
        }
        Ok(())
    }

    /// All turns.
    pub(super) fn all(&self) -> Result<Vec<Turn>, String> {
        self.turns(0..self.len())
    }

    /// Reads all turns one by one: those of a long history take much memory together.
    pub(super) fn each<E>(
        &self,
        wrong: impl Fn(String) -> E,
        each: impl FnMut(Turn) -> Result<(), E>,
    ) -> Result<(), E> {
        self.each_turn(0..self.len(), wrong, each)
    }
}

/// Stored as the log of its entries.
impl Serialize for History {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.log.serialize(serializer)
    }
}
impl<'de> Deserialize<'de> for History {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { log: Log::deserialize(deserializer)?, read: None })
    }
}

impl Collection for History {
    fn number(&self) -> u32 {
        self.log.number()
    }
    fn length(&self) -> u64 {
        self.log.length()
    }
    fn bytes(&self) -> usize {
        self.log.bytes()
            + self.read.as_ref().map_or(0, |read| read.bytes.capacity() + size_of_val(&*read.ends))
    }
    fn renumber(&mut self, number: u32) -> Result<(), String> {
        self.log.renumber(number)
    }
    fn check(&mut self, checks: Checks, is_proven: bool) -> Result<usize, String> {
        self.log.check(checks, is_proven)
    }
    fn seal(&mut self, changes: &mut EntryChanges, checks: Checks) -> Result<(), String> {
        self.log.seal(changes, checks)
    }
    fn evict(&mut self, _bytes_max: usize) {
        self.read = None;
        self.log.evict_all();
    }
    fn supply(&mut self, loaded: &Loaded) -> Result<(), String> {
        let read = self.read.get_or_insert_default();
        let next = log_key(read.ends.len() as u64);
        if !matches!(&loaded.wanted, Wanted::Range { from, .. } if *from == next) {
            return self.log.supply(loaded);
        }
        if loaded.rows.is_empty() {
            return Err(format!(
                "the history has {} entries, not {}",
                read.ends.len(),
                self.log.len()
            ));
        }
        let read = Arc::make_mut(read);
        read.bytes.reserve(loaded.rows.iter().map(|(_, stored)| stored.len()).sum());
        read.ends.reserve(loaded.rows.len());
        for (key, stored) in &loaded.rows {
            if **key != (read.ends.len() as u64).to_be_bytes() {
                return Err(format!("the history lacks its entry {}", read.ends.len()));
            }
            let piece: StoredPiece<'_> =
                stored::decode_borrowed(stored).map_err(|error| error.to_string())?;
            read.bytes.extend_from_slice(piece.bytes);
            read.ends.push((read.bytes.len(), piece.is_last));
        }
        Ok(())
    }
}

impl Layout for History {
    fn describe(layout: &mut LayoutText) {
        layout.part::<Log<Piece>>("");
    }
    fn each_collection(&mut self, each: &mut dyn FnMut(&mut dyn Collection)) {
        each(self);
    }
}
