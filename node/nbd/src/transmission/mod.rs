//! The transmission phase of one connection: one task reads requests, runs them and sends replies.
//!
//! One task and no locks: a request is polled once where it was read, and only what is not ready
//! at once goes to the set of running requests. Replies are sent when no further request can be
//! read without waiting, or when enough of them have gathered, so a busy connection needs few
//! system calls and an idle one answers at once.
//!
//! Back-pressure is not reading: past its limits a connection leaves the bytes in the socket.

mod answer;
mod input;
mod running;
mod share;

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tracing::{debug, warn};

use self::input::{BUFFERED_PAYLOAD_MAX, Input};
use self::running::{Outcome, Running, Ticket};
use self::share::Share;
use crate::outbox::{Outbox, Sent};
use crate::proto::{REQUEST_BYTES, Refusal, Request};
use crate::server::Shared;
use crate::session::Session;

/// Replies gathered before they are sent although more requests are at hand.
const GATHER_BYTES: usize = 256 * 1024;
/// Pieces per vectored write: thirty-two 4 KiB reads.
const SLICES_MAX: usize = 64;
/// Looks at a silent client within one stall time-out.
const STALL_TICKS: u32 = 4;
/// Between two looks a client has to move at least this fraction of the memory that it holds: a byte
/// now and then is as good as silence.
const STALL_PACE: usize = 16;

/// Time for a client to hang up after the server did.
const LINGER: Duration = Duration::from_secs(1);

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("the client disconnected")]
    Disconnected,
    #[error("the client left without a word")]
    Eof,
    #[error("the server is shutting down")]
    Shutdown,
    #[error("a request does not start with its magic number")]
    Magic,
    #[error("a refused write has a payload of {0} bytes")]
    TooLarge(u32),
    #[error("the client stalled while others waited for memory")]
    Stalled,
    #[error("the connection failed")]
    Io(#[source] io::Error),
}

/// Where the read side stands.
enum Reading {
    Header,
    /// A request waits for its share of memory.
    Admit(Ticket),
    Payload {
        ticket: Ticket,
        /// Own memory of a large payload; a small one is awaited in the buffer.
        data: Option<BytesMut>,
    },
    /// The payload of a refused write is skipped.
    Skip {
        left: u32,
        cookie: u64,
        refusal: Refusal,
    },
    Closed,
}

enum Step {
    /// Something happened; look again.
    Again,
    /// The socket, the device or the budget will wake the task.
    Wait,
    /// Send first.
    Flush,
}

pub(crate) struct Connection<S> {
    stream: S,
    session: Session,
    shared: Arc<Shared>,
    share: Share,
    input: Input,
    reading: Reading,
    running: FuturesUnordered<Running>,
    outbox: Outbox,
    unflushed: bool,
    writer_blocked: bool,
    /// Requests started whose replies have not left.
    in_flight: usize,
    end: Option<End>,
    stopping: bool,
    drain: Option<Pin<Box<Sleep>>>,
    /// The socket takes no more replies.
    broken: bool,
    /// Bytes that went through the socket, to tell a stalled client.
    moved: u64,
    moved_before: u64,
    silent_ticks: u32,
    device_errors: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn new(stream: S, session: Session, shared: Arc<Shared>) -> Self {
        Self {
            stream,
            session,
            share: Share::new(Arc::clone(&shared)),
            shared,
            input: Input::new(),
            reading: Reading::Header,
            running: FuturesUnordered::new(),
            outbox: Outbox::default(),
            unflushed: false,
            writer_blocked: false,
            in_flight: 0,
            end: None,
            stopping: false,
            drain: None,
            broken: false,
            moved: 0,
            moved_before: 0,
            silent_ticks: 0,
            device_errors: 0,
        }
    }

    /// Serves until the client leaves, breaks the protocol, or `stop` is cancelled; then lets the
    /// requests in flight end.
    pub(crate) async fn run(mut self, stop: &CancellationToken) -> End {
        let mut stopped = pin!(stop.cancelled());
        let period = (self.shared.limits.stall_timeout / STALL_TICKS).max(Duration::from_millis(1));
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = poll_fn(|cx| self.poll(cx, stopped.as_mut(), &mut ticks)).await;
        if !self.broken {
            // Whether the client hears it or not is its own affair by now.
            let _heard_or_not = timeout(LINGER, self.linger()).await;
        }
        end
    }

    /// Says goodbye and reads what the client still sends, up to its own goodbye: closing a TCP
    /// socket with bytes unread resets it, and a reset can overtake the last replies.
    async fn linger(&mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        let mut sink = [0; 4096];
        while self.stream.read(&mut sink).await? > 0 {}
        Ok(())
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stopped: Pin<&mut WaitForCancellationFuture<'_>>,
        ticks: &mut Interval,
    ) -> Poll<End> {
        if !self.stopping && stopped.poll(cx).is_ready() {
            self.stopping = true;
            self.close(End::Shutdown);
            self.drain_within(self.shared.limits.stop_timeout);
        }
        while ticks.poll_tick(cx).is_ready() {
            self.check_stall();
        }
        loop {
            let mut progress = self.poll_running(cx);
            progress |= self.poll_input(cx);
            progress |= self.poll_output(cx);
            if self.in_flight == 0
                && !self.unflushed
                && let Some(end) = self.end.take()
            {
                return Poll::Ready(end);
            }
            if !progress {
                break;
            }
        }
        if let Some(drain) = &mut self.drain
            && drain.as_mut().poll(cx).is_ready()
        {
            warn!(export = %self.session.info.name, requests = self.in_flight,
                "gave up on requests in flight of a closing connection");
            self.broken = true;
            return Poll::Ready(self.end.take().unwrap_or(End::Eof));
        }
        Poll::Pending
    }

    fn poll_running(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Poll::Ready(Some((ticket, outcome))) = self.running.poll_next_unpin(cx) {
            self.finish(ticket, outcome);
            progress = true;
            if self.gathered() {
                break;
            }
        }
        progress
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        loop {
            match self.step(cx) {
                Step::Again => progress = true,
                Step::Wait => return progress,
                // The next round must come back here even if nothing could be sent, because
                // nothing will wake the task for reading yet.
                Step::Flush => return true,
            }
        }
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Step {
        match mem::replace(&mut self.reading, Reading::Closed) {
            Reading::Closed => Step::Wait,
            Reading::Header => {
                self.reading = Reading::Header;
                if self.in_flight >= self.shared.limits.requests_in_flight_max {
                    return Step::Wait;
                }
                if self.gathered() {
                    return Step::Flush;
                }
                match self.input.buffered().first_chunk::<REQUEST_BYTES>() {
                    Some(header) => {
                        let request = Request::parse(header);
                        self.input.consume(REQUEST_BYTES);
                        self.handle_request(request);
                        Step::Again
                    }
                    None => self.fill(cx),
                }
            }
            Reading::Admit(ticket) => {
                let room = self.shared.limits.connection_bytes_max - self.share.held();
                if ticket.cost() as usize > room && self.share.held() > 0
                    || self.share.poll_take(cx, ticket.cost()).is_pending()
                {
                    self.reading = Reading::Admit(ticket);
                    return Step::Wait;
                }
                self.handle_admitted(cx, ticket);
                Step::Again
            }
            Reading::Payload { ticket, data: None } => {
                let length = ticket.length as usize;
                if let Some(payload) = self.input.buffered().get(..length) {
                    // A copy, so that a small write held for long does not hold the buffer.
                    let data = Bytes::copy_from_slice(payload);
                    self.input.consume(length);
                    self.reading = Reading::Header;
                    self.start(cx, ticket, data);
                    return Step::Again;
                }
                self.reading = Reading::Payload { ticket, data: None };
                self.fill(cx)
            }
            Reading::Payload { ticket, data: Some(data) } => self.fill_large(cx, ticket, data),
            Reading::Skip { left, cookie, refusal } => {
                let buffered = self.input.buffered().len();
                let part = buffered.min(left as usize);
                self.input.consume(part);
                let left = left - u32::try_from(part).expect("not more than left");
                if left == 0 {
                    self.reading = Reading::Header;
                    self.refuse(cookie, refusal);
                    return Step::Again;
                }
                self.reading = Reading::Skip { left, cookie, refusal };
                self.fill(cx)
            }
        }
    }

    fn handle_request(&mut self, request: Option<Request>) {
        let Some(request) = request else {
            return self.close(End::Magic);
        };
        let cookie = request.cookie;
        match request.check(&self.session.rules) {
            Ok(None) => self.close(End::Disconnected),
            Ok(Some(operation)) => {
                let Request { offset, length, .. } = request;
                self.reading = Reading::Admit(Ticket { cookie, operation, offset, length });
            }
            Err(refusal) => match request.payload_bytes() {
                0 => self.refuse(cookie, refusal),
                left if left <= self.shared.limits.drain_bytes_max => {
                    self.reading = Reading::Skip { left, cookie, refusal };
                }
                left => self.close(End::TooLarge(left)),
            },
        }
    }

    fn handle_admitted(&mut self, cx: &mut Context<'_>, ticket: Ticket) {
        let length = ticket.length as usize;
        if !matches!(ticket.operation, crate::proto::Operation::Write { .. }) {
            self.reading = Reading::Header;
            return self.start(cx, ticket, Bytes::new());
        }
        let data = (length > BUFFERED_PAYLOAD_MAX).then(|| {
            let mut data = BytesMut::with_capacity(length);
            let buffered = self.input.buffered();
            let part = buffered.len().min(length);
            data.extend_from_slice(&buffered[..part]);
            self.input.consume(part);
            data
        });
        self.reading = Reading::Payload { ticket, data };
    }

    fn fill_large(&mut self, cx: &mut Context<'_>, ticket: Ticket, mut data: BytesMut) -> Step {
        let missing = ticket.length as usize - data.len();
        if missing == 0 {
            self.reading = Reading::Header;
            self.start(cx, ticket, data.freeze());
            return Step::Again;
        }
        if self.should_flush() {
            self.reading = Reading::Payload { ticket, data: Some(data) };
            return Step::Flush;
        }
        let read = {
            let mut into = (&mut data).limit(missing);
            // One poll of a future that keeps no state between polls.
            pin!(self.stream.read_buf(&mut into)).poll(cx)
        };
        self.reading = Reading::Payload { ticket, data: Some(data) };
        self.filled(read)
    }

    fn fill(&mut self, cx: &mut Context<'_>) -> Step {
        if self.should_flush() {
            return Step::Flush;
        }
        let read = self.input.poll_fill(&mut self.stream, cx);
        self.filled(read)
    }

    fn filled(&mut self, read: Poll<io::Result<usize>>) -> Step {
        match read {
            Poll::Pending => return Step::Wait,
            Poll::Ready(Ok(0)) => self.close(End::Eof),
            Poll::Ready(Ok(count)) => self.moved += count as u64,
            Poll::Ready(Err(error)) => self.break_off(End::Io(error)),
        }
        Step::Again
    }

    /// Replies wait and the socket may take them: send before waiting for the client.
    fn should_flush(&self) -> bool {
        !self.outbox.is_empty() && !self.writer_blocked
    }

    fn gathered(&self) -> bool {
        self.outbox.bytes() >= GATHER_BYTES && !self.writer_blocked
    }

    fn start(&mut self, cx: &mut Context<'_>, ticket: Ticket, data: Bytes) {
        self.in_flight += 1;
        let mut running = Running::start(&self.session, ticket, data);
        match Pin::new(&mut running).poll(cx) {
            Poll::Ready((ticket, outcome)) => self.finish(ticket, outcome),
            Poll::Pending => self.running.push(running),
        }
    }

    fn finish(&mut self, ticket: Ticket, outcome: Outcome) {
        if let Outcome::Failed(error) = &outcome {
            self.device_errors += 1;
            let (export, count) = (&self.session.info.name, self.device_errors);
            // A device in trouble fails every request; the log must not fail with it.
            if count.is_power_of_two() {
                warn!(%export, count, ?ticket, kind = ?error.kind(), %error, "request failed");
            } else {
                debug!(%export, count, ?ticket, kind = ?error.kind(), %error, "request failed");
            }
        }
        if self.broken {
            self.account(Sent { replies: 1, cost: ticket.cost() as usize });
        } else {
            answer::answer(&mut self.outbox, &self.session, ticket, outcome);
        }
    }

    fn refuse(&mut self, cookie: u64, refusal: Refusal) {
        debug!(export = %self.session.info.name, cookie, ?refusal, "request refused");
        self.in_flight += 1;
        answer::refuse(&mut self.outbox, self.session.rules.structured, cookie, refusal);
    }

    fn account(&mut self, sent: Sent) {
        self.in_flight -= sent.replies;
        self.share.give_back(sent.cost);
    }

    fn poll_output(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while !self.outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let filled = self.outbox.slices(&mut slices);
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..filled]) {
                Poll::Pending => {
                    self.writer_blocked = true;
                    return progress;
                }
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.moved += count as u64;
                    self.unflushed = true;
                    let sent = self.outbox.advance(count);
                    self.account(sent);
                }
                Poll::Ready(Ok(_)) => self.break_off(End::Io(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Err(error)) => self.break_off(End::Io(error)),
            }
            progress = true;
        }
        self.writer_blocked = false;
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Pending => return progress,
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => self.break_off(End::Io(error)),
            }
            progress = true;
        }
        progress
    }

    /// Reads no more; what is in flight goes on until `drain_timeout`, or `stop_timeout` once the server
    /// stops.
    fn close(&mut self, end: End) {
        if let Reading::Payload { ticket, .. } = mem::replace(&mut self.reading, Reading::Closed) {
            self.share.give_back(ticket.cost() as usize);
        }
        self.share.leave_queue();
        if self.end.is_none() {
            self.end = Some(end);
            self.drain_within(self.shared.limits.drain_timeout);
        }
    }

    /// Gives what is in flight that long, if it has not less already.
    fn drain_within(&mut self, limit: Duration) {
        let until = Instant::now() + limit;
        if self.drain.as_ref().is_none_or(|drain| drain.deadline() > until) {
            self.drain = Some(Box::pin(sleep_until(until)));
        }
    }

    /// Reads no more and sends no more. The device still gets to finish what it began: a client
    /// that vanished is no reason to cut a write in two.
    fn break_off(&mut self, end: End) {
        self.broken = true;
        self.unflushed = false;
        let sent = self.outbox.discard();
        self.account(sent);
        self.close(end);
    }

    fn check_stall(&mut self) {
        let moved = self.moved - self.moved_before;
        self.moved_before = self.moved;
        if moved > (self.share.held() / STALL_PACE) as u64 {
            self.silent_ticks = 0;
            return;
        }
        let its_turn = self.writer_blocked || matches!(self.reading, Reading::Payload { .. });
        if !its_turn || self.share.held() == 0 {
            self.silent_ticks = 0;
            return;
        }
        self.silent_ticks += 1;
        if self.silent_ticks > STALL_TICKS && self.share.others_wait() {
            self.break_off(End::Stalled);
        }
    }
}
