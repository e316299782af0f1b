//! The serving side: requests of other members, and the leader's part of our own.

use super::{ATTEMPT, RaftGroup};
use crate::codec;
use crate::rpc::{Request, Response, SNAPSHOT_BYTES_MAX};
use crate::types::Proposal;
use bytes::Bytes;
use openraft::LogIdOptionExt;
use openraft::error::{
    CheckIsLeaderError, ClientWriteError, Infallible, InstallSnapshotError, RaftError,
};
use smalti_storage::ids::NodeId;
use tokio::time::timeout;

impl RaftGroup {
    /// Answers a request of another member. `from` is who sent it, as the transport has
    /// authenticated it. Takes two seconds at most, and never fails: what can not be done is
    /// said in the answer.
    pub async fn handle(&self, from: NodeId, request: Bytes) -> Bytes {
        let response = match Request::decode(&request) {
            Ok(request) => self.answer(from, request).await,
            Err(reason) => Response::Refused(reason),
        };
        match codec::encode(&response) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) => {
                tracing::error!(%error, "an answer of the raft group can not be encoded");
                // Empty is no version at all: the asker takes it for an unusable answer.
                Bytes::new()
            }
        }
    }

    async fn answer(&self, from: NodeId, request: Request) -> Response {
        // A member speaks for itself only. Without this, one stolen certificate could lead under
        // another's name.
        if request.sender().is_some_and(|sender| sender != from.0) {
            return Response::Refused(format!("{from} speaks for another member"));
        }
        let raft = &self.inner.raft;
        match request {
            Request::Append(known, _) | Request::Snapshot(known, _)
                if !self.inner.recruit.may_follow(known) =>
            {
                self.inner.leads.send_replace(Some(from));
                let text = "its store is not the one the group knows, and it votes there: it does not follow";
                Response::Refused(text.into())
            }
            Request::Append(_, request) => match raft.append_entries(request).await {
                Ok(response) => Response::Append(response),
                Err(error) => infallible(&error),
            },
            Request::Vote(request)
                if !self.inner.recruit.may_vote(request.last_log_id.map(|id| id.index)) =>
            {
                Response::Refused(
                    "its store is not the one the group knows: it does not vote".into(),
                )
            }
            Request::Vote(_) if !self.may_favour(from) => {
                Response::Refused("another member is to lead next".into())
            }
            Request::Vote(request) => match raft.vote(request).await {
                Ok(response) => Response::Vote(response),
                Err(error) => infallible(&error),
            },
            Request::Snapshot(_, request) => {
                let end = request.offset.checked_add(request.data.len() as u64);
                if end.is_none_or(|end| end > SNAPSHOT_BYTES_MAX) {
                    return Response::Refused("the snapshot is too large".into());
                }
                match raft.install_snapshot(request).await {
                    Ok(response) => Response::Snapshot(response),
                    Err(RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch))) => {
                        Response::SnapshotMismatch(mismatch)
                    }
                    Err(RaftError::Fatal(_)) => Response::Stopped,
                }
            }
            Request::Propose(proposal) => {
                let answer = timeout(ATTEMPT, self.lead_proposal(proposal)).await;
                answer.unwrap_or(Response::NotLeader)
            }
            Request::ReadIndex => {
                let answer = timeout(ATTEMPT, self.lead_read()).await;
                answer.unwrap_or(Response::NotLeader)
            }
        }
    }

    /// Takes a proposal to the log, if this member leads, and waits for its answer.
    pub(super) async fn lead_proposal(&self, proposal: Proposal) -> Response {
        if self.is_giving_way() {
            return Response::NotLeader;
        }
        match self.inner.raft.client_write(proposal).await {
            Ok(response) => Response::Propose(response.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Response::NotLeader,
            Err(RaftError::APIError(error @ ClientWriteError::ChangeMembershipError(_))) => {
                Response::Refused(error.to_string())
            }
            Err(RaftError::Fatal(_)) => Response::Stopped,
        }
    }

    /// Confirms with a majority that this member leads, and says how far a read has to wait.
    pub(super) async fn lead_read(&self) -> Response {
        if self.is_giving_way() {
            return Response::NotLeader;
        }
        match self.inner.raft.get_read_log_id().await {
            Ok((read, _applied)) => Response::ReadIndex(read.next_index()),
            Err(RaftError::APIError(
                CheckIsLeaderError::ForwardToLeader(_) | CheckIsLeaderError::QuorumNotEnough(_),
            )) => Response::NotLeader,
            Err(RaftError::Fatal(_)) => Response::Stopped,
        }
    }
}

fn infallible(error: &RaftError<u64, Infallible>) -> Response {
    match error {
        RaftError::APIError(never) => match *never {},
        RaftError::Fatal(_) => Response::Stopped,
    }
}
