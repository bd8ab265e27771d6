//! Routers that show a part of a node: some types, some keys, or nothing that changes anything.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{Method, StatusCode},
    middleware::Next,
    response::{IntoResponse, Response},
};
use stead_entities::{Entity, Error, ErrorKind, problem::Problem, workflow::WorkflowType};

use super::{path, routes, workflows};

/// The part of a node that [`Node::router_of`](crate::Node::router_of) shows. What is not shown is answered
/// 404, as if it did not exist; what only reads answers everything else with 405.
///
/// ```
/// # use stead::{Node, Routes, stock::Counter};
/// # fn routes(node: &Node) -> axum::Router {
/// let of_visits = Routes::new().entity::<Counter>().keys("visits/").read_only();
/// axum::Router::new().nest("/public", node.router_of(of_visits))
/// # }
/// ```
///
/// Where types or keys are chosen, dead letters, the cluster, what is unserved and upgrades are not shown: they
/// are of all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    types: Vec<&'static str>,
    keys: Option<String>,
    is_read_only: bool,
}

impl Routes {
    /// Everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Shows a type, and of others only those that are named so too.
    #[must_use]
    pub fn entity<E: Entity>(mut self) -> Self {
        self.types.push(E::NAME);
        self
    }

    /// Shows a workflow type, and of others only those that are named so too.
    #[must_use]
    pub fn workflow<W: WorkflowType>(mut self) -> Self {
        self.types.push(W::NAME);
        self
    }

    /// Shows entities, and workflows, only whose keys begin so. A list, and the changes of a type, have to be asked for by such a
    /// prefix, and nothing is found by indexes.
    #[must_use]
    pub fn keys(mut self, prefix: impl Into<String>) -> Self {
        self.keys = Some(prefix.into());
        self
    }

    /// Shows what reads only: states, queries and lists.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.is_read_only = true;
        self
    }

    fn is_whole(&self) -> bool {
        self.types.is_empty() && self.keys.is_none()
    }

    pub(super) fn shows_all_keys(&self) -> bool {
        self.keys.is_none()
    }

    pub(super) fn shows_type(&self, name: &str) -> bool {
        self.types.is_empty() || self.types.contains(&name)
    }

    /// Refuses to list, or to follow, keys that are not shown.
    pub(super) fn check_prefix(&self, prefix: &str) -> Result<(), Problem> {
        match &self.keys {
            Some(keys) if !prefix.starts_with(keys.as_str()) => {
                Err(Problem::invalid(format!("ask for ?prefix={keys}, or a longer one")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses to list what is not shown: by its prefix, and by an index, whose cursor may name it.
    fn check_list(&self, (prefix, finds): (String, bool)) -> Result<(), Problem> {
        self.check_prefix(&prefix)?;
        match finds && self.keys.is_some() {
            true => Err(Problem::invalid("nothing is found by indexes here")),
            false => Ok(()),
        }
    }

    /// Whether a key is shown.
    pub(super) fn shows_key(&self, key: &str) -> bool {
        self.keys.as_ref().is_none_or(|keys| key.starts_with(keys.as_str()))
    }

    /// Refuses what is not shown.
    fn check(&self, request: &Request) -> Result<(), Problem> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if self.is_read_only && !reads {
            let (status, title) = (StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
            return Err(Problem::new(status, "method", title, "these routes only read"));
        }
        if self.is_whole() || matches!(request.uri().path(), "/livez" | "/readyz") {
            return Ok(());
        }
        let segments = path::segments(request.uri())?;
        let hidden = |what: String| Problem::from(Error::new(ErrorKind::NotFound, what));
        match &segments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["entities" | "workflows"] => Ok(()),
            ["entities" | "workflows" | "placement", name, ..] if !self.shows_type(name) => {
                let shown = self.types.join(", ");
                Err(hidden(format!("there is no entity type {name:?} here; there are: {shown}")))
            }
            ["entities", _] => self.check_list(routes::listed(request.uri())?),
            ["workflows", _] => self.check_list(workflows::listed(request.uri())?),
            // A type that keeps no changes has an entity of this key at most, and no such parameter.
            ["entities" | "workflows", _, "changes"]
                if routes::listed(request.uri()).is_ok_and(|(prefix, _)| {
                    !prefix.is_empty() && self.check_prefix(&prefix).is_ok()
                }) =>
            {
                Ok(())
            }
            ["entities" | "workflows" | "placement", name, key, ..] => match self.shows_key(key) {
                true => Ok(()),
                false => Err(hidden(format!("there is no {name}/{key} here"))),
            },
            _ => Err(hidden("there is no such route here".into())),
        }
    }
}

/// Lets through what is shown.
pub(super) async fn narrow(
    State(shown): State<Arc<Routes>>,
    mut request: Request,
    next: Next,
) -> Response {
    if let Err(problem) = shown.check(&request) {
        return problem.into_response();
    }
    request.extensions_mut().insert(shown);
    next.run(request).await
}
