//! The obligations of every table, checked by its own samples.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

use super::{Batch, CommitOutcome, Haste, Store, Write, Writer, row};
use crate::store::{
    TypedReads as _,
    batch::each_change,
    rows::Limit,
    tables::{Table, key},
};

/// A row as it is stored.
type Row = (Vec<u8>, Vec<u8>);

/// Every table keeps its rows: in order, as they were written last, through another opening, until they
/// end; and a batch that is refused leaves them alone.
pub(super) async fn every_table_keeps_its_rows(open: &impl AsyncFn() -> Arc<dyn Store>) {
    for table in Table::ALL {
        let samples = (table.description().samples)();
        let put: Vec<_> = samples.iter().map(|sample| sample.put.clone()).collect();
        let put_again: Vec<_> = samples.iter().map(|sample| sample.put_again.clone()).collect();
        let end: Vec<_> = samples.iter().map(|sample| sample.end.clone()).collect();
        let mut writer = Writer::new(open().await);
        let (first, second) = (written(&writer, table, &put), written(&writer, table, &put_again));
        assert!(first.is_sorted() && first.len() > 1, "{table:?}: the samples are some, in order");
        check_every_row(table, &first);
        check_every_row(table, &second);
        let range = (first[0].0.clone(), key::behind(&first[first.len() - 1].0));

        writer.write(put).await;
        assert_eq!(stored(&writer, table, &range).await, first, "{table:?}: what was written");
        let refused = [vec![end[0].clone()], put_again.clone(), vec![Write::Consume(row("", 9).0)]];
        let refused = writer.store.commit(writer.batch(refused.concat())).await;
        assert!(matches!(refused, CommitOutcome::Unavailable(_)), "{table:?}: {refused:?}");
        assert_eq!(stored(&writer, table, &range).await, first, "{table:?}: a refused batch");
        writer.write(put_again).await;
        assert_eq!(stored(&writer, table, &range).await, second, "{table:?}: written once more");
        for (key, value) in &second {
            let (key, read) = (key.clone(), writer.store.clone());
            let found = read.read(Haste::Short, move |rows| rows.get(table, &key)).await;
            assert_eq!(found.expect("readable").as_ref(), Some(value), "{table:?}: one row");
        }
        writer.store.close().await;

        let mut writer = Writer::new(open().await);
        assert_eq!(stored(&writer, table, &range).await, second, "{table:?}: opened again");
        writer.write(vec![end[0].clone()]).await;
        assert_eq!(stored(&writer, table, &range).await, second[1..], "{table:?}: one has ended");
        writer.write(end[1..].to_vec()).await;
        assert_eq!(stored(&writer, table, &range).await, [], "{table:?}: all have ended");
        writer.store.close().await;
    }
}

/// The rows of a table that these writes make.
fn written(writer: &Writer, table: Table, writes: &[Write]) -> Vec<Row> {
    let batch: Batch = writer.batch(writes.to_vec());
    let mut found = Vec::new();
    let gathered = each_change(&batch, |change| {
        // The lane has a row in every batch.
        let is_meant = change.table == table && change.key != crate::store::tables::meta::LANE;
        let value = change.value.filter(|_| is_meant);
        found.extend(value.map(|value| (change.key.to_vec(), value.to_vec())));
        Ok::<_, Infallible>(())
    });
    match gathered {
        Ok(()) => found,
        Err(never) => match never {},
    }
}

/// The rows of a table in a range.
async fn stored(writer: &Writer, table: Table, range: &(Vec<u8>, Vec<u8>)) -> Vec<Row> {
    let (from, to) = range.clone();
    let reading = writer.store.read(Haste::Long, move |rows| {
        let mut found = Vec::new();
        rows.scan(table, &from, &to, Limit::page(9), &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            Ok(true)
        })?;
        Ok(found)
    });
    reading.await.expect("readable")
}

/// Has the check of each table look at its rows; returns how many there are.
///
/// # Panics
/// Where a row cannot be understood, or the store cannot be read.
pub async fn check_rows(store: &dyn Store) -> BTreeMap<Table, usize> {
    let mut counted = BTreeMap::new();
    for table in Table::ALL {
        let reading = store.read(Haste::Long, move |rows| {
            let mut count = 0;
            rows.scan(table, &[], &[u8::MAX; 32], Limit::page(usize::MAX), &mut |key, value| {
                (table.description().check)(key, value)?;
                count += 1;
                Ok(true)
            })?;
            Ok(count)
        });
        counted.insert(table, reading.await.unwrap_or_else(|error| panic!("{table:?}: {error}")));
    }
    counted
}

/// The check of a table takes its rows, and nothing less.
fn check_every_row(table: Table, rows: &[Row]) {
    let check = table.description().check;
    for (key, value) in rows {
        assert_eq!(check(key, value), Ok(()), "{table:?}: a row is understood");
        assert!(check(&[], value).is_err(), "{table:?}: no key");
        if table != Table::Due {
            for length in 0..value.len() {
                let cut = check(key, &value[..length]);
                assert!(cut.is_err(), "{table:?}: {length} of {} bytes", value.len());
            }
        }
    }
}
