//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

/// A node that hosts stateful entities.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Logs are filtered by RUST_LOG. Exit codes: 0 stopped, 1 address, disk or database, \
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
    /// Where to listen.
    #[arg(long, env = "STEAD_LISTEN", default_value = "127.0.0.1:8080")]
    pub(super) listen: SocketAddr,
    /// The name of the node [default: node]. Nodes that share a database have names of their own.
    #[arg(long, env = "STEAD_NODE_ID", value_name = "NAME")]
    pub(super) node_id: Option<String>,
    /// Where to listen for the other nodes that share the database.
    #[arg(
        long,
        env = "STEAD_PEER_LISTEN",
        value_name = "ADDRESS",
        requires_all = ["store", "node_id", "cluster_secret_file"]
    )]
    pub(super) peer_listen: Option<SocketAddr>,
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
    #[arg(long, env = "STEAD_UNSAFE_DURABILITY", requires = "store")]
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
    /// How long a turn may spin before the process exits with code 7, in seconds.
    #[arg(long, env = "STEAD_SPIN_LIMIT", default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub(super) spin_limit: Duration,
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
    /// The most requests that the node holds at one time.
    #[arg(long, env = "STEAD_REQUESTS_MAX", default_value = "65536")]
    pub(super) requests_max: usize,
    /// Writes are refused while less than this many bytes of the disk are free [default: a quarter
    /// of the disk, at most 256 MiB].
    #[arg(long, env = "STEAD_FREE_BYTES_MIN")]
    pub(super) free_bytes_min: Option<u64>,
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
