//! `stead upgrade`: has a running server rewrite the states of earlier versions, page by page.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use serde_json::json;
use stead_entities::{Error, ErrorKind};

use super::{exit, fail};
use crate::{
    Client, UpgradeView,
    clock::{monotonic, since},
};

/// How many states of a type are looked at in one request.
const PAGE: &str = "1000";
/// How long one such request, with its repetitions, may take.
const PAGE_DEADLINE: Duration = Duration::from_secs(120);
/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_secs(2);

/// Rewrites the states of a type, or of all, and prints what became of them. Returns the exit code.
pub(super) async fn run(url: &str, entity_type: Option<&str>) -> u8 {
    let asked = async {
        let client = Client::new(url)?;
        let mut all_rewritten = true;
        for name in types(&client, entity_type).await? {
            let UpgradeView { rewritten, failed, reason, looked_at, .. } =
                upgrade(&client, &name).await?;
            all_rewritten &= failed == 0;
            let line = json!({
                "type": name, "rewritten": rewritten, "failed": failed, "reason": reason,
                "looked_at": looked_at
            });
            let _nobody_reads = writeln!(std::io::stdout(), "{line}");
        }
        Ok::<_, Error>(all_rewritten)
    };
    match asked.await {
        Ok(true) => 0,
        Ok(false) => fail(exit::FAILED, "some states are stored as before; the reason is above"),
        Err(error) => fail(exit::FAILED, &format!("{url}: {error}; run it again to go on")),
    }
}

/// The type that is meant, or those that the server serves.
async fn types(client: &Client, entity_type: Option<&str>) -> Result<Vec<String>, Error> {
    if let Some(name) = entity_type {
        return Ok(vec![name.to_owned()]);
    }
    let shown = client.show_with(&["v1", "entities"], &[("count", "none")]).await?;
    let all = shown["types"].as_array().into_iter().flatten();
    Ok(all.filter_map(|known| known["name"].as_str()).map(str::to_owned).collect())
}

async fn upgrade(client: &Client, name: &str) -> Result<UpgradeView, Error> {
    let mut done = UpgradeView::default();
    let mut told_at: Instant = monotonic();
    loop {
        let after = done.next.take();
        let mut query = vec![("limit", PAGE)];
        query.extend(after.as_deref().map(|after| ("after", after)));
        let page = client.change(&["v1", "upgrades", name], &query, PAGE_DEADLINE).await?;
        let page = serde_json::from_value(page);
        done.and_then(page.map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))?);
        if since(told_at) >= TOLD_EVERY {
            told_at = monotonic();
            let UpgradeView { looked_at, rewritten, failed, .. } = &done;
            let _nobody_reads = writeln!(
                std::io::stderr(),
                "{name}: {looked_at} states looked at, {rewritten} rewritten, {failed} failed"
            );
        }
        if done.next.is_none() {
            return Ok(done);
        }
    }
}
