//! The node's control, answered from its member.

use super::authority::Authority;
use super::renewal::Standing;
use super::report::Report;
use crate::attach::{Attachments, MemberCluster};
use crate::control::{
    Answer, AuditReport, ChangeNode, Control, ControlError, CreateToken, CreateVolume, ErrorKind,
    Export, KeyReport, MovesStatus, NewToken, NodeFacts, Output, PauseMoves, RecoverKeys,
    RecoveryReport, ReplaceNode, RevokeKeys, ScrubStatus, SetCustodians, StatusReport, Unlock,
    Unlocked, VerifyReport, VolumeDetail, VolumeFacts, VolumeKeys, WhatIfReport, WhyReport,
};
use crate::custody::PassphraseKey;
use crate::volume_spec::{self, Geometry as Spec};
use bytes::Bytes;
use smalti_cluster::Member;
use smalti_gateway::GatewayError;
use smalti_map::view::MapView;
use smalti_map::{Applied, Command, Rejection, Volume};
use smalti_raft::ProposeError;
use smalti_storage::geometry::SHARD_SIZE_DEFAULT;
use smalti_storage::ids::{NodeId, VolumeId};
use smalti_volume::{
    ShardMetadata, VolumeError, VolumeShape, Volumes, read_data, reconstruct_volume, shard_volume,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

/// How long a new volume may take to get an active coordinator.
const ACTIVE_PATIENCE: Duration = Duration::from_secs(15);

/// How long nodes that a new volume would have slots on are waited for.
const TAKERS_PATIENCE: Duration = Duration::from_secs(2);

/// How long a client that is about to be gone is waited for before its volume is deleted, and between two
/// looks.
const DETACH_PATIENCE: Duration = Duration::from_secs(3);
const DETACH_PAUSE: Duration = Duration::from_millis(100);

/// Nobody is attached to a volume if its coordinator has said so for so long: clients of one that has ended come to
/// the next within that.
const DETACH_SURE: Duration = Duration::from_millis(1200);

/// The control of a running node.
#[derive(Clone, Debug)]
pub struct MemberControl {
    member: Member,
    attachments: Attachments,
    authority: Authority,
    certificate: watch::Receiver<Option<Standing>>,
    /// What a passphrase opens, if one does.
    lock: Option<Arc<PassphraseKey>>,
}

impl MemberControl {
    /// Over a member; volumes are read through its attachments, nodes let in by its authority.
    pub(super) fn new(
        member: Member,
        attachments: Attachments,
        authority: Authority,
        certificate: watch::Receiver<Option<Standing>>,
        lock: Option<Arc<PassphraseKey>>,
    ) -> Self {
        Self { member, attachments, authority, certificate, lock }
    }

    pub(super) fn lock(&self) -> Option<&Arc<PassphraseKey>> {
        self.lock.as_ref()
    }

    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(super) fn member(&self) -> &Member {
        &self.member
    }

    pub(super) async fn report(&self) -> Result<Report, ControlError> {
        let certificate = self.certificate.borrow().clone();
        Report::take(&self.member, certificate).await
    }

    async fn create(&self, request: CreateVolume) -> Result<VolumeDetail, ControlError> {
        let map = self.member.raft().linearizable().await.map_err(|error| unavailable(&error))?;
        let name = request.name.clone();
        let cluster = MemberCluster::new(self.member.clone(), MapView::clone(&map));
        let takers = Self::takers(&map, &cluster).await;
        let (shape, spec) = Self::wish(&map, &request, &takers)?;
        let id = VolumeId(Uuid::new_v4());
        let metadata = shard_volume(&cluster, id, shape, spec.data, spec.parity)
            .await
            .map_err(|error| refused(&error))?;
        let new = metadata.into_new_volume(
            name,
            request.min_insync,
            request.read_mode.unwrap_or_default(),
        );
        let new = new.map_err(|error| refused(&error))?;
        let command = Command::CreateVolume(Box::new(new));
        match self.member.raft().propose(command).await.map_err(|error| unavailable(&error))? {
            Applied::Created(_) => {}
            Applied::Rejected(why) => return Err(rejected(&why)),
            other => return Err(ControlError::new(ErrorKind::Internal, format!("{other:?}"))),
        }
        self.until_active(&request.name).await
    }

    /// Nodes that can take slots. Those that have only just started are given a moment.
    async fn takers(map: &MapView, cluster: &MemberCluster) -> BTreeSet<NodeId> {
        let deadline = Instant::now() + TAKERS_PATIENCE;
        let wanted = map.nodes.values().filter(|node| !node.draining && node.weight > 0).count();
        loop {
            let takers = cluster.takers();
            if takers.len() >= wanted || Instant::now() >= deadline {
                return takers;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What is asked for, with defaults for what is not said.
    fn wish(
        map: &MapView,
        request: &CreateVolume,
        takers: &BTreeSet<NodeId>,
    ) -> Result<(VolumeShape, Spec), ControlError> {
        volume_spec::check_name(&request.name).map_err(ControlError::invalid)?;
        if map.volume_named(&request.name).is_some() {
            let text = format!("there is a volume {} already", request.name);
            return Err(ControlError::new(ErrorKind::Exists, text));
        }
        let spec = Spec::asked(request.data, request.parity, takers.len()).map_err(|error| {
            let left_out = map.nodes.iter().filter(|(id, _)| !takers.contains(id));
            let names: Vec<&str> = left_out.map(|(_, node)| node.name.as_str()).collect();
            let why = "not counted, for they are down, to be emptied, or of weight 0";
            ControlError::invalid(match names.is_empty() {
                true => error.to_string(),
                false => format!("{error}; {why}: {}", names.join(", ")),
            })
        })?;
        spec.check_min_insync(request.min_insync).map_err(ControlError::invalid)?;
        let shard_size = request.shard_size.unwrap_or(SHARD_SIZE_DEFAULT);
        Ok((VolumeShape { size: request.size, shard_size }, spec))
    }

    /// Waits until the new volume has a coordinator that serves.
    async fn until_active(&self, name: &str) -> Result<VolumeDetail, ControlError> {
        let deadline = Instant::now() + ACTIVE_PATIENCE;
        loop {
            let map = self.member.map();
            if let Some(volume) = map.volume_named(name)
                && volume.activated
            {
                return self.report().await?.detail(name);
            }
            if Instant::now() >= deadline {
                let text = format!("volume {name} was made, but no coordinator serves it yet");
                return Err(ControlError::new(ErrorKind::Timeout, text));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn volume_named(&self, name: &str) -> Result<Volume, ControlError> {
        let map = self.member.map();
        map.volume_named(name).cloned().ok_or_else(|| ControlError::no_volume(name))
    }

    async fn read(&self, name: String, offset: u64, size: u64) -> Result<Bytes, ControlError> {
        let id = self.volume_named(&name)?.id;
        read_data(&self.attachments, id, offset, size).await.map_err(|error| refused(&error))
    }

    async fn export(&self, name: String) -> Result<Export, ControlError> {
        let volume = self.volume_named(&name)?;
        let metadata = ShardMetadata::of(&volume).map_err(|error| refused(&error))?;
        // Held until the end, so that the volume is attached once.
        let device = self.attachments.device(volume.id).await.map_err(|error| refused(&error))?;
        let attachments = self.attachments.clone();
        let run = move |mut out: Output| {
            Box::pin(async move {
                let written =
                    reconstruct_volume(&attachments, metadata.volume, &metadata, &mut out).await;
                drop(device);
                written.map_err(|error| refused(&error))
            }) as _
        };
        Ok(Export { size: volume.size, run: Box::new(run) })
    }

    async fn delete(&self, name: String, id: VolumeId, force: bool) -> Result<(), ControlError> {
        let map = self.member.raft().linearizable().await.map_err(|error| unavailable(&error))?;
        let volume = map.volume_named(&name).ok_or_else(|| ControlError::no_volume(&name))?;
        if volume.id != id {
            let text = format!("volume {name} is another one now: {}", volume.id);
            return Err(ControlError::new(ErrorKind::Conflict, text));
        }
        if !force && self.stays_attached(volume).await {
            let text = format!(
                "clients are attached to volume {name}, or it is exported, or nobody serves it who would know: \
                 end that first; `--force` deletes it all the same"
            );
            return Err(ControlError::new(ErrorKind::Conflict, text));
        }
        let command = Command::DeleteVolume { volume: volume.no, id };
        match self.member.raft().propose(command).await.map_err(|error| undecided(&error))? {
            Applied::Rejected(why) => Err(rejected(&why)),
            _ => Ok(()),
        }
    }
}

impl MemberControl {
    /// Whether clients are attached to the volume, for all that is known, and not only about to be gone: that one
    /// has left another node is heard of a moment later, and that one has come to a new coordinator as well.
    async fn stays_attached(&self, volume: &Volume) -> bool {
        let deadline = Instant::now() + DETACH_PATIENCE;
        let mut free_since = None;
        loop {
            let map = self.member.map();
            let volume = map.volumes.get(&volume.no).unwrap_or(volume);
            let progress = self.member.progress(volume).await;
            let is_free = progress.is_some_and(|progress| progress.active && !progress.in_use);
            free_since = is_free.then(|| free_since.unwrap_or_else(Instant::now));
            if free_since.is_some_and(|since: Instant| since.elapsed() >= DETACH_SURE) {
                return false;
            }
            if Instant::now() >= deadline {
                return true;
            }
            tokio::time::sleep(DETACH_PAUSE).await;
        }
    }
}

pub(super) fn unavailable(error: &ProposeError) -> ControlError {
    ControlError::new(ErrorKind::Unavailable, format!("the cluster does not agree: {error}"))
}

/// The same of a change: one that was not agreed on in time may be later.
pub(super) fn undecided(error: &ProposeError) -> ControlError {
    let text = match error {
        ProposeError::Timeout { .. } => format!(
            "the cluster has not agreed in time, and may yet do so: `smalti why` tells what is missing; look \
             whether it was done before you try again ({error})"
        ),
        _ => return unavailable(error),
    };
    ControlError::new(ErrorKind::Unavailable, text)
}

fn refused(error: &VolumeError) -> ControlError {
    let kind = match error {
        VolumeError::Size(_)
        | VolumeError::Geometry(_)
        | VolumeError::Device(GatewayError::Invalid) => ErrorKind::Invalid,
        VolumeError::Keys(_) => ErrorKind::Sealed,
        VolumeError::NoVolume(_) => ErrorKind::NotFound,
        VolumeError::Placement(_) | VolumeError::Unavailable(_) => ErrorKind::Unavailable,
        VolumeError::Device(error) if error.is_retry_elsewhere() => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    ControlError::new(kind, error)
}

pub(super) fn rejected(why: &Rejection) -> ControlError {
    let kind = match why {
        Rejection::Invalid(_) => ErrorKind::Invalid,
        Rejection::NoVolume(_) => ErrorKind::NotFound,
        _ => ErrorKind::Conflict,
    };
    ControlError::new(kind, why)
}

impl Control for MemberControl {
    fn status(&self) -> Answer<'_, StatusReport> {
        Box::pin(async move { Ok(self.report().await?.status()) })
    }

    fn why(&self) -> Answer<'_, WhyReport> {
        Box::pin(async move { Ok(self.report().await?.why()) })
    }

    fn volumes(&self) -> Answer<'_, Vec<VolumeFacts>> {
        Box::pin(async move { Ok(self.report().await?.volumes()) })
    }

    fn volume(&self, name: String) -> Answer<'_, VolumeDetail> {
        Box::pin(async move { self.report().await?.detail(&name) })
    }

    fn create_volume(&self, request: CreateVolume) -> Answer<'_, VolumeDetail> {
        Box::pin(self.create(request))
    }

    fn delete_volume(&self, name: String, id: VolumeId, force: bool) -> Answer<'_, ()> {
        Box::pin(self.delete(name, id, force))
    }

    fn change_node(&self, name: String, change: ChangeNode) -> Answer<'_, NodeFacts> {
        Box::pin(self.set_node(name, change))
    }

    fn replace_node(&self, name: String, wish: ReplaceNode) -> Answer<'_, NodeFacts> {
        Box::pin(self.replace(name, wish))
    }

    fn remove_node(&self, name: String) -> Answer<'_, ()> {
        Box::pin(self.take_node_out(name))
    }

    fn rotate_keys(&self, name: String) -> Answer<'_, VolumeKeys> {
        Box::pin(self.ask_rotation(name))
    }

    fn revoke_keys(&self, name: String, wish: RevokeKeys) -> Answer<'_, VolumeKeys> {
        Box::pin(self.revoke(name, wish))
    }

    fn scrub_volume(&self, name: String) -> Answer<'_, ScrubStatus> {
        Box::pin(self.ask_scrub(name))
    }

    fn create_token(&self, request: CreateToken) -> Answer<'_, NewToken> {
        Box::pin(self.make_token(request))
    }

    fn pause_moves(&self, wish: PauseMoves) -> Answer<'_, MovesStatus> {
        Box::pin(self.set_paused(wish))
    }

    fn what_if(&self, stop: Vec<String>) -> Answer<'_, WhatIfReport> {
        Box::pin(self.what_if_stopped(stop))
    }

    fn read_volume(&self, name: String, offset: u64, size: u64) -> Answer<'_, Bytes> {
        Box::pin(self.read(name, offset, size))
    }

    fn export_volume(&self, name: String) -> Answer<'_, Export> {
        Box::pin(self.export(name))
    }

    fn nodes(&self) -> Answer<'_, Vec<NodeFacts>> {
        Box::pin(async move { Ok(self.report().await?.nodes()) })
    }

    fn set_custodians(&self, wish: SetCustodians) -> Answer<'_, KeyReport> {
        Box::pin(self.set_custody(wish))
    }

    fn verify_keys(&self, without: Vec<String>) -> Answer<'_, VerifyReport> {
        Box::pin(self.verify(without))
    }

    fn audit_keys(&self, node: Option<String>) -> Answer<'_, Vec<AuditReport>> {
        Box::pin(self.audit(node))
    }

    fn unlock(&self, wish: Unlock) -> Answer<'_, Unlocked> {
        Box::pin(self.unlock_shares(wish))
    }

    fn keys(&self) -> Answer<'_, KeyReport> {
        Box::pin(async move { Ok(self.report().await?.keys()) })
    }

    fn recover_keys(&self, wish: RecoverKeys) -> Answer<'_, RecoveryReport> {
        Box::pin(self.recover(wish))
    }
}
