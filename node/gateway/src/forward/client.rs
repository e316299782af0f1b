//! The asking half of a session: a block device whose gateway is elsewhere.

use super::wire::{BlockAnswer, BlockOp, BlockReply, BlockRequest, WireError};
use super::{EXTENTS_MAX, ForwardLimits, FrameTx, REQUEST_BYTES_MAX, cost};
use crate::device::{BlockDevice, BoxFuture};
use crate::error::GatewayError;
use crate::pieces::{BLOCK, Piece, pieces};
use bytes::Bytes;
use futures::future::{join_all, ready};
use futures::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use smalti_nbd::{Extent, ReadReply};
use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Requests that one large read is cut into and that are under way together.
const PIECES_AHEAD: usize = 8;

/// A volume whose gateway is on another node, over one session. When the session ends, so does
/// this device: every call fails with [`GatewayError::Disconnected`], those under way included,
/// and the owner makes a new one.
pub struct ForwardClient {
    shared: Arc<Shared>,
    _reader: AbortOnDropHandle<()>,
}

struct Shared {
    outgoing: Arc<dyn FrameTx>,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    ended: CancellationToken,
}

#[derive(Default)]
struct Waiting {
    ended: bool,
    next_id: u64,
    calls: HashMap<u64, Call>,
}

/// A request without an answer. It keeps its room until the answer is there, even when nobody
/// waits for it any more: it is still under way at the server.
struct Call {
    answer: oneshot::Sender<Result<BlockAnswer, GatewayError>>,
    _room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl ForwardClient {
    /// A device over a session that has been opened. `incoming` ends with the session.
    ///
    /// # Panics
    /// Outside of a tokio runtime, in which it reads the session.
    pub fn new(
        limits: &ForwardLimits,
        incoming: impl Stream<Item = Bytes> + Send + 'static,
        outgoing: Arc<dyn FrameTx>,
    ) -> Self {
        let shared = Arc::new(Shared {
            outgoing,
            requests: Arc::new(Semaphore::new(limits.requests.max(1))),
            bytes: Arc::new(Semaphore::new(limits.bytes())),
            waiting: Mutex::default(),
            ended: CancellationToken::new(),
        });
        let reading = Arc::clone(&shared);
        let reader = tokio::spawn(async move {
            if let Err(error) = reading.read(incoming).await {
                tracing::warn!(%error, "a forwarding session is given up");
            }
            reading.end();
        });
        Self { shared, _reader: AbortOnDropHandle::new(reader) }
    }

    /// Waits until the session has ended.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shared.ended.clone().cancelled_owned()
    }

    /// Whether the session has ended.
    pub fn has_ended(&self) -> bool {
        self.shared.ended.is_cancelled()
    }
}

impl Drop for ForwardClient {
    fn drop(&mut self) {
        // Nobody reads answers from here on.
        self.shared.end();
    }
}

impl Shared {
    async fn read(&self, incoming: impl Stream<Item = Bytes> + Send) -> Result<(), WireError> {
        let mut incoming = pin!(incoming);
        while let Some(frame) = incoming.next().await {
            let BlockReply { id, result } = BlockReply::decode(&frame)?;
            let call = self.lock().calls.remove(&id).ok_or(WireError::Unasked)?;
            // Fails when the caller has left, who then does not want to know.
            let _ = call.answer.send(result);
        }
        Ok(())
    }

    fn end(&self) {
        let calls = {
            let mut waiting = self.lock();
            waiting.ended = true;
            std::mem::take(&mut waiting.calls)
        };
        self.requests.close();
        self.bytes.close();
        self.ended.cancel();
        for call in calls.into_values() {
            let _ = call.answer.send(Err(GatewayError::Disconnected));
        }
    }

    async fn call(self: Arc<Self>, op: BlockOp) -> Result<BlockAnswer, GatewayError> {
        let gone = |_| GatewayError::Disconnected;
        let slot = Arc::clone(&self.requests).acquire_owned().await.map_err(gone)?;
        let bytes = Arc::clone(&self.bytes);
        let bytes = bytes.acquire_many_owned(cost(&op)).await.map_err(gone)?;
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut waiting = self.lock();
            if waiting.ended {
                return Err(GatewayError::Disconnected);
            }
            let id = waiting.next_id;
            waiting.next_id += 1;
            waiting.calls.insert(id, Call { answer, _room: (slot, bytes) });
            id
        };
        let mut unsent = Unsent { shared: &self, id, armed: true };
        let frame = BlockRequest { id, op }.encode();
        self.outgoing.send(frame).await.map_err(|_| GatewayError::Disconnected)?;
        unsent.armed = false;
        answered.await.unwrap_or(Err(GatewayError::Disconnected))
    }

    async fn read_one(self: Arc<Self>, piece: Piece) -> Result<ReadReply, GatewayError> {
        let Piece { offset, length } = piece;
        let length = u32::try_from(length).map_err(|_| GatewayError::Invalid)?;
        match Arc::clone(&self).call(BlockOp::Read { offset, length }).await? {
            BlockAnswer::Read(reply) if reply.len() == length as usize => Ok(reply),
            _ => Err(self.unasked()),
        }
    }

    async fn done(self: Arc<Self>, op: BlockOp) -> Result<(), GatewayError> {
        match Arc::clone(&self).call(op).await? {
            BlockAnswer::Done => Ok(()),
            _ => Err(self.unasked()),
        }
    }

    /// A reply of the wrong kind: nothing of this session can be believed.
    fn unasked(&self) -> GatewayError {
        tracing::warn!(error = %WireError::Unasked, "a forwarding session is given up");
        self.end();
        GatewayError::Disconnected
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a request that was never sent out of the table again.
struct Unsent<'a> {
    shared: &'a Shared,
    id: u64,
    armed: bool,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.shared.lock().calls.remove(&self.id);
        }
    }
}

/// A request cut at whole blocks into what one frame may hold.
fn cut(offset: u64, length: u64) -> Option<Vec<Piece>> {
    offset.checked_add(length).filter(|end| *end <= 1 << 62)?;
    Some(pieces(offset, length, 1, u64::from(REQUEST_BYTES_MAX) / BLOCK).collect())
}

impl BlockDevice for ForwardClient {
    fn read(&self, offset: u64, length: u32) -> BoxFuture<Result<ReadReply, GatewayError>> {
        let Some(cut) = cut(offset, length.into()) else {
            return ready(Err(GatewayError::Invalid)).boxed();
        };
        let shared = Arc::clone(&self.shared);
        if let [piece] = cut[..] {
            return shared.read_one(piece).boxed();
        }
        async move {
            let parts = stream::iter(cut).map(|piece| Arc::clone(&shared).read_one(piece));
            let mut parts = parts.buffered(PIECES_AHEAD);
            let mut reply = ReadReply::new();
            while let Some(part) = parts.try_next().await? {
                part.segments().for_each(|segment| reply.push(segment.clone()));
            }
            Ok(reply)
        }
        .boxed()
    }

    fn write(&self, offset: u64, mut data: Bytes) -> BoxFuture<Result<(), GatewayError>> {
        let Some(cut) = cut(offset, data.len() as u64) else {
            return ready(Err(GatewayError::Invalid)).boxed();
        };
        let shared = Arc::clone(&self.shared);
        if cut.len() == 1 {
            return shared.done(BlockOp::Write { offset, data }).boxed();
        }
        let parts = cut.into_iter().map(move |Piece { offset, length }| {
            let data = data.split_to(length as usize);
            Arc::clone(&shared).done(BlockOp::Write { offset, data })
        });
        // All of them to their end: none may still be under way when the caller goes on.
        join_all(parts).map(|done| done.into_iter().collect()).boxed()
    }

    fn zero(&self, offset: u64, length: u64) -> BoxFuture<Result<(), GatewayError>> {
        Arc::clone(&self.shared).done(BlockOp::Zero { offset, length }).boxed()
    }

    fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> BoxFuture<Result<Vec<Extent>, GatewayError>> {
        let shared = Arc::clone(&self.shared);
        let extents_max = u32::try_from(extents_max).unwrap_or(u32::MAX).min(EXTENTS_MAX);
        async move {
            let op = BlockOp::Status { offset, length, extents_max };
            let BlockAnswer::Status(extents) = Arc::clone(&shared).call(op).await? else {
                return Err(shared.unasked());
            };
            let sum = extents.iter().try_fold(0u64, |sum, extent| {
                sum.checked_add(extent.length).filter(|_| extent.length > 0)
            });
            let fits = sum.is_some_and(|sum| sum > 0 && sum <= length);
            let fits = fits && extents.len() <= extents_max as usize;
            if fits { Ok(extents) } else { Err(shared.unasked()) }
        }
        .boxed()
    }

    fn flush(&self) -> BoxFuture<Result<(), GatewayError>> {
        Arc::clone(&self.shared).done(BlockOp::Flush).boxed()
    }
}

impl fmt::Debug for ForwardClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardClient").field("ended", &self.has_ended()).finish_non_exhaustive()
    }
}
