//! Who holds the shares of split secrets.

use super::{invalid, limits};
use crate::check::check_envelope;
use crate::command::{Applied, Rejection};
use crate::types::{ClusterMap, Custodians, Custody, ShareHolder};
use smalti_storage::ids::NodeId;
use smalti_storage::keys::{Commitments, SecretName};

impl ClusterMap {
    /// Nothing moves by this: each secret stays with whom it is until it has been dealt on.
    pub(super) fn set_custodians(
        &mut self,
        (share_epoch, threshold): (u32, u8),
        nodes: &[NodeId],
        now: u64,
        new_master: bool,
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
        // Another change does not take that wish back.
        let new_master = new_master || self.custodians.new_master;
        let new = Custodians { share_epoch: next, since: now, threshold, holders, new_master };
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
        // It would be the one that is not to be trusted any more, and with the custodians of now.
        if *secret == SecretName::Master && self.custodians.new_master {
            return Err(invalid("there is to be another master secret"));
        }
        let (old, new) = self.dealing_for(secret, from, custody)?;
        let current = self.custody_of_mut(secret).ok_or_else(|| invalid("no such secret"))?;
        // It was made when the secret was; who deals it on does not know what to seal.
        if custody.sealed_for_recovery != current.sealed_for_recovery {
            return Err(invalid("the new shares come with something else sealed for recovery"));
        }
        // What was dealt is checked by everybody who takes a share; that it is the same secret anybody can.
        if !new.is_of_same_secret(&old) {
            return Err(invalid("the new shares are of another secret"));
        }
        current.clone_from(custody);
        Ok(Applied::Done)
    }

    /// Takes another master secret for the present one, if that is wanted.
    pub(super) fn replace_master(
        &mut self,
        from: &[u8],
        custody: &Custody,
    ) -> Result<Applied, Rejection> {
        if !self.custodians.new_master {
            return Err(invalid("no other master secret is wanted"));
        }
        let (old, new) = self.dealing_for(&SecretName::Master, from, custody)?;
        if new.is_of_same_secret(&old) {
            return Err(invalid("the new shares are of the same secret"));
        }
        check_envelope(custody, self.recovery.as_ref()).map_err(Rejection::Invalid)?;
        self.custody.clone_from(custody);
        self.custodians.new_master = false;
        Ok(Applied::Done)
    }

    /// The commitments of a secret's present dealing, and those of one for the present share epoch that may take
    /// its place.
    fn dealing_for(
        &self,
        secret: &SecretName,
        from: &[u8],
        custody: &Custody,
    ) -> Result<(Commitments, Commitments), Rejection> {
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
        let read = |bytes: &[u8]| {
            Commitments::from_bytes(bytes).map_err(|error| invalid(error.to_string()))
        };
        let (old, new) = (read(from)?, read(&custody.commitments)?);
        if new.threshold() != usize::from(custody.threshold) {
            return Err(invalid(format!("the new shares need {} of them", new.threshold())));
        }
        // Shares are filed under a digest of the bytes: others must not stand for the same dealing.
        if new.to_bytes() != custody.commitments {
            return Err(invalid("the commitments are not in their usual form"));
        }
        Ok((old, new))
    }
}
