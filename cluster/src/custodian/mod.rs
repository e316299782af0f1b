//! The custodian actor: keeps this node's shares of split secrets, sealed, and hands them out to
//! nodes that the map allows to have them.
//!
//! K1. A share is verified against its public commitments before it is kept and before it is used.
//! K2. A share rests only sealed under the node's custodian key, bound to what it is a share of.
//! K3. A share of a volume's wrapping secret is released to the volume's coordinator only.

mod actor;
mod client;
mod vault;
mod wire;

pub use actor::{CustodianArgs, CustodianMsg, start};
pub use client::CustodyClient;
pub use vault::{Vault, VaultError};
pub(crate) use wire::{Answer, Ask};

use bytes::Bytes;
use futures::future::BoxFuture;
use ractor::ActorRef;
use smalti_net::Service;
use smalti_storage::ids::NodeId;
use tokio::sync::oneshot;

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
