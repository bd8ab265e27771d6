//! The command line, and the environment behind it.
//!
//! A variable is read as the flag that it stands for, where the command line does not say otherwise:
//! it has the flag itself, or one that excludes it. So clap sees one list of flags and checks it as a
//! whole. Nothing here reads the environment by itself, so tests say what is in it.

pub(super) mod workflow;

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    time::Duration,
};

use bytesize::ByteSize;
use clap::{
    Args, CommandFactory, FromArgMatches, Parser, Subcommand,
    builder::{Resettable, StyledStr},
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::Listen;

/// Flags for data in a directory, and flags for data in a database. Those on the command line silence
/// the variables of the others.
const DIRECTORY: &[&str] = &["data"];
const DATABASE: &[&str] =
    &["store", "peer-listen", "peer-address", "cluster-secret-file", "unsafe-durability"];

/// A node that hosts stateful entities.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "A flag overrides its environment variable; a variable that is empty counts as not \
    set. Logs are filtered by RUST_LOG. Exit codes: 0 stopped, 1 address, disk or database, \
    2 usage or another cluster secret, 3 directory in use, database taken over or node name alive, \
    4 flush failed, 5 layout or version refused, 6 log shorter than what was durable, 7 an operation \
    does not end."
)]
pub(super) struct Command {
    #[command(subcommand)]
    pub(super) verb: Verb,
}
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Serves entities over HTTP.
    Serve(Box<Serve>),
    /// Prints which node owns an entity, and which one should.
    Placement {
        /// The entity's type.
        entity_type: String,
        /// The entity's key.
        key: String,
        #[command(flatten)]
        server: Asked,
    },
    /// Has a running server store the states that earlier versions of a type wrote as the present version
    /// does, so that the next program can leave those versions out. It can be interrupted, and run again.
    Upgrade {
        /// The type [default: every type that the server serves].
        entity_type: Option<String>,
        #[command(flatten)]
        server: Asked,
    },
    /// Starts workflows on a running server, shows them, and changes their course.
    #[command(subcommand)]
    Workflow(workflow::WorkflowVerb),
    /// Replays the workflows that run on a server with the code of this program: says, before it is deployed, which of
    /// them it does not fit. Nothing is changed; the exit code is 1 where there are any.
    Replay(workflow::ReplayAsked),
    /// Prints the members of the cluster, who owns which partition, and what moves.
    Cluster {
        #[command(flatten)]
        server: Asked,
    },
}

/// The server that is asked.
#[derive(Debug, Args)]
pub(super) struct Asked {
    /// The address of any node.
    #[arg(long, env = "STEAD_URL", default_value = "http://127.0.0.1:8080")]
    pub(super) url: String,
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The directory that holds the data; it is created where it is missing.
    #[arg(long, env = "STEAD_DATA", default_value = "data")]
    pub(super) data: PathBuf,
    /// The database that holds the data instead of a directory, as in
    /// postgres://USER:PASSWORD@HOST/DATABASE. One node uses it at a time, or, with --peer-listen,
    /// many.
    #[arg(
        long,
        env = "STEAD_STORE",
        value_name = "URL",
        hide_env_values = true,
        conflicts_with = "data"
    )]
    pub(super) store: Option<String>,
    /// Where to listen: ADDRESS:PORT, NAME:PORT for every address of a name, or :PORT for all.
    #[arg(long, env = "STEAD_LISTEN", default_value = "127.0.0.1:8080", value_name = "PLACE")]
    pub(super) listen: Listen,
    /// How long a connection may be idle between two requests, in seconds; longer than what stands
    /// before the node keeps it.
    #[arg(long, env = "STEAD_IDLE_CONNECTION", default_value = "120", value_name = "SECONDS", value_parser = some_seconds)]
    pub(super) idle_connection: Duration,
    /// The name of the node [default: node]. Nodes that share a database have names of their own.
    #[arg(long, env = "STEAD_NODE_ID", value_name = "NAME")]
    pub(super) node_id: Option<String>,
    /// Where to listen for the other nodes that share the database, as for --listen; a name stands
    /// for its first address.
    #[arg(
        long,
        env = "STEAD_PEER_LISTEN",
        value_name = "PLACE",
        requires_all = ["store", "node_id", "cluster_secret_file"]
    )]
    pub(super) peer_listen: Option<Listen>,
    /// Where the other nodes reach this one [default: where it listens for them].
    #[arg(long, env = "STEAD_PEER_ADDRESS", value_name = "HOST:PORT", requires = "peer_listen")]
    pub(super) peer_address: Option<String>,
    /// The file with the secret that all nodes share: at least 16 bytes.
    #[arg(long, env = "STEAD_CLUSTER_SECRET_FILE", value_name = "FILE", requires = "peer_listen")]
    pub(super) cluster_secret_file: Option<PathBuf>,
    /// This node's share of the whole, beside the others': 1 to 64.
    #[arg(long, env = "STEAD_WEIGHT", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) weight: u32,
    /// Accept a database that may lose what it has confirmed, because `fsync`, `full_page_writes` or
    /// `synchronous_commit` is off.
    #[arg(
        long,
        env = "STEAD_UNSAFE_DURABILITY",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        requires_if("true", "store")
    )]
    pub(super) unsafe_durability: bool,
    /// How long a node may be silent before others take over what it owns, in seconds.
    #[arg(long, env = "STEAD_LEASE", default_value = "3", value_name = "SECONDS", value_parser = seconds)]
    pub(super) lease: Duration,
    /// How long one turn may take, in seconds.
    #[arg(long, env = "STEAD_TURN_DEADLINE", default_value = "5", value_name = "SECONDS", value_parser = seconds)]
    pub(super) turn_deadline: Duration,
    /// How long a caller waits for an answer, in seconds.
    #[arg(long, env = "STEAD_CALL_DEADLINE", default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    pub(super) call_deadline: Duration,
    /// How long a turn may block its thread before the process exits with code 7, in seconds.
    #[arg(long, alias = "spin-limit", env = "STEAD_BLOCK_LIMIT", default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub(super) block_limit: Duration,
    /// How often a failed signal or reminder is tried again.
    #[arg(long, env = "STEAD_RETRIES", default_value = "8")]
    pub(super) retries: u32,
    /// How long idempotency keys are remembered, in seconds.
    #[arg(long, env = "STEAD_RETENTION", default_value = "86400", value_name = "SECONDS", value_parser = seconds)]
    pub(super) retention: Duration,
    /// How long an unused entity stays in memory, in seconds.
    #[arg(long, env = "STEAD_IDLE", default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub(super) idle: Duration,
    /// The largest request body, in bytes.
    #[arg(long, env = "STEAD_BODY_BYTES_MAX", default_value = "1048576")]
    pub(super) body_bytes_max: usize,
    /// The most operations that wait for one entity in memory.
    #[arg(long, env = "STEAD_MAILBOX_MAX", default_value = "4096")]
    pub(super) mailbox_max: usize,
    /// The memory that the process may take, as in 512MiB or 4GiB; at least 128MiB. Entities that were not used for
    /// longest leave memory first, and requests are refused before it is used up. The log says how it is divided.
    #[arg(long, env = "STEAD_MEMORY", default_value = "1GiB", value_name = "SIZE")]
    pub(super) memory: ByteSize,
    /// The most requests that the node holds at one time.
    #[arg(long, env = "STEAD_REQUESTS_MAX", default_value = "65536")]
    pub(super) requests_max: usize,
    /// Writes are refused while less than this many bytes of the disk are free [default: a quarter
    /// of the disk, at most 256 MiB].
    #[arg(long, env = "STEAD_FREE_BYTES_MIN")]
    pub(super) free_bytes_min: Option<u64>,
    /// The most bytes of data that are kept in memory for reading; in a directory only [default: an eighth of the
    /// memory].
    #[arg(long, env = "STEAD_BLOCK_CACHE_BYTES")]
    pub(super) block_cache_bytes: Option<usize>,
    /// Set the store's clock back where it is ahead of the wall clock, once, at this start. Meant for
    /// one start by hand: the operations guide says when. Not for many nodes, which follow the
    /// database's clock.
    #[arg(
        long,
        env = "STEAD_RESET_CLOCK",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true"
    )]
    pub(super) reset_clock: bool,
    /// How logs are written.
    #[arg(long, env = "STEAD_LOG", default_value = "text")]
    pub(super) log: LogFormat,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn some_seconds(text: &str) -> Result<Duration, String> {
    let length = seconds(text)?;
    if length.is_zero() { Err("expected more than none".to_owned()) } else { Ok(length) }
}

impl Command {
    /// Reads the command line, and the environment for what that leaves out.
    ///
    /// # Errors
    /// What cannot be used, in words for whoever wrote it; also what `--help` shows.
    pub(super) fn read(
        arguments: &[OsString],
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, clap::Error> {
        let shown = Self::command();
        // clap itself takes a variable that is empty for a value, and does not know which of two that
        // exclude each other was typed.
        let mut command = shown.clone().mut_subcommands(|verb| {
            verb.mut_args(|flag| flag.env(Resettable::<clap::builder::OsStr>::Reset))
        });
        let verb = arguments.get(1).and_then(|name| shown.find_subcommand(name));
        let taken = verb.map(|verb| from_environment(verb, arguments, variable));
        let taken = taken.unwrap_or_default();
        // Behind what was typed, so that what is wrong with that, or asks for help, comes first.
        let at = arguments.iter().position(|it| it == "--").unwrap_or(arguments.len());
        let flags = taken.iter().map(|(_, flag)| flag.clone());
        let read = arguments[..at].iter().cloned().chain(flags);
        let read: Vec<_> = read.chain(arguments[at..].iter().cloned()).collect();
        let read = command.try_get_matches_from_mut(read);
        let read = read.and_then(|mut matches| {
            Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
        });
        read.map_err(|mut error| {
            if error.kind() == ErrorKind::DisplayHelp {
                // With the names of the variables.
                return shown.try_get_matches_from(arguments).err().unwrap_or(error);
            }
            if !taken.is_empty() {
                let names: Vec<_> = taken.iter().map(|(name, _)| name.as_str()).collect();
                let hint = format!("set by the environment: {}", names.join(", "));
                let hint = ContextValue::StyledStrs(vec![StyledStr::from(hint)]);
                error.insert(ContextKind::Suggested, hint);
            }
            error
        })
    }
}

/// The flags that variables stand for, each with the name of its variable.
fn from_environment(
    verb: &clap::Command,
    arguments: &[OsString],
    variable: impl Fn(&str) -> Option<OsString>,
) -> Vec<(String, OsString)> {
    let typed = typed(arguments);
    let is_typed = |flag: &str| typed.iter().any(|(name, _)| *name == flag);
    let is_chosen = |flags: &[&str]| {
        // A switch that is switched off chooses nothing.
        typed.iter().any(|(name, value)| flags.contains(name) && *value != Some("false"))
    };
    let mut taken = Vec::new();
    for flag in verb.get_arguments() {
        let (Some(name), Some(long)) = (flag.get_env(), flag.get_long()) else { continue };
        let is_silenced = DIRECTORY.contains(&long) && is_chosen(DATABASE)
            || DATABASE.contains(&long) && is_chosen(DIRECTORY);
        if is_silenced || is_typed(long) {
            continue;
        }
        let name = name.to_string_lossy().into_owned();
        let Some(value) = variable(&name).and_then(trimmed) else { continue };
        let is_switch = flag.get_num_args().is_some_and(|range| range.min_values() == 0);
        let value = if is_switch { switch(value) } else { Some(value) };
        let Some(value) = value else { continue };
        let mut read = OsString::from(format!("--{long}="));
        read.push(value);
        taken.push((name, read));
    }
    taken
}

/// The flags that were typed, without their dashes, each with what stands behind its equals sign.
fn typed(arguments: &[OsString]) -> Vec<(&str, Option<&str>)> {
    let before_operands = arguments.iter().take_while(|it| *it != "--");
    // What is no UTF-8 as a whole may still be a flag, with a path for its value.
    let flags = before_operands.filter_map(|it| {
        let bytes = it.as_encoded_bytes().strip_prefix(b"--")?;
        let mut parts = bytes.splitn(2, |byte| *byte == b'=');
        let name = str::from_utf8(parts.next()?).ok()?;
        Some((name, parts.next().and_then(|value| str::from_utf8(value).ok())))
    });
    flags.collect()
}

/// A value without the white space around it; none where nothing is left.
fn trimmed(value: OsString) -> Option<OsString> {
    match value.to_str().map(str::trim) {
        Some("") => None,
        Some(text) => Some(text.into()),
        None => Some(value),
    }
}

/// A variable that switches something on; one that switches off counts as not set.
fn switch(value: OsString) -> Option<OsString> {
    let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
    match text.as_str() {
        "false" | "f" | "no" | "n" | "off" | "0" => None,
        "true" | "t" | "yes" | "y" | "on" | "1" => Some("true".into()),
        // Refused as what it is.
        _ => Some(value),
    }
}

/// The filter of the logs, and what is wrong with the one that was asked for.
pub(super) fn log_filter(asked: Option<&OsStr>) -> (tracing_subscriber::EnvFilter, Option<String>) {
    let usual = || tracing_subscriber::EnvFilter::new("info,ractor=warn");
    let Some(asked) = asked.and_then(|asked| trimmed(asked.to_owned())) else {
        return (usual(), None);
    };
    let Some(text) = asked.to_str() else {
        return (usual(), Some("RUST_LOG is not UTF-8 and counts as not set".to_owned()));
    };
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(filter) => (filter, None),
        Err(error) => {
            let problem = format!("RUST_LOG={text:?} counts as not set, because of an {error}");
            (usual(), Some(problem))
        }
    }
}

#[cfg(test)]
mod tests;
