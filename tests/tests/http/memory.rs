//! A server within its budget of memory: with more entities than fit, with large bodies, under overload, and when it
//! starts again behind a kill.

use std::{process::Command, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::json;
use tokio::task::JoinSet;

use super::*;

const BUDGET: u64 = 256 << 20;
/// Their states take about ten times what entities may.
const ENTITIES: usize = 3_000;
const STATE: usize = 128 << 10;

/// A control group that ends a process which takes more, where this machine lets one be made.
struct HardLimit(Option<std::path::PathBuf>);

impl HardLimit {
    fn new(bytes: u64) -> Self {
        let path = format!("/sys/fs/cgroup/memory/stead-test-{}", std::process::id());
        let path = std::path::PathBuf::from(path);
        let made = std::fs::create_dir(&path)
            .and_then(|()| std::fs::write(path.join("memory.limit_in_bytes"), bytes.to_string()));
        if made.is_err() {
            let _nothing_is_there = std::fs::remove_dir(&path);
            stead_tests::leave_out("the hard limit of memory: no control group can be made here");
        }
        Self(made.is_ok().then_some(path))
    }

    /// A command whose process is in the group from the beginning.
    fn command(&self, command: Command) -> Command {
        let Some(path) = &self.0 else { return command };
        let mut limited = Command::new("sh");
        let script = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        limited.args(["-c", script]).arg(path).arg(command.get_program()).args(command.get_args());
        limited
    }
}

impl Drop for HardLimit {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _still_used = std::fs::remove_dir(path);
        }
    }
}

/// The most resident bytes that a server ever had.
fn peak(server: &Server) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// Calls until it is answered: it may be refused, which is told by 429 or 503.
async fn insist(server: &Server, path: &str, body: String, key: &str) -> Result<()> {
    loop {
        let call = server.post(path, body.clone()).header("idempotency-key", key);
        match call.send().await?.status().as_u16() {
            200 => return Ok(()),
            429 | 503 => tokio::time::sleep(Duration::from_millis(20)).await,
            other => anyhow::bail!("{path}: {other}"),
        }
    }
}

/// Brings an approval to a state of so many bytes.
async fn fill(server: Arc<Server>, number: usize, bytes: usize) -> Result<()> {
    let path = |operation| format!("/v1/entities/approval/a{number}/calls/{operation}");
    let request = json!({ "approver": "kim", "timeout": "PT24H" }).to_string();
    insist(&server, &path("request"), request, "request").await?;
    let reason = json!({ "by": "kim", "reason": "x".repeat(bytes) }).to_string();
    insist(&server, &path("reject"), reason, "reject").await
}

/// Does something with each of the entities, so many at one time.
async fn each<F: Future<Output = Result<()>> + Send + 'static>(
    count: usize,
    at_once: usize,
    work: impl Fn(usize) -> F,
) -> Result<()> {
    let (mut running, mut numbers) = (JoinSet::new(), 0..count);
    loop {
        while running.len() < at_once
            && let Some(number) = numbers.next()
        {
            running.spawn(work(number));
        }
        match running.join_next().await {
            Some(done) => done??,
            None => return Ok(()),
        }
    }
}

async fn read(server: Arc<Server>, number: usize) -> Result<()> {
    let path = format!("/v1/entities/approval/a{number}/queries/status");
    for _ in 0..1_000 {
        let answer = server.get(&path).send().await?;
        match answer.status().as_u16() {
            200 => {
                let status = answer.text().await?;
                ensure!(status == "\"rejected\"", "a{number} is {status}");
                return Ok(());
            }
            429 | 503 => tokio::time::sleep(Duration::from_millis(20)).await,
            other => anyhow::bail!("{path}: {other}"),
        }
    }
    anyhow::bail!("{path} is refused for ever")
}

/// Large bodies that nobody keeps: every call is rejected, because nothing was requested.
async fn large(server: Arc<Server>, number: usize) -> Result<()> {
    let path = format!("/v1/entities/approval/none{number}/calls/reject");
    let body = json!({ "by": "kim", "reason": "x".repeat((1 << 20) - 100) }).to_string();
    for _ in 0..3 {
        let status = server.post(&path, body.clone()).send().await?.status().as_u16();
        ensure!(matches!(status, 422 | 429 | 503), "{status}");
    }
    Ok(())
}

async fn start(limit: &HardLimit, data: &std::path::Path) -> Result<Arc<Server>> {
    let address = free_address()?;
    let memory = BUDGET.to_string();
    let arguments = ["--memory", &memory, "--free-bytes-min", "0"];
    let command = limit.command(command(data, address, &arguments)?);
    Ok(Arc::new(Server::run(command, address).await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_stays_within_its_memory_and_comes_up_within_it() -> Result<()> {
    let data = tempfile::tempdir()?;
    let limit = HardLimit::new(BUDGET / 10 * 11);
    let server = start(&limit, data.path()).await?;
    let within = |server: &Server, what: &str| {
        let peak = peak(server)?;
        eprintln!("{what}: {} of {} MiB", peak >> 20, BUDGET >> 20);
        ensure!(peak <= BUDGET / 10 * 11, "{what}: {peak} of {BUDGET} bytes");
        Ok(())
    };
    each(ENTITIES, 32, |number| fill(server.clone(), number, STATE)).await?;
    within(&server, "entities that are written")?;
    for _ in 0..2 {
        each(ENTITIES, 32, |number| read(server.clone(), number)).await?;
    }
    within(&server, "entities that are read")?;
    each(200, 200, |number| large(server.clone(), number)).await?;
    within(&server, "bodies of 1 MiB from 200 connections")?;
    // All at once, until it is killed.
    let overload = tokio::spawn({
        let server = server.clone();
        async move {
            each(usize::MAX, 256, |number| fill(server.clone(), ENTITIES + number % 500, STATE))
                .await
        }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    within(&server, "under overload")?;
    server.kill_now()?;
    overload.abort();
    let _aborted = overload.await;
    let server = start(&limit, data.path()).await?;
    each(ENTITIES, 32, |number| read(server.clone(), number)).await?;
    within(&server, "behind a kill")
}
