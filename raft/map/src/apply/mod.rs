//! Applying commands.
//!
//! Every arm checks first and changes after, so a refused command leaves the map as it was, but
//! for its version: that counts applied log entries, and refusals are entries too.

mod cluster;
mod custody;
mod keys;
mod membership;
mod moves;
mod nodes;
mod scrubs;
mod snapshots;
mod tokens;
mod volume;

use crate::command::{Applied, Command, Rejection};
use crate::mutant::{Mutant, lives};
use crate::types::{ClusterMap, Volume};
use smalti_storage::ids::{Epoch, VolumeNo};

/// Bounds of the map. It is held in memory by every node and copied when it changes, so each list
/// in it has an end.
pub mod limits {
    /// Members of the cluster.
    pub const NODES: usize = 255;
    /// Weight of a node.
    pub const WEIGHT: u32 = 10_000;
    /// Tokens to join with.
    pub const TOKENS: usize = 64;
    /// Seconds for which one may be used: a week.
    pub const TOKEN_SECONDS: u64 = 7 * 24 * 3600;
    /// Shard stores.
    pub const STORES: usize = 4096;
    /// Volumes.
    pub const VOLUMES: usize = 4096;
    /// Snapshots of one volume. A row slot may have a version for each, and one message has to
    /// hold all that a repair lacks of them.
    pub const SNAPSHOTS: usize = 256;
    /// Groups of one volume: what a `GroupNo` can number.
    pub const GROUPS: usize = 1 << 16;
    /// Slots of one group: what a `SlotSet` can hold.
    pub const SLOTS: u8 = 32;
    /// Bytes of a name.
    pub const NAME: usize = 64;
    /// Custodians.
    pub const CUSTODIANS: usize = 32;
    /// Shares of the recovery secret. Their numbers have two digits.
    pub const RECOVERY_SHARES: u8 = 99;
    /// Key epochs of one volume at a time.
    pub const KEY_EPOCHS: usize = 8;
    /// Bytes of one wrapped key.
    pub const WRAPPED_KEY: usize = 256;
    /// Bytes of the commitments of one custody.
    pub const COMMITMENTS: usize = 64 << 10;
    /// Bytes of a shard: 64 KiB to 64 MiB.
    pub const SHARD_SIZE: std::ops::RangeInclusive<u32> = (64 << 10)..=(64 << 20);
    /// Bytes of a volume: what an NBD client can address with a signed offset.
    pub const VOLUME_SIZE: u64 = i64::MAX as u64;
}

impl ClusterMap {
    /// Applies one command. Deterministic: equal maps and equal commands give equal maps and equal
    /// answers, on every node and in every year.
    ///
    /// A refused command grows `version` and changes nothing else.
    pub fn apply(&mut self, command: &Command) -> Applied {
        // A version is one log entry; even a billion a second leave it 500 years.
        self.version += 1;
        let result = match command {
            Command::InitCluster { cluster, nodes, custody, recovery } => {
                self.init_cluster(*cluster, nodes, custody, recovery.as_ref())
            }
            Command::RegisterNode { node, addresses } => self.register_node(*node, addresses),
            Command::RegisterStore(start) => self.register_store(start),
            Command::CreateVolume(new) => self.create_volume(new),
            Command::DeleteVolume { volume, id } => self.delete_volume(*volume, *id),
            Command::Shrink { volume, epoch, stores, to_data } => {
                self.shrink(*volume, *epoch, stores, *to_data)
            }
            Command::Elect { volume, epoch, node, incarnation } => {
                self.elect(*volume, *epoch, *node, *incarnation)
            }
            Command::Activate { volume, epoch, online } => self.activate(*volume, *epoch, online),
            Command::SetOffline { volume, epoch, groups } => {
                self.set_offline(*volume, *epoch, groups)
            }
            Command::AddLearners { volume, epoch, slots } => {
                self.add_learners(*volume, *epoch, slots)
            }
            Command::Grow { volume, epoch, slots } => self.grow(*volume, *epoch, slots),
            Command::Move { volume, moves } => self.move_slots(*volume, moves),
            Command::ForgetHolders { volume, epoch, groups } => {
                self.forget_holders(*volume, *epoch, groups)
            }
            Command::AddSnapshot { volume, epoch, name, created } => {
                self.add_snapshot(*volume, *epoch, name, *created)
            }
            Command::DropSnapshot { volume, snap } => self.drop_snapshot(*volume, *snap),
            Command::RegisterRaftStore { node, store } => self.register_raft_store(*node, *store),
            Command::AdmitRecruit { node, store } => self.admit_recruit(*node, *store),
            Command::SetNode { node, setting } => self.set_node(*node, setting),
            Command::RemoveNode { node } => self.remove_node(*node),
            Command::ForgetStore { store } => self.forget_store(*store),
            Command::PauseMoves(paused) => Ok(self.pause_moves(*paused)),
            Command::AskScrub { volume } => self.ask_scrub(*volume),
            Command::NoteScrubs { volume, epoch, groups } => {
                self.note_scrubs(*volume, *epoch, groups)
            }
            Command::NoteFaults { at, faults } => Ok(self.note_faults(*at, faults)),
            Command::AskRotation { volume, key_epoch } => self.ask_rotation(*volume, *key_epoch),
            Command::AddKeyEpoch { volume, epoch, key_epoch } => {
                self.add_key_epoch(*volume, *epoch, key_epoch)
            }
            Command::RetireKeyEpochs { volume, generation, below } => {
                self.retire_key_epochs(*volume, *generation, *below)
            }
            Command::SetCustodians { share_epoch, threshold, nodes, now, new_master } => {
                self.set_custodians((*share_epoch, *threshold), nodes, *now, *new_master)
            }
            Command::Reshare { secret, from, custody } => self.reshare(secret, from, custody),
            Command::ReplaceMaster { from, custody } => self.replace_master(from, custody),
            Command::RevokeKeys { volume, key_epoch, now } => {
                self.revoke_keys(*volume, *key_epoch, *now)
            }
            Command::NoteSealed { volume, key_epoch, blocks } => {
                self.note_sealed(*volume, *key_epoch, *blocks)
            }
            Command::CreateToken { id, token, now } => self.create_token(*id, token, *now),
            Command::Join { token, name, addresses, now } => {
                self.join(*token, name, addresses, *now)
            }
        };
        result.unwrap_or_else(Applied::Rejected)
    }

    /// The compare of every compare-and-set on a volume.
    fn planned(&self, volume: VolumeNo, epoch: Epoch) -> Result<&Volume, Rejection> {
        let found = self.volumes.get(&volume).ok_or(Rejection::NoVolume(volume))?;
        if found.epoch != epoch && !lives(Mutant::NoEpochCompare) {
            return Err(Rejection::StaleEpoch { planned: epoch, current: found.epoch });
        }
        Ok(found)
    }

    /// As [`Self::planned`], to change it.
    fn planned_mut(&mut self, volume: VolumeNo, epoch: Epoch) -> Result<&mut Volume, Rejection> {
        self.planned(volume, epoch)?;
        self.volumes.get_mut(&volume).ok_or(Rejection::NoVolume(volume))
    }
}

fn invalid(text: impl Into<String>) -> Rejection {
    Rejection::Invalid(text.into())
}
