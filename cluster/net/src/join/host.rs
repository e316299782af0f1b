//! The side that answers: lets joiners connect, and hands what they prove to whoever can sign.

use super::{
    ALPN,
    gate::{Gate, Place},
    proof::{self, Binding, JoinerKey},
    renew::{RenewalHost, Renewing},
    wire::{self, ASK_BYTES_MAX, Answer, Ask, JoinGrant, JoinWish, Signed},
};
use crate::{
    endpoint::Shared,
    error::CredentialError,
    tls::{PeerPolicy, Tls},
    wire::code,
};
use futures::future::BoxFuture;
use quinn::{
    Connection, IdleTimeout, Incoming, RecvStream, SendStream, ServerConfig, TransportConfig,
    VarInt, crypto::rustls::QuicServerConfig,
};
use serde::Serialize;
use smalti_storage::ids::TokenId;
use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

/// How long a joiner may take for its handshake, and for its message.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the cluster may take to agree.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(25);

/// How long a joiner may take to hear the answer.
pub(super) const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

const WINDOW: u32 = 64 << 10;

/// What a joiner asks, with its proofs.
pub struct JoinAsk {
    /// The token it says it has. See [`JoinAsk::is_proven_by`].
    pub token: TokenId,
    /// What it wants to be.
    pub wish: JoinWish,
    /// Its public key; that it has the private one is shown.
    pub key: JoinerKey,
    binding: Binding,
    bytes: Vec<u8>,
    proof: Vec<u8>,
}

impl fmt::Debug for JoinAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinAsk")
            .field("token", &self.token)
            .field("wish", &self.wish)
            .finish_non_exhaustive()
    }
}

impl JoinAsk {
    /// Whether it has the secret of the token that is checked with `proof_key`, and asked just this on
    /// just this connection.
    pub fn is_proven_by(&self, proof_key: &[u8; 32]) -> bool {
        proof::is_token_proven(proof_key, &self.binding, &self.bytes, &self.proof)
    }
}

/// Why a joiner was not taken in, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinDenial {
    /// Nothing has changed.
    Refused(String),
    /// It may be a member all the same.
    Undecided(String),
}

impl From<String> for JoinDenial {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

impl From<&str> for JoinDenial {
    fn from(why: &str) -> Self {
        Self::Refused(why.into())
    }
}

/// Decides about joiners.
pub trait JoinHost: Send + Sync + 'static {
    /// Takes a joiner in, or says why not. Nothing but the possession of its own key is proven when this
    /// is called.
    fn join(&self, ask: JoinAsk) -> BoxFuture<'_, Result<JoinGrant, JoinDenial>>;
}

/// What an endpoint needs to answer joiners.
pub(crate) struct Hosting {
    config: Arc<ServerConfig>,
    gate: Arc<Gate>,
    host: RwLock<Option<Arc<dyn JoinHost>>>,
    pub(super) renewing: Renewing,
}

impl fmt::Debug for Hosting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hosting").finish_non_exhaustive()
    }
}

impl Hosting {
    pub(crate) fn new(tls: &Tls, policy: Arc<dyn PeerPolicy>) -> Result<Self, CredentialError> {
        let config = Arc::new(one_exchange(tls.join_server(ALPN)?));
        let renewing = Renewing::new(tls, policy)?;
        Ok(Self { config, gate: Arc::default(), host: RwLock::default(), renewing })
    }

    pub(crate) fn set_renewals(&self, host: Option<Arc<dyn RenewalHost>>) {
        self.renewing.set(host);
    }

    pub(crate) fn set(&self, host: Option<Arc<dyn JoinHost>>) {
        // Held for an assignment, which does not panic half done.
        *self.host.write().unwrap_or_else(PoisonError::into_inner) = host;
    }

    fn host(&self) -> Option<Arc<dyn JoinHost>> {
        self.host.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Settings for a connection that has one stream each way and ends.
pub(super) fn one_exchange(crypto: QuicServerConfig) -> ServerConfig {
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.migration(false);
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(
            HANDSHAKE_TIMEOUT.as_millis() as u32
        ))))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .datagram_receive_buffer_size(None);
    config.transport_config(Arc::new(transport));
    config
}

/// Who does not receive what is sent to its address must not take a place away.
pub(super) fn validated(incoming: Incoming) -> Option<Incoming> {
    if incoming.remote_address_validated() {
        return Some(incoming);
    }
    if incoming.retry().is_err() {
        tracing::debug!("an address can not be validated");
    }
    None
}

/// Answers a joiner, if there is room for one.
pub(super) fn take(shared: &Arc<Shared>, incoming: Incoming) {
    let Some(incoming) = validated(incoming) else { return };
    let place = shared.hosting.gate.enter(incoming.remote_address());
    let (Some(host), Some(place)) = (shared.hosting.host(), place) else {
        incoming.refuse();
        return;
    };
    shared.tasks.spawn(answer(Arc::clone(shared), incoming, host, place));
}

async fn answer(shared: Arc<Shared>, incoming: Incoming, host: Arc<dyn JoinHost>, place: Place) {
    let addr = incoming.remote_address();
    let config = Arc::clone(&shared.hosting.config);
    let arrival = async {
        let connection = incoming.accept_with(config).ok()?.await.ok()?;
        let (send, mut recv) = connection.accept_bi().await.ok()?;
        let ask = read(&connection, &mut recv).await;
        Some((connection, send, ask))
    };
    let arrived = tokio::time::timeout(HANDSHAKE_TIMEOUT, arrival).await;
    let Ok(Some((connection, mut send, ask))) = arrived else {
        tracing::debug!(%addr, "a joiner did not get as far as to ask");
        return;
    };
    let answer = match ask {
        Err(why) => Answer::Refused(why.into()),
        Ok(ask) => {
            let token = ask.token;
            let decided = tokio::time::timeout(ANSWER_TIMEOUT, host.join(ask)).await;
            let late = || Err(JoinDenial::Undecided("the cluster did not agree in time".into()));
            match decided.unwrap_or_else(|_| late()) {
                Ok(grant) => {
                    tracing::info!(%addr, %token, node = %grant.node, "a node has joined");
                    Answer::Granted(grant)
                }
                // Told at more than that by who decides, and only of those who have a token: what
                // strangers can have written into a log must not be theirs.
                Err(JoinDenial::Refused(why)) => {
                    tracing::debug!(%addr, why, "a joiner was refused");
                    Answer::Refused(why)
                }
                Err(JoinDenial::Undecided(why)) => {
                    tracing::warn!(%addr, %token, why, "whether a joiner is in is not known");
                    Answer::Undecided(why)
                }
            }
        }
    };
    let sent = tokio::time::timeout(GOODBYE_TIMEOUT, tell(&mut send, &answer)).await;
    if !matches!(sent, Ok(Some(()))) {
        match answer {
            Answer::Granted(_) => {
                tracing::warn!(%addr, "a node that has joined did not hear of it")
            }
            _ => tracing::debug!(%addr, "a joiner did not hear the answer"),
        }
    }
    connection.close(code::CLOSED, b"answered");
    drop(place);
}

async fn read(connection: &Connection, recv: &mut RecvStream) -> Result<JoinAsk, &'static str> {
    const UNREADABLE: &str = "what was asked can not be read, or is not signed by its key";
    let message = recv.read_to_end(ASK_BYTES_MAX).await.map_err(|_| UNREADABLE)?;
    let Signed { ask: bytes, token_proof: proof, key_proof } =
        wire::decode(&message).ok_or(UNREADABLE)?;
    let ask: Ask = wire::decode(&bytes).ok_or(UNREADABLE)?;
    if !wire::is_name(&ask.wish.name) {
        return Err("what it wants to be called is not a name: 1 to 64 of a-z A-Z 0-9 . _ -");
    }
    let binding = proof::binding(connection).ok_or(UNREADABLE)?;
    let key = proof::proven_key(&ask, &binding, &bytes, &key_proof).ok_or(UNREADABLE)?;
    Ok(JoinAsk { token: ask.token, wish: ask.wish, key, binding, bytes, proof })
}

/// Sends the answer and waits until it was received.
pub(super) async fn tell(send: &mut SendStream, answer: &impl Serialize) -> Option<()> {
    send.write_all(&wire::encode(answer)?).await.ok()?;
    send.finish().ok()?;
    send.stopped().await.ok()?;
    Some(())
}
