//! An approval as a workflow: one event decides, or time does.

use std::time::Duration;

use crate::{
    Deserialize, Failure, JsonSchema, Serialize,
    workflow::{EventType, Of2, Workflow, WorkflowType},
};

/// The event that decides, whose payload says yes or no.
const DECISION: &str = "ApprovalEvent";

/// Waits for a decision: its result is `approved`, `rejected` or `timed out`. The event `ApprovalEvent` decides, by a
/// boolean.
#[derive(Debug, Clone, Copy, Default)]
pub struct ApprovalWorkflow;

/// How long a decision is waited for. Either member is enough; without one it is waited for however long it takes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ApprovalTimeout {
    /// In seconds.
    pub timeout_seconds: Option<f64>,
    /// In milliseconds.
    pub timeout_ms: Option<f64>,
}

impl ApprovalTimeout {
    fn length(&self) -> Result<Option<Duration>, Failure> {
        let seconds = self.timeout_seconds.or(self.timeout_ms.map(|ms| ms / 1_000.0));
        let length = seconds.map(Duration::try_from_secs_f64).transpose();
        length.map_err(|error| Failure::fatal(format!("the timeout is no length: {error}")))
    }
}

impl WorkflowType for ApprovalWorkflow {
    const NAME: &'static str = "approval-workflow";
    const DESCRIPTION: &'static str =
        "Waits for the event ApprovalEvent, a boolean: approved, rejected, or timed out.";
    type Input = Option<ApprovalTimeout>;
    type Output = String;

    async fn run(ctx: Workflow<Self>, timeout: Self::Input) -> Result<String, Failure> {
        let decision = ctx.event::<bool>(DECISION);
        let decision = match timeout.unwrap_or_default().length()? {
            None => Some(decision.await?),
            Some(length) => match ctx.race((decision, ctx.sleep(length))).await {
                Of2::First(decision) => Some(decision?),
                Of2::Second(passed) => passed.map(|()| None)?,
            },
        };
        Ok(match decision {
            Some(true) => "approved",
            Some(false) => "rejected",
            None => "timed out",
        }
        .to_owned())
    }

    fn events() -> Vec<EventType> {
        vec![EventType::new::<bool>(DECISION)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::WorkflowDriver;

    #[test]
    fn a_decision_or_time_ends_it() {
        for (decision, expected) in
            [(Some(true), "approved"), (Some(false), "rejected"), (None, "timed out")]
        {
            let mut approval = WorkflowDriver::new("a", ApprovalWorkflow);
            let timeout = serde_json::from_str(r#"{"timeoutMs":2000}"#).expect("a timeout");
            approval.start(Some(timeout)).expect("started");
            if let Some(decision) = decision {
                approval.event(DECISION, decision).expect("taken");
            }
            approval.advance(Duration::from_secs(2)).expect("advanced");
            assert_eq!(approval.result().as_deref(), Ok(expected));
        }
    }
}
