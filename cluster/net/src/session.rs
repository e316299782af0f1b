//! Sessions: long-lived streams of frames in both directions, in order.
//!
//! Sending: a frame waits in a bounded queue until the session's writer task takes it, together
//! with whatever else waits, and gives all of it to the stream in one go. The queue holds at most
//! [`session_queue_bytes`](crate::NetConfig::session_queue_bytes); a frame counts until the
//! stream has taken it, and the stream takes what its send window allows. So a slow reader stops
//! its sender after: queue + send window + what lies at the reader (its stream window).
//!
//! Receiving: there is no task and no queue. [`FrameReceiver::recv`] takes from the stream what
//! has arrived, so a reader that pauses holds the peer back by QUIC's own flow control.

use crate::{
    config::NetConfig,
    error::{SessionError, TrySendError},
    frames::{self, PREFIX, Splitter, TooLong},
    wire::{FRAME_BYTES_MAX, code, session_ended, session_lost},
};
use bytes::Bytes;
use quinn::{ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError};
use std::{
    fmt,
    sync::{Arc, OnceLock},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Frames that the writer takes at once.
const BATCH_FRAMES: usize = 256;

/// Pieces that the receiver takes from the stream at once.
const READ_PIECES: usize = 32;

/// What a frame costs beside its bytes, so that empty ones are bounded too.
const FRAME_COST: usize = 64;

/// A session with a peer: two halves that may be moved apart.
///
/// Dropping `tx` (all clones) ends our direction after what was sent; dropping `rx` tells the
/// peer that we no longer listen. Either half works on without the other.
#[derive(Debug)]
pub struct Session {
    /// Our frames.
    pub tx: FrameSender,
    /// The peer's frames.
    pub rx: FrameReceiver,
}

impl Session {
    pub(crate) fn start(
        mut send: Sending,
        recv: RecvStream,
        config: &NetConfig,
        tasks: &TaskTracker,
    ) -> Self {
        // The writer sees to a proper end from here on.
        send.armed = false;
        let (queue, waiting) = mpsc::channel(config.session_queue_frames);
        let common = Arc::new(Common::default());
        let budget = Arc::new(Semaphore::new(config.session_queue_bytes as usize));
        let writer =
            Writer { stream: send, queue: waiting, budget: budget.clone(), common: common.clone() };
        tasks.spawn(writer.run());
        let tx = FrameSender {
            queue,
            budget,
            budget_bytes: config.session_queue_bytes,
            common: common.clone(),
        };
        let rx = FrameReceiver {
            stream: recv,
            splitter: Splitter::default(),
            input: Default::default(),
            next: 0,
            filled: 0,
            end: None,
            common,
        };
        Self { tx, rx }
    }
}

/// What the halves and the writer share.
#[derive(Debug, Default)]
struct Common {
    /// Why our direction ended; set before anything that makes it visible.
    sending_ended: OnceLock<SessionError>,
    /// The receiver found the peer out of its mind: the writer must give up too.
    abort: CancellationToken,
}

struct Queued {
    frame: Bytes,
    _permit: OwnedSemaphorePermit,
}

/// Sends frames of a session. Clones share one queue; frames of one clone stay in order.
#[derive(Clone)]
pub struct FrameSender {
    queue: mpsc::Sender<Queued>,
    budget: Arc<Semaphore>,
    budget_bytes: u32,
    common: Arc<Common>,
}

impl fmt::Debug for FrameSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameSender").field("queued_bytes", &self.queued_bytes()).finish()
    }
}

impl FrameSender {
    /// Queues `frame`, waiting while the queue is full. Success means queued, not received:
    /// whether a frame arrived is known only by what the peer answers.
    ///
    /// Frames are sent in the order in which these futures complete. Dropping the future before
    /// it completes sends nothing.
    ///
    /// # Errors
    /// [`SessionError::TooLarge`] leaves the session as it was. With any other, it has ended.
    pub async fn send(&self, frame: Bytes) -> Result<(), SessionError> {
        let cost = self.cost(&frame)?;
        let permit =
            self.budget.clone().acquire_many_owned(cost).await.map_err(|_| self.ended())?;
        self.queue.send(Queued { frame, _permit: permit }).await.map_err(|_| self.ended())
    }

    /// Queues `frame` if there is room now. Overtakes a [`send`](Self::send) that waits.
    ///
    /// # Errors
    /// [`TrySendError::Full`] gives the frame back; else as [`send`](Self::send).
    pub fn try_send(&self, frame: Bytes) -> Result<(), TrySendError> {
        let permit = match self.budget.clone().try_acquire_many_owned(self.cost(&frame)?) {
            Ok(permit) => permit,
            Err(TryAcquireError::NoPermits) => return Err(TrySendError::Full(frame)),
            Err(TryAcquireError::Closed) => return Err(self.ended().into()),
        };
        self.queue.try_send(Queued { frame, _permit: permit }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(queued) => TrySendError::Full(queued.frame),
            mpsc::error::TrySendError::Closed(_) => self.ended().into(),
        })
    }

    /// Waits until our direction has ended, and says why.
    pub async fn closed(&self) -> SessionError {
        self.queue.closed().await;
        self.ended()
    }

    /// What waits in the queue, in bytes, with a little for every frame.
    pub fn queued_bytes(&self) -> usize {
        (self.budget_bytes as usize).saturating_sub(self.budget.available_permits())
    }

    fn cost(&self, frame: &Bytes) -> Result<u32, SessionError> {
        if frame.len() > FRAME_BYTES_MAX {
            let (len, max) = (frame.len() as u64, FRAME_BYTES_MAX as u64);
            return Err(SessionError::TooLarge { len, max });
        }
        Ok((frame.len() + PREFIX + FRAME_COST).min(self.budget_bytes as usize) as u32)
    }

    fn ended(&self) -> SessionError {
        self.common.sending_ended.get().cloned().unwrap_or(SessionError::Closed)
    }
}

/// Our direction of a stream. Dropped while armed, it tells the peer that the exchange is off,
/// where quinn alone would end the direction as if all had been said.
pub(crate) struct Sending {
    pub(crate) stream: SendStream,
    pub(crate) armed: bool,
}

impl Sending {
    pub(crate) fn new(stream: SendStream) -> Self {
        Self { stream, armed: true }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if self.armed {
            // Fails only when the direction is closed already.
            let _ = self.stream.reset(code::CANCELLED);
        }
    }
}

/// The task between the queue and the stream.
struct Writer {
    stream: Sending,
    queue: mpsc::Receiver<Queued>,
    budget: Arc<Semaphore>,
    common: Arc<Common>,
}

impl Writer {
    async fn run(mut self) {
        let end = self.write().await;
        if matches!(end, SessionError::TooLarge { .. }) {
            // Fails only when the stream is gone already, which is what it is for.
            let _ = self.stream.stream.reset(code::PROTOCOL);
        }
        // The reason first: senders look for it as soon as queue and budget turn them away.
        let _ = self.common.sending_ended.set(end);
        self.budget.close();
        self.queue.close();
    }

    /// Writes until the session ends; says why.
    async fn write(&mut self) -> SessionError {
        let mut stopped = std::pin::pin!(self.stream.stream.stopped());
        let mut waiting = Vec::with_capacity(BATCH_FRAMES);
        let mut pieces = Vec::new();
        loop {
            let count = tokio::select! {
                biased;
                () = self.common.abort.cancelled() => return self.aborted(),
                stop = &mut stopped => return stop_reason(stop),
                count = self.queue.recv_many(&mut waiting, BATCH_FRAMES) => count,
            };
            if count == 0 {
                // Every sender is gone. Hold on to the stream until the peer has all of it: were
                // this the last hold on the connection, letting go would cut the tail off.
                let _ = self.stream.stream.finish();
                let _ = stopped.await;
                return SessionError::Closed;
            }
            frames::join(waiting.iter().map(|queued| queued.frame.clone()), &mut pieces);
            let written = tokio::select! {
                biased;
                () = self.common.abort.cancelled() => return self.aborted(),
                written = self.stream.stream.write_all_chunks(&mut pieces) => written,
            };
            if let Err(error) = written {
                return write_reason(&error);
            }
            pieces.clear();
            waiting.clear();
        }
    }

    fn aborted(&self) -> SessionError {
        self.common.sending_ended.get().cloned().unwrap_or(SessionError::Closed)
    }
}

fn stop_reason(stop: Result<Option<VarInt>, StoppedError>) -> SessionError {
    match stop {
        Ok(Some(code)) => session_ended(code),
        Ok(None) | Err(StoppedError::ZeroRttRejected) => SessionError::Closed,
        Err(StoppedError::ConnectionLost(error)) => session_lost(&error),
    }
}

fn write_reason(error: &WriteError) -> SessionError {
    match error {
        WriteError::Stopped(code) => session_ended(*code),
        WriteError::ConnectionLost(error) => session_lost(error),
        WriteError::ClosedStream | WriteError::ZeroRttRejected => SessionError::Closed,
    }
}

/// Receives frames of a session.
pub struct FrameReceiver {
    stream: RecvStream,
    splitter: Splitter,
    /// Pieces taken from the stream: those in `next..filled` are still to be read.
    input: [Bytes; READ_PIECES],
    next: usize,
    filled: usize,
    end: Option<Result<(), SessionError>>,
    common: Arc<Common>,
}

impl fmt::Debug for FrameReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameReceiver").field("end", &self.end).finish_non_exhaustive()
    }
}

impl FrameReceiver {
    /// The next frame; `None` when the peer ended its direction in order. Whatever ended the
    /// session is returned again by every later call.
    ///
    /// Can be dropped while it waits without losing anything.
    ///
    /// A frame that came in one datagram is a view into the buffer it was received in, which can
    /// hold up to 64 KiB of other traffic. Copy what is kept for long.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, SessionError> {
        loop {
            match self.take_frame() {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => {}
                Err(TooLong(len)) => self.abort(len),
            }
            if let Some(end) = &self.end {
                return end.clone().map(|()| None);
            }
            match self.stream.read_chunks(&mut self.input).await {
                Ok(Some(count)) => (self.next, self.filled) = (0, count),
                Ok(None) if self.splitter.at_boundary() => self.end = Some(Ok(())),
                Ok(None) => self.end = Some(Err(SessionError::Truncated)),
                Err(error) => self.end = Some(Err(read_reason(&error))),
            }
        }
    }

    /// The next frame of what is here already.
    fn take_frame(&mut self) -> Result<Option<Bytes>, TooLong> {
        for piece in &mut self.input[self.next..self.filled] {
            if let Some(frame) = self.splitter.next(piece)? {
                return Ok(Some(frame));
            }
            // Used up: let go of the buffer behind it.
            *piece = Bytes::new();
            self.next += 1;
        }
        Ok(None)
    }

    /// The peer announced a frame that it must not send: nothing it says can be trusted now.
    fn abort(&mut self, len: u32) {
        let error = SessionError::TooLarge { len: len.into(), max: FRAME_BYTES_MAX as u64 };
        let _ = self.stream.stop(code::PROTOCOL);
        let _ = self.common.sending_ended.set(error.clone());
        self.common.abort.cancel();
        self.input = Default::default();
        (self.next, self.filled) = (0, 0);
        self.end = Some(Err(error));
    }
}

fn read_reason(error: &ReadError) -> SessionError {
    match error {
        ReadError::Reset(code) => session_ended(*code),
        ReadError::ConnectionLost(error) => session_lost(error),
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
            SessionError::Closed
        }
    }
}
