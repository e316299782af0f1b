//! Asking the custodians of the cluster, this node's own and those of others.

use super::CustodyService;
use super::core::proof_challenge;
use super::wire::{Answer, Ask, DealerBytes, SECRETS_MAX, ShareBytes};
use crate::fabric::{Fabric, service};
use futures::future::join_all;
use smalti_storage::ids::NodeId;
use smalti_storage::keys::{Commitments, KeyPart, PartProof, SecretName, ShareName};
use std::time::Duration;

/// How long a custodian has to answer.
const CUSTODIAN_TIMEOUT: Duration = Duration::from_secs(2);

/// The same where it has to ask all others before.
const DEALER_TIMEOUT: Duration = Duration::from_secs(5);

const OUT_OF_TURN: &str = "answered out of turn";

/// A share that is to be proven.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Which.
    pub share: ShareName,
    /// Its number.
    pub index: u8,
    /// What it is verified against.
    pub commitments: Commitments,
}

/// Asks custodians in the name of this node. What they may refuse, and why, is theirs to say;
/// reasons come back in words.
#[derive(Clone, Debug)]
pub struct CustodyClient {
    me: NodeId,
    fabric: Fabric,
    own: CustodyService,
}

impl CustodyClient {
    pub(crate) fn new(me: NodeId, fabric: Fabric, own: CustodyService) -> Self {
        Self { me, fabric, own }
    }

    /// Gives a custodian its share of a new secret. Verified and durable there when this returns.
    ///
    /// # Errors
    /// The reason, when it refuses or does not answer in time.
    pub async fn keep(
        &self,
        custodian: NodeId,
        (secret, share_epoch): (SecretName, u32),
        part: &KeyPart,
        commitments: &Commitments,
    ) -> Result<(), String> {
        let (share, commitments) = (ShareBytes(part.to_bytes()), commitments.to_bytes());
        let ask = Ask::Keep { secret, share_epoch, share, commitments };
        kept(self.ask(custodian, ask).await)
    }

    /// Asks a custodian for its share. It is well formed, not verified.
    ///
    /// # Errors
    /// The reason, when it refuses or does not answer in time.
    pub async fn release(&self, custodian: NodeId, share: ShareName) -> Result<KeyPart, String> {
        match self.ask(custodian, Ask::Release { share }).await {
            Answer::Released(share) => {
                KeyPart::from_bytes(&share.0).map_err(|error| error.to_string())
            }
            Answer::Refused(why) => Err(why),
            _ => Err(OUT_OF_TURN.into()),
        }
    }

    /// Has a custodian deal its share on to those who are to have shares from a share epoch on. Each has taken
    /// what it was given when this returns, with the commitments to that.
    ///
    /// # Errors
    /// The reason, when it refuses, does not answer in time, or one of them does not take it.
    pub(crate) async fn deal_on(
        &self,
        custodian: NodeId,
        share: ShareName,
        share_epoch: u32,
    ) -> Result<Vec<u8>, String> {
        match self.ask(custodian, Ask::DealOn { share, share_epoch }).await {
            Answer::DealtOn { commitments } => Ok(commitments),
            Answer::Refused(why) => Err(why),
            _ => Err(OUT_OF_TURN.into()),
        }
    }

    /// Gives every new custodian its part of a dealing.
    pub(super) async fn give(&self, gifts: Vec<(NodeId, Ask)>) -> Result<(), String> {
        let give = |(to, ask): (NodeId, Ask)| async move {
            kept(self.ask(to, ask).await).map_err(|why| format!("{to}: {why}"))
        };
        join_all(gifts.into_iter().map(give)).await.into_iter().collect()
    }

    /// Has a custodian make its new share of what dealers gave it. Durable there when this returns.
    pub(crate) async fn combine(
        &self,
        custodian: NodeId,
        from: ShareName,
        share_epoch: u32,
        dealers: Vec<DealerBytes>,
    ) -> Result<(), String> {
        kept(self.ask(custodian, Ask::Combine { from, share_epoch, dealers }).await)
    }

    /// Has a custodian prove that it has these shares; for each, why it has not. Nothing of them is told.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn prove(
        &self,
        custodian: NodeId,
        claims: &[Claim],
    ) -> Result<Vec<Result<(), String>>, String> {
        let mut proven = Vec::with_capacity(claims.len());
        for claims in claims.chunks(SECRETS_MAX) {
            let challenge: [u8; 32] = rand::random();
            let shares = claims.iter().map(|claim| claim.share).collect();
            let proofs = match self.ask(custodian, Ask::Prove { challenge, shares }).await {
                Answer::Proofs(proofs) if proofs.len() == claims.len() => proofs,
                Answer::Refused(why) => return Err(why),
                _ => return Err(OUT_OF_TURN.into()),
            };
            proven.extend(claims.iter().zip(proofs).map(|(claim, proof)| {
                let challenge = proof_challenge(&challenge, &claim.share, custodian);
                let proof = PartProof::from_bytes(&proof?);
                let Claim { index, commitments, .. } = claim;
                let verified = proof.and_then(|it| it.verify(*index, commitments, &challenge));
                verified.map_err(|error| error.to_string())
            }));
        }
        Ok(proven)
    }

    /// Lines of a custodian's log, after number `after`. They are as it has them, not verified.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn audit(&self, custodian: NodeId, after: u64) -> Result<Vec<String>, String> {
        match self.ask(custodian, Ask::Audit { after }).await {
            Answer::Entries(lines) => Ok(lines),
            Answer::Refused(why) => Err(why),
            _ => Err(OUT_OF_TURN.into()),
        }
    }

    async fn ask(&self, custodian: NodeId, ask: Ask) -> Answer {
        if custodian == self.me {
            return self.own.ask(custodian, ask).await;
        }
        let deals = matches!(ask, Ask::DealOn { .. });
        let timeout = if deals { DEALER_TIMEOUT } else { CUSTODIAN_TIMEOUT };
        match self.fabric.call(custodian, service::CUSTODY, ask.encode(), timeout).await {
            Ok(bytes) => {
                Answer::decode(&bytes).unwrap_or_else(|| Answer::Refused("malformed answer".into()))
            }
            Err(error) => Answer::Refused(error.to_string()),
        }
    }
}

fn kept(answer: Answer) -> Result<(), String> {
    match answer {
        Answer::Kept => Ok(()),
        Answer::Refused(why) => Err(why),
        _ => Err(OUT_OF_TURN.into()),
    }
}
