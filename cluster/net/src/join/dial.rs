//! The side that joins: goes where its token says, believes whom it says, and checks what it gets.

use super::{
    ALPN, MARK, pin, pin_of, proof,
    token::JoinToken,
    wire::{self, ANSWER_BYTES_MAX, Answer, Ask, JoinGrant, JoinPeer, JoinWish, Signed},
};
use crate::{
    credentials::{NodeCredentials, certificates},
    error::{CredentialError, IdentityError},
    identity::PeerIdentity,
    tls::{self, SERVER_NAME, peer_identity},
    wire::{code, lost_reason},
};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, IdleTimeout, TransportConfig,
    TransportErrorCode, VarInt, crypto::rustls::QuicClientConfig,
};
use quinn_proto::ConnectionId;
use rcgen::{KeyPair, PublicKeyData};
use ring::rand::SecureRandom;
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// One address, until it lets us ask.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longer than whoever answers takes to decide.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);

const ALIVE_EVERY: Duration = Duration::from_secs(1);

const CID_LEN: usize = 20;

/// How long to try where others are being answered: longer than those can take who never ask.
const BUSY_PATIENCE: Duration = Duration::from_secs(12);
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// How long to wait until the host has heard that all was heard.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

const LOOK: &str = "if `smalti node list` shows the new node, remove it, and use another token";

/// What a joiner is from now on.
#[derive(Clone, Debug)]
pub struct Joined {
    /// What it proves itself with; its private key was made here and has been nowhere else.
    pub credentials: NodeCredentials,
    /// Its name.
    pub name: String,
    /// The other nodes.
    pub peers: Vec<JoinPeer>,
}

/// Why a machine did not join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// Nobody was reached, or nobody who is to be believed. Nothing has changed.
    #[error("{0}")]
    Unreached(String),
    /// Others are being answered where it asked, longer than it waits. Nothing has changed.
    #[error("join at {0}: busy with other joiners, or not answering any yet: try again")]
    Busy(SocketAddr),
    /// The cluster does not want it. Nothing has changed.
    #[error("the cluster refused: {0}")]
    Refused(String),
    /// It was asked, and no answer came: it may be a member or not.
    #[error("no answer came from {0}: {look}", look = LOOK)]
    Unanswered(SocketAddr),
    /// The cluster has not come to know in time: it may be a member or not.
    #[error("{addr} does not know whether this machine is in: {why}: {look}", look = LOOK)]
    Undecided {
        /// Who answered.
        addr: SocketAddr,
        /// What is not known.
        why: String,
    },
    /// The answer does not hold together. The cluster takes it for a member.
    #[error("what {addr} answered can not be used: {what}: {look}", look = LOOK)]
    Unusable {
        /// Who answered.
        addr: SocketAddr,
        /// What is wrong.
        what: String,
    },
    /// A key, or something of the system's, can not be made.
    #[error("prepare to join: {0}")]
    Local(String),
}

/// Joins the cluster of a token. Must be called inside a tokio runtime.
///
/// # Errors
/// [`JoinError`]; only in three of its cases is it not sure that nothing has changed.
pub async fn join(token: &JoinToken, wish: &JoinWish) -> Result<(Joined, Farewell), JoinError> {
    join_within(token, wish, BUSY_PATIENCE).await
}

pub(super) async fn join_within(
    token: &JoinToken,
    wish: &JoinWish,
    patience: Duration,
) -> Result<(Joined, Farewell), JoinError> {
    let key = KeyPair::generate().map_err(|error| JoinError::Local(error.to_string()))?;
    let until = Instant::now() + patience;
    loop {
        let mut last = JoinError::Unreached("the token names no address".into());
        for addr in &token.addresses {
            match attempt(token, wish, &key, *addr).await {
                Err(JoinError::Unreached(_)) if matches!(last, JoinError::Busy(_)) => {}
                Err(error @ (JoinError::Unreached(_) | JoinError::Busy(_))) => last = error,
                decided => return decided,
            }
        }
        if !matches!(last, JoinError::Busy(_)) || Instant::now() >= until {
            return Err(last);
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    }
}

/// The end of the connection by which a machine has joined. What was granted is to be kept before that
/// is waited for.
#[derive(Debug)]
pub struct Farewell(Endpoint);

impl Farewell {
    /// Waits until the host has heard of it, or a moment.
    pub async fn done(self) {
        if tokio::time::timeout(FAREWELL_TIMEOUT, self.0.wait_idle()).await.is_err() {
            tracing::debug!("the host did not confirm the close");
        }
    }
}

async fn attempt(
    token: &JoinToken,
    wish: &JoinWish,
    key: &KeyPair,
    addr: SocketAddr,
) -> Result<(Joined, Farewell), JoinError> {
    let any: SocketAddr = match addr {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = Endpoint::client(any).map_err(|error| JoinError::Local(error.to_string()))?;
    let stranger = Arc::new(AtomicBool::new(false));
    let config = client_config(token, Arc::clone(&stranger))
        .map_err(|error| JoinError::Local(error.to_string()))?;
    let unreached = |why: String| JoinError::Unreached(format!("join at {addr}: {why}"));
    let connecting = endpoint
        .connect_with(config, addr, SERVER_NAME)
        .map_err(|error| unreached(error.to_string()))?;
    let connection = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(_)) if stranger.load(Ordering::Acquire) => {
            return Err(unreached(IdentityError::OtherAuthority.to_string()));
        }
        Ok(Err(error)) if is_refusal(&error) => return Err(JoinError::Busy(addr)),
        Ok(Err(error)) => return Err(unreached(wire::one_line(&lost_reason(&error)))),
        Err(_) => return Err(unreached(format!("no answer within {CONNECT_TIMEOUT:?}"))),
    };
    let message = message(token, wish, key, &connection)
        .ok_or_else(|| JoinError::Local("the request can not be signed".into()))?;
    let exchange = exchange(&connection, &message, ANSWER_BYTES_MAX);
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.ok().flatten();
    let host = peer_identity(&connection).map_err(CredentialError::Identity);
    connection.close(code::CLOSED, b"done");
    let answer = answer.ok_or(JoinError::Unanswered(addr))?;
    let unusable = |what: String| JoinError::Unusable { addr, what };
    match wire::decode::<Answer>(&answer) {
        None => Err(unusable("it can not be read".into())),
        Some(Answer::Refused(why)) => Err(JoinError::Refused(wire::one_line(&why))),
        Some(Answer::Undecided(why)) => {
            Err(JoinError::Undecided { addr, why: wire::one_line(&why) })
        }
        Some(Answer::Granted(grant)) => {
            let accepted = host.and_then(|host| accept(token, key, grant, host));
            let joined = accepted.map_err(|error| unusable(with_causes(&error)))?;
            Ok((joined, Farewell(endpoint)))
        }
    }
}

/// Whether somebody is there who takes nobody just now.
fn is_refusal(error: &ConnectionError) -> bool {
    let refused = TransportErrorCode::CONNECTION_REFUSED;
    matches!(error, ConnectionError::ConnectionClosed(close) if close.error_code == refused)
}

/// Says one thing, and hears another.
pub(super) async fn exchange(
    connection: &Connection,
    message: &[u8],
    answer_bytes_max: usize,
) -> Option<Vec<u8>> {
    let (mut send, mut recv) = connection.open_bi().await.ok()?;
    send.write_all(message).await.ok()?;
    send.finish().ok()?;
    recv.read_to_end(answer_bytes_max).await.ok()
}

pub(super) fn message(
    token: &JoinToken,
    wish: &JoinWish,
    key: &KeyPair,
    connection: &Connection,
) -> Option<Vec<u8>> {
    let public_key = key.der_bytes().to_vec();
    let ask = wire::encode(&Ask { token: token.id, wish: wish.clone(), public_key })?;
    let binding = proof::binding(connection)?;
    let token_proof = proof::prove_token(token, &binding, &ask)?;
    let key_proof = proof::prove_key(key, &binding, &ask)?;
    wire::encode(&Signed { ask, token_proof, key_proof })
}

pub(super) fn client_config(
    token: &JoinToken,
    stranger: Arc<AtomicBool>,
) -> Result<ClientConfig, CredentialError> {
    Ok(one_exchange(pin::client(token.pin, ALPN, stranger)?, MARK))
}

/// For a connection by a way of its own.
pub(crate) fn one_exchange(crypto: QuicClientConfig, mark: [u8; 8]) -> ClientConfig {
    let mut config = ClientConfig::new(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(
            CONNECT_TIMEOUT.as_millis() as u32
        ))))
        .keep_alive_interval(Some(ALIVE_EVERY))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    config.transport_config(Arc::new(transport));
    config.initial_dst_cid_provider(Arc::new(move || marked(mark)));
    config
}

/// A connection id that says what is wanted; the rest of it nobody can foresee.
fn marked(mark: [u8; 8]) -> ConnectionId {
    let mut id = [0; CID_LEN];
    // Without randomness there would be no key either, and no handshake.
    let _ = ring::rand::SystemRandom::new().fill(&mut id);
    id[..mark.len()].copy_from_slice(&mark);
    ConnectionId::new(&id)
}

/// Checks that the grant is what the token promised, for our key, and a place of our own: a host must not
/// have a key that it does not know signed as its own number.
fn accept(
    token: &JoinToken,
    key: &KeyPair,
    grant: JoinGrant,
    host: PeerIdentity,
) -> Result<Joined, CredentialError> {
    let [authority] = &certificates(&grant.ca_pem, "authority certificate")?[..] else {
        return Err(CredentialError::NotPem { what: "single authority certificate" });
    };
    if pin_of(authority) != Some(token.pin) {
        return Err(CredentialError::Identity(IdentityError::OtherAuthority));
    }
    if grant.cluster != host.cluster || grant.node == host.node {
        return Err(CredentialError::Identity(IdentityError::Taken { node: grant.node }));
    }
    let key = Zeroizing::new(key.serialize_pem());
    let credentials = NodeCredentials::from_pem(grant.certificate_pem, key, grant.ca_pem)?;
    let identity = credentials.identity();
    if identity.cluster != grant.cluster || identity.node != grant.node {
        return Err(CredentialError::Identity(IdentityError::OtherNode {
            theirs: identity.node,
            wanted: grant.node,
        }));
    }
    tls::check_own(&credentials)?;
    Ok(Joined { credentials, name: grant.name, peers: grant.peers })
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
