//! The HTTP API of Durable Functions: its published clients, as they are, and the statuses and bodies that they rely on.

use std::{env, path::PathBuf, process::Output};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use stead_tests::{Server, leave_out, wait::until_true};
use tokio::{process::Command, task::JoinSet};

const API: &str = "/runtime/webhooks/durabletask";

fn url_of(server: &Server, path: &str) -> String {
    format!("http://{}{path}", server.address())
}

/// The directory in which `tests/durable/setup.sh` installs the clients.
fn clients() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    Ok(cache.context("a home directory")?.join("stead/durable-clients"))
}

async fn run(command: &mut Command) -> Result<()> {
    let Output { status, stdout, stderr } = command.output().await?;
    let shown = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "{status}: {shown}");
    Ok(())
}

#[tokio::test]
async fn the_published_clients_work_unchanged() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let (clients, scripts) =
        (clients()?, PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("durable"));
    let python = clients.join("python/bin/python");
    match clients.join("python/azure-functions-durable==1.7.0").exists() {
        true => {
            run(Command::new(python).arg(scripts.join("client.py")).arg(url_of(&server, "")))
                .await?
        }
        false => leave_out("the Python client of Durable Functions, which is not installed"),
    }
    let modules = clients.join("javascript/node_modules");
    match clients.join("javascript/durable-functions@3.5.0").exists() {
        true => {
            let script = scripts.join("client.js");
            let mut node = Command::new("node");
            run(node.arg(script).arg(url_of(&server, "")).env("NODE_PATH", modules)).await?;
        }
        false => leave_out("the JavaScript client of Durable Functions, which is not installed"),
    }
    Ok(())
}

/// The status, a header, and the body, which is JSON or empty.
async fn ask(request: reqwest::RequestBuilder, header: &str) -> Result<(u16, String, Value)> {
    let answer = request.send().await?;
    let status = answer.status().as_u16();
    let header = answer.headers().get(header).and_then(|value| value.to_str().ok());
    let header = header.unwrap_or_default().to_owned();
    let text = answer.text().await?;
    let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? };
    Ok((status, header, body))
}

#[tokio::test]
async fn starts_and_statuses_have_the_forms_that_clients_rely_on() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let api = url_of(&server, API);
    let http = reqwest::Client::new();
    let json = |request: reqwest::RequestBuilder, body: &'static str| {
        request.header("content-type", "application/json; charset=utf-8").body(body)
    };
    let start = format!("{api}/orchestrators/Approval/a%20b?taskHub=x&code=y");
    let (status, location, links) =
        ask(json(http.post(&start), "{\"timeoutMs\":600000}"), "location").await?;
    ensure!((status, &links["id"]) == (202, &json!("a b")), "{links}");
    ensure!(Some(&*location) == links["statusQueryGetUri"].as_str(), "{location}");
    for link in ["sendEventPostUri", "terminatePostUri", "purgeHistoryDeleteUri", "restartPostUri"]
    {
        ensure!(links[link].as_str().is_some_and(|it| it.starts_with(&api)), "{link}: {links}");
    }
    ensure!(ask(json(http.post(&start), "\"\""), "").await?.0 == 409, "it goes on");

    let (status, retry, document) = ask(http.get(&location), "retry-after").await?;
    ensure!((status, &*retry, &document["runtimeStatus"]) == (202, "5", &json!("Running")));
    ensure!(document.get("output") == Some(&Value::Null) && document["name"] == "Approval");
    ensure!(document["input"]["timeoutMs"] == 600_000.0, "{document}");
    let event = format!("{api}/INSTANCES/a%20b/RaiseEvent/ApprovalEvent");
    ensure!(ask(json(http.post(&event), "5"), "").await?.0 == 400, "a boolean is expected");
    ensure!(
        ask(http.post(&event).header("content-type", "text/plain").body("true"), "").await?.0
            == 400
    );
    ensure!(
        ask(json(http.post(&event), "\"true\""), "").await? == (202, String::new(), Value::Null)
    );
    let is_done = async || matches!(ask(http.get(&location), "").await, Ok((200, ..)));
    until_true("it is done", is_done).await;
    let (_, location_of_ended, document) = ask(http.get(&location), "location").await?;
    ensure!((&*location_of_ended, &document["output"]) == ("", &json!("approved")), "{document}");
    for operation in
        ["raiseEvent/ApprovalEvent", "terminate?reason=", "suspend", "resume", "rewind"]
    {
        let url = format!("{api}/instances/a%20b/{operation}");
        ensure!(ask(json(http.post(url), "true"), "").await?.0 == 410, "{operation}");
        let url = format!("{api}/instances/unknown/{operation}");
        ensure!(ask(http.post(url), "").await?.0 == 404, "{operation} of an unknown one");
    }
    let (status, _, refused) = ask(http.post(format!("{api}/orchestrators/Nobody")), "").await?;
    ensure!(status == 400 && refused["ExceptionMessage"].is_string(), "{refused}");
    ensure!(ask(http.get(format!("{api}/nothing/here")), "").await?.0 == 404);
    Ok(())
}

#[tokio::test]
async fn a_start_waits_for_the_end_and_lists_are_paged() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let (api, http) = (url_of(&server, API), reqwest::Client::new());
    let wait = format!("{api}/orchestrators/approval/w?timeout=20&pollingInterval=0.5");
    let (status, _, output) = ask(http.post(wait).body("{\"timeoutMs\":20}"), "").await?;
    ensure!((status, &output) == (200, &json!("timed out")), "{status} {output}");
    for number in 0..7 {
        let url = format!("{api}/orchestrators/Approval/p-{number}");
        ensure!(ask(http.post(url), "").await?.0 == 202);
    }
    let list = format!("{api}/instances/?runtimeStatus=Running,Pending&instanceIdPrefix=p-&top=3");
    let (mut found, mut token) = (Vec::new(), String::new());
    for _ in 0..10 {
        let request = http.get(&list).header("x-ms-continuation-token", &token);
        let (status, next, page) = ask(request, "x-ms-continuation-token").await?;
        ensure!(status == 200, "{page}");
        let ids = page.as_array().into_iter().flatten().map(|it| it["instanceId"].clone());
        found.extend(ids);
        token = next;
        if token.is_empty() {
            break;
        }
    }
    let expected: Vec<_> = (0..7).map(|number| json!(format!("p-{number}"))).collect();
    ensure!(found == expected, "{found:?}");
    let purge = format!("{api}/instances/");
    ensure!(ask(http.delete(&purge), "").await?.0 == 400, "createdTimeFrom is needed");
    let since = format!("{purge}?createdTimeFrom=2020-01-01T00:00:00Z");
    let (status, _, purged) = ask(http.delete(&since), "").await?;
    ensure!((status, &purged["instancesDeleted"]) == (200, &json!(1)), "{purged}");
    ensure!(ask(http.delete(&since), "").await?.0 == 404, "nothing is left that has ended");
    Ok(())
}

#[tokio::test]
async fn entities_are_found_without_regard_to_case() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let (api, http) = (url_of(&server, API), reqwest::Client::new());
    let counter = format!("{api}/entities/COUNTER/k");
    ensure!(ask(http.get(&counter), "").await?.0 == 404);
    let add = |body: &'static str, kind: &'static str| {
        http.post(format!("{counter}?op=add&taskHub=t")).header("content-type", kind).body(body)
    };
    for (body, kind) in [("5", "application/json"), ("\"7\"", "application/json")] {
        ensure!(ask(add(body, kind), "").await?.0 == 202, "{body}");
    }
    ensure!(
        ask(add("", "application/octet-stream"), "").await?.0 == 202,
        "an operation that fails"
    );
    let is_12 = async || matches!(ask(http.get(&counter), "").await, Ok((200, _, state)) if state == json!({ "value": 12 }));
    until_true("both are added", is_12).await;
    let (_, _, page) = ask(http.get(format!("{api}/entities/counter?fetchState=true")), "").await?;
    ensure!(page[0]["entityId"] == json!({ "name": "counter", "key": "k" }), "{page}");
    ensure!(page[0]["state"] == json!({ "value": 12 }), "{page}");
    let (status, _, refused) =
        ask(http.post(format!("{api}/entities/nobody/k?op=add")), "").await?;
    ensure!(status == 400 && refused["Message"].is_string(), "{refused}");
    ensure!(ask(http.delete(&counter), "").await?.0 == 202);
    until_true("it is gone", async || matches!(ask(http.get(&counter), "").await, Ok((404, ..))))
        .await;
    Ok(())
}

#[tokio::test]
async fn what_is_answered_is_there_and_what_is_refused_is_not() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let (api, http) = (url_of(&server, API), reqwest::Client::new());
    let instance = |id: &str| format!("{api}/instances/{id}");
    let start = |id: &str| http.post(format!("{api}/orchestrators/Approval/{id}"));
    ensure!(ask(start("first"), "").await?.0 == 202);
    for _ in 0..50 {
        let restart = http.post(format!("{}/restart", instance("first")));
        let (status, _, links) = ask(restart, "").await?;
        ensure!(status == 202, "{links}");
        let id = links["id"].as_str().unwrap_or_default();
        ensure!(ask(http.get(instance(id)), "").await?.0 == 202, "{id} is there");
    }
    let unread = format!("{api}/orchestrators/Approval/unread?timeout=soon");
    ensure!(ask(http.post(unread), "").await?.0 == 400);
    ensure!(ask(http.get(instance("unread")), "").await?.0 == 404, "it was not started");
    ensure!(ask(start("%zz"), "").await?.0 == 400, "a malformed escape");

    let (_, _, first) = ask(http.get(instance("first")), "").await?;
    let created = first["createdTime"].as_str().unwrap_or_default();
    let until = format!("{api}/instances/?createdTimeTo={created}");
    let (_, _, found) = ask(http.get(until), "").await?;
    ensure!(found[0]["instanceId"] == "first", "the end of a range is in it: {found}");
    Ok(())
}

#[tokio::test]
async fn one_request_for_a_list_looks_at_a_thousand_instances_at_most() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let (api, http) = (url_of(&server, API), reqwest::Client::new());
    for part in 0..11 {
        let mut starts = JoinSet::new();
        for number in 0..100 {
            let url = format!("{api}/orchestrators/Approval/{part:02}-{number:02}");
            starts.spawn(ask(http.post(url), ""));
        }
        for started in starts.join_all().await {
            ensure!(started?.0 == 202);
        }
    }
    ensure!(ask(http.post(format!("{api}/instances/10-99/terminate")), "").await?.0 == 202);
    for filter in ["Terminated,Failed", "Terminated"] {
        let (mut token, mut asked, mut found) = (String::new(), 0, Vec::new());
        loop {
            let list = http.get(format!("{api}/instances?runtimeStatus={filter}"));
            let list = list.header("x-ms-continuation-token", &token);
            let (status, next, page) = ask(list, "x-ms-continuation-token").await?;
            ensure!(status == 200, "{page}");
            found.extend(page.as_array().into_iter().flatten().map(|it| it["instanceId"].clone()));
            (token, asked) = (next, asked + 1);
            if token.is_empty() {
                break;
            }
        }
        let requests = if filter == "Terminated" { 1 } else { 2 };
        ensure!(
            (asked, &found[..]) == (requests, &[json!("10-99")]),
            "{filter}: {asked} {found:?}"
        );
    }
    Ok(())
}
