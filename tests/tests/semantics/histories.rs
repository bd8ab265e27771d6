//! Histories of workflows that run: read as a whole, by whoever has a reference, and tried with other code.

use serde_json::Value;
use stead::{
    Failure, workflow,
    workflow::{StepError, Workflow},
};

use super::*;

/// Adds up the lengths of texts, until one is empty.
struct Lengths;

#[workflow(name = "lengths", events(text: String))]
impl Lengths {
    pub async fn run(ctx: Workflow<Self>, mut sum: u64) -> Result<u64, Failure> {
        loop {
            let text = ctx.text().await?;
            if text.is_empty() {
                return Ok(sum);
            }
            sum = ctx.add(sum + text.len() as u64).await?;
        }
    }

    async fn add(&self, sum: u64) -> Result<u64, StepError> {
        Ok(sum)
    }
}

/// The same with another argument for its step, and with another step.
struct Doubled;
struct Renamed;

#[workflow(name = "lengths", events(text: String))]
impl Doubled {
    pub async fn run(ctx: Workflow<Self>, _sum: u64) -> Result<u64, Failure> {
        let text = ctx.text().await?;
        ctx.add(2 * text.len() as u64).await
    }

    async fn add(&self, sum: u64) -> Result<u64, StepError> {
        Ok(sum)
    }
}

#[workflow(name = "lengths", events(text: String))]
impl Renamed {
    pub async fn run(ctx: Workflow<Self>, _sum: u64) -> Result<u64, Failure> {
        let text = ctx.text().await?;
        ctx.sum_up(text.len() as u64).await
    }

    async fn sum_up(&self, sum: u64) -> Result<u64, StepError> {
        Ok(sum)
    }
}

/// The texts: short ones, and two that take several entries of the history.
fn texts() -> Vec<String> {
    let lengths = (1..=130).chain([900_000, 3, 700_000]).map(|length| "x".repeat(length));
    lengths.chain([String::new()]).collect()
}

#[tokio::test]
async fn a_history_is_read_as_a_whole_and_tried_with_other_code() {
    let node = World::new().start_with(|builder| builder.workflow(Lengths)).await;
    let (url, server) = serve(node.router()).await;
    let lengths = node.workflow::<Lengths>("1");
    lengths.start(5).await.expect("started");
    for text in texts() {
        lengths.text(text).await.expect("taken");
    }
    let expected = 5 + texts().iter().map(|text| text.len() as u64).sum::<u64>();
    assert_eq!(lengths.result().await.expect("a result"), expected);

    let history = lengths.history().await.expect("a history");
    let client = stead::Client::new(&url).expect("a URL");
    assert_eq!(client.workflow::<Lengths>("1").history().await.expect("the same"), history);
    assert!(history.deliveries() >= 1 + 2 * texts().len() - 1, "{}", history.deliveries());
    assert_eq!(history.replay::<Lengths>(), Ok(()));
    let why = history.replay::<Doubled>().expect_err("another argument");
    assert!(why.contains("step add at place 2"), "{why}");
    let why = history.replay::<Renamed>().expect_err("another step");
    assert!(why.contains("step sum_up at place 2"), "{why}");

    // The smallest pages: each has a turn or more as a whole.
    let http = reqwest::Client::new();
    let (mut turns, mut after) = (0, Some(0));
    while let Some(from) = after {
        let page = format!("{url}/v1/workflows/lengths/1/history?limit=1&after={from}");
        let page = http.get(page).send().await.expect("an answer").text().await.expect("text");
        let page: Value = serde_json::from_str(&page).expect("JSON");
        turns += page["turns"].as_array().map_or(0, Vec::len);
        after = page["next"].as_u64();
    }
    let whole = serde_json::to_value(&history).expect("JSON");
    assert_eq!(Some(turns), whole["turns"].as_array().map(Vec::len));
    server.abort();
}

#[tokio::test]
async fn what_was_not_started_has_no_history() {
    let node = World::new().start_with(|builder| builder.workflow(Lengths)).await;
    let history = node.workflow::<Lengths>("never").history().await.expect("an empty one");
    assert_eq!((history.deliveries(), history.replay::<Lengths>()), (0, Ok(())));
}
