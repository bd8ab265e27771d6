//! Typed references bound to a URL.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use stead::{
    CallError, Client, ErrorKind,
    stock::{Approval, ApprovalRequest, Counter, Status},
};
use stead_tests::{Server, free_address};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

fn kind(error: &CallError) -> Option<ErrorKind> {
    match error {
        CallError::Failed(error) => Some(error.kind()),
        CallError::Rejected(_) => None,
    }
}

#[tokio::test]
async fn a_reference_to_a_url_does_what_one_to_a_node_does() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let client = Client::new(&format!("http://{}", server.address()))?;
    for key in ["visits", "a/b", "50 %", "q?x#y", "\u{fc}"] {
        let counter = client.entity::<Counter>(key);
        assert_eq!(counter.add(5).await?, 5, "{key}");
        counter.add(2).signal().await?;
        assert_eq!(counter.value().await?, 7, "{key}");
    }
    let counter = client.entity::<Counter>("visits");
    let overflow = counter.add(i64::MAX).await.expect_err("it does not fit");
    assert_eq!(overflow.rejection().map(|no| no.reason()), Some("overflow"));
    for _ in 0..2 {
        assert_eq!(counter.add(1).idempotency_key("\"once\" \u{fc}").await?, 8);
    }
    let other = counter.add(2).idempotency_key("\"once\" \u{fc}").await.expect_err("used");
    assert_eq!(kind(&other), Some(ErrorKind::Conflict));
    counter.add(1).after(Duration::from_secs(3_600)).signal().await?;
    counter.add(1).at("2100-01-01T00:00:00Z".parse()?).signal().await?;
    let path = "/v1/entities/counter/visits/reminders";
    let waiting: serde_json::Value = server.get(path).send().await?.json().await?;
    assert_eq!(waiting["reminders"].as_array().map(Vec::len), Some(2));
    assert_eq!(counter.value().await?, 8);
    let approval = client.entity::<Approval>("a");
    let timeout = Duration::from_secs(60).into();
    let request = ApprovalRequest { approver: "kim".into(), timeout, escalate_to: None };
    approval.request(request).await?;
    assert_eq!(approval.status().await?, Status::Pending);
    Ok(())
}

#[test]
fn what_is_no_url_of_a_server_is_refused() {
    for url in ["", "127.0.0.1:8080", "https://a.example", "http://a.example/?x=1", "file:///x"] {
        let refused = Client::new(url).map(drop).expect_err(url);
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{url}");
    }
}

#[tokio::test]
async fn a_server_that_is_away_has_applied_nothing() -> Result<()> {
    let client = Client::new(&format!("http://{}", free_address()?))?;
    let add = client.entity::<Counter>("c").add(1).deadline(Duration::from_millis(300));
    let refused = add.await.expect_err("nobody listens");
    assert_eq!(kind(&refused), Some(ErrorKind::Unavailable));
    Ok(())
}

/// Hangs up on the first request and answers the second; says how many came.
async fn hangs_up_first(listener: TcpListener, came: Arc<AtomicUsize>) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        let mut request = [0; 4_096];
        let length = stream.read(&mut request).await?;
        if length > 0 && came.fetch_add(1, Ordering::SeqCst) > 0 {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                content-length: 1\r\nconnection: close\r\n\r\n9";
            stream.write_all(answer).await?;
        }
    }
}

#[tokio::test]
async fn what_may_have_been_applied_is_sent_again_only_under_a_key() -> Result<()> {
    for (key, expected, tries) in [(None, Err(Some(ErrorKind::Unknown)), 1), (Some("k"), Ok(9), 2)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let client = Client::new(&format!("http://{}/nested/", listener.local_addr()?))?;
        let came = Arc::new(AtomicUsize::new(0));
        let server = tokio::spawn(hangs_up_first(listener, came.clone()));
        let mut add = client.entity::<Counter>("c").add(1);
        if let Some(key) = key {
            add = add.idempotency_key(key);
        }
        assert_eq!(add.await.map_err(|error| kind(&error)), expected);
        assert_eq!(came.load(Ordering::SeqCst), tries, "{key:?}");
        server.abort();
    }
    Ok(())
}
