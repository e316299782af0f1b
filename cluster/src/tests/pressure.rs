//! Slow parties: a disk that hangs, a peer that reads no replies. Nobody's memory grows, nobody
//! else is held up, and all goes on when they do.

use super::net::{MemoryNet, Weather};
use super::probe;
use super::rig::{HOME, Rig, Told, fetch, until, within};
use super::rng::Rng;
use crate::clock::simulated;
use bytes::Bytes;
use smalti_rowcommit::msg::{Answer, Ask};
use smalti_storage::ids::NodeId;
use smalti_storage::record::RECORD_LEN;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// More than any link may hold of frames for one store, the store's queue and batch included.
const LINK_HOLDS: usize = 160 * MIB;

/// More than a store may hold of replies for one session, together with what is being read.
const SESSION_HOLDS: usize = 40 * MIB;

fn net(window: usize, delay: Duration) -> MemoryNet {
    MemoryNet::new(Rng::new(7), Weather { delay, window, refused: 0 })
}

/// Runs on one thread and a paused clock: waiting for ever takes no time.
pub(super) fn simulate(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        simulated::begin(Some(Instant::now()));
        test.await;
    });
    simulated::begin(None);
}

/// Whatever is fed to it, a link to a store whose disk hangs holds a bounded number of bytes. When
/// the disk goes on, so does everything.
async fn hanging_disk(local: bool) {
    let rig = Rig::start(1).await;
    let net = net(MIB, Duration::from_micros(50));
    net.serve(HOME, rig.sessions());
    let mut link = rig.link(1, local, net.of(rig.seat(1))).await;
    rig.disk.hold(true);
    let first = link.session;
    let (bytes, gauge) = (Arc::from(vec![7; MIB]), super::rig::Gauge::default());
    let mut most = 0;
    for index in 0..1000 {
        let ask = link.prepare(index, gauge.count(&bytes));
        link.send(vec![ask]);
        most = most.max(gauge.held());
        if index % 10 == 0 {
            sleep(Duration::from_millis(1)).await;
            // A coder would go on in the next session.
            while let Ok(told) = link.told.try_recv() {
                if let Told::Up(session) = told {
                    link.session = session;
                }
            }
        }
    }
    assert!(most <= LINK_HOLDS, "{} MiB were held", most / MIB);
    assert!(rig.disk.hanging.load(Ordering::SeqCst) > 0);
    if link.session == first {
        // The session ends although its line is stuck.
        link.up().await;
    }
    rig.disk.hold(false);
    // In this session or in a later one, there is an answer again.
    loop {
        let id = link.send(vec![Ask::Nop]);
        let heard = async {
            loop {
                match link.hear().await {
                    Told::Up(session) => {
                        link.session = session;
                        return false;
                    }
                    Told::Down => {}
                    Told::Reply(reply) => {
                        if reply.answers.iter().any(|(answered, _)| *answered == id) {
                            return true;
                        }
                    }
                }
            }
        };
        if within("the store answers again", heard).await {
            break;
        }
    }
    until("all frames are gone", || gauge.held() <= 1000 * MIB).await;
    drop(link);
    let store = rig.id;
    rig.stop().await;
    probe::check(&[store]).expect("the contract");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_disk_fills_nobodys_memory_in_process() {
    hanging_disk(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_disk_fills_nobodys_memory_over_a_network() {
    hanging_disk(false).await;
}

/// Sessions that end while the disk hangs do not stay with the store until it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_broke_do_not_pile_up_at_a_hanging_disk() {
    let rig = Rig::start(1).await;
    let net = net(MIB, Duration::from_micros(50));
    net.serve(HOME, rig.sessions());
    let me = rig.seat(1);
    let mut link = rig.link(1, false, net.of(me)).await;
    rig.disk.hold(true);
    let record = Bytes::from(vec![7; KIB]);
    for round in 0..20 {
        // Enough to fill the store's queue, and to have one more at its door.
        for index in 0..80 {
            let ask = link.prepare(round * 80 + index, record.clone());
            link.send(vec![ask]);
        }
        until("a commit hangs", || rig.disk.hanging.load(Ordering::SeqCst) > 0).await;
        sleep(Duration::from_millis(3)).await;
        net.cut(me, HOME);
        link.up().await;
    }
    until("old sessions end", || rig.tasks.len() <= 4).await;
    rig.disk.hold(false);
    let id = link.send(vec![Ask::Nop]);
    assert_eq!(link.answer(id).await, Answer::Ok);
    drop(link);
    let store = rig.id;
    rig.stop().await;
    let found = probe::check(&[store]).expect("the contract");
    assert_eq!(found.sessions, 21);
}

/// Both directions are full: what comes in is taken while something waits to go out.
#[test]
fn two_that_are_full_do_not_wait_for_each_other() {
    simulate(async {
        let rig = Rig::start(1).await;
        let net = net(MIB, Duration::from_millis(5));
        net.serve(HOME, rig.sessions());
        let mut link = rig.link(1, false, net.of(rig.seat(1))).await;
        link.fill(1, &Bytes::from(vec![7; RECORD_LEN])).await;
        // Small questions with large answers, and then large frames behind them.
        for _ in 0..3000 {
            link.send((0..8).map(|_| fetch(0)).collect());
        }
        let record = Bytes::from(vec![7; MIB]);
        let mut last = 0;
        for index in 1..5 {
            let ask = link.prepare(index, record.clone());
            last = link.send(vec![ask]);
        }
        assert_eq!(link.answer(last).await, Answer::Ok);
        drop(link);
        rig.stop().await;
    });
}

/// Updates whose answers do not fit are not forgotten: the session breaks, and they are asked
/// again.
#[test]
fn a_peer_that_reads_no_replies_loses_its_session_and_no_answer() {
    simulate(async {
        let rig = Rig::start(1).await;
        let net = net(8 * KIB, Duration::from_micros(100));
        net.serve(HOME, rig.sessions());
        let me = rig.seat(1);
        let mut link = rig.link(1, false, net.of(me)).await;
        net.set_hole(HOME, me, true);
        for _ in 0..40 {
            for _ in 0..1000 {
                link.send(vec![Ask::Nop]);
            }
            sleep(Duration::from_millis(500)).await;
        }
        net.set_hole(HOME, me, false);
        // Either all is answered in order, or there is a new session.
        let end = Instant::now() + Duration::from_secs(20);
        let mut session = link.session;
        while let Ok(told) = tokio::time::timeout_at(end, link.told.recv()).await {
            if let Some(Told::Up(next)) = told {
                session = next;
            }
        }
        link.session = session;
        let id = link.send(vec![Ask::Nop]);
        assert_eq!(link.answer(id).await, Answer::Ok);
        drop(link);
        let store = rig.id;
        rig.stop().await;
        probe::check(&[store]).expect("the contract");
    });
}

/// The replies that wait for a peer are bounded in bytes.
#[test]
fn a_peer_that_reads_no_replies_does_not_fill_the_stores_memory() {
    simulate(async {
        let rig = Rig::start(1).await;
        let net = net(MIB, Duration::from_micros(100));
        net.serve(HOME, rig.sessions());
        let me = rig.seat(1);
        let mut link = rig.link(1, false, net.of(me)).await;
        link.fill(32, &Bytes::from(vec![7; RECORD_LEN])).await;
        net.set_hole(HOME, me, true);
        let mut last = 0;
        for count in 0..2000 {
            // Those that are read at once, and those that are read beside the session.
            let rows = if count % 2 == 0 { 32 } else { 400 };
            last = link.send((0..rows).map(|row| fetch(row % 32)).collect());
        }
        let mut most = 0;
        for _ in 0..100 {
            sleep(Duration::from_millis(1)).await;
            most = most.max(rig.disk.read.held());
        }
        assert!(most > MIB, "{most} bytes: the test reads nothing");
        assert!(most <= SESSION_HOLDS, "{} MiB were held", most / MIB);
        net.set_hole(HOME, me, false);
        assert!(matches!(link.answer(last).await, Answer::Version { .. }));
        drop(link);
        rig.stop().await;
    });
}

/// One peer that reads no replies holds up nobody but itself.
#[test]
fn a_peer_that_reads_no_replies_holds_up_no_other() {
    simulate(async {
        let rig = Rig::start(2).await;
        let net = net(64 * KIB, Duration::from_micros(100));
        net.serve(HOME, rig.sessions());
        let (one, two) = (rig.seat(1), rig.seat(2));
        let far = NodeId(99);
        assert!(one != far && two != far);
        let mut stalled = rig.link(1, false, net.of(one)).await;
        let mut more = Vec::new();
        for _ in 0..12 {
            more.push(rig.link(1, false, net.of(one)).await);
        }
        let mut other = rig.link(2, true, net.of(two)).await;
        stalled.fill(64, &Bytes::from(vec![7; RECORD_LEN])).await;
        net.set_hole(HOME, one, true);
        // Replies enough to fill whatever there is, then large reads.
        let mut last = 0;
        for _ in 0..4000 {
            stalled.send(vec![fetch(0)]);
        }
        for _ in 0..40 {
            last = stalled.send((0..64).map(fetch).collect());
        }
        for link in &mut more {
            for _ in 0..80 {
                link.send((0..64).map(fetch).collect());
            }
        }
        sleep(Duration::from_millis(500)).await;
        let id = other.send((0..64).map(fetch).collect());
        assert_eq!(other.answer(id).await, Answer::Missing);
        let id = other.send(vec![Ask::Nop]);
        assert_eq!(other.answer(id).await, Answer::Ok);
        net.set_hole(HOME, one, false);
        assert!(matches!(stalled.answer(last).await, Answer::Version { .. }));
        drop((stalled, more, other));
        rig.stop().await;
    });
}

/// A frame may ask for more than one reply can carry.
#[test]
fn more_is_read_at_once_than_fits_one_reply() {
    simulate(async {
        let rig = Rig::start(1).await;
        let net = net(MIB, Duration::from_micros(100));
        net.serve(HOME, rig.sessions());
        let mut link = rig.link(1, false, net.of(rig.seat(1))).await;
        link.fill(1, &Bytes::from(vec![7; RECORD_LEN])).await;
        let last = link.send((0..20_000).map(|_| fetch(0)).collect());
        assert!(matches!(link.answer(last).await, Answer::Version { .. }));
        drop(link);
        rig.stop().await;
    });
}
