//! How a node gets another certificate, even when its own has expired: by a way in that leads nowhere
//! else.
//!
//! ```text
//! node                                                node that has the authority's key
//! dials with a connection id that says so  ---------> TLS 1.3, ALPN `smalti-renew/1`, both show theirs
//! 1                                        ---------> RenewalHost: who, and the key that was shown
//! checks what it got                       <--------- certificate, or a text that says why not
//! ```
//!
//! R1. All holds that holds between members, but that the certificate of who asks may be past its end:
//!     authority, cluster and membership are checked as ever, and so is whoever answers, its end too.
//! R2. What is signed is the key of the certificate on this connection, which TLS has had proven. The
//!     request names none, so nobody gets a certificate for a key that it does not have.
//! R3. Here is one stream, one byte and one answer. No service is reached.

use super::{
    dial, gate,
    host::{GOODBYE_TIMEOUT, HANDSHAKE_TIMEOUT, one_exchange, tell, validated},
    proof::JoinerKey,
    wire,
};
use crate::{
    endpoint::Shared,
    error::CredentialError,
    tls::{Expired, PeerPolicy, SERVER_NAME, Tls, peer_identity, peer_key},
    wire::{code, lost_reason},
};
use futures::future::BoxFuture;
use gate::{Gate, Place};
use quinn::{Connection, Incoming, ServerConfig};
use smalti_storage::ids::NodeId;
use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

/// Names this protocol and its version.
const ALPN: &[u8] = b"smalti-renew/1";

/// As the one of joiners.
pub(super) const MARK: [u8; 8] = *b"smltrnew";

const REQUEST_BYTES_MAX: usize = 16;

/// A certificate has about a thousand letters.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// How long it may take to sign.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

type Answer = Result<String, String>;

/// Signs for members.
pub trait RenewalHost: Send + Sync + 'static {
    /// A certificate in PEM for a member and the key that it has shown to have, or in one line why
    /// not.
    fn renew(&self, node: NodeId, key: JoinerKey) -> BoxFuture<'_, Result<String, String>>;
}

/// Why a node that was asked gave no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RenewalError {
    /// No answer came from it.
    #[error("{node} is not reached: {why}")]
    Unreached {
        /// The node.
        node: NodeId,
        /// What the transport says.
        why: String,
    },
    /// It does not sign.
    #[error("{node}: {why}")]
    Refused {
        /// The node.
        node: NodeId,
        /// Why not, in its words.
        why: String,
    },
}

/// What an endpoint needs to answer those who renew.
pub(super) struct Renewing {
    config: Arc<ServerConfig>,
    gate: Arc<Gate>,
    host: RwLock<Option<Arc<dyn RenewalHost>>>,
}

impl fmt::Debug for Renewing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewing").finish_non_exhaustive()
    }
}

impl Renewing {
    pub(super) fn new(tls: &Tls, policy: Arc<dyn PeerPolicy>) -> Result<Self, CredentialError> {
        let config = one_exchange(tls.server(policy, ALPN, Expired::Allowed)?);
        Ok(Self { config: Arc::new(config), gate: Arc::default(), host: RwLock::default() })
    }

    pub(super) fn set(&self, host: Option<Arc<dyn RenewalHost>>) {
        // Held for an assignment, which does not panic half done.
        *self.host.write().unwrap_or_else(PoisonError::into_inner) = host;
    }

    fn host(&self) -> Option<Arc<dyn RenewalHost>> {
        self.host.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answers a node that wants a certificate, if there is room for one.
pub(super) fn take(shared: &Arc<Shared>, incoming: Incoming) {
    let Some(incoming) = validated(incoming) else { return };
    let renewing = &shared.hosting.renewing;
    let place = renewing.gate.enter(incoming.remote_address());
    let (Some(host), Some(place)) = (renewing.host(), place) else {
        incoming.refuse();
        return;
    };
    shared.tasks.spawn(answer(Arc::clone(shared), incoming, host, place));
}

async fn answer(shared: Arc<Shared>, incoming: Incoming, host: Arc<dyn RenewalHost>, place: Place) {
    let addr = incoming.remote_address();
    let config = Arc::clone(&shared.hosting.renewing.config);
    let arrival = async {
        let connection = incoming.accept_with(config).ok()?.await.ok()?;
        let (send, mut recv) = connection.accept_bi().await.ok()?;
        let request = recv.read_to_end(REQUEST_BYTES_MAX).await.ok()?;
        Some((connection, send, request))
    };
    let arrived = tokio::time::timeout(HANDSHAKE_TIMEOUT, arrival).await;
    let Ok(Some((connection, mut send, request))) = arrived else {
        tracing::debug!(%addr, "nobody who may renew a certificate");
        return;
    };
    let answer = decide(&shared, &connection, &request, &*host).await;
    if let Err(why) = &answer {
        tracing::info!(%addr, why, "no certificate was given");
    }
    let sent = tokio::time::timeout(GOODBYE_TIMEOUT, tell(&mut send, &answer)).await;
    if !matches!(sent, Ok(Some(()))) {
        tracing::info!(%addr, "who wanted a certificate did not hear the answer");
    }
    connection.close(code::CLOSED, b"answered");
    drop(place);
}

async fn decide(
    shared: &Shared,
    connection: &Connection,
    request: &[u8],
    host: &dyn RenewalHost,
) -> Answer {
    wire::decode::<()>(request).ok_or("the request can not be read")?;
    let node = peer_identity(connection).map_err(|error| error.to_string())?.node;
    let key = peer_key(connection).ok_or("the certificate has no key on P-256")?;
    // Again, because the map may have changed since the handshake began.
    if !shared.policy.allow(node) {
        return Err(format!("{node} is not a member"));
    }
    let signed = tokio::time::timeout(ANSWER_TIMEOUT, host.renew(node, key)).await;
    signed.unwrap_or_else(|_| Err("it took too long".into()))
}

/// Asks a node for a certificate for the key that this one shows.
pub(crate) async fn ask(
    shared: &Shared,
    node: NodeId,
    addr: SocketAddr,
    timeout: Duration,
) -> Result<String, RenewalError> {
    let unreached = |why: String| RenewalError::Unreached { node, why: wire::one_line(&why) };
    let crypto = shared.tls.client(node, ALPN).map_err(|error| unreached(error.to_string()))?;
    let config = dial::one_exchange(crypto, MARK);
    let connecting = shared.quinn.connect_with(config, addr, SERVER_NAME);
    let connecting = connecting.map_err(|error| unreached(error.to_string()))?;
    let exchange = async {
        let connection = connecting.await.map_err(|error| unreached(lost_reason(&error)))?;
        let request = wire::encode(&()).ok_or_else(|| unreached("no request".into()))?;
        let said = dial::exchange(&connection, &request, ANSWER_BYTES_MAX).await;
        let lost = || match connection.close_reason() {
            Some(error) => unreached(lost_reason(&error)),
            None => unreached("its answer is cut short".into()),
        };
        let said = said.ok_or_else(lost);
        connection.close(code::CLOSED, b"done");
        said
    };
    let said = tokio::time::timeout(timeout, exchange).await;
    let said = said.unwrap_or_else(|_| Err(unreached(format!("no answer within {timeout:?}"))))?;
    match wire::decode::<Answer>(&said) {
        Some(Ok(certificate)) => Ok(certificate),
        Some(Err(why)) => Err(RenewalError::Refused { node, why: wire::one_line(&why) }),
        None => Err(unreached("its answer can not be read".into())),
    }
}
