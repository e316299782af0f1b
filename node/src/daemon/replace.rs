//! One node in another's place: whether it can be, and that it is to be.
//!
//! Nothing of it is remembered as a replacement. The new node gets weight and failure domain of the old
//! one, the old one is drained, and the plan does the rest; so to ask again is to go on.

use super::control::MemberControl;
use super::places::node_named;
use crate::control::{ControlError, NodeFacts, ReplaceNode};
use smalti_map::plan::Plan;
use smalti_map::view::MapView;
use smalti_map::{ClusterMap, Command, Node, NodeSetting};
use smalti_storage::ids::{Incarnation, NodeId};

impl MemberControl {
    pub(super) async fn replace(
        &self,
        name: String,
        wish: ReplaceNode,
    ) -> Result<NodeFacts, ControlError> {
        let map = self.current_map().await?;
        let (old, new) = (node_named(&map, &name)?, node_named(&map, &wish.with)?);
        let report = self.report().await?;
        check(&map, old, new, |node| report.up.contains(&node)).map_err(ControlError::invalid)?;
        let wanted = replaced(&map, old, new);
        let plan = self.member().plan_at_once(&wanted);
        check_places(&map, old, &plan).map_err(ControlError::invalid)?;

        let settings = wanted.nodes.get(&new).into_iter().flat_map(|node| {
            let domain = NodeSetting::Domain(node.domain.clone());
            [(new, NodeSetting::Weight(node.weight)), (new, domain)]
        });
        for (node, setting) in settings.chain([(old, NodeSetting::Draining(true))]) {
            self.propose(Command::SetNode { node, setting }).await?;
        }
        self.facts_of(old, &name).await
    }
}

/// The map as it is wanted.
fn replaced(map: &MapView, old: NodeId, new: NodeId) -> ClusterMap {
    let mut wanted = ClusterMap::clone(map);
    let Some(leaves) = wanted.nodes.get_mut(&old) else { return wanted };
    leaves.draining = true;
    let (weight, domain) = (leaves.weight, leaves.domain.clone());
    if let Some(comes) = wanted.nodes.get_mut(&new) {
        (comes.weight, comes.domain) = (weight, domain);
    }
    // Whether there is room does not hang on when it is used.
    wanted.moves_paused = false;
    wanted
}

/// Whether one can stand in for the other at all.
fn check(
    map: &ClusterMap,
    old: NodeId,
    new: NodeId,
    is_up: impl Fn(NodeId) -> bool,
) -> Result<(), String> {
    let (Some(leaves), Some(comes)) = (map.nodes.get(&old), map.nodes.get(&new)) else {
        return Err("both have to be members".into());
    };
    let (old_name, new_name) = (&leaves.name, &comes.name);
    if old == new {
        return Err(format!("{old_name} can not replace itself"));
    }
    if comes.draining {
        return Err(format!(
            "{new_name} is being drained: undo that first with `smalti node drain {new_name} --undo`"
        ));
    }
    if !is_up(new) {
        return Err(format!("{new_name} does not run: start it first"));
    }
    if leaves.weight == 0 {
        return Err(format!(
            "{old_name} has weight 0, and {new_name} would hold nothing with that: there is nothing to take \
             over, drain and remove it"
        ));
    }
    let takes = |(id, node): (&NodeId, &Node)| {
        !map.custodians.has(*id) && !node.draining && node.incarnation > Incarnation(0)
    };
    if map.custodians.has(old) && !map.nodes.iter().any(takes) {
        return Err(format!(
            "{old_name} is a custodian, and every other node is one as well, so it has to stay a member: \
             `smalti key custodians` names fewer of them, `smalti node drain {old_name}` has all else move away"
        ));
    }
    Ok(())
}

/// Whether all that the old node holds has a place to go.
fn check_places(map: &ClusterMap, old: NodeId, plan: &Plan) -> Result<(), String> {
    let name = map.nodes.get(&old).map_or("", |node| node.name.as_str());
    let on_old = plan.stuck.iter().filter(|stuck| {
        let volume = map.volumes.get(&stuck.volume);
        let Some(group) = volume.and_then(|volume| volume.group(stuck.group)) else { return false };
        let holder = group.slots.get(stuck.slot.index());
        // While another slot of the group moves, two nodes are taken for one slot. Where that does not end
        // whoever waits for the old node to be empty is told that nothing moves.
        group.targets.is_empty() && holder.and_then(|store| map.node_of(*store)) == Some(old)
    });
    let (full, alone): (Vec<_>, Vec<_>) = on_old.partition(|stuck| stuck.full);
    if let Some(stuck) = alone.first() {
        let volume = map.volumes.get(&stuck.volume);
        return Err(format!(
            "{} slots of {name} would have no node to go to: every one that runs without it has a slot of \
             their groups already, as of volume {}",
            alone.len(),
            volume.map_or_else(|| stuck.volume.to_string(), |volume| volume.name.clone())
        ));
    }
    if !full.is_empty() {
        return Err(format!(
            "there is no room for {} slots of {name} on the disks of the others",
            full.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::reasons;
    use super::*;
    use smalti_map::plan::{Cause, Stuck};
    use smalti_map::{Applied, Custody, NodeAddresses, ShareHolder};
    use smalti_storage::ids::{ClusterId, GroupNo, Slot};
    use uuid::Uuid;

    /// Four nodes; the first has the one share there is.
    fn map() -> ClusterMap {
        let mut map = ClusterMap::default();
        let at = |port: u16| ([127, 0, 0, 1], port).into();
        let nodes = (1..=4).map(|no: u16| {
            let addresses = NodeAddresses { quic: at(no), api: at(no + 10), nbd: at(no + 20) };
            (NodeId(no.into()), format!("n{no}"), addresses)
        });
        let holders = vec![ShareHolder { node: NodeId(1), share: 1 }];
        let custody = Custody {
            share_epoch: 1,
            threshold: 1,
            holders,
            commitments: vec![1],
            sealed_for_recovery: Vec::new(),
        };
        let cluster = ClusterId(Uuid::from_u128(1));
        let found =
            Command::InitCluster { cluster, nodes: nodes.collect(), custody, recovery: None };
        assert_eq!(map.apply(&found), Applied::Done);
        map
    }

    fn set(map: &mut ClusterMap, node: u64, setting: NodeSetting) {
        let applied = map.apply(&Command::SetNode { node: NodeId(node), setting });
        assert_eq!(applied, Applied::Done);
    }

    #[test]
    fn who_can_not_stand_in_is_told_why() {
        let mut map = map();
        set(&mut map, 3, NodeSetting::Draining(true));
        set(&mut map, 4, NodeSetting::Weight(0));
        let ask = |old, new| check(&map, NodeId(old), NodeId(new), |node| node != NodeId(4));
        assert_eq!(ask(2, 1), Ok(()));
        // One that is drained already, as after an interruption, can be replaced, and one that is down.
        assert_eq!(ask(3, 2), Ok(()));
        for (old, new, why) in [
            (2, 2, "can not replace itself"),
            (2, 3, "is being drained"),
            (2, 4, "does not run"),
            (4, 2, "has weight 0"),
            (1, 2, "is a custodian"),
        ] {
            let error = ask(old, new).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        // Once another one has started there is somebody to take its share.
        let (node, addresses) = (NodeId(2), map.nodes[&NodeId(2)].addresses.clone());
        assert!(!matches!(
            map.apply(&Command::RegisterNode { node, addresses }),
            Applied::Rejected(_)
        ));
        assert_eq!(check(&map, NodeId(1), node, |_| true), Ok(()));
    }

    #[test]
    fn the_new_one_gets_weight_and_domain_and_the_old_one_leaves() {
        let mut map = map();
        set(&mut map, 2, NodeSetting::Weight(250));
        set(&mut map, 2, NodeSetting::Domain("rack".into()));
        map.moves_paused = true;
        let wanted = replaced(&map.into(), NodeId(2), NodeId(3));
        let comes = &wanted.nodes[&NodeId(3)];
        assert_eq!((comes.weight, comes.domain.as_str(), comes.draining), (250, "rack", false));
        assert!(wanted.nodes[&NodeId(2)].draining && !wanted.moves_paused);
        assert_eq!(check_places(&wanted, NodeId(2), &Plan::default()), Ok(()));
    }

    #[test]
    fn a_slot_that_waits_for_another_one_of_its_group_to_move_has_a_place() {
        let mut map = reasons::tests::map();
        let volume = map.volumes.values_mut().next().unwrap();
        let (slot, other) = (Slot(0), Slot(1));
        let (holder, idle) = (volume.groups[0].slots[0], *map.stores.keys().last().unwrap());
        let stuck =
            Stuck { volume: volume.no, group: GroupNo(0), slot, cause: Cause::Drain, full: false };
        let plan = Plan { stuck: vec![stuck], ..Plan::default() };
        let volume = volume.no;
        let old = map.node_of(holder).unwrap();
        let error = check_places(&map, old, &plan).unwrap_err();
        assert!(error.contains("1 slots of"), "{error}");
        let groups = &mut map.volumes.get_mut(&volume).unwrap().groups;
        groups[0].targets.insert(other, idle);
        assert_eq!(check_places(&map, old, &plan), Ok(()));
    }
}
