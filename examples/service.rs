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
//!
//! Where the node cannot go on, it ends the process at once, for its supervisor to start it again.

use std::sync::Arc;

use anyhow::Result;
use axum::{Router, extract::State, http::StatusCode, routing::get};
use stead::{Node, RocksStore, Server, stock::Counter, store::rocks::RocksSettings};

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

/// Tells a load balancer whether this service should get requests.
async fn ready(State(shop): State<Arc<Shop>>) -> Result<&'static str, (StatusCode, String)> {
    shop.node.ready().await.map_err(|why| (StatusCode::SERVICE_UNAVAILABLE, why))?;
    Ok("ready\n")
}

#[tokio::main]
async fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = RocksStore::open_async(directory.path(), RocksSettings::default()).await?;
    let node = Node::builder().store(store).entity::<Counter>().start().await?;
    let shop = Arc::new(Shop { greeting: "welcome", node: node.clone() });
    let routes = Router::new().route("/", get(home)).route("/ready", get(ready));
    let app = routes.nest("/stead", node.router()).with_state(shop);
    let server = Server::bind("127.0.0.1:8081".parse()?).await?;
    println!("listening on http://{}", server.address()?);
    let interrupted = async { drop(tokio::signal::ctrl_c().await) };
    tokio::select! {
        () = server.serve(app, interrupted, std::time::Duration::from_secs(1)) => {}
        fatal = node.failed() => {
            eprintln!("the node cannot go on: {fatal}");
            // Not by returning: an operation that blocks for ever would keep the runtime from ending.
            std::process::exit(fatal.exit_code().into());
        }
    }
    node.drain().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use stead::testing::NodeTest;

    use super::*;

    #[test]
    fn visitors_are_counted() {
        NodeTest::new().entity::<Counter>().run(async |test| {
            for visitor in 1..=2 {
                let shop = Arc::new(Shop { greeting: "welcome", node: test.node().await });
                let welcome = format!("welcome, visitor {visitor}\n");
                assert_eq!(home(State(shop)).await, Ok(welcome));
                test.restart().await;
            }
        });
    }
}
