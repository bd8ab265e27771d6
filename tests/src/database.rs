//! A private PostgreSQL, or an empty database at one whose address is given.

use std::{
    net::{SocketAddr, ToSocketAddrs as _},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{free_address, leave_out, wait};
use anyhow::{Context as _, Result, bail};
use reqwest::Url;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// The user of a server that root starts, because PostgreSQL refuses to run as root: nobody.
const NOBODY: u32 = 65_534;

/// The address of a database, with a port, whose user may create others, for the tests that need no
/// server of their own.
const GIVEN: &str = "STEAD_TEST_POSTGRES";

/// An empty database, at a server in a directory of its own or at the one that is given. Dropping it
/// stops the one, and drops the database at the other.
#[derive(Debug)]
pub struct Database {
    url: Url,
    address: SocketAddr,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Own { server: Child, directory: TempDir, programs: PathBuf },
    Given(Url),
}

/// Where PostgreSQL's programs lie, if they are on this machine.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<_> = versions
        .filter_map(|version| Some(version.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists() && bin.join("postgres").exists())
        .collect();
    found.sort();
    found.pop()
}

impl Database {
    /// A database at the server whose address is given, else at one of its own.
    ///
    /// # Errors
    /// What PostgreSQL or the operating system says.
    pub async fn any() -> Result<Option<Self>> {
        let Ok(given) = std::env::var(GIVEN) else { return Self::start(&[]).await };
        let given = Url::parse(&given).context(GIVEN)?;
        let host = (given.host_str().context("a host")?, given.port().context("a port")?);
        let address = host.to_socket_addrs()?.next().context("an address")?;
        let name = format!("stead_test_{}", free_address()?.port());
        execute(&given, &format!("drop database if exists {name}")).await?;
        execute(&given, &format!("create database {name}")).await?;
        let mut url = given.clone();
        url.set_path(&name);
        Ok(Some(Self { url, address, place: Place::Given(given) }))
    }

    /// Starts a server with further settings, such as `fsync=off`; `None`, and says so, where there
    /// is no PostgreSQL.
    ///
    /// # Errors
    /// What PostgreSQL or the operating system says.
    pub async fn start(settings: &[&str]) -> Result<Option<Self>> {
        let Some(programs) = programs() else {
            leave_out("a test with PostgreSQL, which is not on this machine");
            return Ok(None);
        };
        let directory = tempfile::tempdir()?;
        if geteuid().is_root() {
            chown(directory.path(), Some(NOBODY), Some(NOBODY))?;
        }
        let mut making = unprivileged(programs.join("initdb"));
        making.arg("-D").arg(directory.path().join("data"));
        making.args(["-U", "stead", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
        let made = making.output()?;
        if !made.status.success() {
            bail!("initdb: {}", String::from_utf8_lossy(&made.stderr));
        }
        let address = free_address()?;
        let server = run(&programs, directory.path(), address, settings)?;
        let url = Url::parse(&url(address))?;
        let database = Self { url, address, place: Place::Own { server, directory, programs } };
        database.answers().await?;
        Ok(Some(database))
    }

    /// Stops the server, at once as a crash would with `Signal::QUIT`, in order with `Signal::INT`, and
    /// starts it again.
    ///
    /// # Errors
    /// What PostgreSQL or the operating system says; where the server is not the test's own.
    pub async fn restart(&mut self, signal: Signal) -> Result<()> {
        let Place::Own { server, directory, programs } = &mut self.place else {
            bail!("the server is not the test's own");
        };
        stop(server, signal)?;
        *server = run(programs, directory.path(), self.address, &[])?;
        self.answers().await
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as clients write it.
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// The same by way of another address.
    ///
    /// # Errors
    /// Never for an address of this machine.
    pub fn url_at(&self, address: SocketAddr) -> Result<String> {
        let mut url = self.url.clone();
        let host = url.set_ip_host(address.ip());
        let port = url.set_port(Some(address.port()));
        host.and(port).map(|()| url.to_string()).ok().context("an address")
    }

    async fn answers(&self) -> Result<()> {
        let connects = async || {
            let connected = tokio_postgres::connect(self.url.as_str(), NoTls).await;
            Ok(connected.is_ok().then_some(()))
        };
        wait::until("PostgreSQL answers", connects).await
    }

    /// The first column of the first row of a query.
    ///
    /// # Errors
    /// What the database says.
    pub async fn number(&self, sql: &str) -> Result<i64> {
        let row = on(&self.url, async |client| client.query_one(sql, &[]).await).await?;
        Ok(row.try_get::<_, Option<i64>>(0)?.unwrap_or(0))
    }

    /// Runs SQL on a connection of its own.
    ///
    /// # Errors
    /// What the database says.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        execute(&self.url, sql).await
    }
}

async fn execute(url: &Url, sql: &str) -> Result<()> {
    on(url, async |client| client.batch_execute(sql).await).await
}

/// Does something on a connection of its own.
async fn on<T>(
    url: &Url,
    work: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
) -> Result<T> {
    let (client, connection) = tokio_postgres::connect(url.as_str(), NoTls).await?;
    let carrying = tokio::spawn(connection);
    let done = work(&client).await?;
    drop(client);
    carrying.await?.context("the connection")?;
    Ok(done)
}

fn stop(server: &mut Child, signal: Signal) -> Result<()> {
    kill_process(Pid::from_child(server), signal)?;
    server.wait()?;
    Ok(())
}

/// The address of a database behind a port of this machine.
pub fn url(address: SocketAddr) -> String {
    format!("postgres://stead@{address}/postgres")
}

fn unprivileged(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.current_dir("/");
    command
}

fn run(programs: &Path, directory: &Path, address: SocketAddr, settings: &[&str]) -> Result<Child> {
    let mut command = unprivileged(programs.join("postgres"));
    command.arg("-D").arg(directory.join("data"));
    command.args(["-h", "127.0.0.1", "-p", &address.port().to_string()]);
    command.arg("-k").arg(directory);
    for setting in settings {
        command.args(["-c", setting]);
    }
    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

impl Drop for Database {
    fn drop(&mut self) {
        let given = match &mut self.place {
            Place::Own { server, .. } => {
                let _stopped_already = stop(server, Signal::QUIT);
                return;
            }
            Place::Given(given) => given.clone(),
        };
        let name = self.url.path().trim_start_matches('/').to_owned();
        // Not on the runtime of the test, which may have ended.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(execute(&given, &format!("drop database {name} with (force)")))
        });
        if !matches!(dropping.join(), Ok(Ok(()))) {
            leave_out("dropping a test's database at the given server");
        }
    }
}
