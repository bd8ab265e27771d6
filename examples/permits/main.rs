//! Replays real events against a server that is killed again and again; see README.md.

mod client;
mod drive;
mod entities;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand};
use stead::{Node, RocksStore, Server};

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
    /// Sends every event that was not yet accepted, then exits.
    Send {
        #[arg(long)]
        server: SocketAddr,
        /// Where it notes what was accepted.
        #[arg(long)]
        progress: PathBuf,
    },
    /// Runs server and client, kills them at random moments, and compares the outcome.
    Drive {
        #[arg(long, default_value_t = 20)]
        kills: u32,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Command::parse().verb {
        Verb::Serve { data, listen } => serve(data, listen).await,
        Verb::Send { server, progress } => client::send(server, progress).await,
        Verb::Drive { kills, seed } => drive::drive(kills, seed).await,
    }
}

async fn serve(data: PathBuf, listen: SocketAddr) -> Result<()> {
    let node = Node::builder()
        .store(RocksStore::open(data)?)
        .entity::<Permit>()
        .entity::<Clerk>()
        .entity::<Activity>()
        .start()
        .await?;
    let server = Server::bind(listen).await?;
    let interrupted = async { drop(tokio::signal::ctrl_c().await) };
    server.serve(node.router(), interrupted, Duration::from_secs(1)).await;
    node.drain().await?;
    Ok(())
}
