//! Founding the cluster, and starts of nodes and stores.

use super::{invalid, limits};
use crate::check::{check_custody, check_name};
use crate::command::{Applied, Rejection};
use crate::mutant::{Mutant, lives};
use crate::types::{ClusterMap, Custody, Node, NodeAddresses, Store};
use smalti_storage::ids::{ClusterId, Incarnation, NodeId, StoreId};
use std::collections::BTreeMap;

impl ClusterMap {
    pub(super) fn init_cluster(
        &mut self,
        cluster: ClusterId,
        nodes: &[(NodeId, String, NodeAddresses)],
        custody: &Custody,
    ) -> Result<Applied, Rejection> {
        if self.cluster != ClusterId::default() {
            return Err(invalid(format!("the cluster was founded already, as {}", self.cluster)));
        }
        if cluster == ClusterId::default() {
            return Err(invalid("a cluster needs an identity"));
        }
        if nodes.is_empty() || nodes.len() > limits::NODES {
            return Err(invalid(format!("a cluster has 1 to {} nodes", limits::NODES)));
        }
        let mut members: BTreeMap<NodeId, Node> = BTreeMap::new();
        for (id, name, addresses) in nodes {
            check_name(name).map_err(Rejection::Invalid)?;
            if members.values().any(|member| member.name == *name) {
                return Err(invalid(format!("two nodes are named {name}")));
            }
            let node = Node {
                name: name.clone(),
                addresses: addresses.clone(),
                incarnation: Incarnation(0),
            };
            if members.insert(*id, node).is_some() {
                return Err(invalid(format!("two nodes have the number {id}")));
            }
        }
        check_custody(custody, &members).map_err(Rejection::Invalid)?;

        self.cluster = cluster;
        self.nodes = members;
        self.custody = custody.clone();
        // From 1, so that a volume number of zero bytes is never a valid one.
        self.next_volume = 1;
        Ok(Applied::Done)
    }

    pub(super) fn register_node(
        &mut self,
        node: NodeId,
        addresses: &NodeAddresses,
    ) -> Result<Applied, Rejection> {
        let entry = self.nodes.get_mut(&node).ok_or_else(|| invalid(format!("no node {node}")))?;
        let next = entry.incarnation.0.checked_add(1).map(Incarnation);
        let next = next.ok_or_else(|| invalid(format!("{node} has used up its incarnations")))?;
        entry.addresses = addresses.clone();
        entry.incarnation = next;
        Ok(Applied::Registered(next))
    }

    pub(super) fn register_store(
        &mut self,
        store: StoreId,
        node: NodeId,
        incarnation: Incarnation,
        clean: bool,
    ) -> Result<Applied, Rejection> {
        if store == StoreId::default() {
            return Err(invalid("a store needs an identity"));
        }
        if !self.nodes.contains_key(&node) {
            return Err(invalid(format!("no node {node}")));
        }
        match self.stores.get(&store) {
            Some(known) if known.node != node => {
                return Err(invalid(format!("store {store} belongs to {}", known.node)));
            }
            Some(known) if incarnation == known.incarnation && clean == known.clean => {
                return Ok(Applied::Done);
            }
            Some(known) if incarnation <= known.incarnation => return Err(Rejection::Incarnation),
            None if incarnation == Incarnation(0) => return Err(Rejection::Incarnation),
            None if self.stores.len() >= limits::STORES => {
                return Err(invalid(format!("a cluster has at most {} stores", limits::STORES)));
            }
            Some(_) | None => {}
        }
        self.stores.insert(store, Store { node, incarnation, clean });
        // A store that restarted while it caught up may have lost what it caught up on (a wiped
        // disk registers as a new start too), so it has to be admitted again.
        for group in self.volumes.values_mut().flat_map(|volume| &mut volume.groups) {
            group.learners.retain(|_, learner| {
                let same_start = learner.incarnation == incarnation || lives(Mutant::GrowAnyStart);
                learner.store != store || same_start
            });
        }
        Ok(Applied::Done)
    }
}
