//! One look at the cluster, and the facts that follow from it.

use crate::control::{
    ControlError, CustodyStatus, ErrorKind, GroupFacts, Health, HolderFacts, KeyEpochFacts,
    KeyReport, NodeFacts, NodeState, NodeStatus, RaftStatus, Reason, SlotFacts, SlotState,
    StatusReport, StoreFacts, VolumeDetail, VolumeFacts, VolumeKeys, VolumeStatus, WhyReport,
};
use futures::future::join_all;
use smalti_cluster::Member;
use smalti_cluster::member::VolumeProgress;
use smalti_map::Volume;
use smalti_map::view::MapView;
use smalti_raft::GroupMetrics;
use smalti_storage::ids::{ClusterId, GroupNo, Incarnation, NodeId, Slot, StoreId, VolumeNo};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A node that has not answered for so long is called down.
const DOWN_AFTER: Duration = Duration::from_millis(1000);

/// What was seen.
pub(super) struct Report {
    map: MapView,
    me: NodeId,
    /// Whether what this node knows is newer than its own start. Until then its map may be of any
    /// age, and says nothing about how things are.
    caught_up: bool,
    raft: GroupMetrics,
    up: BTreeSet<NodeId>,
    /// Stores that run on nodes that answer.
    running: BTreeSet<StoreId>,
    progress: BTreeMap<VolumeNo, VolumeProgress>,
}

impl Report {
    /// Looks.
    ///
    /// # Errors
    /// While this node knows of no cluster yet.
    pub(super) async fn take(member: &Member) -> Result<Self, ControlError> {
        let map = member.map();
        if map.cluster == ClusterId::default() {
            let text = "this node has not heard of its cluster yet: too few nodes are up";
            return Err(ControlError::new(ErrorKind::Starting, text));
        }
        let beats = member.beats();
        let up = |node: &NodeId| beats.ever_heard(*node) && beats.silent_for(*node) < DOWN_AFTER;
        let caught_up = member.incarnation().is_some_and(|start| {
            map.nodes.get(&member.node()).is_some_and(|node| node.incarnation == start)
        });
        let up: BTreeSet<NodeId> = map
            .nodes
            .iter()
            .filter(|(id, node)| node.incarnation > Incarnation(0) && up(id))
            .map(|(id, _)| *id)
            .collect();
        let asked =
            map.volumes.values().map(|volume| async { (volume.no, member.progress(volume).await) });
        let progress = join_all(asked)
            .await
            .into_iter()
            .filter_map(|(no, progress)| Some((no, progress?)))
            .collect();
        let running = up.iter().flat_map(|node| beats.stores_of(*node)).collect();
        let raft = member.raft().metrics();
        Ok(Self { me: member.node(), caught_up, raft, up, running, progress, map })
    }

    fn node_name(&self, node: NodeId) -> String {
        self.map.nodes.get(&node).map_or_else(|| node.to_string(), |node| node.name.clone())
    }

    fn node_state(&self, node: NodeId) -> NodeState {
        if self.up.contains(&node) { NodeState::Up } else { NodeState::Down }
    }

    fn groups_full(volume: &Volume) -> usize {
        let all = volume.all_slots();
        volume.groups.iter().filter(|group| group.insync == all).count()
    }

    fn volume_health(&self, volume: &Volume) -> Health {
        let served = volume.activated && self.progress.get(&volume.no).is_some_and(|p| p.active);
        if !self.caught_up || !served || self.fewest_live(volume) < volume.min_insync {
            Health::Stalled
        } else if self.behind(volume) == Some(0)
            && self.lost(volume) == 0
            && self.suspects(volume) == 0
        {
            Health::Ok
        } else {
            Health::Degraded
        }
    }

    /// Of all groups, the fewest in-sync slots whose stores run on nodes that answer.
    fn fewest_live(&self, volume: &Volume) -> u8 {
        let live = |group: &smalti_map::Group| {
            let live = group.insync_stores().filter(|store| self.running.contains(store));
            u8::try_from(live.count()).unwrap_or(u8::MAX)
        };
        volume.groups.iter().map(live).min().unwrap_or(0)
    }

    /// Whether all stores in sync run on nodes that answer.
    fn all_in_sync(&self, volume: &Volume) -> bool {
        volume.groups.iter().all(|group| {
            let mut stores = group.insync_stores();
            stores.all(|store| self.running.contains(&store))
        })
    }

    /// Stores with slots that do not run although their nodes answer.
    fn missing(&self) -> BTreeMap<StoreId, NodeId> {
        let groups = self.map.volumes.values().flat_map(|volume| &volume.groups);
        let stores = groups.flat_map(|group| &group.slots);
        let silent = stores.filter(|store| !self.running.contains(store));
        let on_nodes = silent.filter_map(|store| Some((*store, self.map.node_of(*store)?)));
        on_nodes.filter(|(_, node)| self.up.contains(node)).collect()
    }

    /// Whether more than half of the nodes answer: fewer can not agree on anything.
    fn has_majority(&self) -> bool {
        self.up.len() * 2 > self.map.nodes.len()
    }

    fn leader(&self) -> Option<NodeId> {
        // One that is left alone believes for a while that it leads.
        self.raft.leader.filter(|_| self.has_majority())
    }

    /// `None`: nobody knows. A new coordinator has not seen what was written before its time.
    fn behind(&self, volume: &Volume) -> Option<u64> {
        let behind = self.progress.get(&volume.no)?.rows_behind;
        let whole = Self::groups_full(volume) == volume.groups.len();
        (behind > 0 || whole).then_some(behind)
    }

    fn lost(&self, volume: &Volume) -> u64 {
        self.progress.get(&volume.no).map_or(0, |progress| progress.rows_lost)
    }

    fn suspects(&self, volume: &Volume) -> u64 {
        self.progress.get(&volume.no).map_or(0, |progress| progress.suspects)
    }

    fn coordinator(&self, volume: &Volume) -> Option<String> {
        volume.coordinator.map(|seat| self.node_name(seat.node))
    }

    fn custody_status(&self) -> CustodyStatus {
        let holders = &self.map.custody.holders;
        let reachable = holders.iter().filter(|holder| self.up.contains(&holder.node)).count();
        CustodyStatus {
            needed: self.map.custody.threshold,
            reachable: u8::try_from(reachable).unwrap_or(u8::MAX),
            total: u8::try_from(holders.len()).unwrap_or(u8::MAX),
        }
    }

    fn reasons(&self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut add = |health, subject: String, problem: String, remedy: &str| {
            let remedy = (!remedy.is_empty()).then(|| remedy.to_owned());
            reasons.push(Reason { health, subject, problem, remedy });
        };
        if self.leader().is_none() {
            let (up, all) = (self.up.len(), self.map.nodes.len());
            let problem = if self.has_majority() {
                "no leader: an election is under way".to_owned()
            } else {
                format!("no leader: {up} of {all} nodes answer, {} are needed", all / 2 + 1)
            };
            add(Health::Stalled, "raft".into(), problem, "start the nodes that are down");
        }
        if !self.caught_up {
            let problem = "this node has not caught up with the cluster since it started";
            let remedy = "it does as soon as more than half of the nodes are up";
            let subject = format!("node {}", self.node_name(self.me));
            add(Health::Stalled, subject, problem.into(), remedy);
        }
        let custody = self.custody_status();
        if custody.reachable < custody.needed {
            let problem = format!(
                "{} of {} custodians answer, {} are needed: no volume can be attached anew",
                custody.reachable, custody.total, custody.needed
            );
            add(Health::Degraded, "custody".into(), problem, "start the custodians that are down");
        }
        for (id, node) in &self.map.nodes {
            if !self.up.contains(id) {
                let (subject, problem) = (format!("node {}", node.name), "it does not answer");
                add(
                    Health::Degraded,
                    subject,
                    problem.into(),
                    "start it again; it catches up by itself",
                );
            }
        }
        for (store, node) in self.missing() {
            let subject = format!("node {}", self.node_name(node));
            let problem = format!(
                "it runs without store {store}, which holds slots: it is starting, or its disk was \
                 replaced or emptied"
            );
            let remedy = "put the store back, or see docs/operations.md";
            add(Health::Degraded, subject, problem, remedy);
        }
        for volume in self.map.volumes.values() {
            let subject = format!("volume {}", volume.name);
            match self.volume_health(volume) {
                Health::Ok => {}
                Health::Stalled => {
                    let problem = match (&volume.coordinator, volume.activated) {
                        _ if !self.caught_up => "how it is, is not known here yet".to_owned(),
                        (None, _) => "it has no coordinator".to_owned(),
                        (Some(_), _) if self.fewest_live(volume) < volume.min_insync => format!(
                            "{} of {} slots of a group are in sync on nodes that answer, {} are \
                             needed: writes wait, and some reads may too",
                            self.fewest_live(volume),
                            volume.slots(),
                            volume.min_insync
                        ),
                        (Some(_), false) if self.all_in_sync(volume) => {
                            "its coordinator is taking over".to_owned()
                        }
                        (Some(_), false) => {
                            "its coordinator is taking over and waits for stores in \
                             sync that do not answer: for a moment, or after a power cut, when one \
                             of them may be the only one that remembers, for as long as \
                             power_timeout_ms says"
                                .to_owned()
                        }
                        (Some(_), true) => "its coordinator does not answer".to_owned(),
                    };
                    let remedy = "it goes on by itself once enough nodes are up";
                    add(Health::Stalled, subject, problem, remedy);
                }
                _ => {
                    let lost = self.lost(volume);
                    if lost > 0 {
                        let problem = format!(
                            "{lost} rows are lost or rotten in more slots than it has parity for: \
                             their blocks give errors"
                        );
                        let remedy = "bring back what is out; else see docs/operations.md";
                        add(Health::Degraded, subject.clone(), problem, remedy);
                    }
                    let suspects = self.suspects(volume);
                    if suspects > 0 {
                        let problem = format!(
                            "{suspects} stores may have forgotten something in a crash, and are \
                             compared with the others"
                        );
                        let remedy = "it ends by itself; until then keep the other nodes up";
                        add(Health::Degraded, subject.clone(), problem, remedy);
                    }
                    let out = volume.groups.len() - Self::groups_full(volume);
                    let behind = match self.behind(volume) {
                        Some(0) if out == 0 => continue,
                        None => "how many rows are behind shows when it is back".to_owned(),
                        Some(rows) => format!("{rows} rows are behind"),
                    };
                    let groups = volume.groups.len();
                    let problem = format!("{out} of {groups} groups miss a slot, {behind}");
                    let remedy = "stores that are up catch up by themselves";
                    add(Health::Degraded, subject, problem, remedy);
                }
            }
        }
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.health));
        reasons
    }

    pub(super) fn health(&self) -> Health {
        self.reasons().iter().map(|reason| reason.health).max().unwrap_or(Health::Ok)
    }

    pub(super) fn status(&self) -> StatusReport {
        let nodes = self.map.nodes.iter().map(|(id, node)| NodeStatus {
            name: node.name.clone(),
            id: *id,
            state: self.node_state(*id),
        });
        let mut volumes: Vec<_> = self
            .map
            .volumes
            .values()
            .map(|volume| VolumeStatus {
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
            })
            .collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        StatusReport {
            health: self.health(),
            nodes: nodes.collect(),
            volumes,
            raft: RaftStatus {
                leader: self.leader().map(|node| self.node_name(node)),
                term: self.raft.term,
            },
            custody: self.custody_status(),
            cluster: self.map.cluster,
            map_version: self.map.version,
            answered_by: self.node_name(self.me),
        }
    }

    pub(super) fn why(&self) -> WhyReport {
        WhyReport { health: self.health(), reasons: self.reasons() }
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
            GroupFacts { group: no, slots: slots.collect() }
        });
        Ok(VolumeDetail { volume: self.facts(volume), groups: groups.collect() })
    }

    pub(super) fn nodes(&self) -> Vec<NodeFacts> {
        let custodian = |node: NodeId| self.map.custody.holders.iter().any(|h| h.node == node);
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
                custodian: custodian(*id),
                stores: self
                    .map
                    .stores
                    .iter()
                    .filter(|(_, store)| store.node == *id)
                    .map(|(store, entry)| StoreFacts {
                        id: *store,
                        incarnation: entry.incarnation,
                        clean: entry.clean,
                    })
                    .collect(),
            })
            .collect()
    }

    pub(super) fn keys(&self) -> KeyReport {
        let holders = self.map.custody.holders.iter().map(|holder| HolderFacts {
            node: self.node_name(holder.node),
            share: holder.share,
            reachable: self.up.contains(&holder.node),
        });
        let mut volumes: Vec<_> = self
            .map
            .volumes
            .values()
            .map(|volume| VolumeKeys {
                volume: volume.name.clone(),
                current: volume.key_epoch,
                epochs: volume
                    .key_epochs
                    .values()
                    .map(|epoch| KeyEpochFacts {
                        no: epoch.no,
                        timestamp: epoch.timestamp,
                        needed: epoch.custody.threshold,
                        total: u8::try_from(epoch.custody.holders.len()).unwrap_or(u8::MAX),
                    })
                    .collect(),
            })
            .collect();
        volumes.sort_by(|a, b| a.volume.cmp(&b.volume));
        KeyReport { custody: self.custody_status(), holders: holders.collect(), volumes }
    }
}
