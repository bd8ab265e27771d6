//! Limits of the listener, reached from both sides.

use anyhow::Result;
use stead_tests::{Server, problem};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{ADD, raw};

#[tokio::test]
async fn a_head_is_bounded_in_bytes_and_headers() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let ask = async |headers: String| {
        let request = format!("GET /livez HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        Ok::<_, anyhow::Error>(raw(&server, request.as_bytes()).await?[..12].to_owned())
    };
    let many = |count| (0..count).map(|n| format!("x-{n}: y\r\n")).collect::<String>();
    let close = "connection: close\r\n";
    // Host and Connection are two of a hundred.
    assert_eq!(ask(many(98) + close).await?, "HTTP/1.1 200");
    assert_eq!(ask(many(99) + close).await?, "HTTP/1.1 431");
    let long = |length| format!("x: {}\r\n{close}", "y".repeat(length));
    assert_eq!(ask(long(15 << 10)).await?, "HTTP/1.1 200");
    assert_eq!(ask(long(17 << 10)).await?, "HTTP/1.1 431");
    Ok(())
}

#[tokio::test]
async fn a_page_is_bounded_and_the_next_one_goes_on_behind_it() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    for key in ["a", "b", "c", "d", "e"] {
        server.call(&format!("/v1/entities/counter/{key}/calls/add"), "1").await?;
        server.post("/v1/entities/approval/x/signals/approve", "\"kim\"").send().await?;
    }
    for (path, rows, name) in
        [("/v1/entities/counter", "entities", "key"), ("/v1/dead-letters", "dead_letters", "id")]
    {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = server.get(&format!("{path}?limit=2{after}")).send().await?;
            let page: serde_json::Value = page.json().await?;
            let rows = page[rows].as_array().cloned().unwrap_or_default();
            assert!(rows.len() <= 2, "{path}");
            seen.extend(rows.iter().map(|row| row[name].to_string()));
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
        assert_eq!(seen.len(), 5, "{path}: {seen:?}");
        assert!(seen.is_sorted(), "{path}: {seen:?}");
        for limit in ["0", "1001", "-1", "many"] {
            let refused = server.get(&format!("{path}?limit={limit}")).send().await?;
            assert_eq!(problem(refused).await?.0, 400, "{limit}");
        }
        assert_eq!(server.get(&format!("{path}?limit=1000")).send().await?.status(), 200);
    }
    Ok(())
}

/// What the server says before it hangs up on a client that has sent `part` and no more.
async fn hung_up_on(server: &Server, part: String) -> Result<String> {
    let mut stream = TcpStream::connect(server.address()).await?;
    stream.write_all(part.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut rest = [0; 1_024];
    // A reset is a hang-up too.
    while let Ok(length @ 1..) = stream.read(&mut rest).await {
        answer.extend_from_slice(&rest[..length]);
    }
    Ok(String::from_utf8_lossy(&answer).chars().take(12).collect())
}

/// Half a minute, for all of them at one time: the deadlines are those of every server.
#[tokio::test]
async fn clients_that_crawl_are_hung_up_on_and_others_are_served() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let head = format!("POST {ADD} HTTP/1.1\r\nHost: x\r\n");
    let silent = hung_up_on(&server, String::new());
    let half_head = hung_up_on(&server, head.clone());
    let half_body = hung_up_on(&server, format!("{head}Content-Length: 9\r\n\r\n1"));
    let served = async {
        for total in 1..=100 {
            assert_eq!(server.call(ADD, "1").await?, total);
        }
        anyhow::Ok(())
    };
    let all = async { tokio::join!(silent, half_head, half_body, served) };
    let all = tokio::time::timeout(std::time::Duration::from_secs(60), all).await?;
    assert_eq!((all.0?.as_str(), all.1?.as_str()), ("", ""), "no request, no answer");
    assert_eq!(all.2?, "HTTP/1.1 408");
    all.3?;
    Ok(())
}
