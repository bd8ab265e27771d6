//! The names of everything that the runtime traces, in one place: what dashboards, alerts and searches
//! rest on. There are no metrics yet.

use stead_entities::{EntityId, Origin, TraceContext};
use tracing::Span;

/// The span around one turn, or one query. Its fields are `entity` and `operation`, and where that is known
/// `caller` and `trace_id`, as W3C Trace Context has it.
///
/// It is of the level INFO where the operation has a caller or a trace, and else of the level DEBUG, so
/// that it costs nothing unless it says something or is asked for.
pub const TURN: &str = "turn";

/// The span of a turn.
pub(crate) fn turn(entity: &EntityId, operation: &str, origin: Option<&Origin>) -> Span {
    let Some(Origin { caller, trace, .. }) = origin else {
        return tracing::debug_span!(TURN, %entity, operation);
    };
    let trace_id = trace.as_ref().map(TraceContext::trace_id);
    tracing::info_span!(TURN, %entity, operation, caller, trace_id)
}
