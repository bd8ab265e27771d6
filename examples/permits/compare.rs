//! Compares what servers hold with what the file says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use stead::Client;

use crate::{
    applications::Report,
    client::events,
    entities::{Activity, Clerk, Permit},
    registry::{Receipt, receipts},
};

type Counts = BTreeMap<String, BTreeMap<String, u64>>;

/// Compares what the entities counted, and that nothing was given up.
pub async fn entities(server: SocketAddr) -> Result<()> {
    let (mut clerks, mut activities) = (Counts::new(), Counts::new());
    let mut total = 0;
    let permits = events()?;
    for (permit, lines) in &permits {
        for line in lines {
            let (activity, resource) = (&line.event.activity, &line.event.resource);
            *clerks.entry(resource.clone()).or_default().entry(activity.clone()).or_default() += 1;
            let by = activities.entry(activity.clone()).or_default();
            *by.entry(resource.clone()).or_default() += 1;
            total += 1;
        }
        let state: Permit = state(server, "permit", permit).await?;
        let expected: Vec<_> = lines.iter().map(|line| line.event.clone()).collect();
        ensure!(state.events == expected, "{permit} differs: {:?}", state.events);
    }
    for (name, expected) in &clerks {
        settled(server, "clerk", name, |clerk: Clerk| clerk.handled == *expected).await?;
    }
    for (name, expected) in &activities {
        settled(server, "activity", name, |activity: Activity| activity.done_by == *expected)
            .await?;
    }
    ensure_no_dead_letters(server).await?;
    print_busiest("clerks", &clerks);
    print_busiest("activities", &activities);
    println!(
        "no difference: {total} events, {} permits, {} clerks, {} activities",
        permits.len(),
        clerks.len(),
        activities.len()
    );
    Ok(())
}

/// Compares the report of every application with the file, and the receipts of all with the ledger of the registry.
pub async fn applications(server: SocketAddr, ledger: &Path) -> Result<()> {
    let (permits, client) = (events()?, Client::new(&format!("http://{server}"))?);
    let mut recorded = BTreeSet::new();
    for (permit, lines) in &permits {
        let ended: Value =
            get(server, &format!("/v1/workflows/application/{permit}?wait=30s")).await?;
        ensure!(ended["status"] == "completed", "{permit}: {ended}");
        let report: Report = serde_json::from_value(ended["output"].clone())?;
        let expected: Vec<_> = lines.iter().map(|line| line.event.clone()).collect();
        ensure!(report.events == expected, "{permit} differs: {:?}", report.events);
        let entries = (1..=lines.len()).map(|number| format!("{permit}/{number}"));
        ensure!(
            report.receipts.iter().map(|receipt| receipt.entry.clone()).eq(entries),
            "{permit}: {:?}",
            report.receipts
        );
        let history = history(&client, permit).await?;
        ensure!(history == report.receipts, "the history of {permit} differs: {history:?}");
        for receipt in history {
            ensure!(recorded.insert(receipt.token.clone()), "{receipt:?} twice");
        }
    }
    let given = receipts(ledger)?;
    let lost = given.iter().filter(|receipt| !recorded.contains(&receipt.token)).count();
    ensure!(
        given.len() == recorded.len() && lost == 0,
        "{} receipts were given, {} are recorded, {lost} were lost",
        given.len(),
        recorded.len()
    );
    ensure_no_dead_letters(server).await?;
    println!(
        "no difference: {} events, {} applications, {} receipts",
        recorded.len(),
        permits.len(),
        given.len()
    );
    Ok(())
}

/// The outcomes of steps that the history of an application has, in order. Its deadline was given up.
async fn history(client: &Client, permit: &str) -> Result<Vec<Receipt>> {
    let (mut outcomes, mut steps, mut given_up) = (Vec::new(), BTreeSet::new(), Vec::new());
    let history = client.instance("application", permit).history().await?;
    let history: History = serde_json::from_value(serde_json::to_value(history)?)?;
    for turn in history.turns {
        for done in turn.deliveries.iter().map(|delivery| &delivery["Done"]) {
            if steps.contains(done[0].as_str().unwrap_or_default()) {
                outcomes.push(serde_json::from_value(done[1]["Ok"].clone())?);
            }
        }
        given_up.extend(turn.cancelled);
        let begun = turn.begun.into_iter().filter(|begun| begun.kind == "step");
        steps.extend(begun.map(|begun| begun.place));
    }
    ensure!(given_up == ["1"], "{permit} gave up {given_up:?}, and not its deadline");
    Ok(outcomes)
}

/// The part of a history that is compared.
#[derive(Deserialize)]
struct History {
    turns: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    deliveries: Vec<Value>,
    begun: Vec<Begun>,
    cancelled: Vec<String>,
}

#[derive(Deserialize)]
struct Begun {
    place: String,
    kind: String,
}

async fn ensure_no_dead_letters(server: SocketAddr) -> Result<()> {
    let letters: Value = get(server, "/v1/dead-letters").await?;
    ensure!(letters["dead_letters"] == serde_json::json!([]), "dead letters: {letters}");
    Ok(())
}

/// Waits, at most a minute, until what was accepted is applied.
async fn settled<T: serde::de::DeserializeOwned>(
    server: SocketAddr,
    entity_type: &str,
    key: &str,
    is_settled: impl Fn(T) -> bool,
) -> Result<()> {
    for _ in 0..600 {
        if state(server, entity_type, key).await.is_ok_and(&is_settled) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let found: Value = state(server, entity_type, key).await?;
    bail!("{entity_type}/{key} differs: {found}")
}

async fn state<T: serde::de::DeserializeOwned>(
    server: SocketAddr,
    entity_type: &str,
    key: &str,
) -> Result<T> {
    let key = key.replace(' ', "%20").replace('/', "%2F");
    let shown: Value = get(server, &format!("/v1/entities/{entity_type}/{key}")).await?;
    Ok(serde_json::from_value(shown["state"].clone())?)
}

async fn get(server: SocketAddr, path: &str) -> Result<Value> {
    let url = format!("http://{server}{path}");
    for _ in 0..500 {
        match reqwest::get(&url).await {
            Ok(answer) if answer.status() == 200 => return Ok(answer.json().await?),
            Ok(answer) if answer.status() == 404 => bail!("{path} is not there"),
            Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    reqwest::get(&url).await.context(path.to_owned())?.error_for_status()?;
    bail!("{path} did not answer")
}

fn print_busiest(what: &str, counts: &Counts) {
    let mut totals: Vec<_> =
        counts.iter().map(|(name, by)| (by.values().sum::<u64>(), name)).collect();
    totals.sort_unstable_by(|a, b| b.cmp(a));
    println!("the busiest {what}:");
    for (total, name) in totals.into_iter().take(5) {
        println!("{total:>6}  {name}");
    }
}
