//! The serving half of a session.

use super::gate::{ClientId, Gates};
use super::wire::{BlockAnswer, BlockOp, BlockReply, BlockRequest, WireError};
use super::{EXTENTS_MAX, ForwardLimits, FrameTx, REQUEST_BYTES_MAX, cost};
use crate::device::{BlockDevice, BoxFuture};
use crate::error::GatewayError;
use bytes::Bytes;
use futures::future::ready;
use futures::{FutureExt, Stream, StreamExt, TryFutureExt};
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Why a session was served no longer, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServeEnd {
    /// The client ended it, or the connection broke.
    Ended,
    /// The client has a newer session.
    Superseded,
}

/// Why a session was refused or given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The client sent what is no request.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// There is no room for another client.
    #[error("too many clients have a session")]
    TooManyClients,
}

/// Serves block devices to clients over sessions. One for all sessions that may reach the same
/// device, because it keeps the sessions of a client apart.
pub struct ForwardServer {
    limits: ForwardLimits,
    gates: Gates,
}

/// What one session's requests share.
struct Serving {
    device: Arc<dyn BlockDevice>,
    outgoing: Arc<dyn FrameTx>,
    /// Replies no longer leave: nobody is there to take them, or to care.
    broken: CancellationToken,
}

impl ForwardServer {
    /// A server without sessions.
    pub fn new(limits: ForwardLimits) -> Self {
        let gates = Gates::new(limits.clients);
        Self { limits, gates }
    }

    /// Serves one session of a client until it ends, and until all of its requests have. Before
    /// the first request is taken, all requests of the client's older sessions have ended, and
    /// those sessions take no more.
    ///
    /// Dropping the future takes no more requests; those begun go on.
    ///
    /// # Errors
    /// When the client sends what is no request (the session must then be ended), or cannot be
    /// served at all.
    pub async fn serve(
        &self,
        client: ClientId,
        device: Arc<dyn BlockDevice>,
        incoming: impl Stream<Item = Bytes> + Send,
        outgoing: Arc<dyn FrameTx>,
    ) -> Result<ServeEnd, ServeError> {
        let mut ticket = self.gates.arrive(client).ok_or(ServeError::TooManyClients)?;
        let Some(turn) = ticket.turn().await else { return Ok(ServeEnd::Superseded) };
        let requests = Arc::new(Semaphore::new(self.limits.requests.max(1)));
        let bytes = Arc::new(Semaphore::new(self.limits.bytes()));
        let broken = CancellationToken::new();
        let serving = Arc::new(Serving { device, outgoing, broken: broken.clone() });
        // When this future is dropped, replies need not wait for a way out any more.
        let _broken = broken.clone().drop_guard();
        let tasks = TaskTracker::new();
        let mut incoming = pin!(incoming);
        let serve = async {
            loop {
                let next = async {
                    // Room first: what waits for it stays at the client.
                    let slot = acquire(&requests, 1).await;
                    (slot, incoming.next().await)
                };
                let (slot, frame) = tokio::select! {
                    biased;
                    () = broken.cancelled() => return Ok(ServeEnd::Ended),
                    next = next => next,
                };
                let Some(frame) = frame else { return Ok(ServeEnd::Ended) };
                let request = BlockRequest::decode(&frame)?;
                let permits = (slot, acquire(&bytes, cost(&request.op)).await);
                // Called here, in the order of the frames; a later request may go on while an
                // earlier one of another block waits.
                let result = serving.carry_out(request.op);
                let (id, serving, turn) = (request.id, Arc::clone(&serving), Arc::clone(&turn));
                tasks.spawn(async move {
                    let result = result.await;
                    // Not held while the reply leaves: a peer that takes no replies must not keep
                    // its own next session waiting.
                    drop(turn);
                    serving.answer(id, result).await;
                    drop(permits);
                });
            }
        };
        let end = tokio::select! {
            biased;
            () = ticket.superseded() => {
                broken.cancel();
                Ok(ServeEnd::Superseded)
            }
            end = serve => end,
        };
        drop(turn);
        tasks.close();
        tasks.wait().await;
        end
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> OwnedSemaphorePermit {
    let acquired = Arc::clone(semaphore).acquire_many_owned(permits).await;
    acquired.expect("the semaphore is never closed")
}

impl Serving {
    async fn answer(&self, id: u64, result: Result<BlockAnswer, GatewayError>) {
        let reply = BlockReply { id, result }.encode();
        let sent = tokio::select! {
            biased;
            () = self.broken.cancelled() => return,
            sent = self.outgoing.send(reply) => sent,
        };
        if sent.is_err() {
            // The client learns of it as the end of its session.
            self.broken.cancel();
        }
    }

    fn carry_out(&self, op: BlockOp) -> BoxFuture<Result<BlockAnswer, GatewayError>> {
        let done = |()| BlockAnswer::Done;
        match op {
            BlockOp::Read { length, .. } if length > REQUEST_BYTES_MAX => {
                ready(Err(GatewayError::Invalid)).boxed()
            }
            BlockOp::Write { data, .. } if data.len() > REQUEST_BYTES_MAX as usize => {
                ready(Err(GatewayError::Invalid)).boxed()
            }
            BlockOp::Read { offset, length } => {
                self.device.read(offset, length).map_ok(BlockAnswer::Read).boxed()
            }
            BlockOp::Write { offset, data } => self.device.write(offset, data).map_ok(done).boxed(),
            BlockOp::Zero { offset, length } => {
                self.device.zero(offset, length).map_ok(done).boxed()
            }
            BlockOp::Status { offset, length, extents_max } => {
                let extents_max = extents_max.min(EXTENTS_MAX) as usize;
                let status = self.device.block_status(offset, length, extents_max);
                status.map_ok(BlockAnswer::Status).boxed()
            }
            BlockOp::Flush => self.device.flush().map_ok(done).boxed(),
        }
    }
}

impl fmt::Debug for ForwardServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardServer").field("limits", &self.limits).finish_non_exhaustive()
    }
}
