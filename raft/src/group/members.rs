//! Who is in the group: changes that only the leader makes.

use super::RaftGroup;
use openraft::ChangeMembers;
use openraft::EmptyNode;
use openraft::error::{ClientWriteError, RaftError};
use smalti_storage::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use thiserror::Error;
use tokio::time::timeout;

/// How long a change may take. It goes on if it takes longer, and shows in the metrics.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a change of the members was not made, or is not known to have been.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MemberError {
    /// Another member leads.
    #[error("another member leads")]
    NotLeader,
    /// The group refuses it, as while another change is under way.
    #[error("{0}")]
    Refused(String),
    /// No majority answered in time.
    #[error("no majority answered in {PATIENCE:?}")]
    Timeout,
}

impl RaftGroup {
    /// Takes members up that learn and do not vote.
    ///
    /// # Errors
    /// [`MemberError`].
    pub async fn add_learners(&self, nodes: &BTreeSet<NodeId>) -> Result<(), MemberError> {
        let nodes: BTreeMap<u64, EmptyNode> =
            nodes.iter().map(|node| (node.0, EmptyNode {})).collect();
        self.change_members(ChangeMembers::AddNodes(nodes)).await
    }

    /// Makes just these members vote, which have to be members already. The others go on learning.
    ///
    /// # Errors
    /// [`MemberError`].
    pub async fn set_voters(&self, voters: &BTreeSet<NodeId>) -> Result<(), MemberError> {
        let voters = voters.iter().map(|node| node.0).collect();
        self.change_members(ChangeMembers::ReplaceAllVoters(voters)).await
    }

    /// Lets go of members that do not vote.
    ///
    /// # Errors
    /// [`MemberError`].
    pub async fn remove_learners(&self, nodes: &BTreeSet<NodeId>) -> Result<(), MemberError> {
        let nodes = nodes.iter().map(|node| node.0).collect();
        self.change_members(ChangeMembers::RemoveNodes(nodes)).await
    }

    async fn change_members(
        &self,
        change: ChangeMembers<u64, EmptyNode>,
    ) -> Result<(), MemberError> {
        // It has two steps, and the second one is made by whoever waits for the first.
        let raft = self.inner.raft.clone();
        let changed = tokio::spawn(async move { raft.change_membership(change, true).await });
        match timeout(PATIENCE, changed).await {
            Ok(Ok(Ok(_))) => Ok(()),
            Ok(Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))))) => {
                Err(MemberError::NotLeader)
            }
            Ok(Ok(Err(error))) => Err(MemberError::Refused(error.to_string())),
            Ok(Err(error)) => Err(MemberError::Refused(error.to_string())),
            Err(_elapsed) => Err(MemberError::Timeout),
        }
    }
}
