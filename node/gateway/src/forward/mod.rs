//! A block device over a session of frames: a gateway's node serves, another node asks.
//!
//! Pure of any network: frames come as a stream of [`Bytes`] and leave through a [`FrameTx`].
//! Many requests are under way at once and are answered in any order, each by its number.
//!
//! When a session ends, the client fails what is unanswered with
//! [`GatewayError::Disconnected`](crate::GatewayError): it was carried out or not. To repeat it
//! safely the old request must not be running any more, so the server keeps a gate for each
//! client that lets its newest session begin when everything of the older ones has ended.

mod client;
mod gate;
mod server;
mod wire;

#[cfg(test)]
mod tests;

pub use client::ForwardClient;
pub use gate::ClientId;
pub use server::{ForwardServer, ServeEnd, ServeError};
pub use wire::{BlockAnswer, BlockOp, BlockReply, BlockRequest, WireError};

use crate::device::BoxFuture;
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::mpsc;

/// The most bytes that one request reads or writes; the client cuts larger ones. Small enough
/// that a session is not blocked for long by one frame.
pub const REQUEST_BYTES_MAX: u32 = 4 << 20;

/// The most extents that one answer holds.
pub(crate) const EXTENTS_MAX: u32 = 4096;

/// The session no longer takes frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session has ended")]
pub struct FrameClosed;

/// Where the frames of a session leave. Bounded: it makes the sender wait.
pub trait FrameTx: Send + Sync + 'static {
    /// Queues a frame. Dropping the future before it resolves sends nothing.
    ///
    /// # Errors
    /// When the session has ended.
    fn send(&self, frame: Bytes) -> BoxFuture<Result<(), FrameClosed>>;
}

impl FrameTx for mpsc::Sender<Bytes> {
    fn send(&self, frame: Bytes) -> BoxFuture<Result<(), FrameClosed>> {
        let queue = self.clone();
        async move { queue.send(frame).await.map_err(|_| FrameClosed) }.boxed()
    }
}

/// What may be under way in one session, at either end.
#[derive(Clone, Debug)]
pub struct ForwardLimits {
    /// Requests.
    pub requests: usize,
    /// Bytes read or written by them; at least [`REQUEST_BYTES_MAX`].
    pub bytes: usize,
    /// Clients with a session, at the server.
    pub clients: usize,
}

impl Default for ForwardLimits {
    fn default() -> Self {
        Self { requests: 256, bytes: 32 << 20, clients: 256 }
    }
}

impl ForwardLimits {
    fn bytes(&self) -> usize {
        self.bytes.max(REQUEST_BYTES_MAX as usize)
    }
}

/// What a request costs of [`ForwardLimits::bytes`]: what it brings, or what its answer will be.
fn cost(op: &BlockOp) -> u32 {
    let bytes = match op {
        BlockOp::Read { length, .. } => *length,
        BlockOp::Write { data, .. } => u32::try_from(data.len()).unwrap_or(u32::MAX),
        BlockOp::Status { extents_max, .. } => extents_max.saturating_mul(24),
        BlockOp::Zero { .. } | BlockOp::Flush => 0,
    };
    bytes.min(REQUEST_BYTES_MAX)
}
