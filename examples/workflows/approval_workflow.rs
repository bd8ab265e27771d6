//! Human interaction: a request waits for an answer, is escalated after three days, and given up after three more.
//!
//! `cargo run --release --bin approval_workflow` prints
//!
//! ```text
//! holiday-1: approved by kim
//! holiday-2: nobody answered
//! ```

use std::time::Duration;

use anyhow::Result;
use stead::{
    Failure, Node, RocksStore, workflow,
    workflow::{Of2, StepError, Workflow},
};

/// Requests that somebody has to approve.
struct Requests {
    timeout: Duration,
}

#[workflow(name = "approval-request", events(answer: String))]
impl Requests {
    pub async fn run(ctx: Workflow<Self>, approvers: Vec<String>) -> Result<String, Failure> {
        for approver in approvers {
            let timeout = ctx.ask(approver.clone()).await?;
            match ctx.race((ctx.answer(), ctx.sleep(Duration::from_millis(timeout)))).await {
                Of2::First(answer) => return Ok(format!("{} by {approver}", answer?)),
                Of2::Second(_) => ctx.set_status("escalated"),
            }
        }
        Ok("nobody answered".into())
    }

    /// Writes to the approver; how many milliseconds the request waits follows from the settings of the program.
    async fn ask(&self, _approver: String) -> Result<u64, StepError> {
        Ok(u64::try_from(self.timeout.as_millis())?)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let data = tempfile::tempdir()?;
    let store = RocksStore::open(data.path())?;
    let requests = Requests { timeout: Duration::from_secs(1) };
    let node = Node::builder().store(store).workflow(requests).start().await?;
    let (first, second) =
        (node.workflow::<Requests>("holiday-1"), node.workflow::<Requests>("holiday-2"));
    for request in [&first, &second] {
        request.start(vec!["kim".into(), "sam".into()]).await?;
    }
    first.answer("approved".into()).await?;
    println!("holiday-1: {}", first.result().await?);
    println!("holiday-2: {}", second.result().await?);
    node.drain().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use stead::testing::WorkflowDriver;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3_600);

    #[test]
    fn a_request_is_escalated_after_three_days_wherever_the_process_ends() {
        WorkflowDriver::crash_everywhere(
            || WorkflowDriver::new("1", Requests { timeout: 3 * DAY }),
            |request| {
                request.start(vec!["kim".into(), "sam".into()]).unwrap();
                request.advance(2 * DAY).unwrap();
                assert_eq!(request.custom_status::<String>(), None);
                request.advance(2 * DAY).unwrap();
                assert_eq!(request.custom_status::<String>().as_deref(), Some("escalated"));
                request.event("answer", "refused").unwrap();
                assert_eq!(request.result().as_deref(), Ok("refused by sam"));
            },
        );
    }
}
