//! How long connections are kept, and how many come at one time.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Signal, getrlimit, setrlimit};
use stead_tests::{Server, command_of, free_address, leave_out, plain::Plain};
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpStream, task::JoinSet};

use super::ADD;

const ALIVE: &str = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
/// Longer than the head of a request may take.
const LONG: Duration = Duration::from_secs(12);

async fn kept(server: &Server) -> Result<Plain> {
    let mut client = Plain::connect(server.address()).await?;
    client.send(ALIVE).await?;
    ensure!(client.answer().await?.status == 200);
    Ok(client)
}

/// How long it takes until the server hangs up.
async fn hung_up_after(client: &mut Plain) -> Result<Duration> {
    let before = Instant::now();
    client.hung_up().await?;
    Ok(before.elapsed())
}

#[tokio::test]
async fn a_kept_connection_may_be_idle_longer_than_a_head_may_take() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let (mut idle, mut begun) = (kept(&server).await?, kept(&server).await?);
    let mut silent = Plain::connect(server.address()).await?;
    begun.send("GET /livez HT").await?;
    let (idle_is_kept, begun, silent) =
        tokio::join!(idle.is_quiet(LONG), hung_up_after(&mut begun), hung_up_after(&mut silent));
    assert!(idle_is_kept, "an idle connection is not cut off with heads that crawl");
    // Heads keep their own deadline: from the first byte on, or from the beginning.
    for head in [begun?, silent?] {
        assert!((Duration::from_secs(9)..LONG).contains(&head), "{head:?}");
    }
    // The next request has a whole deadline to itself, and its connection the idle limit again.
    let (first, last) = ALIVE.split_at(ALIVE.len() - 2);
    for part in first.split_inclusive(' ') {
        idle.send(part).await?;
        assert!(idle.is_quiet(Duration::from_millis(200)).await);
    }
    idle.send(last).await?;
    assert_eq!(idle.answer().await?.status, 200);
    assert!(idle.is_quiet(Duration::from_secs(1)).await);
    Ok(())
}

#[tokio::test]
async fn the_idle_limit_is_a_setting_and_counts_between_requests_only() -> Result<()> {
    let data = tempfile::tempdir()?;
    let address = free_address()?;
    let flags = ["--idle-connection", "1", "--turn-deadline", "2.5"];
    let server = Server::run(command_of("unruly", data.path(), address, &flags)?, address).await?;
    let (mut idle, mut lines) = (kept(&server).await?, kept(&server).await?);
    // Empty lines are no request.
    lines.send("\r\n\r\n").await?;
    let mut slow_answer = kept(&server).await?;
    let hang =
        "POST /v1/entities/unruly/a/calls/hang HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    slow_answer.send(hang).await?;
    let mut slow_body = kept(&server).await?;
    let append = "POST /v1/entities/unruly/b/calls/append HTTP/1.1\r\nHost: x\r\n\
                  Content-Length: 1\r\n\r\n";
    slow_body.send(append).await?;
    let slow = Duration::from_secs(2);
    let (idle, lines, answer, body) = tokio::join!(
        hung_up_after(&mut idle),
        hung_up_after(&mut lines),
        slow_answer.answer(),
        slow_body.is_quiet(slow),
    );
    for idle in [idle?, lines?] {
        assert!((Duration::from_millis(900)..slow).contains(&idle), "{idle:?}");
    }
    assert_eq!(answer?.status, 504, "an operation may take longer");
    assert!(body, "a body may take longer");
    slow_body.send("1").await?;
    assert_eq!(slow_body.answer().await?.body, "[1]");
    let idle = hung_up_after(&mut slow_body).await?;
    assert!((Duration::from_millis(900)..slow).contains(&idle), "{idle:?}");
    // A connection in use is never idle for long enough.
    let mut used = kept(&server).await?;
    for _ in 0..5 {
        assert!(used.is_quiet(Duration::from_millis(500)).await);
        used.send(ALIVE).await?;
        assert_eq!(used.answer().await?.status, 200);
    }
    Ok(())
}

/// The connections of a write group.
const AT_ONCE: usize = 2_000;

/// Room for a write group in this process, if there can be any, and in the system.
fn has_room() -> Result<bool> {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files)?;
    let backlog =
        std::fs::read_to_string("/proc/sys/net/core/somaxconn")?.trim().parse::<usize>()?;
    Ok(backlog >= AT_ONCE && files.maximum.is_none_or(|most| most as usize > 2 * AT_ONCE))
}

#[tokio::test]
async fn very_many_connections_at_once_wait_their_turn() -> Result<()> {
    if !has_room()? {
        leave_out("2,000 connections at once: the system allows fewer");
        return Ok(());
    }
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let address = server.address();
    // Nobody accepts, so that only the backlog decides, and not how fast this machine is.
    server.signal(Signal::STOP)?;
    let mut connecting = JoinSet::new();
    for _ in 0..AT_ONCE {
        connecting.spawn(TcpStream::connect(address));
    }
    let all = tokio::time::timeout(Duration::from_secs(20), async {
        let mut all = Vec::new();
        while let Some(connected) = connecting.join_next().await {
            all.push(connected??);
        }
        anyhow::Ok(all)
    });
    let all = all.await;
    server.signal(Signal::CONT)?;
    let all = all.context("connections found no room in the backlog")??;
    let mut asking = JoinSet::new();
    for mut stream in all {
        asking.spawn(async move {
            let request = ALIVE.replace("Host: x", "Host: x\r\nConnection: close");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            Ok(())
        });
    }
    while let Some(answered) = asking.join_next().await {
        answered??;
    }
    assert_eq!(server.call(ADD, "1").await?, 1);
    Ok(())
}
