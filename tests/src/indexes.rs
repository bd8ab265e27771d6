//! What the indexes of [`Log`](crate::log::Log) and [`Ember`](crate::log::Ember) find, compared over HTTP with
//! what their states say, while nothing changes.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The difference between the indexes of a node and the states that it shows; `get` reads a path.
///
/// # Errors
/// Where the node does not answer.
pub async fn differences(get: impl AsyncFn(&str) -> Result<Value>) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let listed = get("/v1/entities/log?limit=1000").await?;
    let rows = listed["entities"].as_array().context("a list")?;
    let keys: Vec<String> =
        rows.iter().filter_map(|row| Some(row["key"].as_str()?.to_owned())).collect();
    let (mut found, mut last, mut after) = (BTreeMap::new(), 0, String::new());
    loop {
        // Pages end between equal values, too.
        let page =
            get(&format!("/v1/entities/log?order=size&select=entries&limit=7{after}")).await?;
        for row in page["entities"].as_array().with_context(|| format!("no list: {page}"))? {
            let entries = row["state"]["entries"].as_array().context("a list")?.clone();
            let key = row["key"].as_str().context("a key")?.to_owned();
            if entries.len() < last || found.contains_key(&key) {
                wrong.push(format!("{key} with {} entries is found behind {last}", entries.len()));
            }
            last = entries.len();
            found.insert(key, entries.last().cloned().unwrap_or(Value::Null));
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    if !keys.iter().eq(found.keys()) {
        wrong.push(format!("{keys:?} are listed, and {:?} found", found.keys()));
    }
    for (key, newest) in found {
        let of = get(&format!("/v1/entities/log?where=newest:{newest}")).await?;
        let has =
            of["entities"].as_array().is_some_and(|rows| rows.iter().any(|row| row["key"] == *key));
        if !has {
            wrong.push(format!("{key} is not found by its newest entry {newest}: {of}"));
        }
    }
    let backwards = get("/v1/entities/log?order=-size&where=size:0..,newest:..&count=only").await?;
    let with_entries = get("/v1/entities/log?where=newest:..&count=only").await?;
    if backwards != with_entries {
        wrong.push(format!("{backwards} by two indexes, and {with_entries} by one"));
    }
    let embers = get("/v1/entities/ember?limit=1000").await?;
    let left = embers["entities"].as_array().map_or(0, Vec::len);
    let counted = get("/v1/entities/ember?where=owner:*&count=only").await?;
    if counted["count"] != left {
        wrong.push(format!("{counted} embers are found, and there are {left}"));
    }
    Ok(wrong)
}
