//! Connections of the control API: bounded in number, in header size and in time.

use super::error::ApiError;
use super::routes::{ApiState, Way, router};
use crate::files;
use anyhow::Context;
use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::serve;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::fs::{self, Permissions};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Of each socket.
const CONNECTIONS_MAX: usize = 256;
const HEADER_BYTES_MAX: usize = 16 << 10;
/// How long requests under way may go on when the node stops. Changes go on without their client.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(3);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The bound sockets of the API.
#[derive(Debug)]
pub struct ApiServer {
    tcp: TcpListener,
    unix: UnixListener,
}

impl ApiServer {
    /// Binds both sockets. An old Unix socket at the path is replaced: whoever runs a node holds
    /// the lock of its folder.
    ///
    /// # Errors
    /// A socket can not be bound, naming it.
    pub async fn bind(tcp: SocketAddr, unix: &Path) -> anyhow::Result<Self> {
        let tcp =
            TcpListener::bind(tcp).await.with_context(|| format!("bind control API to {tcp}"))?;
        Ok(Self { tcp, unix: bind_unix(unix)? })
    }

    /// The TCP address.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn tcp_address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves on `tasks` until `stop`; requests that are under way then get their answers.
    pub fn start(self, state: ApiState, tasks: &TaskTracker, stop: &CancellationToken) {
        let unix_router = router(state.clone(), Way::Unix);
        let tcp_router = router(state, Way::Tcp).layer(middleware::from_fn(local_host_only));
        // Each has slots of its own: whoever may use TCP must not lock the administrator out.
        let listener = || Listener {
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        let (for_tcp, for_unix) = (listener(), listener());
        let (tcp, unix) = (self.tcp, self.unix);
        tasks.spawn(async move { for_tcp.run(tcp_router, tcp).await });
        tasks.spawn(async move { for_unix.run(unix_router, unix).await });
    }
}

/// Binds a Unix socket with mode 0600, in place of an old one.
///
/// # Errors
/// The path is taken by something that is no socket, or can not be bound.
pub fn bind_unix(path: &Path) -> anyhow::Result<UnixListener> {
    let bind = || -> anyhow::Result<UnixListener> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => anyhow::bail!("the path is taken by something that is not a socket"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(files::PRIVATE))?;
        Ok(listener)
    };
    bind().with_context(|| format!("bind {}", path.display()))
}

struct Listener {
    slots: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Listener {
    async fn run<L: serve::Listener>(&self, router: Router, mut listener: L) {
        loop {
            // A slot first: connections beyond the limit wait in the listen queue.
            let accepted = self.stop.run_until_cancelled(async {
                let slot = Arc::clone(&self.slots).acquire_owned().await;
                // The listener logs failures of its own and tries again.
                (slot, listener.accept().await)
            });
            let Some((Ok(slot), (stream, _address))) = accepted.await else { return };
            let (router, stop) = (router.clone(), self.stop.clone());
            self.tasks.spawn(async move {
                serve_connection(stream, router, stop).await;
                drop(slot);
            });
        }
    }
}

async fn serve_connection<S>(stream: S, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            // A client that takes a volume's contents at its leisure must not keep the node from
            // stopping in order.
            match tokio::time::timeout(GOODBYE_TIMEOUT, connection).await {
                Ok(ended) => ended,
                Err(_) => return tracing::debug!("a control API connection was cut off"),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "control API connection ended");
    }
}

/// A browser that was led here by a foreign name sends that name; so only our own are served.
async fn local_host_only(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if host.is_some_and(is_local_host) {
        return next.run(request).await;
    }
    let message = "the Host header must name localhost or a loopback address";
    ApiError::http(StatusCode::FORBIDDEN, message).into_response()
}

fn is_local_host(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_hosts_are_local() {
        for host in ["127.0.0.1", "127.0.0.1:80", "localhost", "LOCALHOST:1", "[::1]:9", "[::1]"] {
            assert!(is_local_host(host), "{host}");
        }
        for host in ["", "example.com", "127.0.0.1.example.com:80", "localhost.x", "10.0.0.1:80"] {
            assert!(!is_local_host(host), "{host}");
        }
    }
}
