//! The custodian actor: keeps this node's shares of split secrets, sealed, hands them out to nodes that the map
//! allows to have them, and deals them on to those that are to have them instead.
//!
//! K1. A share is verified against its public commitments before it is kept and before it is used.
//! K2. A share rests only sealed by the node's key provider, bound to what it is a share of.
//! K3. A share of a volume's wrapping secret is released to the volume's coordinator only.
//! K4. To whom shares are dealt on, and how many of them are needed then, the map alone says. Nobody but the
//!     new custodian sees what it is given.
//! K5. A share is destroyed once the map names another dealing of its secret, of the same share epoch or a
//!     later one, or once the share epoch that it was kept for is over, for which no dealing can be taken any more;
//!     so whichever dealing it names, every custodian has its share of that.
//! K6. Whatever is done with a share is in the log before it is done.
//! K7. No custodian that is to have a share of that other dealing destroys one before it has it: a member that
//!     makes the map name a dealing that was never dealt destroys nothing by that.
//! K8. A share whose key is out of reach is not taken for lost: nobody gets new shares for that.
//! K9. Of a secret that is in use a share is taken from somebody who brings it only where the cluster has recovery
//!     shares, for the share epoch in which the map wants it dealt, of the same secret by its commitments, and with
//!     this custodian's number. It is kept beside the others, a few at most, and of no use until the map names its
//!     dealing; none is destroyed for it.

mod actor;
mod audit;
mod client;
mod core;
mod judge;
mod limits;
mod vault;
mod wire;

pub use actor::{CustodianArgs, CustodianMsg, start};
pub use audit::{AuditEntry, AuditEvent, Beginning, Chain};
pub use client::{Claim, CustodyClient};
pub(crate) use core::read_dealers;
pub use vault::{Vault, VaultError};
pub(crate) use wire::{Answer, Ask, DealerBytes};

use bytes::Bytes;
use futures::future::BoxFuture;
use ractor::ActorRef;
use smalti_net::Service;
use smalti_storage::ids::NodeId;
use tokio::sync::oneshot;

/// What a custodian says of the shares that it should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// How many are not there, or do not open.
    pub lacking: u32,
    /// Why it can not use those that are there just now, as in "it is ..."; empty: it can.
    pub problem: String,
}

/// Answers custody requests of other nodes.
#[derive(Clone, Debug)]
pub struct CustodyService {
    pub(crate) actor: ActorRef<CustodianMsg>,
}

impl CustodyService {
    /// Asks the custodian of this node, in the name of `from`.
    pub(crate) async fn ask(&self, from: NodeId, ask: Ask) -> Answer {
        let (reply, answer) = oneshot::channel();
        if self.actor.cast(CustodianMsg::Ask { from, ask, reply }).is_err() {
            return Answer::Refused("the custodian has stopped".into());
        }
        answer.await.unwrap_or_else(|_| Answer::Refused("the custodian has stopped".into()))
    }
}

impl Service for CustodyService {
    fn call(&self, from: NodeId, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(async move {
            let answer = match Ask::decode(&request) {
                Some(ask) => self.ask(from, ask).await,
                None => Answer::Refused("malformed request".into()),
            };
            answer.encode()
        })
    }
}

#[cfg(test)]
mod tests;
