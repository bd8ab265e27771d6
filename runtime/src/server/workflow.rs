//! `stead workflow`: asks a running server about workflows, and shows what it says as a table or as JSON.

use std::{io::Write as _, time::Duration};

use serde_json::{Value, json};
use stead_entities::{EntityId, Error, ErrorKind, Timestamp, workflow::Status};

use super::{
    exit, fail,
    flags::workflow::{BatchAsked, Instance, Policy, Shown, WorkflowVerb},
};
use crate::{Client, client::Ask};

/// How long one wait for the end is, before it is begun again.
const WAIT: &str = "30s";
/// How long an answer is waited for.
const DEADLINE: Duration = Duration::from_secs(45);
/// How many rows are asked for at one time.
const PAGE: usize = 100;

/// Asks what is asked for, and prints the answer. Returns the exit code.
pub(super) async fn run(verb: WorkflowVerb) -> u8 {
    let url = verb.shown().server.url.clone();
    match asked(verb).await {
        Ok(true) => 0,
        Ok(false) => exit::FAILED,
        Err(error) => fail(exit::FAILED, &format!("{url}: {error}")),
    }
}

/// A table: its head, and its rows.
type Table = (Vec<&'static str>, Vec<Vec<String>>);

/// Asks, and prints; says whether it came out well.
async fn asked(verb: WorkflowVerb) -> Result<bool, Error> {
    use WorkflowVerb as V;
    let none: &[(&str, String)] = &[];
    match &verb {
        V::Start { of, input, policy, deadline, wait } => {
            let policy = policy.map(|policy| match policy {
                Policy::Join => "join",
                Policy::Once => "once",
                Policy::Replace => "replace",
            });
            let policy = policy.map(|policy| ("policy", policy.to_owned()));
            let deadline = deadline.clone().map(|deadline| ("deadline", deadline));
            let given: Vec<_> = policy.into_iter().chain(deadline).collect();
            let started = of.change(&[], &given, input.as_deref()).await?;
            if *wait {
                return ended(of).await;
            }
            let is_new = if started["is_new"] == true { "started" } else { "joined" };
            let row = vec![of.key.clone(), is_new.to_owned(), text(&started["run"])];
            print(&of.shown, &started, (vec!["KEY", "", "RUN"], vec![row]));
        }
        V::Status { of } => {
            let status = of.read(&[], none).await?;
            print(&of.shown, &status, table_of_status(&status));
        }
        V::Wait { of } => return ended(of).await,
        V::Event { of: _, name, payload: _ } if matches!(&**name, "" | "." | "..") => {
            return Err(Error::new(ErrorKind::Invalid, format!("no event is called {name:?}")));
        }
        V::Event { of, name, payload } => {
            of.change(&["events", name], none, payload.as_deref()).await?;
        }
        V::History { of } => history(of).await?,
        V::Cancel { of } => done(of, "cancel", none).await?,
        V::Resume { of } => done(of, "resume", none).await?,
        V::Retry { of } => done(of, "retry", none).await?,
        V::Terminate { of, reason } => {
            done(of, "terminate", &[("reason", reason.clone())]).await?;
        }
        V::Suspend { of, reason } => done(of, "suspend", &[("reason", reason.clone())]).await?,
        V::Rewind { of, place } => {
            let place: Vec<_> = place.clone().map(|place| ("place", place)).into_iter().collect();
            done(of, "rewind", &place).await?;
        }
        V::Restart { of, new_key } => {
            let key: Vec<_> = new_key.clone().map(|key| ("key", key)).into_iter().collect();
            done(of, "restart", &key).await?;
        }
        V::Purge { of, recursive } => {
            let given = [("recursive", recursive.to_string())];
            of.ask(Ask::Delete, &[], &given, Vec::new()).await?;
        }
        V::Batch(asked) => return batch(asked).await,
        V::List { workflow_type, status, stuck, version, prefix, limit, shown } => {
            let status = status.clone().map(|status| ("status", status));
            let stuck = stuck.then(|| ("stuck", "true".to_owned()));
            let version = version.map(|version| ("version", version.to_string()));
            let prefix = prefix.clone().map(|prefix| ("prefix", prefix));
            let given = [status, stuck, version, prefix].into_iter().flatten().collect();
            list(workflow_type, given, *limit, shown).await?;
        }
    }
    Ok(true)
}

impl WorkflowVerb {
    fn shown(&self) -> &Shown {
        match self {
            Self::List { shown, .. } => shown,
            Self::Batch(asked) => &asked.shown,
            Self::Start { of, .. }
            | Self::Status { of }
            | Self::Wait { of }
            | Self::Event { of, .. }
            | Self::History { of }
            | Self::Cancel { of }
            | Self::Terminate { of, .. }
            | Self::Suspend { of, .. }
            | Self::Resume { of }
            | Self::Rewind { of, .. }
            | Self::Retry { of }
            | Self::Restart { of, .. }
            | Self::Purge { of, .. } => &of.shown,
        }
    }
}

impl Instance {
    async fn ask(
        &self,
        ask: Ask,
        behind: &[&str],
        given: &[(&str, String)],
        body: Vec<u8>,
    ) -> Result<Value, Error> {
        // A path that has `.` in it is another path.
        EntityId::new(&self.workflow_type, &self.key)?;
        let mut path = vec!["v1", "workflows", &self.workflow_type, &self.key];
        path.extend(behind);
        let client = Client::new(&self.shown.server.url)?;
        client.ask(ask, (&path, given), body, DEADLINE).await
    }

    async fn read(&self, behind: &[&str], given: &[(&str, String)]) -> Result<Value, Error> {
        self.ask(Ask::Get, behind, given, Vec::new()).await
    }

    async fn change(
        &self,
        behind: &[&str],
        given: &[(&str, String)],
        body: Option<&str>,
    ) -> Result<Value, Error> {
        let body = body.unwrap_or_default().as_bytes().to_vec();
        self.ask(Ask::Post, behind, given, body).await
    }
}

/// Asks for something that only succeeds or fails.
async fn done(of: &Instance, operation: &str, given: &[(&str, String)]) -> Result<(), Error> {
    let answer = of.change(&[operation], given, None).await?;
    if of.shown.json {
        line(&answer.to_string());
    }
    Ok(())
}

/// Waits for the end, and prints the result; says whether there is one.
async fn ended(of: &Instance) -> Result<bool, Error> {
    loop {
        let status = of.read(&[], &[("wait", WAIT.to_owned())]).await?;
        let is_end = serde_json::from_value::<Status>(status["status"].clone())
            .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?
            .is_end();
        if !is_end {
            continue;
        }
        let is_completed = status["failure"].is_null();
        match (of.shown.json, is_completed) {
            (true, _) => line(&status.to_string()),
            (false, true) => line(&status["output"].to_string()),
            (false, false) => {
                let why = format!("{}: {}", text(&status["status"]), text(&status["failure"]));
                return Err(Error::new(ErrorKind::Internal, why));
            }
        }
        return Ok(is_completed);
    }
}

async fn history(of: &Instance) -> Result<(), Error> {
    let (mut rows, mut all, mut after) = (Vec::new(), Value::Null, Some(0));
    while let Some(from) = after {
        let given = [("after", from.to_string()), ("limit", PAGE.to_string())];
        let mut page = of.read(&["history"], &given).await?;
        after = page["next"].as_u64();
        for turn in page["turns"].as_array().into_iter().flatten() {
            let number = (rows.len() + 1).to_string();
            let delivered = turn["deliveries"].as_array().into_iter().flatten().map(delivery);
            let begun = turn["begun"].as_array().into_iter().flatten().map(|begun| {
                let parts = ["place", "kind", "name", "target"].map(|part| text(&begun[part]));
                let words: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                words.join(" ")
            });
            let given_up = turn["cancelled"].as_array().into_iter().flatten().map(text);
            let lists = [delivered.collect(), begun.collect(), given_up.collect::<Vec<_>>()];
            let lists = lists.map(|list: Vec<String>| list.join(", "));
            rows.push([number, text(&turn["at"])].into_iter().chain(lists).collect());
        }
        match (all["turns"].as_array_mut(), page["turns"].as_array_mut()) {
            (Some(all), Some(page)) => all.append(page),
            _ => all = page,
        }
    }
    all.as_object_mut().and_then(|all| all.remove("next"));
    let head = vec!["TURN", "AT", "HANDED OVER", "BEGUN", "GIVEN UP"];
    print(&of.shown, &all, (head, rows));
    Ok(())
}

/// Names something that was handed over.
fn delivery(delivery: &Value) -> String {
    match delivery.as_object().and_then(|it| it.iter().next()) {
        Some((kind, _)) if kind == "Start" => "start".to_owned(),
        Some((_, done)) => {
            let how = if done[1].get("Err").is_some() { "failed" } else { "done" };
            format!("{} {how}", text(&done[0]))
        }
        None => text(delivery).to_lowercase(),
    }
}

/// A page of the workflows of a type.
pub(super) async fn list_page(
    client: &Client,
    workflow_type: &str,
    given: Vec<(&str, String)>,
) -> Result<Value, Error> {
    let path = ["v1", "workflows", workflow_type];
    client.ask(Ask::Get, (&path, &given), Vec::new(), DEADLINE).await
}

async fn list(
    workflow_type: &str,
    given: Vec<(&str, String)>,
    limit: usize,
    shown: &Shown,
) -> Result<(), Error> {
    let client = Client::new(&shown.server.url)?;
    let (mut rows, mut all, mut after) = (Vec::new(), Vec::new(), None::<String>);
    while rows.len() < limit {
        let page = (limit - rows.len()).min(PAGE).to_string();
        let mut given = given.clone();
        given.push(("limit", page));
        given.extend(after.take().map(|after| ("after", after)));
        let page = list_page(&client, workflow_type, given).await?;
        for status in page["workflows"].as_array().into_iter().flatten() {
            rows.push(vec![
                text(&status["key"]),
                status_word(status),
                text(&status["run"]),
                text(&status["version"]),
                text(&status["created_at"]),
                text(&status["updated_at"]),
                match &status["stuck"]["reason"] {
                    Value::Null => waits(status).join(", "),
                    reason => text(reason),
                },
            ]);
            all.push(status.clone());
        }
        after = page["next"].as_str().map(str::to_owned);
        if after.is_none() {
            break;
        }
    }
    let head =
        vec!["KEY", "STATUS", "RUN", "VERSION", "CREATED", "UPDATED", "WAITS FOR, OR IS STUCK"];
    print(shown, &all.into(), (head, rows));
    Ok(())
}

/// Goes through all pages of those that are meant; says whether all did what they were asked to.
async fn batch(asked: &BatchAsked) -> Result<bool, Error> {
    let (client, given) = (Client::new(&asked.shown.server.url)?, asked.parameters());
    let (mut done, mut failed, mut reason, mut after) = (0, 0, Value::Null, None::<String>);
    loop {
        let mut given: Vec<(&str, &str)> =
            given.iter().map(|(name, value)| (*name, value.as_str())).collect();
        given.extend(after.as_deref().map(|after| ("after", after)));
        let page =
            client.change(&["v1", "workflows", &asked.workflow_type], &given, DEADLINE).await?;
        done += page["done"].as_u64().unwrap_or_default();
        failed += page["failed"].as_u64().unwrap_or_default();
        if reason.is_null() {
            reason = page["reason"].clone();
        }
        after = page["next"].as_str().map(str::to_owned);
        if after.is_none() {
            break;
        }
        let _nobody_reads = writeln!(std::io::stderr(), "{done} done, {failed} failed so far");
    }
    let all = json!({ "done": done, "failed": failed, "reason": reason });
    let row = vec![done.to_string(), failed.to_string(), text(&reason)];
    print(&asked.shown, &all, (vec!["DONE", "FAILED", "WHY"], vec![row]));
    Ok(failed == 0)
}

fn table_of_status(status: &Value) -> Table {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![name.to_owned(), value]);
        }
    };
    row("status", status_word(status));
    row("stuck", text(&status["stuck"]["reason"]));
    row("suspended", text(&status["suspended"]));
    row("run", text(&status["run"]));
    row("version", text(&status["version"]));
    row("created", text(&status["created_at"]));
    row("updated", text(&status["updated_at"]));
    for name in ["input", "output", "failure", "custom_status"] {
        let value = &status[name];
        row(name, if value.is_null() { String::new() } else { value.to_string() });
    }
    for wait in waits(status) {
        row("waits for", wait);
    }
    let history = &status["history"];
    let (turns, deliveries) = (text(&history["turns"]), text(&history["deliveries"]));
    row("history", format!("{turns} turns, {deliveries} deliveries"));
    (Vec::new(), rows)
}

fn status_word(status: &Value) -> String {
    let word = match &status["status"] {
        Value::Null => "not started".to_owned(),
        word => text(word),
    };
    if status["stuck"].is_null() { word } else { format!("{word}, stuck") }
}

/// Names what a workflow waits for.
fn waits(status: &Value) -> Vec<String> {
    let waits = status["waits_for"].as_array().into_iter().flatten();
    let words = |wait: &Value| {
        let parts = ["kind", "name", "target"].map(|part| text(&wait[part]));
        let due = wait["due"].as_str().and_then(|due| due.parse::<Timestamp>().ok());
        let due = due.map(|due| format!("until {due}")).unwrap_or_default();
        let failed = wait["failed_attempts"].as_u64().filter(|failed| *failed > 0);
        let failed = failed.map(|failed| format!("({failed} failed)")).unwrap_or_default();
        let parts: Vec<_> = parts.into_iter().chain([due, failed]).collect();
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    };
    waits.map(words).collect()
}

/// A value as a cell: texts as they are, nothing for null.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Prints the JSON, or the table, in which each column is as wide as its widest cell.
pub(super) fn print(shown: &Shown, json: &Value, (head, rows): Table) {
    if shown.json {
        return line(&json.to_string());
    }
    let head: Vec<String> = head.into_iter().map(str::to_owned).collect();
    let rows = rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect());
    let all: Vec<Vec<String>> =
        Some(head).filter(|head| !head.is_empty()).into_iter().chain(rows).collect();
    let columns = all.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    for row in &all {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        line(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// A cell in which nothing moves the cursor or changes the terminal.
fn plain(cell: &str) -> String {
    let shown = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    cell.chars().map(shown).collect()
}

fn line(text: &str) {
    let _nobody_reads = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_and_waits_are_named_in_words() {
        let done = json!({ "Done": ["3.1", { "Ok": 5 }] });
        let failed = json!({ "Done": ["2", { "Err": "cancelled" }] });
        let all = [json!({ "Start": null }), done, failed, json!("Cancel")];
        let words: Vec<_> = all.iter().map(delivery).collect();
        assert_eq!(words, ["start", "3.1 done", "2 failed", "cancel"]);
        let status = json!({ "status": "running", "stuck": null, "waits_for": [
            { "place": "1", "kind": "event", "name": "go", "since": "2026-01-01T00:00:00Z" },
            { "place": "2", "kind": "step", "name": "pay", "failed_attempts": 2 },
        ] });
        assert_eq!(waits(&status), ["event go", "step pay (2 failed)"]);
        assert_eq!(status_word(&status), "running");
        assert_eq!(plain("a\u{1b}[2J\nü"), "a\\u{1b}[2J\\nü");
    }
}
