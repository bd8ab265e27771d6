//! A private PostgreSQL.

use std::{
    net::SocketAddr,
    os::unix::{fs::chown, process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{free_address, leave_out};
use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

/// The user of a server that root starts, because PostgreSQL refuses to run as root: nobody.
const NOBODY: u32 = 65_534;

/// A PostgreSQL server with an empty database, in a directory of its own. Dropping it stops it.
#[derive(Debug)]
pub struct Database {
    server: Child,
    directory: TempDir,
    programs: PathBuf,
    address: SocketAddr,
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
        let server = run(&programs, &directory, address, settings)?;
        let database = Self { server, directory, programs, address };
        database.answers().await?;
        Ok(Some(database))
    }

    /// Stops the server at once, as a crash would, and starts it again.
    ///
    /// # Errors
    /// What PostgreSQL or the operating system says.
    pub async fn crash(&mut self) -> Result<()> {
        self.stop(Signal::QUIT)?;
        self.server = run(&self.programs, &self.directory, self.address, &[])?;
        self.answers().await
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as clients write it.
    pub fn url(&self) -> String {
        url(self.address)
    }

    fn stop(&mut self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.server), signal)?;
        self.server.wait()?;
        Ok(())
    }

    async fn answers(&self) -> Result<()> {
        for _ in 0..1_500 {
            let connected = tokio_postgres::connect(&self.url(), tokio_postgres::NoTls).await;
            if connected.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("PostgreSQL does not answer within 30 s")
    }

    /// The first column of the first row of a query.
    ///
    /// # Errors
    /// What the database says.
    pub async fn number(&self, sql: &str) -> Result<i64> {
        let (client, connection) =
            tokio_postgres::connect(&self.url(), tokio_postgres::NoTls).await?;
        let carrying = tokio::spawn(connection);
        let row = client.query_one(sql, &[]).await?;
        let number = row.try_get::<_, Option<i64>>(0)?.unwrap_or(0);
        drop(client);
        carrying.await?.context("the connection")?;
        Ok(number)
    }

    /// Runs SQL on a connection of its own.
    ///
    /// # Errors
    /// What the database says.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        let (client, connection) =
            tokio_postgres::connect(&self.url(), tokio_postgres::NoTls).await?;
        let carrying = tokio::spawn(connection);
        client.batch_execute(sql).await?;
        drop(client);
        carrying.await?.context("the connection")
    }
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

fn run(
    programs: &std::path::Path,
    directory: &TempDir,
    address: SocketAddr,
    settings: &[&str],
) -> Result<Child> {
    let mut command = unprivileged(programs.join("postgres"));
    command.arg("-D").arg(directory.path().join("data"));
    command.args(["-h", "127.0.0.1", "-p", &address.port().to_string()]);
    command.arg("-k").arg(directory.path());
    for setting in settings {
        command.args(["-c", setting]);
    }
    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

impl Drop for Database {
    fn drop(&mut self) {
        let _stopped_already = self.stop(Signal::QUIT);
    }
}
