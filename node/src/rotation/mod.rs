//! Keys of the volumes that this node coordinates: new ones when they are wanted, records of older key epochs
//! sealed anew, and the end of key epochs that nothing is sealed under.
//!
//! Q1. That new keys are wanted is in the map: whoever coordinates sees to it, however often that changes.
//! Q2. A key epoch begins with a new generation of gateways, so records of older generations are all that
//!     may be sealed under older keys.
//! Q3. A key epoch ends only after a look at all blocks, by one coordinator in one generation, that found
//!     none that may be sealed under it.

mod pass;
mod policy;

pub(crate) use policy::Policy;

use crate::attach::{AttachError, Local, LocalGateways, MemberCluster, Place};
use pass::Pass;
use smalti_cluster::member::KeyProgress;
use smalti_cluster::{Member, clock};
use smalti_map::{Applied, ClusterMap, Command, Coordinator, KeyEpoch, Rejection, Volume, limits};
use smalti_raft::ProposeError;
use smalti_rowcommit::coordinator::OpError;
use smalti_storage::ids::{Epoch, VolumeNo};
use smalti_volume::{ShardMetadata, VolumeError, rotate_keys};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often the map is looked at for volumes with something to do.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Between two tries of what failed, at first and at most.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Between two looks that find the same: blocks that can not be sealed anew just now. At first and at most.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(60);

/// After new keys could not be made, they are not tried again sooner while older records are sealed anew; every
/// try ends a look, and a look has to come to its end for older keys to go. At first and at most.
const TRY_AGAIN: Duration = Duration::from_secs(5);
const TRY_AGAIN_MAX: Duration = Duration::from_secs(3600);

/// A custodian that was silent for so long is away.
const AWAY: Duration = Duration::from_secs(1);

/// How long a takeover may take that a new gateway waits for.
const SETTLE_PATIENCE: Duration = Duration::from_secs(30);
const SETTLE_PAUSE: Duration = Duration::from_millis(20);

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
    #[error("as many key epochs are in use as can be; records have to be sealed anew first")]
    Full,
    #[error("another master secret is to be made first")]
    Master,
    #[error("{0}, and every custodian has to keep a share of new keys")]
    Custodian(String),
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
    let urgent = Urgent::default();
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(every.tick()).await.is_some() {
        running.retain(|_, task| !task.is_finished());
        let map = member.map();
        local.forget_ended_keys(&map);
        for volume in map.volumes.values().filter(|volume| has_work(volume)) {
            if coordinates(&member, volume) && !running.contains_key(&volume.no) {
                let (member, local) = (member.clone(), local.clone());
                let keeper = Keeper {
                    member,
                    local,
                    no: volume.no,
                    stop: stop.clone(),
                    gateway: None,
                    dealt: None,
                    urgent: urgent.clone(),
                    refused: 0,
                };
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
    /// Kept while there is work: with nobody else attached, a new one would need an election.
    gateway: Option<Arc<Local>>,
    /// Keys that every custodian has its share of, and that the map may yet take.
    dealt: Option<KeyEpoch>,
    urgent: Urgent,
    /// How often in a row new keys could not be made while there were older ones.
    refused: u32,
}

/// How many looks for the sake of revoked keys are under way on this node. Others wait for them.
#[derive(Clone, Debug, Default)]
struct Urgent(Arc<AtomicUsize>);

/// One of them.
struct Urgency(Urgent);

impl Urgent {
    fn begin(&self) -> Urgency {
        self.0.fetch_add(1, Ordering::Relaxed);
        Urgency(self.clone())
    }

    fn is_under_way(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Urgency {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Keeper {
    async fn run(mut self) {
        let (mut failures, mut looks) = (0, (0, Epoch::default()));
        while let Some(volume) = self.volume() {
            let began = Instant::now();
            let pause = match self.turn(&volume).await {
                Ok(found) if found.goes_on => {
                    (failures, looks.0) = (0, 0);
                    Duration::ZERO
                }
                Ok(_) => {
                    // What is in sync, and which snapshots there are, changes with the epoch.
                    looks = if looks.1 == volume.epoch {
                        (looks.0 + 1, looks.1)
                    } else {
                        (0, volume.epoch)
                    };
                    failures = 0;
                    // Nor does it read metadata for more than half of the time.
                    let again = longer(LOOK_AGAIN, looks.0, LOOK_AGAIN_MAX).max(began.elapsed());
                    if volume.rotate { PAUSE_MAX.min(again) } else { again }
                }
                Err(RotationError::Moved) => break,
                Err(error) => {
                    tracing::warn!(volume = volume.name, %error, "keys are not renewed yet");
                    self.member.tell_keys(self.no, |told| told.why = Some(error.to_string()));
                    failures += 1;
                    longer(PAUSE, failures - 1, PAUSE_MAX)
                }
            };
            if self.is_draining() {
                // The seat goes where it is to, and whoever has it then goes on.
                self.gateway = None;
            }
            if !self.pause(pause, &volume).await {
                break;
            }
        }
        self.member.forget_keys(self.no);
    }

    /// Waits, but not while there is something new; false: it is to end.
    async fn pause(&self, pause: Duration, before: &Volume) -> bool {
        let (began, deadline) = (Instant::now(), Instant::now() + pause);
        let news = |now: &Volume| {
            let moved = now.epoch != before.epoch && began.elapsed() >= LOOK_AGAIN;
            moved || now.rotate && !before.rotate || now.revoked != before.revoked
        };
        while Instant::now() < deadline && !self.volume().is_none_or(|now| news(&now)) {
            let step = LOOK_EVERY.min(deadline - Instant::now());
            if self.stop.run_until_cancelled(tokio::time::sleep(step)).await.is_none() {
                return false;
            }
        }
        !self.stop.is_cancelled()
    }

    fn is_draining(&self) -> bool {
        let map = self.member.map();
        map.nodes.get(&self.member.node()).is_some_and(|node| node.draining)
    }

    /// The volume, while this node coordinates it and there is something to do.
    fn volume(&self) -> Option<Volume> {
        let map = self.member.map();
        let volume = map.volumes.get(&self.no)?;
        (has_work(volume) && coordinates(&self.member, volume)).then(|| volume.clone())
    }

    async fn turn(&mut self, volume: &Volume) -> Result<Turn, RotationError> {
        let mut why = None;
        if volume.rotate {
            match self.rotate(volume).await {
                Ok(()) => {
                    self.refused = 0;
                    return Ok(Turn { goes_on: true });
                }
                // Older records are sealed anew meanwhile.
                Err(error) if volume.key_epochs.len() > 1 => {
                    tracing::warn!(volume = volume.name, %error, "no new keys yet");
                    why = Some(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        let (gateway, volume) = self.gateway().await?;
        let coder = self.member.coder(self.no).ok_or(RotationError::Moved)?;
        self.member.tell_keys(self.no, |told| told.why.clone_from(&why));
        let revoked = volume.revoked;
        let urgent = self.urgent.clone();
        let mut pass = Pass::new(&self.member, &volume, &coder, Arc::clone(&gateway), urgent);
        // A wish that was tried just now does not end it.
        self.refused = if why.is_some() { self.refused + 1 } else { 0 };
        let after = longer(TRY_AGAIN, self.refused, TRY_AGAIN_MAX);
        pass.again = why.is_some().then(|| Instant::now() + after);
        let stopped = self.stop.run_until_cancelled(pass.run()).await;
        let found = stopped.ok_or(RotationError::Moved)??;
        if !found.is_clean() {
            return Ok(Turn { goes_on: found.goes_on() });
        }
        let (generation, below) = (gateway.generation(), volume.key_epoch);
        let command = Command::RetireKeyEpochs { volume: self.no, generation, below };
        match self.member.raft().propose(command).await? {
            Applied::Rejected(why) => Err(RotationError::Refused(why)),
            _ => {
                tracing::info!(volume = volume.name, %below, "older key epochs have ended");
                if let Some(revoked) = revoked {
                    let seconds = clock::unix_seconds().saturating_sub(revoked.since);
                    tracing::info!(volume = volume.name, seconds, "nothing is under revoked keys");
                }
                Ok(Turn { goes_on: false })
            }
        }
    }

    /// A gateway of the volume's present generation, once the coordinator serves.
    async fn gateway(&mut self) -> Result<(Arc<Local>, Volume), RotationError> {
        let now = self.volume().ok_or(RotationError::Moved)?;
        let kept = self.gateway.take().filter(|kept| kept.generation() == now.writer_gen);
        let gateway = match kept {
            Some(gateway) => gateway,
            None => match self.local.place(self.no).await? {
                Place::Here(gateway) => gateway,
                Place::There(_) => return Err(RotationError::Moved),
            },
        };
        self.gateway = Some(Arc::clone(&gateway));
        // To be given a gateway may have taken an election.
        let deadline = Instant::now() + SETTLE_PATIENCE;
        loop {
            let map = self.member.map();
            let volume = map.volumes.get(&self.no).ok_or(RotationError::Moved)?;
            if volume.writer_gen > gateway.generation() || Instant::now() > deadline {
                return Err(RotationError::Moved);
            }
            if volume.writer_gen == gateway.generation() && coordinates(&self.member, volume) {
                return Ok((gateway, volume.clone()));
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
    }

    /// Makes a new key epoch.
    async fn rotate(&mut self, volume: &Volume) -> Result<(), RotationError> {
        let map = self.member.map();
        can_begin(&self.member, &map, volume)?;
        let next = Some(volume.key_epoch.0 + 1);
        // What was dealt to custodians of before may name nodes that are gone, and come of another master secret.
        let share_epoch = map.custodians.share_epoch;
        let fits =
            |dealt: &KeyEpoch| Some(dealt.no.0) == next && dealt.custody.share_epoch == share_epoch;
        let key_epoch = match self.dealt.take().filter(fits) {
            Some(dealt) => dealt,
            None => {
                let metadata = ShardMetadata::of(volume)?;
                let cluster = MemberCluster::new(self.member.clone(), map);
                rotate_keys(&cluster, volume.id, &metadata).await?
            }
        };
        self.dealt = Some(key_epoch.clone());
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

/// Whether a key epoch could begin just now: there is room for one, and every custodian could keep a share.
fn can_begin(member: &Member, map: &ClusterMap, volume: &Volume) -> Result<(), RotationError> {
    if volume.key_epochs.len() >= limits::KEY_EPOCHS {
        return Err(RotationError::Full);
    }
    if map.custodians.new_master {
        return Err(RotationError::Master);
    }
    // Whoever is asked before one that can not would keep a share for nothing.
    let barred = member.barred_custodians();
    for node in map.custodians.nodes() {
        let name = map.nodes.get(&node).map_or("a custodian", |entry| &entry.name);
        if node != member.node() && member.beats().silent_for(node) > AWAY {
            return Err(RotationError::Custodian(format!("{name} is away")));
        }
        if let Some(why) = barred.get(&node) {
            return Err(RotationError::Custodian(format!("the custodian of {name} is {why}")));
        }
    }
    Ok(())
}

/// What a turn came to.
struct Turn {
    /// There is more to do at once.
    goes_on: bool,
}

fn longer(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

#[cfg(test)]
mod tests;
