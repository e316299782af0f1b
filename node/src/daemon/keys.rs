//! Facts about keys: their epochs, who holds the shares, how far what was begun is.

use super::report::Report;
use crate::control::{
    HolderFacts, KeyEpochFacts, KeyReport, RecoveryFacts, ResealStatus, ResharingStatus,
    RevokedKeys, VolumeKeys,
};
use smalti_cluster::member::KeyProgress;
use smalti_map::{Custodians, Revoked, Volume};

impl Report {
    pub(super) fn keys(&self) -> KeyReport {
        let holders = self.map.custodians.holders.iter().map(|holder| HolderFacts {
            node: self.node_name(holder.node),
            share: holder.share,
            reachable: self.up.contains(&holder.node),
            lacking: self.lacking.get(&holder.node).copied().unwrap_or(0),
            barred: self.barred.get(&holder.node).cloned(),
        });
        let mut volumes: Vec<_> = self
            .map
            .volumes
            .values()
            .map(|volume| {
                let progress = self.progress.get(&volume.no);
                volume_keys(volume, progress.map(|progress| &progress.keys))
            })
            .collect();
        volumes.sort_by(|a, b| a.volume.cmp(&b.volume));
        KeyReport {
            custody: self.custody_status(),
            holders: holders.collect(),
            resharing: self.resharing(),
            recovery: self.map.recovery.as_ref().map(|recovery| RecoveryFacts {
                needed: recovery.threshold,
                total: recovery.shares,
            }),
            volumes,
        }
    }

    pub(super) fn resharing(&self) -> ResharingStatus {
        let Custodians { share_epoch, since, new_master, .. } = self.map.custodians;
        let behind = self.map.custodies().filter(|(_, custody)| custody.share_epoch < share_epoch);
        let left = u32::try_from(behind.count()).unwrap_or(u32::MAX);
        ResharingStatus { share_epoch, since, left, why: self.custody_problem.clone(), new_master }
    }
}

pub(super) fn volume_keys(volume: &Volume, progress: Option<&KeyProgress>) -> VolumeKeys {
    let older = volume.key_epochs.len() > 1;
    let progress = progress.filter(|_| volume.rotate || older);
    let blocks = |no| {
        // Nobody counts where there is nothing to seal anew, nor has yet where a look just began.
        let progress = progress.filter(|progress| older && !progress.counted.is_empty());
        let counted = progress?.counted.iter().find(|(counted, _)| *counted == no);
        Some(counted.map_or(0, |(_, blocks)| *blocks))
    };
    VolumeKeys {
        volume: volume.name.clone(),
        id: volume.id,
        current: volume.key_epoch,
        wanted: volume.rotate,
        revoked: volume.revoked.map(|revoked| {
            let under: Option<Vec<u64>> = volume
                .key_epochs
                .keys()
                .filter(|no| **no <= revoked.through)
                .map(|no| blocks(*no))
                .collect();
            let Revoked { through, since } = revoked;
            RevokedKeys { through, since, blocks: under.map(|blocks| blocks.iter().sum()) }
        }),
        epochs: volume
            .key_epochs
            .values()
            .map(|epoch| KeyEpochFacts {
                no: epoch.no,
                timestamp: epoch.timestamp,
                sealed: epoch.sealed,
                needed: epoch.custody.threshold,
                total: u8::try_from(epoch.custody.holders.len()).unwrap_or(u8::MAX),
                blocks: blocks(epoch.no),
            })
            .collect(),
        resealing: progress.map(|progress| ResealStatus {
            sealed: progress.sealed,
            unknown: progress.unknown,
            held: progress.held,
            failed: progress.failed,
            unlisted: progress.unlisted,
            why: progress.why.clone(),
        }),
    }
}
