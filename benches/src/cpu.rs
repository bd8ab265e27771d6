//! The time of processors that a process has used.

use std::fs;

use anyhow::{Context as _, Result};

/// The processor time, in seconds, of the process with this id; of this one for `"self"`.
pub fn seconds(process: &str) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok());
    // Fields 14 and 15 of proc(5), in hundredths of a second.
    Ok(ticks(12).zip(ticks(13)).map(|(user, system)| user + system).context("times")? / 100.0)
}
