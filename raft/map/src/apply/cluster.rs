//! Founding the cluster, and starts of nodes and stores.

use super::{invalid, limits};
use crate::check::{check_custody, check_envelope, check_name, check_recovery};
use crate::command::{Applied, Rejection, StoreStart};
use crate::mutant::{Mutant, lives};
use crate::types::{
    ClusterMap, Custodians, Custody, FIRST_SHARE_EPOCH, Node, NodeAddresses, Recovery, Store,
};
use smalti_storage::ids::{ClusterId, Incarnation, NodeId, RunId, StoreId};
use std::collections::BTreeMap;

impl ClusterMap {
    pub(super) fn init_cluster(
        &mut self,
        cluster: ClusterId,
        nodes: &[(NodeId, String, NodeAddresses)],
        custody: &Custody,
        recovery: Option<&Recovery>,
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
            let node = Node::new(name.clone(), addresses.clone());
            if members.insert(*id, node).is_some() {
                return Err(invalid(format!("two nodes have the number {id}")));
            }
        }
        check_custody(custody, &members).map_err(Rejection::Invalid)?;
        if custody.share_epoch != FIRST_SHARE_EPOCH {
            return Err(invalid(format!("the first share epoch is {FIRST_SHARE_EPOCH}")));
        }
        check_recovery(recovery).map_err(Rejection::Invalid)?;
        check_envelope(custody, recovery).map_err(Rejection::Invalid)?;

        let last = members.keys().next_back().map_or(0, |last| last.0);
        let next_node = last.checked_add(1).ok_or_else(|| invalid("no number is left"))?;
        self.cluster = cluster;
        self.next_node = next_node;
        self.nodes = members;
        self.custodians = Custodians {
            share_epoch: custody.share_epoch,
            since: 0,
            threshold: custody.threshold,
            holders: custody.holders.clone(),
            new_master: false,
        };
        self.custody = custody.clone();
        self.recovery = recovery.cloned();
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

    pub(super) fn register_store(&mut self, start: &StoreStart) -> Result<Applied, Rejection> {
        let StoreStart { store, node, run, .. } = *start;
        if store == StoreId::default() || run == RunId::default() {
            return Err(invalid("a store and its run need identities"));
        }
        let entry = self.nodes.get(&node).ok_or_else(|| invalid(format!("no node {node}")))?;
        if entry.incarnation != start.of {
            return Err(Rejection::Incarnation);
        }
        let (last, least) = match self.stores.get(&store) {
            Some(known) if known.node != node => {
                return Err(invalid(format!("store {store} belongs to {}", known.node)));
            }
            Some(&Store { run: known, incarnation, clean, .. }) if known == run => {
                return Ok(Applied::RegisteredStore { incarnation, clean });
            }
            Some(known) => (known.run, known.incarnation),
            None if self.stores.len() >= limits::STORES => {
                return Err(invalid(format!("a cluster has at most {} stores", limits::STORES)));
            }
            None => (RunId::default(), Incarnation(0)),
        };
        let least = least.0.checked_add(1).map(Incarnation);
        let least =
            least.ok_or_else(|| invalid(format!("{store} has used up its incarnations")))?;
        let incarnation = start.incarnation.max(least);
        // A disk that another run left behind has gone back to an earlier time, in order or not.
        let ended = start.last == last;
        let clean = start.clean && (ended || lives(Mutant::BelieveAnyRun));
        // A start that was broken off between here and its disk has served nobody.
        let same_disk = ended || last != RunId::default() && start.announced.contains(&last);
        let faults = self.stores.get(&store).map(|known| known.faults.clone()).unwrap_or_default();
        self.stores.insert(store, Store { node, incarnation, clean, run, faults });
        if !same_disk && !lives(Mutant::PutBackInSync) {
            self.volumes.values_mut().for_each(|volume| volume.take_out(store));
        }
        // A store that restarted while it caught up may have lost what it caught up on (a wiped
        // disk registers as a new start too), so it has to be admitted again.
        for group in self.volumes.values_mut().flat_map(|volume| &mut volume.groups) {
            group.learners.retain(|_, learner| {
                let same_start = learner.incarnation == incarnation || lives(Mutant::GrowAnyStart);
                learner.store != store || same_start
            });
        }
        Ok(Applied::RegisteredStore { incarnation, clean })
    }
}
