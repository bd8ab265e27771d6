//! Workflows by the hundred over HTTP: what one request has many of them do, the streams of their changes, and what a
//! type says of itself.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use stead::{
    Failure, Routes, Timeout, WorkflowChange, workflow,
    workflow::{StepError, Workflow},
};
use stead_tests::events::Events;

use super::*;

struct Parcels;

/// A parcel that is sent when it is paid.
#[workflow(name = "parcel", events(paid: u32), changes = Duration::from_secs(3_600))]
impl Parcels {
    pub async fn run(ctx: Workflow<Self>, price: u32) -> Result<u32, Failure> {
        let paid = ctx.paid().await?;
        if paid < price {
            return Err(Failure::fatal("too little"));
        }
        ctx.send(paid).await
    }

    /// Sends it.
    #[step(at_most = 4)]
    async fn send(&self, paid: u32) -> Result<u32, StepError> {
        Ok(paid)
    }
}

async fn parcels(count: usize) -> (Node, String) {
    let node = World::new().start_with(|builder| builder.workflow(Parcels)).await;
    for number in 0..count {
        node.workflow::<Parcels>(format!("p-{number:03}")).start(5).await.expect("started");
    }
    let app = axum::Router::new()
        .nest("/part", node.router_of(Routes::new().keys("p-")))
        .merge(node.router());
    let (url, _served) = serve(app).await;
    (node, format!("{url}/v1/workflows/parcel"))
}

async fn ask(request: reqwest::RequestBuilder) -> Result<(u16, Value)> {
    let answer = request.send().await?;
    let status = answer.status().as_u16();
    Ok((status, serde_json::from_slice(&answer.bytes().await?).unwrap_or_default()))
}

#[tokio::test]
async fn one_request_has_all_that_fit_do_the_same_page_by_page() -> Result<()> {
    let (node, url) = parcels(250).await;
    let http = reqwest::Client::new();
    let post = async |query: &str| ask(http.post(format!("{url}?{query}"))).await;
    for refused in [
        "operation=cancel",
        "operation=cancel&all=true&prefix=p",
        "operation=explode&all=true",
        "operation=purge&all=perhaps",
        "operation=retry&stuck=true&unknown=1",
    ] {
        ensure!(post(refused).await?.0 == 400, "{refused}");
    }
    ensure!(ask(http.post(format!("{url}x?operation=cancel&all=true"))).await?.0 == 404);
    let part = url.replace("/v1/", "/part/v1/");
    let narrowed = http.post(format!("{part}?operation=cancel&prefix=p-"));
    ensure!(ask(narrowed).await?.0 == 400, "what is narrowed by keys finds nothing by indexes");

    let (mut done, mut after, mut pages) = (0, String::new(), 0);
    loop {
        let query = format!("operation=terminate&prefix=p-1&reason=late&limit=40{after}");
        let (status, page) = post(&query).await?;
        ensure!(status == 200 && page["failed"] == 0, "{page}");
        done += page["done"].as_u64().context("a number")?;
        pages += 1;
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    ensure!((done, pages > 1) == (100, true), "{done} in {pages}");
    let (_, again) = post("operation=cancel&status=terminated&limit=1000").await?;
    ensure!((&again["done"], &again["failed"]) == (&json!(0), &json!(100)), "{again}");
    ensure!(again["reason"].as_str().is_some_and(|why| why.contains("parcel/p-1")), "{again}");
    let (_, purged) = post("operation=purge&status=terminated&limit=1000&recursive=true").await?;
    ensure!(purged == json!({ "done": 100, "failed": 0, "reason": null, "next": null }));
    ensure!(ask(http.get(format!("{url}/p-100"))).await?.0 == 404);

    // The same in Rust.
    let running = node.find_of("parcel").matching("status:running").limit(1_000);
    let suspended = running.change(&WorkflowChange::Suspend("pause".into())).await?;
    ensure!((suspended.done, suspended.failed, suspended.next) == (150, 0, None));
    let all = node.find_of("parcel").order_by_name("created").limit(1_000);
    ensure!(all.change(&WorkflowChange::Resume).await?.done == 150);
    node.abort().await;
    Ok(())
}

#[tokio::test]
async fn changes_of_one_workflow_and_of_all_of_a_type_are_streams() -> Result<()> {
    let (node, url) = parcels(2).await;
    let http = reqwest::Client::new();
    let mut one = Events::of(http.get(format!("{url}/p-000/changes")).send().await?).await?;
    let mut all = Events::of(http.get(format!("{url}/changes")).send().await?).await?;
    ensure!(ask(http.get(format!("{url}/p-000/changes?x=1"))).await?.0 == 400);
    let no = url.replace("/parcel", "/counter");
    ensure!(ask(http.get(format!("{no}/c/changes"))).await?.0 == 404, "an entity is no workflow");
    let status = async |events: &mut Events| {
        let (kind, _, data) = events.next().await?.context("an event")?;
        anyhow::Ok((kind, data["key"].clone(), data["state"]["status"].clone()))
    };
    let expected = ("state".to_owned(), json!("p-000"), json!("running"));
    ensure!(status(&mut one).await? == expected);
    node.workflow::<Parcels>("p-000").paid(7).await?;
    loop {
        let (_, key, status) = status(&mut one).await?;
        ensure!(key == "p-000");
        if status == "completed" {
            break;
        }
    }
    let mut ended = Vec::new();
    node.workflow::<Parcels>("p-001").paid(1).await?;
    while ended.len() < 2 {
        let (_, key, status) = status(&mut all).await?;
        if status == "completed" || status == "failed" {
            ended.push((key, status));
        }
    }
    ensure!(ended == [(json!("p-000"), json!("completed")), (json!("p-001"), json!("failed"))]);
    node.abort().await;
    Ok(())
}

#[tokio::test]
async fn a_type_says_what_it_takes_and_what_it_does() -> Result<()> {
    let (node, url) = parcels(0).await;
    let types = url.replace("/parcel", "");
    let (_, shown) = ask(reqwest::Client::new().get(types)).await?;
    let parcel = &shown["types"][0];
    ensure!((&parcel["name"], &parcel["version"]) == (&json!("parcel"), &json!(1)), "{parcel}");
    ensure!(parcel["input"]["type"] == "integer" && parcel["output"]["type"] == "integer");
    let event = &parcel["events"][0];
    ensure!((&event["name"], &event["payload"]["type"]) == (&json!("paid"), &json!("integer")));
    let step = &parcel["steps"][0];
    ensure!((&step["name"], &step["at_most"]) == (&json!("send"), &json!(4)), "{step}");
    ensure!(step["description"] == "Sends it." && step["output"]["type"] == "integer", "{step}");
    let length = |name: &str| serde_json::from_value::<Timeout>(parcel[name].clone());
    let (retention, changes) = (length("retention")?, length("changes")?);
    ensure!(retention.as_duration() == Duration::from_secs(7 * 86_400), "{parcel}");
    ensure!(changes.as_duration() == Duration::from_secs(3_600), "{parcel}");
    node.abort().await;
    Ok(())
}
