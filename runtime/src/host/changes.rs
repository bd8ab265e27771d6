//! Which types have their changes kept, and whether those that are kept are all of them.
//!
//! A program that keeps the changes of a type says so once in the store, with a number that every position in them
//! has. Where changes may be missing, because a program wrote states without keeping them, they begin anew under
//! another number, so that whoever goes on from before is told. Among other nodes such a program notes the partitions
//! that it comes to own, as it does for an index that it does not know; an owner that keeps them takes the notes away.
//! What must never happen: a change is missing, and the number is the one from before.

use super::{Host, indexes};
use crate::{
    partition::ForeignIndex,
    sabotage::Sabotage,
    store::{
        Haste, ReadResult, TypedReads as _, Write, find,
        tables::meta::{CHANGES_NOTE, KeptChanges},
    },
};

/// Compares what is kept with what this program keeps, and adds what is to be written.
pub(super) async fn guard(
    node: &Host,
    incarnation: u64,
    writes: &mut Vec<Write>,
) -> ReadResult<()> {
    // Others may be there whose programs are of other versions.
    let is_alone = node.store().opened().incarnation > 0;
    let stored = node.store().read(Haste::Short, find::kept_changes).await?;
    for known in node.sorted_types() {
        let name = known.name().to_owned();
        let kept = stored.iter().find(|(of, _)| *of == name).map(|(_, kept)| kept.retention);
        match (known.policy().changes, kept) {
            (Some(retention), None) => {
                if !is_alone {
                    // Others may own partitions, and their programs keep nothing.
                    let note = (name.clone(), CHANGES_NOTE.to_owned());
                    writes.extend(indexes::notes(node, &note, 0));
                }
                writes.push(Write::put(&name, &KeptChanges { since: incarnation, retention }));
            }
            // Among others the shortest time counts, for which all of them keep a change.
            (Some(retention), Some(kept)) if retention < kept || is_alone && retention > kept => {
                writes.push(Write::put(&name, &KeptChanges { since: incarnation, retention }));
            }
            // What is written from here on is not among them.
            (None, Some(_)) if is_alone => writes.push(Write::delete::<KeptChanges>(&name)),
            _ => {}
        }
    }
    Ok(())
}

/// The served types whose changes other programs keep, and this one does not, as what its partitions lack.
pub(super) async fn foreign(node: &Host) -> ReadResult<Vec<ForeignIndex>> {
    if Sabotage::ForeignChangesNotNoted.is_on() {
        return Ok(Vec::new());
    }
    let stored = node.store().read(Haste::Short, find::kept_changes).await?;
    let is_foreign = |(name, _): &(String, KeptChanges)| {
        node.types().get(&**name).is_some_and(|known| known.policy().changes.is_none())
    };
    let foreign = stored.into_iter().filter(is_foreign);
    Ok(foreign.map(|(name, _)| (name, CHANGES_NOTE.to_owned(), 0)).collect())
}
