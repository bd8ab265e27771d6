//! A server for any entities, with the flags, logs and exit codes of the binary `stead`.
//!
//! ```no_run
//! stead::server::run(|node| node.entity::<stead::stock::Counter>());
//! ```

mod flags;
mod open;
mod replay;
mod stop;
mod upgrade;
mod workflow;

use std::{
    io::{IsTerminal as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use bytesize::ByteSize;

use self::{
    flags::{Asked, Command, LogFormat, Serve, Verb, log_filter},
    stop::Stop,
};
use crate::{
    Client, Config, MemoryDivision, Node, NodeBuilder, Server, ServerSettings, StartError,
};

/// Exit codes, each with one meaning; 0 is a clean stop.
pub mod exit {
    /// Something outside failed: the network address, the disk.
    pub const FAILED: u8 = 1;
    /// A flag, a setting or an entity type cannot be used.
    pub const USAGE: u8 = 2;
    /// Another process uses the data directory, has taken the database over, or is alive under this
    /// node's name.
    pub const IN_USE: u8 = 3;
    /// A flush failed; starting again recovers everything that was acknowledged.
    pub const POISONED: u8 = 4;
    /// A layout changed without a new version, or a stored version cannot be read.
    pub const LAYOUT: u8 = 5;
    /// The log is shorter than what is known to be durable.
    pub const LOST_TAIL: u8 = 6;
    /// An operation does not end.
    pub const BLOCKED: u8 = 7;
}

/// Reads the command line, hosts what `entities` adds to the node, and ends the process with one of
/// the codes of [`exit`].
pub fn run(entities: impl FnOnce(NodeBuilder) -> NodeBuilder) -> ! {
    // First of all: a stop that arrives while the process starts is a stop like any other.
    let stop = Stop::listen().unwrap_or_else(|error| {
        exit_with(fail(exit::FAILED, &format!("signals cannot be handled: {error}")))
    });
    let arguments: Vec<_> = std::env::args_os().collect();
    let read = Command::read(&arguments, |name| std::env::var_os(name));
    let verb = read.unwrap_or_else(|problem| problem.exit()).verb;
    if let Verb::Serve(settings) = &verb {
        start_logs(settings.log);
        prepare_process();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // An operation that blocks its thread takes one of them; the others go on.
        .worker_threads(std::thread::available_parallelism().map_or(4, |n| n.get().max(4)))
        .enable_all()
        .build();
    // By reference: dropping the runtime would wait for what blocks.
    let code = match &runtime {
        Ok(runtime) => runtime.block_on(async {
            match verb {
                Verb::Serve(settings) => serve(*settings, &stop, entities).await,
                Verb::Placement { entity_type, key, server } => {
                    let path = ["v1", "placement", &entity_type, &key];
                    unless_stopped(&stop, show(&server, &path)).await
                }
                Verb::Upgrade { entity_type, server } => {
                    unless_stopped(&stop, upgrade::run(&server.url, entity_type.as_deref())).await
                }
                Verb::Workflow(verb) => unless_stopped(&stop, workflow::run(verb)).await,
                Verb::Replay(asked) => {
                    let hosted = entities(Node::builder()).workflow_descriptions();
                    unless_stopped(&stop, replay::run(&asked, hosted)).await
                }
                Verb::Cluster { server } => {
                    unless_stopped(&stop, show(&server, &["v1", "cluster"])).await
                }
            }
        }),
        Err(error) => fail(exit::FAILED, &format!("no async runtime: {error}")),
    };
    exit_with(code)
}

/// Whatever still blocks, or waits for the disk, is left behind, and the database's own threads are not
/// raced by its destructors.
fn exit_with(code: u8) -> ! {
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
    let (filter, problem) = log_filter(std::env::var_os("RUST_LOG").as_deref());
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
    if let Some(problem) = problem {
        tracing::warn!("{problem}");
    }
}

fn fail(code: u8, message: &str) -> u8 {
    let _nobody_reads = writeln!(std::io::stderr(), "stead: {message}");
    code
}

async fn serve(
    settings: Serve,
    stop: &Stop,
    entities: impl FnOnce(NodeBuilder) -> NodeBuilder,
) -> u8 {
    let config = Config {
        turn_deadline: settings.turn_deadline,
        call_deadline: settings.call_deadline,
        block_limit: settings.block_limit,
        retries: settings.retries,
        retention: settings.retention,
        body_bytes_max: settings.body_bytes_max,
        mailbox_max: settings.mailbox_max,
        requests_max: settings.requests_max,
        memory: open::memory(&settings),
        memory_is_of_process: true,
        lease: settings.lease,
        idle: settings.idle,
        ..Config::default()
    };
    let problems = config.problems();
    if !problems.is_empty() {
        return fail(exit::USAGE, &problems.join("; "));
    }
    tell_division(config.memory);
    let connections = ServerSettings { idle_connection: settings.idle_connection };
    let server = match Server::bind_with(&settings.listen, connections).await {
        Ok(server) => server,
        Err(error) => {
            let message = format!("cannot listen on {}: {error}", settings.listen);
            return fail(exit::FAILED, &message);
        }
    };
    let (builder, place) = match open::open(&settings).await {
        Ok(opened) => opened,
        Err((code, message)) => return fail(code, &message),
    };
    let builder = builder.config(config).name(open::name(&settings));
    let node = match entities(builder).start().await {
        Ok(node) => node,
        Err(error @ StartError::Invalid(_)) => return fail(exit::USAGE, &error.to_string()),
        Err(error @ StartError::Layout(_)) => return fail(exit::LAYOUT, &error.to_string()),
        Err(error @ StartError::Stranger(_)) => return fail(exit::USAGE, &error.to_string()),
        Err(error @ StartError::InUse(_)) => return fail(exit::IN_USE, &error.to_string()),
        Err(error) => return fail(exit::FAILED, &error.to_string()),
    };
    tracing::info!(
        "listening on {}, data in {place}; try: {}",
        places(&server),
        hint(&node, &server)
    );
    serve_until(node, server, stop).await
}

/// Says how the memory is divided.
fn tell_division(budget: usize) {
    let size = |bytes: usize| ByteSize(bytes as u64).display().iec().to_string();
    let it = MemoryDivision::of(budget);
    tracing::info!(
        program = size(it.program),
        cache = size(it.cache),
        write_buffers = size(it.write_buffers),
        requests = size(it.requests),
        commits = size(it.commits),
        entities = size(it.entities),
        "the memory of {} is divided; --memory sets it",
        size(budget)
    );
}

/// Every address where the server listens, as URLs.
fn places(server: &Server) -> String {
    let addresses = server.addresses().unwrap_or_default();
    let urls: Vec<_> = addresses.iter().map(|address| format!("http://{address}")).collect();
    urls.join(", ")
}

/// A first command to type, for somebody who has just started the server.
fn hint(node: &Node, server: &Server) -> String {
    let Ok(mut address) = server.address() else { return String::new() };
    match address.ip() {
        IpAddr::V4(all) if all.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(all) if all.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _one => {}
    }
    match node.descriptions().iter().any(|known| known.name == "counter") {
        true => format!("curl --json 5 http://{address}/v1/entities/counter/visits/calls/add"),
        false => format!("curl http://{address}/v1/entities"),
    }
}

async fn serve_until(node: Node, server: Server, asked: &Stop) -> u8 {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let router = node.router();
    let serving = async move {
        let stopped = async move { drop(stopped.await) };
        server.serve(router, stopped, Duration::from_millis(500)).await;
    };
    let mut serving = tokio::task::JoinSet::from_iter([serving]);
    tokio::select! {
        fatal = node.failed() => {
            return fail(fatal.exit_code(), &fatal.to_string());
        }
        // Where it cannot be waited for, a stop is as good as asked for.
        _asked = asked.asked() => {}
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

/// Does the work of a verb that asks a server, and returns its exit code, unless the process is asked to end before.
async fn unless_stopped(stop: &Stop, work: impl Future<Output = u8>) -> u8 {
    tokio::select! {
        code = work => code,
        _asked = stop.asked() => {
            let _ended = stop.end();
            exit::FAILED
        }
    }
}

/// Prints what a server answers.
async fn show(server: &Asked, path: &[&str]) -> u8 {
    let asked = async { Client::new(&server.url)?.show(path).await };
    match asked.await {
        Ok(shown) => {
            let _nobody_reads = writeln!(std::io::stdout(), "{}", for_people(&shown));
            0
        }
        Err(error) => fail(exit::FAILED, &format!("{}: {error}", server.url)),
    }
}

/// JSON with a line for each field, and for each element of a list.
fn for_people(shown: &serde_json::Value) -> String {
    let Some(fields) = shown.as_object() else { return shown.to_string() };
    let field = |(name, value): (&String, &serde_json::Value)| match value.as_array() {
        Some(all) if !all.is_empty() => {
            let lines: Vec<_> = all.iter().map(|one| format!("    {one}")).collect();
            format!("  \"{name}\": [\n{}\n  ]", lines.join(",\n"))
        }
        _ => format!("  \"{name}\": {value}"),
    };
    format!("{{\n{}\n}}", fields.iter().map(field).collect::<Vec<_>>().join(",\n"))
}
