//! Asynchronous HTTP: a long job is started by one request, looked at by others, and gives its result when it is done.
//!
//! `cargo run --release --bin async_http` prints
//!
//! ```text
//! POST /v1/workflows/thumbnails/album-1: 202, Location: /v1/workflows/thumbnails/album-1
//! GET /v1/workflows/thumbnails/album-1: running
//! GET /v1/workflows/thumbnails/album-1?wait=30s: completed, 24 thumbnails
//! ```
//!
//! and, with `serve`, serves on 127.0.0.1:8082 until it is interrupted:
//!
//! ```text
//! $ curl -i -d 24 http://127.0.0.1:8082/v1/workflows/thumbnails/album-1
//! $ curl http://127.0.0.1:8082/v1/workflows/thumbnails/album-1?wait=30s
//! ```

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;
use stead::{
    Failure, Node, RocksStore, Server, workflow,
    workflow::{StepError, Workflow},
};

/// Makes thumbnails of the pictures of an album.
struct Thumbnails;

#[workflow(name = "thumbnails")]
impl Thumbnails {
    /// Returns how many there are.
    pub async fn run(ctx: Workflow<Self>, pictures: u32) -> Result<u32, Failure> {
        let made = ctx.try_all((0..pictures).map(|picture| ctx.shrink(picture))).await?;
        Ok(u32::try_from(made.len()).unwrap_or(u32::MAX))
    }

    #[step(at_most = 8)]
    async fn shrink(&self, _picture: u32) -> Result<(), StepError> {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(())
    }
}

/// Says what somebody with `curl` sees.
async fn look(address: SocketAddr) -> Result<()> {
    let path = "/v1/workflows/thumbnails/album-1";
    let (url, http) = (format!("http://{address}{path}"), reqwest::Client::new());
    let accepted = http.post(&url).body("24").send().await?;
    let location = accepted.headers().get("location").context("a location")?.to_str()?.to_owned();
    println!("POST {path}: {}, Location: {location}", accepted.status().as_u16());
    let url = format!("http://{address}{location}");
    let running: Value = http.get(&url).send().await?.json().await?;
    println!("GET {path}: {}", running["status"].as_str().unwrap_or_default());
    let done: Value = http.get(format!("{url}?wait=30s")).send().await?.json().await?;
    let status = done["status"].as_str().unwrap_or_default();
    println!("GET {path}?wait=30s: {status}, {} thumbnails", done["output"]);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let serves = std::env::args().nth(1).is_some_and(|verb| verb == "serve");
    let data = tempfile::tempdir()?;
    let store = RocksStore::open(data.path())?;
    let node = Node::builder().store(store).workflow(Thumbnails).start().await?;
    let port = if serves { 8082 } else { 0 };
    let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    let address = server.address()?;
    let until = async move {
        match serves {
            true => drop(tokio::signal::ctrl_c().await),
            false => drop(look(address).await.inspect_err(|error| eprintln!("{error:#}"))),
        }
    };
    server.serve(node.router(), until, Duration::from_secs(1)).await;
    node.drain().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use stead::testing::WorkflowDriver;

    use super::*;

    #[test]
    fn each_picture_is_shrunk_wherever_the_process_ends() {
        WorkflowDriver::crash_everywhere(
            || WorkflowDriver::new("1", Thumbnails),
            |album| {
                album.step("shrink").fails("out of memory").times(3).returns(());
                album.start(5).unwrap();
                album.run_to_end().unwrap();
                assert_eq!(album.result(), Ok(5));
            },
        );
    }
}
