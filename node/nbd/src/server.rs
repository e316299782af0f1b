//! Listeners, the set of connections, and their orderly end.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::device::Exports;
use crate::handshake::negotiate;
use crate::limits::{Limits, LimitsError};
use crate::transmission::{Connection, End};

/// Pause after an accept that failed for want of something, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Beyond `stop_timeout`, for the connections to notice that it has passed.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// Serves one set of exports on any number of listeners, under one set of limits.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

/// What all connections of a server have in common.
pub(crate) struct Shared {
    pub(crate) exports: Arc<dyn Exports>,
    pub(crate) limits: Limits,
    /// One permit per payload byte in flight.
    pub(crate) bytes: Arc<Semaphore>,
    /// Connections that wait for `bytes`.
    pub(crate) waiting: AtomicUsize,
    connections: AtomicUsize,
}

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix {
        /// The socket.
        listener: UnixListener,
        /// The users whose processes may connect; everyone who can open the socket if `None`.
        uids: Option<Vec<u32>>,
    },
}

/// Who is on the other end, for logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// By TCP.
    Tcp(SocketAddr),
    /// By a Unix socket, with what the kernel knows of the process.
    Unix {
        /// Its user.
        uid: u32,
        /// Its process number, if known.
        pid: Option<i32>,
    },
    /// By any other stream.
    Other(&'static str),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix { uid, pid: Some(pid) } => write!(f, "unix:uid={uid},pid={pid}"),
            Self::Unix { uid, pid: None } => write!(f, "unix:uid={uid}"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("limits", &self.shared.limits)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl Server {
    /// A server of `exports` that keeps to `limits`.
    ///
    /// # Errors
    /// If the limits contradict each other.
    pub fn new(exports: Arc<dyn Exports>, limits: Limits) -> Result<Self, LimitsError> {
        limits.validate()?;
        let shared = Shared {
            exports,
            bytes: Arc::new(Semaphore::new(limits.total_bytes_max)),
            waiting: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            limits,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Connections at the moment, over all listeners.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Payload bytes of all requests in flight at the moment.
    pub fn bytes_in_flight(&self) -> usize {
        self.shared.limits.total_bytes_max.saturating_sub(self.shared.bytes.available_permits())
    }

    /// Accepts and serves connections until `stop` is cancelled; then lets the requests in flight
    /// end, within `stop_timeout`, and returns when the last connection is closed.
    pub async fn serve(&self, listener: Listener, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        let mut refusing = false;
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
                Some(ended) = connections.join_next() => {
                    report(ended);
                    continue;
                }
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_of_one_client(&error) => continue,
                Err(error) => {
                    warn!(%error, "cannot accept connections");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if !listener.allows(&peer) {
                warn!(%peer, "connection refused: the user is not allowed");
                continue;
            }
            let Some(slot) = Slot::take(&self.shared) else {
                if !refusing {
                    warn!(%peer, "connection refused: too many connections");
                }
                refusing = true;
                continue;
            };
            refusing = false;
            let (shared, stop) = (Arc::clone(&self.shared), stop.child_token());
            match stream {
                Stream::Tcp(stream) => {
                    connections.spawn(serve_one(shared, stream, peer, stop, slot));
                }
                Stream::Unix(stream) => {
                    connections.spawn(serve_one(shared, stream, peer, stop, slot));
                }
            }
        }
        drop(listener);
        let all = async {
            while let Some(ended) = connections.join_next().await {
                report(ended);
            }
        };
        if timeout(self.shared.limits.stop_timeout + DRAIN_GRACE, all).await.is_err() {
            warn!(connections = connections.len(), "cut connections that did not end in time");
            connections.shutdown().await;
        }
    }

    /// Serves one connection on a stream that exists already, until it ends or `stop` is
    /// cancelled. Returns at once, closing the stream, if there are too many connections.
    pub async fn serve_stream<S>(&self, stream: S, peer: Peer, stop: &CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        match Slot::take(&self.shared) {
            Some(slot) => {
                serve_one(Arc::clone(&self.shared), stream, peer, stop.child_token(), slot).await;
            }
            None => warn!(%peer, "connection refused: too many connections"),
        }
    }
}

/// The connection's place among `connections_max`.
struct Slot(Arc<Shared>);

impl Slot {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let slot = Self(Arc::clone(shared));
        let before = shared.connections.fetch_add(1, Ordering::Relaxed);
        (before < shared.limits.connections_max).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve_one<S>(
    shared: Arc<Shared>,
    mut stream: S,
    peer: Peer,
    stop: CancellationToken,
    _slot: Slot,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    debug!(%peer, "connected");
    let negotiated = tokio::select! {
        negotiated = negotiate(&mut stream, &shared) => negotiated,
        () = stop.cancelled() => return,
    };
    let session = match negotiated {
        Ok(Some(session)) => session,
        Ok(None) => return debug!(%peer, "left during the negotiation"),
        Err(error) => return debug!(%peer, ?error, "negotiation failed"),
    };
    let export = session.info.name.clone();
    info!(%peer, %export, "export opened");
    match Connection::new(stream, session, shared).run(&stop).await {
        end @ (End::Magic | End::TooLarge(_) | End::Stalled) => {
            warn!(%peer, %export, reason = %end, "export closed");
        }
        end => info!(%peer, %export, reason = %end, "export closed"),
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "a connection panicked");
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// A Unix socket open to everyone the file's mode lets in.
    pub fn unix(listener: UnixListener) -> Self {
        Self::Unix { listener, uids: None }
    }

    async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Replies are gathered here already; waiting for more would only add delay.
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), Peer::Tcp(address)))
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                let who = stream.peer_cred()?;
                Ok((Stream::Unix(stream), Peer::Unix { uid: who.uid(), pid: who.pid() }))
            }
        }
    }

    fn allows(&self, peer: &Peer) -> bool {
        match (self, peer) {
            (Self::Unix { uids: Some(uids), .. }, Peer::Unix { uid, .. }) => uids.contains(uid),
            _ => true,
        }
    }
}

/// Errors of accepting that say nothing about the listener.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, Interrupted, InvalidInput, NotConnected,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionReset
            | BrokenPipe
            | Interrupted
            | NotConnected
            | InvalidInput
    )
}
