//! Conditions, idempotency keys and other headers that change what a request means: honoured in the
//! entity's order, or refused.

use anyhow::Result;
use reqwest::RequestBuilder;
use stead_tests::{Server, problem};

const STATE: &str = "/v1/entities/counter/c";
const ADD: &str = "/v1/entities/counter/c/calls/add";
const SIGNAL: &str = "/v1/entities/counter/c/signals/add";

async fn tag(server: &Server) -> Result<String> {
    Ok(server.get(STATE).send().await?.headers()["etag"].to_str()?.to_owned())
}

async fn value(server: &Server) -> Result<String> {
    let queried = server.get("/v1/entities/counter/c/queries/value").send().await?;
    Ok(queried.text().await?)
}

fn all(server: &Server) -> Vec<(&'static str, RequestBuilder)> {
    vec![
        ("call", server.post(ADD, "1")),
        ("signal", server.post(SIGNAL, "1")),
        ("delayed signal", server.post(&format!("{SIGNAL}?delay=PT0S"), "1")),
        ("delete", server.delete(STATE)),
    ]
}

#[tokio::test]
async fn a_tag_protects_every_change() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    for (what, request) in all(&server) {
        let (status, slug, _) = problem(request.header("if-match", "*").send().await?).await?;
        assert_eq!(
            (status, slug.as_str()),
            (412, "precondition"),
            "{what}, before the first commit"
        );
    }
    server.call(ADD, "5").await?;
    let old = tag(&server).await?;
    server.call(ADD, "5").await?;
    let never = ["\"0-0\"".to_owned(), "\"x\"".into(), format!("W/{}", tag(&server).await?), old];
    for tag in &never {
        for (what, request) in all(&server) {
            let (status, slug, _) = problem(request.header("if-match", tag).send().await?).await?;
            assert_eq!((status, slug.as_str()), (412, "precondition"), "{what} at {tag}");
        }
    }
    assert_eq!(value(&server).await?, "10", "nothing was applied");
    let refused = server.get(STATE).header("if-match", &never[3]).send().await?;
    assert_eq!(refused.status(), 412);
    let called = server.post(ADD, "1").header("if-match", tag(&server).await?).send().await?;
    assert_eq!((called.status().as_u16(), called.text().await?.as_str()), (200, "11"));
    let list = format!("\"1-1\", {}", tag(&server).await?);
    let signalled = server.post(SIGNAL, "1").header("if-match", list).send().await?;
    assert_eq!(signalled.status(), 202);
    assert_eq!(value(&server).await?, "12");
    let bad = server.post(ADD, "1").header("if-match", "no-quotes").send().await?;
    assert_eq!(problem(bad).await?.0, 400);
    let deleted = server.delete(STATE).header("if-match", tag(&server).await?).send().await?;
    assert_eq!(deleted.status(), 204);
    assert_eq!(server.get(STATE).send().await?.status(), 404);
    Ok(())
}

#[tokio::test]
async fn of_many_writers_with_one_tag_one_wins() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    server.call(ADD, "0").await?;
    let tag = tag(&server).await?;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..32 {
        let path = if writer % 2 == 0 { ADD } else { SIGNAL };
        writers.spawn(server.post(path, "1").header("if-match", &tag).send());
    }
    let mut won = 0;
    while let Some(answer) = writers.join_next().await {
        match answer??.status().as_u16() {
            200 | 202 => won += 1,
            412 => {}
            other => anyhow::bail!("{other}"),
        }
    }
    assert_eq!((won, value(&server).await?.as_str()), (1, "1"));
    Ok(())
}

#[tokio::test]
async fn a_key_counts_before_a_condition_and_is_free_after_a_refusal() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    server.call(ADD, "1").await?;
    let tag = tag(&server).await?;
    let keyed = |tag: &str| {
        server.post(ADD, "1").header("if-match", tag).header("idempotency-key", "k").send()
    };
    assert_eq!(keyed("\"0-0\"").await?.status(), 412);
    let first = keyed(&tag).await?;
    assert_eq!((first.status().as_u16(), first.text().await?.as_str()), (200, "2"));
    let again = keyed(&tag).await?;
    assert_eq!((again.status().as_u16(), again.text().await?.as_str()), (200, "2"), "a repeat");
    assert_eq!(value(&server).await?, "2");
    Ok(())
}

#[tokio::test]
async fn a_deletion_with_a_key_is_carried_out_once() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let delete = |key: &str| server.delete(STATE).header("idempotency-key", key.to_owned()).send();
    server.call(ADD, "5").await?;
    assert_eq!(delete("d").await?.status(), 204);
    server.call(ADD, "7").await?;
    assert_eq!(delete("d").await?.status(), 204, "a repeat gets the stored answer");
    assert_eq!(value(&server).await?, "7", "and deletes nothing");
    let used = server.post(ADD, "1").header("idempotency-key", "d").send().await?;
    assert_eq!(problem(used).await?.1, "conflict", "the key stands for the deletion");
    server.kill()?;
    let server = Server::start(data.path(), &[]).await?;
    let again = server.delete(STATE).header("idempotency-key", "d").send().await?;
    assert_eq!(again.status(), 204);
    assert_eq!(value(&server).await?, "7", "also after a crash");
    assert_eq!(server.delete(STATE).send().await?.status(), 204);
    assert_eq!(server.get(STATE).send().await?.status(), 404);
    Ok(())
}

#[tokio::test]
async fn a_header_that_changes_the_meaning_is_never_ignored() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    server.call(ADD, "1").await?;
    let query = "/v1/entities/counter/c/queries/value";
    let cases = [
        (server.post(ADD, "1"), "if-none-match", "*"),
        (server.post(ADD, "1"), "if-unmodified-since", "Wed, 21 Oct 2015 07:28:00 GMT"),
        (server.post(SIGNAL, "1"), "if-none-match", "\"1-1\""),
        (server.post(SIGNAL, "1"), "content-range", "bytes 0-1/2"),
        (server.post(ADD, "1"), "x-http-method-override", "DELETE"),
        (server.delete(STATE), "if-none-match", "*"),
        (server.delete(STATE), "if-unmodified-since", "Wed, 21 Oct 2015 07:28:00 GMT"),
        (server.get(query), "if-match", "*"),
        (server.get(query), "idempotency-key", "k"),
        (server.get(STATE), "if-modified-since", "Wed, 21 Oct 2015 07:28:00 GMT"),
        (server.get("/v1/entities/counter"), "if-none-match", "*"),
        (server.get("/v1/dead-letters"), "if-match", "*"),
        (server.post("/v1/dead-letters/0-f-1/replay", ""), "idempotency-key", "k"),
        (server.delete("/v1/dead-letters/0-f-1"), "if-match", "*"),
        (server.delete(&format!("{STATE}/reminders/named-x")), "if-match", "*"),
    ];
    for (request, name, value) in cases {
        let sent = request.header(name, value).build()?;
        let what = format!("{} {} with {name}", sent.method(), sent.url());
        let answer = reqwest::Client::new().execute(sent).await?;
        let (status, slug, detail) = problem(answer).await?;
        assert_eq!((status, slug.as_str()), (400, "invalid"), "{what}");
        assert!(detail.contains(name), "{what}: {detail}");
    }
    assert_eq!(value(&server).await?, "1", "nothing was applied");
    Ok(())
}

#[tokio::test]
async fn an_argument_is_compared_by_its_meaning() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let request = "/v1/entities/approval/a/calls/request";
    let send =
        |body: &str| server.post(request, body.to_owned()).header("idempotency-key", "k").send();
    let first = send(r#"{"approver":"kim","timeout":"PT1H","escalate_to":null}"#).await?;
    assert_eq!(first.status(), 200);
    let same =
        send("{ \"escalate_to\" : null,\n \"timeout\":\"PT1H\", \"approver\":\"k\\u0069m\" }");
    assert_eq!(same.await?.status(), 200);
    let other = send(r#"{"approver":"kim","timeout":"PT2H","escalate_to":null}"#).await?;
    assert_eq!(problem(other).await?.1, "conflict");
    let large =
        |body: &str| server.post(ADD, body.to_owned()).header("idempotency-key", "large").send();
    assert_eq!(large("9007199254740993").await?.status(), 200);
    assert_eq!(large(" 9007199254740993 ").await?.status(), 200);
    assert_eq!(problem(large("9007199254740992").await?).await?.1, "conflict");
    let nothing = |body: &str| {
        let reset = "/v1/entities/counter/c/calls/reset";
        server.post(reset, body.to_owned()).header("idempotency-key", "nothing").send()
    };
    for body in ["", "null", "{}", " "] {
        assert_eq!(nothing(body).await?.status(), 200, "{body:?}");
    }
    Ok(())
}

#[tokio::test]
async fn any_32_hexadecimal_digits_are_a_key() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let keyed = |key: &str| server.post(ADD, "1").header("idempotency-key", key.to_owned()).send();
    // As a UUID these are of version 7, far in the future and long past.
    for key in ["ffffffffffff7fffbfffffffffffffff", "00000000000070008000000000000000"] {
        assert_eq!(keyed(key).await?.status(), 200, "{key}");
    }
    let hyphenated = "ffffffff-ffff-7fff-bfff-ffffffffffff";
    assert_eq!(problem(keyed(hyphenated).await?).await?.0, 400, "made in the future");
    Ok(())
}
