//! Function chaining: each step takes what the one before it returned, across a restart.
//!
//! `cargo run --release --bin chaining` prints
//!
//! ```text
//! measured 21.5 degrees in oslo
//! the program starts again
//! published: oslo: 70.7 F
//! ```

use std::{path::Path, time::Duration};

use anyhow::Result;
use stead::{
    Failure, Node, RocksStore, workflow,
    workflow::{StepError, Workflow},
};

/// Measures, converts and publishes a temperature.
struct Reports;

#[workflow(name = "report")]
impl Reports {
    pub async fn run(ctx: Workflow<Self>, city: String) -> Result<String, Failure> {
        let celsius = ctx.measure(city.clone()).await?;
        ctx.sleep(Duration::from_secs(1)).await?;
        let fahrenheit = ctx.convert(celsius).await?;
        ctx.publish(city, fahrenheit).attempts(5).await
    }

    /// Measures again where the process ends in here, and not once its result is stored.
    async fn measure(&self, city: String) -> Result<f64, StepError> {
        println!("measured 21.5 degrees in {city}");
        Ok(21.5)
    }

    async fn convert(&self, celsius: f64) -> Result<f64, StepError> {
        Ok(celsius * 1.8 + 32.0)
    }

    async fn publish(&self, city: String, fahrenheit: f64) -> Result<String, StepError> {
        Ok(format!("{city}: {fahrenheit:.1} F"))
    }
}

async fn open(data: &Path) -> Result<Node> {
    Ok(Node::builder().store(RocksStore::open(data)?).workflow(Reports).start().await?)
}

#[tokio::main]
async fn main() -> Result<()> {
    let data = tempfile::tempdir()?;
    let node = open(data.path()).await?;
    let report = node.workflow::<Reports>("oslo");
    report.start("oslo".into()).await?;
    while report.status().await?.waits_for.iter().all(|wait| wait.due.is_none()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.drain().await?;
    drop((node, report));
    println!("the program starts again");
    let node = open(data.path()).await?;
    println!("published: {}", node.workflow::<Reports>("oslo").result().await?);
    node.drain().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use stead::testing::WorkflowDriver;

    use super::*;

    #[test]
    fn a_report_goes_on_wherever_the_process_ends() {
        WorkflowDriver::crash_everywhere(
            || WorkflowDriver::new("rome", Reports),
            |report| {
                report.step("publish").fails("the printer is busy").times(4).returns("at last");
                report.start("rome".into()).unwrap();
                report.run_to_end().unwrap();
                assert_eq!(report.result().as_deref(), Ok("at last"));
            },
        );
    }
}
