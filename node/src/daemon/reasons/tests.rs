//! Every kind of reason: a look at a cluster that has it, and what is told then.

mod cases;
mod custody;
mod disks;

use super::*;
use Health::{Degraded, Stalled};
use cases::{AWAY, MOVES, VOLUMES};
use custody::CUSTODY;
use disks::{DISKS, KEYS};
use smalti_cluster::member::VolumeProgress;
use smalti_cluster::shard_store::{SlowDisk, StoreSpace};
use smalti_map::placement::{Candidate, place_groups};
use smalti_map::reach::HalfHeard;
use smalti_map::{
    ClusterMap, Command, Coordinator, Custody, FailureDomain, Faults, GroupScrub, KeyEpoch,
    NewVolume, Node, NodeAddresses, ReadMode, Revoked, ShareHolder, StoreStart,
};
use smalti_net::Validity;
use smalti_raft::{GroupMetrics, Role};
use smalti_storage::ids::{
    ClusterId, GroupNo, KeyEpochNo, RaftStoreId, Slot, StoreId, VolumeId, VolumeNo,
};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const VOLUME: VolumeNo = VolumeNo(1);
/// Slots of `v` are on the first three.
const NODES: u64 = 4;

#[test]
fn a_certificate_that_was_not_renewed_is_told_of_before_it_expires() {
    let now = SystemTime::now();
    let problem = |ago: u64| certificate_problem(&certificate(now, ago), now);
    assert_eq!((problem(0), problem(201)), (None, None));
    let late = problem(230).expect("late");
    assert!(late.contains("expires in 70 s") || late.contains("expires in 69 s"), "{late}");
    let expired = problem(301).expect("expired");
    assert!(expired.contains("has expired") && expired.ends_with("no key"), "{expired}");
    let ahead = now + Duration::from_secs(48 * 3600);
    let validity = Validity::starting(ahead, Duration::from_secs(300));
    let early = certificate_problem(&Standing { validity, failure: None }, now);
    assert!(early.is_some_and(|early| early.contains("holds only later")));
    assert!(CERTIFICATE_REMEDY.contains("`authority`"));
}

/// One that holds 300 seconds, from so many ago.
fn certificate(now: SystemTime, ago: u64) -> Standing {
    let start = now - Duration::from_secs(ago);
    let validity = Validity::starting(start, Duration::from_secs(300));
    Standing { validity, failure: Some("no key".into()) }
}

fn store(no: u64) -> StoreId {
    StoreId(Uuid::from_u128(no.into()))
}

fn ids(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

/// Four nodes with a store each, and a volume `v` of 2+1 shards in two groups on the first three, with
/// its seat at n1.
pub(in crate::daemon) fn map() -> ClusterMap {
    let at = |port: u16| ([127, 0, 0, 1], port).into();
    let addresses = NodeAddresses { quic: at(1), api: at(2), nbd: at(3) };
    let holders = (1..=3u8).map(|share| ShareHolder { node: NodeId(share.into()), share });
    let custody = Custody {
        share_epoch: 1,
        threshold: 2,
        holders: holders.collect(),
        commitments: vec![1],
        sealed_for_recovery: Vec::new(),
    };
    let mut map = ClusterMap::default();
    let mut must = |command: Command| {
        let applied = map.apply(&command);
        assert!(!matches!(applied, smalti_map::Applied::Rejected(_)), "{command:?}: {applied:?}");
    };
    must(Command::InitCluster {
        cluster: ClusterId(Uuid::from_u128(1)),
        nodes: (1..=NODES).map(|no| (NodeId(no), format!("n{no}"), addresses.clone())).collect(),
        custody: custody.clone(),
        recovery: None,
    });
    for no in 1..=NODES {
        must(Command::RegisterNode { node: NodeId(no), addresses: addresses.clone() });
        must(Command::RegisterStore(StoreStart::first(store(no), NodeId(no), Incarnation(1))));
    }
    let candidate = |no| {
        let node = NodeId(no);
        Candidate { store: store(no), node, domain: FailureDomain::Own(node), weight: 100 }
    };
    let candidates: Vec<_> = (1..=3).map(candidate).collect();
    let id = VolumeId(Uuid::from_u128(2));
    must(Command::CreateVolume(Box::new(NewVolume {
        id,
        name: "v".into(),
        size: 64 << 20,
        data: 2,
        parity: 1,
        shard_size: 1 << 20,
        min_insync: 2,
        read_mode: ReadMode::Lease,
        groups: place_groups(id, 2, 2, 1, &candidates).expect("enough nodes"),
        key_epoch: KeyEpoch {
            no: KeyEpochNo(1),
            timestamp: 1,
            since: 0,
            sealed: 0,
            shard_keys: vec![vec![1]; 4],
            place_key: vec![1],
            custody,
        },
    })));
    let volume = map.volumes.get_mut(&VOLUME).expect("the volume");
    volume.coordinator = Some(Coordinator { node: NodeId(1), incarnation: Incarnation(1) });
    volume.activated = true;
    map
}

/// What n1 sees while all is well.
fn well() -> Report {
    let voters = ids(&[1, 2, 3]);
    let space = StoreSpace { total: 9 << 30, free: 5 << 20, ..StoreSpace::default() };
    let disks: BTreeMap<_, _> = (1..=NODES).map(|no| (store(no), space)).collect();
    let progress = VolumeProgress { active: true, ..VolumeProgress::default() };
    Report {
        map: Arc::new(map()),
        me: NodeId(1),
        caught_up: true,
        raft: GroupMetrics {
            node: NodeId(1),
            role: Role::Leader,
            leader: Some(NodeId(1)),
            term: 1,
            log_len: 0,
            applied: 0,
            snapshot: 0,
            purged: 0,
            voters: voters.clone(),
            joint: false,
            learners: BTreeSet::new(),
            matched: BTreeMap::new(),
            stopped: None,
        },
        up: ids(&[1, 2, 3, 4]),
        joining: BTreeSet::new(),
        running: disks.keys().copied().collect(),
        disks,
        slow_disks: Vec::new(),
        half_heard: BTreeMap::new(),
        plan: Plan::default(),
        wanted_voters: voters,
        certificate: None,
        progress: [(VOLUME, progress)].into(),
        lacking: BTreeMap::new(),
        barred: BTreeMap::new(),
        custody_problem: None,
    }
}

fn node(report: &mut Report, no: u64) -> &mut Node {
    Arc::make_mut(&mut report.map).nodes.get_mut(&NodeId(no)).expect("the node")
}

fn volume(report: &mut Report) -> &mut Volume {
    Arc::make_mut(&mut report.map).volumes.get_mut(&VOLUME).expect("the volume")
}

fn progress(report: &mut Report) -> &mut VolumeProgress {
    report.progress.get_mut(&VOLUME).expect("the volume")
}

/// These nodes are down, with their stores.
fn down(report: &mut Report, nodes: &[u64]) {
    for no in nodes {
        report.up.remove(&NodeId(*no));
        stopped(report, *no);
    }
}

/// The node runs without its store.
fn stopped(report: &mut Report, no: u64) {
    report.running.remove(&store(no));
    report.disks.remove(&store(no));
}

/// Those that some hear and these do not.
fn half(report: &mut Report, no: u64, by: &[u64], not_by: &[u64]) {
    report.half_heard.insert(NodeId(no), HalfHeard { by: ids(by), not_by: ids(not_by) });
}

/// A slot of the first group is out of sync.
fn out(report: &mut Report) {
    let group = &mut volume(report).groups[0];
    group.insync = group.insync.without(Slot(0));
}

fn stuck(report: &mut Report, cause: Cause, full: bool) {
    let (group, slot) = (GroupNo(0), Slot(0));
    report.plan.stuck.push(Stuck { volume: VOLUME, group, slot, cause, full });
}

fn faulty(report: &mut Report, faults: u32) {
    let today = u32::try_from(clock::unix_seconds() / (24 * 60 * 60)).expect("a day");
    let stores = &mut Arc::make_mut(&mut report.map).stores;
    let entry = stores.get_mut(&store(2)).expect("the store");
    entry.faults = Faults { total: u64::from(faults), days: [(today, faults)].into() };
}

fn fullness(report: &mut Report, fullness: Fullness) {
    report.disks.get_mut(&store(2)).expect("its disk").fullness = fullness;
}

#[test]
fn of_a_cluster_that_is_well_nothing_is_told() {
    assert_eq!(well().reasons(), []);
    // Some wrong records are no reason, nor is a store without slots that does not run.
    let mut some = well();
    faulty(&mut some, 999);
    stopped(&mut some, 4);
    assert_eq!(some.reasons(), []);
}

#[test]
fn nodes_are_not_safe_to_stop_while_others_may_lack_something() {
    let stop = |report: &Report, no: u64| report.without(&ids(&[no]), vec![format!("n{no}")]);
    let mut some = well();
    assert!(stop(&some, 1).safe && stop(&some, 3).safe);
    out(&mut some);
    let slot = volume(&mut some).groups[0].slots[0];
    let holder = some.map.node_of(slot).expect("a holder");
    let other = if holder == NodeId(1) { 3 } else { 1 };
    let report = stop(&some, other);
    assert!(!report.safe && !report.volumes[0].writes, "{report:?}");
    // What is in sync would do, if it were sure to have everything.
    let mut some = well();
    progress(&mut some).suspects = 1;
    let report = stop(&some, 3);
    assert!(!report.safe && !report.volumes[0].sure && report.volumes[0].writes, "{report:?}");
}

#[test]
fn every_reason_says_what_is_the_matter_and_what_to_do() {
    for (no, (change, health, subject, problem, remedy, lasting)) in
        [AWAY, CUSTODY, VOLUMES, MOVES, DISKS, KEYS].concat().into_iter().enumerate()
    {
        let mut report = well();
        change(&mut report);
        let told = report.reasons();
        let has = |text: &str, words: &[&str]| words.iter().all(|word| text.contains(word));
        let is_it = |reason: &&Reason| {
            reason.subject == subject
                && reason.health == health
                && reason.lasting == lasting
                && has(&reason.problem, problem)
                && has(reason.remedy.as_deref().unwrap_or_default(), remedy)
        };
        let found = told.iter().filter(is_it).count();
        assert_eq!(found, 1, "case {no}: {health} {subject} {problem:?} {remedy:?}: {told:#?}");
        for reason in &told {
            let remedy = reason.remedy.as_deref().unwrap_or_default();
            assert!(reason.health == Health::Ok || !remedy.is_empty(), "case {no}: {reason:?}");
            let text = format!("{} {remedy}", reason.problem);
            assert!(!text.contains("  ") && !text.contains(" ,"), "case {no}: {reason:?}");
        }
        let by_health = told.is_sorted_by_key(|reason| std::cmp::Reverse(reason.health));
        assert!(by_health, "case {no}: the worst does not come first: {told:#?}");
    }
}

#[test]
fn a_node_is_told_of_once() {
    let subjects = |change: fn(&mut Report)| {
        let mut report = well();
        change(&mut report);
        let of =
            |reason: &Reason| reason.subject.starts_with("node").then(|| reason.subject.clone());
        report.reasons().iter().filter_map(of).collect::<Vec<_>>()
    };
    let cut_off = |report: &mut Report| {
        down(report, &[4]);
        half(report, 4, &[2], &[1, 3]);
    };
    assert_eq!(subjects(cut_off), ["node n4"]);
    // This node has not joined yet: what is told of it is that it has not caught up.
    let starting = |report: &mut Report| {
        report.caught_up = false;
        down(report, &[1]);
        report.joining = ids(&[1]);
    };
    assert_eq!(subjects(starting), ["node n1"]);
}
