//! Errors say what the caller should do; a [`Rejection`] is not an error but an answer.

use std::{error::Error as StdError, fmt};

use crate::{Rejection, Timeout};

/// The kind of an [`Error`]: what a caller should do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is wrong; fix it. Nothing was applied.
    Invalid,
    /// The entity type, operation or record does not exist. Nothing was applied.
    NotFound,
    /// A limit is reached; back off and try again. Nothing was applied.
    Overloaded,
    /// Not possible at the moment; try again. Definitely not applied.
    Unavailable,
    /// There is too little room on the disk; make room, then try again. Nothing was applied.
    Full,
    /// The operation ran past its deadline and was discarded: its turn left nothing.
    Deadline,
    /// The operation may or may not have been applied; repeat it with the same idempotency key.
    Unknown,
    /// An idempotency key was used before for something else.
    Conflict,
    /// The entity has changed since the version that the request names, or does not exist; read it
    /// again and decide anew. Nothing was applied.
    Precondition,
    /// This node is no longer the owner; ask again.
    Fenced,
    /// The node is stopping or has stopped. Nothing was applied.
    Closed,
    /// Stored data of this entity cannot be read; it is left as it is until somebody repairs it.
    Corrupt,
    /// The operation panicked, or the runtime has a bug. The turn left nothing.
    Internal,
    /// The operation ran, and says that it cannot be done at the moment; try again later. Nothing of its turn
    /// was applied, but what it did outside may have been.
    Later,
}

impl ErrorKind {
    /// Every kind that this version knows.
    pub const ALL: [Self; 14] = [
        Self::Invalid,
        Self::NotFound,
        Self::Overloaded,
        Self::Unavailable,
        Self::Full,
        Self::Deadline,
        Self::Unknown,
        Self::Conflict,
        Self::Precondition,
        Self::Fenced,
        Self::Closed,
        Self::Corrupt,
        Self::Internal,
        Self::Later,
    ];
}

/// A failure, told apart by [`ErrorKind`]. The message is for people and is not part of the API.
pub struct Error {
    kind: ErrorKind,
    message: String,
    retry_after: Option<Timeout>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A failure of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None, source: None }
    }

    /// The same failure with its cause.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same failure with the time after which trying again may help.
    pub fn with_retry_after(mut self, length: impl Into<Timeout>) -> Self {
        self.retry_after = Some(length.into());
        self
    }

    /// The time after which trying again may help, where that is known.
    pub fn retry_after(&self) -> Option<Timeout> {
        self.retry_after
    }

    /// The kind: what the caller should do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message: what happened, in words.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)?;
        self.source.as_ref().map_or(Ok(()), |source| write!(f, ": {source:?}"))
    }
}
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
impl Clone for Error {
    /// The source stays behind; the rest is kept.
    fn clone(&self) -> Self {
        Self { retry_after: self.retry_after, ..Self::new(self.kind, self.message.clone()) }
    }
}

/// How a call can end without its result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The entity said no.
    #[error("rejected: {0}")]
    Rejected(Rejection),
    /// The call failed; the kind says whether it can have been applied.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl CallError {
    /// The rejection, if the entity said no.
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::Rejected(rejection) => Some(rejection),
            Self::Failed(_) => None,
        }
    }
}
