//! The history of a run as entries of the instance: each turn is one, or several where it is large.

use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    Layout, Log,
    collections::{Collection, EntryChanges, Loaded},
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

/// The turns of a run. Unlike another log it keeps nothing in memory that is stored: who goes on has the run itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct History(Log<Piece>);

impl History {
    /// Adds a turn, and returns its bytes.
    pub(super) fn push(&mut self, turn: &Turn) -> Result<usize, String> {
        let bytes = stored::encode(turn).map_err(|error| error.to_string())?;
        let count = bytes.chunks(PIECE_BYTES_MAX).count();
        for (at, piece) in bytes.chunks(PIECE_BYTES_MAX).enumerate() {
            let piece = Piece { is_last: at + 1 == count, bytes: Bytes(piece.into()) };
            self.0.push(turn.at, piece);
        }
        Ok(bytes.len())
    }

    /// How many entries it has.
    pub(super) fn len(&self) -> u64 {
        self.0.len()
    }

    /// The turns in these entries, which begin with one. Gives the turn up where they are not in memory.
    pub(super) fn turns(&self, entries: Range<u64>) -> Result<Vec<Turn>, String> {
        let (mut turns, mut bytes) = (Vec::new(), Vec::new());
        for piece in self.0.read(entries) {
            bytes.extend_from_slice(piece.bytes.0.bytes());
            if piece.is_last {
                let turn = stored::decode(&bytes);
                turns.push(
                    turn.map_err(|error| format!("a turn of the history cannot be read: {error}"))?,
                );
                bytes.clear();
            }
        }
        Ok(turns)
    }

    /// All turns.
    pub(super) fn all(&self) -> Result<Vec<Turn>, String> {
        self.turns(0..self.len())
    }
}

impl Collection for History {
    fn number(&self) -> u32 {
        self.0.number()
    }
    fn length(&self) -> u64 {
        self.0.length()
    }
    fn bytes(&self) -> usize {
        self.0.bytes()
    }
    fn renumber(&mut self, number: u32) -> Result<(), String> {
        self.0.renumber(number)
    }
    fn check(&mut self, checks: Checks, is_proven: bool) -> Result<usize, String> {
        self.0.check(checks, is_proven)
    }
    fn seal(&mut self, changes: &mut EntryChanges, checks: Checks) -> Result<(), String> {
        self.0.seal(changes, checks)
    }
    fn evict(&mut self, _bytes_max: usize) {
        self.0.evict_all();
    }
    fn supply(&mut self, loaded: &Loaded) -> Result<(), String> {
        self.0.supply(loaded)
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
