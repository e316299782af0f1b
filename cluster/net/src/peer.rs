//! A handle to another node: one shared connection, made when it is needed.

use crate::{
    backoff::Backoff,
    connect::{dial, down_reason},
    endpoint::Shared,
    error::CallError,
    session::{Sending, Session},
    wire::{HELLO_BYTES_MAX, Header, Kind, REQUEST_BYTES_MAX, lost, read_answer, write_error},
};
use bytes::Bytes;
use quinn::{Connection, RecvStream};
use smalti_storage::ids::NodeId;
use std::{
    fmt,
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Small requests overtake the bulk of sessions: consensus must not wait behind data.
const OVERTAKING_MAX: usize = 64 << 10;

/// Why there is no connection to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DownReason {
    /// Nobody has asked for one yet, or one is being made for the first time.
    Idle,
    /// Nobody answers.
    Unreachable(String),
    /// The peer is there and one side does not accept the other.
    Refused(String),
    /// There was a connection; it broke.
    Lost(String),
    /// Closed on our side.
    Closed,
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("not connected yet"),
            Self::Unreachable(text) | Self::Refused(text) | Self::Lost(text) => f.write_str(text),
            Self::Closed => f.write_str("closed here"),
        }
    }
}

/// Whether a peer is connected, as far as the transport knows. A peer that is up may still be
/// frozen: only its answers tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// There is a connection.
    Up,
    /// There is none.
    Down(DownReason),
}

/// Figures of the connection to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStats {
    /// The estimated round trip.
    pub round_trip: Duration,
    /// The size of datagrams now, in bytes of UDP payload.
    pub datagram_bytes: u16,
    /// What may be in flight, in bytes.
    pub window_bytes: u64,
    /// Datagrams sent so far.
    pub sent: u64,
    /// Packets lost so far.
    pub lost: u64,
}

enum Link {
    Down(DownReason),
    Dialling,
    Up(Connection),
}

/// The connection and what is known of it. Kept apart from [`Inner`], so that the task which
/// looks after it does not keep the handle alive.
struct Line {
    node: NodeId,
    addr: SocketAddr,
    shared: Arc<Shared>,
    link: watch::Sender<Link>,
    state: watch::Sender<PeerState>,
    backoff: Mutex<Backoff>,
    /// The last handle is gone.
    dropped: CancellationToken,
}

pub(crate) struct Inner {
    line: Arc<Line>,
    _drop: DropGuard,
}

/// A handle to a node at an address. Clones share one connection, which is made on the first use
/// and again whenever it broke; attempts are spaced out by a growing pause.
#[derive(Clone)]
pub struct Peer {
    inner: Arc<Inner>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("node", &self.node()).field("addr", &self.addr()).finish()
    }
}

impl Peer {
    pub(crate) fn new(shared: Arc<Shared>, node: NodeId, addr: SocketAddr) -> Self {
        let backoff = Backoff::new(shared.config.backoff_min, shared.config.backoff_max);
        let dropped = shared.closing.child_token();
        let line = Line {
            node,
            addr,
            shared,
            link: watch::Sender::new(Link::Down(DownReason::Idle)),
            state: watch::Sender::new(PeerState::Down(DownReason::Idle)),
            backoff: Mutex::new(backoff),
            dropped: dropped.clone(),
        };
        Self { inner: Arc::new(Inner { line: Arc::new(line), _drop: dropped.drop_guard() }) }
    }

    pub(crate) fn from_inner(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.inner.line.node
    }

    /// Where it is dialled.
    pub fn addr(&self) -> SocketAddr {
        self.inner.line.addr
    }

    /// Whether there is a connection now.
    pub fn state(&self) -> PeerState {
        self.inner.line.state.borrow().clone()
    }

    /// Follows [`state`](Self::state).
    pub fn watch(&self) -> watch::Receiver<PeerState> {
        self.inner.line.state.subscribe()
    }

    /// Figures of the connection, if there is one.
    pub fn stats(&self) -> Option<PeerStats> {
        let path = match &*self.inner.line.link.borrow() {
            Link::Up(connection) => connection.stats().path,
            Link::Down(_) | Link::Dialling => return None,
        };
        Some(PeerStats {
            round_trip: path.rtt,
            datagram_bytes: path.current_mtu,
            window_bytes: path.cwnd,
            sent: path.sent_packets,
            lost: path.lost_packets,
        })
    }

    /// Makes sure there is a connection.
    pub async fn connect(&self, timeout: Duration) -> Result<(), CallError> {
        self.within(Instant::now() + timeout, timeout).await.map(drop)
    }

    /// Sends `request` to a service of the peer and returns its answer. Each call has its own
    /// stream: calls do not wait for each other.
    ///
    /// When `timeout` passes, or the future is dropped, the peer is told not to bother sending
    /// the answer; it may act on the request all the same. Nothing is ever sent twice.
    ///
    /// # Errors
    /// See [`CallError`]; [`CallError::may_have_acted`] tells whether the request can be sent
    /// again without care.
    pub async fn call(
        &self,
        service: u8,
        request: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        within_limit(request.len(), REQUEST_BYTES_MAX)?;
        let deadline = Instant::now() + timeout;
        let connection = self.within(deadline, timeout).await?;
        let exchange = async {
            let len = request.len();
            let (mut send, mut recv) = self.open(&connection, Kind::Call, service, request).await?;
            // Fails only when the peer stopped us already; its answer says why.
            let _ = send.stream.finish();
            let answer = read_answer(&mut recv, self.node(), len, REQUEST_BYTES_MAX).await;
            send.armed = false;
            answer
        };
        self.by(deadline, timeout, exchange).await
    }

    /// Opens a session with a service of the peer. `hello` tells it what for, in the words and
    /// the version of that service.
    ///
    /// # Errors
    /// As [`call`](Self::call). After a timeout the peer may have seen a session that has ended.
    pub async fn open_session(
        &self,
        service: u8,
        hello: Bytes,
        timeout: Duration,
    ) -> Result<Session, CallError> {
        within_limit(hello.len(), HELLO_BYTES_MAX)?;
        let deadline = Instant::now() + timeout;
        let connection = self.within(deadline, timeout).await?;
        let exchange = async {
            let len = hello.len();
            let (send, mut recv) = self.open(&connection, Kind::Session, service, hello).await?;
            read_answer(&mut recv, self.node(), len, 0).await?;
            let shared = &self.inner.line.shared;
            Ok(Session::start(send, recv, &shared.config, &shared.tasks))
        };
        self.by(deadline, timeout, exchange).await
    }

    async fn open(
        &self,
        connection: &Connection,
        kind: Kind,
        service: u8,
        payload: Bytes,
    ) -> Result<(Sending, RecvStream), CallError> {
        let node = self.node();
        let (send, recv) = connection.open_bi().await.map_err(|e| lost(&e, node))?;
        let mut send = Sending::new(send);
        let len = payload.len();
        if kind == Kind::Call && len <= OVERTAKING_MAX {
            // Fails only when the stream is closed already, which writing would tell.
            let _ = send.stream.set_priority(1);
        }
        // Both payload limits are far below 4 GiB.
        let header = Header { kind, service, len: len as u32 }.encode();
        let mut pieces = [Bytes::copy_from_slice(&header), payload];
        match send.stream.write_all_chunks(&mut pieces).await {
            // The peer read enough to know its answer, which says why.
            Ok(()) | Err(quinn::WriteError::Stopped(_)) => Ok((send, recv)),
            Err(error) => Err(write_error(&error, node)),
        }
    }

    /// The connection, made if need be.
    async fn within(&self, deadline: Instant, timeout: Duration) -> Result<Connection, CallError> {
        let node = self.node();
        match tokio::time::timeout_at(deadline.into(), self.connection()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(DownReason::Refused(reason))) => Err(CallError::Refused { node, reason }),
            Ok(Err(reason)) => Err(CallError::Unreachable { node, reason: reason.to_string() }),
            Err(_) => {
                let reason = format!("no connection within {timeout:?}");
                Err(CallError::Unreachable { node, reason })
            }
        }
    }

    async fn connection(&self) -> Result<Connection, DownReason> {
        let line = &self.inner.line;
        if let Link::Up(connection) = &*line.link.borrow()
            && connection.close_reason().is_none()
        {
            return Ok(connection.clone());
        }
        let mut changes = line.link.subscribe();
        let mut tried = false;
        loop {
            let (mut begin, mut outcome) = (false, None);
            line.link.send_if_modified(|link| {
                match link {
                    Link::Up(connection) if connection.close_reason().is_none() => {
                        outcome = Some(Ok(connection.clone()));
                    }
                    // Dead, and its keeper is about to notice.
                    Link::Up(_) => {}
                    Link::Dialling => tried = true,
                    Link::Down(reason) if tried || *reason == DownReason::Closed => {
                        outcome = Some(Err(reason.clone()));
                    }
                    Link::Down(_) => {
                        *link = Link::Dialling;
                        begin = true;
                        tried = true;
                    }
                }
                begin
            });
            if let Some(outcome) = outcome {
                return outcome;
            }
            if begin {
                line.shared.tasks.spawn(line.clone().keep());
            }
            if changes.changed().await.is_err() {
                return Err(DownReason::Closed);
            }
        }
    }

    async fn by<T>(
        &self,
        deadline: Instant,
        after: Duration,
        exchange: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        tokio::time::timeout_at(deadline.into(), exchange)
            .await
            .unwrap_or_else(|_| Err(CallError::Timeout { node: self.node(), after }))
    }
}

fn within_limit(len: usize, max: usize) -> Result<(), CallError> {
    if len > max {
        return Err(CallError::TooLarge { len: len as u64, max: max as u64, sent: false });
    }
    Ok(())
}

impl Line {
    /// Makes one connection and looks after it until it ends.
    async fn keep(self: Arc<Self>) {
        let dropped = self.dropped.clone();
        let reason = tokio::select! {
            biased;
            () = dropped.cancelled() => DownReason::Closed,
            reason = self.dial_and_wait() => reason,
        };
        tracing::debug!(peer = %self.node, %reason, "peer down");
        self.state.send_replace(PeerState::Down(reason.clone()));
        self.link.send_replace(Link::Down(reason));
    }

    async fn dial_and_wait(&self) -> DownReason {
        let pause = self.with_backoff(|backoff| backoff.wait(Instant::now()));
        tokio::time::sleep(pause).await;
        let connection = match dial(&self.shared, self.node, self.addr).await {
            Ok(connection) => connection,
            Err(reason) => {
                self.with_backoff(|backoff| backoff.failed(Instant::now()));
                return reason;
            }
        };
        let since = Instant::now();
        tracing::debug!(peer = %self.node, addr = %self.addr, "peer up");
        self.link.send_replace(Link::Up(connection.clone()));
        self.state.send_replace(PeerState::Up);
        let reason = down_reason(&connection.closed().await);
        self.with_backoff(|backoff| backoff.lost(since, Instant::now()));
        match reason {
            DownReason::Unreachable(text) => DownReason::Lost(text),
            other => other,
        }
    }

    fn with_backoff<T>(&self, with: impl FnOnce(&mut Backoff) -> T) -> T {
        with(&mut self.backoff.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
