//! The one request and answer that members of a group exchange.

use crate::codec;
use crate::types::{MapRaft, Proposal};
use openraft::error::SnapshotMismatch;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};
use smalti_map::Applied;
use smalti_storage::ids::RaftStoreId;

/// Bytes of the largest request or answer: the entries of an append request may go over their
/// bound of 1 MiB by one entry.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;

/// Bytes of snapshot in one request.
pub(crate) const SNAPSHOT_CHUNK_BYTES: u64 = 1 << 20;

/// Bytes of the largest snapshot taken from a peer. Received chunks are kept in memory, at the
/// place the peer names, so there has to be an end.
pub(crate) const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;

/// What a leader knows of the member it sends entries to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The store that the leader's map names.
    pub(crate) store: Option<RaftStoreId>,
    /// It votes in the leader's configuration, so what it takes counts.
    pub(crate) votes: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Append(Known, AppendEntriesRequest<MapRaft>),
    Vote(VoteRequest<u64>),
    Snapshot(Known, InstallSnapshotRequest<MapRaft>),
    Propose(Proposal),
    /// Asks a leader to confirm that it still is one, and for the index a read has to wait for.
    ReadIndex,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Response {
    Append(AppendEntriesResponse<u64>),
    Vote(VoteResponse<u64>),
    Snapshot(InstallSnapshotResponse<u64>),
    SnapshotMismatch(SnapshotMismatch),
    Propose(Applied),
    /// All entries before this index have to be applied before the read.
    ReadIndex(u64),
    /// Not the leader, or not one that has a majority now. Worth another try.
    NotLeader,
    /// The request makes no sense; another try will not either.
    Refused(String),
    /// The group has stopped on that node.
    Stopped,
}

impl Request {
    /// The node that must have sent this, where the request says so.
    pub(crate) fn sender(&self) -> Option<u64> {
        match self {
            Self::Append(_, request) => Some(request.vote.leader_id.node_id),
            Self::Vote(request) => Some(request.vote.leader_id.node_id),
            Self::Snapshot(_, request) => Some(request.vote.leader_id.node_id),
            Self::Propose(proposal) => Some(proposal.id.node),
            Self::ReadIndex => None,
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_REQUEST_BYTES {
            return Err(format!("a request of {} bytes", bytes.len()));
        }
        codec::decode(bytes).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ProposalId;
    use openraft::{CommittedLeaderId, EmptyNode, LogId, Membership, StoredMembership, Vote};
    use smalti_map::{Applied, Command};
    use smalti_storage::ids::{Epoch, GroupNo, VolumeNo};

    /// The wire of version 9: members of one group may run different programs for a while.
    #[test]
    fn messages_keep_their_bytes() {
        let vote = Vote::new_committed(7, 2);
        let log_id = LogId::new(CommittedLeaderId::new(6, 1), 300);
        let meta = openraft::SnapshotMeta {
            last_log_id: Some(log_id),
            last_membership: StoredMembership::<u64, EmptyNode>::new(
                Some(log_id),
                Membership::new(vec![[1, 2].into()], ()),
            ),
            snapshot_id: "s".into(),
        };
        let id = ProposalId { node: 2, session: 3, seq: 4 };
        let command =
            Command::Activate { volume: VolumeNo(1), epoch: Epoch(2), online: vec![GroupNo(7)] };
        let requests = [
            Request::Append(
                Known { store: None, votes: true },
                AppendEntriesRequest {
                    vote,
                    prev_log_id: Some(log_id),
                    entries: vec![],
                    leader_commit: None,
                },
            ),
            Request::Vote(VoteRequest { vote, last_log_id: Some(log_id) }),
            Request::Snapshot(
                Known { store: Some(RaftStoreId::default()), votes: false },
                InstallSnapshotRequest { vote, meta, offset: 5, data: vec![6], done: true },
            ),
            Request::Propose(Proposal { id, command }),
            Request::ReadIndex,
        ];
        let expected = [
            "0f000001070201010601ac020000",
            "0f01070201010601ac02",
            "0f0201100000000000000000000000000000000000070201010601ac02010601ac0201020102020102017305010601",
            "0f030203040701020107",
            "0f04",
        ];
        for (request, expected) in requests.iter().zip(expected) {
            let bytes = codec::encode(request).expect("encodes");
            assert_eq!(hex(&bytes), expected, "{request:?}");
            let decoded = Request::decode(&bytes).expect("decodes");
            assert_eq!(format!("{decoded:?}"), format!("{request:?}"));
        }

        let segment = |offset| openraft::SnapshotSegmentId { id: "s".into(), offset };
        let responses = [
            Response::Append(AppendEntriesResponse::Success),
            Response::Append(AppendEntriesResponse::PartialSuccess(Some(log_id))),
            Response::Append(AppendEntriesResponse::Conflict),
            Response::Append(AppendEntriesResponse::HigherVote(vote)),
            Response::Vote(VoteResponse { vote, vote_granted: true, last_log_id: Some(log_id) }),
            Response::Snapshot(InstallSnapshotResponse { vote }),
            Response::SnapshotMismatch(SnapshotMismatch { expect: segment(0), got: segment(8) }),
            Response::Propose(Applied::Done),
            Response::ReadIndex(300),
            Response::NotLeader,
            Response::Refused("no".into()),
            Response::Stopped,
        ];
        let expected = [
            "0f0000",
            "0f0001010601ac02",
            "0f0002",
            "0f0003070201",
            "0f0107020101010601ac02",
            "0f02070201",
            "0f03017300017308",
            "0f0400",
            "0f05ac02",
            "0f06",
            "0f07026e6f",
            "0f08",
        ];
        for (response, expected) in responses.iter().zip(expected) {
            let bytes = codec::encode(response).expect("encodes");
            assert_eq!(hex(&bytes), expected, "{response:?}");
            let decoded: Response = codec::decode(&bytes).expect("decodes");
            assert_eq!(format!("{decoded:?}"), format!("{response:?}"));
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
