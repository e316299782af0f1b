//! Reads that are made sure of by asking.

use super::*;
use smalti_map::ReadMode;

fn active(data: u8, parity: u8) -> Rig {
    let mut map = support::map(data, parity);
    map.volumes.get_mut(&VOLUME).expect("made").read_mode = ReadMode::Confirm;
    let mut rig = Rig::of(map).activated();
    rig.write(1, 0, 1);
    rig.settle();
    rig.done.clear();
    rig
}

fn read_done(op: u64, seq: u64) -> Action {
    Action::ReadDone { op, result: Ok(vec![bytes(seq)]) }
}

/// Takes what is sent now, and answers it later.
fn held_back(rig: &mut Rig) -> Vec<(StoreId, Frame)> {
    let sent = rig.coordinator.drain().into_iter();
    sent.filter_map(|action| match action {
        Action::Send { store, frame } => Some((store, frame)),
        _ => None,
    })
    .collect()
}

fn answer(rig: &mut Rig, frames: Vec<(StoreId, Frame)>) {
    for (store, frame) in frames {
        if let Some(reply) = rig.deliver(store, frame) {
            rig.feed(Event::Reply { store, reply });
        }
    }
}

fn asks_to_confirm(frames: &[(StoreId, Frame)]) -> usize {
    frames.iter().flat_map(|(_, frame)| &frame.requests).filter(|r| r.ask == Ask::Confirm).count()
}

#[test]
fn a_read_asks_and_needs_no_clock() {
    let mut rig = active(2, 1);
    // Longer than any lease.
    rig.now = rig.now.after(Duration::from_secs(100));
    rig.read(2, 0);
    rig.settle();
    assert_eq!(rig.done, vec![read_done(2, 1)]);
}

#[test]
fn so_many_stores_have_to_answer_that_they_meet_every_later_in_sync_set() {
    let mut rig = active(2, 2);
    // Of four, any two may be the next ones: three have to answer.
    for deaf in [4, 3] {
        rig.parties.get_mut(&store(deaf)).expect("there").deaf = true;
    }
    rig.read(2, 0);
    rig.settle();
    assert_eq!(rig.done, vec![], "two are not enough");
    rig.parties.get_mut(&store(3)).expect("there").deaf = false;
    rig.link_down(3);
    rig.link_up(3);
    rig.settle();
    assert_eq!(rig.done, vec![read_done(2, 1)]);
}

#[test]
fn a_round_that_began_before_the_read_proves_nothing_for_it() {
    let mut rig = active(2, 1);
    rig.read(2, 0);
    let first = held_back(&mut rig);
    assert_eq!(asks_to_confirm(&first), 3);
    rig.read(3, 0);
    let second = held_back(&mut rig);
    assert_eq!(asks_to_confirm(&second), 3);
    // The bytes of the second read come, and every answer to the first round.
    let (confirms, bytes): (Vec<_>, Vec<_>) =
        second.into_iter().partition(|(_, f)| f.requests.iter().all(|r| r.ask == Ask::Confirm));
    answer(&mut rig, first);
    answer(&mut rig, bytes.clone());
    let done: Vec<Action> = rig.coordinator.drain();
    assert!(done.contains(&read_done(2, 1)), "{done:?}");
    let asked_beside_bytes = asks_to_confirm(&bytes);
    assert!(asked_beside_bytes < 2 && !done.contains(&read_done(3, 1)), "{done:?}");
    answer(&mut rig, confirms);
    assert!(rig.coordinator.drain().contains(&read_done(3, 1)));
}

#[test]
fn a_store_that_promised_another_coordinator_does_not_confirm() {
    let mut rig = active(2, 1);
    let old = rig.map.clone();
    support::elect(&mut rig.map, 2);
    let epoch = support::epoch(&rig.map);
    // Stores 2 and 3 hear of it, the coordinator and its own store do not.
    for no in [2, 3] {
        let party = rig.parties.get_mut(&store(no)).expect("there");
        party.core.set_map(&rig.map).expect("memory does not fail");
        let promise = Frame {
            volume: VOLUME,
            epoch,
            incarnation: Incarnation(1),
            session: 1,
            watermark: Ver::NONE,
            requests: vec![Request { id: 1, ask: Ask::Promise }],
        };
        let reply = party.core.handle(rig.now, NodeId(2), promise).expect("memory does not fail");
        let reply = reply.expect("a new session");
        assert!(matches!(reply.answers[..], [(1, Answer::Promised { .. })]), "{reply:?}");
        let (batch, _) = party.core.take_batch();
        party.disk.commit(batch).expect("memory does not fail");
        party.core.committed();
    }
    rig.map = old;
    rig.read(2, 0);
    for _ in 0..20 {
        rig.settle();
        rig.tick(20);
    }
    assert_eq!(rig.done.iter().filter(|a| matches!(a, Action::ReadDone { .. })).count(), 0);
}

#[test]
fn no_lease_is_asked_for_or_given() {
    let mut rig = active(2, 1);
    for _ in 0..10 {
        rig.tick(500);
        let sent = sent(&rig.coordinator.drain());
        let asks = sent.iter().flat_map(|(_, asks)| asks);
        assert!(asks.into_iter().all(|ask| !matches!(ask, Ask::Lease { .. })), "{sent:?}");
    }
    let lease = Frame {
        volume: VOLUME,
        epoch: Epoch(2),
        incarnation: Incarnation(1),
        session: 99,
        watermark: Ver::NONE,
        requests: vec![Request { id: 1, ask: Ask::Lease { duration_us: 1000 } }],
    };
    let reply = rig.deliver(store(2), lease).expect("it hears");
    assert_eq!(reply.answers, vec![(1, Answer::Rejected(Reject::Invalid))]);
}
