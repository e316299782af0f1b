//! Who holds the shares of split secrets.

use super::{invalid, limits};
use crate::command::{Applied, Rejection};
use crate::types::{ClusterMap, Custodians, Custody, ShareHolder};
use smalti_storage::ids::NodeId;
use smalti_storage::keys::{Commitments, SecretName};

impl ClusterMap {
    /// Nothing moves by this: each secret stays with whom it is until it has been dealt on.
    pub(super) fn set_custodians(
        &mut self,
        share_epoch: u32,
        threshold: u8,
        nodes: &[NodeId],
        now: u64,
    ) -> Result<Applied, Rejection> {
        let current = self.custodians.share_epoch;
        if share_epoch != current {
            return Err(invalid(format!(
                "planned against share epoch {share_epoch}, it is {current} now"
            )));
        }
        // One share alone must never be the secret.
        if threshold < 2 {
            return Err(invalid(format!("a threshold of {threshold} is less than 2")));
        }
        let next = current.checked_add(1).ok_or_else(|| invalid("share epochs are used up"))?;
        if nodes.len() > limits::CUSTODIANS {
            return Err(invalid(format!("there are at most {} custodians", limits::CUSTODIANS)));
        }
        let numbered = nodes.iter().zip(1u8..);
        let holders = numbered.map(|(node, share)| ShareHolder { node: *node, share }).collect();
        let new = Custodians { share_epoch: next, since: now, threshold, holders };
        let before = std::mem::replace(&mut self.custodians, new);
        if let Err(broken) = self.check_custodians() {
            self.custodians = before;
            return Err(Rejection::Invalid(broken));
        }
        Ok(Applied::Done)
    }

    /// Takes a new dealing of a secret for the one it was dealt from. Those who hold shares of that destroy
    /// them.
    pub(super) fn reshare(
        &mut self,
        secret: &SecretName,
        from: &[u8],
        custody: &Custody,
    ) -> Result<Applied, Rejection> {
        let current =
            self.custody_of(secret).ok_or_else(|| invalid(format!("there is no {secret}")))?;
        if current.commitments != from {
            return Err(invalid(format!("the {secret} has been dealt on since")));
        }
        let share_epoch = self.custodians.share_epoch;
        if custody.share_epoch != share_epoch || current.share_epoch == share_epoch {
            return Err(invalid(format!(
                "dealt for share epoch {}, from {}; it is {share_epoch} now",
                custody.share_epoch, current.share_epoch
            )));
        }
        self.check_dealt(custody).map_err(Rejection::Invalid)?;
        // It was made when the secret was; who deals it on does not know what to seal.
        if custody.sealed_for_recovery != current.sealed_for_recovery {
            return Err(invalid("the new shares come with something else sealed for recovery"));
        }
        // What was dealt is checked by everybody who takes a share; that it is the same secret anybody can.
        let read = |bytes: &[u8]| {
            Commitments::from_bytes(bytes).map_err(|error| invalid(error.to_string()))
        };
        let (old, new) = (read(from)?, read(&custody.commitments)?);
        if !new.is_of_same_secret(&old) {
            return Err(invalid("the new shares are of another secret"));
        }
        if new.threshold() != usize::from(custody.threshold) {
            return Err(invalid(format!("the new shares need {} of them", new.threshold())));
        }
        let current = self.custody_of_mut(secret).ok_or_else(|| invalid("no such secret"))?;
        current.clone_from(custody);
        Ok(Applied::Done)
    }
}
