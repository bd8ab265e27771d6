//! What the test tiers share: a real server process, and a directory for its data.

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[derive(Debug)]
pub struct Readme;

pub mod database;
pub mod events;
pub mod history;
pub mod indexes;
pub mod log;
pub mod plain;
#[path = "../../entities/tests/workflows/programs.rs"]
pub mod programs;
pub mod proxy;
pub mod random;
pub mod wait;
pub mod workflows;

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use reqwest::{Client, RequestBuilder, Response};
use tempfile::NamedTempFile;

/// A `stead serve` process. Dropping it kills it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    client: Client,
}

/// Says what a test leaves out, past the capture of the test runner.
pub fn leave_out(what: &str) {
    // Where nobody reads, nobody misses it.
    let _unread = writeln!(std::io::stderr(), "left out: {what}");
}

/// A binary under test.
///
/// # Errors
/// Where it is missing.
pub fn binary(name: &str) -> Result<std::path::PathBuf> {
    // Test binaries lie in `<target>/release/deps`, programs in `<target>/release`.
    let this = std::env::current_exe()?;
    let beside = this.parent().context("a target directory")?;
    let directory = if beside.ends_with("deps") { beside.parent() } else { Some(beside) };
    let binary = directory.context("a target directory")?.join(name);
    if !binary.exists() {
        bail!("{} is missing: run `make build` first", binary.display());
    }
    Ok(binary)
}

/// A port of this machine that nobody uses at present.
///
/// # Errors
/// Where the operating system gives none.
pub fn free_address() -> Result<SocketAddr> {
    // Below the ports that the operating system hands to clients, and each once: a port that is only
    // looked up is taken by somebody else before the server listens on it.
    static ASKED: AtomicU32 = AtomicU32::new(0);
    for _ in 0..1_000 {
        let asked = ASKED.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (std::process::id().wrapping_mul(131).wrapping_add(asked)) % 20_000;
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port)?));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port is free")
}

/// The command that serves `data` at `address`, with further arguments.
///
/// # Errors
/// Where the binary is missing.
pub fn command(data: &Path, address: SocketAddr, arguments: &[&str]) -> Result<Command> {
    command_of("stead", data, address, arguments)
}

/// The same for the server of this name.
///
/// # Errors
/// Where the binary is missing.
pub fn command_of(
    name: &str,
    data: &Path,
    address: SocketAddr,
    arguments: &[&str],
) -> Result<Command> {
    let mut command = Command::new(binary(name)?);
    command.arg("serve").arg("--data").arg(data);
    command.arg("--listen").arg(address.to_string()).args(arguments);
    command.stdin(Stdio::null());
    Ok(command)
}

/// The command that serves the data of a database at `address`.
///
/// # Errors
/// Where the binary is missing.
pub fn command_on(store: &str, address: SocketAddr) -> Result<Command> {
    let mut command = Command::new(binary("stead")?);
    command.args(["serve", "--listen", &address.to_string()]).env("STEAD_STORE", store);
    command.stdin(Stdio::null());
    Ok(command)
}

/// A file with the secret of a cluster.
///
/// # Errors
/// What the operating system says.
pub fn secret_file(secret: &[u8]) -> Result<NamedTempFile> {
    let mut file = NamedTempFile::new()?;
    file.write_all(secret)?;
    Ok(file)
}

/// The command of a node that shares the database behind `store` under `name`.
///
/// # Errors
/// Where the binary is missing.
pub fn server_among(
    program: &str,
    store: &str,
    name: &str,
    listen: SocketAddr,
    secret: &Path,
) -> Result<Command> {
    let mut command = Command::new(binary(program)?);
    command.args(["serve", "--node-id", name, "--listen", &listen.to_string()]);
    command.args(["--peer-listen", &free_address()?.to_string()]);
    command.arg("--cluster-secret-file").arg(secret).env("STEAD_STORE", store);
    command.stdin(Stdio::null());
    Ok(command)
}

/// Waits until somebody serves at `address`.
///
/// # Errors
/// Where nobody does within 30 s.
pub async fn wait_alive(address: SocketAddr) -> Result<()> {
    let url = format!("http://{address}/livez");
    let answers = async || Ok(reqwest::get(&url).await.is_ok().then_some(()));
    wait::until(&format!("somebody serves at {address}"), answers).await
}

impl Server {
    /// Starts a server and waits until it is alive.
    ///
    /// # Errors
    /// Where it exits instead; its exit code is in the text.
    pub async fn start(data: &Path, arguments: &[&str]) -> Result<Self> {
        let address = free_address()?;
        Self::run(command(data, address, arguments)?, address).await
    }

    /// Starts the server that this command describes and waits until it is alive.
    ///
    /// # Errors
    /// Where it exits instead; its exit code is in the text.
    pub async fn run(command: Command, address: SocketAddr) -> Result<Self> {
        Self::run_with_log(command, address, Stdio::null()).await
    }

    /// The same, with its log written somewhere.
    ///
    /// # Errors
    /// Where it exits instead; its exit code is in the text.
    pub async fn run_with_log(
        mut command: Command,
        address: SocketAddr,
        log: impl Into<Stdio>,
    ) -> Result<Self> {
        let child = command.stderr(log).spawn()?;
        let client = Client::builder().timeout(Duration::from_secs(20)).build()?;
        let mut server = Self { child, address, client };
        server.wait_alive().await?;
        Ok(server)
    }

    async fn wait_alive(&mut self) -> Result<()> {
        let answers = async || {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server exited: {status}");
            }
            Ok(self.get("/livez").send().await.is_ok().then_some(()))
        };
        wait::until("the server answers", answers).await
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The id of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A GET of `path`.
    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("http://{}{path}", self.address))
    }

    /// A POST of `body` to `path`, without a content type.
    pub fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.client.post(format!("http://{}{path}", self.address)).body(body)
    }

    /// A DELETE of `path`.
    pub fn delete(&self, path: &str) -> RequestBuilder {
        self.client.delete(format!("http://{}{path}", self.address))
    }

    /// A call's result.
    ///
    /// # Errors
    /// Where the answer is not 200 or not JSON.
    pub async fn call(&self, path: &str, body: &str) -> Result<serde_json::Value> {
        let response = self.post(path, body.to_owned()).send().await?;
        let status = response.status();
        let text = response.text().await?;
        if status != 200 {
            bail!("{status}: {text}");
        }
        Ok(serde_json::from_str(&text)?)
    }

    /// Kills the process as a power cut of the process would: no handler runs.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Kills the process while others still use it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn kill_now(&self) -> Result<()> {
        let id = rustix::process::Pid::from_child(&self.child);
        Ok(rustix::process::kill_process(id, rustix::process::Signal::KILL)?)
    }

    /// Asks the process to end and waits for it.
    ///
    /// # Errors
    /// Where it does not end within 30 s.
    pub async fn terminate(mut self) -> Result<ExitStatus> {
        self.ask_to_stop()?;
        self.wait_exit().await
    }

    /// Asks the process to end while others still use it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn ask_to_stop(&self) -> Result<()> {
        self.signal(rustix::process::Signal::TERM)
    }

    /// Sends the process a signal.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let id = rustix::process::Pid::from_child(&self.child);
        Ok(rustix::process::kill_process(id, signal)?)
    }

    /// Waits until the process ends by itself.
    ///
    /// # Errors
    /// Where it does not end within 15 s.
    pub async fn wait_exit(&mut self) -> Result<ExitStatus> {
        wait::until("the server ends", async || Ok(self.child.try_wait()?)).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The `type` of a problem document without its prefix, and its status.
///
/// # Errors
/// Where the answer is no problem document.
pub async fn problem(response: Response) -> Result<(u16, String, String)> {
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type").cloned();
    if kind.is_none_or(|kind| kind != "application/problem+json") {
        bail!("{status} is not a problem document");
    }
    let body: serde_json::Value = response.json().await?;
    let slug = body["type"].as_str().unwrap_or_default();
    let slug = slug.strip_prefix("urn:stead:problem:").context("a stable type")?.to_owned();
    Ok((status, slug, body["detail"].as_str().unwrap_or_default().to_owned()))
}
