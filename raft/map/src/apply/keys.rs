//! Key epochs of volumes: a new one begins, old ones that nothing is sealed under any more end.

use super::membership::done;
use super::{invalid, limits};
use crate::command::{Applied, Rejection};
use crate::types::{ClusterMap, KeyEpoch, Revoked};
use smalti_storage::ids::{Epoch, KeyEpochNo, VolumeNo};

impl ClusterMap {
    /// The wish is kept until a coordinator has fulfilled it, whoever that is by then.
    pub(super) fn ask_rotation(
        &mut self,
        volume: VolumeNo,
        key_epoch: KeyEpochNo,
    ) -> Result<Applied, Rejection> {
        let found = self.volumes.get_mut(&volume).ok_or(Rejection::NoVolume(volume))?;
        if found.key_epoch != key_epoch {
            return Err(invalid(format!(
                "planned against key epoch {key_epoch}, the volume is at {}",
                found.key_epoch
            )));
        }
        if found.key_epochs.len() >= limits::KEY_EPOCHS {
            return Err(too_many());
        }
        found.rotate = true;
        Ok(Applied::Done)
    }

    /// Elects the coordinator anew, so that no gateway seals under older keys from then on: writes of
    /// those before are refused, and who has a newer generation has the newer keys.
    pub(super) fn add_key_epoch(
        &mut self,
        volume: VolumeNo,
        epoch: Epoch,
        new: &KeyEpoch,
    ) -> Result<Applied, Rejection> {
        let planned = self.planned(volume, epoch)?;
        let next = planned.next_epoch()?;
        if !planned.activated {
            return Err(invalid("the coordinator has not finished its takeover"));
        }
        if planned.key_epoch.0.checked_add(1) != Some(new.no.0) {
            let current = planned.key_epoch;
            return Err(invalid(format!("key epoch {} does not follow on {current}", new.no)));
        }
        if planned.key_epochs.len() >= limits::KEY_EPOCHS {
            return Err(too_many());
        }
        let newest = planned.key_epochs.get(&planned.key_epoch);
        if newest.is_some_and(|newest| new.timestamp <= newest.timestamp) {
            return Err(invalid("a key epoch can not begin before the one before it"));
        }
        planned.check_keys(new).map_err(Rejection::Invalid)?;
        self.check_dealt(&new.custody).map_err(Rejection::Invalid)?;
        let volume = self.planned_mut(volume, epoch)?;
        let new = KeyEpoch { since: next.0, sealed: 0, ..new.clone() };
        volume.key_epoch = new.no;
        volume.key_epochs.insert(new.no, new);
        volume.rotate = false;
        if let Some(seat) = volume.coordinator {
            volume.seat(next, seat);
        }
        Ok(done(next))
    }

    /// Their shares are destroyed by whoever holds them. The coordinator that asks has found in its own
    /// time of office that nothing is sealed under them; another one has not.
    pub(super) fn retire_key_epochs(
        &mut self,
        volume: VolumeNo,
        generation: u32,
        below: KeyEpochNo,
    ) -> Result<Applied, Rejection> {
        let found = self.volumes.get_mut(&volume).ok_or(Rejection::NoVolume(volume))?;
        if found.writer_gen != generation {
            let now = found.writer_gen;
            return Err(invalid(format!("found in generation {generation}, it is {now} now")));
        }
        if below > found.key_epoch {
            return Err(invalid(format!("key epoch {} is in use", found.key_epoch)));
        }
        let kept = found.key_epochs.split_off(&below);
        let gone = std::mem::replace(&mut found.key_epochs, kept);
        if gone.is_empty() {
            return Err(invalid("there are no older key epochs"));
        }
        self.retired_keys.extend(gone.into_keys().map(|no| (found.id, no)));
        found.revoked = found.revoked.filter(|revoked| revoked.through >= below);
        Ok(Applied::Done)
    }

    /// What was revoked before stays so, since the first time. There are to be new keys also where too many
    /// are in use yet: as soon as one of them has ended.
    pub(super) fn revoke_keys(
        &mut self,
        volume: VolumeNo,
        key_epoch: KeyEpochNo,
        now: u64,
    ) -> Result<Applied, Rejection> {
        let found = self.volumes.get_mut(&volume).ok_or(Rejection::NoVolume(volume))?;
        if !found.key_epochs.contains_key(&key_epoch) {
            return Err(invalid(format!("there is no key epoch {key_epoch}, or it has ended")));
        }
        let before = found.revoked.unwrap_or(Revoked { through: key_epoch, since: now });
        let through = before.through.max(key_epoch);
        found.revoked = Some(Revoked { through, since: before.since.min(now) });
        found.rotate |= through == found.key_epoch;
        Ok(Applied::Done)
    }

    pub(super) fn note_sealed(
        &mut self,
        volume: VolumeNo,
        key_epoch: KeyEpochNo,
        blocks: u64,
    ) -> Result<Applied, Rejection> {
        let found = self.volumes.get_mut(&volume).ok_or(Rejection::NoVolume(volume))?;
        let epoch = found.key_epochs.get_mut(&key_epoch);
        let epoch = epoch.ok_or_else(|| invalid(format!("there is no key epoch {key_epoch}")))?;
        epoch.sealed = epoch.sealed.saturating_add(blocks);
        Ok(Applied::Done)
    }
}

fn too_many() -> Rejection {
    let most = limits::KEY_EPOCHS;
    invalid(format!("{most} key epochs are in use; records have to be sealed anew first"))
}
