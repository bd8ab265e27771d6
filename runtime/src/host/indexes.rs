//! Which indexes a program declares, and what the store knows of them.
//!
//! An index is declared once, with the version of its type. A new one, or one of a new version, begins with a
//! note for each partition that its states are not indexed; `node::indexing` has the owners go through them and
//! takes the notes away. A program that does not know an index notes the partitions that it comes to own, because
//! it writes states without it. What must never happen: a partition without a note has a state that lacks the
//! index.

use super::{Host, changes};
use crate::{
    partition::ForeignIndex,
    store::{
        Haste, ReadResult, Rows, TypedReads as _, Write, find,
        tables::meta::{DeclaredIndex, NotIndexed},
    },
};

/// Compares every index with the declared one. Adds what is to be written, and why the node may not start.
pub(super) async fn guard(
    node: &Host,
    writes: &mut Vec<Write>,
    problems: &mut Vec<String>,
) -> ReadResult<()> {
    let store = node.store();
    // Others may be there whose programs are of other versions.
    let is_alone = store.opened().incarnation > 0;
    let declared = store.read(Haste::Short, find::declared_indexes).await?;
    for known in node.sorted_types() {
        let (name, version) = (known.name().to_owned(), known.version());
        for index in known.indexes() {
            let found = declared.iter().find(|(of, it, _)| *of == name && it == index.name);
            let found = found.map(|(_, _, declared)| declared);
            let values = index.values.to_string();
            match found {
                Some(found) if found.version == version && found.values != values => {
                    problems.push(format!(
                        "{name}: the index {} is declared with values of the kind {}, now {values}: raise \
                         `version`, or give the index another name; nothing was changed",
                        index.name, found.values
                    ));
                }
                Some(found) if found.version == version => {}
                // Nodes of a newer program use it; this one does not.
                Some(found) if found.version > version && !is_alone => {}
                found => {
                    let key = (name.clone(), index.name.to_owned());
                    if let Some(earlier) = found {
                        writes.extend(ends_of_notes(node, &key, earlier.version).await?);
                    }
                    // A type that no program has served has no states, and nobody else may begin to serve it now.
                    if !is_alone || !store.layouts(name.clone()).await?.is_empty() {
                        writes.extend(notes(node, &key, version));
                    }
                    writes.push(Write::put(&key, &DeclaredIndex { version, values }));
                }
            }
        }
    }
    for (entity_type, index, of) in declared.into_iter().filter(|_| is_alone) {
        let known = node.types().get(&*entity_type);
        if known.is_some_and(|known| known.indexes().iter().all(|own| own.name != index)) {
            // What is written from here on ends its rows; who declares it again begins anew.
            let key = (entity_type, index);
            writes.extend(ends_of_notes(node, &key, of.version).await?);
            writes.push(Write::delete::<DeclaredIndex>(&key));
        }
    }
    Ok(())
}

/// A note for each partition that its states lack an index of a version of its type.
pub(super) fn notes(
    node: &Host,
    (name, index): &(String, String),
    version: u32,
) -> impl Iterator<Item = Write> {
    let all = 0..node.store().opened().settings.partitions;
    all.map(move |of| Write::put(&(name.clone(), index.clone(), version, of), &NotIndexed))
}

/// The end of such notes, of those that there are.
async fn ends_of_notes(
    node: &Host,
    (name, index): &(String, String),
    version: u32,
) -> ReadResult<Vec<Write>> {
    let of = (name.clone(), index.clone());
    let read = move |rows: &dyn Rows| find::not_indexed(rows, &of.0, &of.1, version);
    let there = node.store().read(Haste::Short, read).await?.into_iter();
    let end = |of| Write::delete::<NotIndexed>(&(name.clone(), index.clone(), version, of));
    Ok(there.map(end).collect())
}

/// The declared indexes of served types that this program does not have, or has in another version of the type:
/// states that it writes lack them; and so with logs of changes. To be asked for when partitions were taken.
pub(crate) async fn foreign(node: &Host) -> ReadResult<Vec<ForeignIndex>> {
    let declared = node.store().read(Haste::Short, find::declared_indexes).await?;
    let is_foreign = |(entity_type, index, of): &(String, String, DeclaredIndex)| {
        node.types().get(&**entity_type).is_some_and(|known| {
            of.version != known.version() || known.indexes().iter().all(|own| own.name != *index)
        })
    };
    let foreign = declared.into_iter().filter(is_foreign);
    let foreign = foreign.map(|(entity_type, index, of)| (entity_type, index, of.version));
    Ok(foreign.chain(changes::foreign(node).await?).collect())
}
