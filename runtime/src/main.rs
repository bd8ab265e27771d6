//! The binary `stead`: a node that serves the ready-made entities over HTTP.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use stead::{
    Config, Fatal, Node, RocksStore, Server, StartError,
    stock::{Approval, Counter},
    store::rocks::{OpenError, RocksSettings},
};

/// Requests are made on one thread and freed on another, which the system's allocator serialises.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A node that hosts stateful entities.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serves the ready-made entities `counter` and `approval` over HTTP.
    Serve(Serve),
}

#[derive(Debug, Args)]
struct Serve {
    /// The directory that holds the data; it is created where it is missing.
    #[arg(long, env = "STEAD_DATA", default_value = "data")]
    data: PathBuf,
    /// Where to listen.
    #[arg(long, env = "STEAD_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The name of the node.
    #[arg(long, env = "STEAD_NODE_ID", default_value = "node")]
    node_id: String,
    /// How long one turn may take, in seconds.
    #[arg(long, env = "STEAD_TURN_DEADLINE", default_value = "5", value_parser = seconds)]
    turn_deadline: Duration,
    /// How long a caller waits for an answer, in seconds.
    #[arg(long, env = "STEAD_CALL_DEADLINE", default_value = "30", value_parser = seconds)]
    call_deadline: Duration,
    /// How long a turn may spin before the process exits with code 7, in seconds.
    #[arg(long, env = "STEAD_SPIN_LIMIT", default_value = "60", value_parser = seconds)]
    spin_limit: Duration,
    /// How often a failed signal or reminder is tried again.
    #[arg(long, env = "STEAD_RETRIES", default_value = "8")]
    retries: u32,
    /// How long idempotency keys are remembered, in seconds.
    #[arg(long, env = "STEAD_RETENTION", default_value = "86400", value_parser = seconds)]
    retention: Duration,
    /// The largest request body, in bytes.
    #[arg(long, env = "STEAD_BODY_BYTES_MAX", default_value = "1048576")]
    body_bytes_max: usize,
    /// Writes are refused while less than this many bytes of the disk are free.
    #[arg(long, env = "STEAD_FREE_BYTES_MIN", default_value = "67108864")]
    free_bytes_min: u64,
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

/// Exit codes, each with one meaning.
mod exit {
    pub(super) const FAILED: u8 = 1;
    pub(super) const USAGE: u8 = 2;
    pub(super) const IN_USE: u8 = 3;
    pub(super) const POISONED: u8 = 4;
    pub(super) const LAYOUT: u8 = 5;
    pub(super) const LOST_TAIL: u8 = 6;
    pub(super) const SPINNING: u8 = 7;
}

fn main() -> ExitCode {
    let Command { verb: Verb::Serve(settings) } = Command::parse();
    start_logs(settings.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // An operation that spins takes one of them; the others go on.
        .worker_threads(std::thread::available_parallelism().map_or(4, |n| n.get().max(4)))
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(exit::FAILED, &format!("no async runtime: {error}")),
    };
    let code = runtime.block_on(serve(settings));
    // Whatever still spins is left behind.
    runtime.shutdown_background();
    code
}

fn start_logs(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,ractor=warn"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
}

#[allow(clippy::print_stderr, reason = "the last words of a binary")]
fn fail(code: u8, message: &str) -> ExitCode {
    eprintln!("stead: {message}");
    ExitCode::from(code)
}

async fn serve(settings: Serve) -> ExitCode {
    let rocks = RocksSettings {
        node: settings.node_id.as_str().into(),
        free_bytes_min: settings.free_bytes_min,
        ..RocksSettings::default()
    };
    let path = settings.data.clone();
    let opening = tokio::task::spawn_blocking(move || RocksStore::open_with(path, &rocks)).await;
    let store = match opening {
        Ok(Ok(store)) => store,
        Ok(Err(error @ OpenError::InUse(_))) => return fail(exit::IN_USE, &error.to_string()),
        Ok(Err(error @ OpenError::LostTail(_))) => {
            return fail(exit::LOST_TAIL, &error.to_string());
        }
        Ok(Err(error)) => return fail(exit::FAILED, &error.to_string()),
        Err(error) => return fail(exit::FAILED, &error.to_string()),
    };
    let config = Config {
        turn_deadline: settings.turn_deadline,
        call_deadline: settings.call_deadline,
        spin_limit: settings.spin_limit,
        retries: settings.retries,
        retention: settings.retention,
        body_bytes_max: settings.body_bytes_max,
        ..Config::default()
    };
    let builder = Node::builder().store(store).config(config).name(settings.node_id);
    let node = match builder.entity::<Counter>().entity::<Approval>().start().await {
        Ok(node) => node,
        Err(error @ StartError::Invalid(_)) => return fail(exit::USAGE, &error.to_string()),
        Err(error @ StartError::Layout(_)) => return fail(exit::LAYOUT, &error.to_string()),
        Err(error) => return fail(exit::FAILED, &error.to_string()),
    };
    let server = match Server::bind(settings.listen).await {
        Ok(server) => server,
        Err(error) => {
            let message = format!("cannot listen on {}: {error}", settings.listen);
            return fail(exit::FAILED, &message);
        }
    };
    let address = server.address().unwrap_or(settings.listen);
    let data = settings.data.display();
    tracing::info!(
        "listening on http://{address}, data in {data}; try: \
         curl --json 5 http://{address}/v1/entities/counter/visits/calls/add"
    );
    run(node, server).await
}

async fn run(node: Node, server: Server) -> ExitCode {
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
        () = asked_to_stop() => {}
    }
    tracing::info!("stopping: what was accepted is finished or kept");
    let drained = node.drain().await;
    drop(stop);
    let _closed = serving.join_next().await;
    match drained {
        Ok(()) => tracing::info!("stopped"),
        Err(error) => tracing::warn!(%error, "stopped at the drain deadline"),
    }
    ExitCode::SUCCESS
}

async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => drop(signals.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminate => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
