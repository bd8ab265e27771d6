//! Requests of operators to many workflows: to those that a search finds, a page at a time.

use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::json;
use stead_entities::{Caller as _, EntityId, Error, Request};

use super::{Find, Node};

/// How many workflows are asked at one time.
const ASKED_AT_ONCE: usize = 32;
/// The same of a purge, so that others hardly wait longer meanwhile: about 2,500 a second are purged so.
const PURGED_AT_ONCE: usize = 1;

/// A request of operators to workflows, as the methods of a typed reference have them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkflowChange {
    /// Has everything that is outstanding fail, so that the code ends in order.
    Cancel,
    /// Ends it at once, for this reason.
    Terminate(String),
    /// Has it wait, for this reason.
    Suspend(String),
    /// Has it go on.
    Resume,
    /// Tries one that is stuck again.
    Retry,
    /// Has one that has failed go on from before its last failures.
    Rewind,
    /// Begins one that has ended anew with the same input.
    Restart,
    /// Deletes one that has ended, with everything of it.
    Purge {
        /// Its children, too.
        recursive: bool,
    },
}

/// The outcome of a request to many workflows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WorkflowsChanged {
    /// How many did it.
    pub done: u64,
    /// How many did not, such as those that have ended.
    pub failed: u64,
    /// Why the first of those did not.
    pub reason: Option<String>,
    /// The value of `after` for the next page; none behind the last one.
    pub next: Option<String>,
}

impl<E> Find<E> {
    /// Has every workflow of a page of this search do what an operator asks for; 32 at one time, in no order. A purge asks
    /// one after the other, so that others hardly wait longer meanwhile. A workflow that is there when the page is read, and
    /// has ended or is gone when it is asked, has failed to do it. To go on, search [`after`](Find::after) what the outcome
    /// says. Not cancel safe: those that were asked before do it.
    ///
    /// # Errors
    /// As [`Find::page`], before anything is asked.
    pub async fn change(&self, change: &WorkflowChange) -> Result<WorkflowsChanged, Error> {
        let page = self.page().await?;
        let mut outcome = WorkflowsChanged { next: page.next, ..WorkflowsChanged::default() };
        let asked = page.rows.into_iter().map(|row| async move {
            let id = EntityId::new(&row.entity_type, &row.key)?;
            ask(self.node(), id, change).await
        });
        let at_once = match change {
            WorkflowChange::Purge { .. } => PURGED_AT_ONCE,
            _ => ASKED_AT_ONCE,
        };
        let mut answers = stream::iter(asked).buffer_unordered(at_once);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(()) => outcome.done += 1,
                Err(error) => {
                    outcome.failed += 1;
                    outcome.reason.get_or_insert_with(|| error.to_string());
                }
            }
        }
        Ok(outcome)
    }
}

/// Asks one workflow.
async fn ask(node: &Node, id: EntityId, change: &WorkflowChange) -> Result<(), Error> {
    let (operation, argument) = match change {
        WorkflowChange::Cancel => ("cancel", None),
        WorkflowChange::Terminate(reason) => ("terminate", Some(json!({ "reason": reason }))),
        WorkflowChange::Suspend(reason) => ("suspend", Some(json!({ "reason": reason }))),
        WorkflowChange::Resume => ("resume", None),
        WorkflowChange::Retry => ("retry", None),
        WorkflowChange::Rewind => ("rewind", Some(json!({}))),
        WorkflowChange::Restart => ("restart", Some(json!({}))),
        WorkflowChange::Purge { recursive } => ("purge", Some(json!({ "recursive": recursive }))),
    };
    let argument = argument.map_or_else(Vec::new, |argument| argument.to_string().into_bytes());
    let named = |why: &dyn std::fmt::Display| format!("{id}: {why}");
    match node.call(Request::new(id.clone(), operation, argument)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(no)) => Err(Error::new(stead_entities::ErrorKind::Conflict, named(&no.reason()))),
        Err(error) => Err(Error::new(error.kind(), named(&error.message()))),
    }
}
