//! When volumes get new keys without being asked: after some time, and before one key has sealed too many
//! blocks.

use super::coordinates;
use crate::attach::LocalGateways;
use crate::config::Tunables;
use smalti_cluster::{Member, clock};
use smalti_map::{Applied, Command, KeyEpoch};
use smalti_storage::ids::{KeyEpochNo, VolumeNo};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a proposal may take. The next look makes it again.
const PATIENCE: Duration = Duration::from_secs(5);

/// The map is told after so many blocks under one key, or a part of what one may seal: what a gateway has
/// sealed since it told last is forgotten with it.
const TELL_EVERY: u64 = 1 << 20;
const TELL_PART: u64 = 16;

/// When keys are too old.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Seconds; 0: never.
    age: u64,
    /// Blocks under one key; 0: never.
    blocks: u64,
}

/// What has been told of a gateway: of which volume, in which generation and key epoch.
type Told = BTreeMap<(VolumeNo, u32, KeyEpochNo), u64>;

impl Policy {
    pub(crate) fn of(tunables: &Tunables) -> Self {
        Self { age: tunables.key_interval_s, blocks: tunables.key_blocks }
    }

    /// Sees to it for all volumes that this node coordinates, until `stop`.
    pub(crate) async fn keep(self, member: Member, local: LocalGateways, stop: CancellationToken) {
        let mut told = Told::new();
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(every.tick()).await.is_some() {
            let look = async {
                self.tell(&member, &local, &mut told).await;
                self.ask(&member).await;
            };
            if stop.run_until_cancelled(look).await.is_none() {
                return;
            }
        }
    }

    /// Tells the map how much gateways here have sealed.
    async fn tell(self, member: &Member, local: &LocalGateways, told: &mut Told) {
        // What was told before is not forgotten for that: it would be told again.
        let Some(sealed) = local.sealed() else { return };
        let there = |at: &(VolumeNo, u32, KeyEpochNo)| {
            sealed.iter().any(|(no, generation, epoch, _)| (*no, *generation, *epoch) == *at)
        };
        told.retain(|at, _| there(at));
        for (volume, generation, key_epoch, blocks) in sealed {
            let known = told.entry((volume, generation, key_epoch)).or_default();
            let more = blocks.saturating_sub(*known);
            if more < self.step() {
                continue;
            }
            let command = Command::NoteSealed { volume, key_epoch, blocks: more };
            match member.raft().propose_within(command, PATIENCE).await {
                // That volume or key epoch is no more, if it is refused.
                Ok(_) => *known = blocks,
                Err(error) => tracing::warn!(%error, "the map was not told what was sealed"),
            }
        }
    }

    fn step(self) -> u64 {
        if self.blocks == 0 { TELL_EVERY } else { (self.blocks / TELL_PART).clamp(1, TELL_EVERY) }
    }

    /// Asks for new keys where they are due.
    async fn ask(self, member: &Member) {
        let map = member.map();
        for volume in map.volumes.values().filter(|volume| coordinates(member, volume)) {
            // Not while older ones are in use yet: what is sealed anew slower than it is due would end with too
            // many of them.
            let busy = volume.rotate || volume.key_epochs.len() > 1;
            let current = volume.key_epochs.get(&volume.key_epoch).filter(|_| !busy);
            let due = current.and_then(|current| self.due(current, clock::unix_seconds()));
            let Some(why) = due else { continue };
            let (no, key_epoch) = (volume.no, volume.key_epoch);
            let command = Command::AskRotation { volume: no, key_epoch };
            match member.raft().propose_within(command, PATIENCE).await {
                Ok(Applied::Rejected(why)) => {
                    tracing::warn!(volume = volume.name, %why, "new keys are due, and the map refuses");
                }
                Ok(_) => tracing::info!(volume = volume.name, why, "new keys are due"),
                Err(error) => tracing::warn!(%error, "new keys are due, and nobody agrees"),
            }
        }
    }

    /// Why there are to be new keys instead of these.
    fn due(self, current: &KeyEpoch, now: u64) -> Option<&'static str> {
        let age = now.saturating_sub(current.timestamp);
        match self {
            Self { age: most, .. } if most > 0 && age >= most => Some("their age"),
            Self { blocks: most, .. } if most > 0 && current.sealed >= most => {
                Some("blocks sealed")
            }
            Self { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_map::Custody;

    #[test]
    fn keys_are_due_for_their_age_and_for_what_they_sealed() {
        let mut keys = KeyEpoch {
            no: KeyEpochNo(1),
            timestamp: 1000,
            since: 0,
            sealed: 999,
            shard_keys: Vec::new(),
            place_key: Vec::new(),
            custody: Custody::default(),
        };
        let policy = Policy { age: 100, blocks: 1000 };
        assert_eq!(policy.due(&keys, 1099), None);
        assert_eq!(policy.due(&keys, 1100), Some("their age"));
        assert_eq!(Policy { age: 0, ..policy }.due(&keys, u64::MAX), None);
        // A clock that was set back.
        assert_eq!(policy.due(&keys, 0), None);
        keys.sealed = 1000;
        assert_eq!(policy.due(&keys, 1000), Some("blocks sealed"));
        assert_eq!(Policy { blocks: 0, ..policy }.due(&keys, 1000), None);
    }

    #[test]
    fn what_is_forgotten_is_a_small_part_of_what_is_allowed() {
        let step = |blocks| Policy { age: 0, blocks }.step();
        assert_eq!([step(0), step(1), step(1600), step(1 << 30)], [1 << 20, 1, 100, 1 << 20]);
    }
}
