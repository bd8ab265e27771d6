//! The flags of `stead workflow`.

use clap::{Args, Subcommand, ValueEnum};

use super::Asked;

/// A request about workflows.
#[derive(Debug, Subcommand)]
pub(in crate::server) enum WorkflowVerb {
    /// Starts a workflow.
    Start {
        #[command(flatten)]
        of: Instance,
        /// The input as JSON [default: none].
        input: Option<String>,
        /// The effect where there is one of the key.
        #[arg(long, value_enum)]
        policy: Option<Policy>,
        /// How long the whole may take, such as PT1H: then it is cancelled, and terminated a minute later.
        #[arg(long)]
        deadline: Option<String>,
        /// Waits until it has ended, and prints its result.
        #[arg(long)]
        wait: bool,
    },
    /// Prints its status, its result, and what it waits for.
    Status {
        #[command(flatten)]
        of: Instance,
    },
    /// Waits until it has ended, and prints its result; the exit code is 1 where it has none.
    Wait {
        #[command(flatten)]
        of: Instance,
    },
    /// Raises an event.
    #[command(alias = "events")]
    Event {
        #[command(flatten)]
        of: Instance,
        /// The name of the event.
        name: String,
        /// The payload as JSON [default: none].
        payload: Option<String>,
    },
    /// Prints the history of its present run: what was handed to its code, and what that began.
    History {
        #[command(flatten)]
        of: Instance,
    },
    /// Has everything that is outstanding fail, so that its code ends in order.
    Cancel {
        #[command(flatten)]
        of: Instance,
    },
    /// Ends it at once, without its code.
    Terminate {
        #[command(flatten)]
        of: Instance,
        /// Why.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Has it wait: what arrives is kept.
    Suspend {
        #[command(flatten)]
        of: Instance,
        /// Why.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Has it go on.
    Resume {
        #[command(flatten)]
        of: Instance,
    },
    /// Has one that has failed go on from before its last failures.
    Rewind {
        #[command(flatten)]
        of: Instance,
        /// The place of the operation that is made again with everything behind it, also of one that has a result or is
        /// stuck; its history has them.
        #[arg(long)]
        place: Option<String>,
    },
    /// Tries one that is stuck again.
    Retry {
        #[command(flatten)]
        of: Instance,
    },
    /// Begins one that has ended anew with the same input.
    Restart {
        #[command(flatten)]
        of: Instance,
        /// Begins another one, of this key, instead.
        #[arg(long)]
        new_key: Option<String>,
    },
    /// Deletes one that has ended, with everything of it.
    Purge {
        #[command(flatten)]
        of: Instance,
        /// Its children, too.
        #[arg(long)]
        recursive: bool,
    },
    /// Has all workflows of a type that fit a filter do the same, and says how many did.
    Batch(BatchAsked),
    /// Lists the workflows of a type.
    List {
        /// The type.
        workflow_type: String,
        /// Only those with this status, such as running.
        #[arg(long)]
        status: Option<String>,
        /// Only those that are stuck, each with the reason.
        #[arg(long)]
        stuck: bool,
        /// Only those whose run began with this version of the code.
        #[arg(long)]
        version: Option<u32>,
        /// Only those whose keys begin so.
        #[arg(long)]
        prefix: Option<String>,
        /// How many at most.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        shown: Shown,
    },
}

/// An operation for many workflows, and for which.
#[derive(Debug, Args)]
pub(in crate::server) struct BatchAsked {
    /// The operation.
    #[arg(value_enum)]
    pub(in crate::server) operation: Batch,
    /// The type.
    pub(in crate::server) workflow_type: String,
    /// Only those with this status, such as running.
    #[arg(long)]
    pub(in crate::server) status: Option<String>,
    /// Only those that are stuck.
    #[arg(long)]
    pub(in crate::server) stuck: bool,
    /// Only those whose run began with this version of the code.
    #[arg(long)]
    pub(in crate::server) version: Option<u32>,
    /// Only those that were created in this time, such as 2026-01-01T00:00:00Z..
    #[arg(long)]
    pub(in crate::server) created: Option<String>,
    /// Only those whose keys begin so.
    #[arg(long)]
    pub(in crate::server) prefix: Option<String>,
    /// All of the type, without a filter.
    #[arg(long, conflicts_with_all = ["status", "stuck", "version", "created", "prefix"])]
    pub(in crate::server) all: bool,
    /// Why, where they are terminated or suspended.
    #[arg(long)]
    pub(in crate::server) reason: Option<String>,
    /// The children of those that are purged, too.
    #[arg(long)]
    pub(in crate::server) recursive: bool,
    #[command(flatten)]
    pub(in crate::server) shown: Shown,
}

impl BatchAsked {
    /// The parameters of the request.
    pub(in crate::server) fn parameters(&self) -> Vec<(&'static str, String)> {
        let name = self.operation.to_possible_value().map(|name| name.get_name().to_owned());
        let text = |name, value: &Option<String>| value.clone().map(|value| (name, value));
        let set = |name, is_set: bool| is_set.then(|| (name, "true".to_owned()));
        let given = [
            name.map(|name| ("operation", name)),
            text("status", &self.status),
            set("stuck", self.stuck),
            text("version", &self.version.map(|version| version.to_string())),
            text("created", &self.created),
            text("prefix", &self.prefix),
            set("all", self.all),
            text("reason", &self.reason),
            set("recursive", self.recursive),
        ];
        given.into_iter().flatten().collect()
    }
}

/// An operation for many workflows.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in crate::server) enum Batch {
    /// See `stead workflow cancel`.
    Cancel,
    /// See `stead workflow terminate`.
    Terminate,
    /// See `stead workflow suspend`.
    Suspend,
    /// See `stead workflow resume`.
    Resume,
    /// See `stead workflow retry`.
    Retry,
    /// See `stead workflow rewind`.
    Rewind,
    /// See `stead workflow restart`.
    Restart,
    /// See `stead workflow purge`.
    Purge,
}

/// The workflows that are replayed.
#[derive(Debug, Args)]
pub(in crate::server) struct ReplayAsked {
    /// The type [default: every type that the server has].
    pub(in crate::server) workflow_type: Option<String>,
    #[command(flatten)]
    pub(in crate::server) shown: Shown,
}

/// The workflow that is meant, at which server, and how the answer is shown.
#[derive(Debug, Args)]
pub(in crate::server) struct Instance {
    /// The type.
    pub(in crate::server) workflow_type: String,
    /// The key.
    pub(in crate::server) key: String,
    #[command(flatten)]
    pub(in crate::server) shown: Shown,
}

/// The server that is asked, and how its answer is shown.
#[derive(Debug, Args)]
pub(in crate::server) struct Shown {
    /// Prints the JSON that the server answers, and no table.
    #[arg(long)]
    pub(in crate::server) json: bool,
    #[command(flatten)]
    pub(in crate::server) server: Asked,
}

/// The effect of a start where there is a workflow of the key.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in crate::server) enum Policy {
    /// Joins one that goes on with the same input, and takes the place of one that has ended.
    Join,
    /// Is refused, until it is purged.
    Once,
    /// Takes its place; one that goes on is terminated.
    Replace,
}
