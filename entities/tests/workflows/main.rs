//! Workflows without a runtime: what their code begins, waits for and ends with, and that a replay does the same.
#![allow(missing_docs, unreachable_pub)]

mod early;
mod ends;
mod family;
mod order;
mod programs;
mod random;
mod rewind;
mod section;
mod stuck;

use std::time::Duration;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn days(days: u64) -> Duration {
    secs(days * 86_400)
}
