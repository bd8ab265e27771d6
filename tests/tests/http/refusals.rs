//! Refusals before the body was read reach clients that send all of it first.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use stead_tests::{
    Server,
    plain::{Answer, Plain},
};

use super::ADD;

const MEGABYTE: usize = 1 << 20;

/// The answer to a request whose body is sent before anything is read, on the connection.
async fn refused(address: SocketAddr, head: &str, length: usize) -> Result<(Answer, Plain)> {
    let mut client = Plain::connect(address).await?;
    client.send(head).await?;
    client.send_bytes(length).await?;
    let answer = client.answer().await?;
    Ok((answer, client))
}

async fn is_alive(client: &mut Plain) -> bool {
    let asked = client.send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await;
    asked.is_ok() && client.answer().await.is_ok_and(|answer| answer.status == 200)
}

fn post(path: &str, headers: &str, length: usize) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n")
}

#[tokio::test]
async fn a_refusal_reaches_who_sends_the_whole_body_first() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let (address, counter) = (server.address(), "/v1/entities/counter/c");
    let no_host = |length| format!("POST {ADD} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
    let two = |headers| post(ADD, headers, 2 * MEGABYTE);
    let rows: [(&str, String, usize, u16, &str); 12] = [
        ("too large", post(ADD, "", 2 * MEGABYTE), 2, 413, "too-large"),
        ("far too large", post(ADD, "", 50 * MEGABYTE), 50, 413, "too-large"),
        ("no type", post("/v1/entities/no/c/calls/add", "", 2 * MEGABYTE), 2, 404, "not-found"),
        ("no route", post("/v2", "", 50 * MEGABYTE), 50, 404, "not-found"),
        (
            "no operation",
            post(&format!("{counter}/calls/no"), "", 9 * MEGABYTE),
            9,
            404,
            "not-found",
        ),
        ("method", two("").replace("POST", "PUT"), 2, 405, "method"),
        ("media type", two("Content-Type: text/plain\r\n"), 2, 415, "media-type"),
        ("coding", two("Content-Encoding: gzip\r\n"), 2, 415, "media-type"),
        ("key", post("/v1/entities/counter/%00/calls/add", "", 2 * MEGABYTE), 2, 400, "invalid"),
        ("parameter", post(&format!("{ADD}?x=1"), "", 2 * MEGABYTE), 2, 400, "invalid"),
        ("no host", no_host(2 * MEGABYTE), 2, 400, "invalid"),
        ("two hosts", two("Host: y\r\n"), 2, 400, "invalid"),
    ];
    for (name, head, megabytes, status, slug) in rows {
        let (answer, mut client) = refused(address, &head, megabytes * MEGABYTE).await?;
        assert_eq!(answer.status, status, "{name}: {answer:?}");
        assert!(answer.is_problem(slug), "{name}: {answer:?}");
        assert!(is_alive(&mut client).await, "{name}: the connection goes on");
    }
    let ended = refused(address, &two("Connection: close\r\n"), 2 * MEGABYTE).await?;
    assert_eq!(ended.0.status, 413);
    assert!(!is_alive(&mut { ended.1 }).await);
    let old = two("").replace("HTTP/1.1", "HTTP/1.0");
    assert_eq!(refused(address, &old, 2 * MEGABYTE).await?.0.status, 413);
    Ok(())
}

#[tokio::test]
async fn a_body_without_a_length_is_thrown_away_too() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let mut client = Plain::connect(server.address()).await?;
    let head = format!("POST {ADD} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(&head).await?;
    for _ in 0..20 {
        client.send("100000\r\n").await?;
        client.send_bytes(MEGABYTE).await?;
        client.send("\r\n").await?;
    }
    client.send("0\r\n\r\n").await?;
    let answer = client.answer().await?;
    assert!(answer.status == 413 && answer.is_problem("too-large"), "{answer:?}");
    assert!(is_alive(&mut client).await);
    // A route that takes no body.
    let get = format!("GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 5 * MEGABYTE);
    let (answer, mut client) = refused(server.address(), &get, 5 * MEGABYTE).await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "alive\n"));
    assert!(is_alive(&mut client).await);
    Ok(())
}

#[tokio::test]
async fn a_node_that_holds_enough_says_so_to_who_sends_the_whole_body_first() -> Result<()> {
    let data = tempfile::tempdir()?;
    let flags = ["--requests-max", "1", "--body-bytes-max", "100000000", "--memory", "4GiB"];
    let server = Server::start(data.path(), &flags).await?;
    let mut first = Plain::connect(server.address()).await?;
    first.send(&post(ADD, "", 1)).await?;
    assert!(first.is_quiet(Duration::from_millis(300)).await, "its body is waited for");
    for megabytes in [2, 50] {
        let head = post(ADD, "", megabytes * MEGABYTE);
        let (answer, mut client) = refused(server.address(), &head, megabytes * MEGABYTE).await?;
        assert!(answer.status == 429 && answer.is_problem("overloaded"), "{answer:?}");
        assert!(answer.head.contains("retry-after: 1"), "{answer:?}");
        assert!(is_alive(&mut client).await);
    }
    first.send("1").await?;
    assert_eq!(first.answer().await?.body, "1");
    Ok(())
}

#[tokio::test]
async fn what_is_no_request_is_refused_readably() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let long = format!("x: {}\r\n", "y".repeat(17 << 10));
    for (head, status) in [
        (post(ADD, &long, 2 * MEGABYTE), 431),
        (format!("POST {ADD} HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n"), 400),
        (format!("POST {ADD} HTTP/9.9\r\nHost: x\r\nContent-Length: 9\r\n\r\n"), 400),
        ("\u{1}\r\n\r\n".to_owned(), 400),
    ] {
        let (answer, mut client) = refused(server.address(), &head, 2 * MEGABYTE).await?;
        assert_eq!(answer.status, status, "{answer:?}");
        client.hung_up().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_waits_to_be_asked_for_its_body_is_not_asked_where_it_is_refused()
-> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let expect = "Expect: 100-continue\r\n";
    let none = "/v1/entities/no/c/calls/add";
    let form = "Expect: 100-Continue\r\nContent-Type: text/plain\r\n";
    for (head, status) in [
        (post(ADD, expect, 2 * MEGABYTE), 413),
        (post(ADD, form, 5), 415),
        (post(none, expect, 5), 404),
        (post(ADD, &format!("{expect}Host: y\r\n"), 5), 400),
    ] {
        let mut client = Plain::connect(server.address()).await?;
        client.send(&head).await?;
        let answer = client.answer().await?;
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.head.contains("connection: close"), "{answer:?}");
        client.hung_up().await?;
        // One that does not wait for it either way can read the answer too.
        let (answer, _) = refused(server.address(), &head, 2 * MEGABYTE).await?;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    let mut client = Plain::connect(server.address()).await?;
    client.send(&post(ADD, expect, 1)).await?;
    assert_eq!(client.answer().await?.status, 100);
    client.send("7").await?;
    let answer = client.answer().await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "7"));
    assert!(is_alive(&mut client).await);
    Ok(())
}

/// Half a minute, for all of them at one time.
#[tokio::test]
async fn what_is_thrown_away_is_bounded_in_bytes_and_time() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let address = server.address();
    // More than is thrown away: the answer comes first, and then the end.
    let mut endless = Plain::connect(address).await?;
    endless
        .send(&format!("POST {ADD} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"))
        .await?;
    let endless = async {
        let mut sent = 0;
        let chunk = async |client: &mut Plain| {
            client.send("100000\r\n").await?;
            client.send_bytes(MEGABYTE).await?;
            client.send("\r\n").await
        };
        chunk(&mut endless).await?;
        chunk(&mut endless).await?;
        assert_eq!(endless.answer().await?.status, 413);
        while sent < 200 && chunk(&mut endless).await.is_ok() {
            sent += 1;
        }
        anyhow::Ok(sent)
    };
    // Bytes that crawl, or do not come.
    let crawling = async |length: usize| {
        let mut client = Plain::connect(address).await?;
        client.send(&post("/v2", "", length)).await?;
        assert_eq!(client.answer().await?.status, 404);
        let before = std::time::Instant::now();
        while client.send("1").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if before.elapsed() > Duration::from_secs(50) {
                break;
            }
        }
        anyhow::Ok(before.elapsed())
    };
    let silent = async {
        let mut client = Plain::connect(address).await?;
        client.send(&post("/v2", "", MEGABYTE)).await?;
        assert_eq!(client.answer().await?.status, 404);
        client.hung_up().await
    };
    let (sent, kept, closing, silent) =
        tokio::join!(endless, crawling(MEGABYTE), crawling(1 << 40), silent);
    let sent = sent?;
    assert!((50..100).contains(&sent), "{sent} MiB");
    for length in [kept?, closing?] {
        assert!((Duration::from_secs(25)..Duration::from_secs(45)).contains(&length), "{length:?}");
    }
    silent
}
