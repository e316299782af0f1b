//! The coordinator alone, fed with events and compared action by action; and against real store
//! cores where the answers matter more than the questions.

mod blocks;
mod confirm;
mod generations;
mod healing;
mod listing;
mod lost_writes;
mod moves;
mod rig;
mod scrub;
mod short;
mod slow;
mod snapshots;
mod suspects;
mod unreadable;

use super::*;
use crate::msg::{Changed, Frame, UNREADABLE, Update, Want};
use crate::store::read::ReadSide;
use crate::store::{Room, StoreConfig, StoreCore};
use crate::support::{self, RECORD_LEN, VOLUME, row, store};
use bytes::Bytes;
use rig::*;
use smalti_map::{Coordinator as Coordinating, GrowSlot};
use smalti_storage::code::Fingerprint;
use smalti_storage::ids::{NodeId, RowSlot, Wid};
use smalti_storage::store::memory::{MemoryStore, Restart};
use smalti_storage::store::{ShardStore, VersionMeta};

#[test]
fn a_takeover_asks_for_promises_and_then_for_activation() {
    let mut rig = Rig::new(2, 1);
    let actions = rig.coordinator.drain();
    let promise = || vec![Ask::Promise];
    assert_eq!(sent(&actions), vec![(1, promise()), (2, promise()), (3, promise())]);
    for (action, answered) in actions.into_iter().zip(1..) {
        let Action::Send { store, frame } = action else { panic!("{action:?}") };
        assert_eq!((frame.epoch, frame.watermark), (Epoch(2), Ver::NONE));
        let reply = rig.deliver(store, frame).expect("it hears");
        rig.feed(Event::Reply { store, reply });
        let activate = Action::Propose(Command::Activate {
            volume: VOLUME,
            epoch: Epoch(2),
            online: Vec::new(),
        });
        let expected = if answered == 3 { vec![activate] } else { vec![] };
        assert_eq!(rig.coordinator.drain(), expected);
    }
    // Nothing is served before the map says so.
    rig.read(1, 0);
    assert_eq!(rig.coordinator.drain(), vec![]);
    assert_eq!(rig.coordinator.phase(), Phase::Activating);
}

#[test]
fn a_block_is_written_as_data_and_delta_and_done_when_both_are_durable() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    let actions = rig.coordinator.drain();
    let fetch = |slot, want| vec![Ask::Fetch { row: row(0), slot: Slot(slot), want }];
    let expected = vec![(1, fetch(0, Want::Head)), (3, fetch(2, Want::HeadMeta))];
    assert_eq!(sent(&actions), expected);
    for action in actions {
        let Action::Send { store, frame } = action else { panic!("{action:?}") };
        let reply = rig.deliver(store, frame).expect("it hears");
        rig.feed(Event::Reply { store, reply });
    }
    let actions = rig.coordinator.drain();
    let touched = [Slot(0), Slot(2)].into_iter().collect();
    let update = Update { ver: ver(1), touched, snap: 0 };
    let (row, record, base) = (row(0), bytes(1), Ver::NONE);
    let changed = vec![Changed { slot: Slot(0), base, wid: wid(1) }];
    let data = Ask::PrepData { row, slot: Slot(0), update, base, wid: wid(1), record };
    let fingerprint = Fingerprint::of(&bytes(1)).expect("a whole piece");
    let delta =
        Ask::PrepDelta { row, slot: Slot(2), update, changed, delta: bytes(1), fingerprint };
    assert_eq!(sent(&actions), vec![(1, vec![data]), (3, vec![delta])]);
    let mut ends = Vec::new();
    for action in actions {
        let Action::Send { store, frame } = action else { panic!("{action:?}") };
        // What is sent is never covered by the watermark it travels with.
        assert_eq!(frame.watermark, ver(0));
        let reply = rig.deliver(store, frame).expect("it hears");
        rig.feed(Event::Reply { store, reply });
        ends.push(rig.coordinator.drain());
    }
    assert_eq!(ends, vec![vec![], vec![written(1)]]);
    // Committed: the next frame says so. The vector is at hand now, so one store is asked.
    rig.read(2, 0);
    let actions = rig.coordinator.drain();
    assert_eq!(sent(&actions), vec![(1, fetch(0, Want::Version(ver(1))))]);
    let Some(Action::Send { frame, .. }) = actions.first() else { panic!("{actions:?}") };
    assert_eq!(frame.watermark, ver(1));
}

#[test]
fn a_whole_row_is_written_without_any_read() {
    let mut rig = Rig::active(2, 1);
    rig.feed(Event::Write { op: 1, blocks: vec![block(0, 1), block(1, 1)] });
    let actions = rig.coordinator.drain();
    let asks: Vec<Ask> = sent(&actions).into_iter().flat_map(|(_, asks)| asks).collect();
    assert_eq!(asks.len(), 3);
    assert!(asks.iter().all(|ask| matches!(ask, Ask::PrepFull { .. })), "{asks:?}");
}

#[test]
fn a_read_is_answered_only_under_leases() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    rig.done.clear();
    // Asleep for longer than a lease lasts: the bytes come, the answer waits.
    rig.now = rig.now.after(Duration::from_secs(2));
    rig.read(2, 0);
    rig.settle();
    assert_eq!(rig.done, vec![]);
    rig.tick(0);
    rig.settle();
    assert_eq!(rig.done, vec![Action::ReadDone { op: 2, result: Ok(vec![bytes(1)]) }]);
}

#[test]
fn a_late_duplicate_is_acknowledged_and_not_applied() {
    let mut rig = Rig::active(2, 1);
    for (op, seq) in [(1, 5), (2, 4), (3, 5)] {
        rig.write(op, 0, seq);
        rig.settle();
    }
    assert_eq!(rig.done, vec![written(1), written(2), written(3)]);
    assert_eq!(rig.head(1).wid, wid(5));
    // Also where no vector is at hand, as with whole rows.
    rig.coordinator.cache.clear();
    rig.feed(Event::Write { op: 4, blocks: vec![block(0, 3), block(1, 3)] });
    rig.settle();
    assert_eq!(rig.done.last(), Some(&written(4)));
    assert_eq!((rig.head(1).wid, rig.head(2).wid), (wid(5), wid(3)));
    rig.read(5, 0);
    rig.settle();
    let result = Ok(vec![bytes(5)]);
    assert_eq!(rig.done.last(), Some(&Action::ReadDone { op: 5, result }));
}

#[test]
fn a_prepare_that_was_refused_is_not_sent_again_after_its_abort() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    let fetches = rig.coordinator.drain();
    for action in fetches {
        let Action::Send { store, frame } = action else { panic!("{action:?}") };
        let reply = rig.deliver(store, frame).expect("it hears");
        rig.feed(Event::Reply { store, reply });
    }
    let prepares = rig.coordinator.drain();
    let answers = [
        Answer::Rejected(Reject::StaleEpoch { known: Epoch(3) }),
        Answer::Rejected(Reject::NoSpace),
    ];
    for (action, answer) in prepares.into_iter().zip(answers) {
        let Action::Send { store, frame } = action else { panic!("{action:?}") };
        let answers = vec![(frame.requests[0].id, answer)];
        let incarnation = Incarnation(1);
        let reply = Reply { volume: VOLUME, session: frame.session, incarnation, answers };
        rig.feed(Event::Reply { store, reply });
    }
    let abort = |slot| vec![Ask::Abort { row: row(0), slot: Slot(slot), ver: ver(1) }];
    assert_eq!(sent(&rig.coordinator.drain()), vec![(1, abort(0)), (3, abort(2))]);
    // Time passes and a map comes: nothing else goes out.
    rig.tick(30);
    rig.adopt();
    let again: Vec<Ask> =
        sent(&rig.coordinator.drain()).into_iter().flat_map(|(_, asks)| asks).collect();
    assert!(!again.iter().any(|ask| matches!(ask, Ask::PrepData { .. })), "{again:?}");
}

#[test]
fn a_silent_store_is_taken_out_and_the_update_goes_on() {
    let mut rig = Rig::active(2, 1);
    rig.parties.get_mut(&store(3)).expect("it is there").deaf = true;
    rig.coordinator.cache.put(row(0), vec![Default::default(); 2].into());
    rig.write(1, 0, 1);
    rig.settle();
    assert_eq!(rig.done, vec![]);
    let mut shrink = Vec::new();
    for _ in 0..40 {
        rig.tick(20);
        shrink = rig.settle();
        if !shrink.is_empty() {
            break;
        }
    }
    let stores = vec![store(3)];
    assert_eq!(
        shrink,
        vec![Command::Shrink { volume: VOLUME, epoch: Epoch(2), stores, to_data: false }]
    );
    assert_eq!(rig.done, vec![Action::Alarm(Alarm::Silent { store: store(3) })]);
    rig.accept(shrink);
    rig.settle();
    assert_eq!(rig.done.last(), Some(&written(1)));
}

#[test]
fn waking_up_late_makes_nobody_suspect() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    let under_way = rig.coordinator.drain();
    assert!(!under_way.is_empty());
    rig.tick(10_000);
    let actions = rig.coordinator.drain();
    assert!(!actions.iter().any(|a| matches!(a, Action::Propose(_))), "{actions:?}");
}

/// Takes store 3 out, writes without it, and brings it back up to the proposal of its growth.
#[test]
fn a_store_that_drops_every_session_is_silent_though_nothing_is_wanted_of_it() {
    let mut rig = Rig::active(2, 1);
    rig.deafen(3, true);
    for _ in 0..8 {
        rig.link_down(3);
        rig.tick(50);
        rig.settle();
        rig.link_up(3);
        rig.settle();
    }
    let mut proposals = Vec::new();
    for _ in 0..10 {
        rig.link_down(3);
        rig.tick(50);
        proposals.extend(rig.settle());
        rig.link_up(3);
        proposals.extend(rig.settle());
    }
    let shrinks =
        |c: &Command| matches!(c, Command::Shrink { stores, .. } if *stores == [store(3)]);
    assert!(proposals.iter().any(shrinks), "{proposals:?}");
}

/// A takeover with store 3 away; how long until it is proposed to be taken out.
fn taken_out_after(unheard_millis: Option<u64>, answers_once: bool) -> u64 {
    let mut rig = Rig::active(2, 1);
    rig.link_down(3);
    rig.deafen(3, true);
    rig.elect_later();
    rig.feed(Event::Tick);
    if let Some(millis) = unheard_millis {
        let since = Time(rig.now.0 - millis * 1000);
        rig.feed(Event::Unheard { store: store(3), since });
    }
    rig.link_up(3);
    if answers_once {
        rig.deafen(3, false);
        rig.settle();
        rig.link_down(3);
        rig.deafen(3, true);
        support::elect(&mut rig.map, 1);
        rig.adopt();
    }
    let began = rig.now;
    loop {
        rig.tick(20);
        let waited = rig.now.since(began);
        let shrinks =
            |c: &Command| matches!(c, Command::Shrink { stores, .. } if *stores == [store(3)]);
        if rig.settle().iter().any(shrinks) {
            return u64::try_from(waited.as_millis()).expect("a short time");
        }
        assert!(waited < Duration::from_secs(10), "it is never taken out");
    }
}

#[test]
fn a_takeover_does_not_wait_anew_for_who_has_been_silent_for_long() {
    let usual = taken_out_after(None, false);
    assert!((1500..1700).contains(&usual), "{usual}");
    let shorter = taken_out_after(Some(1000), false);
    assert!((500..700).contains(&shorter), "{shorter}");
    let at_once = taken_out_after(Some(3000), false);
    assert!(at_once < 100, "{at_once}");
    // What was known before it answered is of the past.
    let answered = taken_out_after(Some(3000), true);
    assert!((1500..1700).contains(&answered), "{answered}");
}

fn about_to_grow() -> (Rig, Vec<Command>) {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    support::shrink(&mut rig.map, 3);
    rig.adopt();
    rig.write(2, 0, 2);
    let learn = rig.settle();
    assert!(matches!(learn[..], [Command::AddLearners { .. }]), "{learn:?}");
    assert_eq!(rig.head(3).wid, wid(1));
    rig.accept(learn);
    let mut grow = Vec::new();
    for _ in 0..20 {
        rig.tick(20);
        grow = rig.settle();
        if !grow.is_empty() {
            break;
        }
    }
    let slot =
        GrowSlot { group: GroupNo(0), slot: Slot(2), store: store(3), incarnation: Incarnation(1) };
    assert_eq!(grow, vec![Command::Grow { volume: VOLUME, epoch: Epoch(3), slots: vec![slot] }]);
    assert_eq!(rig.head(3).wid, wid(2));
    rig.done.clear();
    (rig, grow)
}

#[test]
fn a_slot_whose_growth_is_proposed_counts_even_when_its_link_breaks() {
    let (mut rig, grow) = about_to_grow();
    rig.link_down(3);
    rig.write(3, 0, 3);
    rig.settle();
    assert_eq!(rig.done, vec![], "it may be in sync already, and would lack an acknowledged write");
    // Silent for long, it is taken out: the epoch decides which of both proposals counts.
    let mut proposals = Vec::new();
    for _ in 0..40 {
        rig.tick(20);
        proposals.extend(rig.settle());
    }
    let stores = vec![store(3)];
    let shrink = Command::Shrink { volume: VOLUME, epoch: Epoch(3), stores, to_data: false };
    assert!(proposals.contains(&shrink), "{proposals:?}");
    rig.done.retain(|action| !matches!(action, Action::Alarm(_)));
    assert_eq!(rig.done, vec![]);
    rig.accept(vec![shrink]);
    rig.settle();
    assert_eq!(rig.done, vec![written(3)]);
    let applied = rig.map.apply(&grow[0]);
    assert!(matches!(applied, smalti_map::Applied::Rejected(_)), "{applied:?}");
}

#[test]
fn leases_count_a_slot_whose_growth_is_proposed() {
    let (mut rig, _) = about_to_grow();
    // Of two slots in sync one lease would do; with a third one coming it takes two.
    rig.now = rig.now.after(Duration::from_secs(2));
    for no in [2, 3] {
        rig.parties.get_mut(&store(no)).expect("it is there").deaf = true;
    }
    rig.read(7, 0);
    rig.tick(0);
    rig.settle();
    assert_eq!(rig.done, vec![]);
    rig.parties.get_mut(&store(2)).expect("it is there").deaf = false;
    rig.tick(400);
    rig.settle();
    assert_eq!(rig.done, vec![Action::ReadDone { op: 7, result: Ok(vec![bytes(2)]) }]);
}

#[test]
fn a_store_that_grew_back_is_not_doubted_again() {
    let (mut rig, grow) = about_to_grow();
    rig.accept(grow);
    rig.settle();
    // Store 2 dies and comes back, unclean: it is taken out once, and grown again.
    rig.link_down(2);
    let disk = Arc::clone(&rig.parties[&store(2)].disk);
    disk.restart(Restart::default());
    support::start_store(&mut rig.map, 2, 2, false);
    rig.start_store(2, disk);
    rig.adopt();
    rig.link_up(2);
    let mut shrinks = 0;
    for _ in 0..200 {
        rig.tick(20);
        let proposals = rig.settle();
        shrinks += proposals.iter().filter(|c| matches!(c, Command::Shrink { .. })).count();
        for command in proposals {
            rig.map.apply(&command);
        }
        rig.adopt();
    }
    assert_eq!(shrinks, 1);
    assert!(rig.map.volumes[&VOLUME].is_full());
    assert!(rig.coordinator.is_quiet(), "{:?}", rig.coordinator);
}

#[test]
fn an_abort_brings_a_learner_s_old_row_to_light_again() {
    let (mut rig, _) = about_to_grow();
    // As a learner that is still walking: what it holds of row 0 is outdated.
    let place = (GroupNo(0), Slot(2));
    let learning = rig.coordinator.catchup.learners.get_mut(&place).expect("it learns");
    learning.stage = catchup::Stage::Repairing;
    rig.parties.get_mut(&store(1)).expect("it is there").core.set_room(Room::Freeing);
    rig.feed(Event::Write { op: 3, blocks: vec![block(0, 3), block(1, 3)] });
    rig.settle();
    let failed = Action::WriteDone { op: 3, result: Err(OpError::NoSpace) };
    assert_eq!(rig.done, vec![failed]);
    let learning = &rig.coordinator.catchup.learners[&place];
    assert!(learning.behind.contains(&row(0)), "{learning:?}");
}

#[test]
fn a_coordinator_that_let_go_does_not_act_in_that_epoch_again() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    rig.coordinator.release();
    let released: Vec<Ask> =
        sent(&rig.coordinator.drain()).into_iter().flat_map(|(_, asks)| asks).collect();
    assert_eq!(released, vec![Ask::Release; 3]);
    // Any other change of the map.
    support::start_store(&mut rig.map, 3, 2, true);
    rig.adopt();
    assert_eq!(rig.coordinator.phase(), Phase::Idle);
    assert_eq!(rig.coordinator.drain(), vec![]);
    // Nobody took it: an epoch of its own is asked for.
    let mut proposals = Vec::new();
    for _ in 0..100 {
        rig.tick(20);
        proposals.extend(rig.settle());
        if !proposals.is_empty() {
            break;
        }
    }
    let (node, incarnation) = (ME.node, ME.incarnation);
    let elect = Command::Elect { volume: VOLUME, epoch: Epoch(2), node, incarnation };
    assert_eq!(proposals, vec![elect.clone()]);
    rig.accept(vec![elect]);
    assert_eq!(rig.coordinator.phase(), Phase::TakingOver);
}

#[test]
fn elected_again_without_having_noticed_it_ends_what_was_in_flight() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.coordinator.drain();
    support::elect(&mut rig.map, 2);
    support::elect(&mut rig.map, 1);
    rig.adopt();
    let fenced = Action::WriteDone { op: 1, result: Err(OpError::Fenced) };
    assert!(rig.coordinator.drain().contains(&fenced));
    assert_eq!((rig.coordinator.phase(), rig.coordinator.epoch()), (Phase::TakingOver, Epoch(4)));
}

#[test]
fn activated_and_shrunk_in_one_map_it_serves() {
    let mut rig = Rig::new(2, 1);
    rig.settle();
    assert_eq!(rig.coordinator.phase(), Phase::Activating);
    support::activate(&mut rig.map);
    support::shrink(&mut rig.map, 3);
    rig.adopt();
    assert_eq!((rig.coordinator.phase(), rig.coordinator.epoch()), (Phase::Active, Epoch(3)));
}

#[test]
fn a_takeover_completes_what_can_be_completed() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    // The second update reaches the data slot alone.
    rig.parties.get_mut(&store(3)).expect("it is there").deaf = true;
    rig.write(2, 0, 2);
    rig.settle();
    assert_eq!((rig.head(1).ver, rig.head(3).ver), (ver(2), ver(1)));
    rig.parties.get_mut(&store(3)).expect("it is there").deaf = false;
    support::elect(&mut rig.map, 1);
    rig.adopt();
    for _ in 0..200 {
        rig.tick(20);
        let proposals = rig.settle();
        if !proposals.is_empty() {
            rig.accept(proposals);
        }
    }
    assert_eq!(rig.coordinator.phase(), Phase::Active);
    assert_eq!((rig.head(1).ver, rig.head(3).ver), (ver(2), ver(2)));
    rig.done.clear();
    rig.read(3, 0);
    rig.settle();
    assert_eq!(rig.done, vec![Action::ReadDone { op: 3, result: Ok(vec![bytes(2)]) }]);
    assert!(rig.coordinator.is_quiet(), "{:?}", rig.coordinator);
}

#[test]
fn a_rotten_record_is_decoded_told_and_mended() {
    let mut rig = Rig::active(2, 1);
    rig.write(1, 0, 1);
    rig.settle();
    let at = RowSlot { volume: VOLUME, row: row(0), slot: Slot(0) };
    assert!(rig.parties[&store(1)].disk.corrupt_record(at, ver(1), 3));
    rig.done.clear();
    rig.read(2, 0);
    rig.settle();
    let alarm = Action::Alarm(Alarm::Corrupt { row: row(0), slot: Slot(0) });
    let fault = Action::Fault { store: store(1) };
    let read = Action::ReadDone { op: 2, result: Ok(vec![bytes(1)]) };
    assert_eq!(rig.done, vec![fault, alarm, read]);
    let record = rig.parties[&store(1)].disk.record(at, ver(1)).expect("memory does not fail");
    assert_eq!(record, Some(bytes(1)));
    assert_eq!(rig.coordinator.stats().corrupt_records, 1);
    assert!(rig.coordinator.is_quiet(), "{:?}", rig.coordinator);
}

#[test]
fn a_slot_that_grew_back_while_an_update_waited_is_asked_again() {
    let mut rig = Rig::active(2, 2);
    rig.write(1, 0, 1);
    rig.settle();
    rig.coordinator.cache.clear();
    // The update asks slot 0 and a parity slot for what they hold, and slot 0 is taken out.
    for no in [1, 3] {
        rig.deafen(no, true);
    }
    rig.done.clear();
    rig.write(2, 0, 2);
    rig.settle();
    support::shrink(&mut rig.map, 1);
    rig.adopt();
    rig.settle();
    // It grows back, and then the parity slot that has been asked all along is taken out.
    let slots = vec![GrowSlot {
        group: GroupNo(0),
        slot: Slot(0),
        store: store(1),
        incarnation: Incarnation(1),
    }];
    rig.deafen(1, false);
    for no in [2, 4] {
        rig.deafen(no, true);
    }
    let (volume, epoch) = (VOLUME, support::epoch(&rig.map));
    let learn = Command::AddLearners { volume, epoch, slots: slots.clone() };
    rig.accept(vec![learn, Command::Grow { volume, epoch, slots }]);
    support::shrink(&mut rig.map, 3);
    for no in [2, 4] {
        rig.deafen(no, false);
    }
    rig.adopt();
    for _ in 0..20 {
        rig.tick(20);
        rig.settle();
    }
    rig.done.retain(|action| !matches!(action, Action::Alarm(_)));
    assert_eq!(rig.done, vec![written(2)]);
}
