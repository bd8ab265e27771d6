//! A chat room with a page that shows it live: a log, a map, and a stream of changes.
//!
//! `cargo run --release --bin chat` serves <http://127.0.0.1:8082/> until it is interrupted; open it twice, or
//! say something by hand:
//!
//! ```text
//! $ curl -X POST http://127.0.0.1:8082/stead/v1/entities/room/lobby/calls/say \
//!        -H 'content-type: application/json' -d '{"from": "kim", "text": "hello"}'
//! 0
//! ```
//!
//! What was said stays where `--data DIR` names a directory. The page follows
//! `/stead/v1/entities/room/lobby/changes`, whose states show the newest messages, and asks for older ones by
//! the query `before`.

mod room;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Result;
use axum::{Router, response::Html, routing::get};
use clap::Parser;
use stead::{Node, RocksStore, Server, store::rocks::RocksSettings};

use crate::room::Room;

/// Serves a chat room.
#[derive(Debug, Parser)]
struct Command {
    /// The directory in which the messages are kept; without it they are gone with the program.
    #[arg(long)]
    data: Option<PathBuf>,
    #[arg(long, default_value = "127.0.0.1:8082")]
    listen: SocketAddr,
}

#[tokio::main]
async fn main() -> Result<()> {
    let command = Command::parse();
    let temporary = tempfile::tempdir()?;
    let data = command.data.unwrap_or_else(|| temporary.path().to_owned());
    let store = RocksStore::open_async(&data, RocksSettings::default()).await?;
    let node = Node::builder().store(store).entity::<Room>().start().await?;
    let page = || async { Html(include_str!("page.html")) };
    let app = Router::new().route("/", get(page)).nest("/stead", node.router());
    let server = Server::bind(command.listen).await?;
    println!("listening on http://{}", server.address()?);
    let interrupted = async { drop(tokio::signal::ctrl_c().await) };
    tokio::select! {
        () = server.serve(app, interrupted, Duration::from_secs(1)) => {}
        fatal = node.failed() => {
            eprintln!("the node cannot go on: {fatal}");
            std::process::exit(fatal.exit_code().into());
        }
    }
    node.drain().await?;
    Ok(())
}
