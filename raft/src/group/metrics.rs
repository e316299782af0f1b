//! What a member knows about its group, without openraft's types.

use openraft::{EmptyNode, LogIdOptionExt, RaftMetrics, ServerState};
use smalti_storage::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::watch;

/// What a member does in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Not a voter, or not of any group yet.
    Learner,
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads, as far as it knows.
    Leader,
    /// Has stopped.
    Stopped,
}

/// What a member knows about its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMetrics {
    /// The member.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
    /// The leader of `term`, when known.
    pub leader: Option<NodeId>,
    /// The newest term seen.
    pub term: u64,
    /// Entries in the log, dropped ones included.
    pub log_len: u64,
    /// Entries applied.
    pub applied: u64,
    /// Entries in the last snapshot.
    pub snapshot: u64,
    /// Entries dropped from the log.
    pub purged: u64,
    /// The voters; empty before the group was founded.
    pub voters: BTreeSet<NodeId>,
    /// The voters are changing: until that is over a majority of those before is needed as well.
    pub joint: bool,
    /// Members that get every entry and do not vote.
    pub learners: BTreeSet<NodeId>,
    /// On the leader: how many entries each other member has for certain.
    pub matched: BTreeMap<NodeId, u64>,
    /// Why the member has stopped, if it has.
    pub stopped: Option<String>,
}

fn group_metrics(node: NodeId, raft: &RaftMetrics<u64, EmptyNode>) -> GroupMetrics {
    GroupMetrics {
        node,
        role: match raft.state {
            ServerState::Learner => Role::Learner,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Leader => Role::Leader,
            ServerState::Shutdown => Role::Stopped,
        },
        leader: raft.current_leader.map(NodeId),
        term: raft.current_term,
        log_len: raft.last_log_index.map_or(0, |index| index + 1),
        applied: raft.last_applied.next_index(),
        snapshot: raft.snapshot.next_index(),
        purged: raft.purged.next_index(),
        voters: raft.membership_config.voter_ids().map(NodeId).collect(),
        joint: raft.membership_config.membership().get_joint_config().len() > 1,
        learners: raft.membership_config.membership().learner_ids().map(NodeId).collect(),
        matched: raft
            .replication
            .iter()
            .flatten()
            .map(|(node, log)| (NodeId(*node), log.next_index()))
            .collect(),
        stopped: raft.running_state.as_ref().err().map(ToString::to_string),
    }
}

/// Follows openraft's metrics. The task ends with the raft task.
pub(super) fn translate(
    node: NodeId,
    mut from: watch::Receiver<RaftMetrics<u64, EmptyNode>>,
) -> watch::Receiver<GroupMetrics> {
    let first = group_metrics(node, &from.borrow_and_update());
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        loop {
            let open = from.changed().await.is_ok();
            let mut now = group_metrics(node, &from.borrow_and_update());
            if !open {
                now.role = Role::Stopped;
                now.leader = None;
                now.stopped.get_or_insert_with(|| "raft stopped".into());
            }
            sender.send_if_modified(|last| {
                let changed = *last != now;
                *last = now;
                changed
            });
            if !open {
                return;
            }
        }
    });
    receiver
}
