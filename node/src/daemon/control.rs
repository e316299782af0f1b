//! The node's control, answered from its member.

use super::report::Report;
use crate::control::{
    Answer, Control, ControlError, CreateVolume, ErrorKind, KeyReport, NodeFacts, StatusReport,
    VolumeDetail, VolumeFacts, WhyReport,
};
use crate::volume_spec::{self, Geometry as Spec};
use smalti_cluster::Member;
use smalti_cluster::keys::KeysError;
use smalti_map::placement::{Candidate, place_groups};
use smalti_map::view::MapView;
use smalti_map::{Applied, Command, NewVolume, Rejection};
use smalti_raft::ProposeError;
use smalti_storage::geometry::{GROUPS_DEFAULT, Geometry};
use smalti_storage::ids::VolumeId;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;
use uuid::Uuid;

/// How long a new volume may take to get an active coordinator.
const ACTIVE_PATIENCE: Duration = Duration::from_secs(15);

/// The control of a running node.
#[derive(Clone, Debug)]
pub struct MemberControl {
    member: Member,
}

impl MemberControl {
    /// Over a member.
    pub fn new(member: Member) -> Self {
        Self { member }
    }

    async fn report(&self) -> Result<Report, ControlError> {
        Report::take(&self.member).await
    }

    async fn create(&self, request: CreateVolume) -> Result<VolumeDetail, ControlError> {
        let map = self.member.raft().linearizable().await.map_err(|error| unavailable(&error))?;
        let geometry = self.geometry(&map, &request)?;
        let id = VolumeId(Uuid::new_v4());
        let groups = self.place(&map, id, &geometry)?;
        let timestamp =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let keys = self.member.keys();
        let key_epoch = keys
            .create(&map.custody, id, &geometry, timestamp)
            .await
            .map_err(|error| sealed(&error))?;
        let (data, parity) = (geometry.data, geometry.parity);
        let new = NewVolume {
            id,
            name: request.name.clone(),
            size: request.size,
            data,
            parity,
            shard_size: geometry.shard_size,
            min_insync: if parity >= 2 { data + 1 } else { data },
            groups,
            key_epoch,
        };
        let command = Command::CreateVolume(Box::new(new));
        match self.member.raft().propose(command).await.map_err(|error| unavailable(&error))? {
            Applied::Created(_) => {}
            Applied::Rejected(why) => return Err(rejected(&why)),
            other => return Err(ControlError::new(ErrorKind::Internal, format!("{other:?}"))),
        }
        self.until_active(&request.name).await
    }

    fn geometry(&self, map: &MapView, request: &CreateVolume) -> Result<Geometry, ControlError> {
        volume_spec::check_name(&request.name).map_err(ControlError::invalid)?;
        if map.volume_named(&request.name).is_some() {
            let text = format!("there is a volume {} already", request.name);
            return Err(ControlError::new(ErrorKind::Exists, text));
        }
        if request.size == 0 || !request.size.is_multiple_of(512) {
            let text = format!("size {} is not a positive multiple of 512", request.size);
            return Err(ControlError::invalid(text));
        }
        let spec = Spec::asked(request.data, request.parity, map.nodes.len())
            .map_err(ControlError::invalid)?;
        let shard_size = request.shard_size.unwrap_or(volume_spec::SHARD_SIZE_DEFAULT);
        Geometry::new(spec.data, spec.parity, shard_size, GROUPS_DEFAULT)
            .map_err(ControlError::invalid)
    }

    fn place(
        &self,
        map: &MapView,
        id: VolumeId,
        geometry: &Geometry,
    ) -> Result<Vec<Vec<smalti_storage::ids::StoreId>>, ControlError> {
        let candidates: Vec<Candidate> = map
            .stores
            .iter()
            .map(|(store, entry)| Candidate { store: *store, node: entry.node, weight: 1 })
            .collect();
        place_groups(id, geometry.groups, geometry.data, geometry.parity, &candidates)
            .map_err(|error| ControlError::new(ErrorKind::Unavailable, error))
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

    async fn delete(&self, name: String, id: VolumeId) -> Result<(), ControlError> {
        let map = self.member.raft().linearizable().await.map_err(|error| unavailable(&error))?;
        let volume = map.volume_named(&name).ok_or_else(|| ControlError::no_volume(&name))?;
        if volume.id != id {
            let text = format!("volume {name} is another one now: {}", volume.id);
            return Err(ControlError::new(ErrorKind::Conflict, text));
        }
        let command = Command::DeleteVolume { volume: volume.no, id };
        match self.member.raft().propose(command).await.map_err(|error| unavailable(&error))? {
            Applied::Rejected(why) => Err(rejected(&why)),
            _ => Ok(()),
        }
    }
}

fn unavailable(error: &ProposeError) -> ControlError {
    ControlError::new(ErrorKind::Unavailable, format!("the cluster does not agree: {error}"))
}

fn sealed(error: &KeysError) -> ControlError {
    ControlError::new(ErrorKind::Sealed, error)
}

fn rejected(why: &Rejection) -> ControlError {
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

    fn delete_volume(&self, name: String, id: VolumeId) -> Answer<'_, ()> {
        Box::pin(self.delete(name, id))
    }

    fn nodes(&self) -> Answer<'_, Vec<NodeFacts>> {
        Box::pin(async move { Ok(self.report().await?.nodes()) })
    }

    fn keys(&self) -> Answer<'_, KeyReport> {
        Box::pin(async move { Ok(self.report().await?.keys()) })
    }
}
