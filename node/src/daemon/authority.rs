//! Letting nodes join: making tokens, and signing for whoever proves to have one.
//!
//! Only a node with the authority's key does either. It reads the key when it is needed and forgets it,
//! so the key may be elsewhere all the rest of the time.

use super::control::{MemberControl, rejected, unavailable};
use crate::config::NodeConfig;
use crate::control::{ControlError, CreateToken, ErrorKind, NewToken, TOKEN_SECONDS};
use futures::future::BoxFuture;
use smalti_cluster::Member;
use smalti_map::{Applied, Command, JoinToken as OpenToken, NodeAddresses};
use smalti_net::{
    ClusterCa, JoinAddresses, JoinAsk, JoinDenial, JoinGrant, JoinHost, JoinPeer, JoinToken,
    Validity,
};
use smalti_raft::ProposeError;
use smalti_storage::ids::{ClusterId, NodeId};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the cluster may take to agree on a new member.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);

/// Where this node finds the authority's key, if it may.
#[derive(Clone, Debug)]
pub struct Authority {
    folder: Option<PathBuf>,
    /// Where this node answers joiners.
    quic: SocketAddr,
    /// For how long a certificate holds that is signed here.
    life: Duration,
}

impl Authority {
    /// As a node's config says.
    pub fn of(config: &NodeConfig) -> Self {
        let (folder, quic) = (config.authority.clone(), config.addresses.quic);
        Self { folder, quic, life: config.certificate_life() }
    }

    pub(super) fn life(&self) -> Duration {
        self.life
    }

    fn folder(&self) -> Result<PathBuf, String> {
        let missing = "this node does not have the authority's key: ask one whose config names \
                       `authority`";
        self.folder.clone().ok_or_else(|| missing.into())
    }

    pub(super) async fn load(&self, cluster: ClusterId) -> Result<ClusterCa, String> {
        let folder = self.folder()?;
        let load = move || ClusterCa::load(&folder);
        let loaded = tokio::task::spawn_blocking(load).await.map_err(|error| error.to_string())?;
        let ca = loaded.map_err(|error| {
            format!("the authority's key can not be read: {:#}", anyhow::Error::from(error))
        })?;
        if ca.cluster() == cluster {
            Ok(ca)
        } else {
            Err(format!("the authority's key is of cluster {}, not {cluster}", ca.cluster()))
        }
    }
}

pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

impl MemberControl {
    pub(super) async fn make_token(&self, wish: CreateToken) -> Result<NewToken, ControlError> {
        let internal = |why: String| ControlError::new(ErrorKind::Internal, why);
        let member = self.member();
        let authority = self.authority();
        authority.folder().map_err(ControlError::invalid)?;
        let ca = authority.load(member.cluster()).await.map_err(internal)?;
        let pin = ca.pin().map_err(|error| internal(error.to_string()))?;
        let token = JoinToken::draw(pin, vec![authority.quic])
            .map_err(|error| internal(error.to_string()))?;
        let proof_key =
            token.proof_key().ok_or_else(|| internal("the token's key can not be made".into()))?;
        let now = unix_now();
        let expires = now.saturating_add(wish.ttl_seconds.unwrap_or(TOKEN_SECONDS));
        let (id, name) = (token.id, wish.name.unwrap_or_default());
        let open = OpenToken { proof_key, name, expires, used_by: None };
        let command = Command::CreateToken { id, token: open, now };
        match member.raft().propose(command).await.map_err(|error| unavailable(&error))? {
            Applied::Rejected(why) => return Err(rejected(&why)),
            Applied::Done => {}
            other => return Err(internal(format!("{other:?}"))),
        }
        // Joiners are answered from this node's map, so that strangers cost the cluster nothing.
        member.raft().linearizable().await.map_err(|error| unavailable(&error))?;
        tracing::info!(token = %id, expires, "a token to join with was made");
        Ok(NewToken { token: token.to_text(), id, expires })
    }
}

/// Answers joiners.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) member: Member,
    pub(super) authority: Authority,
}

impl JoinHost for Admission {
    fn join(&self, ask: JoinAsk) -> BoxFuture<'_, Result<JoinGrant, JoinDenial>> {
        Box::pin(self.admit(ask))
    }
}

impl Admission {
    async fn admit(&self, ask: JoinAsk) -> Result<JoinGrant, JoinDenial> {
        self.authority.folder()?;
        let now = unix_now();
        // One map for both questions: of a token that comes to be known in between nothing was proven.
        let map = self.member.map();
        let usable = map.usable_token(ask.token, now);
        // What has become of a token is for those who have it. Of others there is nothing in the log:
        // they would fill it.
        match map.tokens.get(&ask.token) {
            None => {
                usable?;
                return Err("the token is not known".into());
            }
            Some(token) if !ask.is_proven_by(&token.proof_key) => {
                return Err("the token's secret is another one".into());
            }
            Some(_) => {}
        }
        let (token, wish) = (ask.token, ask.wish.clone());
        let answer = match usable {
            Ok(_) => self.take_in(ask, now).await,
            Err(why) => Err(why.into()),
        };
        if let Err(JoinDenial::Refused(why)) = &answer {
            tracing::warn!(%token, ?wish, why, "a joiner with a token was refused");
        }
        answer
    }

    /// Lets in who has proven to have a token.
    async fn take_in(&self, ask: JoinAsk, now: u64) -> Result<JoinGrant, JoinDenial> {
        check_reachable(&ask.wish.addresses, self.authority.quic)?;
        let ca = self.authority.load(self.member.cluster()).await?;
        let JoinAddresses { quic, api, nbd } = ask.wish.addresses;
        let command = Command::Join {
            token: ask.token,
            name: ask.wish.name.clone(),
            addresses: NodeAddresses { quic, api, nbd },
            now,
        };
        // The token is used up here, whoever else has it in hand at this moment.
        let (node, name) = match self.member.raft().propose_within(command, JOIN_PATIENCE).await {
            Ok(Applied::Joined { node, name }) => (node, name),
            Ok(Applied::Rejected(why)) => return Err(why.to_string().into()),
            Ok(other) => {
                return Err(JoinDenial::Undecided(format!("the cluster answered {other:?}")));
            }
            Err(error @ (ProposeError::TooLarge(_) | ProposeError::Encoding(_))) => {
                return Err(error.to_string().into());
            }
            Err(error) => {
                return Err(JoinDenial::Undecided(format!("the cluster does not agree: {error}")));
            }
        };
        let validity = Validity::starting(SystemTime::now(), self.authority.life());
        let certificate_pem = match ca.sign(node, &name, &ask.key, validity) {
            Ok(certificate) => certificate,
            Err(error) => {
                let why = format!("its certificate can not be signed: {error}");
                return Err(match self.take_back(node).await {
                    true => JoinDenial::Refused(why),
                    false => JoinDenial::Undecided(why),
                });
            }
        };
        let map = self.member.map();
        let others = map.nodes.iter().filter(|(id, _)| **id != node);
        let peers = others.map(|(id, other)| JoinPeer {
            id: *id,
            name: other.name.clone(),
            quic: other.addresses.quic,
        });
        Ok(JoinGrant {
            cluster: self.member.cluster(),
            node,
            name,
            certificate_pem,
            ca_pem: ca.certificate_pem().to_owned(),
            peers: peers.collect(),
        })
    }

    /// Removes a member that will never come; false if it may be one still.
    async fn take_back(&self, node: NodeId) -> bool {
        let taken = self.member.raft().propose_within(Command::RemoveNode { node }, JOIN_PATIENCE);
        let is_gone = matches!(taken.await, Ok(Applied::Done));
        if !is_gone {
            tracing::error!(%node, "a node that got no certificate is still a member: remove it");
        }
        is_gone
    }
}

/// Others have to be able to send to it.
fn check_reachable(addresses: &JoinAddresses, own: SocketAddr) -> Result<(), String> {
    let quic = addresses.quic;
    if quic.port() == 0 || quic.ip().is_unspecified() || quic.ip().is_multicast() {
        return Err(format!("{quic} is not an address at which others could reach it"));
    }
    if quic.ip().is_loopback() && !own.ip().is_loopback() {
        return Err(format!("{quic} can not be reached from other machines"));
    }
    if quic.is_ipv4() != own.is_ipv4() {
        return Err(format!(
            "{quic} and {own}, where this node is, are of IPv4 and of IPv6: a node calls others from where \
             it listens, so all have to be of one kind"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joiner_has_to_be_reachable() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let check = |quic, own| {
            let local = at("127.0.0.1:1");
            check_reachable(&JoinAddresses { quic: at(quic), api: local, nbd: local }, at(own))
        };
        assert!(check("127.0.0.1:9", "127.0.0.1:8").is_ok());
        assert!(check("192.0.2.1:9", "192.0.2.2:9").is_ok());
        assert!(check("[2001:db8::1]:9", "[2001:db8::2]:9").is_ok());
        for (quic, own) in [
            ("127.0.0.1:9", "192.0.2.2:9"),
            ("0.0.0.0:9", "192.0.2.2:9"),
            ("[::]:9", "127.0.0.1:9"),
            ("192.0.2.1:0", "192.0.2.2:9"),
            ("224.0.0.1:9", "192.0.2.2:9"),
            ("[2001:db8::1]:9", "192.0.2.2:9"),
            ("192.0.2.1:9", "[2001:db8::2]:9"),
        ] {
            assert!(check(quic, own).is_err(), "{quic}");
        }
    }
}
