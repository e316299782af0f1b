use super::*;
use crate::msg::{Changed, FROZEN, Request, UNREADABLE, Update, Want};
use crate::store::read::ReadSide;
use crate::support::{self, VOLUME, row, slot, store};
use bytes::Bytes;
use smalti_storage::code::Fingerprint;
use smalti_storage::ids::{Incarnation, Slot, SlotSet, Wid};
use smalti_storage::store::memory::{MemoryStore, Restart};
use smalti_storage::store::{VecEntry, VersionMeta};

/// Node 1 coordinates a 2+1 volume; the store under test is node `no`'s.
struct Rig {
    map: ClusterMap,
    disk: Arc<MemoryStore>,
    core: StoreCore,
    now: Time,
    session: u64,
    no: u64,
}

impl Rig {
    /// Of an activated coordinator, in epoch 2, a long time after the start.
    fn new(no: u64) -> Self {
        Self::of(support::map(2, 1), no)
    }

    fn of(mut map: ClusterMap, no: u64) -> Self {
        support::elect(&mut map, 1);
        support::activate(&mut map);
        let disk = Arc::new(MemoryStore::new(store(no)));
        let core = StoreCore::new(Arc::clone(&disk) as _, StoreConfig::default(), Time(0));
        let mut rig = Self { map, disk, core, now: Time(10_000_000), session: 1, no };
        rig.adopt();
        rig
    }

    fn adopt(&mut self) {
        self.core.set_map(&self.map).expect("memory does not fail");
    }

    fn restart(&mut self, at: Time) {
        let opened = self.disk.restart(Restart::default());
        support::start_store(&mut self.map, self.no, opened.incarnation.0, false);
        self.core = StoreCore::new(Arc::clone(&self.disk) as _, StoreConfig::default(), at);
        self.now = at;
        self.adopt();
    }

    /// After a restart: promises the epoch, once what it may have granted before is over.
    fn promise(&mut self) -> Answer {
        self.now = self.now.after(Duration::from_secs(2));
        self.ask(Ask::Promise)
    }

    fn frame(&self, watermark: Ver, asks: Vec<Ask>) -> Frame {
        Frame {
            volume: VOLUME,
            epoch: support::epoch(&self.map),
            incarnation: Incarnation(1),
            session: self.session,
            watermark,
            requests: (1..).zip(asks).map(|(id, ask)| Request { id, ask }).collect(),
        }
    }

    fn send(&mut self, from: u64, frame: Frame) -> Option<Vec<Answer>> {
        let reply = self.core.handle(self.now, NodeId(from), frame).expect("memory does not fail");
        self.core.collect().expect("memory does not fail");
        let (batch, _) = self.core.take_batch();
        self.disk.commit(batch).expect("memory does not fail");
        self.core.committed();
        reply.map(|reply| reply.answers.into_iter().map(|(_, answer)| answer).collect())
    }

    fn ask(&mut self, ask: Ask) -> Answer {
        let frame = self.frame(Ver::NONE, vec![ask]);
        self.send(1, frame).expect("the session is the newest").remove(0)
    }

    fn watermark(&mut self, ver: Ver) {
        let frame = self.frame(ver, vec![Ask::Nop]);
        self.send(1, frame);
    }

    fn versions(&self, index: u32) -> Vec<u64> {
        let at = self.at(index);
        let versions = self.disk.versions(at).expect("memory does not fail");
        versions.into_iter().map(|meta| meta.ver.seq).collect()
    }

    fn marks(&self) -> Vec<u64> {
        let marks = self.disk.prepared(VOLUME).expect("memory does not fail");
        marks.into_iter().map(|(_, ver)| ver.seq).collect()
    }

    fn at(&self, index: u32) -> RowSlot {
        RowSlot { volume: VOLUME, row: row(index), slot: slot(self.no) }
    }

    fn promised(&self) -> u32 {
        self.disk.volume(VOLUME).expect("memory does not fail").promised.0
    }
}

fn ver(seq: u64) -> Ver {
    Ver { epoch: Epoch(2), seq }
}

fn wid(seq: u64) -> Wid {
    Wid { generation: 2, seq }
}

fn update(seq: u64) -> Update {
    Update { ver: ver(seq), touched: [Slot(0), Slot(2)].into_iter().collect(), snap: 0 }
}

fn bytes(fill: u8) -> Bytes {
    vec![fill; 64].into()
}

fn prep(seq: u64, base: Ver) -> Ask {
    let (row, slot, record) = (row(0), Slot(0), bytes(seq as u8));
    Ask::PrepData { row, slot, update: update(seq), base, wid: wid(seq), record }
}

fn delta(seq: u64, base: Ver, fill: u8) -> Ask {
    let changed = vec![Changed { slot: Slot(0), base, wid: wid(seq) }];
    let (row, slot) = (row(0), Slot(2));
    let fingerprint = Fingerprint::of(&bytes(fill)).expect("a whole piece");
    Ask::PrepDelta { row, slot, update: update(seq), changed, delta: bytes(fill), fingerprint }
}

fn full(seq: u64) -> Ask {
    let touched = SlotSet::first(3);
    let update = Update { touched, ..update(seq) };
    let (row, slot, vec, record) = (row(0), Slot(0), Vec::new(), bytes(seq as u8));
    Ask::PrepFull { row, slot, update, wid: wid(seq), vec, record }
}

fn whole(seq: u64) -> (VersionMeta, Bytes) {
    let meta = VersionMeta { ver: ver(seq), wid: wid(seq), present: true, ..Default::default() };
    (meta, bytes(seq as u8))
}

fn install(seq: u64, expect: Ver) -> Ask {
    let (meta, record) = whole(seq);
    Ask::Install { row: row(0), slot: Slot(0), meta, record, expect }
}

/// A slot of one version.
fn restore(seq: u64, expect: Ver) -> Ask {
    let (versions, keep) = (vec![whole(seq)], Vec::new());
    Ask::Restore { row: row(0), slot: Slot(0), versions, keep, expect }
}

fn base(have: Ver) -> Answer {
    Answer::Rejected(Reject::Base { have })
}

mod moves;
mod snapshots;
mod suspects;
mod unreadable;

#[test]
fn only_the_coordinator_of_the_epoch_is_heard() {
    let mut rig = Rig::new(1);
    let stale = Answer::Rejected(Reject::StaleEpoch { known: Epoch(2) });
    let good = rig.frame(Ver::NONE, vec![Ask::Nop]);
    assert_eq!(rig.send(2, good.clone()), Some(vec![stale.clone()]));
    let older = Frame { epoch: Epoch(1), ..good.clone() };
    assert_eq!(rig.send(1, older), Some(vec![stale.clone()]));
    let restarted = Frame { incarnation: Incarnation(2), ..good.clone() };
    assert_eq!(rig.send(1, restarted), Some(vec![stale]));
    assert_eq!(rig.send(1, good), Some(vec![Answer::Ok]));
}

#[test]
fn an_older_session_is_dropped() {
    let mut rig = Rig::new(1);
    let late = rig.frame(Ver::NONE, vec![prep(1, Ver::NONE)]);
    rig.session = 2;
    assert_eq!(rig.ask(Ask::Nop), Answer::Ok);
    assert_eq!(rig.send(1, late), None);
    assert_eq!(rig.versions(0), []);
}

#[test]
fn a_prepare_needs_its_base_and_may_be_repeated() {
    let mut rig = Rig::new(1);
    assert_eq!(rig.ask(prep(1, Ver::NONE)), Answer::Ok);
    assert_eq!(rig.ask(prep(1, Ver::NONE)), Answer::Ok);
    assert_eq!(rig.ask(prep(3, ver(2))), base(ver(1)));
    assert_eq!(rig.ask(prep(2, ver(1))), Answer::Ok);
    assert_eq!((rig.versions(0), rig.marks()), (vec![2, 1], vec![2]));
    // A late duplicate of a client write.
    let Ask::PrepData { row, slot, update, base, record, .. } = prep(3, ver(2)) else { return };
    let duplicate = Ask::PrepData { row, slot, update, base, wid: wid(2), record };
    assert_eq!(rig.ask(duplicate), Answer::Rejected(Reject::OldWid));
}

#[test]
fn parity_refuses_a_late_copy_of_a_whole_row() {
    let mut rig = Rig::new(3);
    let whole = |seq: u64, writes: [u64; 2]| {
        let update = Update { touched: SlotSet::first(3), ..update(seq) };
        let entry = |write| VecEntry { ver: ver(seq), wid: wid(write), snap: 0 };
        let (vec, newest) = (writes.map(entry).to_vec(), writes[0].max(writes[1]));
        let (row, slot, record) = (row(0), Slot(2), bytes(seq as u8));
        Ask::PrepFull { row, slot, update, wid: wid(newest), vec, record }
    };
    assert_eq!(rig.ask(whole(1, [1, 1])), Answer::Ok);
    assert_eq!(rig.ask(whole(2, [2, 3])), Answer::Ok);
    // One block of it was written since: its data slot refuses, and so must every parity slot.
    assert_eq!(rig.ask(whole(3, [3, 3])), Answer::Rejected(Reject::OldWid));
    assert_eq!(rig.ask(whole(4, [1, 1])), Answer::Rejected(Reject::OldWid));
    assert_eq!(rig.ask(whole(5, [3, 4])), Answer::Ok);
}

#[test]
fn an_update_drops_an_undecided_one_it_was_not_built_on() {
    let mut rig = Rig::new(1);
    rig.ask(prep(1, Ver::NONE));
    rig.watermark(ver(1));
    rig.ask(prep(2, ver(1)));
    assert_eq!(rig.ask(prep(3, ver(1))), Answer::Ok);
    assert_eq!((rig.versions(0), rig.marks()), (vec![3, 1], vec![3]));
}

#[test]
fn parity_adds_deltas_and_moves_its_vector() {
    let mut rig = Rig::new(3);
    assert_eq!(rig.ask(delta(1, Ver::NONE, 5)), Answer::Ok);
    assert_eq!(rig.ask(delta(2, ver(1), 6)), Answer::Ok);
    assert_eq!(rig.ask(delta(3, ver(1), 6)), base(ver(2)));
    let head = rig.disk.head(rig.at(0)).expect("memory does not fail").expect("written");
    let entry = VecEntry { ver: ver(2), wid: wid(2), snap: 0 };
    assert_eq!((head.vec, head.base), (vec![entry], ver(1)));
    let record = rig.disk.record(rig.at(0), ver(2)).expect("memory does not fail");
    assert_eq!(record, Some(bytes(5 ^ 6)));
}

#[test]
fn parity_is_not_built_on_rotten_bytes() {
    let mut rig = Rig::new(3);
    rig.ask(delta(1, Ver::NONE, 5));
    rig.restart(Time(20_000_000));
    rig.promise();
    assert!(rig.disk.corrupt_record(rig.at(0), ver(1), 7));
    assert_eq!(rig.ask(delta(2, ver(1), 6)), Answer::Rejected(Reject::Corrupt));
}

#[test]
fn the_watermark_commits_and_collects() {
    let mut rig = Rig::new(1);
    rig.ask(prep(1, Ver::NONE));
    rig.ask(prep(2, ver(1)));
    rig.watermark(ver(1));
    assert_eq!((rig.versions(0), rig.marks()), (vec![2, 1], vec![2]));
    rig.watermark(ver(2));
    assert_eq!((rig.versions(0), rig.marks()), (vec![2], vec![]));
    assert_eq!(rig.ask(prep(1, Ver::NONE)), Answer::Rejected(Reject::Invalid));
}

#[test]
fn the_watermark_means_nothing_where_the_store_is_out_of_sync() {
    let mut rig = Rig::new(1);
    rig.ask(prep(1, Ver::NONE));
    rig.ask(prep(2, ver(1)));
    support::shrink(&mut rig.map, 1);
    rig.adopt();
    rig.watermark(ver(2));
    assert_eq!((rig.versions(0), rig.marks()), (vec![2, 1], vec![2]));
    // In sync again, it does; though it does not rise any more.
    let grow = vec![smalti_map::GrowSlot {
        group: GroupNo(0),
        slot: Slot(0),
        store: store(1),
        incarnation: Incarnation(1),
    }];
    let (volume, epoch) = (VOLUME, support::epoch(&rig.map));
    let slots = grow.clone();
    let learn = smalti_map::Command::AddLearners { volume, epoch, slots };
    support::accept(&mut rig.map, &learn);
    let slots = grow;
    support::accept(&mut rig.map, &smalti_map::Command::Grow { volume, epoch, slots });
    rig.adopt();
    rig.watermark(ver(2));
    assert_eq!((rig.versions(0), rig.marks()), (vec![2], vec![]));
}

#[test]
fn a_row_written_again_and_again_keeps_two_versions() {
    let mut rig = Rig::new(1);
    let mut last = Ver::NONE;
    for seq in 1..20 {
        assert_eq!(rig.ask(prep(seq, last)), Answer::Ok);
        last = ver(seq);
    }
    assert_eq!(rig.versions(0), [19, 18]);
}

#[test]
fn an_abort_takes_back_what_is_undecided_and_nothing_else() {
    let mut rig = Rig::new(1);
    let abort = |seq| Ask::Abort { row: row(0), slot: Slot(0), ver: ver(seq) };
    rig.ask(prep(1, Ver::NONE));
    rig.ask(prep(2, ver(1)));
    assert_eq!(rig.ask(abort(2)), Answer::Ok);
    assert_eq!(rig.ask(abort(2)), Answer::Ok);
    assert_eq!((rig.versions(0), rig.marks()), (vec![1], vec![]));
    // What an update was built on is committed.
    assert_eq!(rig.ask(abort(1)), Answer::Rejected(Reject::Invalid));
    assert_eq!(rig.versions(0), [1]);
}

#[test]
fn a_late_prepare_does_not_get_beneath_a_repair() {
    let mut rig = Rig::new(1);
    assert_eq!(rig.ask(restore(5, Ver::NONE)), Answer::Ok);
    assert_eq!(rig.ask(full(3)), base(ver(5)));
    assert_eq!((rig.versions(0), rig.marks()), (vec![5], vec![]));
}

#[test]
fn a_full_disk_takes_no_updates_but_everything_else() {
    let mut rig = Rig::new(1);
    rig.ask(prep(1, Ver::NONE));
    rig.core.set_room(Room::Freeing);
    assert_eq!(rig.ask(prep(2, ver(1))), Answer::Rejected(Reject::NoSpace));
    assert_eq!(rig.ask(prep(1, Ver::NONE)), Answer::Ok);
    assert_eq!(rig.ask(restore(4, ver(1))), Answer::Ok);
}

/// What a slot lacks is no more welcome there than what clients write: in place of something it is.
#[test]
fn a_full_disk_is_not_filled_by_repairs() {
    let no_space = Answer::Rejected(Reject::NoSpace);
    let mut rig = Rig::new(1);
    rig.core.set_room(Room::Freeing);
    assert_eq!(rig.ask(restore(4, Ver::NONE)), no_space);
    assert_eq!((rig.versions(0), rig.marks()), (vec![], vec![]));
    rig.core.set_room(Room::All);
    assert_eq!(rig.ask(restore(4, Ver::NONE)), Answer::Ok);
    rig.core.set_room(Room::Freeing);
    assert_eq!(rig.ask(restore(5, ver(4))), Answer::Ok);
    rig.core.set_room(Room::Nothing);
    assert_eq!(rig.ask(restore(6, ver(5))), no_space);
    // What takes it away goes on.
    let nothing = Ask::Restore {
        row: row(0),
        slot: Slot(0),
        versions: Vec::new(),
        keep: Vec::new(),
        expect: ver(5),
    };
    assert_eq!(rig.ask(nothing), Answer::Ok);
    assert_eq!(rig.versions(0), Vec::<u64>::new());
}

/// The same with the absent record.
fn absent(ask: Ask) -> Ask {
    let record = Bytes::new();
    match ask {
        Ask::PrepData { row, slot, update, base, wid, .. } => {
            Ask::PrepData { row, slot, update, base, wid, record }
        }
        Ask::PrepFull { row, slot, update, wid, vec, .. } => {
            Ask::PrepFull { row, slot, update, wid, vec, record }
        }
        other => other,
    }
}

#[test]
fn a_full_disk_takes_what_leaves_records_absent() {
    let no_space = Answer::Rejected(Reject::NoSpace);
    let mut rig = Rig::new(1);
    rig.ask(prep(1, Ver::NONE));
    rig.core.set_room(Room::Freeing);
    assert_eq!(rig.ask(full(2)), no_space);
    assert_eq!(rig.ask(absent(full(2))), Answer::Ok);
    assert_eq!(rig.ask(absent(prep(3, ver(2)))), Answer::Ok);
    rig.watermark(ver(3));
    assert_eq!(rig.versions(0), [3]);
    rig.core.set_room(Room::Nothing);
    assert_eq!(rig.ask(absent(full(4))), no_space);
    assert_eq!(rig.ask(absent(prep(4, ver(3)))), no_space);
    rig.core.set_room(Room::All);
    assert_eq!(rig.ask(prep(4, ver(3))), Answer::Ok);
}

#[test]
fn a_full_disk_takes_deltas_that_leave_parity_absent() {
    let mut rig = Rig::new(3);
    assert_eq!(rig.ask(delta(1, Ver::NONE, 7)), Answer::Ok);
    rig.core.set_room(Room::Freeing);
    assert_eq!(rig.ask(delta(2, ver(1), 3)), Answer::Rejected(Reject::NoSpace));
    assert_eq!(rig.ask(delta(2, ver(1), 7)), Answer::Ok);
    rig.core.set_room(Room::Nothing);
    assert_eq!(rig.ask(delta(3, ver(2), 7)), Answer::Rejected(Reject::NoSpace));
}

#[test]
fn installing_as_prepared_keeps_the_pre_image_and_mends_what_is_rotten() {
    let mut rig = Rig::new(1);
    rig.ask(prep(1, Ver::NONE));
    assert_eq!(rig.ask(install(2, Ver::NONE)), base(ver(1)));
    assert_eq!(rig.ask(install(2, ver(1))), Answer::Ok);
    assert_eq!((rig.versions(0), rig.marks()), (vec![2, 1], vec![2]));
    rig.restart(Time(20_000_000));
    assert!(rig.disk.corrupt_record(rig.at(0), ver(2), 0));
    assert_eq!(rig.ask(install(2, ver(2))), Answer::Ok);
    let record = rig.disk.record(rig.at(0), ver(2)).expect("memory does not fail");
    assert_eq!(record, Some(bytes(2)));
}

#[test]
fn damaged_metadata_is_answered_scanned_and_replaced() {
    let mut rig = Rig::new(1);
    rig.ask(prep(1, Ver::NONE));
    assert!(rig.disk.corrupt_meta(rig.at(0), ver(1)));
    // What this core has in memory it goes on with; a restart has nothing there.
    let versions = Ask::Versions { row: row(0), slot: Slot(0) };
    assert_eq!(rig.ask(versions), Answer::Corrupt);
    let scan = Ask::Scan { group: GroupNo(0), after: None, limit: 10 };
    let entries = vec![(row(0), Slot(0), None)];
    assert_eq!(rig.ask(scan), Answer::Scanned { entries, done: true });
    // Whoever saw that expects nothing here. One version alone would pass for all there ever was.
    assert_eq!(rig.ask(install(3, Ver::NONE)), Answer::Corrupt);
    assert_eq!(rig.ask(restore(3, Ver::NONE)), Answer::Ok);
    assert_eq!((rig.versions(0), rig.marks()), (vec![3], vec![]));
    assert!(rig.disk.corrupt_meta(rig.at(0), ver(3)));
    rig.restart(Time(20_000_000));
    rig.promise();
    assert_eq!(rig.ask(prep(4, ver(3))), Answer::Corrupt);
    rig.watermark(ver(9));
    let (versions, keep, expect) = (Vec::new(), Vec::new(), Ver::NONE);
    let purge = Ask::Restore { row: row(0), slot: Slot(0), versions, keep, expect };
    assert_eq!(rig.ask(purge), Answer::Ok);
    assert_eq!((rig.versions(0), rig.marks()), (vec![], vec![]));
}

#[test]
fn damaged_metadata_is_replaced_whatever_is_expected_and_never_left_out() {
    let mut rig = Rig::new(1);
    rig.ask(prep(1, Ver::NONE));
    assert!(rig.disk.corrupt_meta(rig.at(0), ver(1)));
    rig.restart(Time(20_000_000));
    // By now it is not. To drop it and refuse would make it one that was never written.
    let keep = vec![ver(1)];
    let (versions, expect) = (vec![whole(3)], ver(1));
    let keeping = Ask::Restore { row: row(0), slot: Slot(0), versions, keep, expect };
    assert_eq!(rig.ask(keeping), base(Ver::NONE));
    assert!(rig.disk.versions(rig.at(0)).is_err());
    assert_eq!(rig.ask(restore(3, ver(1))), Answer::Ok);
    assert_eq!((rig.versions(0), rig.marks()), (vec![3], vec![]));
}

#[test]
fn a_promise_waits_for_leases_of_others() {
    let mut rig = Rig::new(1);
    let lease = Ask::Lease { duration_us: 1_500_000 };
    assert_eq!(rig.ask(lease), Answer::Granted);
    support::elect(&mut rig.map, 2);
    rig.adopt();
    let promise = rig.frame(Ver::NONE, vec![Ask::Promise]);
    let wait = Answer::PromiseLater(1_515_000);
    assert_eq!(rig.send(2, promise.clone()), Some(vec![wait]));
    rig.now = Time(10_000_000 + 1_515_000);
    let answers = rig.send(2, promise).expect("the newest session");
    assert!(matches!(answers[0], Answer::Promised { suspect: false, .. }), "{answers:?}");
    assert_eq!(rig.promised(), 3);
}

#[test]
fn a_lease_given_back_is_not_waited_for() {
    let mut rig = Rig::new(1);
    rig.ask(Ask::Lease { duration_us: 1_500_000 });
    assert_eq!(rig.ask(Ask::Release), Answer::Ok);
    support::elect(&mut rig.map, 2);
    rig.adopt();
    let promise = rig.frame(Ver::NONE, vec![Ask::Promise]);
    let answers = rig.send(2, promise).expect("the newest session");
    assert!(matches!(answers[0], Answer::Promised { .. }), "{answers:?}");
}

#[test]
fn after_a_restart_a_promise_waits_for_leases_that_were_forgotten() {
    let mut rig = Rig::new(1);
    rig.ask(Ask::Lease { duration_us: 1_500_000 });
    support::elect(&mut rig.map, 2);
    rig.restart(Time(50_000_000));
    rig.now = Time(50_000_400);
    let promise = rig.frame(Ver::NONE, vec![Ask::Promise]);
    assert_eq!(rig.send(2, promise.clone()), Some(vec![Answer::PromiseLater(1_514_600)]));
    rig.now = Time(51_515_000);
    let answers = rig.send(2, promise).expect("the newest session");
    assert!(matches!(answers[0], Answer::Promised { suspect: true, .. }), "{answers:?}");
}

#[test]
fn a_store_that_crashed_is_a_suspect_until_it_was_compared() {
    let mut rig = Rig::new(1);
    assert!(rig.core.is_vetted());
    rig.restart(Time(50_000_000));
    rig.now = Time(60_000_000);
    assert!(!rig.core.is_vetted(), "it may not leave a clean marker");
    assert!(matches!(rig.ask(Ask::Promise), Answer::Promised { suspect: true, .. }));
    // An earlier start was compared, or this one.
    assert_eq!(rig.ask(Ask::Vetted { incarnation: Incarnation(1) }), Answer::Ok);
    assert!(!rig.core.is_vetted());
    assert_eq!(rig.ask(Ask::Vetted { incarnation: Incarnation(2) }), Answer::Ok);
    assert!(rig.core.is_vetted());
    assert!(matches!(rig.ask(Ask::Promise), Answer::Promised { suspect: false, .. }));
}

#[test]
fn a_store_that_forgot_its_promise_waits_for_the_lease_it_forgot_as_well() {
    let mut rig = Rig::new(1);
    let empty = rig.disk.fork();
    rig.ask(Ask::Lease { duration_us: 1_500_000 });
    support::elect(&mut rig.map, 2);
    rig.disk.roll_back(&empty);
    rig.restart(Time(50_000_000));
    assert_eq!(rig.promised(), 0);
    let promise = rig.frame(Ver::NONE, vec![Ask::Promise]);
    assert_eq!(rig.send(2, promise), Some(vec![Answer::PromiseLater(1_515_000)]));
}

#[test]
fn accepting_anything_binds_to_the_epoch_even_after_a_restart_with_an_older_map() {
    let mut rig = Rig::new(1);
    let old = rig.map.clone();
    support::elect(&mut rig.map, 2);
    support::activate(&mut rig.map);
    rig.adopt();
    let lease = rig.frame(Ver::NONE, vec![Ask::Lease { duration_us: 1000 }]);
    assert_eq!(rig.send(2, lease), Some(vec![Answer::Granted]));
    assert_eq!(rig.promised(), 3);
    let new = std::mem::replace(&mut rig.map, old);
    rig.restart(Time(50_000_000));
    let stale = Answer::Rejected(Reject::StaleEpoch { known: Epoch(3) });
    assert_eq!(rig.ask(prep(1, Ver::NONE)), stale);
    // It does not know the coordinator of the epoch it promised either.
    let newer = Frame { epoch: Epoch(3), ..rig.frame(Ver::NONE, vec![Ask::Nop]) };
    assert_eq!(rig.send(1, newer), Some(vec![stale]));
    rig.map = new;
    support::start_store(&mut rig.map, 1, 2, false);
    rig.adopt();
    let nop = rig.frame(Ver::NONE, vec![Ask::Nop]);
    assert_eq!(rig.send(2, nop), Some(vec![Answer::Ok]));
}

#[test]
fn nobody_is_obeyed_before_the_map_tells_of_this_start() {
    let mut rig = Rig::new(1);
    let reader = |rig: &Rig| ReadSide::new(Arc::clone(&rig.disk) as _, rig.core.fence());
    let before = rig.map.clone();
    rig.restart(Time(50_000_000));
    let known = std::mem::replace(&mut rig.map, before);
    rig.core = StoreCore::new(Arc::clone(&rig.disk) as _, StoreConfig::default(), rig.now);
    rig.adopt();
    let stale = Answer::Rejected(Reject::StaleEpoch { known: Epoch(2) });
    assert_eq!(rig.ask(prep(1, Ver::NONE)), stale);
    let confirm = rig.frame(Ver::NONE, vec![Ask::Confirm]);
    let answered = |rig: &Rig| {
        let reply = reader(rig).handle(NodeId(1), &confirm).expect("memory does not fail");
        reply.answers.into_iter().map(|(_, answer)| answer).collect::<Vec<_>>()
    };
    assert_eq!(answered(&rig), vec![stale]);
    rig.map = known;
    rig.adopt();
    assert_eq!(rig.ask(Ask::Nop), Answer::Ok);
    assert_eq!(answered(&rig), vec![Answer::Ok]);
}

#[test]
fn readers_follow_the_map_only_after_what_came_before_is_durable() {
    let mut rig = Rig::new(1);
    let reader = ReadSide::new(Arc::clone(&rig.disk) as _, rig.core.fence());
    let fetch = Ask::Fetch { row: row(0), slot: Slot(0), want: Want::HeadMeta };
    let before = rig.frame(Ver::NONE, vec![fetch]);
    let prepare = rig.frame(Ver::NONE, vec![prep(1, Ver::NONE)]);
    rig.core.handle(rig.now, NodeId(1), prepare).expect("memory does not fail");
    support::shrink(&mut rig.map, 2);
    rig.adopt();
    // The change is not durable yet: a reader of the new epoch would miss it.
    assert_eq!(reader.epoch_of(VOLUME), Some(Epoch(2)));
    let (batch, must_sync) = rig.core.take_batch();
    assert!(must_sync);
    rig.disk.commit(batch).expect("memory does not fail");
    rig.core.committed();
    assert_eq!(reader.epoch_of(VOLUME), Some(Epoch(3)));
    let reply = reader.handle(NodeId(1), &before).expect("memory does not fail");
    let stale = Answer::Rejected(Reject::StaleEpoch { known: Epoch(3) });
    assert_eq!(reply.answers, vec![(1, stale)]);
}
