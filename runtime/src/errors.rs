//! The errors of failed tries, for the routing among nodes and for the client of a URL alike.

use stead_entities::{Error, ErrorKind};

/// The error where an earlier try may have been applied, whatever the last one says of itself; but
/// some things are said by who knows the idempotency key.
pub(crate) fn in_doubt(error: Error) -> Error {
    let (kind, message) = (error.kind(), error.message());
    match kind {
        ErrorKind::Unknown | ErrorKind::Conflict | ErrorKind::Deadline | ErrorKind::Internal => {
            error
        }
        _ => Error::new(ErrorKind::Unknown, message),
    }
}
