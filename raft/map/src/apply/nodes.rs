//! What the operator wants of nodes, and members whose Raft store is new.

use super::invalid;
use crate::check::{check_domain, check_weight};
use crate::command::{Applied, NodeSetting, Rejection};
use crate::types::{ClusterMap, Group, Node};
use smalti_storage::ids::{NodeId, RaftStoreId, StoreId};

impl ClusterMap {
    fn node_mut(&mut self, node: NodeId) -> Result<&mut Node, Rejection> {
        self.nodes.get_mut(&node).ok_or_else(|| invalid(format!("no node {node}")))
    }

    /// A member started with this Raft store. The first one it ever had is known from then on; any
    /// other one is noted, for the leader to admit.
    pub(super) fn register_raft_store(
        &mut self,
        node: NodeId,
        store: RaftStoreId,
    ) -> Result<Applied, Rejection> {
        if store == RaftStoreId::default() {
            return Err(invalid("a Raft store needs an identity"));
        }
        let entry = self.node_mut(node)?;
        let known = *entry.raft_store.get_or_insert(store);
        entry.recruit = (known != store).then_some(store);
        Ok(Applied::Done)
    }

    /// The member's new Raft store is the one that counts. Proposed by the leader once no
    /// configuration has the member for a voter.
    pub(super) fn admit_recruit(
        &mut self,
        node: NodeId,
        store: RaftStoreId,
    ) -> Result<Applied, Rejection> {
        let entry = self.node_mut(node)?;
        if entry.recruit != Some(store) {
            return Err(invalid(format!("{node} has not registered {store}")));
        }
        entry.raft_store = Some(store);
        entry.recruit = None;
        Ok(Applied::Done)
    }

    pub(super) fn set_node(
        &mut self,
        node: NodeId,
        setting: &NodeSetting,
    ) -> Result<Applied, Rejection> {
        let entry = self.node_mut(node)?;
        match setting {
            NodeSetting::Weight(weight) => {
                check_weight(*weight).map_err(Rejection::Invalid)?;
                entry.weight = *weight;
            }
            NodeSetting::Domain(domain) => {
                check_domain(domain).map_err(Rejection::Invalid)?;
                entry.domain.clone_from(domain);
            }
            NodeSetting::Draining(draining) => entry.draining = *draining,
        }
        Ok(Applied::Done)
    }

    /// Removes a node that nothing depends on any more, with its stores.
    pub(super) fn remove_node(&mut self, node: NodeId) -> Result<Applied, Rejection> {
        self.node_mut(node)?;
        let stores: Vec<StoreId> = self.stores_of(node).collect();
        for volume in self.volumes.values() {
            let kept = |group: &Group| stores.iter().any(|store| group.keeps(*store));
            if volume.groups.iter().any(kept) {
                return Err(invalid(format!(
                    "{node} has slots of volume {}: drain it",
                    volume.name
                )));
            }
            if volume.coordinator.is_some_and(|seat| seat.node == node) {
                return Err(invalid(format!("{node} coordinates volume {}: stop it", volume.name)));
            }
            if volume.key_epochs.values().any(|epoch| epoch.custody.has(node)) {
                return Err(invalid(format!(
                    "{node} is a custodian of the keys of volume {}",
                    volume.name
                )));
            }
        }
        if self.custody.has(node) || self.custodians.has(node) {
            return Err(invalid(format!("{node} is a custodian of the master secret")));
        }
        self.nodes.remove(&node);
        self.stores.retain(|_, store| store.node != node);
        Ok(Applied::Done)
    }

    /// Forgets a store that is gone for good, once no group needs it.
    pub(super) fn forget_store(&mut self, store: StoreId) -> Result<Applied, Rejection> {
        if !self.stores.contains_key(&store) {
            return Err(invalid(format!("no store {store}")));
        }
        let mut groups = self.volumes.values().flat_map(|volume| &volume.groups);
        if groups.any(|group| group.keeps(store)) {
            return Err(invalid(format!("store {store} has slots")));
        }
        self.stores.remove(&store);
        Ok(Applied::Done)
    }

    pub(super) fn pause_moves(&mut self, paused: bool) -> Applied {
        self.moves_paused = paused;
        Applied::Done
    }
}
