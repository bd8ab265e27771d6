//! Three real nodes and a private PostgreSQL: processes are killed and paused, connections cut, the
//! database crashed, leases stolen, while clients keep on. What goes wrong is decided by a seed.
//!
//! `STEAD_SEEDS=from..to` chooses other seeds, and `STEAD_LEDGER=FILE` adds a line for each run, with the
//! columns of `tests/ledger.csv`, which keeps the lines of many. `STEAD_LOGS=DIRECTORY` keeps what the
//! nodes say.

mod audit;
mod clocks;
mod nodes;
mod permits;
mod refusals;
mod run;
mod starts;
mod workflows;
mod wrong;

use anyhow::Result;
use run::Run;
use stead_tests::random::seeds;
use tokio::sync::Mutex;

/// Held by a test that keeps both processors busy: what others watch has its time.
static BUSY: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_reordered_whatever_befalls_real_nodes() -> Result<()> {
    let _alone = BUSY.lock().await;
    for seed in seeds(1..4) {
        let Some(run) = Run::start(seed, None).await? else { return Ok(()) };
        run.finish().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn workflows_come_to_what_they_must_whatever_befalls_real_nodes() -> Result<()> {
    let _alone = BUSY.lock().await;
    for seed in seeds(1..3) {
        let outside = tempfile::NamedTempFile::new()?;
        let Some(run) = Run::start(seed, Some(outside.path())).await? else { return Ok(()) };
        run.finish_workflows(outside.path()).await?;
    }
    Ok(())
}
