//! Facts about a cluster, as they stand in the API and in `--json`.

use super::places::{DiskFacts, MovesStatus};
use super::{RecoveryFacts, ResharingStatus};
use serde::{Deserialize, Serialize};
use smalti_map::ReadMode;
use smalti_storage::ids::{
    ClusterId, Epoch, GroupNo, Incarnation, KeyEpochNo, NodeId, Slot, StoreId, VolumeId, VolumeNo,
};
use std::fmt;
use std::net::SocketAddr;
use utoipa::ToSchema;

/// How well something is. Ordered: the worst of several is their maximum.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Every group has all its n+k slots in sync and no row is behind.
    Ok,
    /// Served in full, with less redundancy than asked.
    Degraded,
    /// Some reads or writes wait.
    Stalled,
}

/// What a node is doing, as the answering node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It answers.
    Up,
    /// It does not.
    Down,
    /// It answers, and its shards are being moved away.
    Draining,
}

/// `smalti status --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusReport {
    /// `ok` only when every group of every volume has all its n+k slots in sync and no row is
    /// behind.
    pub health: Health,
    /// Whether all that keeps it from `ok` stays until an operator does something about it.
    #[serde(default)]
    pub lasting: bool,
    /// Every node, by number.
    pub nodes: Vec<NodeStatus>,
    /// Every volume, by name.
    pub volumes: Vec<VolumeStatus>,
    /// The metadata group.
    pub raft: RaftStatus,
    /// Custodians of the master secret.
    pub custody: CustodyStatus,
    /// Custodians that answer and can not use their shares, each with the reason: those that are locked.
    #[serde(default)]
    pub barred: Vec<String>,
    /// Slots that move between stores.
    pub moves: MovesStatus,
    /// The cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterId,
    /// The version of the map that was looked at.
    pub map_version: u64,
    /// The name of the node that answered.
    pub answered_by: String,
}

/// A node in the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its number.
    #[schema(value_type = u64)]
    pub id: NodeId,
    /// What it is doing.
    pub state: NodeState,
    /// Its shard stores.
    #[serde(default)]
    pub stores: Vec<StoreStatus>,
}

/// A shard store in the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatus {
    /// Its identity.
    #[schema(value_type = String)]
    pub id: StoreId,
    /// How often it had something wrong while it was in sync, as reads and scrubs found.
    pub faults: u64,
}

/// A volume in the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// How well it is.
    pub health: Health,
    /// Its configuration.
    #[schema(value_type = u32)]
    pub epoch: Epoch,
    /// The name of the node that orders its updates; null when there is none.
    pub coordinator: Option<String>,
    /// Rows that some slot that is out of sync has yet to catch up on; null while nobody knows.
    pub rows_behind: Option<u64>,
    /// Rows of which something can not be read, as far as it was met.
    pub rows_lost: u64,
    /// Stores that may have forgotten something in a crash and are being compared with the others.
    pub suspects: u64,
    /// Slots that are being brought up to date, rebuilt or moved.
    pub slots_catching_up: u64,
    /// Rows that they lack yet, about: where a store is compared as a whole, the rows that were not come
    /// to are estimated from the others.
    pub rows_left: u64,
    /// The same in bytes.
    pub bytes_left: u64,
    /// Rows a second that they got of late.
    pub rows_per_second: u64,
    /// Rows that slots got since the present coordinator began.
    pub rows_repaired: u64,
    /// When that will be over at this rate; null when nothing is left or nothing moves.
    pub seconds_left: Option<u64>,
    /// That gets less than it could, for the sake of clients.
    pub held_back: bool,
    /// Clients are attached to it, at whichever node.
    pub attached: bool,
    /// Data slots.
    pub data: u8,
    /// Parity slots.
    pub parity: u8,
    /// Its identity.
    #[schema(value_type = String)]
    pub id: VolumeId,
    /// Bytes.
    pub size: u64,
    /// Placement groups.
    pub groups: u32,
    /// Groups that have all their slots in sync.
    pub groups_full: u32,
    /// Groups that are not served, for more of their stores are away than they can do without.
    pub groups_offline: u32,
    /// The last scrubs of its groups, together.
    pub scrub: ScrubStatus,
    /// Key epochs in use; more than one while older records are sealed anew.
    pub key_epochs: u32,
    /// Unix seconds when the keys of new records were made.
    pub keys_made: u64,
    /// Some of them were revoked, and are in use yet.
    pub keys_revoked: bool,
}

/// Scrubs of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScrubStatus {
    /// Groups of the volume.
    pub groups: u32,
    /// Groups that the operator asked to be scrubbed, and were not yet.
    pub due: u32,
    /// When the group that was scrubbed longest ago was, in Unix seconds; null while one never was.
    pub oldest: Option<u64>,
    /// Rows that the last scrub of each group looked at, summed up, as is what follows.
    pub rows: u64,
    /// Row slots that were wrong; they were repaired, where that could be.
    pub wrong: u64,
    /// Rows that could not be put right: too much of them was wrong, or their records do not fit together
    /// and nobody can tell which of them is wrong.
    pub unclear: u64,
    /// Slots that were not read, for their stores were out of sync; they are read once they are back.
    pub unread: u64,
}

/// The metadata group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RaftStatus {
    /// The name of the leading node; null when none is known.
    pub leader: Option<String>,
    /// Its term.
    pub term: u64,
}

/// Custodians.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CustodyStatus {
    /// Shares needed to open keys.
    pub needed: u8,
    /// Custodians that answer, and have their shares.
    pub reachable: u8,
    /// Custodians there are.
    pub total: u8,
}

/// `smalti why --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhyReport {
    /// As in the status.
    pub health: Health,
    /// What keeps it from `ok`, worst first; at the end, as `ok`, what goes on and does not.
    pub reasons: Vec<Reason>,
}

/// One thing that is not well, or goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    /// How bad it is.
    pub health: Health,
    /// What it concerns: `node n2`, `volume v`, `volume v group 3`, `raft`, `custody`.
    pub subject: String,
    /// What it is, in one line.
    pub problem: String,
    /// What happens by itself, or what the operator can do.
    pub remedy: Option<String>,
    /// Whether it stays until an operator does something about it.
    #[serde(default)]
    pub lasting: bool,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeFacts {
    /// Its name.
    pub name: String,
    /// Its identity.
    #[schema(value_type = String)]
    pub id: VolumeId,
    /// Its short number.
    #[schema(value_type = u32)]
    pub no: VolumeNo,
    /// Bytes.
    pub size: u64,
    /// Data slots.
    pub data: u8,
    /// Parity slots.
    pub parity: u8,
    /// Mean bytes of a shard.
    pub shard_size: u32,
    /// No group may have fewer slots in sync.
    pub min_insync: u8,
    /// How reads are made sure of: `lease` or `confirm`.
    #[schema(value_type = String)]
    pub read_mode: ReadMode,
    /// How well it is.
    pub health: Health,
    /// Its configuration.
    #[schema(value_type = u32)]
    pub epoch: Epoch,
    /// The name of the node that orders its updates; null when there is none.
    pub coordinator: Option<String>,
    /// The key epoch new records are sealed under.
    #[schema(value_type = u32)]
    pub key_epoch: KeyEpochNo,
}

/// A volume and its placement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeDetail {
    /// The volume.
    #[serde(flatten)]
    pub volume: VolumeFacts,
    /// Its placement groups, by number.
    pub groups: Vec<GroupFacts>,
    /// The last scrubs of its groups, together.
    pub scrub: ScrubStatus,
}

/// A placement group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupFacts {
    /// Its number.
    #[schema(value_type = u16)]
    pub group: GroupNo,
    /// Whether the volume is served without it, for more of its stores are away than it can do without.
    pub offline: bool,
    /// Its slots, in order.
    pub slots: Vec<SlotFacts>,
}

/// A slot of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlotFacts {
    /// Which slot.
    #[schema(value_type = u8)]
    pub slot: Slot,
    /// The store that fills it.
    #[schema(value_type = String)]
    pub store: StoreId,
    /// The name of that store's node.
    pub node: String,
    /// Whether it is in sync.
    pub state: SlotState,
    /// The name of the node that it moves to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves_to: Option<String>,
}

/// Whether a slot holds every acknowledged update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SlotState {
    /// It does.
    Insync,
    /// It is catching up.
    Learner,
    /// It does not, and is not catching up.
    Out,
}

/// What is asked of a new volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Name: 1 to 64 of `a-z A-Z 0-9 . _ -`, not beginning with `.` or `-`.
    pub name: String,
    /// Bytes, a positive multiple of 512.
    pub size: u64,
    /// Data slots; given together with `parity` or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<u8>,
    /// Parity slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parity: Option<u8>,
    /// Mean bytes of a shard; 1 MiB when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard_size: Option<u32>,
    /// Slots of a group that have to be in sync for it to take writes, n to n+k; n for one parity
    /// shard and n+1 for more when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_insync: Option<u8>,
    /// How reads are made sure of: `lease` (no message for a read, but clocks of nodes have to run at
    /// the same rate within 1 %) or `confirm` (one round trip for each, no clock); `lease` when left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub read_mode: Option<ReadMode>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its number.
    #[schema(value_type = u64)]
    pub id: NodeId,
    /// What it is doing.
    pub state: NodeState,
    /// Which start of its process the map knows.
    #[schema(value_type = u64)]
    pub incarnation: Incarnation,
    /// Its QUIC address.
    #[schema(value_type = String)]
    pub quic: SocketAddr,
    /// Its control API.
    #[schema(value_type = String)]
    pub api: SocketAddr,
    /// Its NBD service.
    #[schema(value_type = String)]
    pub nbd: SocketAddr,
    /// Whether it holds a share of the master secret.
    pub custodian: bool,
    /// Whether it votes in the metadata group.
    pub voter: bool,
    /// Its share of the slots, relative to the other nodes.
    pub weight: u32,
    /// Its failure domain; empty for one of its own.
    pub domain: String,
    /// Slots of all volumes that it has, or keeps until their groups are whole elsewhere.
    pub slots: u32,
    /// Its shard stores.
    pub stores: Vec<StoreFacts>,
}

/// A shard store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreFacts {
    /// Its identity.
    #[schema(value_type = String)]
    pub id: StoreId,
    /// Its current start.
    #[schema(value_type = u64)]
    pub incarnation: Incarnation,
    /// Whether its run before that ended in order.
    pub clean: bool,
    /// Its disk, if it runs.
    pub disk: Option<DiskFacts>,
    /// How often it had something wrong while it was in sync, as reads and scrubs found.
    pub faults: u64,
}

/// `smalti key status --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyReport {
    /// Custodians of the master secret, counted.
    pub custody: CustodyStatus,
    /// Those who are to hold shares, one by one.
    pub holders: Vec<HolderFacts>,
    /// What has become of shares that are to be dealt on.
    #[serde(default)]
    pub resharing: ResharingStatus,
    /// Recovery shares that people have; null if the cluster was made without.
    #[serde(default)]
    pub recovery: Option<RecoveryFacts>,
    /// The key epochs of every volume, by name.
    pub volumes: Vec<VolumeKeys>,
}

/// A custodian.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HolderFacts {
    /// The name of its node.
    pub node: String,
    /// The number of its share, from 1.
    pub share: u8,
    /// Whether it answers.
    pub reachable: bool,
    /// Shares that it should have and says it has not.
    #[serde(default)]
    pub lacking: u32,
    /// Why it can not use its shares, as in "it is ..."; null when it can.
    #[serde(default)]
    pub barred: Option<String>,
}

/// The key epochs of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeKeys {
    /// The volume's name.
    pub volume: String,
    /// Its identity.
    #[schema(value_type = String)]
    pub id: VolumeId,
    /// The one new records are sealed under.
    #[schema(value_type = u32)]
    pub current: KeyEpochNo,
    /// Whether new keys are wanted, and not there yet.
    pub wanted: bool,
    /// Key epochs that were revoked and have not ended.
    pub revoked: Option<RevokedKeys>,
    /// All that may still be in use, oldest first.
    pub epochs: Vec<KeyEpochFacts>,
    /// How far older records are sealed anew; null when there are none, or nobody serves the volume.
    pub resealing: Option<ResealStatus>,
}

/// Key epochs that may have leaked, while records are under them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevokedKeys {
    /// The newest of them.
    #[schema(value_type = u32)]
    pub through: KeyEpochNo,
    /// Unix seconds when they were revoked first.
    pub since: u64,
    /// Blocks under them when the present look listed them; null while nobody counts.
    pub blocks: Option<u64>,
}

/// How far records of older key epochs are sealed anew. A look at all blocks lists them and seals the older
/// ones anew; key epochs end after a look that finds none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResealStatus {
    /// Blocks that the present look has sealed anew.
    pub sealed: u64,
    /// Blocks of which nobody could tell under which keys they are: their slots are out of sync.
    pub unknown: u64,
    /// Older contents that snapshots hold. They are not sealed anew.
    pub held: u64,
    /// Blocks that could not be read.
    pub failed: u64,
    /// Groups that could not be listed: too much of them is out of reach, or has yet to be compared.
    pub unlisted: u64,
    /// What it waits for, if it does not go on.
    pub why: Option<String>,
}

/// A key epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyEpochFacts {
    /// Its number.
    #[schema(value_type = u32)]
    pub no: KeyEpochNo,
    /// Unix seconds of its beginning.
    pub timestamp: u64,
    /// None of its keys has sealed more blocks, as far as gateways have told.
    pub sealed: u64,
    /// Shares of its wrapping secret that are needed.
    pub needed: u8,
    /// Shares of its wrapping secret there are.
    pub total: u8,
    /// Blocks that were under it when the present look listed them; null while nobody counts.
    pub blocks: Option<u64>,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Stalled => "stalled",
        })
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Draining => "draining",
        })
    }
}

impl fmt::Display for SlotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Insync => "insync",
            Self::Learner => "learner",
            Self::Out => "out",
        })
    }
}
