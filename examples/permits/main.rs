//! Replays real events against a server that is killed again and again; see README.md.

mod applications;
mod client;
mod compare;
mod drive;
mod entities;
mod random;
mod registry;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use stead::{
    Config, Node, NodeBuilder, PostgresStore, RocksStore, Server,
    store::postgres::PostgresSettings,
    transport::{HttpTransport, Secret},
};

use applications::Applications;
use entities::{Activity, Clerk, Permit};

/// Replays the permit applications.
#[derive(Debug, Parser)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Hosts permits, clerks, activities and applications.
    Serve {
        #[arg(long)]
        data: PathBuf,
        #[command(flatten)]
        addresses: Addresses,
    },
    /// Hosts them as one of many nodes.
    Join {
        #[arg(long)]
        store: String,
        #[arg(long)]
        name: String,
        #[arg(long)]
        peers: SocketAddr,
        #[command(flatten)]
        addresses: Addresses,
    },
    /// Gives receipts for the events of applications, and fails at random.
    Registry {
        #[arg(long)]
        listen: SocketAddr,
        /// The file of the receipts.
        #[arg(long)]
        ledger: PathBuf,
        #[arg(long)]
        seed: u64,
    },
    /// Sends every request that was not yet accepted, then exits.
    Send {
        #[arg(long, value_enum)]
        form: Form,
        #[arg(long, required = true)]
        server: Vec<SocketAddr>,
        /// The file in which it notes what was accepted.
        #[arg(long)]
        progress: PathBuf,
    },
    /// Runs server, client and registry, kills them at random moments, and compares the outcome.
    Drive(drive::Settings),
}

/// A form of the permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Entities that tell others.
    Entities,
    /// Workflows that take events and have each registered.
    Workflows,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Entities => "entities",
            Self::Workflows => "workflows",
        }
    }
}

#[derive(Debug, clap::Args)]
struct Addresses {
    #[arg(long)]
    listen: SocketAddr,
    /// The address of the registry.
    #[arg(long)]
    registry: SocketAddr,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Command::parse().verb {
        Verb::Serve { data, addresses } => {
            host(Node::builder().store(RocksStore::open(data)?), addresses).await
        }
        Verb::Join { store, name, peers, addresses } => join(&store, name, peers, addresses).await,
        Verb::Registry { listen, ledger, seed } => registry::serve(listen, ledger, seed).await,
        Verb::Send { form, server, progress } => client::send(server, progress, form).await,
        Verb::Drive(settings) => drive::drive(settings).await,
    }
}

async fn join(store: &str, name: String, peers: SocketAddr, addresses: Addresses) -> Result<()> {
    let lease = Duration::from_secs(1);
    let settings = PostgresSettings::with(|settings| settings.statement_timeout = lease);
    let store = PostgresStore::connect_shared(store, &settings).await?;
    let secret = Secret::new(b"no secret at all, but long").context("long enough")?;
    let peers = HttpTransport::bind(peers, None, secret).await?;
    let address = peers.address().to_owned();
    let config = Config::with(|config| config.lease = lease);
    host(Node::builder().share(store, peers, address).name(name).config(config), addresses).await
}

async fn host(node: NodeBuilder, addresses: Addresses) -> Result<()> {
    let node = node.entity::<Permit>().entity::<Clerk>().entity::<Activity>();
    let node = node.workflow(Applications::new(addresses.registry)?).start().await?;
    let server = Server::bind(addresses.listen).await?;
    let interrupted = async { drop(tokio::signal::ctrl_c().await) };
    server.serve(node.router(), interrupted, Duration::from_secs(1)).await;
    node.drain().await?;
    Ok(())
}
