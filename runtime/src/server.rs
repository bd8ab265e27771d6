//! A server for any entities, with the flags, logs and exit codes of the binary `stead`.
//!
//! ```no_run
//! stead::server::run(|node| node.entity::<stead::stock::Counter>());
//! ```

use std::{
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};

use crate::{
    Config, Fatal, Node, NodeBuilder, PostgresStore, RocksStore, Server, StartError,
    store::{
        postgres::{ConnectError, PostgresSettings},
        rocks::{OpenError, RocksSettings},
    },
};

/// A node that hosts stateful entities.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Logs are filtered by RUST_LOG. Exit codes: 0 stopped, 1 \
    address, disk or database, 2 usage, 3 directory in use or database taken over, 4 flush failed, 5 layout or version refused, 6 log \
    shorter than what was durable, 7 an operation does not end."
)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serves entities over HTTP.
    Serve(Serve),
}

#[derive(Debug, Args)]
struct Serve {
    /// The directory that holds the data; it is created where it is missing.
    #[arg(long, env = "STEAD_DATA", default_value = "data")]
    data: PathBuf,
    /// The database that holds the data instead of a directory, as in
    /// postgres://USER:PASSWORD@HOST/DATABASE. One node uses it at a time.
    #[arg(
        long,
        env = "STEAD_STORE",
        value_name = "URL",
        hide_env_values = true,
        conflicts_with = "data"
    )]
    store: Option<String>,
    /// Where to listen.
    #[arg(long, env = "STEAD_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The name of the node.
    #[arg(long, env = "STEAD_NODE_ID", default_value = "node")]
    node_id: String,
    /// How long one turn may take, in seconds.
    #[arg(long, env = "STEAD_TURN_DEADLINE", default_value = "5", value_name = "SECONDS", value_parser = seconds)]
    turn_deadline: Duration,
    /// How long a caller waits for an answer, in seconds.
    #[arg(long, env = "STEAD_CALL_DEADLINE", default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    call_deadline: Duration,
    /// How long a turn may spin before the process exits with code 7, in seconds.
    #[arg(long, env = "STEAD_SPIN_LIMIT", default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    spin_limit: Duration,
    /// How often a failed signal or reminder is tried again.
    #[arg(long, env = "STEAD_RETRIES", default_value = "8")]
    retries: u32,
    /// How long idempotency keys are remembered, in seconds.
    #[arg(long, env = "STEAD_RETENTION", default_value = "86400", value_name = "SECONDS", value_parser = seconds)]
    retention: Duration,
    /// The largest request body, in bytes.
    #[arg(long, env = "STEAD_BODY_BYTES_MAX", default_value = "1048576")]
    body_bytes_max: usize,
    /// The most operations that wait for one entity in memory.
    #[arg(long, env = "STEAD_MAILBOX_MAX", default_value = "4096")]
    mailbox_max: usize,
    /// The most requests that the node holds at one time.
    #[arg(long, env = "STEAD_REQUESTS_MAX", default_value = "65536")]
    requests_max: usize,
    /// Writes are refused while less than this many bytes of the disk are free [default: a quarter
    /// of the disk, at most 256 MiB].
    #[arg(long, env = "STEAD_FREE_BYTES_MIN")]
    free_bytes_min: Option<u64>,
    /// How logs are written.
    #[arg(long, env = "STEAD_LOG", default_value = "text")]
    log: LogFormat,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Exit codes, each with one meaning; 0 is a clean stop.
pub mod exit {
    /// Something outside failed: the network address, the disk.
    pub const FAILED: u8 = 1;
    /// A flag, a setting or an entity type cannot be used.
    pub const USAGE: u8 = 2;
    /// Another process uses the data directory, or has taken the database over.
    pub const IN_USE: u8 = 3;
    /// A flush failed; starting again recovers everything that was acknowledged.
    pub const POISONED: u8 = 4;
    /// A layout changed without a new version, or a stored version cannot be read.
    pub const LAYOUT: u8 = 5;
    /// The log is shorter than what is known to be durable.
    pub const LOST_TAIL: u8 = 6;
    /// An operation does not end.
    pub const SPINNING: u8 = 7;
}

/// Reads the command line, hosts what `entities` adds to the node, and ends the process with one of
/// the codes of [`exit`].
pub fn run(entities: impl FnOnce(NodeBuilder) -> NodeBuilder) -> ! {
    let Command { verb: Verb::Serve(settings) } = Command::parse();
    start_logs(settings.log);
    prepare_process();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // An operation that spins takes one of them; the others go on.
        .worker_threads(std::thread::available_parallelism().map_or(4, |n| n.get().max(4)))
        .enable_all()
        .build();
    // By reference: dropping the runtime would wait for what spins.
    let code = match &runtime {
        Ok(runtime) => runtime.block_on(serve(settings, entities)),
        Err(error) => fail(exit::FAILED, &format!("no async runtime: {error}")),
    };
    // Whatever still spins, or waits for the disk, is left behind, and the database's own threads
    // are not raced by its destructors.
    signal_hook::low_level::exit(code.into())
}

/// Data is for its owner only, and connections must not use up the database's files.
fn prepare_process() {
    use rustix::process::{Resource, getrlimit, setrlimit, umask};
    umask(rustix::fs::Mode::from_raw_mode(0o077));
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    let _as_many_as_there_are = setrlimit(Resource::Nofile, files);
}

fn start_logs(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,ractor=warn"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A log that cannot be written must not end what it tells about.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
}

fn fail(code: u8, message: &str) -> u8 {
    let _nobody_reads = writeln!(std::io::stderr(), "stead: {message}");
    code
}

async fn serve(settings: Serve, entities: impl FnOnce(NodeBuilder) -> NodeBuilder) -> u8 {
    // First of all: a stop that arrives while the log is replayed is a stop like any other.
    let stop = match asked_to_stop() {
        Ok(stop) => stop,
        Err(error) => return fail(exit::FAILED, &format!("signals cannot be handled: {error}")),
    };
    let config = Config {
        turn_deadline: settings.turn_deadline,
        call_deadline: settings.call_deadline,
        spin_limit: settings.spin_limit,
        retries: settings.retries,
        retention: settings.retention,
        body_bytes_max: settings.body_bytes_max,
        mailbox_max: settings.mailbox_max,
        requests_max: settings.requests_max,
        ..Config::default()
    };
    let problems = config.problems();
    if !problems.is_empty() {
        return fail(exit::USAGE, &problems.join("; "));
    }
    let server = match Server::bind(settings.listen).await {
        Ok(server) => server,
        Err(error) => {
            let message = format!("cannot listen on {}: {error}", settings.listen);
            return fail(exit::FAILED, &message);
        }
    };
    let opening = match &settings.store {
        Some(url) => open_database(url, &settings).await,
        None => open_directory(&settings).await,
    };
    let (builder, place) = match opening {
        Ok(opened) => opened,
        Err((code, message)) => return fail(code, &message),
    };
    let builder = builder.config(config).name(settings.node_id);
    let node = match entities(builder).start().await {
        Ok(node) => node,
        Err(error @ StartError::Invalid(_)) => return fail(exit::USAGE, &error.to_string()),
        Err(error @ StartError::Layout(_)) => return fail(exit::LAYOUT, &error.to_string()),
        Err(error) => return fail(exit::FAILED, &error.to_string()),
    };
    let address = server.address().unwrap_or(settings.listen);
    let has_counter = node.descriptions().iter().any(|known| known.name == "counter");
    let hint = match has_counter {
        true => format!("curl --json 5 http://{address}/v1/entities/counter/visits/calls/add"),
        false => format!("curl http://{address}/v1/entities"),
    };
    tracing::info!("listening on http://{address}, data in {place}; try: {hint}");
    serve_until(node, server, stop).await
}

/// A node whose data is in a directory, and the name of that; or an exit code with its reason.
async fn open_directory(settings: &Serve) -> Result<(NodeBuilder, String), (u8, String)> {
    let rocks = RocksSettings {
        node: settings.node_id.as_str().into(),
        free_bytes_min: settings.free_bytes_min,
        ..RocksSettings::default()
    };
    let path = settings.data.clone();
    let opening = tokio::task::spawn_blocking(move || RocksStore::open_with(path, &rocks)).await;
    let place = settings.data.display().to_string();
    match opening {
        Ok(Ok(store)) => Ok((Node::builder().store(store), place)),
        Ok(Err(error @ OpenError::InUse(_))) => {
            let message = format!("{error}: stop it, or choose another directory with --data");
            Err((exit::IN_USE, message))
        }
        Ok(Err(error @ OpenError::LostTail(_))) => Err((exit::LOST_TAIL, error.to_string())),
        Ok(Err(error)) => Err((exit::FAILED, format!("{place}: {error}"))),
        Err(error) => Err((exit::FAILED, error.to_string())),
    }
}

/// The same for a database.
async fn open_database(url: &str, settings: &Serve) -> Result<(NodeBuilder, String), (u8, String)> {
    let node = settings.node_id.as_str().into();
    let postgres = PostgresSettings { node, ..PostgresSettings::default() };
    match PostgresStore::connect_with(url, &postgres).await {
        Ok(store) => {
            let place = store.place().to_owned();
            Ok((Node::builder().store(store), place))
        }
        Err(error @ ConnectError::Address(_)) => Err((exit::USAGE, error.to_string())),
        Err(error @ ConnectError::Newer(..)) => Err((exit::LAYOUT, error.to_string())),
        Err(error) => Err((exit::FAILED, error.to_string())),
    }
}

async fn serve_until(node: Node, server: Server, asked_to_stop: impl Future<Output = ()>) -> u8 {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let router = node.router();
    let serving = async move {
        let stopped = async move { drop(stopped.await) };
        server.serve(router, stopped, Duration::from_millis(500)).await;
    };
    let mut serving = tokio::task::JoinSet::from_iter([serving]);
    tokio::select! {
        fatal = node.failed() => {
            return match fatal {
                Fatal::Poisoned(why) => fail(exit::POISONED, &format!(
                    "the storage is poisoned by a failed flush ({why}); start again to recover \
                     everything that was acknowledged")),
                Fatal::Fenced => fail(exit::IN_USE, "another process took the store over"),
                Fatal::Spinning(name) => fail(exit::SPINNING, &format!(
                    "{name} does not end; it becomes a dead letter when its attempts are used up")),
            };
        }
        () = asked_to_stop => {}
    }
    tracing::info!("stopping: what was accepted is finished or kept");
    let drained = node.drain().await;
    drop(stop);
    let _closed = serving.join_next().await;
    match drained {
        Ok(()) => tracing::info!("stopped"),
        Err(error) => tracing::warn!(%error, "stopped at the drain deadline"),
    }
    0
}

/// Ready when somebody asks the process to end.
fn asked_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}
