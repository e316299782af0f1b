//! Keys of the volumes that this node coordinates: new ones when they are wanted, records of older key epochs
//! sealed anew, and the end of key epochs that nothing is sealed under.
//!
//! Q1. That new keys are wanted is in the map: whoever coordinates sees to it, however often that changes.
//! Q2. A key epoch begins with a new generation of gateways, so records of older generations are all that
//!     may be sealed under older keys.
//! Q3. A key epoch ends only after a look at all blocks, by one coordinator in one generation, that found
//!     none that may be sealed under it.

mod pass;

use crate::attach::{AttachError, LocalGateways, MemberCluster, Place};
use pass::Pass;
use smalti_cluster::Member;
use smalti_cluster::member::KeyProgress;
use smalti_map::{Applied, Command, Coordinator, Rejection, Volume};
use smalti_raft::ProposeError;
use smalti_rowcommit::coordinator::OpError;
use smalti_storage::ids::VolumeNo;
use smalti_volume::{ShardMetadata, VolumeError, rotate_keys};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often the map is looked at for volumes with something to do.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Between two tries of what failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Between two looks at blocks that can not be sealed anew just now: their slots are out of sync, say.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// Proposals of the same keys, while the volume moves on for other reasons.
const PROPOSALS: usize = 5;

/// Why it does not go on just now.
#[derive(Debug, thiserror::Error)]
enum RotationError {
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("blocks can not be listed: {0}")]
    List(OpError),
    #[error("sealing anew: {0}")]
    Reseal(#[from] smalti_gateway::GatewayError),
    #[error("the cluster does not answer: {0}")]
    Propose(#[from] ProposeError),
    #[error("the map refuses: {0}")]
    Refused(Rejection),
    /// For whoever does now.
    #[error("this node does not coordinate the volume any more")]
    Moved,
}

/// Sees to the keys of all volumes that this node coordinates, until `stop`.
pub(crate) async fn keep(
    member: Member,
    local: LocalGateways,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let mut running: BTreeMap<VolumeNo, JoinHandle<()>> = BTreeMap::new();
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(every.tick()).await.is_some() {
        running.retain(|_, task| !task.is_finished());
        let map = member.map();
        for volume in map.volumes.values().filter(|volume| has_work(volume)) {
            if coordinates(&member, volume) && !running.contains_key(&volume.no) {
                let (member, local) = (member.clone(), local.clone());
                let keeper = Keeper { member, local, no: volume.no, stop: stop.clone() };
                running.insert(volume.no, tasks.spawn(keeper.run()));
            }
        }
    }
}

fn has_work(volume: &Volume) -> bool {
    volume.rotate || volume.key_epochs.len() > 1
}

fn coordinates(member: &Member, volume: &Volume) -> bool {
    let me =
        member.incarnation().map(|incarnation| Coordinator { node: member.node(), incarnation });
    me.is_some() && volume.coordinator == me && volume.activated
}

/// Whoever sees to the keys of one volume.
struct Keeper {
    member: Member,
    local: LocalGateways,
    no: VolumeNo,
    stop: CancellationToken,
}

impl Keeper {
    async fn run(self) {
        while let Some(volume) = self.volume() {
            let pause = match self.turn(&volume).await {
                Ok(pause) => pause,
                Err(RotationError::Moved) => break,
                Err(error) => {
                    tracing::warn!(volume = volume.name, %error, "keys are not renewed yet");
                    self.member.tell_keys(self.no, |told| told.why = Some(error.to_string()));
                    PAUSE
                }
            };
            if self.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
        }
        self.member.forget_keys(self.no);
    }

    /// The volume, while this node coordinates it and there is something to do.
    fn volume(&self) -> Option<Volume> {
        let map = self.member.map();
        let volume = map.volumes.get(&self.no)?;
        (has_work(volume) && coordinates(&self.member, volume)).then(|| volume.clone())
    }

    /// Answers after which time there may be more to do.
    async fn turn(&self, volume: &Volume) -> Result<Duration, RotationError> {
        if volume.rotate {
            self.rotate(volume).await?;
            return Ok(Duration::ZERO);
        }
        let gateway = match self.local.place(self.no).await? {
            Place::Here(gateway) => gateway,
            Place::There(_) => return Err(RotationError::Moved),
        };
        // The gateway may be of a newer map than the one this began with.
        let Some(volume) = self.volume() else { return Err(RotationError::Moved) };
        let coder = self.member.coder(self.no).ok_or(RotationError::Moved)?;
        if volume.writer_gen != gateway.generation() {
            return Ok(Duration::ZERO);
        }
        let mut pass = Pass::new(&self.member, &volume, &coder, Arc::clone(&gateway));
        let stopped = self.stop.run_until_cancelled(pass.run()).await;
        let found = stopped.ok_or(RotationError::Moved)??;
        if !found.is_clean() {
            let again = if found.goes_on() { Duration::ZERO } else { LOOK_AGAIN };
            return Ok(again);
        }
        let (generation, below) = (gateway.generation(), volume.key_epoch);
        let command = Command::RetireKeyEpochs { volume: self.no, generation, below };
        match self.member.raft().propose(command).await? {
            Applied::Rejected(why) => Err(RotationError::Refused(why)),
            _ => {
                gateway.forget_keys_before(below);
                tracing::info!(volume = volume.name, %below, "older key epochs have ended");
                Ok(Duration::ZERO)
            }
        }
    }

    /// Makes a new key epoch.
    async fn rotate(&self, volume: &Volume) -> Result<(), RotationError> {
        let metadata = ShardMetadata::of(volume)?;
        let cluster = MemberCluster::new(self.member.clone(), self.member.map());
        let key_epoch = rotate_keys(&cluster, volume.id, &metadata).await?;
        let no = key_epoch.no;
        for _ in 0..PROPOSALS {
            let Some(now) = self.volume() else { return Err(RotationError::Moved) };
            let key_epoch = Box::new(key_epoch.clone());
            let command = Command::AddKeyEpoch { volume: self.no, epoch: now.epoch, key_epoch };
            match self.member.raft().propose(command).await? {
                Applied::Rejected(Rejection::StaleEpoch { .. }) => {}
                Applied::Rejected(why) => return Err(RotationError::Refused(why)),
                _ => {
                    tracing::info!(volume = volume.name, key_epoch = %no, "a new key epoch begins");
                    self.member.tell_keys(self.no, |told| *told = KeyProgress::default());
                    return Ok(());
                }
            }
        }
        Err(RotationError::Moved)
    }
}
