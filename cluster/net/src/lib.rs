//! The wire between nodes: one QUIC endpoint per process, mutual TLS, calls and sessions.
//!
//! ```text
//! raft, custody, map fetch --- Peer::call ----------+                +--> Service::call
//!                                                   +-- one QUIC ----+
//! coder -> shard store ------- Peer::open_session --+   connection   +--> SessionHandler::session
//! ```
//!
//! What must hold here:
//!
//! N1. No byte of a peer is handed up before its certificate was verified against the cluster's
//!     authority, names this cluster, and names a node that the policy allows. Joiners, who have no
//!     certificate yet, reach nothing but [`JoinHost`].
//! N2. The policy is asked again for every stream, so removing a node from the map takes effect
//!     on connections that are already open.
//! N3. Frames of one session arrive complete, in order, once; a session that breaks stays broken.
//! N4. Nothing a peer sends makes this crate panic, and what it can make us hold is bounded by
//!     [`NetConfig`].
//!
//! This crate knows nodes and bytes: no map, no volume, no message type. It is the only one that
//! knows quinn.

mod accept;
mod backoff;
mod ca;
mod config;
mod congestion;
mod connect;
mod credentials;
mod current_key;
mod endpoint;
mod error;
mod frames;
mod identity;
mod join;
mod peer;
mod pem_files;
mod service;
mod session;
mod socket;
mod tls;
mod wire;

#[cfg(test)]
mod tests;

pub use ca::{ClusterCa, Validity};
pub use config::{Congestion, NetConfig};
pub use credentials::NodeCredentials;
pub use endpoint::Endpoint;
pub use error::{
    BindError, CallError, CallErrorKind, CredentialError, IdentityError, SessionError, TrySendError,
};
pub use futures::future::BoxFuture;
pub use identity::PeerIdentity;
pub use join::{
    Farewell, JoinAddresses, JoinAsk, JoinDenial, JoinError, JoinGrant, JoinHost, JoinPeer,
    JoinToken, JoinWish, Joined, JoinerKey, RenewalError, RenewalHost, TokenError, join,
};
pub use peer::{DownReason, Peer, PeerState, PeerStats};
pub use service::{Service, SessionHandler};
pub use session::{FrameReceiver, FrameSender, Session};
pub use tls::{AllowAll, PeerPolicy};
pub use wire::{FRAME_BYTES_MAX, HELLO_BYTES_MAX, REQUEST_BYTES_MAX};
