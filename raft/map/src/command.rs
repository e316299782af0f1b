//! What can be asked of the map, and what it answers.

use crate::scrub::GroupScrub;
use crate::types::{Custody, JoinToken, KeyEpoch, NodeAddresses, ReadMode, Recovery};
use serde::{Deserialize, Serialize};
use smalti_storage::ids::{
    ClusterId, Epoch, GroupNo, Incarnation, KeyEpochNo, NodeId, RaftStoreId, RunId, Slot, StoreId,
    TokenId, VolumeId, VolumeNo,
};
use smalti_storage::keys::SecretName;
use smalti_storage::store::Announced;
use thiserror::Error;

/// A change of the map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Founds the cluster; refused when there is one.
    InitCluster {
        /// Its identity.
        cluster: ClusterId,
        /// First members.
        nodes: Vec<(NodeId, String, NodeAddresses)>,
        /// Custody of the master secret.
        custody: Custody,
        /// What every secret is to be sealed to besides.
        recovery: Option<Recovery>,
    },
    /// A node started: sets its addresses and gives it the next incarnation.
    RegisterNode {
        /// Who.
        node: NodeId,
        /// Where it listens now.
        addresses: NodeAddresses,
    },
    /// A store started, before it serves: gives it its incarnation. Refused when a newer start of
    /// its node is registered already, or when the store belongs to another node.
    RegisterStore(StoreStart),
    /// Makes a volume.
    CreateVolume(Box<NewVolume>),
    /// Removes a volume and its wrapped keys.
    DeleteVolume {
        /// Which, by number.
        volume: VolumeNo,
        /// And by identity.
        id: VolumeId,
    },
    /// Takes stores out of the in-sync set of every group where enough remain.
    Shrink {
        /// Which volume.
        volume: VolumeNo,
        /// Planned against.
        epoch: Epoch,
        /// Stores to take out.
        stores: Vec<StoreId>,
        /// Whether as many as there are data slots are enough, instead of `min_insync`. They have all
        /// that is needed to bring others up to date; no write is acknowledged meanwhile.
        to_data: bool,
    },
    /// Names a new coordinator.
    Elect {
        /// Which volume.
        volume: VolumeNo,
        /// Planned against.
        epoch: Epoch,
        /// The node to elect.
        node: NodeId,
        /// Its registered incarnation.
        incarnation: Incarnation,
    },
    /// The coordinator of `epoch` has finished its takeover.
    Activate {
        /// Which volume.
        volume: VolumeNo,
        /// Whose.
        epoch: Epoch,
        /// Groups that were offline and have been settled with the others. They begin an epoch.
        online: Vec<GroupNo>,
    },
    /// A takeover goes on without these groups: stores that they can not do without are away.
    SetOffline {
        /// Which volume.
        volume: VolumeNo,
        /// Whose takeover.
        epoch: Epoch,
        /// Which groups; never all.
        groups: Vec<GroupNo>,
    },
    /// Stores begin to catch up: on slots they hold in the table but are not in sync on, or on slots
    /// that are to move to them.
    AddLearners {
        /// Which volume.
        volume: VolumeNo,
        /// Planned against.
        epoch: Epoch,
        /// Which slots.
        slots: Vec<GrowSlot>,
    },
    /// Caught-up learners become in-sync. One to which its slot moves takes the place of the store
    /// that held it.
    Grow {
        /// Which volume.
        volume: VolumeNo,
        /// Planned against.
        epoch: Epoch,
        /// Which slots.
        slots: Vec<GrowSlot>,
    },
    /// Slots are to be held by other stores; the coordinator sees to it. To name the store that holds
    /// a slot takes an earlier wish back.
    Move {
        /// Which volume.
        volume: VolumeNo,
        /// What is to go where.
        moves: Vec<MoveSlot>,
    },
    /// Nothing is missing in these groups: stores that held a slot of theirs before may delete it.
    ForgetHolders {
        /// Which volume.
        volume: VolumeNo,
        /// Planned against.
        epoch: Epoch,
        /// Which groups.
        groups: Vec<GroupNo>,
    },
    /// The state of the volume at this moment is to be kept. Its coordinator asks for it, with no
    /// update of its own undecided, and issues none before the epoch is over.
    AddSnapshot {
        /// Which volume.
        volume: VolumeNo,
        /// Whose coordinator asks.
        epoch: Epoch,
        /// Unique among the snapshots of the volume.
        name: String,
        /// Unix seconds.
        created: u64,
    },
    /// A snapshot is not needed any more.
    DropSnapshot {
        /// Which volume.
        volume: VolumeNo,
        /// Its number.
        snap: u32,
    },
    /// A member of the metadata group started with this store of votes and log.
    RegisterRaftStore {
        /// The member.
        node: NodeId,
        /// Its store.
        store: RaftStoreId,
    },
    /// A member's new store counts from now on. By the leader, once the member is no voter.
    AdmitRecruit {
        /// The member.
        node: NodeId,
        /// The store it has registered.
        store: RaftStoreId,
    },
    /// What the operator wants of a node.
    SetNode {
        /// Which node.
        node: NodeId,
        /// What.
        setting: NodeSetting,
    },
    /// Removes a node that has no slots, no seat and no shares.
    RemoveNode {
        /// Which node.
        node: NodeId,
    },
    /// Forgets a store that no group needs.
    ForgetStore {
        /// Which store.
        store: StoreId,
    },
    /// No slot begins to move, or they may again.
    PauseMoves(bool),
    /// The operator wants every group of a volume scrubbed.
    AskScrub {
        /// Which volume.
        volume: VolumeNo,
    },
    /// Groups were scrubbed, by the coordinator of `epoch`.
    NoteScrubs {
        /// Which volume.
        volume: VolumeNo,
        /// Whose.
        epoch: Epoch,
        /// Which groups, and what was found.
        groups: Vec<(GroupNo, GroupScrub)>,
    },
    /// Stores in sync had something that is not what was written.
    NoteFaults {
        /// When, in Unix seconds.
        at: u64,
        /// Which, and how often.
        faults: Vec<(StoreId, u32)>,
    },
    /// A node may join with this token.
    CreateToken {
        /// Which token.
        id: TokenId,
        /// What the map is to know of it.
        token: JoinToken,
        /// When it was made, in Unix seconds.
        now: u64,
    },
    /// A node joins. Its proposer has seen the proof that it has the token's secret.
    Join {
        /// With which token.
        token: TokenId,
        /// Its name; empty for any.
        name: String,
        /// Where it will listen.
        addresses: NodeAddresses,
        /// When it asked, in Unix seconds.
        now: u64,
    },
    /// The operator wants new keys for a volume.
    AskRotation {
        /// Which volume.
        volume: VolumeNo,
        /// Instead of those of this key epoch.
        key_epoch: KeyEpochNo,
    },
    /// A new key epoch of a volume begins, and an epoch of the volume in which its coordinator takes over
    /// anew. Every custodian has its share already.
    AddKeyEpoch {
        /// Which volume.
        volume: VolumeNo,
        /// Whose coordinator asks.
        epoch: Epoch,
        /// It follows on the current one.
        key_epoch: Box<KeyEpoch>,
    },
    /// Nothing is sealed under key epochs before one any more: their keys are destroyed.
    RetireKeyEpochs {
        /// Which volume.
        volume: VolumeNo,
        /// The generation of the gateway of whoever found that.
        generation: u32,
        /// The first key epoch that stays.
        below: KeyEpochNo,
    },
    /// These nodes are to hold the shares of every secret. With the ones that do already, all shares become
    /// new ones.
    SetCustodians {
        /// Planned against.
        share_epoch: u32,
        /// Shares that are to be needed.
        threshold: u8,
        /// Who gets one each, in order of share number.
        nodes: Vec<NodeId>,
        /// When, in Unix seconds.
        now: u64,
        /// There is to be another master secret too: the present one may have leaked.
        new_master: bool,
    },
    /// A secret has been dealt on: every new custodian has its share.
    Reshare {
        /// Which.
        secret: SecretName,
        /// The dealing that was dealt on: the commitments of the custody that it takes the place of.
        from: Vec<u8>,
        /// The new one.
        custody: Custody,
    },
    /// Another master secret has been dealt: every custodian has its share. Keys that were made of the one
    /// before stay what they are.
    ReplaceMaster {
        /// The commitments of the one before.
        from: Vec<u8>,
        /// Custody of the new one.
        custody: Custody,
    },
    /// Key epochs may have leaked: what is under them is to be sealed anew before anything else, and if new
    /// records are, there are to be new keys.
    RevokeKeys {
        /// Which volume.
        volume: VolumeNo,
        /// The newest of them.
        key_epoch: KeyEpochNo,
        /// When, in Unix seconds.
        now: u64,
    },
    /// A gateway has sealed blocks.
    NoteSealed {
        /// Of which volume.
        volume: VolumeNo,
        /// Under which key epoch.
        key_epoch: KeyEpochNo,
        /// No shard key of it has sealed more of them.
        blocks: u64,
    },
}

/// What can be set of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeSetting {
    /// Its share of the slots, relative to the others: 0 to 10,000.
    Weight(u32),
    /// Its failure domain: a name, or empty for one of its own.
    Domain(String),
    /// Whether its slots are to move away.
    Draining(bool),
}

/// A slot and the store that is to hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveSlot {
    /// The group.
    pub group: GroupNo,
    /// The slot.
    pub slot: Slot,
    /// The store.
    pub store: StoreId,
}

/// A slot and the start of the store that fills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrowSlot {
    /// The group.
    pub group: GroupNo,
    /// The slot.
    pub slot: Slot,
    /// The store.
    pub store: StoreId,
    /// The start of the store that caught up.
    pub incarnation: Incarnation,
}

/// What `CreateVolume` needs to know. The proposer has drawn and computed all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewVolume {
    /// Identity.
    pub id: VolumeId,
    /// Name: 1..=64 of `a-z A-Z 0-9 . _ -`, not beginning with `.` or `-`.
    pub name: String,
    /// Bytes; a positive multiple of 512.
    pub size: u64,
    /// n.
    pub data: u8,
    /// k.
    pub parity: u8,
    /// Mean bytes of one shard.
    pub shard_size: u32,
    /// Least in-sync slots of a group.
    pub min_insync: u8,
    /// How reads are made sure of.
    pub read_mode: ReadMode,
    /// Slot -> store table of each group.
    pub groups: Vec<Vec<StoreId>>,
    /// The first key epoch.
    pub key_epoch: KeyEpoch,
}

/// A start of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStart {
    /// Which store.
    pub store: StoreId,
    /// On which node.
    pub node: NodeId,
    /// The node's incarnation: a command that comes late, from a start before, changes nothing.
    pub of: Incarnation,
    /// The store's own durable count of starts.
    pub incarnation: Incarnation,
    /// The run that begins.
    pub run: RunId,
    /// The last one that was registered, as far as the disk knows.
    pub last: RunId,
    /// Whether that ended in order.
    pub clean: bool,
    /// Names of starts since that were broken off; nil for none.
    pub announced: Announced,
}

impl StoreStart {
    /// The first start of a store, in which nothing was lost. Its run is called as the store is.
    pub fn first(store: StoreId, node: NodeId, of: Incarnation) -> Self {
        let (run, last) = (RunId(store.0), RunId::default());
        let announced = Announced::default();
        Self { store, node, of, incarnation: Incarnation(1), run, last, clean: true, announced }
    }
}

/// What an accepted command did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// Done, nothing to tell.
    Done,
    /// `RegisterNode`: the incarnation to run under.
    Registered(Incarnation),
    /// `RegisterStore`: what the store is to run as.
    RegisteredStore {
        /// Its number.
        incarnation: Incarnation,
        /// Whether its disk is what the last run left behind.
        clean: bool,
    },
    /// `CreateVolume`: its number.
    Created(VolumeNo),
    /// A change of configuration: the volume's epoch now, and for `Shrink` the groups that could
    /// not give up the store.
    Epoch {
        /// The epoch after the command.
        epoch: Epoch,
        /// Groups left as they were.
        refused: Vec<GroupNo>,
    },
    /// The command was refused and changed nothing.
    Rejected(Rejection),
    /// `Join`: what the node is.
    Joined {
        /// Its number.
        node: NodeId,
        /// Its name.
        name: String,
    },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
#[non_exhaustive]
pub enum Rejection {
    /// The volume moved on.
    #[error("planned against epoch {planned}, the volume is at {current}")]
    StaleEpoch {
        /// The command's.
        planned: Epoch,
        /// The map's.
        current: Epoch,
    },
    /// Taking the stores out would leave too few in sync everywhere.
    #[error("too few in-sync slots would remain")]
    MinInsync,
    /// No such volume.
    #[error("no volume {0}")]
    NoVolume(VolumeNo),
    /// The start named is not the registered one.
    #[error("incarnation is not the registered one")]
    Incarnation,
    /// The command does not fit the map.
    #[error("{0}")]
    Invalid(String),
}
