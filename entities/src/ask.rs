//! Asks: an entity asks others, and what comes of it returns to it as an operation.
//!
//! No entity waits for another. A question is a signal that carries where its answer goes; the answer
//! is part of the commit in which the question ends, and arrives as a signal to the asker. So a question
//! has one answer, whatever happens to either side, and entities cannot block one another.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{Error, Failure, Request, Timeout, effect::Signal, operation::Argument};

/// The end of a question: the result, or why there is none.
///
/// It is the first argument of an operation that [`Context::ask`](crate::Context::ask) names, which is
/// `pub(crate)`: `on_reserved(&mut self, answer: Answer<u32>, order: u64)`. Where many are asked, it is
/// `Vec<Answer<R>>`, in the order of the questions.
pub type Answer<R> = Result<R, Failure>;

/// The operation of an entity that takes the answer to an ask, with its other arguments.
/// Methods of the typed reference make it: `Self::of(ctx.key()).on_reserved(order)`.
#[must_use = "it does nothing until it is handed to `Context::ask`"]
pub struct Then<A> {
    request: Result<Request, Error>,
    argument: &'static str,
    timeout: Option<Timeout>,
    answer: PhantomData<fn(A)>,
}

impl<A> Then<A> {
    pub(crate) fn new(request: Result<Request, Error>, argument: &'static str) -> Self {
        Self { request, argument, timeout: None, answer: PhantomData }
    }

    /// Limits how long answers are waited for, counted from the commit of the asking turn. Without it
    /// they are waited for however long it takes.
    pub fn within(mut self, length: impl Into<Timeout>) -> Self {
        self.timeout = Some(length.into());
        self
    }

    /// The request of the asker to itself, without the answer, and what goes with it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) where the key or an argument broke a rule.
    pub(crate) fn into_parts(self) -> Result<(Request, Cow<'static, str>, Option<Timeout>), Error> {
        Ok((self.request?, self.argument.into(), self.timeout))
    }
}

impl<A> fmt::Debug for Then<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Then")
            .field("request", &self.request)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// A question to one or many entities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The operations that are asked for, none of them delayed.
    pub questions: Vec<Signal>,
    /// The operation of the asker that is told.
    pub then: Continuation,
    /// How long answers are waited for; for ever if `None`.
    pub timeout: Option<Timeout>,
    /// The lock under which it is asked: an entity that is not locked so refuses.
    pub fence: Option<Box<str>>,
}

/// An operation that takes an answer, or a list of them, and its other arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continuation {
    /// The name of the operation.
    pub operation: Cow<'static, str>,
    /// The name of the argument that takes the answer; empty where it is the only one.
    pub argument: Cow<'static, str>,
    /// The other arguments as a JSON object; empty where there is none.
    pub others: Vec<u8>,
    /// Whether it takes a list of answers.
    pub takes_list: bool,
}

impl Continuation {
    /// The whole argument of the operation, given each answer as JSON.
    pub fn input<'a>(&self, answers: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut input = Vec::new();
        if !self.argument.is_empty() {
            input.extend(b"{\"");
            input.extend(self.argument.as_bytes());
            input.extend(b"\":");
        }
        if self.takes_list {
            input.push(b'[');
        }
        for (place, answer) in answers.into_iter().enumerate() {
            if place > 0 {
                input.push(b',');
            }
            input.extend(answer);
        }
        if self.takes_list {
            input.push(b']');
        }
        if !self.argument.is_empty() {
            match self.others.strip_prefix(b"{") {
                Some(others) => {
                    input.push(b',');
                    input.extend(others);
                }
                None => input.push(b'}'),
            }
        }
        input
    }
}

/// An answer as JSON, of a result as JSON. For runtimes and test drivers.
pub fn answer_json(answer: Answer<&[u8]>) -> Vec<u8> {
    match answer {
        Ok(result) => [b"{\"Ok\":", result, b"}"].concat(),
        Err(failure) => {
            let failure = match failure {
                Failure::Rejected(rejection) => json!({ "rejected": rejection.members() }),
                // A retry is no answer.
                Failure::Failed(reason) | Failure::Retry { reason, .. } => {
                    json!({ "failed": reason })
                }
                Failure::TimedOut => json!("timed_out"),
                Failure::Cancelled => json!("cancelled"),
                Failure::Terminated(reason) => json!({ "terminated": reason }),
                Failure::Conflict(reason) => json!({ "conflict": reason }),
                Failure::TooLarge(reason) => json!({ "too_large": reason }),
            };
            json!({ "Err": failure }).to_string().into_bytes()
        }
    }
}

/// The JSON object of named arguments; empty where there is none.
///
/// # Errors
/// As [`Argument::to_json`].
pub(crate) fn others(named: &[(&str, &dyn Argument)]) -> Result<Vec<u8>, Error> {
    let mut json = Vec::new();
    for (place, (name, argument)) in named.iter().enumerate() {
        json.push(if place == 0 { b'{' } else { b',' });
        json.push(b'"');
        json.extend(name.as_bytes());
        json.extend(b"\":");
        json.extend(argument.to_json()?);
    }
    if !json.is_empty() {
        json.push(b'}');
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rejection;

    fn continuation(argument: &'static str, others: &[u8], takes_list: bool) -> Continuation {
        let (operation, argument) = ("on_answer".into(), argument.into());
        Continuation { operation, argument, others: others.to_vec(), takes_list }
    }

    #[test]
    fn an_answer_stands_before_the_other_arguments() {
        let answer = answer_json(Ok(b"5"));
        let input = |then: Continuation, answers: &[&[u8]]| {
            String::from_utf8(then.input(answers.iter().copied())).expect("text")
        };
        assert_eq!(input(continuation("", b"", false), &[&answer]), r#"{"Ok":5}"#);
        let named = continuation("answer", b"{\"order\":7}", false);
        assert_eq!(input(named, &[&answer]), r#"{"answer":{"Ok":5},"order":7}"#);
        let late = answer_json(Err(Failure::TimedOut));
        let many = continuation("answers", b"{\"order\":7}", true);
        let expected = r#"{"answers":[{"Ok":5},{"Err":"timed_out"}],"order":7}"#;
        assert_eq!(input(many, &[&answer, &late]), expected);
        assert_eq!(input(continuation("", b"", true), &[]), "[]");
    }

    #[test]
    fn answers_are_read_back_as_they_were_given() {
        let failures = [
            Failure::Rejected(Rejection::new("none \"left\"")),
            Failure::Rejected(Rejection::new("none").with_code("sold-out").with_details("all")),
            Failure::Failed("it panicked".into()),
            Failure::TimedOut,
            Failure::Cancelled,
            Failure::Terminated("by hand".into()),
            Failure::Conflict("it runs".into()),
            Failure::TooLarge("9 bytes".into()),
        ];
        for failure in failures {
            let json = answer_json(Err(failure.clone()));
            assert_eq!(serde_json::from_slice::<Answer<u8>>(&json).expect("JSON"), Err(failure));
        }
        let json = answer_json(Ok(b"null"));
        assert_eq!(serde_json::from_slice::<Answer<()>>(&json).expect("JSON"), Ok(()));
    }
}
