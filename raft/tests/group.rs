//! Whole groups on an in-memory network, each member with a real store.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use bytes::Bytes;
use smalti_map::{Applied, Command};
use smalti_raft::{InitializeError, ProposeError, Role};
use smalti_storage::ids::{Incarnation, NodeId};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use support::*;

/// From the death of a leader to a new one. The third member, alone with the second, needs
/// 2 x 580 ms after the last heartbeat at most, and an election a few synced writes.
const ELECTION_MEDIAN: Duration = Duration::from_secs(2);

/// The same where an election fails, because the machine is busy: three rounds of timeouts.
const ELECTION_BOUND: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_accepted_by_every_member() {
    let cluster = Cluster::found(3, 1000).await;
    accepted(cluster.member(2), init(3)).await;
    for no in 1..=9 {
        accepted(cluster.member(1 + no % 3), numbered(no)).await;
        // The proposer may have answered before it applied; a linearizable read may not.
        let reader = cluster.member(1 + (no + 1) % 3);
        let map = reader.linearizable().await.unwrap();
        assert!(map.stores.contains_key(&numbered_store(no)));
    }
    assert_eq!(cluster.converge().await, 10);
    let leader = cluster.leader().await;
    for (node, member) in &cluster.members {
        let metrics = member.metrics();
        let role = if *node == leader { Role::Leader } else { Role::Follower };
        assert_eq!((metrics.role, metrics.leader), (role, Some(leader)));
        assert_eq!(metrics.voters, cluster.nodes().into_iter().collect::<BTreeSet<_>>());
    }
    let refused = cluster.member(3).propose(init(3)).await.unwrap();
    assert!(matches!(refused, Applied::Rejected(_)));
    let again = cluster.member(2).initialize(&cluster.nodes()).await;
    assert!(matches!(again, Err(InitializeError::Already)));
    let foreign = cluster.member(2).initialize(&[NodeId(1)]).await;
    assert!(matches!(foreign, Err(InitializeError::NotAMember(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_gives_way_to_who_campaigns() {
    let cluster = Cluster::found(3, 1000).await;
    accepted(cluster.member(1), init(3)).await;
    for round in 0..3u64 {
        let leader = cluster.leader().await;
        let next = NodeId(1 + leader.0 % 3);
        let (old, new) = (cluster.member(leader.0), cluster.member(next.0));
        // The third one's time to campaign comes as well.
        cluster.members.values().for_each(|member| member.favour(next, PATIENCE));
        let (gave_way, won) = tokio::join!(old.give_way(PATIENCE), new.campaign(leader, PATIENCE));
        assert!(gave_way && won.unwrap(), "round {round}");
        assert_eq!(cluster.leader().await, next, "round {round}");
        accepted(old, numbered(round)).await;
    }
    assert_eq!(cluster.converge().await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_see_every_new_map_in_order() {
    let cluster = Cluster::found(3, 1000).await;
    accepted(cluster.member(1), init(3)).await;
    let mut watch = cluster.member(3).watch();
    let watcher = tokio::spawn(async move {
        let mut seen = 0;
        while seen < 51 {
            let version = watch.borrow_and_update().version;
            assert!(version >= seen, "{version} after {seen}");
            seen = version;
            if seen < 51 {
                watch.changed().await.unwrap();
            }
        }
    });
    for no in 0..50 {
        accepted(cluster.member(1 + no % 3), numbered(no)).await;
    }
    tokio::time::timeout(PATIENCE, watcher).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leader_is_replaced_and_nothing_answered_is_lost() {
    let mut cluster = Cluster::found(3, 1000).await;
    accepted(cluster.member(1), init(3)).await;
    let mut answered = Vec::new();
    let mut pauses = Vec::new();
    for round in 0..6u64 {
        let leader = cluster.leader().await;
        // Proposals are under way while the leader dies: their fate is open, but an answer binds.
        let proposer = cluster.members.values().find(|m| m.node() != leader).unwrap().clone();
        let writer = tokio::spawn(async move {
            let mut done = Vec::new();
            for no in 100 * round..100 * round + 30 {
                accepted(&proposer, numbered(no)).await;
                done.push(no);
            }
            done
        });
        let before = cluster.members.values().map(|m| m.metrics().applied).max().unwrap();
        eventually("writes are under way", || {
            cluster.members.values().any(|m| m.metrics().applied > before + 3).then_some(())
        })
        .await;
        let killed = Instant::now();
        cluster.kill(leader).await;
        let next =
            eventually("a new leader", || cluster.agreed_leader().filter(|next| *next != leader))
                .await;
        let took = killed.elapsed();
        eprintln!("round {round}: {leader} died, {next} leads after {took:?}");
        assert!(took < ELECTION_BOUND, "{next} after {leader} took {took:?}");
        pauses.push(took);
        answered.extend(writer.await.unwrap());
        cluster.start(leader).await;
        cluster.converge().await;
        for (node, member) in &cluster.members {
            let map = member.map();
            for no in &answered {
                assert!(map.stores.contains_key(&numbered_store(*no)), "{no} lost on {node}");
            }
        }
    }
    assert_eq!(answered.len(), 180);
    pauses.sort();
    assert!(pauses[3] < ELECTION_MEDIAN, "{pauses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_follower_does_not_unseat_the_leader() {
    let mut cluster = Cluster::found(3, 1000).await;
    accepted(cluster.member(1), init(3)).await;
    let leader = cluster.leader().await;
    let term = cluster.members[&leader].metrics().term;
    for node in cluster.nodes().into_iter().filter(|node| *node != leader) {
        cluster.kill(node).await;
        cluster.start(node).await;
        accepted(&cluster.members[&node], numbered(node.0)).await;
        cluster.converge().await;
    }
    let metrics = cluster.members[&leader].metrics();
    assert_eq!((metrics.role, metrics.term), (Role::Leader, term));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_members_restart_at_once_with_all_applied_state() {
    // With snapshots in between and without.
    for snapshot_every in [20, 1000] {
        let mut cluster = Cluster::found(3, snapshot_every).await;
        accepted(cluster.member(1), init(3)).await;
        for no in 0..50 {
            accepted(cluster.member(1 + no % 3), numbered(no)).await;
        }
        let version = cluster.converge().await;
        let map = cluster.member(1).map();
        for node in cluster.nodes() {
            cluster.kill(node).await;
        }
        cluster.start(NodeId(1)).await;
        // Alone it is no majority, but it knows what it had applied.
        assert_eq!(*cluster.member(1).map(), *map);
        let alone = cluster.member(1).propose_within(numbered(99), Duration::from_secs(1)).await;
        assert!(matches!(alone, Err(ProposeError::Timeout { .. })), "{alone:?}");
        cluster.start(NodeId(2)).await;
        cluster.start(NodeId(3)).await;
        accepted(cluster.member(3), numbered(50)).await;
        // The lonely proposal went nowhere or was applied; nothing else changed.
        let now = cluster.converge().await;
        assert!((version + 1..=version + 2).contains(&now), "{now} after {version}");
        for no in 0..=50 {
            assert!(cluster.member(2).map().stores.contains_key(&numbered_store(no)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lagging_member_gets_a_snapshot() {
    let mut cluster = Cluster::found(3, 20).await;
    accepted(cluster.member(1), init(3)).await;
    let leader = cluster.leader().await;
    let lagging = cluster.nodes().into_iter().find(|node| *node != leader).unwrap();
    cluster.kill(lagging).await;
    let proposer = cluster.members.values().next().unwrap();
    for no in 0..120 {
        accepted(proposer, numbered(no)).await;
    }
    let gone = |metrics: &smalti_raft::GroupMetrics| metrics.purged > 30;
    cluster.metrics_of(cluster.leader().await, "the log is purged", gone).await;
    cluster.start(lagging).await;
    let had = cluster.members[&lagging].metrics().log_len;
    assert!(had < 30, "{had} entries would make this no test");
    let version = cluster.converge().await;
    assert_eq!(version, 121);
    let metrics = cluster.members[&lagging].metrics();
    assert!(metrics.snapshot > 30, "{metrics:?}");

    // And it is durable there.
    cluster.kill(lagging).await;
    cluster.start(lagging).await;
    assert!(cluster.members[&lagging].map().version >= 100);
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_off_leader_neither_reads_nor_writes() {
    let cluster = Cluster::found(3, 1000).await;
    accepted(cluster.member(1), init(3)).await;
    let old = cluster.leader().await;
    cluster.network.cut(old);
    let others = || cluster.members.values().filter(|member| member.node() != old);
    let short = Duration::from_millis(500);
    let read = cluster.members[&old].linearizable_within(short).await;
    assert!(matches!(read, Err(ProposeError::Timeout { .. })), "{read:?}");
    let write = cluster.members[&old].propose_within(numbered(1), short).await;
    assert!(matches!(write, Err(ProposeError::Timeout { .. })), "{write:?}");
    eventually("a new leader", || {
        others().all(|m| m.metrics().leader.is_some_and(|leader| leader != old)).then_some(())
    })
    .await;
    accepted(others().next().unwrap(), numbered(2)).await;
    let read = cluster.members[&old].linearizable_within(short).await;
    assert!(read.is_err(), "a deposed leader served a read");

    cluster.network.mend(old);
    // What it could not commit is gone, what the others did is there.
    let map = cluster.members[&old].linearizable_within(PATIENCE).await.unwrap();
    assert!(map.stores.contains_key(&numbered_store(2)));
    assert!(!map.stores.contains_key(&numbered_store(1)));
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_command_is_applied_once() {
    let cluster = Cluster::found(3, 1000).await;
    accepted(cluster.member(1), init(3)).await;
    let leader = cluster.leader().await;
    let proposer = cluster.members.values().find(|member| member.node() != leader).unwrap();
    for round in 1..=5 {
        cluster.network.lose_answers(2);
        let applied = accepted(proposer, counting()).await;
        assert_eq!(applied, Applied::Registered(Incarnation(round)));
        assert_eq!(cluster.network.answers_to_lose(), 0, "no answer was lost");
    }
    let map = proposer.linearizable().await.unwrap();
    assert_eq!(map.nodes[&NodeId(1)].incarnation, Incarnation(5));
    assert_eq!(map.version, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_proposals_from_all_members_are_all_applied() {
    let cluster = Cluster::found(3, 50).await;
    accepted(cluster.member(1), init(3)).await;
    let tasks: Vec<_> = (0..120u64)
        .map(|no| {
            let member = cluster.member(1 + no % 3).clone();
            tokio::spawn(async move { accepted(&member, numbered(no)).await })
        })
        .collect();
    for task in tasks {
        let registered = Applied::RegisteredStore { incarnation: Incarnation(1), clean: true };
        assert_eq!(task.await.unwrap(), registered);
    }
    assert_eq!(cluster.converge().await, 121);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_is_a_group_too() {
    let mut cluster = Cluster::found(1, 10).await;
    let Command::InitCluster { cluster: id, nodes, mut custody, recovery } = init(1) else {
        unreachable!()
    };
    custody.threshold = 1;
    accepted(cluster.member(1), Command::InitCluster { cluster: id, nodes, custody, recovery })
        .await;
    for no in 0..30 {
        accepted(cluster.member(1), numbered(no)).await;
    }
    cluster.kill(NodeId(1)).await;
    cluster.start(NodeId(1)).await;
    assert_eq!(cluster.member(1).linearizable_within(PATIENCE).await.unwrap().version, 31);
}

/// The version members answer in: the first byte of any answer.
async fn wire_version(member: &smalti_raft::RaftGroup) -> u8 {
    member.handle(NodeId(1), Bytes::new()).await[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_answered_and_harms_nothing() {
    let cluster = Cluster::found(3, 1000).await;
    accepted(cluster.member(1), init(3)).await;
    let member = cluster.member(2);
    let version = wire_version(member).await;
    let proposal = [vec![7], vec![3; 63]].concat();
    for bytes in [
        vec![],
        vec![0],
        vec![1],
        vec![2, 0],
        vec![3, 4],
        vec![7],
        vec![7, 99],
        vec![7; 64],
        proposal,
        vec![0xff; 9],
    ] {
        let answer = member.handle(NodeId(1), Bytes::from(bytes)).await;
        // The version, the refusal, a text.
        assert_eq!(answer[..2], [version, 7], "{answer:?}");
    }
    let large = Bytes::from(vec![7; smalti_raft::MAX_REQUEST_BYTES + 1]);
    assert_eq!(member.handle(NodeId(1), large).await[..2], [version, 7]);
    accepted(member, numbered(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_speaks_only_for_itself() {
    let cluster = Cluster::found(3, 1000).await;
    accepted(cluster.member(1), init(3)).await;
    cluster.converge().await;
    let leader = cluster.leader().await;
    let term = cluster.members[&leader].metrics().term;
    let version = wire_version(cluster.member(1)).await;
    // A vote for term 100 of candidate 3 without a log, sent by 2.
    let vote = Bytes::from(vec![version, 1, 100, 3, 0, 0]);
    let answer = cluster.member(1).handle(NodeId(2), vote.clone()).await;
    assert_eq!(answer[..2], [version, 7], "{answer:?}");
    assert!(String::from_utf8_lossy(&answer).contains("speaks for another"));
    assert_eq!(cluster.member(1).metrics().term, term);
    // The same bytes from 3 are a vote request, or the check above refused something else.
    let answer = cluster.member(1).handle(NodeId(3), vote).await;
    assert_eq!(answer[..2], [version, 1], "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_commands_and_stopped_members_are_told() {
    let cluster = Cluster::found(3, 1000).await;
    let Command::InitCluster { cluster: id, nodes, mut custody, recovery } = init(3) else {
        unreachable!()
    };
    custody.commitments = vec![0; smalti_raft::MAX_COMMAND_BYTES];
    let large = Command::InitCluster { cluster: id, nodes, custody, recovery };
    let refused = cluster.member(1).propose(large).await;
    assert!(matches!(refused, Err(ProposeError::TooLarge(_))), "{refused:?}");

    let member = cluster.member(2);
    member.shutdown().await.unwrap();
    let proposed = member.propose(init(3)).await;
    assert!(matches!(proposed, Err(ProposeError::Stopped(_))), "{proposed:?}");
    let read = member.linearizable().await;
    assert!(matches!(read, Err(ProposeError::Stopped(_))), "{read:?}");
    assert!(!member.stopped_because().await.is_empty());
    assert_eq!(member.metrics().role, Role::Stopped);
}

async fn know_stores(cluster: &Cluster) {
    for (node, member) in &cluster.members {
        let command = Command::RegisterRaftStore { node: *node, store: member.store() };
        accepted(member, command).await;
    }
    eventually("all are known", || {
        cluster.members.values().all(|member| !member.is_recruit()).then_some(())
    })
    .await;
}

/// What the leader does for a member that came back with a new store.
async fn admit_anew(cluster: &Cluster, node: NodeId) {
    // It follows nobody yet.
    let others: Vec<u64> =
        cluster.members.keys().filter(|other| **other != node).map(|other| other.0).collect();
    let leader = cluster.leader_of(&others).await;
    let leader = &cluster.members[&leader];
    let store = cluster.members[&node].store();
    // It says so itself, though it follows nobody.
    accepted(&cluster.members[&node], Command::RegisterRaftStore { node, store }).await;
    let all: BTreeSet<NodeId> = cluster.nodes().into_iter().collect();
    let others = all.iter().copied().filter(|other| *other != node).collect();
    leader.set_voters(&others).await.unwrap();
    assert!(cluster.members[&node].is_recruit());
    accepted(leader, Command::AdmitRecruit { node, store }).await;
    leader.set_voters(&all).await.unwrap();
    eventually("it is known again", || (!cluster.members[&node].is_recruit()).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_store_is_lost_does_not_vote_until_it_is_admitted_anew() {
    let mut cluster = Cluster::found_wary(3).await;
    accepted(cluster.member(1), init(3)).await;
    know_stores(&cluster).await;
    // Its entry is on the leader and on the one that loses its store, and nowhere else.
    let leader = cluster.leader().await;
    let others: Vec<NodeId> = cluster.nodes().into_iter().filter(|node| *node != leader).collect();
    let (late, lost) = (others[0], others[1]);
    cluster.network.cut(late);
    accepted(&cluster.members[&leader], numbered(1)).await;
    cluster.kill(lost).await;
    cluster.wipe(lost);
    cluster.kill(leader).await;
    cluster.network.mend(late);
    cluster.start(lost).await;
    assert!(cluster.members[&lost].is_recruit());
    // The two are a majority, and must not decide: they would not know of the entry.
    let waited = cluster.members[&late].propose_within(numbered(2), Duration::from_secs(4)).await;
    assert!(matches!(waited, Err(ProposeError::Timeout { .. })), "{waited:?}");

    cluster.start(leader).await;
    accepted(&cluster.members[&late], numbered(3)).await;
    admit_anew(&cluster, lost).await;
    cluster.converge().await;
    // A second start changes nothing, and it votes again.
    cluster.kill(lost).await;
    cluster.start(lost).await;
    assert!(!cluster.members[&lost].is_recruit());
    let leader = cluster.leader().await;
    if leader != lost {
        cluster.kill(leader).await;
        accepted(&cluster.members[&lost], numbered(4)).await;
        cluster.start(leader).await;
    }
    cluster.converge().await;
    let map = cluster.members[&lost].map();
    for no in [1, 3] {
        assert!(map.stores.contains_key(&numbered_store(no)), "{no} was answered");
    }
}

/// A leader of the past, back with the only member that would know of its successor, had it not
/// forgotten: what both have is no majority.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_store_is_lost_does_not_follow_a_leader_of_the_past() {
    let mut cluster = Cluster::found_wary(3).await;
    accepted(cluster.member(1), init(3)).await;
    know_stores(&cluster).await;
    let past = cluster.leader().await;
    cluster.kill(past).await;
    let present = cluster.leader().await;
    accepted(&cluster.members[&present], numbered(1)).await;
    cluster.kill(present).await;
    let lost = *cluster.members.keys().next().unwrap();
    cluster.kill(lost).await;
    cluster.wipe(lost);
    cluster.start(past).await;
    cluster.start(lost).await;
    for member in [past, lost] {
        let patience = Duration::from_secs(3);
        let waited = cluster.members[&member].propose_within(numbered(2), patience).await;
        assert!(waited.is_err(), "{waited:?}");
        let read = cluster.members[&member].linearizable_within(patience).await;
        assert!(read.is_err(), "an old map was confirmed");
    }
    cluster.start(present).await;
    accepted(&cluster.members[&past], numbered(3)).await;
    admit_anew(&cluster, lost).await;
    cluster.converge().await;
    assert!(cluster.members[&past].map().stores.contains_key(&numbered_store(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go() {
    let mut cluster = Cluster::found_wary(3).await;
    accepted(cluster.member(1), init(3)).await;
    know_stores(&cluster).await;
    cluster.start(NodeId(4)).await;
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    let group = cluster.members[&leader].clone();
    let four = BTreeSet::from([NodeId(4)]);
    group.add_learners(&four).await.unwrap();
    cluster.metrics_of(NodeId(4), "it learns", |metrics| metrics.applied >= 2).await;
    assert_eq!(group.metrics().learners, four);
    let follower = cluster.members.values().find(|member| member.node() != leader).unwrap();
    let refused = follower.set_voters(&four).await;
    assert!(matches!(refused, Err(smalti_raft::MemberError::NotLeader)), "{refused:?}");
    group.remove_learners(&four).await.unwrap();
    eventually("it is no member", || group.metrics().learners.is_empty().then_some(())).await;
}
