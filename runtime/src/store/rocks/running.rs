//! Marks of what runs, in a file that outlives the process: one slot for each partition.
//!
//! After an unclean stop the next opening finds the tokens of those marked operations whose turns were
//! under way when the process ended, and of no others. A mark is one write to the page cache: it
//! survives whatever ends the process. It is not flushed: where the machine itself stops, no operation
//! is to blame.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

use crate::store::RunningMarks;

const SLOT: usize = size_of::<u128>();

/// The file `RUNNING` of a directory.
#[derive(Debug)]
pub(super) struct Running(File);

impl Running {
    /// Opens the file, with the tokens of what ran when it was last used.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Vec<u128>)> {
        let path = directory.join("RUNNING");
        let mut file =
            File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (slots, _torn) = bytes.as_chunks::<SLOT>();
        let tokens = slots.iter().map(|slot| u128::from_be_bytes(*slot));
        let tokens = tokens.filter(|token| *token != 0).collect();
        Ok((Self(file), tokens))
    }

    /// Takes every mark away.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.0.set_len(0)
    }
}

impl RunningMarks for Running {
    fn mark(&self, partition: u16, token: Option<u128>) {
        let place = u64::from(partition) * SLOT as u64;
        let marked = self.0.write_all_at(&token.unwrap_or(0).to_be_bytes(), place);
        if let Err(error) = marked {
            tracing::warn!(%error, "an operation cannot be marked as running");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_marked_when_the_file_is_left_is_found() {
        let directory = tempfile::tempdir().expect("a directory");
        let (running, found) = Running::open(directory.path()).expect("opens");
        assert!(found.is_empty());
        running.mark(3, Some(7));
        running.mark(9, Some(8));
        running.mark(3, None);
        drop(running);
        let (running, found) = Running::open(directory.path()).expect("opens");
        assert_eq!(found, [8]);
        running.clear().expect("emptied");
        let (_, found) = Running::open(directory.path()).expect("opens");
        assert!(found.is_empty(), "it is told once");
    }
}
