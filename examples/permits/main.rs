//! Replays real events against a server that is killed again and again; see README.md.

mod client;
mod drive;
mod entities;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use stead::{
    Config, Node, NodeBuilder, PostgresStore, RocksStore, Server,
    store::postgres::PostgresSettings,
    transport::{HttpTransport, Secret},
};

use entities::{Activity, Clerk, Permit};

/// Replays the permit applications.
#[derive(Debug, Parser)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Hosts permits, clerks and activities.
    Serve {
        #[arg(long)]
        data: PathBuf,
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Hosts them as one of many nodes.
    Join {
        #[arg(long)]
        store: String,
        #[arg(long)]
        name: String,
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        peers: SocketAddr,
    },
    /// Sends every event that was not yet accepted, then exits.
    Send {
        #[arg(long, required = true)]
        server: Vec<SocketAddr>,
        /// The file in which it notes what was accepted.
        #[arg(long)]
        progress: PathBuf,
    },
    /// Runs server and client, kills them at random moments, and compares the outcome.
    Drive {
        #[arg(long, default_value_t = 20)]
        kills: u32,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// A PostgreSQL database that three nodes share, instead of a directory for one.
        #[arg(long)]
        store: Option<String>,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Command::parse().verb {
        Verb::Serve { data, listen } => serve(data, listen).await,
        Verb::Send { server, progress } => client::send(server, progress).await,
        Verb::Join { store, name, listen, peers } => join(&store, name, listen, peers).await,
        Verb::Drive { kills, seed, store } => drive::drive(kills, seed, store).await,
    }
}

async fn serve(data: PathBuf, listen: SocketAddr) -> Result<()> {
    host(Node::builder().store(RocksStore::open(data)?), listen).await
}

async fn join(store: &str, name: String, listen: SocketAddr, peers: SocketAddr) -> Result<()> {
    let lease = Duration::from_secs(1);
    let settings = PostgresSettings::with(|settings| settings.statement_timeout = lease);
    let store = PostgresStore::connect_shared(store, &settings).await?;
    let secret = Secret::new(b"no secret at all, but long").context("long enough")?;
    let peers = HttpTransport::bind(peers, None, secret).await?;
    let address = peers.address().to_owned();
    let config = Config::with(|config| config.lease = lease);
    host(Node::builder().share(store, peers, address).name(name).config(config), listen).await
}

async fn host(node: NodeBuilder, listen: SocketAddr) -> Result<()> {
    let node = node.entity::<Permit>().entity::<Clerk>().entity::<Activity>().start().await?;
    let server = Server::bind(listen).await?;
    let interrupted = async { drop(tokio::signal::ctrl_c().await) };
    server.serve(node.router(), interrupted, Duration::from_secs(1)).await;
    node.drain().await?;
    Ok(())
}
