//! Facts about custodians and their shares.

use super::KeyReport;
use crate::custody::Passphrase;
use serde::{Deserialize, Serialize};
use smalti_storage::ids::KeyEpochNo;
use utoipa::ToSchema;

/// Who is to hold the shares of every secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetCustodians {
    /// Names of nodes; the present ones if left out. All shares become new ones in any case.
    pub nodes: Option<Vec<String>>,
    /// Shares that are to be needed; as many as now if left out.
    pub threshold: Option<u8>,
    /// The share epoch that the wish was made for; if it is another one by then the wish is refused.
    pub share_epoch: Option<u32>,
    /// There is to be another master secret too.
    #[serde(default)]
    pub new_master: bool,
}

/// Which keys are not to be trusted any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeKeys {
    /// This key epoch and all older ones; the present one if left out.
    #[schema(value_type = Option<u32>)]
    pub key_epoch: Option<KeyEpochNo>,
}

/// `smalti key verify --json`: whether everything could still be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifyReport {
    /// Every secret could be put together from the shares that were proven.
    pub good: bool,
    /// Nodes that were thought away.
    pub without: Vec<String>,
    /// Every custodian, and what it could not prove.
    pub custodians: Vec<VerifiedCustodian>,
    /// Every secret: that of the cluster, then those of key epochs.
    pub secrets: Vec<VerifiedSecret>,
}

/// One custodian of a [`VerifyReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifiedCustodian {
    /// The name of its node.
    pub node: String,
    /// Shares that it has proven to have.
    pub proven: u32,
    /// Shares that it should have.
    pub total: u32,
    /// Why some were not proven; the first few.
    pub problems: Vec<String>,
}

/// One secret of a [`VerifyReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifiedSecret {
    /// The volume; null for the secret of the cluster.
    pub volume: Option<String>,
    /// The key epoch; null for the secret of the cluster.
    #[schema(value_type = Option<u32>)]
    pub key_epoch: Option<KeyEpochNo>,
    /// Shares that are needed.
    pub needed: u8,
    /// Shares that were proven, without those of nodes that were thought away.
    pub proven: u8,
    /// Shares there are.
    pub total: u8,
}

/// The log of one custodian.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditReport {
    /// The name of its node.
    pub node: String,
    /// What is wrong with it: it can not be had, or its entries do not follow on one another.
    pub problem: Option<String>,
    /// Its entries, oldest first, as far as they hold together: the last 10,000 of them. All that are kept were read.
    pub entries: Vec<AuditFacts>,
    /// The hash of the last one: whoever keeps it can tell later that nothing before was changed.
    pub head: Option<String>,
}

/// One entry of a custodian's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditFacts {
    /// Its number, from 1.
    pub no: u64,
    /// Unix seconds.
    pub time: u64,
    /// What was done.
    pub event: String,
    /// For which node, or by which.
    pub node: Option<String>,
    /// With a share of what.
    pub share: Option<String>,
    /// More about it.
    pub detail: Option<String>,
}

/// What has become of shares that are to be dealt on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResharingStatus {
    /// Grows with each change of the custodians, and each time that all shares become new ones.
    pub share_epoch: u32,
    /// Unix seconds when it began; 0 for the first.
    pub since: u64,
    /// Secrets that are with custodians of before yet.
    pub left: u32,
    /// Why they are not dealt on.
    pub why: Option<String>,
    /// Another master secret is wanted, and not there yet.
    pub new_master: bool,
}

/// What unlocks the custodian of a node. Nothing of it is kept but the key that follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Unlock {
    /// The passphrase of that node.
    #[schema(value_type = String)]
    pub passphrase: Passphrase,
}

/// The custodian is unlocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unlocked {
    /// Whether it was locked before.
    pub was_locked: bool,
}

impl KeyReport {
    /// Whether every secret is with those who are to hold it.
    pub fn is_dealt(&self) -> bool {
        self.resharing.left == 0 && !self.resharing.new_master
    }
}
