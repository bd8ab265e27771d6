//! Where a server listens, whom a request is for, and a stop that comes early.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use stead_tests::{Server, binary, free_address, leave_out, plain::Plain};

use super::{ADD, raw};

/// A server that says where it listens.
struct Told {
    child: Child,
    urls: Vec<String>,
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A server that listens at `place`, once it listens.
fn listen(data: &Path, place: &str) -> Result<Told> {
    let mut command = Command::new(binary("stead")?);
    command.arg("serve").arg("--data").arg(data).args(["--listen", place]);
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let log = child.stderr.take().context("a log")?;
    let mut told = Told { child, urls: Vec::new() };
    let mut said = String::new();
    for line in BufReader::new(log).lines() {
        let line = line?;
        if let Some((_, rest)) = line.split_once("listening on ") {
            let places = rest.split(", data in ").next().unwrap_or_default();
            told.urls = places.split(", ").map(str::to_owned).collect();
            return Ok(told);
        }
        said.push_str(&line);
    }
    bail!("{place}: {said}")
}

/// The address behind a URL.
fn address(url: &str) -> Result<std::net::SocketAddr> {
    Ok(url.strip_prefix("http://").context("a URL")?.parse()?)
}

#[tokio::test]
async fn a_server_listens_at_names_and_at_ports_alone() -> Result<()> {
    let port = || anyhow::Ok(free_address()?.port());
    // The reach of each place: a URL for each family that it serves.
    let (local, any) = ("http://127.0.0.1", "http://[::1]");
    for (place, reached) in [
        (format!("localhost:{}", port()?), vec![local]),
        ("localhost:0".to_owned(), vec![local]),
        (format!(":{}", port()?), vec![local]),
        (":0".to_owned(), vec![local]),
        ("127.0.0.1:0".to_owned(), vec![local]),
        ("[::]:0".to_owned(), vec![]),
    ] {
        let data = tempfile::tempdir()?;
        let told = match listen(data.path(), &place) {
            Err(error) if place.starts_with("[::]") => {
                leave_out(&format!("a machine without IPv6: {error}"));
                continue;
            }
            told => told?,
        };
        let port = address(&told.urls[0])?.port();
        ensure!(port > 0 && told.urls.iter().all(|url| url.ends_with(&format!(":{port}"))));
        let asked = place.rsplit(':').next().unwrap_or_default().parse::<u16>()?;
        ensure!(asked == 0 || asked == port, "{place}: {:?}", told.urls);
        // Where the machine has IPv6, a place for both families is reached by both.
        let has_both = told.urls.len() == 2 || told.urls[0].contains("[::]");
        let reached = reached.into_iter().chain(has_both.then_some(any));
        for url in reached {
            let answer = reqwest::get(format!("{url}:{port}/livez")).await?;
            assert_eq!(answer.status(), 200, "{place} at {url}");
        }
    }
    Ok(())
}

#[test]
fn what_is_no_place_is_refused_and_one_that_is_taken_is_told() -> Result<()> {
    let data = tempfile::tempdir()?;
    for place in ["8080", "localhost", "", "http://localhost:80", "::1:80", ":65536", "999.1.1.1:1"]
    {
        let ended = Command::new(binary("stead")?).args(["serve", "--listen", place]).output()?;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(2), "{place}: {said}");
        assert!(said.contains("NAME:PORT"), "{place}: {said}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let place = format!("localhost:{}", taken.local_addr()?.port());
    let error = listen(data.path(), &place).map(|told| told.urls.clone()).expect_err("taken");
    assert!(error.to_string().contains(&taken.local_addr()?.to_string()), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_request_of_http_1_1_names_one_host() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let ask = async |version: &str, headers: &str| {
        let request = format!("GET /livez HTTP/{version}\r\n{headers}Connection: close\r\n\r\n");
        raw(&server, request.as_bytes()).await
    };
    for (version, headers) in
        [("1.1", "Host: x\r\n"), ("1.1", "Host: [::1]:80\r\n"), ("1.0", ""), ("1.0", "Host: x\r\n")]
    {
        let answer = ask(version, headers).await?;
        assert!(answer.split(' ').nth(1) == Some("200"), "{version} {headers}: {answer}");
    }
    for (version, headers) in [
        ("1.1", ""),
        ("1.1", "Host:\r\n"),
        ("1.1", "Host: \t \r\n"),
        ("1.1", "Host: x\r\nHost: x\r\n"),
        ("1.1", "Host: x\r\nHost: y\r\n"),
        ("1.1", "Host: a b\r\n"),
        ("1.1", "Host: http://x\r\n"),
        ("1.1", "Host: x:y\r\n"),
        ("1.0", "Host: x\r\nhost: y\r\n"),
    ] {
        let answer = ask(version, headers).await?;
        assert!(answer.split(' ').nth(1) == Some("400"), "{version} {headers}: {answer}");
        assert!(answer.contains("\"urn:stead:problem:invalid\""), "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
    }
    // Nothing of it is done, and the connection goes on.
    let mut client = Plain::connect(server.address()).await?;
    client.send(&format!("POST {ADD} HTTP/1.1\r\nContent-Length: 1\r\n\r\n1")).await?;
    assert_eq!(client.answer().await?.status, 400);
    client.send(&format!("POST {ADD} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n2")).await?;
    assert_eq!(client.answer().await?.body, "2");
    Ok(())
}

/// What the kernel says of a process: its program, whether it takes SIGTERM.
fn status(process: u32) -> Option<(String, bool)> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let taken = u64::from_str_radix(field("SigCgt:")?, 16).ok()?;
    // SIGTERM is 15.
    Some((field("Name:")?.to_owned(), taken >> 14 & 1 == 1))
}

/// The threads that a server starts, by name: those of its allocator are there before `main`.
fn threads(process: u32) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        names.push(std::fs::read_to_string(task?.path().join("comm"))?.trim().to_owned());
    }
    names.retain(|name| name.starts_with("tokio-") || name.starts_with("stead-"));
    Ok(names)
}

fn child_of(process: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    children.ok()?.split_whitespace().next()?.parse().ok()
}

/// Waits until a server takes SIGTERM, and sees that it had done nothing before.
fn wait_until_taken(process: impl Fn() -> Option<u32>) -> Result<u32> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        let Some(process) = process() else { continue };
        match status(process) {
            Some((name, true)) if name == "stead" => return Ok(process),
            Some((name, false)) if name == "stead" => {
                let threads = threads(process)?;
                let is_taken = status(process).is_some_and(|(_, is_taken)| is_taken);
                ensure!(is_taken || threads.is_empty(), "{threads:?} run before SIGTERM is taken");
            }
            _ => {}
        }
    }
    bail!("no server takes SIGTERM")
}

/// The kernel drops a signal to the first process of a container that does not take it.
#[tokio::test]
async fn a_stop_in_the_first_moments_of_a_container_is_not_lost() -> Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        leave_out("a server that is PID 1: only root makes a namespace");
    }
    let served = binary("stead")?;
    for moment in [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128] {
        let data = tempfile::tempdir()?;
        let mut command = Command::new(if is_root { Path::new("unshare") } else { &served });
        if is_root {
            command.args(["--pid", "--fork", "--kill-child"]).arg(&served);
        }
        command.arg("serve").arg("--data").arg(data.path());
        command.args(["--listen", "127.0.0.1:0"]).stdin(Stdio::null()).stderr(Stdio::null());
        let mut told = Told { child: command.spawn()?, urls: Vec::new() };
        let started = told.child.id();
        let process = wait_until_taken(|| if is_root { child_of(started) } else { Some(started) })?;
        tokio::time::sleep(Duration::from_millis(moment)).await;
        let id = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(id.context("a process")?, rustix::process::Signal::TERM)?;
        let what = format!("it ends, told so {moment} ms after the start");
        let ended = stead_tests::wait::until(&what, async || Ok(told.child.try_wait()?)).await?;
        assert_eq!(ended.code(), Some(0), "{moment} ms");
    }
    Ok(())
}
