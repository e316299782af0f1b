//! What a group needs from whoever carries its messages.

use bytes::Bytes;
use futures::future::BoxFuture;
use smalti_storage::ids::NodeId;
use std::fmt::Debug;
use std::time::Duration;
use thiserror::Error;

/// Carries requests to other members. Implemented outside of this crate.
///
/// The implementation answers for the identity of both ends: a request handed to
/// [`RaftGroup::handle`](crate::RaftGroup::handle) comes from the node it says it does.
pub trait RaftTransport: Debug + Send + Sync + 'static {
    /// Sends `request` to `to` and returns its answer. Requests are up to
    /// [`MAX_REQUEST_BYTES`](crate::MAX_REQUEST_BYTES) long, and so are answers. A call that is
    /// not answered in `timeout` has failed; whether it arrived is not known then.
    fn call(
        &self,
        to: NodeId,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>>;
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The node can not be reached now.
    #[error("{node} is unreachable: {reason}")]
    Unreachable {
        /// The node.
        node: NodeId,
        /// In words.
        reason: String,
    },
    /// There was no answer in time.
    #[error("{node} did not answer in {timeout:?}")]
    Timeout {
        /// The node.
        node: NodeId,
        /// The time it had.
        timeout: Duration,
    },
}
