//! The HTTP surface from outside: a real server, good requests and bad ones.

mod changes;
mod chat;
mod commands;
mod conditional;
mod connections;
mod database;
mod disk;
mod durable;
mod failures;
mod finding;
mod fixtures;
mod flags;
mod limits;
mod memory;
mod neighbours;
mod places;
mod references;
mod refusals;
mod stop;
mod waiting;

use anyhow::Result;
use stead_tests::{Server, command, free_address, problem};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const ADD: &str = "/v1/entities/counter/c/calls/add";

#[tokio::test]
async fn the_command_line_prints_what_the_routes_say() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let url = format!("http://{}", server.address());
    for (arguments, route) in [
        (vec!["placement", "counter", "a/b %"], "/v1/placement/counter/a%2Fb%20%25"),
        (vec!["cluster"], "/v1/cluster"),
    ] {
        let mut command = std::process::Command::new(stead_tests::binary("stead")?);
        let printed = command.args(&arguments).args(["--url", &url]).output()?;
        assert!(printed.status.success(), "{arguments:?}");
        let printed: serde_json::Value = serde_json::from_slice(&printed.stdout)?;
        let told: serde_json::Value = server.get(route).send().await?.json().await?;
        assert_eq!(printed, told);
        assert!(told["partition"].is_u64() || told["partitions"].is_array());
    }
    Ok(())
}

#[tokio::test]
async fn a_counter_answers_as_the_readme_says() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    assert_eq!(server.call(ADD, "5").await?, 5);
    let accepted = server.post("/v1/entities/counter/c/signals/add", "7").send().await?;
    assert_eq!(accepted.status(), 202);
    let value = server.get("/v1/entities/counter/c/queries/value").send().await?;
    assert_eq!(value.text().await?, "12");
    let shown = server.get("/v1/entities/counter/c").send().await?;
    let tag = shown.headers()["etag"].to_str()?.to_owned();
    let shown: serde_json::Value = shown.json().await?;
    assert_eq!((&shown["state"]["value"], &shown["revision"]), (&12.into(), &2.into()));
    let again = server.get("/v1/entities/counter/c").header("if-none-match", tag).send().await?;
    assert_eq!(again.status(), 304);
    let listed: serde_json::Value =
        server.get("/v1/entities/counter?prefix=c").send().await?.json().await?;
    assert_eq!(listed["entities"][0]["key"], "c");
    let types: serde_json::Value = server.get("/v1/entities").send().await?.json().await?;
    assert_eq!(types["types"][1]["operations"][0]["input"]["type"], "integer");
    assert_eq!(server.get("/readyz").send().await?.status(), 200);
    assert_eq!(server.delete("/v1/entities/counter/c").send().await?.status(), 204);
    assert_eq!(server.get("/v1/entities/counter/c").send().await?.status(), 404);
    assert_eq!(server.terminate().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn what_does_not_exist_lists_what_does() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    for (path, named) in [
        ("/v1/entities/nothing/c/calls/add", "approval, approval-workflow, counter"),
        ("/v1/entities/counter/c/calls/frob", "add, subtract, set, reset, value"),
        ("/v1/entities/approval/a/signals/escalate", "request, approve"),
        ("/v1/entities/counter/c/calls/value", "queries/value"),
        ("/v2/somewhere", "/v1/entities"),
    ] {
        let (status, slug, detail) = problem(server.post(path, "1").send().await?).await?;
        assert_eq!((status, slug.as_str()), (404, "not-found"), "{path}");
        assert!(detail.contains(named), "{path}: {detail}");
    }
    let wrong = problem(server.delete(ADD).send().await?).await?;
    assert_eq!(wrong.0, 405);
    Ok(())
}

#[tokio::test]
async fn a_bad_argument_is_refused_with_its_path() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &["--body-bytes-max", "1000"]).await?;
    let request = "/v1/entities/approval/a/calls/request";
    let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
    let long = "1".repeat(1_001);
    let rows: [(&str, &[u8], u16, &str); 10] = [
        (ADD, b"", 400, "missing"),
        (ADD, b"\"x\"", 422, "expected i64"),
        (ADD, b"1.5", 422, "expected i64"),
        (ADD, b"{", 400, "$"),
        (ADD, b"1 2", 400, "after the end"),
        (ADD, b"\"\xff\"", 400, "$"),
        (ADD, deep.as_bytes(), 400, "nested deeper"),
        (request, br#"{"approver":"k","timeout":"soon"}"#, 422, "$.timeout"),
        (request, br#"{"approver":"k","timeout":"PT1S","tomeout":1}"#, 422, "$.tomeout"),
        (ADD, long.as_bytes(), 413, "at most 1000 bytes"),
    ];
    for (path, body, expected, text) in rows {
        let answer = server.post(path, body.to_vec()).send().await?;
        let (status, _, detail) = problem(answer).await?;
        let body = String::from_utf8_lossy(body);
        assert_eq!(status, expected, "{body}: {detail}");
        assert!(detail.contains(text), "{body}: {detail}");
    }
    let form = server.post(ADD, "1").header("content-type", "text/plain").send().await?;
    assert_eq!(problem(form).await?.0, 415);
    let state = server.get("/v1/entities/counter/c").send().await?;
    assert_eq!(state.status(), 404, "nothing of it was accepted");
    Ok(())
}

#[tokio::test]
async fn keys_are_bytes() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    for (number, key) in ["a%2Fb", "a", "%C3%A9", "e%CC%81", "...", "%25"].iter().enumerate() {
        let path = format!("/v1/entities/counter/{key}/calls/add");
        assert_eq!(server.call(&path, &number.to_string()).await?, number);
    }
    let long = "k".repeat(257);
    for key in ["%", "%zz", "%ff", "%00", "%0A", "%2E", "%2e%2e", &long] {
        // Sent by hand: a client library would tidy the path up.
        let request = format!(
            "POST /v1/entities/counter/{key}/calls/add HTTP/1.1\r\nHost: x\r\n\
             Content-Length: 1\r\nConnection: close\r\n\r\n1"
        );
        let answer = raw(&server, request.as_bytes()).await?;
        assert!(answer.starts_with("HTTP/1.1 400"), "{key}: {answer}");
        assert!(answer.contains("urn:stead:problem:invalid"), "{key}: {answer}");
    }
    Ok(())
}

async fn raw(server: &Server, request: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(server.address()).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn an_endless_body_is_cut_off_and_a_half_one_changes_nothing() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let head = "POST /v1/entities/counter/c/calls/add HTTP/1.1\r\nHost: x\r\n";
    let mut stream = TcpStream::connect(server.address()).await?;
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    stream.write_all(chunked.as_bytes()).await?;
    let chunk = format!("10000\r\n{}\r\n", "1".repeat(0x10000));
    for _ in 0..64 {
        if stream.write_all(chunk.as_bytes()).await.is_err() {
            break;
        }
    }
    let mut answer = vec![0; 64];
    let length = stream.read(&mut answer).await.unwrap_or(0);
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    let mut stream = TcpStream::connect(server.address()).await?;
    let half = format!("{head}Content-Length: 10\r\n\r\n1");
    stream.write_all(half.as_bytes()).await?;
    drop(stream);
    let both = format!("{head}Content-Length: x\r\nConnection: close\r\n\r\n1");
    assert!(raw(&server, both.as_bytes()).await?.starts_with("HTTP/1.1 400"));
    assert_eq!(server.call(ADD, "1").await?, 1);
    Ok(())
}

#[tokio::test]
async fn an_idempotency_key_gives_the_same_answer_or_a_conflict() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let call = |body: &'static str| server.post(ADD, body).header("idempotency-key", "k").send();
    assert_eq!(call("5").await?.text().await?, "5");
    assert_eq!(call("5").await?.text().await?, "5");
    assert_eq!(problem(call("6").await?).await?.0, 409);
    let old =
        server.post(ADD, "5").header("idempotency-key", "01860000-0000-7000-8000-000000000000");
    assert_eq!(problem(old.send().await?).await?.0, 400, "a key that is older than the retention");
    assert_eq!(server.call(ADD, "0").await?, 5);
    Ok(())
}

#[tokio::test]
async fn a_rejection_is_an_answer_and_a_dead_letter() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let approve = server.post("/v1/entities/approval/a/calls/approve", "\"kim\"").send().await?;
    let (status, slug, detail) = problem(approve).await?;
    assert_eq!((status, slug.as_str(), detail.as_str()), (422, "rejected", "the approval is new"));
    let signal = server.post("/v1/entities/approval/a/signals/approve", "\"kim\"").send().await?;
    assert_eq!(signal.status(), 202);
    let letters: serde_json::Value = server.get("/v1/dead-letters").send().await?.json().await?;
    let letter = &letters["dead_letters"][0];
    assert_eq!(
        (&letter["cause"], &letter["reason"]),
        (&"rejection".into(), &"the approval is new".into())
    );
    let id = letter["id"].as_str().unwrap_or_default();
    let request = r#"{"approver":"kim","timeout":"PT1H"}"#;
    server.call("/v1/entities/approval/a/calls/request", request).await?;
    let replay = server.post(&format!("/v1/dead-letters/{id}/replay"), "").send().await?;
    assert_eq!(replay.status(), 202);
    let status = server.get("/v1/entities/approval/a/queries/status").send().await?;
    assert_eq!(status.text().await?, "\"approved\"");
    let letters: serde_json::Value = server.get("/v1/dead-letters").send().await?.json().await?;
    assert_eq!(letters["dead_letters"], serde_json::json!([]), "a replayed letter is gone");
    assert_eq!(problem(server.delete("/v1/dead-letters/x").send().await?).await?.0, 400);
    Ok(())
}

#[tokio::test]
async fn a_second_process_on_the_directory_exits_with_3() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let second = command(data.path(), free_address()?, &[])?.output()?;
    assert_eq!(second.status.code(), Some(3));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("in use by another process"), "{said}");
    assert_eq!(server.call(ADD, "1").await?, 1);
    let usage = command(data.path(), free_address()?, &["--frob"])?.output()?;
    assert_eq!(usage.status.code(), Some(2));
    Ok(())
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_goes_on_reading() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    assert_eq!(server.call(ADD, "1").await?, 1);
    assert_eq!(server.terminate().await?.code(), Some(0));
    // A floor that no disk clears stands for a disk that is nearly full.
    let floor = ["--free-bytes-min", "9000000000000000000"];
    let server = Server::start(data.path(), &floor).await?;
    let (status, slug, _) = problem(server.post(ADD, "1").send().await?).await?;
    assert_eq!((status, slug.as_str()), (507, "full"));
    let signal = server.post("/v1/entities/counter/c/signals/add", "1").send().await?;
    assert_eq!(problem(signal).await?.0, 507);
    let value = server.get("/v1/entities/counter/c/queries/value").send().await?;
    assert_eq!(value.text().await?, "1");
    assert_eq!(server.terminate().await?.code(), Some(0));
    let server = Server::start(data.path(), &[]).await?;
    assert_eq!(server.call(ADD, "1").await?, 2);
    Ok(())
}
