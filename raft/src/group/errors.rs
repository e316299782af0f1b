//! What can go wrong at the handle.

use crate::codec::CodecError;
use crate::types::MAX_COMMAND_BYTES;
use openraft::error::{Fatal, InitializeError as RaftInitializeError, RaftError};
use openraft::{AnyError, EmptyNode};
use smalti_storage::ids::NodeId;
use std::error::Error;
use thiserror::Error;

/// A member could not be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The settings make no sense.
    #[error("raft configuration: {0}")]
    Config(String),
    /// The store can not be used.
    #[error("the store of the raft group can not be used")]
    Store(#[source] Box<dyn Error + Send + Sync>),
}

impl StartError {
    pub(super) fn store(error: impl Error + Send + Sync + 'static) -> Self {
        Self::Store(Box::new(error))
    }
}

/// A group could not be founded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InitializeError {
    /// This member has a log or a vote: it has been in a group before.
    #[error("this member belongs to a group already")]
    Already,
    /// The list of voters lacks this member.
    #[error("{0} is not among the voters")]
    NotAMember(NodeId),
    /// The member has stopped.
    #[error("the raft group has stopped here: {0}")]
    Stopped(String),
}

impl From<RaftError<u64, RaftInitializeError<u64, EmptyNode>>> for InitializeError {
    fn from(error: RaftError<u64, RaftInitializeError<u64, EmptyNode>>) -> Self {
        match error {
            RaftError::APIError(RaftInitializeError::NotAllowed(_)) => Self::Already,
            RaftError::APIError(RaftInitializeError::NotInMembers(error)) => {
                Self::NotAMember(NodeId(error.node_id))
            }
            RaftError::Fatal(error) => Self::Stopped(error.to_string()),
        }
    }
}

/// A command or a read got no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// No majority in time. The command may have been applied, or may yet be.
    #[error("no majority answered in time, at last: {last}")]
    Timeout {
        /// What the last attempt ran into.
        last: String,
    },
    /// The command is larger than a log entry may be.
    #[error("a command of {0} bytes is larger than {MAX_COMMAND_BYTES}")]
    TooLarge(usize),
    /// This member has stopped; its process should too.
    #[error("the raft group has stopped here: {0}")]
    Stopped(String),
    /// The leader did not understand: the two run different programs.
    #[error("the leader answered: {0}")]
    Unexpected(String),
    /// The command can not be encoded.
    #[error("the command can not be encoded")]
    Encoding(#[source] AnyError),
}

impl ProposeError {
    pub(super) fn encoding(error: &CodecError) -> Self {
        Self::Encoding(AnyError::new(error))
    }

    pub(super) fn stopped(error: &Fatal<u64>) -> Self {
        Self::Stopped(error.to_string())
    }
}
