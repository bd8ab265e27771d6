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
mod wrong;

use anyhow::Result;
use run::Run;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_reordered_whatever_befalls_real_nodes() -> Result<()> {
    let chosen = std::env::var("STEAD_SEEDS").ok();
    let parsed = chosen.as_deref().and_then(|text| text.split_once(".."));
    let seeds = match parsed {
        Some((from, to)) => from.parse::<u64>()?..to.parse()?,
        None => 1..4,
    };
    for seed in seeds {
        let Some(run) = Run::start(seed).await? else { return Ok(()) };
        run.finish().await?;
    }
    Ok(())
}
