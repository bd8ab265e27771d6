//! What is said of a failed try, by the routing among nodes and by the client of a URL alike.

use stead_entities::{Error, ErrorKind};

/// What is said where an earlier try may have been applied, whatever the last one says of itself; but
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
