//! Measures what stead promises to reach, each figure beside its ceiling, in one run.
//!
//! Ceiling and figure are measured in turn, several times, on the same disk; the medians are shown.
//! No setting that concerns durability differs from `stead serve`.

mod activation;
mod asks;
mod buffered;
mod ceiling;
mod changes;
mod cluster;
mod collections;
mod committed;
mod cpu;
mod due;
mod http;
mod in_process;
mod indexed;
mod load;
mod placement;
mod postgres;
mod rearm;
mod recovery;
mod table;
mod workflows;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use table::Table;

/// The allocator of `stead serve`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures throughput, latency, memory and recovery, each against its ceiling.
#[derive(Debug, Parser)]
struct Command {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Only these figures: spread, hot, asks, buffered, committed, rearm, collections, workflows, indexed, find, changes, http, query, latency, activation,
    /// recovery, due, placement, postgres, cluster.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How often ceiling and figure are measured in turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// The other processes that a measurement needs; not for people.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Serves a handler that adds in memory.
    #[command(hide = true)]
    Bare,
    /// Makes entities, then signals that stay in the log, and waits to be killed.
    #[command(hide = true)]
    Fill { data: PathBuf },
    /// Stores signals that are due at one instant, in microseconds since 1970.
    #[command(hide = true)]
    FillDue { data: PathBuf, at: i64 },
    /// Makes a million counters with different values.
    #[command(hide = true)]
    FillValues { data: PathBuf },
    /// Activates every entity of a store and prints the bytes that each takes.
    #[command(hide = true)]
    Activate { data: PathBuf },
    /// Serves the workflows that are measured.
    #[command(hide = true)]
    Workflows { data: PathBuf },
    /// Starts workflows that wait and prints the bytes that each takes.
    #[command(hide = true)]
    Waiting { data: PathBuf },
}

#[tokio::main]
async fn main() -> Result<()> {
    let command = Command::parse();
    match command.verb {
        Some(Verb::Bare) => http::serve_bare().await,
        Some(Verb::Fill { data }) => recovery::fill(&data).await,
        Some(Verb::FillValues { data }) => indexed::fill(&data).await,
        Some(Verb::FillDue { data, at }) => due::fill(&data, at).await,
        Some(Verb::Activate { data }) => activation::activate_all(&data).await,
        Some(Verb::Workflows { data }) => workflows::serve(&data).await,
        Some(Verb::Waiting { data }) => workflows::wait_in_memory(&data).await,
        None => measure(&command.only, command.rounds).await,
    }
}

async fn measure(only: &[String], rounds: usize) -> Result<()> {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|known| known == name);
    let mut table = Table::new();
    if wanted("spread") || wanted("hot") {
        in_process::measure(&mut table, rounds, wanted).await?;
    }
    if wanted("asks") {
        asks::measure(&mut table, rounds).await?;
    }
    if wanted("buffered") {
        buffered::measure(&mut table, rounds).await?;
    }
    if wanted("committed") {
        committed::measure(&mut table, rounds).await?;
    }
    if wanted("rearm") {
        rearm::measure(&mut table, rounds).await?;
    }
    if wanted("collections") {
        collections::measure(&mut table, rounds).await?;
    }
    if wanted("workflows") {
        workflows::measure(&mut table, rounds).await?;
    }
    if wanted("indexed") {
        indexed::turns(&mut table, rounds).await?;
    }
    if wanted("find") {
        indexed::lookups(&mut table, rounds).await?;
    }
    if wanted("changes") {
        changes::measure(&mut table).await?;
    }
    if wanted("http") {
        http::throughput(&mut table, rounds).await?;
    }
    if wanted("query") {
        http::queries(&mut table, rounds).await?;
    }
    if wanted("latency") {
        http::latency(&mut table, rounds).await?;
    }
    if wanted("activation") {
        activation::measure(&mut table).await?;
    }
    if wanted("recovery") {
        recovery::measure(&mut table).await?;
    }
    if wanted("due") {
        due::measure(&mut table).await?;
    }
    if wanted("postgres") {
        postgres::measure(&mut table, rounds).await?;
    }
    if wanted("cluster") {
        cluster::measure(&mut table, rounds).await?;
    }
    if wanted("placement") {
        placement::measure(&mut table, rounds);
    }
    table.print();
    Ok(())
}
