//! What may be the matter, and what is to be told then.

use super::*;

/// What is made of a cluster that is well, and what is told then: of whom, words of the problem and of
/// the remedy, and whether only an operator can end it.
pub(super) type Case =
    (fn(&mut Report), Health, &'static str, &'static [&'static str], &'static [&'static str], bool);

/// Nodes and voters.
pub(super) const AWAY: &[Case] = &[
    (
        |r| down(r, &[2, 3]),
        Stalled,
        "raft",
        &["no leader", "1 of 3 voters answer, 2 are needed"],
        &["start n2, n3"],
        false,
    ),
    (
        |r| {
            down(r, &[2, 3]);
            half(r, 2, &[4], &[1]);
        },
        Stalled,
        "raft",
        &["1 of 3 voters"],
        &["start n3, and check the network to n2"],
        false,
    ),
    (
        |r| {
            down(r, &[2, 3]);
            r.joining = ids(&[2, 3]);
        },
        Stalled,
        "raft",
        &["1 of 3 voters"],
        &["wait", "join by themselves"],
        false,
    ),
    (|r| r.raft.leader = None, Stalled, "raft", &["an election"], &["ends by itself"], false),
    (
        |r| r.caught_up = false,
        Stalled,
        "node n1",
        &["has not caught up"],
        &["more than half of the nodes are up"],
        false,
    ),
    (
        |r| {
            down(r, &[4]);
            node(r, 4).incarnation = Incarnation(0);
        },
        Degraded,
        "node n4",
        &["has never started"],
        &["start it, or remove it"],
        false,
    ),
    (
        |r| {
            down(r, &[4]);
            node(r, 4).draining = true;
        },
        Degraded,
        "node n4",
        &["was emptied", "does not run"],
        &["`smalti node remove`"],
        false,
    ),
    (
        |r| {
            down(r, &[3]);
            node(r, 3).draining = true;
        },
        Degraded,
        "node n3",
        &["does not answer"],
        &["start it again"],
        false,
    ),
    (
        |r| down(r, &[4]),
        Degraded,
        "node n4",
        &["does not answer"],
        &["start it again", "catches up by itself"],
        false,
    ),
    (
        |r| {
            down(r, &[4]);
            r.joining = ids(&[4]);
        },
        Degraded,
        "node n4",
        &["it answers", "has not joined"],
        &["more than half", "log"],
        false,
    ),
    (
        |r| {
            down(r, &[4]);
            half(r, 4, &[2], &[1]);
        },
        Degraded,
        "node n4",
        &["this node (n1) does not hear it, and n2 does"],
        &["check the network between n4 and n1"],
        false,
    ),
    (
        |r| {
            half(r, 2, &[1, 4], &[3]);
            half(r, 3, &[1, 4], &[2]);
        },
        Degraded,
        "node n2",
        &["n3 does not hear it, and this node (n1) and n4 do"],
        &["check the network between n2 and n3"],
        false,
    ),
    (
        |r| node(r, 2).recruit = Some(RaftStoreId(Uuid::from_u128(7))),
        Degraded,
        "node n2",
        &["without its metadata log", "does not vote"],
        &["ends by itself"],
        false,
    ),
    (
        |r| r.wanted_voters = ids(&[1, 2, 4]),
        Degraded,
        "raft",
        &["other nodes are to vote"],
        &["keep the nodes up"],
        false,
    ),
    (
        |r| r.raft.joint = true,
        Degraded,
        "raft",
        &["other nodes are to vote"],
        &["keep the nodes up"],
        false,
    ),
    (
        |r| stopped(r, 3),
        Degraded,
        "node n3",
        &["runs without store", "00000003", "holds slots"],
        &["is rebuilt", "put it back"],
        false,
    ),
    (
        |r| r.certificate = Some(certificate(SystemTime::now(), 230)),
        Degraded,
        "node n1",
        &["certificate expires in", "no key"],
        &["`authority`"],
        true,
    ),
    (
        |r| {
            r.certificate = Some(certificate(SystemTime::now(), 301));
            down(r, &[4]);
        },
        Degraded,
        "node n4",
        &["does not answer"],
        &["renew this node's certificate first"],
        false,
    ),
];

/// Volumes, and why they are stalled.
pub(super) const VOLUMES: &[Case] = &[
    (
        |r| r.caught_up = false,
        Stalled,
        "volume v",
        &["not known here yet"],
        &["once enough nodes are up"],
        false,
    ),
    (
        |r| {
            volume(r).coordinator = None;
            volume(r).activated = false;
        },
        Stalled,
        "volume v",
        &["has no coordinator"],
        &["goes on by itself"],
        false,
    ),
    (
        |r| down(r, &[2, 3]),
        Stalled,
        "volume v",
        &["1 of 3 slots", "reads need 2 and writes 2", "both wait"],
        &["start n2, n3", "were in sync"],
        false,
    ),
    (
        |r| {
            down(r, &[2, 3]);
            half(r, 2, &[4], &[1]);
        },
        Stalled,
        "volume v",
        &["1 of 3 slots"],
        &["start n3, and check the network to n2", "were in sync"],
        false,
    ),
    (
        |r| {
            stopped(r, 2);
            stopped(r, 3);
        },
        Stalled,
        "volume v",
        &["1 of 3 slots", "both wait"],
        &["once enough nodes are up and up to date"],
        false,
    ),
    (
        |r| {
            volume(r).min_insync = 3;
            down(r, &[3]);
        },
        Stalled,
        "volume v",
        &["2 of 3 slots", "writes wait until another one is up to date"],
        &["start n3"],
        false,
    ),
    (
        |r| {
            volume(r).min_insync = 3;
            volume(r).activated = false;
            down(r, &[3]);
        },
        Stalled,
        "volume v",
        &["2 of 3 slots", "both wait for the others", "power cut"],
        &["start n3"],
        false,
    ),
    (
        |r| {
            volume(r).groups[0].offline = true;
            down(r, &[2, 3]);
        },
        Stalled,
        "volume v",
        &["1 of 2 groups are offline", "the others are served"],
        &["start n2, n3: it goes on by itself then", "docs/trouble.md"],
        false,
    ),
    (
        |r| {
            volume(r).groups[0].offline = true;
            down(r, &[3]);
            stopped(r, 2);
        },
        Stalled,
        "volume v",
        &["1 of 2 groups are offline"],
        &["start n3, and put the disk back that n2 had"],
        false,
    ),
    (
        |r| volume(r).groups[1].offline = true,
        Stalled,
        "volume v",
        &["1 of 2 groups are offline"],
        &["what was missing is back"],
        false,
    ),
    (
        |r| volume(r).activated = false,
        Stalled,
        "volume v",
        &["is taking over"],
        &["goes on by itself"],
        false,
    ),
    (
        |r| {
            volume(r).activated = false;
            down(r, &[3]);
        },
        Stalled,
        "volume v",
        &["taking over and waits", "power_timeout_ms"],
        &["goes on by itself"],
        false,
    ),
    (
        |r| r.progress.clear(),
        Stalled,
        "volume v",
        &["its coordinator does not answer"],
        &["goes on by itself"],
        false,
    ),
    (
        |r| {
            r.progress.remove(&VOLUME);
            let seat = Coordinator { node: NodeId(3), incarnation: Incarnation(1) };
            volume(r).coordinator = Some(seat);
            down(r, &[3]);
            half(r, 3, &[2], &[1]);
        },
        Stalled,
        "volume v",
        &["its coordinator does not answer"],
        &["check the network to n3", "ask another node"],
        false,
    ),
    (
        |r| progress(r).rows_lost = 7,
        Degraded,
        "volume v",
        &["7 rows are lost or rotten", "give errors"],
        &["bring back what is out", "docs/trouble.md"],
        true,
    ),
    (
        |r| {
            out(r);
            progress(r).stuck = 2;
        },
        Degraded,
        "volume v",
        &["2 slots lack rows", "rotten or gone"],
        &["start what is away"],
        false,
    ),
    (
        |r| progress(r).suspects = 2,
        Degraded,
        "volume v",
        &["2 stores may have forgotten"],
        &["ends by itself", "keep the other nodes up"],
        false,
    ),
    (
        |r| progress(r).unheard = 1,
        Degraded,
        "volume v",
        &["1 stores in sync do not answer its coordinator"],
        &["ends by itself", "keep the other nodes up"],
        false,
    ),
    (
        |r| {
            out(r);
            progress(r).rows_behind = 5;
        },
        Degraded,
        "volume v",
        &["1 of 2 groups miss a slot, 5 rows are behind"],
        &["catch up by themselves"],
        false,
    ),
    (
        |r| {
            out(r);
            let store = volume(r).groups[0].slots[0];
            let away = r.map.node_of(store).expect("its node");
            down(r, &[away.0]);
        },
        Degraded,
        "volume v",
        &["1 of 2 groups miss a slot"],
        &["start n", "catch up by themselves once they are up"],
        false,
    ),
    (
        out,
        Degraded,
        "volume v",
        &["1 of 2 groups miss a slot, how many rows are behind shows"],
        &["catch up by themselves"],
        false,
    ),
    (
        |r| progress(r).rows_behind = 5,
        Degraded,
        "volume v",
        &["5 rows are behind"],
        &["catch up by themselves"],
        false,
    ),
    (
        |r| {
            let scrub = GroupScrub { unclear: 3, ..GroupScrub::default() };
            volume(r).scrubs.groups.insert(GroupNo(1), scrub);
        },
        Degraded,
        "volume v",
        &["3 rows do not fit together"],
        &["copy the volume to a new one"],
        true,
    ),
];

/// Slots that move or can not.
pub(super) const MOVES: &[Case] = &[
    (
        |r| Arc::make_mut(&mut r.map).moves_paused = true,
        Health::Ok,
        "moves",
        &["moves are paused", "not rebuilt"],
        &["`smalti moves resume`"],
        false,
    ),
    (
        |r| {
            Arc::make_mut(&mut r.map).moves_paused = true;
            (r.plan.moving, r.plan.waiting) = (2, 1);
        },
        Degraded,
        "moves",
        &["3 slots wait", "paused"],
        &["`smalti moves resume`"],
        true,
    ),
    (
        |r| r.plan.waiting = 2,
        Degraded,
        "moves",
        &["2 slots are to move", "too little of their groups"],
        &["stores that had the rest are needed", "docs/trouble.md"],
        true,
    ),
    (
        |r| {
            r.plan.waiting = 2;
            down(r, &[4]);
        },
        Degraded,
        "moves",
        &["2 slots are to move", "too little of their groups"],
        &["start the nodes that are down"],
        false,
    ),
    (
        |r| (r.plan.moving, r.plan.waiting) = (2, 1),
        Health::Ok,
        "moves",
        &["3 slots move to other stores"],
        &["ends by itself", "`smalti status`"],
        false,
    ),
    (
        |r| r.plan.kept = 4,
        Health::Ok,
        "moves",
        &["4 slots have moved", "old stores keep them"],
        &["ends by itself"],
        false,
    ),
    (
        |r| stuck(r, Cause::Lost, true),
        Degraded,
        "moves",
        &["1 slots are out of sync", "no other store has room"],
        &["free space, or add a disk or a node"],
        true,
    ),
    (
        |r| stuck(r, Cause::Lost, false),
        Degraded,
        "moves",
        &["1 slots are out of sync", "every other node"],
        &["start the nodes that are down, or add one"],
        false,
    ),
    (
        |r| stuck(r, Cause::Drain, true),
        Degraded,
        "moves",
        &["are to leave their node", "no other store has room"],
        &["free space"],
        true,
    ),
    (
        |r| stuck(r, Cause::Drain, false),
        Degraded,
        "moves",
        &["are to leave their node", "every other node"],
        &["add one"],
        false,
    ),
    (
        |r| stuck(r, Cause::Balance, true),
        Degraded,
        "moves",
        &["are not spread as they should be", "no other store has room"],
        &["free space"],
        true,
    ),
];
