//! Lists of workflows, and purges by filter: page by page through every workflow type.

use axum::{
    http::{HeaderValue, StatusCode},
    response::Response,
};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use stead_entities::{EntityId, Timestamp, workflow::Status};

use super::{
    Answer, Call, Refusal,
    document::{Instance, status_of},
};
use crate::{escape::escaped, http::routes::show, store::PAGE_BYTES_MAX};

/// The header that carries the place behind a page.
pub(super) const CONTINUATION: &str = "x-ms-continuation-token";
/// How many rows are asked for at one time.
pub(super) const PAGE: usize = 100;
/// How many pages are read for one page that is answered: what fits little has more of those, and they may be empty.
const PAGES_MAX: usize = 10;

/// The reads for one answer.
#[derive(Default)]
pub(super) struct Work {
    pages: usize,
    bytes: usize,
}

impl Work {
    /// Begins a page, where one more may be read.
    pub(super) fn may_begin(&mut self) -> bool {
        self.pages += 1;
        self.pages <= PAGES_MAX && !self.is_full()
    }

    pub(super) fn note(&mut self, state: &[u8]) {
        self.bytes += state.len();
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= PAGE_BYTES_MAX
    }
}

/// The instances that are wanted.
struct Wanted {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    /// Any of these, where there are some.
    statuses: Option<Vec<Status>>,
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
        let (types, mut rows, mut work) = (self.types(true), Vec::new(), Work::default());
        while place.of < types.len() && rows.len() < top && work.may_begin() {
            let limit = top - rows.len();
            let name = types[place.of];
            let found = self.page((name, &mut place), &wanted, (limit, &mut work)).await?;
            rows.extend(found.iter().map(|instance| instance.document(shows_input)));
        }
        Ok(listed(rows.into(), (place.of < types.len()).then_some(&place)))
    }

    /// Purges what fits the filter and has ended: all of it, page by page, unless who asked leaves.
    pub(super) async fn purge_instances(&self) -> Answer {
        let (wanted, mut place) = (self.wanted()?, Place::default());
        if wanted.from.is_none() {
            let why = "createdTimeFrom is needed: instances that were created since are purged";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
        }
        let (types, mut count) = (self.types(true), 0_u64);
        while place.of < types.len() {
            let (name, limit) = (types[place.of], (PAGE, &mut Work::default()));
            for instance in self.page((name, &mut place), &wanted, limit).await? {
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
            let words = text.split(',').map(str::trim);
            words.filter_map(status_of).collect()
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
        (name, place): (&'static str, &mut Place),
        wanted: &Wanted,
        (limit, work): (usize, &mut Work),
    ) -> Result<Vec<Instance>, Refusal> {
        let (after, mut found) = (place.after.take(), Vec::new());
        if let Some(filter) = wanted.filter() {
            let search = self.node.find_of(name).matching(&filter);
            let search = search.prefix(&wanted.prefix).limit(limit);
            let search = match after {
                Some(after) => search.after(after),
                None => search,
            };
            let page = search.read_states().await?;
            place.pass(page.next);
            for (row, view) in page.rows {
                work.note(&view.state);
                found.extend(Instance::new(EntityId::new(name, &row.key)?, &view.state));
            }
            found.retain(|instance| wanted.fits(instance));
            return Ok(found);
        }
        let page = self.node.list_of(name, &wanted.prefix, after.as_deref(), PAGE).await?;
        let mut listed = page.rows.into_iter().peekable();
        while found.len() < limit
            && !work.is_full()
            && let Some(row) = listed.next()
        {
            let id = EntityId::new(name, &row.key)?;
            place.after = Some(row.key);
            let Some(view) = self.node.committed_state_of(&id).await? else { continue };
            work.note(&view.state);
            found.extend(Instance::new(id, &view.state).filter(|it| wanted.fits(it)));
        }
        if listed.peek().is_none() {
            place.pass(page.next);
        }
        Ok(found)
    }
}

impl Wanted {
    /// Filters of indexes: one status, and a time of creation, whose ends are in it.
    fn filter(&self) -> Option<String> {
        let status = match self.statuses.as_deref() {
            Some([status]) => Some(*status),
            _ => None,
        };
        let status = status.and_then(|status| serde_json::to_value(status).ok());
        let status = status.map(|status| format!("status:{}", status.as_str().unwrap_or_default()));
        let from = self.from.map(|from| format!("created:>={from}"));
        let to = self.to.map(|to| format!("created:<={to}"));
        let filters: Vec<_> = [status, from, to].into_iter().flatten().collect();
        Some(filters.join(",")).filter(|filters| !filters.is_empty())
    }

    fn fits(&self, instance: &Instance) -> bool {
        self.statuses.as_ref().is_none_or(|statuses| statuses.contains(&instance.status))
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
