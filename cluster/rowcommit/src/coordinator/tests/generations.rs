//! A node that is elected anew has a new gateway, and for a while the one before as well.

use super::*;

fn read_as(rig: &mut Rig, op: u64, generation: u32) {
    let blocks = vec![(row(0), Slot(0))];
    rig.feed(Event::Read { op, blocks, snap: None, generation });
    rig.settle();
}

fn ended(rig: &Rig, wanted: u64) -> Option<Result<Vec<Bytes>, OpError>> {
    rig.done.iter().find_map(|action| match action {
        Action::ReadDone { op, result } if *op == wanted => Some(result.clone()),
        _ => None,
    })
}

#[test]
fn a_new_gateway_reads_what_was_acknowledged_to_the_one_before() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    let before = rig.map.volumes[&VOLUME].writer_gen;
    let known = rig.map.clone();
    support::elect(&mut rig.map, 1);
    let after = rig.map.volumes[&VOLUME].writer_gen;
    // It knows of its election, and the coordinator, which takes writes of the one before, does not.
    let elected = std::mem::replace(&mut rig.map, known);
    read_as(&mut rig, 2, after);
    assert_eq!(ended(&rig, 2), None, "it waits");
    rig.write(3, 0, 3);
    rig.settle();
    assert!(rig.done.contains(&Action::WriteDone { op: 3, result: Ok(()) }), "{:?}", rig.done);
    assert_eq!(ended(&rig, 2), None, "it waits");
    rig.map = elected;
    rig.adopt();
    let mut rig = rig.activated();
    assert_eq!(ended(&rig, 2), Some(Ok(vec![bytes(3)])));
    // The one before knows of nothing that the new one writes, or trims.
    read_as(&mut rig, 4, before);
    assert_eq!(ended(&rig, 4), Some(Err(OpError::Fenced)));
    read_as(&mut rig, 5, after);
    assert_eq!(ended(&rig, 5), Some(Ok(vec![bytes(3)])));
}

#[test]
fn a_gateway_that_came_too_early_ends_with_the_seat() {
    let mut rig = Rig::active(2, 1);
    let known = rig.map.clone();
    support::elect(&mut rig.map, 1);
    let after = rig.map.volumes[&VOLUME].writer_gen;
    rig.map = known;
    read_as(&mut rig, 1, after);
    support::elect(&mut rig.map, 1);
    support::elect(&mut rig.map, 2);
    rig.adopt();
    rig.settle();
    assert_eq!(ended(&rig, 1), Some(Err(OpError::Fenced)));
}
