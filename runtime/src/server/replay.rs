//! `stead replay`: tries the code of this program on the workflows that run on a server, and changes nothing there.
//!
//! Each history is read and replayed here, so that a difference is found before the program is deployed and not by
//! workflows that are stuck behind it.

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use stead_entities::{
    CallError, Error, ErrorKind,
    workflow::{Status, WorkflowDescription},
};
use tokio::task::JoinSet;

use super::{
    exit, fail,
    flags::workflow::ReplayAsked,
    workflow::{list_page, print},
};
use crate::{
    Client,
    clock::{monotonic, since},
};

/// How many histories are read at one time.
const READ_AT_ONCE: usize = 8;
/// How many workflows are shown that the code does not fit; with `--json` all.
const SHOWN_MAX: usize = 100;
/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_secs(2);

/// A workflow that the code does not fit.
#[derive(Debug, serde::Serialize)]
struct Misfit {
    #[serde(rename = "type")]
    workflow_type: String,
    key: String,
    why: String,
}

/// The outcome so far.
#[derive(Debug, Default)]
struct Found {
    fits: u64,
    misfits: Vec<Misfit>,
}

/// Tries the code of `hosted` on all that run, and prints which of them it does not fit. Returns the exit code.
pub(super) async fn run(asked: &ReplayAsked, hosted: Vec<WorkflowDescription>) -> u8 {
    let url = &asked.shown.server.url;
    let Found { fits, misfits } = match try_all(asked, hosted).await {
        Ok(found) => found,
        Err(error) => return fail(exit::FAILED, &format!("{url}: {error}")),
    };
    let counted = json!({ "fit": fits, "misfits": misfits });
    let cells = |it: &Misfit| vec![it.workflow_type.clone(), it.key.clone(), it.why.clone()];
    let rows: Vec<_> = misfits.iter().take(SHOWN_MAX).map(cells).collect();
    let head = if rows.is_empty() { Vec::new() } else { vec!["TYPE", "KEY", "WHY"] };
    print(&asked.shown, &counted, (head, rows));
    match misfits.len() {
        0 => {
            let _nobody_reads = writeln!(std::io::stderr(), "all {fits} workflows fit");
            0
        }
        count => fail(exit::FAILED, &format!("{fits} workflows fit, {count} do not")),
    }
}

async fn try_all(asked: &ReplayAsked, hosted: Vec<WorkflowDescription>) -> Result<Found, Error> {
    let client = Client::new(&asked.shown.server.url)?;
    let mut hosted: BTreeMap<_, _> =
        hosted.into_iter().map(|it| (it.name.to_owned(), Arc::new(it))).collect();
    let shown = client.show(&["v1", "workflows"]).await?;
    let served = shown["types"].as_array().into_iter().flatten();
    let served: Vec<_> =
        served.filter_map(|known| known["name"].as_str()).map(str::to_owned).collect();
    let types = match &asked.workflow_type {
        Some(name) if !served.contains(name) => {
            let why = format!("the server has no workflow type {name}, only {}", served.join(", "));
            return Err(Error::new(ErrorKind::NotFound, why));
        }
        Some(name) => vec![name.clone()],
        None => served,
    };
    let (mut found, mut told_at) = (Found::default(), monotonic());
    for name in types {
        let code = hosted.remove(&name);
        for status in [Status::Pending, Status::Running, Status::Suspended] {
            try_those(&client, (&name, status), code.as_ref(), &mut found, &mut told_at).await?;
        }
    }
    Ok(found)
}

/// Tries the code on all of a type in a status, page by page.
async fn try_those(
    client: &Client,
    (name, status): (&str, Status),
    code: Option<&Arc<WorkflowDescription>>,
    found: &mut Found,
    told_at: &mut Instant,
) -> Result<(), Error> {
    let mut after = None::<String>;
    loop {
        let given = [("status", status.name().to_owned())].into_iter();
        let given: Vec<_> = given.chain(after.take().map(|after| ("after", after))).collect();
        let page = list_page(client, name, given).await?;
        let keys = page["workflows"].as_array().into_iter().flatten();
        let mut keys = keys.filter_map(|row| row["key"].as_str().map(str::to_owned));
        let mut tried = JoinSet::new();
        loop {
            while tried.len() < READ_AT_ONCE
                && let Some(key) = keys.next()
            {
                tried.spawn(try_one(client.clone(), name.to_owned(), key, code.cloned()));
            }
            let Some(one) = tried.join_next().await else { break };
            let wrong =
                |error| Error::new(ErrorKind::Internal, "a replay ended").with_source(error);
            match one.map_err(wrong)?? {
                None => found.fits += 1,
                Some(misfit) => found.misfits.push(misfit),
            }
        }
        if since(*told_at) >= TOLD_EVERY {
            *told_at = monotonic();
            let (fits, misfits) = (found.fits, found.misfits.len());
            let _nobody_reads =
                writeln!(std::io::stderr(), "{name}: {fits} fit, {misfits} do not so far");
        }
        after = page["next"].as_str().map(str::to_owned);
        if after.is_none() {
            return Ok(());
        }
    }
}

/// Tries the code on one. What has gone meanwhile fits.
async fn try_one(
    client: Client,
    workflow_type: String,
    key: String,
    code: Option<Arc<WorkflowDescription>>,
) -> Result<Option<Misfit>, Error> {
    let why = match code {
        None => Err("this program does not host the type".to_owned()),
        Some(code) => match client.instance(&workflow_type, &key).history().await {
            Ok(history) => code.replay(&history),
            Err(CallError::Failed(error)) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(CallError::Failed(error)) => return Err(error),
            Err(CallError::Rejected(no)) => {
                return Err(Error::new(ErrorKind::Invalid, no.reason()));
            }
        },
    };
    Ok(why.err().map(|why| Misfit { workflow_type, key, why }))
}
