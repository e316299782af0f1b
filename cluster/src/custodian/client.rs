//! Asking the custodians of the cluster, this node's own and those of others.

use super::CustodyService;
use super::wire::{Answer, Ask, ShareBytes};
use crate::fabric::{Fabric, service};
use smalti_storage::ids::NodeId;
use smalti_storage::keys::{Commitments, KeyPart, SecretName};
use std::time::Duration;

/// How long a custodian has to answer.
const CUSTODIAN_TIMEOUT: Duration = Duration::from_secs(2);

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

    /// Gives a custodian its share. Verified and durable there when this returns.
    ///
    /// # Errors
    /// The reason, when it refuses or does not answer in time.
    pub async fn keep(
        &self,
        custodian: NodeId,
        secret: SecretName,
        part: &KeyPart,
        commitments: &Commitments,
    ) -> Result<(), String> {
        let share = ShareBytes(part.to_bytes());
        let ask = Ask::Keep { secret, share, commitments: commitments.to_bytes() };
        match self.ask(custodian, ask).await {
            Answer::Kept => Ok(()),
            Answer::Refused(why) => Err(why),
            Answer::Released(_) => Err("answered out of turn".into()),
        }
    }

    /// Asks a custodian for its share. It is well formed, not verified.
    ///
    /// # Errors
    /// The reason, when it refuses or does not answer in time.
    pub async fn release(&self, custodian: NodeId, secret: SecretName) -> Result<KeyPart, String> {
        match self.ask(custodian, Ask::Release { secret }).await {
            Answer::Released(share) => {
                KeyPart::from_bytes(&share.0).map_err(|error| error.to_string())
            }
            Answer::Refused(why) => Err(why),
            Answer::Kept => Err("answered out of turn".into()),
        }
    }

    async fn ask(&self, custodian: NodeId, ask: Ask) -> Answer {
        if custodian == self.me {
            return self.own.ask(custodian, ask).await;
        }
        let request = ask.encode();
        match self.fabric.call(custodian, service::CUSTODY, request, CUSTODIAN_TIMEOUT).await {
            Ok(bytes) => {
                Answer::decode(&bytes).unwrap_or_else(|| Answer::Refused("malformed answer".into()))
            }
            Err(error) => Answer::Refused(error.to_string()),
        }
    }
}
