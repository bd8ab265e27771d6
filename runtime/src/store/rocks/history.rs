//! The chain of batches: a proof that what was opened is one unbroken history.
//!
//! Each batch adds its link to the row `history`, by a merge and not by a put: so what is found there
//! was folded from the links of those batches, and only those, that RocksDB still has, in their order.
//! A log that lost batches in its middle, or files of another history among its own (a backup that was
//! copied over a directory in use), leave links that do not follow one another. That is never
//! forgotten again, however often the row is folded.

use std::fmt;

use rocksdb::MergeOperands;
use serde::{Deserialize, Serialize};

use crate::store::record;

/// The name under which RocksDB knows how links are folded.
pub(super) const OPERATOR: &std::ffi::CStr = c"stead.history";

/// One batch, or several that follow one another. The incarnation of a process is named by a random
/// number, so that two histories of one store are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum History {
    /// Batches without a gap.
    Whole(Span),
    /// Batches that do not follow one another: the last of the first part, and the first of the next.
    Broken(u64, u64),
}

/// Batches that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Span {
    /// The process that wrote the batch before the first, and the number of the first.
    pub(super) follows: u64,
    pub(super) first: u64,
    /// The number of the last, and the process that wrote it.
    pub(super) last: u64,
    pub(super) writer: u64,
}

impl History {
    /// The link of one batch.
    pub(super) fn link(number: u64, follows: u64, writer: u64) -> Self {
        Self::Whole(Span { follows, first: number, last: number, writer })
    }

    fn then(self, next: Self) -> Self {
        match (self, next) {
            (Self::Whole(one), Self::Whole(next))
                if next.first == one.last + 1 && next.follows == one.writer =>
            {
                Self::Whole(Span { last: next.last, writer: next.writer, ..one })
            }
            (Self::Whole(one), Self::Whole(next)) => Self::Broken(one.last, next.first),
            (broken @ Self::Broken(..), _) | (_, broken @ Self::Broken(..)) => broken,
        }
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(span) => write!(f, "batches {} to {}", span.first, span.last),
            Self::Broken(last, next) if *next == last + 1 => {
                write!(f, "batch {next} is of another history than batch {last} before it")
            }
            Self::Broken(last, next) => write!(f, "batch {last} is followed by batch {next}"),
        }
    }
}

/// Folds links, oldest first.
pub(super) fn fold(_key: &[u8], known: Option<&[u8]>, links: &MergeOperands) -> Option<Vec<u8>> {
    fold_all(known.into_iter().chain(links))
}

/// Folds links. One that cannot be read is an error of the database, which refuses to go on.
fn fold_all<'b>(links: impl Iterator<Item = &'b [u8]>) -> Option<Vec<u8>> {
    let mut whole: Option<History> = None;
    for link in links {
        let link: History = record::decode(link).ok()?;
        whole = Some(whole.map_or(link, |whole| whole.then(link)));
    }
    whole.map(|whole| record::encode(&whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(links: &[History]) -> History {
        let links: Vec<_> = links.iter().map(record::encode).collect();
        let folded = fold_all(links.iter().map(Vec::as_slice)).expect("readable");
        record::decode(&folded).expect("readable")
    }

    #[test]
    fn links_that_follow_one_another_are_whole_in_any_grouping() {
        let link = |number, follows, writer| History::link(number, follows, writer);
        let all = [link(1, 0, 7), link(2, 7, 7), link(3, 7, 9), link(4, 9, 9)];
        let whole = History::Whole(Span { follows: 0, first: 1, last: 4, writer: 9 });
        assert_eq!(folded(&all), whole);
        assert_eq!(folded(&[folded(&all[..2]), folded(&all[2..])]), whole);
        assert_eq!(folded(&[all[0], folded(&all[1..])]), whole);
    }

    #[test]
    fn a_gap_or_another_history_is_broken_for_good() {
        let link = |number, follows, writer| History::link(number, follows, writer);
        let gap = [link(1, 0, 7), link(3, 7, 7), link(4, 7, 7)];
        assert_eq!(folded(&gap), History::Broken(1, 3));
        assert_eq!(folded(&[folded(&gap[..2]), gap[2]]), History::Broken(1, 3));
        assert_eq!(folded(&[link(1, 0, 7), link(2, 8, 8)]), History::Broken(1, 2));
    }
}
