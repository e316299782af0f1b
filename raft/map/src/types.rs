//! The parts of the map.

use crate::scrub::{Faults, Scrubs};
use serde::{Deserialize, Serialize};
use smalti_storage::ids::{
    ClusterId, Epoch, GroupNo, Incarnation, KeyEpochNo, NodeId, RaftStoreId, RunId, Slot, SlotSet,
    StoreId, TokenId, VolumeId, VolumeNo,
};
use smalti_storage::keys::{Dealt, SecretName, ShareName};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// Everything the cluster agrees on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// The cluster; nil until `InitCluster` was applied.
    pub cluster: ClusterId,
    /// Grows with every applied command, refused ones included.
    pub version: u64,
    /// Members, by number.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Shard stores, by identity.
    pub stores: BTreeMap<StoreId, Store>,
    /// Volumes, by short number.
    pub volumes: BTreeMap<VolumeNo, Volume>,
    /// The number the next volume gets. Numbers are never reused.
    pub next_volume: u32,
    /// Who is to hold a share of every split secret.
    pub custodians: Custodians,
    /// Custody of the master secret.
    pub custody: Custody,
    /// Key epochs whose volume was deleted: custodians destroy their shares of them.
    pub retired_keys: BTreeSet<(VolumeId, KeyEpochNo)>,
    /// No slot begins to move, for as long as the operator wants.
    pub moves_paused: bool,
    /// The number the next node gets that joins. Numbers are never reused.
    pub next_node: u64,
    /// Tokens to join with, used ones among them for a while.
    pub tokens: BTreeMap<TokenId, JoinToken>,
    /// What every secret is sealed to besides, for people who have shares of what opens it; none if the cluster
    /// was made without.
    pub recovery: Option<Recovery>,
}

/// The public side of the recovery secret, whose shares are with people. It never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Shares needed.
    pub threshold: u8,
    /// Shares there are.
    pub shares: u8,
    /// Feldman commitments. Opaque bytes here, but that there are as many as shares are needed.
    pub commitments: Vec<u8>,
}

/// What the map knows of a token to join with. Its secret is with whoever is to join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// What a proof of the secret is checked against: a public key whose private one follows from the
    /// secret.
    pub proof_key: [u8; 32],
    /// The only name under which a node can join with it; empty for any.
    pub name: String,
    /// Unix seconds from which on it is worth nothing.
    pub expires: u64,
    /// Who joined with it.
    pub used_by: Option<NodeId>,
}

/// Where a node can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddresses {
    /// Its QUIC endpoint (data, Raft, custody).
    pub quic: SocketAddr,
    /// Its control API.
    pub api: SocketAddr,
    /// Its NBD service over TCP.
    pub nbd: SocketAddr,
}

/// What is likely to fail at once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureDomain {
    /// The operator named none for this node.
    Own(NodeId),
    /// All nodes with this name.
    Named(String),
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Name for people.
    pub name: String,
    /// Its newest addresses.
    pub addresses: NodeAddresses,
    /// Which start of its process is the current one; 0 until it registered first.
    pub incarnation: Incarnation,
    /// Its share of the slots, relative to the others. 0: takes none.
    pub weight: u32,
    /// Its failure domain; empty for one of its own. Slots of a group are spread over domains as far as
    /// there are enough.
    pub domain: String,
    /// Its slots are to move away.
    pub draining: bool,
    /// The Raft store with which it votes; none until it registered first.
    pub raft_store: Option<RaftStoreId>,
    /// Another one that it came with: it has forgotten what it voted for, and is to be admitted anew.
    pub recruit: Option<RaftStoreId>,
}

impl Node {
    /// A new member that has not started yet.
    pub fn new(name: String, addresses: NodeAddresses) -> Self {
        Self {
            name,
            addresses,
            incarnation: Incarnation(0),
            weight: Self::WEIGHT,
            domain: String::new(),
            draining: false,
            raft_store: None,
            recruit: None,
        }
    }

    /// The weight of a node of which nothing else was said.
    pub const WEIGHT: u32 = 100;
}

/// A shard store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    /// The node it is on.
    pub node: NodeId,
    /// Its current start.
    pub incarnation: Incarnation,
    /// Whether its last run ended in order, and its disk is what that run left behind.
    pub clean: bool,
    /// Its current run.
    pub run: RunId,
    /// What it had wrong while it was in sync.
    pub faults: Faults,
}

/// Which process may order the updates of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Coordinator {
    /// The node.
    pub node: NodeId,
    /// The start of its process; a restarted one needs a new epoch.
    pub incarnation: Incarnation,
}

/// How a coordinator makes sure, before it answers a read, that nobody has taken its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadMode {
    /// By leases: no message for a read, but the clocks of nodes must run at the same rate within
    /// a percent, in suspended machines too.
    #[default]
    Lease,
    /// By asking: one round to more than (in sync - n) stores for every read, and no clock.
    Confirm,
}

impl fmt::Display for ReadMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lease => "lease",
            Self::Confirm => "confirm",
        })
    }
}

impl FromStr for ReadMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "lease" => Ok(Self::Lease),
            "confirm" => Ok(Self::Confirm),
            other => Err(format!("{other:?} is no read mode: lease or confirm")),
        }
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Short number, the name in messages and on disk.
    pub no: VolumeNo,
    /// Identity, bound into every sealed record.
    pub id: VolumeId,
    /// Name for people and for NBD.
    pub name: String,
    /// Size in bytes, a multiple of 512.
    pub size: u64,
    /// Data slots per row (n).
    pub data: u8,
    /// Parity slots per row (k).
    pub parity: u8,
    /// Mean bytes of one shard.
    pub shard_size: u32,
    /// No group may have fewer in-sync slots than this; at least n.
    pub min_insync: u8,
    /// How reads are made sure of. Set when the volume is made.
    pub read_mode: ReadMode,
    /// The current configuration.
    pub epoch: Epoch,
    /// Who orders updates; none before the first election.
    pub coordinator: Option<Coordinator>,
    /// Whether that coordinator has finished its takeover.
    pub activated: bool,
    /// The epoch of the last election: writes of gateways with a smaller generation are fenced.
    pub writer_gen: u32,
    /// The newest snapshot number (0: none was ever made). Numbers are never used again.
    pub snap_seq: u32,
    /// The snapshots that can be read, by number.
    pub snapshots: BTreeMap<u32, Snapshot>,
    /// How many snapshots have been deleted: stores let go of what only those needed.
    pub snapshots_deleted: u32,
    /// The key epoch for new records.
    pub key_epoch: KeyEpochNo,
    /// Key epochs that may still be in use.
    pub key_epochs: BTreeMap<KeyEpochNo, KeyEpoch>,
    /// A new one is wanted.
    pub rotate: bool,
    /// Those that are not trusted any more, until they have ended.
    pub revoked: Option<Revoked>,
    /// Placement groups; the index is the group's number.
    pub groups: Vec<Group>,
    /// Scrubs of its groups.
    pub scrubs: Scrubs,
}

/// Key epochs that may be known to others than they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// The newest of them; all older ones are meant as well.
    pub through: KeyEpochNo,
    /// Unix seconds when that was said first.
    pub since: u64,
}

/// The state of a volume at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Name for people, unique among the snapshots of its volume.
    pub name: String,
    /// Unix seconds by the clock of whoever asked for it.
    pub created: u64,
}

/// A placement group: the slot -> store table its stripes share, and who is in sync.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The store of each slot; distinct stores.
    pub slots: Vec<StoreId>,
    /// The slots that hold every acknowledged update.
    pub insync: SlotSet,
    /// Stores that are catching up, by slot.
    pub learners: BTreeMap<Slot, Learner>,
    /// Stores that are to hold a slot instead of the one that does.
    pub targets: BTreeMap<Slot, StoreId>,
    /// Stores that held a slot before and must keep their data until the group is clean.
    pub old_holders: BTreeSet<StoreId>,
    /// The epoch that began when a slot's store came in sync, where that was not with the volume.
    pub insync_since: BTreeMap<Slot, Epoch>,
    /// Whatever was issued before this epoch began is decided: that of the last takeover that settled the
    /// group, or of a snapshot since.
    pub settled: Epoch,
    /// The volume is served without this group: more of its stores in sync were away in a takeover than
    /// it can do without. What was undecided of it then still is, and no watermark tells anything of it.
    pub offline: bool,
}

/// A store on its way into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learner {
    /// The store.
    pub store: StoreId,
    /// The start with which it was admitted.
    pub incarnation: Incarnation,
}

/// One generation of a volume's shard keys, all of them wrapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyEpoch {
    /// Its number; from 1.
    pub no: KeyEpochNo,
    /// Unix seconds that went into the derivation.
    pub timestamp: u64,
    /// The generation of the first gateway that seals under it, and under nothing older; 0 for the first key
    /// epoch of a volume.
    pub since: u32,
    /// No shard key of it has sealed more blocks than this, as far as gateways have told.
    pub sealed: u64,
    /// Wrapped shard keys, `groups x data` of them, group-major. Opaque bytes here.
    pub shard_keys: Vec<Vec<u8>>,
    /// The wrapped placement key of the volume.
    pub place_key: Vec<u8>,
    /// Custody of this epoch's wrapping secret.
    pub custody: Custody,
}

/// A secret that is split over custodians: who holds which share, and the public commitments
/// against which shares are verified.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Custody {
    /// The share epoch in which it was dealt.
    pub share_epoch: u32,
    /// Shares needed.
    pub threshold: u8,
    /// Holders, in order of share number.
    pub holders: Vec<ShareHolder>,
    /// Feldman commitments, encoded by the key code. Opaque bytes here.
    pub commitments: Vec<u8>,
    /// The secret, sealed to the cluster's recovery secret; empty if the cluster has none. The same for every
    /// dealing of the secret. Opaque bytes here, but their number.
    pub sealed_for_recovery: Vec<u8>,
}

/// The share epoch that a cluster begins with.
pub const FIRST_SHARE_EPOCH: u32 = 1;

/// Who is to hold a share of every split secret, and how many are to be needed: what new secrets are dealt by,
/// and older ones dealt on to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Custodians {
    /// From 1; grows with each change, and when all shares are to be new ones for the same custodians.
    pub share_epoch: u32,
    /// Unix seconds when it began, by the clock of whoever asked for it; 0 for the first.
    pub since: u64,
    /// Shares needed.
    pub threshold: u8,
    /// Holders, in order of share number.
    pub holders: Vec<ShareHolder>,
    /// They are to get shares of another master secret, instead of new ones of the present one.
    pub new_master: bool,
}

/// One custodian's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareHolder {
    /// The custodian's node.
    pub node: NodeId,
    /// The share's number, from 1.
    pub share: u8,
}

impl ClusterMap {
    /// Who has which part of a secret; `None` when the map knows no such secret.
    pub fn custody_of(&self, secret: &SecretName) -> Option<&Custody> {
        match secret {
            SecretName::Master => Some(&self.custody),
            SecretName::Wrapping { volume, key_epoch } => {
                let volume = self.volumes.values().find(|known| known.id == *volume)?;
                volume.key_epochs.get(key_epoch).map(|epoch| &epoch.custody)
            }
        }
    }

    /// Every split secret, and who has which part of it.
    pub fn custodies(&self) -> impl Iterator<Item = (SecretName, &Custody)> {
        let volumes = self.volumes.values().flat_map(|volume| {
            volume.key_epochs.iter().map(|(no, epoch)| {
                let name = SecretName::Wrapping { volume: volume.id, key_epoch: *no };
                (name, &epoch.custody)
            })
        });
        std::iter::once((SecretName::Master, &self.custody)).chain(volumes)
    }

    /// Whether the node is a custodian, or was one when some secret was split last.
    pub fn keeps_shares(&self, node: NodeId) -> bool {
        self.custodians.has(node) || self.custodies().any(|(_, custody)| custody.has(node))
    }

    pub(crate) fn custody_of_mut(&mut self, secret: &SecretName) -> Option<&mut Custody> {
        match secret {
            SecretName::Master => Some(&mut self.custody),
            SecretName::Wrapping { volume, key_epoch } => {
                let volume = self.volumes.values_mut().find(|known| known.id == *volume)?;
                volume.key_epochs.get_mut(key_epoch).map(|epoch| &mut epoch.custody)
            }
        }
    }

    /// The volume of that name.
    pub fn volume_named(&self, name: &str) -> Option<&Volume> {
        self.volumes.values().find(|volume| volume.name == name)
    }

    /// The node a store is on.
    pub fn node_of(&self, store: StoreId) -> Option<NodeId> {
        self.stores.get(&store).map(|entry| entry.node)
    }

    /// The failure domain of a node.
    pub fn domain_of(&self, node: NodeId) -> FailureDomain {
        match self.nodes.get(&node) {
            Some(entry) if !entry.domain.is_empty() => FailureDomain::Named(entry.domain.clone()),
            _ => FailureDomain::Own(node),
        }
    }

    /// The stores of one node, in order.
    pub fn stores_of(&self, node: NodeId) -> impl Iterator<Item = StoreId> {
        self.stores.iter().filter(move |(_, entry)| entry.node == node).map(|(id, _)| *id)
    }
}

impl Custody {
    /// What its shares are called, of the secret that this is the custody of.
    pub fn share_name(&self, secret: SecretName) -> ShareName {
        let dealing = Dealt::of(&self.commitments);
        ShareName { secret, share_epoch: self.share_epoch, dealing }
    }

    /// The number of a node's share, if it has one.
    pub fn share_of(&self, node: NodeId) -> Option<u8> {
        share_of(&self.holders, node)
    }

    /// Whether a node has a share.
    pub fn has(&self, node: NodeId) -> bool {
        self.share_of(node).is_some()
    }
}

fn share_of(holders: &[ShareHolder], node: NodeId) -> Option<u8> {
    holders.iter().find(|holder| holder.node == node).map(|holder| holder.share)
}

impl Custodians {
    /// The number of the share that a node is to have, if it is to have one.
    pub fn share_of(&self, node: NodeId) -> Option<u8> {
        share_of(&self.holders, node)
    }

    /// Whether a node is to have a share.
    pub fn has(&self, node: NodeId) -> bool {
        self.share_of(node).is_some()
    }

    /// The nodes, in order of share number.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.holders.iter().map(|holder| holder.node)
    }
}

impl Volume {
    /// n + k.
    pub fn slots(&self) -> u8 {
        self.data + self.parity
    }

    /// All slots of a group.
    pub fn all_slots(&self) -> SlotSet {
        SlotSet::first(self.slots())
    }

    /// A group by number.
    pub fn group(&self, group: GroupNo) -> Option<&Group> {
        self.groups.get(usize::from(group.0))
    }

    /// The number of the snapshot of that name.
    pub fn snapshot_named(&self, name: &str) -> Option<u32> {
        self.snapshots.iter().find(|(_, snapshot)| snapshot.name == name).map(|(no, _)| *no)
    }

    /// Whether every group has all its slots in sync.
    pub fn is_full(&self) -> bool {
        self.groups.iter().all(|group| group.insync == self.all_slots())
    }

    /// The groups that the volume is served without.
    pub fn offline(&self) -> impl Iterator<Item = GroupNo> {
        let groups = (0u16..).map(GroupNo).zip(&self.groups);
        groups.filter(|(_, group)| group.offline).map(|(no, _)| no)
    }
}

impl Group {
    /// Whether the store holds, or is to keep, data of the group.
    pub fn keeps(&self, store: StoreId) -> bool {
        self.slot_of(store).is_some()
            || self.old_holders.contains(&store)
            || self.targets.values().any(|target| *target == store)
            || self.learners.values().any(|learner| learner.store == store)
    }

    /// Every store that has or is to have a slot, some perhaps twice.
    pub fn members(&self) -> impl Iterator<Item = StoreId> {
        let learners = self.learners.values().map(|learner| learner.store);
        self.slots.iter().chain(self.targets.values()).copied().chain(learners)
    }

    /// The stores that are in sync, by slot.
    pub fn insync_stores(&self) -> impl Iterator<Item = StoreId> {
        self.insync.iter().filter_map(|slot| self.slots.get(slot.index()).copied())
    }

    /// Whether the store is in sync.
    pub fn has_in_sync(&self, store: StoreId) -> bool {
        self.slot_of(store).is_some_and(|slot| self.insync.contains(slot))
    }

    /// The slot of a store in this group's table.
    pub fn slot_of(&self, store: StoreId) -> Option<Slot> {
        let index = self.slots.iter().position(|member| *member == store)?;
        u8::try_from(index).ok().map(Slot)
    }
}
