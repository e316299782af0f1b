//! What the operator wants of nodes, and what would be without them.

use super::control::{MemberControl, rejected, unavailable, undecided};
use super::keys::volume_keys;
use super::report::{DOWN_AFTER, Report, scrub_status};
use crate::control::{
    ChangeNode, ControlError, ErrorKind, MovesStatus, NodeFacts, PauseMoves, RevokeKeys,
    ScrubStatus, VolumeKeys, WhatIfReport, WhatIfVolume,
};
use smalti_cluster::clock;
use smalti_map::view::MapView;
use smalti_map::{Applied, Command, NodeSetting, Volume};
use smalti_storage::ids::NodeId;
use std::collections::BTreeSet;
use std::time::Duration;

impl MemberControl {
    pub(super) async fn set_node(
        &self,
        name: String,
        change: ChangeNode,
    ) -> Result<NodeFacts, ControlError> {
        let map = self.current_map().await?;
        let node = node_named(&map, &name)?;
        let settings = [
            change.weight.map(NodeSetting::Weight),
            change.domain.map(NodeSetting::Domain),
            change.draining.map(NodeSetting::Draining),
        ];
        for setting in settings.into_iter().flatten() {
            self.propose(Command::SetNode { node, setting }).await?;
        }
        self.facts_of(node, &name).await
    }

    pub(super) async fn facts_of(
        &self,
        node: NodeId,
        name: &str,
    ) -> Result<NodeFacts, ControlError> {
        let nodes = self.report().await?.nodes();
        let lost = || ControlError::new(ErrorKind::NotFound, format!("{name} was removed"));
        nodes.into_iter().find(|facts| facts.id == node).ok_or_else(lost)
    }

    pub(super) async fn take_node_out(&self, name: String) -> Result<(), ControlError> {
        let map = self.current_map().await?;
        let node = node_named(&map, &name)?;
        if self.runs(node).await {
            let text = format!("{name} runs: stop it first, it could only be in the others' way");
            return Err(ControlError::invalid(text));
        }
        self.propose(Command::RemoveNode { node }).await
    }

    /// Whether a node is heard again before it counts as down: one that was stopped just now is not.
    async fn runs(&self, node: NodeId) -> bool {
        let beats = self.member().beats();
        let mut silent = beats.silent_for(node);
        while silent < DOWN_AFTER {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let before = std::mem::replace(&mut silent, beats.silent_for(node));
            if silent <= before {
                return true;
            }
        }
        false
    }

    pub(super) async fn ask_scrub(&self, name: String) -> Result<ScrubStatus, ControlError> {
        let map = self.current_map().await?;
        let volume = map.volume_named(&name).ok_or_else(|| ControlError::no_volume(&name))?.no;
        self.propose(Command::AskScrub { volume }).await?;
        let map = self.current_map().await?;
        let volume = map.volumes.get(&volume).ok_or_else(|| ControlError::no_volume(&name))?;
        Ok(scrub_status(volume))
    }

    /// A second wish for the same keys is the same wish.
    pub(super) async fn ask_rotation(&self, name: String) -> Result<VolumeKeys, ControlError> {
        let map = self.current_map().await?;
        let found = map.volume_named(&name).ok_or_else(|| ControlError::no_volume(&name))?;
        let (volume, key_epoch) = (found.no, found.key_epoch);
        self.propose(Command::AskRotation { volume, key_epoch }).await?;
        let map = self.current_map().await?;
        let volume = map.volumes.get(&volume).ok_or_else(|| ControlError::no_volume(&name))?;
        Ok(volume_keys(volume, None))
    }

    pub(super) async fn revoke(
        &self,
        name: String,
        wish: RevokeKeys,
    ) -> Result<VolumeKeys, ControlError> {
        let map = self.current_map().await?;
        let found = map.volume_named(&name).ok_or_else(|| ControlError::no_volume(&name))?;
        let (volume, key_epoch) = (found.no, wish.key_epoch.unwrap_or(found.key_epoch));
        let now = clock::unix_seconds();
        self.propose(Command::RevokeKeys { volume, key_epoch, now }).await?;
        let map = self.current_map().await?;
        let volume = map.volumes.get(&volume).ok_or_else(|| ControlError::no_volume(&name))?;
        Ok(volume_keys(volume, None))
    }

    pub(super) async fn set_paused(&self, wish: PauseMoves) -> Result<MovesStatus, ControlError> {
        self.propose(Command::PauseMoves(wish.paused)).await?;
        Ok(self.report().await?.moves_status())
    }

    pub(super) async fn what_if_stopped(
        &self,
        names: Vec<String>,
    ) -> Result<WhatIfReport, ControlError> {
        let map = self.member().map();
        let nodes: Result<BTreeSet<NodeId>, ControlError> =
            names.iter().map(|name| node_named(&map, name)).collect();
        // Each once, in the order of the question.
        let mut told = BTreeSet::new();
        let names = names.into_iter().filter(|name| told.insert(name.clone())).collect();
        Ok(self.report().await?.without(&nodes?, names))
    }

    pub(super) async fn current_map(&self) -> Result<MapView, ControlError> {
        self.member().raft().linearizable().await.map_err(|error| unavailable(&error))
    }

    pub(super) async fn propose(&self, command: Command) -> Result<(), ControlError> {
        let applied = self.member().raft().propose(command).await;
        match applied.map_err(|error| undecided(&error))? {
            Applied::Rejected(why) => Err(rejected(&why)),
            _ => Ok(()),
        }
    }
}

pub(super) fn node_named(map: &MapView, name: &str) -> Result<NodeId, ControlError> {
    let found = map.nodes.iter().find(|(_, node)| node.name == name).map(|(id, _)| *id);
    found.ok_or_else(|| ControlError::new(ErrorKind::NotFound, format!("there is no node {name}")))
}

impl Report {
    /// Whether its coordinator finds that all stores in sync are there, and have what they should.
    fn is_known_whole(&self, volume: &Volume) -> bool {
        let progress = self.progress.get(&volume.no);
        progress.is_some_and(|found| found.active && found.suspects == 0 && found.unheard == 0)
    }

    /// What would be if these nodes were stopped.
    pub(super) fn without(&self, nodes: &BTreeSet<NodeId>, names: Vec<String>) -> WhatIfReport {
        let left = |node: &NodeId| self.up.contains(node) && !nodes.contains(node);
        let voters = &self.raft.voters;
        let up = voters.iter().filter(|voter| left(voter) && self.may_vote(**voter)).count();
        // While the voters change both sets have to agree.
        let quorum = up * 2 > voters.len() && (!self.raft.joint || up == voters.len());
        let custody = self.map.custodies().all(|(_, custody)| {
            let holders = custody.holders.iter().map(|holder| holder.node);
            let shares = holders.filter(|node| left(node) && self.gives(*node));
            shares.count() >= usize::from(custody.threshold)
        });
        let mut volumes: Vec<WhatIfVolume> = self
            .map
            .volumes
            .values()
            .map(|volume| {
                let live = |store: &_| {
                    self.running.contains(store)
                        && self.map.node_of(*store).is_some_and(|n| left(&n))
                };
                let groups = volume.groups.iter();
                let live = groups.map(|group| group.insync_stores().filter(live).count()).min();
                let live = live.and_then(|live| u8::try_from(live).ok()).unwrap_or(0);
                let seat = volume.coordinator.map(|seat| seat.node);
                let served = self.is_served(volume);
                WhatIfVolume {
                    name: volume.name.clone(),
                    reads: quorum && served && live >= volume.data,
                    writes: quorum && served && live >= volume.min_insync,
                    spare: u32::from(live.saturating_sub(volume.data)),
                    takeover: seat.is_some_and(|node| nodes.contains(&node)),
                    sure: self.caught_up && self.is_known_whole(volume),
                }
            })
            .collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        let safe = self.caught_up
            && quorum
            && custody
            && volumes.iter().all(|volume| volume.writes && volume.sure);
        WhatIfReport { stop: names, safe, quorum, custody, volumes }
    }
}
