//! The time of processors that a process has used, and the bytes that it has written.

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

/// The bytes that this process has written so far, to files and otherwise.
pub fn written() -> Result<f64> {
    let io = fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    Ok(line.context("wchar")?.parse()?)
}
