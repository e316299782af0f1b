//! What a store that was out for a while is compared with: only what has changed.

use super::*;

/// 2+1, rows 0 to 9 written on both data slots, everybody in sync.
fn ten_rows() -> Rig {
    let mut rig = Rig::active(2, 1);
    for index in 0..10 {
        let of = |slot| BlockWrite { row: row(index), ..block(slot, 1) };
        rig.feed(Event::Write { op: 100 + u64::from(index), blocks: vec![of(0), of(1)] });
        rig.settle();
    }
    // The watermark comes everywhere.
    rig.tick(100);
    rig.settle();
    rig.done.clear();
    rig
}

fn write_row(rig: &mut Rig, op: u64, index: u32, seq: u64) {
    let blocks = vec![BlockWrite { row: row(index), ..block(0, seq) }];
    rig.feed(Event::Write { op, blocks });
    rig.settle();
    assert_eq!(rig.done.last(), Some(&written(op)), "{}", rig.coordinator.describe());
}

/// Lets time pass until everybody is in sync again; every proposal is accepted.
pub(super) fn until_whole(rig: &mut Rig) {
    for _ in 0..100 {
        rig.tick(50);
        let commands = rig.settle();
        rig.accept(commands);
        if rig.map.volumes[&VOLUME].is_full() {
            return;
        }
    }
    panic!("not whole: {}", rig.coordinator.describe());
}

fn out(rig: &mut Rig, no: u64) {
    rig.link_down(no);
    support::shrink(&mut rig.map, no);
    rig.adopt();
    rig.settle();
}

fn back(rig: &mut Rig, no: u64) {
    rig.link_up(no);
    until_whole(rig);
}

fn looked_at(rig: &Rig) -> (u64, u64) {
    let stats = rig.coordinator.stats();
    (stats.rows_walked, stats.rows_listed)
}

#[test]
fn after_a_short_outage_only_rows_that_changed_are_looked_at() {
    for no in [1, 3] {
        let mut rig = ten_rows();
        out(&mut rig, no);
        write_row(&mut rig, 1, 4, 2);
        write_row(&mut rig, 2, 7, 2);
        write_row(&mut rig, 3, 7, 3);
        back(&mut rig, no);
        // Twice where both data slots tell, for want of a parity slot.
        assert_eq!(looked_at(&rig), (0, 2), "store {no}");
        let at = |index| RowSlot { volume: VOLUME, row: row(index), slot: support::slot(no) };
        let head = |index| rig.parties[&store(no)].disk.head(at(index)).expect("readable");
        assert_eq!(head(7).map(|meta| meta.wid), Some(wid(3)));
        assert_eq!(head(4).map(|meta| meta.wid), Some(wid(2)));
    }
}

#[test]
fn a_second_outage_begins_anew() {
    let mut rig = ten_rows();
    out(&mut rig, 1);
    write_row(&mut rig, 1, 4, 2);
    back(&mut rig, 1);
    out(&mut rig, 2);
    write_row(&mut rig, 2, 5, 2);
    back(&mut rig, 2);
    assert_eq!(looked_at(&rig), (0, 2));
}

#[test]
fn what_was_undecided_when_it_left_is_looked_at() {
    let mut rig = ten_rows();
    // Store 3 hears of a write, store 1 is gone before it does.
    rig.parties.get_mut(&store(1)).expect("there").deaf = true;
    rig.feed(Event::Write { op: 1, blocks: vec![BlockWrite { row: row(4), ..block(0, 2) }] });
    rig.settle();
    assert_eq!(rig.done, vec![]);
    out(&mut rig, 1);
    assert_eq!(rig.done, vec![written(1)]);
    rig.parties.get_mut(&store(1)).expect("there").deaf = false;
    back(&mut rig, 1);
    assert_eq!(looked_at(&rig), (0, 1));
    assert_eq!(rig.parties[&store(1)].disk.prepared(VOLUME).expect("readable"), vec![]);
}

#[test]
fn one_that_crashed_is_compared_as_a_whole() {
    let mut rig = ten_rows();
    out(&mut rig, 1);
    write_row(&mut rig, 1, 4, 2);
    rig.crash_store(1, None);
    rig.adopt();
    back(&mut rig, 1);
    assert_eq!(looked_at(&rig), (10, 0));
    // From now on it knows what it holds.
    out(&mut rig, 1);
    write_row(&mut rig, 2, 5, 2);
    back(&mut rig, 1);
    assert_eq!(looked_at(&rig), (10, 1));
}

#[test]
fn one_that_ended_in_order_is_spared_unless_it_took_something_meanwhile() {
    let mut rig = ten_rows();
    out(&mut rig, 1);
    write_row(&mut rig, 1, 4, 2);
    rig.restart_store(1);
    back(&mut rig, 1);
    assert_eq!(looked_at(&rig), (0, 1));
    // As a learner it takes a write, which may be undone, and is gone again before it is compared.
    out(&mut rig, 1);
    rig.link_up(1);
    rig.tick(20);
    let commands = rig.settle();
    rig.accept(commands);
    write_row(&mut rig, 2, 5, 2);
    rig.link_down(1);
    rig.restart_store(1);
    back(&mut rig, 1);
    assert_eq!(looked_at(&rig), (10, 1));
    // Compared, it is as good as before.
    out(&mut rig, 1);
    write_row(&mut rig, 3, 6, 2);
    rig.restart_store(1);
    back(&mut rig, 1);
    assert_eq!(looked_at(&rig), (10, 2));
}

#[test]
fn who_was_out_before_the_index_began_is_compared_as_a_whole() {
    // 2+2: store 2 is out while store 1 leaves, changes are made, and store 4, which tells, comes
    // back later than store 2 left.
    let mut rig = Rig::active(2, 2);
    rig.write(100, 0, 1);
    rig.settle();
    rig.done.clear();
    out(&mut rig, 4);
    out(&mut rig, 2);
    write_row(&mut rig, 1, 0, 2);
    rig.link_up(4);
    for _ in 0..100 {
        rig.tick(50);
        let commands = rig.settle();
        rig.accept(commands);
    }
    out(&mut rig, 3);
    let walked = looked_at(&rig).0;
    rig.link_up(2);
    rig.link_up(3);
    until_whole(&mut rig);
    assert!(looked_at(&rig).0 > walked, "slot 3 alone tells, and knows nothing of before");
}
