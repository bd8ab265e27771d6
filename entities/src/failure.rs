//! The values that an operation returns in place of a result, and that its asker hears then: one family of
//! types.
//!
//! | returned | a call hears | a signal | an asker hears |
//! |---|---|---|---|
//! | [`Rejection`] | the rejection | becomes a dead letter | [`Failure::Rejected`] |
//! | [`Failure::retry`] | that it is to come back later, and when | is tried again by policy | what comes of it in the end |
//! | [`Failure::fatal`] | a failure | becomes a dead letter at once | [`Failure::Failed`] |
//!
//! Nothing of the turn is kept, but for the effects of a [`Rejection::with_effects`].

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{CallError, Timeout, Timestamp};

/// The most bytes that reason, code and details of a rejection may have together.
pub const REJECTION_BYTES_MAX: usize = 64 << 10;
/// The longest code of a rejection, in bytes.
pub const REJECTION_CODE_BYTES_MAX: usize = 64;

/// A business "no": the operation ran, changed nothing, and says why.
///
/// Returned by an operation as `Err(Rejection)`. A call gets it as its answer, as does an entity that
/// asked; a signal leaves it in a dead letter. It is not retried.
///
/// ```
/// # use stead_entities::Rejection;
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Left { pieces: u32 }
///
/// let no = Rejection::new("none left").with_code("out_of_stock").with_details(&Left { pieces: 0 });
/// assert_eq!((no.reason(), no.code()), ("none left", Some("out_of_stock")));
/// assert_eq!(no.details::<Left>().unwrap().pieces, 0);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema, thiserror::Error)]
#[error("{reason}")]
pub struct Rejection {
    reason: String,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    details: Option<Details>,
    #[serde(skip)]
    keeps_effects: bool,
}

/// JSON text of the details, or why they have none.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Details {
    Json(String),
    Unencodable(String),
}

impl Rejection {
    /// Refuses for `reason`, in words.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), code: None, details: None, keeps_effects: false }
    }

    /// Names the reason for programs: 1 to [`REJECTION_CODE_BYTES_MAX`] of `a-z`, `0-9`, `-` and `_`. A turn
    /// that returns another one fails.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Adds what a program needs to know. With reason and code it has at most [`REJECTION_BYTES_MAX`]
    /// bytes of JSON; a turn that returns more, or what has no JSON form, fails.
    #[must_use]
    pub fn with_details(mut self, details: &(impl Serialize + ?Sized)) -> Self {
        let json = crate::json::encode(details).map_err(|error| error.to_string());
        let json = json.and_then(|json| String::from_utf8(json).map_err(|it| it.to_string()));
        self.details = Some(json.map_or_else(Details::Unencodable, Details::Json));
        self
    }

    /// Keeps the effects that the turn made before it: its signals, asks and reminders are committed, and
    /// its state is not. Where there are some, the entity has one revision more. A turn that deletes its
    /// entity as well fails.
    #[must_use]
    pub fn with_effects(mut self) -> Self {
        self.keeps_effects = true;
        self
    }

    /// Why the operation was refused, in words.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Why the operation was refused, for programs.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// The details; `None` where it has none, or such that are no `T`.
    pub fn details<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_str(self.details_json()?).ok()
    }

    /// The details as JSON.
    pub fn details_json(&self) -> Option<&str> {
        match &self.details {
            Some(Details::Json(json)) => Some(json),
            Some(Details::Unencodable(_)) | None => None,
        }
    }

    /// Whether the effects of its turn are kept. For runtimes and test drivers.
    pub fn keeps_effects(&self) -> bool {
        self.keeps_effects
    }

    /// Its JSON, as [`Deserialize`] reads it: `reason`, and `code` and `details` where it has them.
    pub fn to_json(&self) -> String {
        Value::Object(self.members()).to_string()
    }

    /// The members of its JSON object.
    pub(crate) fn members(&self) -> Map<String, Value> {
        let mut members = Map::new();
        members.insert("reason".into(), self.reason.as_str().into());
        members.extend(self.code().map(|code| ("code".into(), code.into())));
        let details = self.details_json().and_then(|json| serde_json::from_str(json).ok());
        members.extend(details.map(|details: Value| ("details".into(), details)));
        members
    }

    /// Checks its rules and limits.
    ///
    /// # Errors
    /// Which one it breaks, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        let is_letter =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        if let Some(code) = &self.code
            && !((1..=REJECTION_CODE_BYTES_MAX).contains(&code.len())
                && code.bytes().all(is_letter))
        {
            return Err(format!(
                "the code {code:?} of a rejection is not 1 to {REJECTION_CODE_BYTES_MAX} of a-z, 0-9, - \
                 and _"
            ));
        }
        if let Some(Details::Unencodable(why)) = &self.details {
            return Err(format!("the details of a rejection have no JSON form: {why}"));
        }
        let parts = [Some(&*self.reason), self.code(), self.details_json()];
        let bytes: usize = parts.into_iter().flatten().map(str::len).sum();
        if bytes > REJECTION_BYTES_MAX {
            return Err(format!(
                "a rejection of {bytes} bytes; it has at most {REJECTION_BYTES_MAX}"
            ));
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Details {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(|value| Self::Json(value.to_string()))
    }
}

impl JsonSchema for Details {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Details".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        true.into()
    }
}

/// Why something that was asked for has no result.
///
/// An operation that returns `Result<T, Failure>` makes it by [`Failure::retry`], [`Failure::fatal`] or `?`
/// on a [`Rejection`]; an entity that asked hears one of the others. `?` on an [`Answer`](crate::Answer)
/// passes on what another entity has answered.
///
/// ```
/// use std::time::Duration;
/// use stead_entities::{Failure, Rejection};
///
/// fn charge(cents: i64, answer: Result<u16, std::io::Error>) -> Result<(), Failure> {
///     if cents <= 0 {
///         return Err(Rejection::new("nothing to pay").into());
///     }
///     match answer.map_err(Failure::retry)? {
///         200 => Ok(()),
///         503 => Err(Failure::retry("the bank is busy").after(Duration::from_secs(30))),
///         code => Err(Failure::fatal(format!("the bank answered {code}"))),
///     }
/// }
/// assert!(matches!(charge(5, Ok(503)), Err(Failure::Retry { .. })));
/// ```
// Not `Serialize`: a `Result` with it would be taken for a plain value that an operation returns.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Failure {
    /// The entity said no; nothing was applied, and a question leaves no dead letter.
    #[error("rejected: {0}")]
    Rejected(Rejection),
    /// It was given up, for the reason that is in its dead letter: it failed each time it was tried, it
    /// said that it always would, nobody understands it, or its entity was deleted before it was tried
    /// again.
    #[error("failed: {0}")]
    Failed(String),
    /// No answer came in time. What was asked for may have been applied, or may be yet; what comes of it
    /// changes nothing any more.
    #[error("no answer came in time")]
    TimedOut,
    /// It was cancelled before it had a result. What it did until then may have happened.
    #[error("cancelled")]
    Cancelled,
    /// An operator ended it, for this reason.
    #[error("terminated: {0}")]
    Terminated(String),
    /// There is another one under its name, which goes on.
    #[error("conflict: {0}")]
    Conflict(String),
    /// It has more bytes than are stored, in words.
    #[error("too large: {0}")]
    TooLarge(String),
    /// It is to be tried again; see [`Failure::retry`]. It is no answer: an asker hears what comes of it in
    /// the end.
    #[error("{reason}")]
    #[serde(skip)]
    Retry {
        /// Why it could not be done, in words.
        reason: String,
        /// The wait before the next attempt; that of the policy if `None`.
        after: Option<Timeout>,
    },
}

impl Failure {
    /// Gives this attempt up: nothing of the turn is kept. A signal or reminder is tried again, as often as
    /// its policy says, and is a dead letter then. A call is not tried again: its caller hears
    /// [`ErrorKind::Later`](crate::ErrorKind::Later), and what it calls then is another operation, with another
    /// token.
    pub fn retry(reason: impl fmt::Display) -> Self {
        Self::Retry { reason: reason.to_string(), after: None }
    }

    /// Sets how long to wait before the next attempt, in place of the policy's back-off. A signal waits in
    /// memory: after a restart, or at another node, it is tried at once. It means nothing for a failure that
    /// is not tried again.
    #[must_use]
    pub fn after(mut self, length: impl Into<Timeout>) -> Self {
        if let Self::Retry { after, .. } = &mut self {
            *after = Some(length.into());
        }
        self
    }

    /// Gives the operation up for good: nothing of the turn is kept, and a signal or reminder is a dead
    /// letter at once. A caller hears [`ErrorKind::Internal`](crate::ErrorKind::Internal).
    pub fn fatal(reason: impl fmt::Display) -> Self {
        Self::Failed(reason.to_string())
    }
}

/// Knows a call that a workflow has made as it was recorded; of another one only the text.
impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Rejected(rejection) => Self::Rejected(rejection),
            CallError::Failed(error) => {
                let recorded = std::error::Error::source(&error);
                let recorded = recorded.and_then(|source| source.downcast_ref::<Self>());
                recorded.cloned().unwrap_or_else(|| Self::Failed(error.to_string()))
            }
        }
    }
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// A dead letter of an entity: an operation that will not be tried again, as the operation hears of it that
/// the type names with `#[entity(on_dead_letter = ...)]`.
///
/// It arrives as a signal that is part of the commit that keeps the letter, exactly once. There is none of
/// letters that end with their entity, and none of that operation's own. The letter stays, to be replayed
/// or dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The name of the operation.
    pub operation: String,
    /// Its argument as JSON.
    pub input: String,
    /// The sender: an entity's id, `reminder NAME`, or empty for callers outside.
    pub sender: String,
    /// Why it is dead.
    pub cause: Cause,
    /// The reason in words.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was accepted.
    pub accepted_at: Timestamp,
}

impl DeadLetter {
    /// A letter of an operation that nobody sent, tried once and accepted at the beginning of 1970.
    pub fn new(operation: &str, input: &str, cause: Cause, reason: &str) -> Self {
        Self {
            operation: operation.to_owned(),
            input: input.to_owned(),
            sender: String::new(),
            cause,
            reason: reason.to_owned(),
            attempts: 1,
            accepted_at: Timestamp::default(),
        }
    }
}

/// Why an operation is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// Every attempt failed, or it said that every one would.
    Failure,
    /// The entity said no.
    Rejection,
    /// The entity's type does not know the operation, or not with this argument.
    Undecodable,
    /// The entity was deleted while the operation was delayed or waited for a retry.
    Deleted,
    /// It is the answer to an ask of an entity that was deleted meanwhile.
    Orphan,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_is_read_back_as_it_was_written() {
        let plain = Rejection::new("none \"left\"");
        assert_eq!(plain.to_json(), r#"{"reason":"none \"left\""}"#);
        let whole = plain.clone().with_code("out_of_stock").with_details(&[1, 2]);
        for rejection in [plain, whole] {
            assert_eq!(rejection.check(), Ok(()));
            let read: Rejection = serde_json::from_str(&rejection.to_json()).expect("JSON");
            assert_eq!(read, rejection);
        }
    }

    #[test]
    fn a_rejection_that_breaks_a_rule_says_which() {
        let why = |rejection: Rejection| rejection.check().expect_err("a broken rule");
        for code in ["", "Out of stock", "é", &"a".repeat(REJECTION_CODE_BYTES_MAX + 1)] {
            assert!(why(Rejection::new("no").with_code(code)).contains("a-z"), "{code}");
        }
        let odd = Rejection::new("no").with_details(&f64::NAN);
        assert!(why(odd).contains("no JSON form"));
        let long = "x".repeat(REJECTION_BYTES_MAX);
        assert_eq!(Rejection::new(&long).check(), Ok(()));
        assert!(why(Rejection::new(long).with_code("c")).contains("at most 65536"));
    }

    #[test]
    fn only_a_retry_has_a_time() {
        let wait = Timeout::from(std::time::Duration::from_secs(5));
        let retry = Failure::retry("busy").after(wait);
        assert_eq!(retry, Failure::Retry { reason: "busy".into(), after: Some(wait) });
        assert_eq!(Failure::fatal("gone").after(wait), Failure::Failed("gone".into()));
    }
}
