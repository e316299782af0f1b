//! Why a request to a node was not done.

use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;
use utoipa::ToSchema;

/// What the caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request can not be done as it is; ask for something else.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// There is one already.
    Exists,
    /// The state moved on since the request was planned; look again.
    Conflict,
    /// The node is not ready yet; ask another one or wait.
    Starting,
    /// Too few nodes answer to decide; try again when more do.
    Unavailable,
    /// Too few custodians answer, or their shares do not open the keys.
    Sealed,
    /// It was not known in time whether the request was done; look before trying again.
    Timeout,
    /// The node is at fault; its log says more.
    Internal,
}

/// An error of a [`super::Control`] method.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize, ToSchema)]
#[error("{message}")]
pub struct ControlError {
    /// What the caller can do.
    pub kind: ErrorKind,
    /// What happened, in one line for people.
    pub message: String,
}

impl ControlError {
    /// An error of that kind.
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }

    /// `Invalid`.
    pub fn invalid(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// `NotFound`, for a volume.
    pub fn no_volume(name: &str) -> Self {
        Self::new(ErrorKind::NotFound, format_args!("there is no volume {name}"))
    }
}

impl ErrorKind {
    /// The word that stands for it in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Exists => "exists",
            Self::Conflict => "conflict",
            Self::Starting => "starting",
            Self::Unavailable => "unavailable",
            Self::Sealed => "sealed",
            Self::Timeout => "timeout",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_the_json() {
        for kind in [
            ErrorKind::Invalid,
            ErrorKind::NotFound,
            ErrorKind::Exists,
            ErrorKind::Conflict,
            ErrorKind::Starting,
            ErrorKind::Unavailable,
            ErrorKind::Sealed,
            ErrorKind::Timeout,
            ErrorKind::Internal,
        ] {
            assert_eq!(serde_json::to_value(kind).ok(), Some(kind.as_str().into()));
        }
    }
}
