//! A request, taken apart, and what names of the API mean here.

use std::{borrow::Cow, collections::HashMap, str::FromStr};

use axum::http::{Extensions, HeaderMap, StatusCode, Uri, header};
use stead_entities::{EntityId, Request, Timestamp, problem::Problem};

use super::{PATH, Refusal};
use crate::{
    Node,
    http::{headers, path, routes::caller_of},
};

/// The most instances, or entities, of one page.
const TOP_MAX: usize = 1_000;
/// How many a page has unless the request says otherwise.
const TOP: usize = 100;
/// The ending of workflow types that share their name with an entity type.
const WORKFLOW: &str = "workflow";

/// A request.
pub(super) struct Call {
    pub(super) node: Node,
    /// The segments behind [`PATH`], without an empty last one.
    pub(super) path: Vec<String>,
    /// The parameters, by their names in lower case.
    query: HashMap<String, String>,
    pub(super) headers: HeaderMap,
    pub(super) extensions: Extensions,
    /// The URL of the API, as the client sees it, without a slash at its end.
    pub(super) base: String,
    /// The URL of this request.
    pub(super) url: String,
}

impl Call {
    pub(super) fn new(
        node: Node,
        uri: &Uri,
        headers: HeaderMap,
        extensions: Extensions,
    ) -> Result<Self, Refusal> {
        let (before, behind) = uri.path().split_once(PATH).unwrap_or_default();
        let path = behind.trim_matches('/').split('/').map(path::decode);
        let path = path.collect::<Result<Vec<_>, Problem>>()?;
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
        let pairs = pairs.map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.body_text()));
        let query = pairs?.0.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        // HTTP/2 has no such header, and the host in its URI.
        let authority = uri.authority().map(|authority| authority.as_str());
        let host = text(header::HOST).or(authority).unwrap_or("localhost");
        let forwarded = headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
        let scheme = if forwarded == Some("https") { "https" } else { "http" };
        let site = format!("{scheme}://{host}");
        Ok(Self {
            path,
            query: query.collect(),
            base: format!("{site}{before}{PATH}"),
            url: format!("{site}{}", uri.path_and_query().map_or("", |it| it.as_str())),
            node,
            headers,
            extensions,
        })
    }

    /// A parameter, where it is there and not empty.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let name = name.to_ascii_lowercase();
        self.query.get(&name).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// A parameter that is yes or no.
    pub(super) fn is_set(&self, name: &str, default: bool) -> bool {
        self.text(name).map_or(default, |text| text.eq_ignore_ascii_case("true"))
    }

    /// A parameter of a type.
    pub(super) fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, Refusal> {
        let wrong = |text: &str| {
            Refusal::new(StatusCode::BAD_REQUEST, format!("{name} cannot be read: {text:?}"))
        };
        self.text(name).map(|text| text.parse().map_err(|_| wrong(text))).transpose()
    }

    /// A moment, with or without its time zone, which is UTC.
    pub(super) fn moment(&self, name: &str) -> Result<Option<Timestamp>, Refusal> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let moment = text.parse().or_else(|_| format!("{text}Z").parse());
        let wrong = |_| Refusal::new(StatusCode::BAD_REQUEST, format!("{name} is no time: {text}"));
        moment.map(Some).map_err(wrong)
    }

    /// How many rows a page has.
    pub(super) fn top(&self) -> Result<usize, Refusal> {
        Ok(self.parsed::<usize>("top")?.filter(|top| *top > 0).unwrap_or(TOP).min(TOP_MAX))
    }

    /// A request of ours, with who asks and the trace.
    pub(super) fn request(
        &self,
        id: EntityId,
        operation: impl Into<Cow<'static, str>>,
        input: Vec<u8>,
    ) -> Request {
        let mut request = Request::new(id, operation, input);
        request.caller = caller_of(&self.extensions);
        request.trace = headers::trace(&self.headers);
        request
    }

    /// The types that this node serves: workflows, or entities.
    pub(super) fn types(&self, are_workflows: bool) -> Vec<&'static str> {
        let known = self.node.local().host.sorted_types().into_iter();
        let known = known.filter(|known| known.is_workflow() == are_workflows);
        known.map(|known| known.name()).collect()
    }

    /// The workflow type of a function.
    pub(super) fn workflow_type(&self, function: &str) -> Option<&'static str> {
        of_function(&self.types(true), function)
    }

    /// The entity type of a name.
    pub(super) fn entity_type(&self, name: &str) -> Option<&'static str> {
        self.types(false).into_iter().find(|known| plain(known) == plain(name))
    }
}

/// The workflow type of a function, among these: the one of its name, or else the one with the ending behind it.
fn of_function(types: &[&'static str], function: &str) -> Option<&'static str> {
    let wanted = plain(function);
    let named = |name: &&&str| plain(name) == wanted;
    let with_ending = |name: &&&str| plain(name).strip_suffix(WORKFLOW) == Some(&wanted);
    types.iter().find(named).or_else(|| types.iter().find(with_ending)).copied()
}

/// A name without regard to case and to what separates its words.
fn plain(name: &str) -> String {
    name.chars().filter(|letter| !matches!(letter, '-' | '_')).collect::<String>().to_lowercase()
}

/// The name of a function, of a workflow type: its words with great letters, without the ending that it may have.
pub(super) fn function_name(workflow_type: &str) -> String {
    let name = workflow_type.strip_suffix(WORKFLOW).filter(|name| name.ends_with(['-', '_']));
    let words = name.unwrap_or(workflow_type).split(['-', '_']);
    let great = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|first| first.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    words.map(great).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_functions_are_words_with_great_letters() {
        let names = ["approval-workflow", "process_order", "a", "workflow"].map(function_name);
        assert_eq!(names, ["Approval", "ProcessOrder", "A", "Workflow"]);
        assert_eq!(plain("Process_Order"), plain("process-order"));
    }

    #[test]
    fn a_function_is_found_whichever_types_there_are() {
        let types = ["approval-workflow", "process-order-workflow", "ship", "ship-workflow"];
        let found = |function| of_function(&types, function);
        assert_eq!(found("ProcessOrder"), Some("process-order-workflow"));
        assert_eq!(found("approval"), Some("approval-workflow"));
        assert_eq!(found("Ship"), Some("ship"), "its own name comes first");
        assert_eq!(found("ShipWorkflow"), Some("ship-workflow"));
        assert_eq!(found("Nobody"), None);
    }
}
