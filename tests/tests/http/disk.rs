//! Disks that are full or fail. These need root, a loop device or strace, and say what they left out
//! where those are missing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use stead_tests::{Server, command_of, free_address, leave_out, problem};

const ADD: &str = "/v1/entities/unruly/a/calls/append";

async fn entries(server: &Server) -> Result<Vec<u32>> {
    let entries = server.get("/v1/entities/unruly/a/queries/entries").send().await?;
    Ok(entries.json().await?)
}

/// Whether a tool can be run; says what is left out if not.
fn has(tool: &str, arguments: &[&str], left_out: &str) -> bool {
    let works = Command::new(tool).args(arguments).output().is_ok_and(|out| out.status.success());
    if !works {
        leave_out(&format!("{left_out}, because {tool} cannot be used here"));
    }
    works
}

#[tokio::test]
async fn a_flush_that_fails_ends_with_4_and_loses_nothing_acknowledged() -> Result<()> {
    if !has("strace", &["-qq", "-o", "/dev/null", "true"], "errors of flushes") {
        return Ok(());
    }
    for (error, when) in [("EIO", 40), ("ENOSPC", 55)] {
        let data = tempfile::tempdir()?;
        let address = free_address()?;
        let serve = command_of("unruly", data.path(), address, &[])?;
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e"]);
        command.arg(format!("inject=fdatasync:error={error}:when={when}+"));
        command.arg(serve.get_program()).args(serve.get_args());
        let mut server = Server::run(command, address).await?;
        let mut acknowledged = 0_u32;
        let unknown = loop {
            let answer = server.post(ADD, acknowledged.to_string()).send().await;
            match answer {
                Ok(answer) if answer.status() == 200 => acknowledged += 1,
                Ok(answer) => break Some(problem(answer).await?.1),
                Err(_) => break None,
            }
            ensure!(acknowledged < 10_000, "no flush failed");
        };
        ensure!(unknown.is_none_or(|slug| slug == "unknown"), "never said to be not applied");
        assert_eq!(server.wait_exit().await?.code(), Some(4), "{error}");
        ensure!(acknowledged > 0);
        let address = free_address()?;
        let server = Server::run(command_of("unruly", data.path(), address, &[])?, address).await?;
        let found = entries(&server).await?;
        let expected: Vec<u32> = (0..acknowledged).collect();
        // What was under way may be there or not; what was acknowledged is.
        ensure!(found.starts_with(&expected), "{} of {acknowledged}", found.len());
        ensure!(found.len() <= expected.len() + 1);
    }
    Ok(())
}

/// An ext4 image on a loop device, gone when it is dropped.
struct Image {
    mounted: PathBuf,
    _directory: tempfile::TempDir,
}

impl Image {
    /// `None` where this machine has no loop devices for us.
    fn mount(megabytes: u64) -> Result<Option<Self>> {
        let directory = tempfile::tempdir()?;
        let (image, mounted) = (directory.path().join("image"), directory.path().join("mounted"));
        fs::File::create(&image)?.set_len(megabytes << 20)?;
        fs::create_dir(&mounted)?;
        let path = |path: &Path| path.to_str().map(str::to_owned).context("a path");
        let (image, target) = (path(&image)?, path(&mounted)?);
        let left_out = "a disk that is really full";
        if !has("mkfs.ext4", &["-q", "-F", &image], left_out)
            || !has("mount", &["-o", "loop", &image, &target], left_out)
        {
            return Ok(None);
        }
        Ok(Some(Self { mounted, _directory: directory }))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _still_mounted = Command::new("umount").arg("-l").arg(&self.mounted).status();
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_refuses_writes_and_resumes_by_itself() -> Result<()> {
    let Some(image) = Image::mount(400)? else { return Ok(()) };
    let data = image.mounted.join("data");
    let address = free_address()?;
    let server = Server::run(command_of("unruly", &data, address, &[])?, address).await?;
    server.call(ADD, "0").await?;
    let ballast = image.mounted.join("ballast");
    let mut acknowledged = 1_u32;
    for _ in 0..3 {
        // Everything but a few megabytes.
        let free = rustix::fs::statvfs(&image.mounted)?;
        let bytes = (free.f_bavail * free.f_frsize).saturating_sub(20 << 20);
        let file = fs::File::create(&ballast)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
        drop(file);
        let refused = until(&server, 507, &mut acknowledged).await?;
        assert_eq!(refused, "full");
        assert_eq!(entries(&server).await?.len(), acknowledged as usize, "reads go on");
        fs::remove_file(&ballast)?;
        until(&server, 200, &mut acknowledged).await?;
    }
    let expected: Vec<u32> = (0..acknowledged).collect();
    assert_eq!(entries(&server).await?, expected);
    assert_eq!(server.terminate().await?.code(), Some(0));
    Ok(())
}

/// Appends until the answer has this status.
async fn until(server: &Server, status: u16, acknowledged: &mut u32) -> Result<String> {
    for _ in 0..1_000 {
        let answer = server.post(ADD, acknowledged.to_string()).send().await?;
        let is_it = answer.status() == status;
        if answer.status() == 200 {
            *acknowledged += 1;
        }
        if is_it {
            return Ok(match status {
                200 => String::new(),
                _ => problem(answer).await?.1,
            });
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    bail!("no answer has the status {status}")
}
