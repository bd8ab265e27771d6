//! A monitor: a job outside is asked again and again, with growing waits, until it is done; and a report every morning.
//!
//! `cargo run --release --bin monitor` prints
//!
//! ```text
//! the job was done at the 5th look
//! the next report is due at 07:00 in Europe/Oslo
//! ```

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::Result;
use stead::{
    Cron, Failure, Node, RocksStore, workflow,
    workflow::{StepError, Workflow},
};

/// Looks after a job.
#[derive(Debug, Default)]
struct Monitors {
    looks: AtomicU32,
}

#[workflow(name = "monitor")]
impl Monitors {
    /// Returns how often it looked.
    pub async fn run(ctx: Workflow<Self>, first_wait: u64) -> Result<u32, Failure> {
        let mut wait = Duration::from_millis(first_wait);
        for look in 1.. {
            if ctx.is_done().await? {
                return Ok(look);
            }
            ctx.sleep(wait).await?;
            wait = (wait * 2).min(Duration::from_secs(3_600));
        }
        Err(Failure::fatal("it was never done"))
    }

    async fn is_done(&self) -> Result<bool, StepError> {
        Ok(self.looks.fetch_add(1, Ordering::Relaxed) >= 4)
    }
}

/// Reports by the calendar.
struct MorningReports;

#[workflow(name = "morning-report")]
impl MorningReports {
    pub async fn run(ctx: Workflow<Self>, zone: String) -> Result<(), Failure> {
        let due = Cron::new("0 7 * * *", &zone).after(ctx.now()).map_err(Failure::fatal)?;
        ctx.sleep_until(due).await?;
        ctx.report().await?;
        ctx.continue_as(zone).await
    }

    async fn report(&self) -> Result<(), StepError> {
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let data = tempfile::tempdir()?;
    let store = RocksStore::open(data.path())?;
    let builder = Node::builder().store(store).workflow(Monitors::default());
    let node = builder.workflow(MorningReports).start().await?;
    let job = node.workflow::<Monitors>("job-1");
    job.start(10).await?;
    println!("the job was done at the {}th look", job.result().await?);

    let reports = node.workflow::<MorningReports>("oslo");
    reports.start("Europe/Oslo".into()).await?;
    let waits = reports.status().await?.waits_for;
    if let Some(due) = waits.first().and_then(|wait| wait.due) {
        let local = Cron::new("0 7 * * *", "Europe/Oslo").local(due).unwrap_or_default();
        let time =
            local.split(['T', ' ']).nth(1).and_then(|time| time.get(..5)).unwrap_or_default();
        println!("the next report is due at {time} in Europe/Oslo");
    }
    node.drain().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use stead::testing::WorkflowDriver;

    use super::*;

    #[test]
    fn it_looks_until_the_job_is_done_wherever_the_process_ends() {
        WorkflowDriver::crash_everywhere(
            || WorkflowDriver::new("1", Monitors::default()),
            |job| {
                job.step("is_done").returns(false).times(6).returns(true);
                let started = job.now();
                job.start(1_000).unwrap();
                job.run_to_end().unwrap();
                assert_eq!(job.result(), Ok(7));
                assert_eq!(job.now().since(started), Duration::from_secs(1 + 2 + 4 + 8 + 16 + 32));
            },
        );
    }

    #[test]
    fn a_report_goes_out_every_morning() {
        let mut reports = WorkflowDriver::new("oslo", MorningReports);
        reports.start("Europe/Oslo".into()).unwrap();
        for _ in 0..3 {
            reports.advance(Duration::from_secs(24 * 3_600)).unwrap();
        }
        assert_eq!(reports.waits_for().len(), 1);
    }
}
