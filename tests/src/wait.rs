//! Waiting for what another process, task or database brings about. Nobody tells a test of that, so it is
//! asked for again and again; this is the one place where tests do so.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything is waited for.
const DEADLINE: Duration = Duration::from_secs(30);
/// The wait between two questions.
const PAUSE: Duration = Duration::from_millis(5);

/// Asks until there is an answer.
///
/// # Errors
/// The first that asking brings, and, named by `what`, that there was no answer within 30 s.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    while began.elapsed() < DEADLINE {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("{what}: not within {DEADLINE:?}")
}

/// Asks until it is so, where asking does not fail.
///
/// # Panics
/// With `what`, where it is not so within 30 s.
pub async fn until_true(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let asked = until(what, async || Ok(ask().await.then_some(())));
    asked.await.expect("it comes about");
}
