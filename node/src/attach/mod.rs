//! Attaching volumes: which gateway serves a volume here, and how its clients follow it when the
//! seat moves.
//!
//! ```text
//! NBD connection → RoutedDevice → Gateway here (this node has the seat)
//!                               → session with the node that has it
//! ```
//!
//! A volume has one gateway at a time, on its coordinator's node; only there are its keys. They
//! are wiped when the last client has gone or the seat is lost.

mod blocks;
mod cluster;
mod exports;
mod local;
mod routed;

pub(crate) use cluster::{MemberCluster, background_rows};
pub(crate) use local::{Local, Place};

pub use blocks::BlockSessions;
pub use exports::VolumeExports;
pub use local::LocalGateways;

use futures::FutureExt;
use routed::RoutedDevice;
use smalti_cluster::Member;
use smalti_cluster::member::SeatError;
use smalti_gateway::{BlockDevice, ClientId};
use smalti_storage::ids::{VolumeId, VolumeNo};
use smalti_volume::{KeysError, VolumeError, Volumes};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use uuid::Uuid;

/// Why a volume can not be attached now.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// No such volume.
    #[error("no such volume")]
    NoVolume,
    /// Nobody coordinates it, and this node could not get the seat in time.
    #[error(transparent)]
    Seat(SeatError),
    /// Its shards can not be put together: too few custodians, say.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Too few of those who hold shares of its keys answer.
    #[error("sealed: {reachable} of {needed} custodians reachable; away: {away}")]
    Sealed {
        /// Custodians that answer.
        reachable: usize,
        /// Shares that are needed.
        needed: u8,
        /// The others, by name; of those that answer, what keeps them from it.
        away: String,
    },
    /// The node that coordinates it can not be reached.
    #[error("the node that serves the volume can not be reached: {0}")]
    Unreached(String),
}

impl AttachError {
    /// Whether too few custodians gave their share.
    pub(crate) fn is_sealed(&self) -> bool {
        let refused = matches!(self, Self::Volume(VolumeError::Keys(KeysError::Sealed { .. })));
        refused || matches!(self, Self::Sealed { .. })
    }
}

impl From<SeatError> for AttachError {
    fn from(error: SeatError) -> Self {
        match error {
            SeatError::NoVolume => Self::NoVolume,
            other => Self::Seat(other),
        }
    }
}

/// The volumes that clients of this node are attached to.
#[derive(Clone)]
pub struct Attachments {
    member: Member,
    local: LocalGateways,
    /// Tells this process apart from its earlier lives and from other nodes.
    client: ClientId,
    devices: Arc<Mutex<BTreeMap<VolumeNo, Weak<RoutedDevice>>>>,
}

impl std::fmt::Debug for Attachments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachments").field("client", &self.client).finish_non_exhaustive()
    }
}

impl Attachments {
    /// None yet.
    pub fn new(member: Member, local: LocalGateways) -> Self {
        Self { member, local, client: ClientId(Uuid::new_v4()), devices: Arc::default() }
    }

    /// The device of a volume, with a route that works; shared by all clients of this node.
    ///
    /// # Errors
    /// [`AttachError`] with the reason to show the client.
    pub(crate) async fn attach(&self, volume: VolumeNo) -> Result<Arc<RoutedDevice>, AttachError> {
        let device = {
            let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
            devices.retain(|_, device| device.strong_count() > 0);
            match devices.get(&volume).and_then(Weak::upgrade) {
                Some(device) => device,
                None => {
                    let device = RoutedDevice::new(
                        self.member.clone(),
                        self.local.clone(),
                        self.client,
                        volume,
                    );
                    devices.insert(volume, Arc::downgrade(&device));
                    device
                }
            }
        };
        device.connect().await?;
        Ok(device)
    }
}

impl Volumes for Attachments {
    fn device(
        &self,
        volume: VolumeId,
    ) -> futures::future::BoxFuture<'_, Result<Arc<dyn BlockDevice>, VolumeError>> {
        async move {
            let map = self.member.map();
            let found = map.volumes.values().find(|entry| entry.id == volume);
            let no = found.ok_or(VolumeError::NoVolume(volume))?.no;
            match self.attach(no).await {
                Ok(device) => Ok(device as Arc<dyn BlockDevice>),
                Err(AttachError::NoVolume) => Err(VolumeError::NoVolume(volume)),
                Err(AttachError::Volume(error)) => Err(error),
                Err(other) => Err(VolumeError::Unavailable(other.to_string())),
            }
        }
        .boxed()
    }
}
