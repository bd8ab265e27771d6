//! The mark of a directory that has workflows, which keeps programs from opening it that do not know them: an empty column
//! family.

use std::sync::PoisonError;

use super::{Database, Shared};
use crate::store::tables::meta::WORKFLOWS_FAMILY;

impl Shared {
    /// Keeps programs that do not know workflows from opening the directory from here on.
    pub(super) fn mark_workflows(&self) -> Result<(), rocksdb::Error> {
        let is_marked = |it: &Database| it.db.cf_handle(WORKFLOWS_FAMILY).is_some();
        // Every hosting of a partition comes here, and the other lock waits for all who read.
        if self.open().as_ref().is_none_or(is_marked) {
            return Ok(());
        }
        let mut open = self.database.write().unwrap_or_else(PoisonError::into_inner);
        match open.as_mut().filter(|it| !is_marked(it)) {
            Some(it) => it.db.create_cf(WORKFLOWS_FAMILY, &rocksdb::Options::default()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::store::{
        Batch, CommitOutcome, Fence, Opened, Store as _, Write,
        rocks::{RocksStore, history},
        tables::{Table, meta::HasWorkflows},
    };
    use rocksdb::DB;

    /// Opens a directory as programs do that know these tables and no workflows.
    fn opens_without_workflows(path: &Path) -> Result<(), String> {
        let families = Table::ALL.map(|table| {
            let mut options = rocksdb::Options::default();
            options.set_merge_operator_associative(history::OPERATOR, history::fold);
            rocksdb::ColumnFamilyDescriptor::new(table.column_family(), options)
        });
        let opened = DB::open_cf_descriptors(&rocksdb::Options::default(), path, families);
        opened.map(drop).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_directory_with_workflows_is_refused_by_programs_that_do_not_know_them() {
        let directory = tempfile::tempdir().expect("a directory");
        for has_workflows in [false, true, true] {
            let store = RocksStore::open(directory.path()).expect("opens");
            let Opened { incarnation, last_batch, time, .. } = store.opened();
            let batch = Batch {
                fence: Fence { incarnation: *incarnation, lane: 0, number: last_batch + 1 },
                owner: "test".into(),
                time: *time,
                is_clean: true,
                is_buffered: false,
                writes: has_workflows.then(|| Write::put(&(), &HasWorkflows)).into_iter().collect(),
            };
            assert_eq!(store.commit(batch).await, CommitOutcome::Committed);
            store.close().await;
            drop(store);
            match opens_without_workflows(&directory.path().join("rocksdb")) {
                Ok(()) => assert!(!has_workflows, "it is refused"),
                Err(why) => assert!(has_workflows && why.contains("workflows"), "{why}"),
            }
        }
    }
}
