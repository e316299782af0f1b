//! What can go wrong, by what the caller can do about it.

use bytes::Bytes;
use smalti_storage::ids::{ClusterId, NodeId};
use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

/// A certificate that does not say which node of which cluster it is for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Not an X.509 certificate we can read.
    #[error("certificate is unreadable")]
    Unreadable,
    /// No name of ours in it.
    #[error("certificate names no node")]
    Missing,
    /// More than one name of ours in it.
    #[error("certificate names several nodes")]
    Ambiguous,
    /// A name of our scheme, but not of our form.
    #[error("certificate holds the malformed name {name:?}")]
    Malformed {
        /// The name, shortened.
        name: String,
    },
    /// Another cluster's certificate.
    #[error("certificate is for cluster {theirs}, not {ours}")]
    OtherCluster {
        /// The cluster it names.
        theirs: ClusterId,
        /// Our cluster.
        ours: ClusterId,
    },
    /// A valid certificate of a node that the dialer did not mean to reach.
    #[error("certificate is for node {theirs}, not {wanted}")]
    OtherNode {
        /// The node that answered.
        theirs: NodeId,
        /// The node that was dialled.
        wanted: NodeId,
    },
    /// Whoever answers a joiner is not of the authority that its token names.
    #[error("the answering node is of another authority than the token's")]
    OtherAuthority,
    /// A joiner was given the number of the node that answered it.
    #[error("node {node} is the one that answered, and can not be the joiner too")]
    Taken {
        /// The node.
        node: NodeId,
    },
    /// The policy does not allow this node, or no longer.
    #[error("node {node} is not a member")]
    NotAllowed {
        /// The node.
        node: NodeId,
    },
}

/// Credentials that can not be made, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A file can not be read or written.
    #[error("credential file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A private key that others may read.
    #[error("key file {} is readable by others; it needs mode 0600", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// A text that is not what it should be.
    #[error("no valid {what} in PEM form")]
    NotPem {
        /// What was expected.
        what: &'static str,
    },
    /// The key does not belong to the certificate.
    #[error("private key does not belong to the certificate")]
    KeyMismatch,
    /// The certificate does not name a node or cluster.
    #[error("unusable certificate")]
    Identity(#[source] IdentityError),
    /// The authority is not the one of the certificate's cluster.
    #[error("authority is for cluster {cluster}, certificate for {ours}")]
    OtherCluster {
        /// The certificate's cluster.
        ours: ClusterId,
        /// The authority's cluster.
        cluster: ClusterId,
    },
    /// A certificate can not be made.
    #[error("certificate can not be signed")]
    Signing(#[source] Box<rcgen::Error>),
    /// TLS refuses the credentials.
    #[error("credentials unusable for tls")]
    Tls(#[source] Box<rustls::Error>),
}

impl CredentialError {
    pub(crate) fn signing(error: rcgen::Error) -> Self {
        Self::Signing(Box::new(error))
    }

    pub(crate) fn tls(error: rustls::Error) -> Self {
        Self::Tls(Box::new(error))
    }
}

/// An endpoint that can not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address can not be used.
    #[error("bind udp socket on {addr}")]
    Socket {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The credentials can not be used.
    #[error("load node credentials")]
    Credentials(#[from] CredentialError),
    /// A setting is out of its range.
    #[error("network setting {name} is out of range")]
    Config {
        /// The setting's name in [`NetConfig`](crate::NetConfig).
        name: &'static str,
    },
}

/// What a caller can do about a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallErrorKind {
    /// No connection to the peer, or it broke. Try again, or another node.
    Unreachable,
    /// No answer in time. Whether the peer acted is unknown.
    Timeout,
    /// The peer is there and does not want this: wrong identity, not a member, no such service.
    Refused,
    /// Request or answer over the limit. Trying again is useless.
    TooLarge,
    /// The peer broke the protocol: a defect, or another version.
    Protocol,
}

/// A call or the opening of a session failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// There was no connection: nothing was sent.
    #[error("node {node} is unreachable: {reason}")]
    Unreachable {
        /// The peer.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// The connection broke during the call: the peer may or may not have acted.
    #[error("connection to node {node} broke: {reason}")]
    Lost {
        /// The peer.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// No answer in time: the peer may or may not have acted.
    #[error("node {node} did not answer within {after:?}")]
    Timeout {
        /// The peer.
        node: NodeId,
        /// How long the caller was ready to wait.
        after: Duration,
    },
    /// The peer refused: it did not act.
    #[error("node {node} refused: {reason}")]
    Refused {
        /// The peer.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// Over a size limit. `sent` tells whether the peer may have acted.
    #[error("message of {len} bytes is over the limit of {max}")]
    TooLarge {
        /// The size.
        len: u64,
        /// The limit.
        max: u64,
        /// False for a request that never left; true for an answer that was too large.
        sent: bool,
    },
    /// The peer broke the protocol: it may or may not have acted.
    #[error("node {node} broke the protocol: {what}")]
    Protocol {
        /// The peer.
        node: NodeId,
        /// How.
        what: &'static str,
    },
    /// The peer's service failed while it worked on the request: it may or may not have acted.
    #[error("service of node {node} failed")]
    Failed {
        /// The peer.
        node: NodeId,
    },
}

impl CallError {
    /// What to do about it.
    pub fn kind(&self) -> CallErrorKind {
        match self {
            Self::Unreachable { .. } | Self::Lost { .. } => CallErrorKind::Unreachable,
            Self::Timeout { .. } => CallErrorKind::Timeout,
            Self::Refused { .. } => CallErrorKind::Refused,
            Self::TooLarge { .. } => CallErrorKind::TooLarge,
            Self::Protocol { .. } | Self::Failed { .. } => CallErrorKind::Protocol,
        }
    }

    /// Whether the peer may have acted on the request. When false it certainly did not, and the
    /// same request can be sent again without care.
    pub fn may_have_acted(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Refused { .. } => false,
            Self::TooLarge { sent, .. } => *sent,
            Self::Lost { .. }
            | Self::Timeout { .. }
            | Self::Protocol { .. }
            | Self::Failed { .. } => true,
        }
    }
}

/// Why a session ended, or a frame was not taken. A session that ended stays ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The connection broke.
    #[error("connection broke: {reason}")]
    Lost {
        /// Why.
        reason: String,
    },
    /// The peer gave the session up: it no longer reads, or aborted what it was sending.
    #[error("peer ended the session (code {code})")]
    Ended {
        /// The peer's code: 0 when it just dropped its half.
        code: u64,
    },
    /// A frame over the limit: one of ours was not taken (the session goes on), or one of the
    /// peer's was announced (the session ended).
    #[error("frame of {len} bytes is over the limit of {max}")]
    TooLarge {
        /// The size.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// The peer stopped in the middle of a frame.
    #[error("peer stopped in the middle of a frame")]
    Truncated,
    /// Our own half was closed.
    #[error("session is closed")]
    Closed,
}

/// A frame that [`try_send`](crate::FrameSender::try_send) did not take.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrySendError {
    /// The queue is full now.
    #[error("session queue is full")]
    Full(
        /// The frame, given back.
        Bytes,
    ),
    /// The session can not take it.
    #[error(transparent)]
    Session(#[from] SessionError),
}
