//! A microservice of its own, with the runtime beside its routes and the node's routes nested.
//!
//! `cargo run --release --bin service` serves on 127.0.0.1:8081 until it is interrupted:
//!
//! ```text
//! $ curl http://127.0.0.1:8081/
//! welcome, visitor 1
//! $ curl http://127.0.0.1:8081/stead/v1/entities/counter/home/queries/value
//! 1
//! ```

use std::sync::Arc;

use anyhow::Result;
use axum::{Router, extract::State, http::StatusCode, routing::get};
use stead::{Node, RocksStore, Server, stock::Counter};

/// The service's own state.
struct Shop {
    greeting: &'static str,
    node: Node,
}

async fn home(State(shop): State<Arc<Shop>>) -> Result<String, StatusCode> {
    let visitor = shop.node.entity::<Counter>("home").add(1).await;
    let visitor = visitor.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    Ok(format!("{}, visitor {visitor}\n", shop.greeting))
}

#[tokio::main]
async fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = RocksStore::open(directory.path())?;
    let node = Node::builder().store(store).entity::<Counter>().start().await?;
    let shop = Arc::new(Shop { greeting: "welcome", node: node.clone() });
    let app = Router::new().route("/", get(home)).nest("/stead", node.router()).with_state(shop);
    let server = Server::bind("127.0.0.1:8081".parse()?).await?;
    println!("listening on http://{}", server.address()?);
    let interrupted = async { drop(tokio::signal::ctrl_c().await) };
    server.serve(app, interrupted, std::time::Duration::from_secs(1)).await;
    node.drain().await?;
    Ok(())
}
