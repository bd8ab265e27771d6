//! The processes, each behind proxies of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use stead_tests::{binary, database::Database, free_address, proxy::Proxy, wait::until};

/// How long leases last.
pub const LEASE: Duration = Duration::from_secs(1);

/// A node: its process, and the proxies between it and the database, and its peers and it.
pub struct NodeProcess {
    pub name: String,
    pub listen: SocketAddr,
    pub to_database: Proxy,
    store: String,
    pub from_peers: Proxy,
    peer_listen: SocketAddr,
    child: Option<Child>,
    pub lease: Duration,
    /// How far its wall clock is off, as libfaketime writes it.
    skew: Option<String>,
    /// The file in which the steps of its workflows write.
    pub outside: Option<PathBuf>,
}

impl NodeProcess {
    pub async fn new(name: &str, database: &Database, skew: Option<String>) -> Result<Self> {
        let peer_listen = free_address()?;
        let to_database = Proxy::start(database.address()).await?;
        Ok(Self {
            name: name.into(),
            listen: free_address()?,
            store: database.url_at(to_database.address())?,
            to_database,
            from_peers: Proxy::start(peer_listen).await?,
            peer_listen,
            child: None,
            lease: LEASE,
            skew,
            outside: None,
        })
    }

    /// Starts the process, and waits until it listens.
    pub async fn start(&mut self, secret: &Path) -> Result<()> {
        let mut command = Command::new(binary("unruly")?);
        command.args(["serve", "--node-id", &self.name, "--idle", "0.05"]);
        command.args(["--listen", &self.listen.to_string()]);
        command.args(["--peer-listen", &self.peer_listen.to_string()]);
        command.args(["--peer-address", &self.from_peers.address().to_string()]);
        command.args(["--lease", &self.lease.as_secs_f64().to_string()]);
        command.arg("--cluster-secret-file").arg(secret);
        command.env("STEAD_STORE", &self.store);
        if let Some(outside) = &self.outside {
            command.env("STEPS", outside).env("READY_MADE", "yes");
        }
        if let Some(skew) = &self.skew {
            command.env("LD_PRELOAD", FAKETIME).env("FAKETIME", skew);
            // Only the wall clock is off.
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let log = std::env::var("STEAD_LOGS").ok().map(|logs| format!("{logs}/{}.log", self.name));
        let log = log.map(|log| std::fs::File::options().create(true).append(true).open(log));
        let log = log.transpose()?.map_or(Stdio::null(), Stdio::from);
        self.child = Some(command.stdin(Stdio::null()).stderr(log).spawn()?);
        Ok(())
    }

    /// Whether the process is there; it may have ended by itself, as a node does whose name is held.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        if let Some(child) = &self.child {
            kill_process(Pid::from_child(child), signal)?;
        }
        Ok(())
    }

    /// Waits until the process has ended.
    pub async fn ended(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if until("the node ends", async || Ok(child.try_wait()?)).await.is_ok() {
            return Ok(());
        }
        let _killed = child.kill();
        let _reaped = child.wait();
        bail!("{} does not end within 30 s", self.name)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }
}

/// Moves the wall clock of a process.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Whether wall clocks can be moved on this machine.
pub fn can_skew() -> bool {
    Path::new(FAKETIME).exists()
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ended_already = child.kill();
            let _reaped = child.wait();
        }
    }
}
