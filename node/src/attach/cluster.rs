//! This node's cluster, as whoever makes and opens volumes reaches it.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use smalti_cluster::{CoderHandle, Member, clock};
use smalti_gateway::{self as gateway, Rows};
use smalti_map::placement::Candidate;
use smalti_map::view::MapView;
use smalti_map::{Custodians, Custody, Recovery};
use smalti_rowcommit::coordinator::{BlockWrite, OpError};
use smalti_storage::ids::{ClusterId, NodeId, RowAddr, Slot, VolumeId};
use smalti_storage::keys::{Commitments, KeyPart, SecretName, ShareName};
use smalti_volume::{Cluster, Session, VolumeError};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How often, and how long apart, a custodian is asked that is to keep a share by all means.
const KEEP_TRIES: u32 = 20;
const KEEP_PAUSE: Duration = Duration::from_millis(300);

/// The cluster as one map shows it, and the coder of the volume to open, if one is to be opened.
pub(crate) struct MemberCluster {
    member: Member,
    map: MapView,
    coder: Option<CoderHandle>,
    /// How often a custodian is asked to keep a share.
    keep_tries: u32,
}

impl MemberCluster {
    /// To make volumes.
    pub(crate) fn new(member: Member, map: MapView) -> Self {
        Self { member, map, coder: None, keep_tries: 1 }
    }

    /// Asks custodians again that do not keep a share: they may not have heard of the newest map yet, or have
    /// been asked for more in a while than they give one node.
    pub(crate) fn persistent(self) -> Self {
        Self { keep_tries: KEEP_TRIES, ..self }
    }

    /// Nodes that a new volume can have slots on.
    pub(crate) fn takers(&self) -> BTreeSet<NodeId> {
        let takes = |candidate: &Candidate| candidate.weight > 0;
        self.stores().into_iter().filter(takes).map(|candidate| candidate.node).collect()
    }

    /// To open the volume of that coder, which this node has the seat of.
    pub(super) fn with_seat(member: Member, map: MapView, coder: CoderHandle) -> Self {
        Self { member, map, coder: Some(coder), keep_tries: 1 }
    }

    fn begin(&self, id: VolumeId) -> Result<Session, VolumeError> {
        let volume = self.map.volumes.values().find(|volume| volume.id == id);
        let volume = volume.ok_or(VolumeError::NoVolume(id))?;
        let coder = self.coder.as_ref().filter(|coder| coder.volume() == volume.no);
        let coder = coder.ok_or_else(|| {
            VolumeError::Unavailable("its updates are not ordered on this node".into())
        })?;
        Ok(Session {
            rows: Arc::new(CoderRows { coder: coder.clone(), generation: volume.writer_gen }),
            generation: volume.writer_gen,
            snap: volume.snap_seq,
            now: clock::now(),
        })
    }
}

impl Cluster for MemberCluster {
    fn id(&self) -> ClusterId {
        self.member.cluster()
    }

    /// None of a node that is away, or is to be emptied, takes anything.
    fn stores(&self) -> Vec<Candidate> {
        let sights = self.member.sights(&self.map);
        let candidate = |(store, entry): (&_, &smalti_map::Store)| {
            let here = sights.get(store).is_some_and(|sight| sight.away.is_none());
            let node = self.map.nodes.get(&entry.node).filter(|node| here && !node.draining);
            let weight = node.map_or(0, |node| node.weight);
            let domain = self.map.domain_of(entry.node);
            Candidate { store: *store, node: entry.node, domain, weight }
        };
        self.map.stores.iter().map(candidate).collect()
    }

    fn custody(&self) -> Custody {
        self.map.custody.clone()
    }

    fn custodians(&self) -> Custodians {
        self.map.custodians.clone()
    }

    fn recovery(&self) -> Option<Recovery> {
        self.map.recovery.clone()
    }

    fn unix_seconds(&self) -> u64 {
        clock::unix_seconds()
    }

    fn keep(
        &self,
        custodian: NodeId,
        secret: SecretName,
        share_epoch: u32,
        part: &KeyPart,
        commitments: &Commitments,
    ) -> BoxFuture<'_, Result<(), String>> {
        let (part, commitments) = (part.clone(), commitments.clone());
        async move {
            let name = (secret, share_epoch);
            let mut tries = 1;
            loop {
                let kept =
                    self.member.custodians().keep(custodian, name, &part, &commitments).await;
                if kept.is_ok() || tries >= self.keep_tries {
                    return kept;
                }
                tries += 1;
                tokio::time::sleep(KEEP_PAUSE).await;
            }
        }
        .boxed()
    }

    fn release(
        &self,
        custodian: NodeId,
        share: ShareName,
    ) -> BoxFuture<'_, Result<KeyPart, String>> {
        self.member.custodians().release(custodian, share).boxed()
    }

    fn session(&self, volume: VolumeId) -> BoxFuture<'_, Result<Session, VolumeError>> {
        ready(self.begin(volume)).boxed()
    }
}

/// Rows for work of a gateway of one generation that gives way to clients; `coder` is in the background.
pub(crate) fn background_rows(coder: CoderHandle, generation: u32) -> Arc<dyn Rows> {
    Arc::new(CoderRows { coder, generation })
}

/// The coder as the gateway of one generation sees it.
struct CoderRows {
    coder: CoderHandle,
    generation: u32,
}

impl Rows for CoderRows {
    fn write(&self, blocks: Vec<BlockWrite>) -> gateway::BoxFuture<Result<(), OpError>> {
        let coder = self.coder.clone();
        Box::pin(async move { coder.write(blocks).await })
    }

    fn read(
        &self,
        blocks: Vec<(RowAddr, Slot)>,
    ) -> gateway::BoxFuture<Result<Vec<Bytes>, OpError>> {
        let (coder, generation) = (self.coder.clone(), self.generation);
        Box::pin(async move { coder.read(generation, blocks).await })
    }
}
