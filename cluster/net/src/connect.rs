//! One attempt to reach a peer, and why it failed.

use crate::{
    endpoint::Shared,
    peer::DownReason,
    tls::{ALPN, SERVER_NAME},
    wire::{WELCOME, code, lost_reason},
};
use quinn::{ClientConfig, Connection, ConnectionError, ReadExactError};
use smalti_storage::ids::NodeId;
use std::{net::SocketAddr, sync::Arc};

/// QUIC's transport error codes that carry a TLS alert (RFC 9001, 4.8).
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;

/// Connects to `node` at `addr` and waits until it has let us in.
pub(crate) async fn dial(
    shared: &Shared,
    node: NodeId,
    addr: SocketAddr,
) -> Result<Connection, DownReason> {
    let failed = |text: String| DownReason::Unreachable(text);
    let tls = shared.tls.client(node, ALPN).map_err(|e| failed(e.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(shared.dial_transport.clone());
    let connecting =
        shared.quinn.connect_with(config, addr, SERVER_NAME).map_err(|e| failed(e.to_string()))?;
    let attempt = async {
        let connection = connecting.await.map_err(|e| down_reason(&e))?;
        welcomed(&connection).await?;
        Ok(connection)
    };
    let timeout = shared.config.connect_timeout;
    tokio::time::timeout(timeout, attempt)
        .await
        .unwrap_or_else(|_| Err(failed(format!("no answer within {timeout:?}"))))
}

/// Waits for the acceptor's word. In TLS 1.3 the dialer's handshake is complete before the
/// acceptor has seen its certificate.
async fn welcomed(connection: &Connection) -> Result<(), DownReason> {
    let mut stream = connection.accept_uni().await.map_err(|e| down_reason(&e))?;
    let mut welcome = [0; WELCOME.len()];
    match stream.read_exact(&mut welcome).await {
        Ok(()) if welcome == WELCOME => Ok(()),
        Err(ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error))) => {
            Err(down_reason(&error))
        }
        Ok(()) | Err(_) => {
            connection.close(code::PROTOCOL, b"no welcome");
            Err(DownReason::Refused("peer sent something else than its welcome".into()))
        }
    }
}

/// Sorts a failure by whether anybody is there.
pub(crate) fn down_reason(error: &ConnectionError) -> DownReason {
    let refused = match error {
        ConnectionError::TransportError(error) => TLS_ALERTS.contains(&u64::from(error.code)),
        ConnectionError::ConnectionClosed(close) => {
            TLS_ALERTS.contains(&u64::from(close.error_code))
        }
        ConnectionError::ApplicationClosed(close) => close.error_code != code::CLOSED,
        ConnectionError::VersionMismatch => true,
        _ => false,
    };
    let text = lost_reason(error);
    if refused { DownReason::Refused(text) } else { DownReason::Unreachable(text) }
}
