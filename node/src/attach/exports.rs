//! Every volume as an NBD export of its name.

use super::{AttachError, Attachments};
use smalti_cluster::Member;
use smalti_gateway::NbdExport;
use smalti_map::Volume;
use smalti_nbd::{BoxFuture, Export, ExportInfo, Exports, OpenError};
use smalti_storage::record::BLOCK_LEN;
use std::sync::Arc;

/// The exports of a node.
#[derive(Clone, Debug)]
pub struct VolumeExports {
    member: Member,
    attachments: Attachments,
}

impl VolumeExports {
    /// All volumes of the cluster.
    pub fn new(member: Member, attachments: Attachments) -> Self {
        Self { member, attachments }
    }
}

fn info(volume: &Volume) -> ExportInfo {
    let mut info = ExportInfo::new(volume.name.clone(), volume.size);
    info.description = Some(format!("smalti volume, {}+{}", volume.data, volume.parity));
    info
}

fn unavailable(error: &AttachError) -> OpenError {
    match error {
        AttachError::NoVolume => OpenError::Unknown,
        other => OpenError::Unavailable { reason: other.to_string() },
    }
}

impl Exports for VolumeExports {
    fn list(&self) -> BoxFuture<Vec<String>> {
        let map = self.member.map();
        let names = map.volumes.values().map(|volume| volume.name.clone()).collect();
        Box::pin(std::future::ready(names))
    }

    fn describe(&self, name: &str) -> BoxFuture<Result<ExportInfo, OpenError>> {
        let found = self.member.map().volume_named(name).map(info);
        Box::pin(std::future::ready(found.ok_or(OpenError::Unknown)))
    }

    fn open(&self, name: &str) -> BoxFuture<Result<Arc<dyn Export>, OpenError>> {
        let this = self.clone();
        let name = name.to_owned();
        Box::pin(async move {
            let map = this.member.map();
            let volume = map.volume_named(&name).ok_or(OpenError::Unknown)?;
            let device = this.attachments.attach(volume.no).await.map_err(|error| {
                tracing::info!(volume = name, %error, "attach refused");
                unavailable(&error)
            })?;
            let row_bytes = u64::from(volume.data) * BLOCK_LEN as u64;
            Ok(Arc::new(NbdExport::new(info(volume), device, row_bytes)) as Arc<dyn Export>)
        })
    }
}
