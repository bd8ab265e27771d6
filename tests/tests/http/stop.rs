//! A clean end, whatever clients do.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use stead_tests::Server;
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

/// What one client knows of its counter: signals that were accepted, and those that may have been.
#[derive(Default)]
struct Known {
    accepted: i64,
    unknown: i64,
}

#[tokio::test]
async fn a_stop_under_load_is_clean_and_quick_and_loses_nothing() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Arc::new(Server::start(data.path(), &[]).await?);
    let _idle = TcpStream::connect(server.address()).await?;
    let mut half = TcpStream::connect(server.address()).await?;
    half.write_all(b"POST /v1/entities/counter/c/calls/add HTTP/1.1\r\nHost").await?;
    let is_busy = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for client in 0..20 {
        let (server, is_busy) = (server.clone(), is_busy.clone());
        clients.spawn(async move { (client, send(&server, client, &is_busy).await) });
    }
    while !is_busy.load(Ordering::SeqCst) && clients.try_join_next().is_none() {
        tokio::task::yield_now().await;
    }
    assert!(is_busy.load(Ordering::SeqCst), "a client ended early");
    let before = Instant::now();
    server.ask_to_stop()?;
    let known: BTreeMap<_, _> = clients.join_all().await.into_iter().collect();
    let mut server = Arc::into_inner(server).context("the clients have let go")?;
    assert_eq!(server.wait_exit().await?.code(), Some(0));
    assert!(before.elapsed() < Duration::from_secs(10), "the promise of the stop");
    let server = Server::start(data.path(), &[]).await?;
    for (client, known) in known {
        let stored = server.call(&format!("/v1/entities/counter/{client}/calls/add"), "0").await?;
        let stored = stored.as_i64().context("a number")?;
        let most = known.accepted + known.unknown;
        assert!((known.accepted..=most).contains(&stored), "{client}: {stored} of {most}");
    }
    Ok(())
}

/// Signals one counter until the server is gone.
async fn send(server: &Server, client: usize, is_busy: &AtomicBool) -> Known {
    let path = format!("/v1/entities/counter/{client}/signals/add");
    let mut known = Known::default();
    loop {
        match server.post(&path, "1").send().await {
            Ok(answer) if answer.status() == 202 => known.accepted += 1,
            Ok(answer) if answer.status() == 504 => {
                known.unknown += 1;
                return known;
            }
            // Refused: the answer says that nothing was applied.
            Ok(_) => return known,
            Err(error) if error.is_connect() => return known,
            Err(_) => {
                known.unknown += 1;
                return known;
            }
        }
        if known.accepted == 20 {
            is_busy.store(true, Ordering::SeqCst);
        }
    }
}
