//! One look at the cluster, and the facts that follow from it.

use super::renewal::Standing;
use crate::control::{
    ControlError, CustodyStatus, DiskFacts, DiskState, ErrorKind, GroupFacts, Health, MovesStatus,
    NodeFacts, NodeState, NodeStatus, RaftStatus, Reason, ScrubStatus, SlotFacts, SlotState,
    StatusReport, StoreFacts, StoreStatus, VolumeDetail, VolumeFacts, VolumeStatus, WhyReport,
};
use futures::future::join_all;
use smalti_cluster::Member;
use smalti_cluster::member::VolumeProgress;
use smalti_cluster::shard_store::{Fullness, SlowDisk, StoreSpace};
use smalti_map::plan::Plan;
use smalti_map::reach::HalfHeard;
use smalti_map::view::MapView;
use smalti_map::{Custody, Group, GroupScrub, Node, Store, Volume};
use smalti_raft::GroupMetrics;
use smalti_storage::ids::{ClusterId, GroupNo, Incarnation, NodeId, Slot, StoreId, VolumeNo};
use smalti_storage::record::RECORD_LEN;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A node that has not answered for so long is called down.
pub(super) const DOWN_AFTER: Duration = Duration::from_millis(1000);

/// What was seen.
pub(super) struct Report {
    pub(super) map: MapView,
    pub(super) me: NodeId,
    /// Whether what this node knows is newer than its own start. Until then its map may be of any
    /// age, and says nothing about how things are.
    pub(super) caught_up: bool,
    pub(super) raft: GroupMetrics,
    pub(super) up: BTreeSet<NodeId>,
    /// Nodes that answer, and have not joined the cluster since they started.
    pub(super) joining: BTreeSet<NodeId>,
    /// Stores that run on nodes that answer.
    pub(super) running: BTreeSet<StoreId>,
    /// Their disks.
    pub(super) disks: BTreeMap<StoreId, StoreSpace>,
    /// Those that hold the others up.
    pub(super) slow_disks: Vec<SlowDisk>,
    /// Nodes that some hear and others do not, which is for the network to mend.
    pub(super) half_heard: BTreeMap<NodeId, HalfHeard>,
    /// What is to lie elsewhere.
    pub(super) plan: Plan,
    /// Who should vote.
    pub(super) wanted_voters: BTreeSet<NodeId>,
    /// This node's certificate.
    pub(super) certificate: Option<Standing>,
    pub(super) progress: BTreeMap<VolumeNo, VolumeProgress>,
    /// Custodians that say they lack shares, and how many.
    pub(super) lacking: BTreeMap<NodeId, u32>,
    /// Nodes that answer whose custodians can not use their shares, and why.
    pub(super) barred: BTreeMap<NodeId, String>,
    /// Why secrets are not dealt on, as the leader says.
    pub(super) custody_problem: Option<String>,
}

impl Report {
    /// Looks.
    ///
    /// # Errors
    /// While this node knows of no cluster yet.
    pub(super) async fn take(
        member: &Member,
        certificate: Option<Standing>,
    ) -> Result<Self, ControlError> {
        let map = member.map();
        if map.cluster == ClusterId::default() {
            let text = "this node has not heard of its cluster yet: too few nodes are up";
            return Err(ControlError::new(ErrorKind::Starting, text));
        }
        let beats = member.beats();
        let answers =
            |node: &NodeId| beats.ever_heard(*node) && beats.silent_for(*node) < DOWN_AFTER;
        let caught_up = member.incarnation().is_some_and(|start| {
            map.nodes.get(&member.node()).is_some_and(|node| node.incarnation == start)
        });
        // One that has only just started has not joined yet, or another process answers.
        let has_joined = |(id, node): &(&NodeId, &Node)| {
            node.incarnation > Incarnation(0) && beats.start_of(**id) == Some(node.incarnation)
        };
        let (up, joining): (Vec<_>, Vec<_>) =
            map.nodes.iter().filter(|(id, _)| answers(id)).partition(has_joined);
        let ids = |of: Vec<(&NodeId, _)>| of.into_iter().map(|(id, _)| *id).collect();
        let (up, joining): (BTreeSet<NodeId>, BTreeSet<NodeId>) = (ids(up), ids(joining));
        let asked =
            map.volumes.values().map(|volume| async { (volume.no, member.progress(volume).await) });
        let progress = join_all(asked)
            .await
            .into_iter()
            .filter_map(|(no, progress)| Some((no, progress?)))
            .collect();
        let disks: BTreeMap<StoreId, StoreSpace> =
            up.iter().flat_map(|node| beats.stores_of(*node)).collect();
        let running = disks.keys().copied().collect();
        let raft = member.raft().metrics();
        let plan = member.plan(&map);
        let mut half_heard = member.half_heard();
        half_heard.retain(|node, _| map.nodes.contains_key(node));
        let wanted_voters = member.wanted_voters(&map, &raft.voters);
        let wanted_voters = wanted_voters.unwrap_or_else(|| raft.voters.clone());
        let mut barred = member.barred_custodians();
        barred.retain(|node, _| up.contains(node) && map.keeps_shares(*node));
        Ok(Self {
            wanted_voters,
            me: member.node(),
            caught_up,
            raft,
            up,
            joining,
            running,
            disks,
            slow_disks: member.slow_disks(),
            half_heard,
            plan,
            certificate,
            progress,
            lacking: member.lacking_shares(),
            barred,
            custody_problem: member.custody_problem(),
            map,
        })
    }

    pub(super) fn node_name(&self, node: NodeId) -> String {
        self.map.nodes.get(&node).map_or_else(|| node.to_string(), |node| node.name.clone())
    }

    /// Whether the node is well, and does not answer this one: then to start it would be of no use.
    pub(super) fn is_cut_off(&self, node: NodeId) -> bool {
        let unheard = |seen: &HalfHeard| seen.not_by.contains(&self.me);
        !self.up.contains(&node) && self.half_heard.get(&node).is_some_and(unheard)
    }

    fn node_state(&self, node: NodeId) -> NodeState {
        let draining = self.map.nodes.get(&node).is_some_and(|node| node.draining);
        match self.up.contains(&node) {
            true if draining => NodeState::Draining,
            true => NodeState::Up,
            false => NodeState::Down,
        }
    }

    /// Slots that move between stores.
    pub(super) fn moves_status(&self) -> MovesStatus {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        MovesStatus {
            paused: self.map.moves_paused,
            moving: count(self.plan.moving),
            waiting: count(self.plan.waiting),
            kept: count(self.plan.kept),
            stuck: count(self.plan.stuck.len()),
        }
    }

    fn disk(&self, store: StoreId) -> Option<DiskFacts> {
        let StoreSpace { total, free, used, fullness, .. } = *self.disks.get(&store)?;
        let state = match fullness {
            Fullness::Ok => DiskState::Ok,
            Fullness::NearFull => DiskState::NearFull,
            Fullness::Full | Fullness::Exhausted => DiskState::Full,
        };
        Some(DiskFacts { total, free, used, state })
    }

    /// Slots of all volumes that stores of the node have or keep.
    pub(super) fn slots_on(&self, node: NodeId) -> u32 {
        let stores: Vec<StoreId> = self.map.stores_of(node).collect();
        let groups = self.map.volumes.values().flat_map(|volume| &volume.groups);
        let kept = groups.filter(|group| stores.iter().any(|store| group.keeps(*store)));
        u32::try_from(kept.count()).unwrap_or(u32::MAX)
    }

    /// Groups with all their slots in sync, as far as they are served: of one that is offline some are away.
    pub(super) fn groups_full(volume: &Volume) -> usize {
        let all = volume.all_slots();
        volume.groups.iter().filter(|group| group.insync == all && !group.offline).count()
    }

    pub(super) fn volume_health(&self, volume: &Volume) -> Health {
        if !self.caught_up
            || !self.is_served(volume)
            || volume.offline().next().is_some()
            || self.fewest_live(volume) < volume.min_insync
        {
            Health::Stalled
        } else if self.behind(volume) == Some(0)
            && self.lost(volume) == 0
            && self.suspects(volume) == 0
            && self.unheard(volume) == 0
        {
            Health::Ok
        } else {
            Health::Degraded
        }
    }

    /// Whether its coordinator serves it.
    pub(super) fn is_served(&self, volume: &Volume) -> bool {
        volume.activated && self.progress.get(&volume.no).is_some_and(|p| p.active)
    }

    /// Of all groups, the fewest in-sync slots whose stores run on nodes that answer.
    pub(super) fn fewest_live(&self, volume: &Volume) -> u8 {
        volume.groups.iter().map(|group| self.live_in(group)).min().unwrap_or(0)
    }

    /// Slots of a group that are in sync and run.
    pub(super) fn live_in(&self, group: &Group) -> u8 {
        let live = group.insync_stores().filter(|store| self.running.contains(store));
        u8::try_from(live.count()).unwrap_or(u8::MAX)
    }

    /// Whether all stores in sync run on nodes that answer.
    pub(super) fn all_in_sync(&self, volume: &Volume) -> bool {
        volume.groups.iter().all(|group| {
            let mut stores = group.insync_stores();
            stores.all(|store| self.running.contains(&store))
        })
    }

    /// Stores with slots that do not run although their nodes answer.
    pub(super) fn missing(&self) -> BTreeMap<StoreId, NodeId> {
        let groups = self.map.volumes.values().flat_map(|volume| &volume.groups);
        let stores = groups.flat_map(|group| &group.slots);
        let silent = stores.filter(|store| !self.running.contains(store));
        let on_nodes = silent.filter_map(|store| Some((*store, self.map.node_of(*store)?)));
        on_nodes.filter(|(_, node)| self.up.contains(node)).collect()
    }

    /// Voters of the metadata group that answer and may vote, and how many there are.
    pub(super) fn voters(&self) -> (usize, usize) {
        let voters = &self.raft.voters;
        (voters.intersection(&self.up).filter(|node| self.may_vote(**node)).count(), voters.len())
    }

    /// Whether it grants votes: one whose Raft store is new does not until it is admitted anew.
    pub(super) fn may_vote(&self, node: NodeId) -> bool {
        self.map.nodes.get(&node).is_none_or(|node| node.recruit.is_none())
    }

    /// Whether more than half of the voters answer: fewer can not agree on anything.
    pub(super) fn has_majority(&self) -> bool {
        let (up, all) = self.voters();
        up * 2 > all
    }

    pub(super) fn leader(&self) -> Option<NodeId> {
        // One that is left alone believes for a while that it leads.
        self.raft.leader.filter(|_| self.has_majority())
    }

    /// `None`: nobody knows. A new coordinator has not seen what was written before its time.
    pub(super) fn behind(&self, volume: &Volume) -> Option<u64> {
        let behind = self.progress.get(&volume.no)?.rows_behind;
        let whole = Self::groups_full(volume) == volume.groups.len();
        (behind > 0 || whole).then_some(behind)
    }

    pub(super) fn lost(&self, volume: &Volume) -> u64 {
        self.progress.get(&volume.no).map_or(0, |progress| progress.rows_lost)
    }

    /// Slots that lack rows which can not be made from the stores that answer.
    pub(super) fn stuck(&self, volume: &Volume) -> u64 {
        self.progress.get(&volume.no).map_or(0, |progress| progress.stuck)
    }

    pub(super) fn suspects(&self, volume: &Volume) -> u64 {
        self.progress.get(&volume.no).map_or(0, |progress| progress.suspects)
    }

    fn progress_of(&self, volume: &Volume) -> VolumeProgress {
        self.progress.get(&volume.no).cloned().unwrap_or_default()
    }

    fn seconds_left(&self, volume: &Volume) -> Option<u64> {
        let VolumeProgress { rows_left, rows_per_second, .. } = self.progress_of(volume);
        rows_left.checked_div(rows_per_second).filter(|_| rows_left > 0)
    }

    /// Stores in sync that do not answer their coordinator just now.
    pub(super) fn unheard(&self, volume: &Volume) -> u64 {
        self.progress.get(&volume.no).map_or(0, |progress| progress.unheard)
    }

    fn coordinator(&self, volume: &Volume) -> Option<String> {
        volume.coordinator.map(|seat| self.node_name(seat.node))
    }

    /// Of the secret that the fewest failures are left to.
    pub(super) fn custody_status(&self) -> CustodyStatus {
        let status = |custody: &Custody| {
            let count = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
            let reachable = custody.holders.iter().filter(|holder| self.gives(holder.node));
            CustodyStatus {
                needed: custody.threshold,
                reachable: count(reachable.count()),
                total: count(custody.holders.len()),
            }
        };
        let all = self.map.custodies().map(|(_, custody)| status(custody));
        let worst =
            all.min_by_key(|custody| i16::from(custody.reachable) - i16::from(custody.needed));
        worst.unwrap_or(CustodyStatus { needed: 0, reachable: 0, total: 0 })
    }

    /// Whether a custodian answers, and has its shares as far as it knows.
    pub(super) fn gives(&self, node: NodeId) -> bool {
        self.up.contains(&node)
            && !self.lacking.contains_key(&node)
            && !self.barred.contains_key(&node)
    }

    /// Custodians that can not use their shares, each with the reason.
    pub(super) fn barred_custodians(&self) -> impl Iterator<Item = (NodeId, String)> {
        self.barred.iter().map(|(node, why)| {
            (*node, format!("the custodian of {} is {why}", self.node_name(*node)))
        })
    }

    fn stores_of(&self, node: NodeId) -> impl Iterator<Item = (&StoreId, &Store)> {
        self.map.stores.iter().filter(move |(_, store)| store.node == node)
    }

    pub(super) fn status(&self) -> StatusReport {
        let nodes = self.map.nodes.iter().map(|(id, node)| NodeStatus {
            name: node.name.clone(),
            id: *id,
            state: self.node_state(*id),
            stores: self
                .stores_of(*id)
                .map(|(id, store)| StoreStatus { id: *id, faults: store.faults.total })
                .collect(),
        });
        let mut volumes: Vec<_> = self
            .map
            .volumes
            .values()
            .map(|volume| VolumeStatus {
                slots_catching_up: self.progress_of(volume).learners,
                rows_left: self.progress_of(volume).rows_left,
                bytes_left: self.progress_of(volume).rows_left * RECORD_LEN as u64,
                rows_per_second: self.progress_of(volume).rows_per_second,
                rows_repaired: self.progress_of(volume).rows_repaired,
                seconds_left: self.seconds_left(volume),
                held_back: self.progress_of(volume).held_back,
                attached: self.progress_of(volume).in_use,
                scrub: scrub_status(volume),
                name: volume.name.clone(),
                health: self.volume_health(volume),
                epoch: volume.epoch,
                coordinator: self.coordinator(volume),
                rows_behind: self.behind(volume),
                rows_lost: self.lost(volume),
                suspects: self.suspects(volume),
                data: volume.data,
                parity: volume.parity,
                id: volume.id,
                size: volume.size,
                groups: u32::try_from(volume.groups.len()).unwrap_or(u32::MAX),
                groups_full: u32::try_from(Self::groups_full(volume)).unwrap_or(u32::MAX),
                groups_offline: u32::try_from(volume.offline().count()).unwrap_or(u32::MAX),
                key_epochs: u32::try_from(volume.key_epochs.len()).unwrap_or(u32::MAX),
                keys_made: volume
                    .key_epochs
                    .get(&volume.key_epoch)
                    .map_or(0, |keys| keys.timestamp),
                keys_revoked: volume.revoked.is_some(),
            })
            .collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        let reasons = self.reasons();
        StatusReport {
            health: health_by(&reasons),
            lasting: health_by(&reasons) != Health::Ok
                && reasons.iter().all(|reason| reason.lasting || reason.health == Health::Ok),
            nodes: nodes.collect(),
            volumes,
            raft: RaftStatus {
                leader: self.leader().map(|node| self.node_name(node)),
                term: self.raft.term,
            },
            custody: self.custody_status(),
            barred: self.barred_custodians().map(|(_, told)| told).collect(),
            moves: self.moves_status(),
            cluster: self.map.cluster,
            map_version: self.map.version,
            answered_by: self.node_name(self.me),
        }
    }

    pub(super) fn why(&self) -> WhyReport {
        let reasons = self.reasons();
        WhyReport { health: health_by(&reasons), reasons }
    }

    fn facts(&self, volume: &Volume) -> VolumeFacts {
        VolumeFacts {
            name: volume.name.clone(),
            id: volume.id,
            no: volume.no,
            size: volume.size,
            data: volume.data,
            parity: volume.parity,
            shard_size: volume.shard_size,
            min_insync: volume.min_insync,
            read_mode: volume.read_mode,
            health: self.volume_health(volume),
            epoch: volume.epoch,
            coordinator: self.coordinator(volume),
            key_epoch: volume.key_epoch,
        }
    }

    pub(super) fn volumes(&self) -> Vec<VolumeFacts> {
        let mut volumes: Vec<_> = self.map.volumes.values().map(|v| self.facts(v)).collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        volumes
    }

    pub(super) fn detail(&self, name: &str) -> Result<VolumeDetail, ControlError> {
        let volume = self.map.volume_named(name).ok_or_else(|| ControlError::no_volume(name))?;
        let groups = (0u16..).map(GroupNo).zip(&volume.groups).map(|(no, group)| {
            let slots = (0u8..).map(Slot).zip(&group.slots).map(|(slot, store)| SlotFacts {
                slot,
                store: *store,
                node: self
                    .map
                    .node_of(*store)
                    .map_or_else(|| "?".to_owned(), |node| self.node_name(node)),
                state: if group.insync.contains(slot) {
                    SlotState::Insync
                } else if group.learners.contains_key(&slot) {
                    SlotState::Learner
                } else {
                    SlotState::Out
                },
                moves_to: group
                    .targets
                    .get(&slot)
                    .and_then(|target| self.map.node_of(*target).map(|node| self.node_name(node))),
            });
            GroupFacts { group: no, offline: group.offline, slots: slots.collect() }
        });
        Ok(VolumeDetail {
            volume: self.facts(volume),
            groups: groups.collect(),
            scrub: scrub_status(volume),
        })
    }

    pub(super) fn nodes(&self) -> Vec<NodeFacts> {
        self.map
            .nodes
            .iter()
            .map(|(id, node)| NodeFacts {
                name: node.name.clone(),
                id: *id,
                state: self.node_state(*id),
                incarnation: node.incarnation,
                quic: node.addresses.quic,
                api: node.addresses.api,
                nbd: node.addresses.nbd,
                custodian: self.map.keeps_shares(*id),
                voter: self.raft.voters.contains(id),
                weight: node.weight,
                domain: node.domain.clone(),
                slots: self.slots_on(*id),
                stores: self
                    .stores_of(*id)
                    .map(|(store, entry)| StoreFacts {
                        id: *store,
                        incarnation: entry.incarnation,
                        clean: entry.clean,
                        disk: self.disk(*store),
                        faults: entry.faults.total,
                    })
                    .collect(),
            })
            .collect()
    }
}

fn health_by(reasons: &[Reason]) -> Health {
    reasons.iter().map(|reason| reason.health).max().unwrap_or(Health::Ok)
}

pub(super) fn scrub_status(volume: &Volume) -> ScrubStatus {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let last = &volume.scrubs.groups;
    let sum = |of: fn(&GroupScrub) -> u64| last.values().map(of).sum();
    ScrubStatus {
        groups: count(volume.groups.len()),
        due: count(volume.asked_scrubs().count()),
        oldest: last
            .values()
            .map(|scrub| scrub.ended)
            .min()
            .filter(|_| last.len() == volume.groups.len()),
        rows: sum(|scrub| scrub.rows),
        wrong: sum(|scrub| scrub.wrong),
        unclear: sum(|scrub| scrub.unclear),
        unread: sum(|scrub| scrub.unread)
            + volume.put_off_scrubs().count() as u64 * u64::from(volume.slots()),
    }
}
