//! The invariants of the map, in one place: what a new volume is checked against, what tests
//! assert after every command, and what a snapshot must satisfy before it is taken over.

use crate::apply::limits;
use crate::types::{
    ClusterMap, Custodians, Custody, Group, KeyEpoch, Node, Recovery, ShareHolder, Volume,
};
use smalti_storage::ids::{
    ClusterId, Epoch, Incarnation, KeyEpochNo, NodeId, Slot, StoreId, VolumeId,
};
use smalti_storage::keys::{Commitments, RECOVERY_ENVELOPE_LEN};
use std::collections::{BTreeMap, BTreeSet};

/// The rule is broken, in words.
type Broken = Result<(), String>;

impl ClusterMap {
    /// Whether the whole map is consistent.
    ///
    /// # Errors
    /// The first broken invariant, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.cluster == ClusterId::default() {
            let empty = Self { version: self.version, ..Self::default() };
            return ensure(*self == empty, || "an unfounded cluster has content".into());
        }
        ensure(self.nodes.len() <= limits::NODES, || "too many nodes".into())?;
        ensure(self.stores.len() <= limits::STORES, || "too many stores".into())?;
        ensure(self.volumes.len() <= limits::VOLUMES, || "too many volumes".into())?;
        ensure(self.tokens.len() <= limits::TOKENS, || "too many tokens".into())?;
        self.check_custodians()?;
        check_recovery(self.recovery.as_ref())?;
        self.check_dealt(&self.custody)?;
        for (id, node) in &self.nodes {
            ensure(id.0 < self.next_node, || format!("{id} was never handed out"))?;
            check_name(&node.name)?;
            check_weight(node.weight)?;
            check_domain(&node.domain)?;
        }
        for (id, store) in &self.stores {
            ensure(self.nodes.contains_key(&store.node), || {
                format!("store {id} is on no known node")
            })?;
            ensure(store.incarnation > Incarnation(0), || format!("store {id} never started"))?;
        }
        let mut names = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for (no, volume) in &self.volumes {
            ensure(*no == volume.no, || format!("{no} is filed as {}", volume.no))?;
            ensure(no.0 < self.next_volume, || format!("{no} was never handed out"))?;
            ensure(names.insert(&volume.name), || format!("two volumes {}", volume.name))?;
            ensure(ids.insert(volume.id), || format!("two volumes with id {}", volume.id))?;
            volume.check().map_err(|broken| format!("{no}: {broken}"))?;
            self.check_volume(volume).map_err(|broken| format!("{no}: {broken}"))?;
        }
        Ok(())
    }

    pub(crate) fn check_custodians(&self) -> Broken {
        let Custodians { share_epoch, threshold, holders, .. } = &self.custodians;
        ensure(*share_epoch >= 1, || "share epochs count from 1".into())?;
        ensure(holders.len() <= limits::CUSTODIANS, || {
            format!("there are more than {} custodians", limits::CUSTODIANS)
        })?;
        let late = self.custody.share_epoch < *share_epoch;
        ensure(!self.custodians.new_master || late, || {
            "another master secret is wanted, and can not be dealt in this share epoch".into()
        })?;
        check_holders(*threshold, holders, &self.nodes)
    }

    /// Whether a secret was dealt to members, and if in this share epoch, then as it says; and whether it is sealed
    /// for recovery where it should be.
    pub(crate) fn check_dealt(&self, custody: &Custody) -> Broken {
        check_custody(custody, &self.nodes)?;
        check_envelope(custody, self.recovery.as_ref())?;
        let Custodians { share_epoch, threshold, holders, .. } = &self.custodians;
        let now = custody.share_epoch == *share_epoch;
        ensure(custody.share_epoch >= 1 && custody.share_epoch <= *share_epoch, || {
            format!("share epoch {} is not in 1..={share_epoch}", custody.share_epoch)
        })?;
        ensure(!now || (custody.threshold, &custody.holders) == (*threshold, holders), || {
            "shares were not dealt to those who are to hold them".into()
        })
    }

    /// Whether what a volume names exists: its stores, their nodes, its coordinator.
    pub(crate) fn check_volume(&self, volume: &Volume) -> Broken {
        if let Some(coordinator) = volume.coordinator {
            let registered = self.nodes.get(&coordinator.node).map(|node| node.incarnation);
            ensure(registered >= Some(coordinator.incarnation), || {
                "the coordinator is no registered start of a node".into()
            })?;
        }
        for key_epoch in volume.key_epochs.values() {
            ensure(!self.retired_keys.contains(&(volume.id, key_epoch.no)), || {
                format!("key epoch {} of {} has ended", key_epoch.no, volume.no)
            })?;
            self.check_dealt(&key_epoch.custody)?;
        }
        for (no, group) in volume.groups.iter().enumerate() {
            // Two slots of a group on one node would be lost together: not k independent failures.
            let mut nodes: BTreeSet<NodeId> = BTreeSet::new();
            for store in &group.slots {
                let node = self.node_of(*store);
                let node = node.ok_or_else(|| format!("group {no}: no store {store}"))?;
                ensure(nodes.insert(node), || format!("group {no}: two slots on {node}"))?;
            }
            let mut targets: BTreeSet<NodeId> = BTreeSet::new();
            for (slot, store) in &group.targets {
                let node = self.node_of(*store);
                let node = node.ok_or_else(|| format!("group {no}: no store {store}"))?;
                let holder = group.slots.get(slot.index()).and_then(|held| self.node_of(*held));
                let free = holder == Some(node) || !nodes.contains(&node);
                ensure(free && targets.insert(node), || {
                    format!("group {no}: {slot} is to move to {node}, which has another slot")
                })?;
            }
            for (slot, learner) in &group.learners {
                let registered = self.stores.get(&learner.store).map(|store| store.incarnation);
                ensure(registered == Some(learner.incarnation), || {
                    format!("group {no}: the learner of {slot} is not the registered start")
                })?;
            }
        }
        Ok(())
    }
}

impl Volume {
    /// Whether the volume is consistent in itself. Whether the stores it names exist is checked by
    /// [`ClusterMap::check`].
    ///
    /// # Errors
    /// The first broken invariant, in words.
    pub fn check(&self) -> Result<(), String> {
        ensure(self.id != VolumeId::default(), || "a volume needs an identity".into())?;
        check_name(&self.name)?;
        ensure(self.size > 0 && self.size.is_multiple_of(512), || {
            format!("size {} is not a positive multiple of 512", self.size)
        })?;
        ensure(self.size <= limits::VOLUME_SIZE, || format!("size {} is too large", self.size))?;
        ensure(self.data >= 1 && self.parity >= 1, || {
            format!("{}+{} needs at least one data and one parity slot", self.data, self.parity)
        })?;
        let slots = self.data.checked_add(self.parity).filter(|slots| *slots <= limits::SLOTS);
        let slots = slots.ok_or_else(|| {
            format!("{}+{} has more than {} slots", self.data, self.parity, limits::SLOTS)
        })?;
        ensure(
            limits::SHARD_SIZE.contains(&self.shard_size) && self.shard_size.is_multiple_of(4096),
            || {
                format!(
                    "shard size {} is not a multiple of 4096 in 64 KiB..64 MiB",
                    self.shard_size
                )
            },
        )?;
        ensure((self.data..=slots).contains(&self.min_insync), || {
            format!("min_insync {} is not in {}..={slots}", self.min_insync, self.data)
        })?;
        ensure(self.epoch >= Epoch(1), || "epochs count from 1".into())?;
        ensure(self.writer_gen <= self.epoch.0, || "the writer generation is ahead".into())?;
        ensure((self.writer_gen == 0) == self.coordinator.is_none(), || {
            "an election sets both coordinator and writer generation".into()
        })?;
        ensure(!self.activated || self.coordinator.is_some(), || {
            "activated without a coordinator".into()
        })?;
        ensure(!self.groups.is_empty() && self.groups.len() <= limits::GROUPS, || {
            format!("{} groups are not 1..={}", self.groups.len(), limits::GROUPS)
        })?;
        ensure(self.key_epochs.contains_key(&self.key_epoch), || "no current key epoch".into())?;
        for (no, key_epoch) in &self.key_epochs {
            ensure(*no == key_epoch.no && *no > KeyEpochNo(0), || {
                format!("key epoch {no} is filed wrong")
            })?;
            ensure(*no <= self.key_epoch, || format!("key epoch {no} is yet to begin"))?;
            ensure(key_epoch.since <= self.writer_gen, || {
                format!("key epoch {no} began too late")
            })?;
            self.check_keys(key_epoch)?;
        }
        ensure(self.key_epochs.len() <= limits::KEY_EPOCHS, || "too many key epochs".into())?;
        let oldest = self.key_epochs.keys().next();
        ensure(self.revoked.is_none_or(|it| oldest.is_some_and(|no| it.through >= *no)), || {
            "key epochs are revoked that have ended".into()
        })?;
        ensure(self.revoked.is_none_or(|it| it.through < self.key_epoch || self.rotate), || {
            "new records are under revoked keys, and no new ones are wanted".into()
        })?;
        self.check_snapshots()?;
        for (no, scrub) in &self.scrubs.groups {
            ensure(self.group(*no).is_some(), || format!("a scrub of group {no}"))?;
            ensure(scrub.asked <= self.scrubs.asked, || format!("group {no} was not asked for"))?;
        }
        for (no, group) in self.groups.iter().enumerate() {
            self.check_group(group).map_err(|broken| format!("group {no}: {broken}"))?;
        }
        Ok(())
    }

    fn check_snapshots(&self) -> Broken {
        ensure(self.snapshots.len() <= limits::SNAPSHOTS, || "too many snapshots".into())?;
        let made = self.snapshots.len() as u64 + u64::from(self.snapshots_deleted);
        ensure(made == u64::from(self.snap_seq), || {
            format!("{} snapshots were made, and {made} are there or deleted", self.snap_seq)
        })?;
        let mut names = BTreeSet::new();
        for (snap, snapshot) in &self.snapshots {
            ensure((1..=self.snap_seq).contains(snap), || format!("no snapshot {snap} was made"))?;
            check_name(&snapshot.name)?;
            ensure(names.insert(&snapshot.name), || format!("two snapshots {}", snapshot.name))?;
        }
        Ok(())
    }

    fn check_group(&self, group: &Group) -> Broken {
        ensure(group.slots.len() == usize::from(self.slots()), || {
            format!("{} stores for {} slots", group.slots.len(), self.slots())
        })?;
        let distinct: BTreeSet<StoreId> = group.slots.iter().copied().collect();
        ensure(distinct.len() == group.slots.len(), || "a store fills two slots".into())?;
        ensure(group.insync.is_subset(self.all_slots()), || "unknown slots in sync".into())?;
        ensure(group.insync.len() >= u32::from(self.data), || {
            format!("{} in sync, fewer than there are data slots", group.insync)
        })?;
        let holds = |slot: &Slot, store| group.slots.get(slot.index()) == Some(store);
        for (slot, learner) in &group.learners {
            let moves = group.targets.get(slot) == Some(&learner.store);
            ensure(moves || holds(slot, &learner.store), || {
                format!("the learner of {slot} is neither its store nor to be it")
            })?;
            ensure(moves || !group.insync.contains(*slot), || {
                format!("{slot} learns while in sync")
            })?;
        }
        let mut targets = BTreeSet::new();
        for (slot, store) in &group.targets {
            ensure(slot.0 < self.slots(), || format!("{slot} is to move and does not exist"))?;
            ensure(targets.insert(store), || format!("two slots are to move to {store}"))?;
            ensure(!distinct.contains(store), || {
                format!("{slot} is to move to {store}, a member")
            })?;
        }
        ensure(group.old_holders.is_disjoint(&distinct), || "an old holder is a member".into())?;
        Ok(())
    }

    pub(crate) fn check_keys(&self, key_epoch: &KeyEpoch) -> Broken {
        let expected = self.groups.len() * usize::from(self.data);
        ensure(key_epoch.shard_keys.len() == expected, || {
            format!("{} shard keys, expected {expected}", key_epoch.shard_keys.len())
        })?;
        let mut keys = key_epoch.shard_keys.iter().chain([&key_epoch.place_key]);
        ensure(keys.all(|key| !key.is_empty() && key.len() <= limits::WRAPPED_KEY), || {
            format!("a wrapped key has not 1..={} bytes", limits::WRAPPED_KEY)
        })
    }
}

/// `1..=64` of `a-z A-Z 0-9 . _ -`, not beginning with `.` or `-`: safe as a file name, an option
/// argument and an NBD export name.
pub(crate) fn check_name(name: &str) -> Broken {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    ensure(
        (1..=limits::NAME).contains(&name.len())
            && name.chars().all(legal)
            && !name.starts_with(['.', '-']),
        || format!("{name:?} is not a name: 1 to 64 of a-z A-Z 0-9 . _ -, not first . or -"),
    )
}

pub(crate) fn check_weight(weight: u32) -> Broken {
    ensure(weight <= limits::WEIGHT, || format!("weight {weight} is more than {}", limits::WEIGHT))
}

/// A failure domain: a name, or none.
pub(crate) fn check_domain(domain: &str) -> Broken {
    if domain.is_empty() { Ok(()) } else { check_name(domain) }
}

pub(crate) fn check_custody(custody: &Custody, nodes: &BTreeMap<NodeId, Node>) -> Broken {
    check_holders(custody.threshold, &custody.holders, nodes)?;
    ensure(custody.commitments.len() <= limits::COMMITMENTS, || {
        "the commitments are too large".into()
    })
}

pub(crate) fn check_recovery(recovery: Option<&Recovery>) -> Broken {
    let Some(Recovery { threshold, shares, commitments }) = recovery else { return Ok(()) };
    ensure((2..=*shares).contains(threshold) && *shares <= limits::RECOVERY_SHARES, || {
        format!("{threshold} of {shares} recovery shares is not a threshold")
    })?;
    let commitments = Commitments::from_bytes(commitments)
        .map_err(|error| format!("the recovery secret: {error}"))?;
    ensure(commitments.threshold() == usize::from(*threshold), || {
        format!("{} recovery shares are needed, not {threshold}", commitments.threshold())
    })
}

/// Whether a secret is sealed for recovery just where the cluster can be recovered. Whether rightly, only
/// whoever has the recovery secret can tell.
pub(crate) fn check_envelope(custody: &Custody, recovery: Option<&Recovery>) -> Broken {
    let (have, need) = (custody.sealed_for_recovery.len(), RECOVERY_ENVELOPE_LEN);
    match recovery {
        Some(_) => ensure(have == need, || {
            format!("what is sealed for recovery has {have} bytes, not {need}")
        }),
        None => ensure(have == 0, || "the cluster has no recovery shares to seal for".into()),
    }
}

fn check_holders(threshold: u8, holders: &[ShareHolder], nodes: &BTreeMap<NodeId, Node>) -> Broken {
    let shares = holders.len();
    ensure(threshold >= 1 && usize::from(threshold) <= shares, || {
        format!("{threshold} of {shares} shares is not a threshold")
    })?;
    // Two shares with one holder would count as two places where there is one.
    let mut seen = BTreeSet::new();
    for holder in holders {
        ensure(nodes.contains_key(&holder.node), || {
            format!("custodian {} is no member", holder.node)
        })?;
        ensure(seen.insert(holder.node), || format!("{} holds two shares", holder.node))?;
    }
    ensure(
        holders.first().is_none_or(|holder| holder.share >= 1)
            && holders.is_sorted_by(|a, b| a.share < b.share),
        || "share numbers do not grow from 1".into(),
    )
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Broken {
    if holds { Ok(()) } else { Err(otherwise()) }
}
