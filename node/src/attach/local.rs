//! Gateways of the volumes this node has the seat of.

use super::AttachError;
use super::cluster::MemberCluster;
use bytes::Bytes;
use smalti_cluster::clock;
use smalti_cluster::member::{Seat, SeatError, UseGuard};
use smalti_cluster::{CoderHandle, Member};
use smalti_gateway::{BlockDevice, BoxFuture, Gateway, GatewayError};
use smalti_map::Volume;
use smalti_map::view::MapView;
use smalti_storage::ids::{KeyEpochNo, NodeId, VolumeNo};
use smalti_volume::{ShardMetadata, unshard_volume};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// How long taking a seat may take: an election after a node's death, and the wait for the read
/// leases it granted.
const SEAT_PATIENCE: Duration = Duration::from_secs(12);

/// For the map to show a renewed seat.
const RENEW_PAUSE: Duration = Duration::from_millis(20);

/// Custodians may hear of a new coordinator later than the coordinator itself: refusals within this
/// time of getting the seat are asked about again. It is several heartbeats of the map's.
const CUSTODY_PATIENCE: Duration = Duration::from_millis(750);

/// A custodian that was silent for so long is not asked: as long as one that is asked may take to answer.
const AWAY_AFTER: Duration = Duration::from_secs(2);

/// Between two times that it is said of a volume that it stays sealed.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How often a gateway is told the time, for the age of its salt.
const TICK_EVERY: Duration = Duration::from_secs(60);

/// A gateway in use; the volume's seat stays here while it lives.
pub(crate) struct Local {
    gateway: Gateway,
    generation: u32,
    _in_use: UseGuard,
    tick: AbortHandle,
}

impl Drop for Local {
    fn drop(&mut self) {
        // Otherwise it would outlive the gateway by a minute, with whatever lay on the stack that it was put
        // together on.
        self.tick.abort();
    }
}

impl std::ops::Deref for Local {
    type Target = Gateway;

    fn deref(&self) -> &Gateway {
        &self.gateway
    }
}

/// Who serves a volume.
pub(crate) enum Place {
    /// This node.
    Here(Arc<Local>),
    /// Another node, for clients of its own.
    There(NodeId),
}

type Opened = BTreeMap<VolumeNo, (u32, Weak<Local>)>;

/// The gateways of this node, one per volume.
#[derive(Clone)]
pub struct LocalGateways {
    member: Member,
    /// Per volume: its gateway while somebody uses it, and the last generation that had one.
    open: Arc<Mutex<Opened>>,
    /// When it was said last of a volume that it stays sealed.
    told: Arc<std::sync::Mutex<BTreeMap<VolumeNo, Instant>>>,
}

impl std::fmt::Debug for LocalGateways {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalGateways").finish_non_exhaustive()
    }
}

impl LocalGateways {
    /// None yet.
    pub fn new(member: Member) -> Self {
        Self { member, open: Arc::default(), told: Arc::default() }
    }

    /// Finds out who serves a volume; opens its gateway when this node does.
    ///
    /// # Errors
    /// [`AttachError`].
    pub(crate) async fn place(&self, no: VolumeNo) -> Result<Place, AttachError> {
        let deadline = Instant::now() + SEAT_PATIENCE;
        let mut refused_from = None;
        // In use before the seat is asked for and until it is settled, so that it is not handed
        // over in between.
        let _asking = self.member.use_volume(no);
        loop {
            let in_use = self.member.use_volume(no);
            let coder = match self.member.take_seat(no, SEAT_PATIENCE).await? {
                Seat::Mine(coder) => coder,
                Seat::Theirs(node) => return Ok(Place::There(node)),
            };
            let map = self.member.map();
            let volume = map.volumes.get(&no).ok_or(AttachError::NoVolume)?;
            let mut open = self.open.lock().await;
            if let Some((generation, local)) = open.get(&no)
                && *generation == volume.writer_gen
            {
                if let Some(local) = local.upgrade() {
                    return Ok(Place::Here(local));
                }
                // The generation of a gateway that has gone: its write numbers are used up.
                drop(open);
                if Instant::now() >= deadline {
                    return Err(AttachError::Seat(SeatError::Unsettled(
                        "the seat was not renewed in time".into(),
                    )));
                }
                self.member.renew_seat(volume).await;
                tokio::time::sleep(RENEW_PAUSE).await;
                continue;
            }
            let generation = volume.writer_gen;
            let error = match self.open_gateway(Arc::clone(&map), volume, coder, in_use).await {
                Ok(local) => {
                    open.insert(no, (generation, Arc::downgrade(&local)));
                    return Ok(Place::Here(local));
                }
                Err(error) => error,
            };
            drop(open);
            // Another node may have asked for the seat just before it was in use here.
            let now = self.member.map();
            let seat_moved = now.volumes.get(&no).is_none_or(|now| now.epoch != volume.epoch);
            let since = *refused_from.get_or_insert_with(Instant::now);
            let again = if seat_moved {
                Instant::now() < deadline
            } else {
                error.is_sealed() && since.elapsed() < CUSTODY_PATIENCE
            };
            if !again {
                if error.is_sealed() {
                    self.tell_sealed(volume, &error);
                }
                return Err(error);
            }
            tracing::debug!(volume = volume.name, %error, "the gateway is opened again");
            tokio::time::sleep(RENEW_PAUSE).await;
        }
    }

    /// Gateways here forget the keys of key epochs that have ended. One that is being opened just now will
    /// the next time.
    pub(crate) fn forget_ended_keys(&self, map: &MapView) {
        let Ok(open) = self.open.try_lock() else { return };
        for (no, (generation, local)) in open.iter() {
            let volume = map.volumes.get(no).filter(|volume| volume.writer_gen == *generation);
            let oldest = volume.and_then(|volume| volume.key_epochs.keys().next());
            if let (Some(local), Some(oldest)) = (local.upgrade(), oldest) {
                local.forget_keys_before(*oldest);
            }
        }
    }

    /// What gateways here have sealed: of which volume, under which generation and key epoch, and how many blocks
    /// under one key at most. `None` while one is being opened.
    pub(crate) fn sealed(&self) -> Option<Vec<(VolumeNo, u32, KeyEpochNo, u64)>> {
        let open = self.open.try_lock().ok()?;
        let of = |(no, (generation, local)): (&VolumeNo, &(u32, Weak<Local>))| {
            let (key_epoch, blocks) = local.upgrade()?.most_sealed();
            Some((*no, *generation, key_epoch, blocks))
        };
        Some(open.iter().filter_map(of).collect())
    }

    /// Returns once gateways of another generation of the volume are let in.
    pub(crate) async fn superseded(&self, no: VolumeNo, generation: u32) {
        let mut maps = self.member.raft().watch();
        loop {
            let current = maps.borrow_and_update().volumes.get(&no).map(|v| v.writer_gen);
            if current != Some(generation) || maps.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether enough custodians of all its keys answer, and can use their shares. Those are not asked for shares that would be of no use
    /// without the others'.
    fn check_custodians(&self, map: &MapView, volume: &Volume) -> Result<(), AttachError> {
        let barred = self.member.barred_custodians();
        for custody in volume.key_epochs.values().map(|epoch| &epoch.custody) {
            let holders = custody.holders.iter().map(|holder| holder.node);
            let (there, away): (Vec<_>, Vec<_>) = holders.partition(|node| {
                let heard = self.member.beats().silent_for(*node) < AWAY_AFTER;
                heard && !barred.contains_key(node)
            });
            if there.len() < usize::from(custody.threshold) {
                let name = |node: NodeId| {
                    map.nodes
                        .get(&node)
                        .map_or_else(|| node.to_string(), |entry| entry.name.clone())
                };
                let told = |node: NodeId| match barred.get(&node) {
                    Some(why) => format!("{} ({why})", name(node)),
                    None => name(node),
                };
                let away: Vec<String> = away.into_iter().map(told).collect();
                let (reachable, needed) = (there.len(), custody.threshold);
                return Err(AttachError::Sealed { reachable, needed, away: away.join(", ") });
            }
        }
        Ok(())
    }

    /// Says that a volume stays sealed, not each time that somebody tries.
    fn tell_sealed(&self, volume: &Volume, error: &AttachError) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let last = told.get(&volume.no);
        if last.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            told.insert(volume.no, Instant::now());
            tracing::warn!(volume = volume.name, %error, "the volume can not be opened");
        }
    }

    async fn open_gateway(
        &self,
        map: MapView,
        volume: &Volume,
        coder: CoderHandle,
        in_use: UseGuard,
    ) -> Result<Arc<Local>, AttachError> {
        self.check_custodians(&map, volume)?;
        let metadata = ShardMetadata::of(volume)?;
        let cluster = MemberCluster::with_seat(self.member.clone(), map, coder);
        let gateway = unshard_volume(&cluster, volume.id, &metadata).await?;
        tracing::info!(volume = volume.name, generation = volume.writer_gen, "volume attached");
        let generation = volume.writer_gen;
        Ok(Arc::new_cyclic(|local| {
            let tick = tokio::spawn(tick(Weak::clone(local))).abort_handle();
            Local { gateway, generation, _in_use: in_use, tick }
        }))
    }
}

impl Local {
    /// The generation its writes carry.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// As a device that keeps the gateway in use.
    pub(crate) fn device(self: &Arc<Self>) -> Arc<dyn BlockDevice> {
        Arc::new(LocalDevice(Arc::clone(self)))
    }
}

async fn tick(local: Weak<Local>) {
    loop {
        tokio::time::sleep(TICK_EVERY).await;
        let Some(local) = local.upgrade() else { return };
        if let Err(error) = local.gateway.tick(clock::now()) {
            tracing::error!(%error, "no new salt for the gateway");
        }
    }
}

struct LocalDevice(Arc<Local>);

impl BlockDevice for LocalDevice {
    fn read(
        &self,
        offset: u64,
        length: u32,
    ) -> BoxFuture<Result<smalti_nbd::ReadReply, GatewayError>> {
        self.0.gateway.read(offset, length)
    }

    fn write(&self, offset: u64, data: Bytes) -> BoxFuture<Result<(), GatewayError>> {
        self.0.gateway.write(offset, data)
    }

    fn zero(&self, offset: u64, length: u64) -> BoxFuture<Result<(), GatewayError>> {
        self.0.gateway.zero(offset, length)
    }

    fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> BoxFuture<Result<Vec<smalti_nbd::Extent>, GatewayError>> {
        self.0.gateway.block_status(offset, length, extents_max)
    }

    fn flush(&self) -> BoxFuture<Result<(), GatewayError>> {
        self.0.gateway.flush()
    }
}
