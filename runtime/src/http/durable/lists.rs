//! Lists of workflows, and purges by filter: page by page through every workflow type.

use axum::{
    http::{HeaderValue, StatusCode},
    response::Response,
};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use stead_entities::{EntityId, Timestamp};

use super::{Answer, Call, Refusal, document::Instance};
use crate::{escape::escaped, http::routes::show};

/// The header that carries the place behind a page.
pub(super) const CONTINUATION: &str = "x-ms-continuation-token";
/// How many instances are looked at in one step of a purge.
const PURGED_AT_ONCE: usize = 100;

/// The instances that are wanted.
struct Wanted {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    statuses: Option<Vec<String>>,
    prefix: String,
}

/// A place in the list: which of the types, and behind what of it.
#[derive(Default)]
pub(super) struct Place {
    pub(super) of: usize,
    pub(super) after: Option<String>,
}

impl Place {
    fn read(token: &str) -> Option<Self> {
        let (of, after) = token.split_once(':')?;
        let after = percent_decode_str(after).decode_utf8().ok()?.into_owned();
        Some(Self { of: of.parse().ok()?, after: Some(after).filter(|after| !after.is_empty()) })
    }

    /// Goes on behind a page.
    pub(super) fn pass(&mut self, next: Option<String>) {
        if next.is_none() {
            self.of += 1;
        }
        self.after = next;
    }
}

impl Call {
    pub(super) async fn list_instances(&self) -> Answer {
        let (wanted, mut place, top) = (self.wanted()?, self.place()?, self.top()?);
        let shows_input = self.is_set("showInput", true);
        let (types, mut rows) = (self.types(true), Vec::new());
        while place.of < types.len() && rows.len() < top {
            let found = self.page(&types, &wanted, &mut place, top - rows.len()).await?;
            rows.extend(found.iter().map(|instance| instance.document(shows_input)));
        }
        Ok(listed(rows.into(), (place.of < types.len()).then_some(&place)))
    }

    /// Purges what fits the filter and has ended.
    pub(super) async fn purge_instances(&self) -> Answer {
        let (wanted, mut place) = (self.wanted()?, Place::default());
        if wanted.from.is_none() {
            let why = "createdTimeFrom is needed: instances that were created since are purged";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
        }
        let (types, mut count) = (self.types(true), 0_u64);
        while place.of < types.len() {
            for instance in self.page(&types, &wanted, &mut place, PURGED_AT_ONCE).await? {
                count += u64::from(self.purge_one(&instance).await?);
            }
        }
        match count {
            0 => Err(Refusal::new(StatusCode::NOT_FOUND, "no instance that has ended fits")),
            count => Ok(show(&json!({ "instancesDeleted": count }))),
        }
    }

    fn wanted(&self) -> Result<Wanted, Refusal> {
        let statuses = self.text("runtimeStatus").map(|text| {
            let words = text.split(',').map(|word| word.trim().to_ascii_lowercase());
            words.filter(|word| !word.is_empty()).collect()
        });
        let (from, to) = (self.moment("createdTimeFrom")?, self.moment("createdTimeTo")?);
        let prefix = self.text("instanceIdPrefix").unwrap_or_default().to_owned();
        Ok(Wanted { from, to, statuses, prefix })
    }

    /// The place behind the page before.
    pub(super) fn place(&self) -> Result<Place, Refusal> {
        let token = self.headers.get(CONTINUATION).and_then(|value| value.to_str().ok());
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return Ok(Place::default());
        };
        let wrong = || Refusal::new(StatusCode::BAD_REQUEST, "the continuation token is none");
        Place::read(token).ok_or_else(wrong)
    }

    /// The next instances that fit, at most so many; fewer do not mean the end.
    async fn page(
        &self,
        types: &[&'static str],
        wanted: &Wanted,
        place: &mut Place,
        limit: usize,
    ) -> Result<Vec<Instance>, Refusal> {
        let name = types[place.of];
        let (rows, next) = self.ids(name, wanted, place.after.take(), limit).await?;
        place.pass(next);
        let mut found = Vec::new();
        for key in rows {
            let id = EntityId::new(name, &key)?;
            let Some(view) = self.node.committed_state_of(&id).await? else { continue };
            found.extend(Instance::new(id, &view.state).filter(|it| wanted.fits(it)));
        }
        Ok(found)
    }

    /// The keys of a page, by the time of creation where that is asked for.
    async fn ids(
        &self,
        name: &str,
        wanted: &Wanted,
        after: Option<String>,
        limit: usize,
    ) -> Result<(Vec<String>, Option<String>), Refusal> {
        let page = match (wanted.from, wanted.to) {
            (None, None) => {
                self.node.list_of(name, &wanted.prefix, after.as_deref(), limit).await?
            }
            (from, to) => {
                let end = |moment: Option<Timestamp>| {
                    moment.map_or_else(String::new, |moment| moment.to_string())
                };
                let filter = format!("created_at:{}..{}", end(from), end(to));
                let search = self.node.find_of(name).matching(&filter);
                let search = search.prefix(&wanted.prefix).limit(limit);
                let search = match after {
                    Some(after) => search.after(after),
                    None => search,
                };
                search.page().await?
            }
        };
        Ok((page.rows.into_iter().map(|row| row.key).collect(), page.next))
    }
}

impl Wanted {
    fn fits(&self, instance: &Instance) -> bool {
        let status = instance.runtime_status();
        let is_it = |wanted: &String| wanted.eq_ignore_ascii_case(status);
        self.statuses.as_ref().is_none_or(|statuses| statuses.iter().any(is_it))
    }
}

/// The answer of a list, with the place behind it.
pub(super) fn listed(rows: Value, next: Option<&Place>) -> Response {
    let mut response = show(&rows);
    if let Some(Place { of, after }) = next {
        let token = format!("{of}:{}", escaped(after.as_deref().unwrap_or_default()));
        if let Ok(token) = HeaderValue::from_str(&token) {
            response.headers_mut().insert(CONTINUATION, token);
        }
    }
    response
}
