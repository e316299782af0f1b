//! openraft's network on top of [`RaftTransport`].

use crate::codec;
use crate::group::GroupMetrics;
use crate::recruit::Recruit;
use crate::rpc::{Known, Request, Response};
use crate::transport::RaftTransport;
use crate::types::MapRaft;
use bytes::Bytes;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, EmptyNode, LogId, RaftNetwork, RaftNetworkFactory, Vote};
use smalti_map::view::MapView;
use smalti_storage::ids::NodeId;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long replication to an unreachable member pauses. Shorter than any election timeout, so
/// that a member that comes back hears of its leader before it campaigns.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(100);

/// How long an append may take on the other side, which syncs it. openraft gives up after a heartbeat's
/// time.
const APPEND_PATIENCE: Duration = Duration::from_secs(1);

/// Makes connections to members.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) transport: Arc<dyn RaftTransport>,
    pub(crate) recruit: Arc<Recruit>,
    pub(crate) map: watch::Receiver<MapView>,
    /// Set as soon as the group runs.
    pub(crate) metrics: Arc<OnceLock<watch::Receiver<GroupMetrics>>>,
}

impl Network {
    pub(crate) async fn call(
        &self,
        to: u64,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, AnyError> {
        let bytes = codec::encode(request).map_err(|error| AnyError::new(&error))?;
        let answer = self.transport.call(NodeId(to), Bytes::from(bytes), timeout).await;
        let answer = answer.map_err(|error| AnyError::new(&error))?;
        codec::decode(&answer).map_err(|error| AnyError::new(&error))
    }
}

impl RaftNetworkFactory<MapRaft> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Peer {
        Peer { network: self.clone(), target, sent: None }
    }
}

/// One member as seen from here.
pub(crate) struct Peer {
    network: Network,
    target: u64,
    /// Entries that the member has not answered for yet, though openraft has given them up.
    sent: Option<Sent>,
}

/// Entries on their way to a member.
struct Sent {
    vote: Vote<u64>,
    last: Option<LogId<u64>>,
    call: JoinHandle<Result<Response, AnyError>>,
}

type RpcError<E = RaftError<u64>> = RPCError<u64, EmptyNode, E>;

impl Peer {
    fn known(&self) -> Known {
        let node = NodeId(self.target);
        let named = self.network.map.borrow().nodes.get(&node).and_then(|node| node.raft_store);
        let metrics = self.network.metrics.get().map(|metrics| metrics.borrow());
        let votes = metrics.is_none_or(|metrics| metrics.voters.contains(&node));
        Known { store: named, votes }
    }

    async fn call<E: std::error::Error>(
        &self,
        request: Request,
        option: RPCOption,
    ) -> Result<Response, RpcError<E>> {
        let answer = self.network.call(self.target, &request, option.hard_ttl()).await;
        answer.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }

    /// Sends entries when those sent before have been answered for. A member with a slow disk would get the
    /// same ones again and again else, each time with a sync that begins when the time for it is over.
    async fn append<E: std::error::Error>(
        &mut self,
        rpc: AppendEntriesRequest<MapRaft>,
    ) -> Result<Response, RpcError<E>> {
        if let Some(sent) = &mut self.sent {
            let answer = (&mut sent.call).await;
            let (vote, last) = (sent.vote, sent.last);
            self.sent = None;
            // Whatever else became of it: openraft does not want to know any more.
            if let Ok(Ok(Response::Append(answer))) = answer
                && let Some(told) = tells(&answer, (vote, last), &rpc)
            {
                return Ok(Response::Append(told));
            }
        }
        let (vote, last) = (rpc.vote, rpc.entries.last().map(|entry| entry.log_id));
        let request = Request::Append(self.known(), rpc);
        let (network, target) = (self.network.clone(), self.target);
        let call = async move { network.call(target, &request, APPEND_PATIENCE).await };
        let call = tokio::spawn(call);
        let answer = (&mut self.sent.insert(Sent { vote, last, call }).call).await;
        self.sent = None;
        let answer = answer.unwrap_or_else(|error| Err(AnyError::new(&error)));
        answer.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }
}

/// What the answer to entries sent before tells of those that are to be sent: a part of them has arrived.
/// A leader's log only grows, so what it sent once is what it would send again.
fn tells(
    answer: &AppendEntriesResponse<u64>,
    (vote, last): (Vote<u64>, Option<LogId<u64>>),
    rpc: &AppendEntriesRequest<MapRaft>,
) -> Option<AppendEntriesResponse<u64>> {
    let has = match answer {
        AppendEntriesResponse::Success => last,
        AppendEntriesResponse::PartialSuccess(has) => *has,
        AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => None,
    };
    let wanted = rpc.entries.last()?.log_id;
    let has =
        has.filter(|has| vote == rpc.vote && Some(*has) > rpc.prev_log_id && *has <= wanted)?;
    Some(match has == wanted {
        true => AppendEntriesResponse::Success,
        false => AppendEntriesResponse::PartialSuccess(Some(has)),
    })
}

/// An answer that is no answer to the request: openraft tries again at its own pace.
fn unexpected<E: std::error::Error>(response: &Response) -> RpcError<E> {
    let text = match response {
        Response::Stopped => "the group has stopped there".into(),
        Response::Refused(reason) => format!("refused: {reason}"),
        Response::NotLeader
        | Response::Append(_)
        | Response::Vote(_)
        | Response::Snapshot(_)
        | Response::SnapshotMismatch(_)
        | Response::Propose(_)
        | Response::ReadIndex(_) => "an answer to another question".to_owned(),
    };
    // As unreachable, because it is followed by a pause.
    RPCError::Unreachable(Unreachable::new(&AnyError::error(text)))
}

impl RaftNetwork<MapRaft> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<MapRaft>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        let answer = match rpc.entries.is_empty() {
            true => self.call(Request::Append(self.known(), rpc), option).await,
            false => self.append(rpc).await,
        };
        match answer? {
            Response::Append(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<MapRaft>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, RpcError<RaftError<u64, InstallSnapshotError>>> {
        match self.call(Request::Snapshot(self.known(), rpc), option).await? {
            Response::Snapshot(response) => Ok(response),
            Response::SnapshotMismatch(mismatch) => {
                let error = InstallSnapshotError::SnapshotMismatch(mismatch);
                let error = RaftError::APIError(error);
                Err(RPCError::RemoteError(RemoteError::new(self.target, error)))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcError> {
        if !self.network.recruit.may_vote(rpc.last_log_id.map(|id| id.index)) {
            let text = "this member's store is not the one the group knows: it is no candidate";
            return Err(RPCError::Unreachable(Unreachable::new(&AnyError::error(text))));
        }
        match self.call(Request::Vote(rpc), option).await? {
            Response::Vote(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AppendEntriesResponse::{Conflict, HigherVote, PartialSuccess, Success};
    use openraft::{CommittedLeaderId, Entry, EntryPayload};

    fn at(index: u64) -> LogId<u64> {
        LogId::new(CommittedLeaderId::new(3, 1), index)
    }

    fn rpc(prev: u64, last: u64) -> AppendEntriesRequest<MapRaft> {
        let entry = |index| Entry { log_id: at(index), payload: EntryPayload::Blank };
        AppendEntriesRequest {
            vote: Vote::new_committed(3, 1),
            prev_log_id: Some(at(prev)),
            entries: (prev + 1..=last).map(entry).collect(),
            leader_commit: None,
        }
    }

    #[test]
    fn what_arrived_too_late_is_not_sent_again() {
        let vote = Vote::new_committed(3, 1);
        let told =
            |answer, last, of: (u64, u64)| tells(&answer, (vote, Some(at(last))), &rpc(of.0, of.1));
        assert_eq!(told(Success, 7, (4, 7)), Some(Success));
        assert_eq!(told(Success, 7, (4, 9)), Some(PartialSuccess(Some(at(7)))));
        assert_eq!(told(PartialSuccess(Some(at(5))), 7, (4, 9)), Some(PartialSuccess(Some(at(5)))));
        // What is wanted begins behind it, or ends before.
        assert_eq!(told(Success, 7, (7, 9)), None);
        assert_eq!(told(Success, 7, (4, 6)), None);
        assert_eq!(told(Conflict, 7, (4, 9)), None);
        assert_eq!(told(HigherVote(Vote::new(4, 2)), 7, (4, 9)), None);
        let other = Vote::new_committed(4, 1);
        assert_eq!(tells(&Success, (other, Some(at(7))), &rpc(4, 9)), None);
    }
}
