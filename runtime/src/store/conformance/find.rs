//! Rows of indexes are found in order, from both ends, page by page, with what their states say.

use std::{ops::Bound, sync::Arc};

use stead_entities::{Index, index::ValueRange};

use super::{EntityId, Haste, Store, Write, Writer, state};
use crate::store::{
    TypedReads as _,
    find::{self, Found, Hits, Lookup, Readiness},
    rows::Rows,
    tables::{
        indexes::IndexedValues,
        meta::{DeclaredIndex, NotIndexed},
        states::{Ended, StateRecord},
    },
};

fn id(number: i64) -> EntityId {
    EntityId::new("found", &format!("k{number:03}")).expect("a valid id")
}

/// The values that are equal to, or at least, a number.
fn values(number: i64, is_one: bool) -> ValueRange {
    let index = Index::<(), i64>::named("by");
    let filter = match is_one {
        true => index.is(number),
        false => index.within((Bound::Included(number), Bound::Unbounded)),
    };
    filter.into_parts().expect("numbers").1
}

fn indexed(by: i64, to: i64) -> IndexedValues {
    let value = |number: i64| stead_entities::index::encode(&number).expect("a number");
    IndexedValues::new([("by", value(by)), ("to", value(to))])
}

fn lookup(values: ValueRange, descends: bool) -> Lookup {
    Lookup {
        entity_type: "found".into(),
        version: 1,
        index: "by".into(),
        values,
        others: Vec::new(),
        prefix: String::new(),
        descends,
        after: None,
    }
}

async fn read<R: Send + 'static>(
    store: &dyn Store,
    read: impl FnOnce(&dyn Rows) -> Found<R> + Send + 'static,
) -> Hits<R> {
    store.read(Haste::Long, read).await.expect("readable").expect("complete")
}

/// The keys that are found, three at a time.
async fn keys(store: &dyn Store, mut lookup: Lookup) -> Vec<String> {
    let mut found = Vec::new();
    loop {
        let of = lookup.clone();
        let page = read(store, move |rows| find::heads(rows, &of, 3)).await;
        found.extend(page.rows.into_iter().map(|(id, _)| id.key().to_owned()));
        match page.next {
            Some(next) => lookup.after = Some(next),
            None => return found,
        }
    }
}

/// Every index is read from both ends, in one view with the states, and says where it is not complete.
pub(super) async fn entities_are_found_in_order_and_back(open: &impl AsyncFn() -> Arc<dyn Store>) {
    let mut writer = Writer::new(open().await);
    let unknown = lookup(ValueRange::all(), false);
    let asked = writer.store.read(Haste::Long, move |rows| find::count(rows, &unknown)).await;
    assert_eq!(asked.expect("readable").expect_err("unknown").1, Readiness::Unknown);
    let name = ("found".to_owned(), "by".to_owned());
    let other = ("found".to_owned(), "to".to_owned());
    let declared = DeclaredIndex { version: 1, values: "integer".into() };
    let note = (name.0.clone(), name.1.clone(), 1, 7);
    let put = |number: i64, by: i64| {
        let record = StateRecord { indexed: indexed(by, number % 2), ..state(1) };
        Write::PutState(id(number), record)
    };
    let mut writes = vec![Write::put(&name, &declared), Write::put(&other, &declared)];
    writes.push(Write::put(&note, &NotIndexed));
    // Twenty entities with the values -2 to 2.
    writes.extend((0..20).map(|number| put(number, number % 5 - 2)));
    writer.write(writes).await;
    let all = lookup(ValueRange::all(), false);
    let of = all.clone();
    let asked = writer.store.read(Haste::Long, move |rows| find::count(rows, &of)).await;
    assert_eq!(asked.expect("readable").expect_err("noted").1, Readiness::Building(1));
    writer.write(vec![Write::delete::<NotIndexed>(&note)]).await;
    // An index that only filters what another one finds has to be complete, too.
    let note = (other.0.clone(), other.1.clone(), 1, 3);
    writer.write(vec![Write::put(&note, &NotIndexed)]).await;
    let of = Lookup { others: vec![("to".into(), values(1, true))], ..all.clone() };
    let asked = writer.store.read(Haste::Long, move |rows| find::heads(rows, &of, 9)).await;
    let not_ready = asked.expect("readable").expect_err("noted");
    assert_eq!(not_ready, ("to".to_owned(), Readiness::Building(1)));
    writer.write(vec![Write::delete::<NotIndexed>(&note)]).await;

    let store = &*writer.store;
    let mut expected: Vec<(i64, i64)> = (0..20).map(|number| (number % 5 - 2, number)).collect();
    expected.sort_unstable();
    let names = |rows: &[(i64, i64)]| -> Vec<String> {
        rows.iter().map(|(_, number)| id(*number).key().to_owned()).collect()
    };
    assert_eq!(keys(store, all.clone()).await, names(&expected), "in order");
    let back: Vec<_> = expected.iter().rev().copied().collect();
    assert_eq!(keys(store, lookup(ValueRange::all(), true)).await, names(&back), "backwards");
    let some: Vec<_> = expected.iter().filter(|(by, _)| *by >= 1).copied().collect();
    assert_eq!(keys(store, lookup(values(1, false), false)).await, names(&some), "a range");
    let some: Vec<_> = back.iter().filter(|(by, _)| *by == -2).copied().collect();
    assert_eq!(keys(store, lookup(values(-2, true), true)).await, names(&some), "one value");
    let odd = Lookup { others: vec![("to".into(), values(1, true))], ..all.clone() };
    let some: Vec<_> = expected.iter().filter(|(_, number)| number % 2 == 1).copied().collect();
    assert_eq!(keys(store, odd.clone()).await, names(&some), "by another index too");
    let counted = read(store, move |rows| find::count(rows, &odd)).await;
    assert_eq!(counted.rows.len(), 10);
    let of = Lookup { prefix: "k01".into(), ..all.clone() };
    let states = read(store, move |rows| find::states(rows, &of, 99)).await;
    assert_eq!(states.rows.len(), 10);
    for (id, record) in states.rows {
        let number: i64 = id.key()[1..].parse().expect("a number");
        assert_eq!(record.expect("readable").indexed, indexed(number % 5 - 2, number % 2));
    }

    // A value that changes, and an entity that ends, take their rows along.
    let moved = StateRecord { indexed: indexed(9, 0), replaces: indexed(-2, 0), ..state(2) };
    let ended = Write::DeleteState(id(5), Ended { indexed: indexed(-2, 1), entries: None });
    writer.write(vec![Write::PutState(id(0), moved), ended]).await;
    let store = &*writer.store;
    assert_eq!(keys(store, lookup(values(9, true), false)).await, ["k000"]);
    assert_eq!(keys(store, lookup(values(-2, true), false)).await, ["k010", "k015"]);
    writer.store.close().await;
}
