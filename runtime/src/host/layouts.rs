//! The layout guard: a state whose layout changed without a new version would be read as something
//! else, so the node refuses to start. Operations, indexes and kept changes are compared with what is stored
//! in the same batch.
//!
//! What must never happen: a program declares something by what it read before another one declared it. The
//! notes of an index, say, would come back behind the owners that have gone through them.

use std::time::Duration;

use super::{Host, changes, indexes, versions::LeftOut};
use crate::{
    clock::{self, deadline_after, monotonic},
    sabotage::Sabotage,
    store::{
        Batch, CommitOutcome, Fence, ReadError, TypedReads as _, Write,
        tables::meta::{Declarations, LayoutText, OperationNames},
    },
    types::EntityType,
};

/// How long a store is asked that does not answer, or that others declare something in.
const DEADLINE: Duration = Duration::from_secs(10);
/// The wait before it is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// Why layouts cannot be used.
#[derive(Debug)]
pub(crate) enum LayoutError {
    /// A layout changed without a new version, or a version is not known; each text says what to do.
    Changed(Vec<String>),
    /// The store cannot be read or written now.
    Unavailable(String),
    /// The incarnation has lost its lease meanwhile.
    Lost,
    /// Nothing more can come of this start.
    Failed(String),
}

impl From<ReadError> for LayoutError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged(_) => Self::Failed(error.to_string()),
            ReadError::Unavailable(_) => Self::Unavailable(error.to_string()),
        }
    }
}

/// Compares every layout with the stored one, stores the new ones and forgets those of versions left out, of
/// which nothing is stored, behind the last batch of the lane of an incarnation. Returns how many batches
/// that took. Where another program declares something meanwhile, or the store does not answer, it is tried again.
pub(crate) async fn guard(
    node: &Host,
    left_out: &[LeftOut],
    lane: (u64, u64),
) -> Result<u64, LayoutError> {
    let deadline = deadline_after(DEADLINE);
    loop {
        match declare(node, left_out, lane).await {
            Err(LayoutError::Unavailable(why)) if monotonic() < deadline => {
                tracing::info!(why, "what this program declares is compared again");
                clock::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

async fn declare(
    node: &Host,
    left_out: &[LeftOut],
    (incarnation, last_batch): (u64, u64),
) -> Result<u64, LayoutError> {
    let before = node.store().declarations().await?;
    let (mut writes, mut problems) = (Vec::new(), Vec::new());
    for known in node.sorted_types() {
        of_type(node, &**known, left_out, (&mut writes, &mut problems)).await?;
    }
    indexes::guard(node, &mut writes, &mut problems).await?;
    changes::guard(node, incarnation, &mut writes).await?;
    if !problems.is_empty() {
        return Err(LayoutError::Changed(problems));
    }
    writes.extend(operations(node).await?);
    if writes.is_empty() {
        return Ok(0);
    }
    let number = before.map_or(0, |Declarations(number)| number) + 1;
    if !Sabotage::DeclaredUnread.is_on() {
        writes.push(Write::replace(&(), before.as_ref(), &Declarations(number)));
    }
    let fence = Fence { incarnation, lane: 0, number: last_batch + 1 };
    let (owner, time) = (node.name().clone(), node.clock().now());
    let batch = Batch { fence, owner, time, is_clean: false, is_buffered: false, writes };
    match node.store().commit(batch).await {
        CommitOutcome::Committed => Ok(1),
        CommitOutcome::Unavailable(why) => Err(LayoutError::Unavailable(cannot(&why))),
        CommitOutcome::Fenced => Err(LayoutError::Lost),
        other => Err(LayoutError::Failed(cannot(&format!("{other:?}")))),
    }
}

fn cannot(why: &str) -> String {
    format!("the layouts cannot be stored: {why}")
}

/// Compares the layouts of a type with the stored ones.
async fn of_type(
    node: &Host,
    known: &dyn EntityType,
    left_out: &[LeftOut],
    (writes, problems): (&mut Vec<Write>, &mut Vec<String>),
) -> Result<(), LayoutError> {
    let (name, known) = (known.name(), known.layouts());
    let stored = node.store().layouts(name.to_owned()).await?;
    let present = known[0].0;
    for (version, _) in &stored {
        if *version > present {
            // Others go on; what this program does not know is left alone, entity by entity.
            tracing::error!(
                entity_type = name,
                stored = version,
                known = present,
                "states of a newer version cannot be read by this program: run a newer one"
            );
        } else if !known.iter().any(|(of, _)| of == version) {
            let found = left_out.iter().find(|it| (it.entity_type, it.version) == (name, *version));
            match found.map(|it| it.states) {
                Some(states) if states == 0 || Sabotage::VersionForgottenUncounted.is_on() => {
                    tracing::info!(entity_type = name, version, "a version is forgotten");
                    writes.push(Write::delete::<LayoutText>(&(name.to_owned(), *version)));
                }
                Some(states) => problems.push(unreadable(name, *version, states)),
                // A node of an earlier program has stored it since it was looked for.
                None => {
                    let why = format!("{name}: version {version} was stored meanwhile");
                    return Err(LayoutError::Failed(why));
                }
            }
        }
    }
    for (version, text) in known {
        match stored.iter().find(|(of, _)| *of == version) {
            Some((_, before)) if *before == text => {}
            Some((_, before)) => {
                problems.push(format!(
                    "{name}: the layout of version {version} is not the stored one: {}. Raise \
                     `version` and name the old type in `upgrade_from({version} = ...)`; \
                     nothing was changed",
                    difference(before, &text)
                ));
            }
            None => writes.push(Write::put(&(name.to_owned(), version), &LayoutText(text))),
        }
    }
    Ok(())
}

/// The refusal of states of a version that a program leaves out.
fn unreadable(name: &str, version: u32, states: u64) -> String {
    let how_many = match states {
        1 => "1 state is stored".to_owned(),
        _ => format!("{states} states are stored"),
    };
    format!(
        "{name}: {how_many} in version {version}, which this program cannot read: name their type in \
         `upgrade_from({version} = ...)`, or run the program that still does, have it rewrite them by \
         `stead upgrade {name}`, and start this one then; nothing was changed"
    )
}

/// The operations of each type, beside those that it had before, so that a later program knows what it
/// no longer has.
async fn operations(node: &Host) -> Result<Vec<Write>, LayoutError> {
    let stored = node.store().operations().await?;
    let writes = node.sorted_types().into_iter().filter_map(|known| {
        let before = stored.iter().find(|(name, _)| name == known.name());
        let mut names = before.map_or_else(Vec::new, |(_, names)| names.clone());
        let count = names.len();
        names.extend(known.all_names().into_iter().map(str::to_owned));
        names.sort_unstable();
        names.dedup();
        let is_new = before.is_none() || names.len() > count;
        is_new.then(|| Write::put(&known.name().to_owned(), &OperationNames(names)))
    });
    Ok(writes.collect())
}

/// The first place where two layouts part.
fn difference(before: &str, after: &str) -> String {
    let (mut old, mut new) = (before.lines(), after.lines());
    loop {
        match (old.next(), new.next()) {
            (Some(old), Some(new)) if old == new => {}
            (Some(old), Some(new)) => return format!("stored `{old}`, now `{new}`"),
            (Some(old), None) => return format!("stored `{old}`, now nothing"),
            (None, Some(new)) => return format!("stored nothing, now `{new}`"),
            (None, None) => return "no difference".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(
            difference("a: i64\nb: u8\n", "a: i64\nb: u16\n"),
            "stored `b: u8`, now `b: u16`"
        );
        assert_eq!(difference("a\n", "a\nb\n"), "stored nothing, now `b`");
    }
}
