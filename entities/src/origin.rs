//! The origin of an operation: who asked for it, and the trace that it is part of.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind};

/// The longest name of a caller, in bytes.
pub const CALLER_BYTES_MAX: usize = 256;
/// The longest `tracestate`, in bytes; a longer one is left out, as the standard allows.
const TRACE_STATE_BYTES_MAX: usize = 512;

/// The origin of an operation. It goes along with what the operation sends, and with what that sends,
/// also where that is delayed; a reminder is the entity's own and has no origin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Origin {
    /// The caller: the identity that a server or an embedder has established.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// The trace that it is part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceContext>,
}

impl Origin {
    /// The origin of what this caller asks for in this trace; `None` where neither is known.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where the caller's name is empty, has more than [`CALLER_BYTES_MAX`] bytes
    /// or a control character.
    pub fn new(
        caller: Option<String>,
        trace: Option<TraceContext>,
    ) -> Result<Option<Arc<Self>>, Error> {
        if let Some(name) = &caller
            && (name.is_empty()
                || name.len() > CALLER_BYTES_MAX
                || name.chars().any(char::is_control))
        {
            let rule =
                format!("a caller has 1 to {CALLER_BYTES_MAX} bytes and no control characters");
            return Err(Error::new(ErrorKind::Invalid, rule));
        }
        let is_known = caller.is_some() || trace.is_some();
        Ok(is_known.then(|| Arc::new(Self { caller, trace })))
    }
}

/// The place of a request in a distributed trace, as W3C Trace Context (level 1, 2020) has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Headers")]
pub struct TraceContext {
    parent: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<Box<str>>,
}

/// The headers of a [`TraceContext`] before they are checked.
#[derive(Deserialize)]
struct Headers {
    parent: String,
    #[serde(default)]
    state: Option<String>,
}

impl TryFrom<Headers> for TraceContext {
    type Error = &'static str;
    fn try_from(headers: Headers) -> Result<Self, Self::Error> {
        let read = Self::new(&headers.parent, headers.state.as_deref());
        read.ok_or("a traceparent that breaks the rules")
    }
}

impl TraceContext {
    /// Reads the headers `traceparent` and `tracestate`. `None` where the first is not valid: then both
    /// are to be ignored, and the request goes on without a trace. A `tracestate` that is empty, longer
    /// than 512 bytes or not printable ASCII is left out.
    pub fn new(parent: &str, state: Option<&str>) -> Option<Self> {
        let parent = parent.trim();
        let hex = |text: &str| text.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
        let mut parts = parent.split('-');
        let [version, trace, span, flags] = [(); 4].map(|()| parts.next().unwrap_or_default());
        let lengths = [version.len(), trace.len(), span.len(), flags.len()] == [2, 32, 16, 2];
        let is_read = lengths && [version, trace, span, flags].into_iter().all(hex);
        // Later versions may have more parts behind these.
        let is_known = version != "ff" && (version != "00" || parts.next().is_none());
        let is_set = |id: &str| id.bytes().any(|digit| digit != b'0');
        if !is_read || !is_known || !is_set(trace) || !is_set(span) {
            return None;
        }
        let state = state.map(str::trim).filter(|state| {
            (1..=TRACE_STATE_BYTES_MAX).contains(&state.len())
                && state.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        });
        // Of a later version only the flag is known that says whether the trace is sampled.
        let is_sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
        let flags = match version {
            "00" => flags,
            _ if is_sampled => "01",
            _ => "00",
        };
        let parent = format!("00-{trace}-{span}-{flags}").into();
        Some(Self { parent, state: state.map(Box::from) })
    }

    /// The header `traceparent`, for requests that belong to the same trace.
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// The header `tracestate`, if there is one.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The id of the trace: 32 hexadecimal digits.
    pub fn trace_id(&self) -> &str {
        self.parent.split('-').nth(1).unwrap_or_default()
    }
}

/// As `traceparent` has it.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let read = |text: &str| TraceContext::new(text, None).map(|it| it.parent().to_owned());
        assert_eq!(read(PARENT).as_deref(), Some(PARENT));
        assert_eq!(read(&format!(" {PARENT}\t")).as_deref(), Some(PARENT));
        let later = PARENT.replacen("00", "cc", 1);
        assert_eq!(read(&later).as_deref(), Some(PARENT), "a later version is read as this one");
        assert_eq!(read(&format!("{later}-more")).as_deref(), Some(PARENT));
        let flagged = later.replace("b7-01", "b7-ff");
        assert_eq!(read(&flagged).as_deref(), Some(PARENT), "its other flags mean nothing here");
        let wrong = [
            String::new(),
            "00".into(),
            format!("{PARENT}-more"),
            PARENT.replacen("00", "ff", 1),
            PARENT.to_uppercase(),
            PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            PARENT.replace('-', "_"),
            PARENT.replace("4bf9", "4bfé"),
            PARENT[..54].to_owned(),
        ];
        for text in wrong {
            assert_eq!(read(&text), None, "{text}");
        }
    }

    #[test]
    fn a_state_that_breaks_a_rule_is_left_out() {
        let read = |state: &str| {
            let trace = TraceContext::new(PARENT, Some(state)).expect("a trace");
            trace.state().map(str::to_owned)
        };
        assert_eq!(read(" congo=t61rcWkgMzE ").as_deref(), Some("congo=t61rcWkgMzE"));
        assert_eq!(read(&"a".repeat(512)).map(|state| state.len()), Some(512));
        for wrong in [String::new(), " ".into(), "a".repeat(513), "a=\u{e9}".into(), "a\nb".into()]
        {
            assert_eq!(read(&wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn an_origin_says_who_or_where_from() {
        assert!(matches!(Origin::new(None, None), Ok(None)));
        let alice = Origin::new(Some("alice".into()), None).expect("valid").expect("known");
        assert_eq!(alice.caller.as_deref(), Some("alice"));
        for wrong in [String::new(), "a".repeat(257), "a\0".into()] {
            assert!(Origin::new(Some(wrong), None).is_err());
        }
        let trace = TraceContext::new(PARENT, Some("a=1"));
        let origin = Origin::new(Some("alice".into()), trace).expect("valid").expect("known");
        let json = serde_json::to_string(&*origin).expect("written");
        assert_eq!(serde_json::from_str::<Origin>(&json).expect("read"), *origin);
        assert!(serde_json::from_str::<TraceContext>(r#"{"parent":"00-x"}"#).is_err());
    }
}
