//! The workflow: an application has each of its events registered, until all were there or its deadline passes.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use reqwest::Client;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead::{
    Failure, Layout, Rejection, workflow,
    workflow::{Of2, Step, StepError, Workflow},
};

use crate::{entities::Event, registry::Receipt};

/// How long a registration may take. Shorter than the registry keeps silent now and then.
const TIMEOUT: Duration = Duration::from_millis(500);

/// How often a registration is tried: through every kill of the registry.
const ATTEMPTS: u32 = 1_000;

/// The input of an application.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Application {
    /// How many events it comes to.
    pub events: usize,
    /// After which time it is given up.
    pub deadline: Duration,
}

/// The result of an application.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Report {
    /// In order.
    pub events: Vec<Event>,
    /// Of each event.
    pub receipts: Vec<Receipt>,
}

/// The registry that registers what happens to applications.
pub struct Applications {
    registry: String,
    http: Client,
}

impl Applications {
    pub fn new(registry: SocketAddr) -> Result<Self> {
        let http = Client::builder().timeout(TIMEOUT).build()?;
        Ok(Self { registry: format!("http://{registry}/receipts"), http })
    }
}

#[workflow(name = "application", events(happened: Event))]
impl Applications {
    pub async fn run(ctx: Workflow<Self>, application: Application) -> Result<Report, Failure> {
        let mut report = Report::default();
        let mut deadline = ctx.sleep(application.deadline);
        while report.events.len() < application.events {
            match ctx.race((ctx.happened(), &mut deadline)).await {
                Of2::First(event) => report.events.push(event?),
                Of2::Second(_) => return Err(Rejection::new("the deadline has passed").into()),
            }
            let number = report.events.len();
            let backoff = Duration::from_millis(20);
            let registered = ctx.register(number).attempts(ATTEMPTS).backoff(backoff, 5 * backoff);
            report.receipts.push(registered.await?);
        }
        // The last event cancels the deadline.
        drop(deadline);
        Ok(report)
    }

    /// Has an event registered, and returns its receipt.
    async fn register(&self, step: &Step, number: usize) -> Result<Receipt, StepError> {
        let entry = format!("{}/{number}", step.workflow().key());
        let request = self.http.post(&self.registry).header("token", step.token()).body(entry);
        Ok(request.send().await?.error_for_status()?.json().await?)
    }
}

#[cfg(test)]
mod tests {
    use stead::testing::WorkflowDriver;

    use super::*;

    #[test]
    fn an_application_ends_with_its_last_event_or_with_its_deadline() {
        let registry = SocketAddr::from(([127, 0, 0, 1], 9));
        let event = Event { activity: "decide".into(), resource: "kim".into() };
        let receipt = Receipt { number: 7, token: "t".into(), entry: "1/1".into() };
        for events in [2, 3] {
            WorkflowDriver::crash_everywhere(
                || WorkflowDriver::new("1", Applications::new(registry).unwrap()),
                |driver| {
                    driver.step("register").fails("busy").times(3).returns(receipt.clone());
                    let deadline = Duration::from_secs(3_600);
                    driver.start(Application { events, deadline }).unwrap();
                    driver.event("happened", event.clone()).unwrap();
                    driver.event("happened", event.clone()).unwrap();
                    driver.advance(Duration::from_secs(3_599)).unwrap();
                    assert_eq!(driver.waits_for().is_empty(), events == 2);
                    driver.advance(Duration::from_secs(1)).unwrap();
                    let report = driver.result().map(|report| report.receipts.len());
                    assert_eq!(report.ok(), (events == 2).then_some(2));
                },
            );
        }
    }
}
