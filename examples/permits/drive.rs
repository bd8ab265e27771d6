//! The driver: kills servers, client and registry, and has the outcome compared with the file.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Result, bail, ensure};

use crate::{Form, compare, random::Random};

/// How the replay is run.
#[derive(Debug, clap::Args)]
pub struct Settings {
    /// How many kills there are.
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// Decides the moments of the kills, and what fails.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The form of the permits.
    #[arg(long, value_enum, default_value = "entities")]
    form: Form,
    /// A PostgreSQL database that three nodes share, instead of a directory for one.
    #[arg(long)]
    store: Option<String>,
}

/// Runs the replay: through one server and its directory, or through three that share a database.
pub async fn drive(settings: Settings) -> Result<()> {
    let Settings { kills, seed, form, store } = settings;
    let directory = tempfile::tempdir()?;
    let (data, registry) = (directory.path(), free()?);
    let places = (0..if store.is_some() { 3 } else { 1 }).map(|number| {
        let (name, listen, peers) = (format!("n{number}"), free()?, free()?);
        anyhow::Ok(Place { name, listen, peers, registry, store: store.clone() })
    });
    let places: Vec<Place> = places.collect::<Result<_>>()?;
    println!("replaying through {} servers with {kills} kills, seed {seed}", places.len());
    let start = |place: &Place| Process::server(data, place);
    let mut servers: Vec<Process> = places.iter().map(start).collect::<Result<_>>()?;
    let addresses: Vec<_> = places.iter().map(|place| place.listen).collect();
    let mut client = Process::client(data, &addresses, form)?;
    let mut service = Process::registry(data, registry, seed)?;
    let mut random = Random::new(seed);
    let victims = if form == Form::Workflows { 4 } else { 3 };
    for kill in 1..=kills {
        let pause = Duration::from_millis(30 + random.below(220));
        tokio::time::sleep(pause).await;
        match random.below(victims) {
            0 => client = client.replaced_by(|| Process::client(data, &addresses, form))?,
            3 => service = service.replaced_by(|| Process::registry(data, registry, seed))?,
            _ => {
                let number = random.below(places.len() as u64) as usize;
                let killed = servers.remove(number);
                servers.insert(number, killed.replaced_by(|| start(&places[number]))?);
            }
        }
        if kill % 5 == 0 {
            println!("{kill} of {kills} kills");
        }
    }
    client.finish().await?;
    let outcome = match form {
        Form::Entities => compare::entities(addresses[0]).await,
        Form::Workflows => compare::applications(addresses[0], &ledger(data)).await,
    };
    drop((servers, service));
    outcome
}

/// The file of the registry.
fn ledger(data: &Path) -> PathBuf {
    data.join("receipts")
}

/// The address of a server, and the place of its data.
struct Place {
    name: String,
    listen: SocketAddr,
    peers: SocketAddr,
    registry: SocketAddr,
    store: Option<String>,
}

fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A child process; dropping it kills it.
struct Process(Child);

impl Process {
    fn server(data: &Path, place: &Place) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        match &place.store {
            Some(store) => {
                command.args(["join", "--store", store, "--name", &place.name]);
                command.args(["--peers", &place.peers.to_string()]);
            }
            None => drop(command.arg("serve").arg("--data").arg(data.join("data"))),
        }
        command.args(["--listen", &place.listen.to_string()]);
        command.args(["--registry", &place.registry.to_string()]);
        Ok(Self(command.stdin(Stdio::null()).spawn()?))
    }

    fn registry(data: &Path, listen: SocketAddr, seed: u64) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["registry", "--listen", &listen.to_string(), "--seed", &seed.to_string()]);
        command.arg("--ledger").arg(ledger(data));
        Ok(Self(command.stdin(Stdio::null()).spawn()?))
    }

    fn client(data: &Path, addresses: &[SocketAddr], form: Form) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["send", "--form", form.name()]);
        for address in addresses {
            command.arg("--server").arg(address.to_string());
        }
        command.arg("--progress").arg(data.join("progress"));
        Ok(Self(command.stdin(Stdio::null()).spawn()?))
    }

    /// Kills the process, then starts another.
    fn replaced_by(self, start: impl FnOnce() -> Result<Self>) -> Result<Self> {
        drop(self);
        start()
    }

    async fn finish(mut self) -> Result<()> {
        for _ in 0..6_000 {
            if let Some(status) = self.0.try_wait()? {
                ensure!(status.success(), "the client failed: {status}");
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the client does not end within two minutes")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}
