//! Slots of a volume that are to be held by another node.

use super::control::{MemberControl, rejected, unavailable};
use crate::control::{ControlError, ErrorKind, MoveReport, MoveSlots};
use smalti_map::view::MapView;
use smalti_map::{Applied, Command, Group, MoveSlot, Volume};
use smalti_storage::ids::{GroupNo, NodeId, Slot, StoreId};

impl MemberControl {
    pub(super) async fn begin_moves(
        &self,
        name: String,
        request: MoveSlots,
    ) -> Result<MoveReport, ControlError> {
        let raft = self.member().raft();
        let map = raft.linearizable().await.map_err(|error| unavailable(&error))?;
        let volume = map.volume_named(&name).ok_or_else(|| ControlError::no_volume(&name))?;
        let (from, to) = (node_named(&map, &request.from)?, node_named(&map, &request.to)?);
        if from == to {
            return Err(ControlError::invalid(format!("{} is both ends", request.from)));
        }
        let store = map.stores_of(to).next();
        let store = store.ok_or_else(|| {
            ControlError::invalid(format!("{} has no store yet: it never started", request.to))
        })?;
        let (moves, staying) = plan(&map, volume, from, (to, store));
        if moves.is_empty() {
            let (from, to) = (&request.from, &request.to);
            let text = match staying {
                0 => format!("{from} has no slot of {name}"),
                _ => format!(
                    "no slot of {name} can move from {from} to {to}: that has another slot of their \
                     group, or they move elsewhere"
                ),
            };
            return Err(ControlError::invalid(text));
        }
        let moving = u32::try_from(moves.len()).unwrap_or(u32::MAX);
        let command = Command::Move { volume: volume.no, moves };
        match raft.propose(command).await.map_err(|error| unavailable(&error))? {
            Applied::Rejected(why) => Err(rejected(&why)),
            _ => Ok(MoveReport { moving, staying }),
        }
    }
}

fn node_named(map: &MapView, name: &str) -> Result<NodeId, ControlError> {
    let found = map.nodes.iter().find(|(_, node)| node.name == name).map(|(id, _)| *id);
    found.ok_or_else(|| ControlError::new(ErrorKind::NotFound, format!("there is no node {name}")))
}

/// The slots that can move, and how many can not.
fn plan(
    map: &MapView,
    volume: &Volume,
    from: NodeId,
    (to, store): (NodeId, StoreId),
) -> (Vec<MoveSlot>, u32) {
    let (mut moves, mut staying) = (Vec::new(), 0);
    for (no, group) in (0u16..).map(GroupNo).zip(&volume.groups) {
        let Some(slot) = slot_on(map, group, from) else { continue };
        let busy = group.targets.iter().any(|(other, target)| match *other == slot {
            true => *target != store,
            false => map.node_of(*target) == Some(to),
        });
        if slot_on(map, group, to).is_some() || busy {
            staying += 1;
        } else {
            moves.push(MoveSlot { group: no, slot, store });
        }
    }
    (moves, staying)
}

fn slot_on(map: &MapView, group: &Group, node: NodeId) -> Option<Slot> {
    let held = (0u8..).map(Slot).zip(&group.slots);
    held.into_iter().find(|(_, store)| map.node_of(**store) == Some(node)).map(|(slot, _)| slot)
}
