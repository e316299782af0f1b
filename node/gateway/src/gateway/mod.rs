//! The gateway of one attached volume, on the node of its coordinator.

mod read;
mod reseal;
mod salt;
mod status;
mod write;
mod zero;

pub use reseal::Resealed;

#[cfg(test)]
mod tests;

use crate::device::{BlockDevice, BoxFuture};
use crate::error::GatewayError;
use crate::freshness::Freshness;
use crate::range_lock::{RangeGuard, RangeLocks};
use crate::rows::Rows;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::ready;
use rand::CryptoRng;
use salt::Salter;
use smalti_nbd::{Extent, ReadReply};
use smalti_rowcommit::Time;
use smalti_storage::geometry::{Geometry, Layout};
use smalti_storage::ids::KeyEpochNo;
use smalti_storage::seal::{SealIdentity, Sealer, VolumeKeys};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Blocks of one piece: larger requests are cut, and their pieces travel together. 4 MiB.
const PIECE_BLOCKS: u64 = 1024;

/// From so many blocks on, sealing and opening happen in a task of their own, so that another
/// worker can do them: at 16 blocks that is about 40 us of work for less than 1 us of handing over.
/// A blocking pool would add two thread wake-ups per request and compete with the workers for the
/// same cores.
const SPAWN_BLOCKS: usize = 16;

/// Blocks sealed or opened before others on this worker get their turn; about 0.15 ms.
const TURN_BLOCKS: usize = 64;

/// Admission counts a write as at least so many blocks, which bounds the number of writes too.
const WRITE_COST_MIN: usize = 16;

/// How much one gateway takes on, and for how long it uses a salt.
#[derive(Clone, Debug)]
pub struct GatewayLimits {
    /// Blocks of writes that are being carried out; further writes wait, in their order. Counts a
    /// write as at least 16 blocks.
    pub write_blocks_in_flight: usize,
    /// Blocks whose newest write is remembered, to refuse older records.
    pub remembered_blocks: usize,
    /// Blocks sealed under one salt.
    pub blocks_per_salt: u64,
    /// How long one salt is used.
    pub salt_age: Duration,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            write_blocks_in_flight: 16 << 10,
            remembered_blocks: 64 << 10,
            // Short of the sealer's own limit by more than is ever in flight, so that a block
            // counted under the old salt never meets that limit.
            blocks_per_salt: smalti_storage::seal::BLOCKS_PER_SALT - (1 << 24),
            salt_age: Duration::from_secs(24 * 3600),
        }
    }
}

/// What a gateway is made of.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// The volume's shape.
    pub geometry: Geometry,
    /// The volume's size in bytes.
    pub size: u64,
    /// Cluster and volume, bound into every record.
    pub identity: SealIdentity,
    /// The gateway's generation, never used before for this volume.
    pub generation: u32,
    /// The number of its first write; at least 1.
    pub first_seq: u64,
    /// The newest snapshot of the volume (0: none).
    pub snap: u32,
    /// The present, for the age of the first salt.
    pub now: Time,
    /// Limits.
    pub limits: GatewayLimits,
}

/// Counters for people and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GatewayStats {
    /// Records that did not authenticate.
    pub forged: u64,
    /// Records older than what was written, or missing.
    pub stale: u64,
    /// Times a new salt was drawn after the first.
    pub resalted: u64,
}

/// The gateway of one attached volume. Dropping it wipes the keys as soon as the last call under
/// way has ended.
pub struct Gateway {
    inner: Arc<Inner>,
}

struct Inner {
    layout: Layout,
    identity: SealIdentity,
    generation: u32,
    sealer: Sealer,
    salter: Salter,
    rows: Arc<dyn Rows>,
    size: AtomicU64,
    snap: AtomicU32,
    next_seq: AtomicU64,
    locks: Arc<RangeLocks>,
    admission: Arc<Semaphore>,
    admission_max: usize,
    fresh: Freshness,
    forged: AtomicU64,
    stale: AtomicU64,
    runtime: Handle,
}

/// No write is under way while this is held; new ones wait. For a snapshot, or before the keys or
/// the coordinator change.
pub struct HeldWrites {
    inner: Arc<Inner>,
    _all: RangeGuard,
}

impl Gateway {
    /// A gateway that seals under `keys` and keeps its records in `rows`. `random` yields salts
    /// and nonces and must be seeded from the operating system.
    ///
    /// # Panics
    /// Outside of a tokio runtime: writes whose client left go on as its tasks.
    pub fn new(
        config: GatewayConfig,
        keys: Arc<VolumeKeys>,
        rows: Arc<dyn Rows>,
        random: Box<dyn CryptoRng + Send>,
    ) -> Self {
        let GatewayConfig { geometry, size, identity, generation, first_seq, snap, now, limits } =
            config;
        let layout = Layout::new(geometry, keys.place());
        let (salter, salt) = Salter::new(random, now, &limits);
        let admission_max = limits.write_blocks_in_flight.max(WRITE_COST_MIN);
        Self {
            inner: Arc::new(Inner {
                layout,
                identity,
                generation,
                sealer: Sealer::new(identity, keys, salt),
                salter,
                rows,
                size: AtomicU64::new(size),
                snap: AtomicU32::new(snap),
                next_seq: AtomicU64::new(first_seq.max(1)),
                locks: Arc::default(),
                admission: Arc::new(Semaphore::new(admission_max)),
                admission_max,
                fresh: Freshness::new(generation, limits.remembered_blocks),
                forged: AtomicU64::new(0),
                stale: AtomicU64::new(0),
                runtime: Handle::current(),
            }),
        }
    }

    /// The volume's size in bytes.
    pub fn size(&self) -> u64 {
        self.inner.size.load(Ordering::Relaxed)
    }

    /// Takes the new size of a volume that was resized.
    pub fn set_size(&self, size: u64) {
        self.inner.size.store(size, Ordering::Relaxed);
    }

    /// Takes the keys of a rotation. The placement key is another matter and never changes.
    pub fn set_keys(&self, keys: Arc<VolumeKeys>) {
        self.inner.sealer.set_keys(keys);
    }

    /// Forgets the keys of key epochs before one, which nothing is sealed under any more.
    pub fn forget_keys_before(&self, key_epoch: KeyEpochNo) {
        let keys = self.inner.sealer.keys();
        if keys.epochs().any(|no| no < key_epoch) {
            self.inner.sealer.set_keys(Arc::new(keys.without_older(key_epoch)));
        }
    }

    /// The key epoch that is sealed under, and how many blocks were here under one of its keys, at most.
    pub fn most_sealed(&self) -> (KeyEpochNo, u64) {
        let keys = self.inner.sealer.keys();
        (keys.current(), keys.most_sealed())
    }

    /// Lets time pass: draws a new salt when the one in use is too old. Any interval that is
    /// short against a day will do.
    ///
    /// # Errors
    /// When the random source repeats itself; nothing must be sealed with it any more.
    pub fn tick(&self, now: Time) -> Result<(), GatewayError> {
        self.inner.salter.tick(&self.inner.sealer, now)
    }

    /// Waits for the writes under way and keeps later ones waiting until the answer is dropped.
    pub async fn hold_writes(&self) -> HeldWrites {
        let inner = Arc::clone(&self.inner);
        let all = inner.locks.acquire(0..u64::MAX).await;
        HeldWrites { inner, _all: all }
    }

    /// Counters since the gateway began.
    pub fn stats(&self) -> GatewayStats {
        GatewayStats {
            forged: self.inner.forged.load(Ordering::Relaxed),
            stale: self.inner.stale.load(Ordering::Relaxed),
            resalted: self.inner.salter.resalted(),
        }
    }
}

impl HeldWrites {
    /// Stamps all later writes with a newer snapshot.
    pub fn set_snap(&self, snap: u32) {
        self.inner.snap.fetch_max(snap, Ordering::Relaxed);
    }
}

impl BlockDevice for Gateway {
    fn read(&self, offset: u64, length: u32) -> BoxFuture<Result<ReadReply, GatewayError>> {
        match self.inner.check(offset, length.into()) {
            Ok(true) => Arc::clone(&self.inner).read(offset, length.into()).boxed(),
            Ok(false) => ready(Ok(ReadReply::new())).boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn write(&self, offset: u64, data: Bytes) -> BoxFuture<Result<(), GatewayError>> {
        match self.inner.check(offset, data.len() as u64) {
            Ok(true) => Arc::clone(&self.inner).write(offset, data),
            Ok(false) => ready(Ok(())).boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn zero(&self, offset: u64, length: u64) -> BoxFuture<Result<(), GatewayError>> {
        match self.inner.check(offset, length) {
            Ok(true) => Arc::clone(&self.inner).zero(offset, length),
            Ok(false) => ready(Ok(())).boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> BoxFuture<Result<Vec<Extent>, GatewayError>> {
        match self.inner.check(offset, length) {
            Ok(true) if extents_max > 0 => {
                Arc::clone(&self.inner).block_status(offset, length, extents_max).boxed()
            }
            Ok(_) => ready(Err(GatewayError::Invalid)).boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn flush(&self) -> BoxFuture<Result<(), GatewayError>> {
        // A write is answered when it is durable, so there is nothing to flush.
        ready(Ok(())).boxed()
    }
}

impl Inner {
    /// Whether a range inside the volume is not empty; an error if it is not inside.
    fn check(&self, offset: u64, length: u64) -> Result<bool, GatewayError> {
        let end = offset.checked_add(length).ok_or(GatewayError::Invalid)?;
        // Block arithmetic must not overflow at the far end, whatever size the map gives.
        let size = self.size.load(Ordering::Relaxed).min(1 << 62);
        if end <= size { Ok(length > 0) } else { Err(GatewayError::Invalid) }
    }

    /// Waits until a write of so many blocks may begin. Only with its range held: who is admitted
    /// must never wait for a range whose holder waits for admission.
    async fn admit(&self, blocks: usize) -> OwnedSemaphorePermit {
        let cost = blocks.max(WRITE_COST_MIN).min(self.admission_max) as u32;
        let permit = Arc::clone(&self.admission).acquire_many_owned(cost).await;
        permit.expect("the semaphore is never closed")
    }

    fn row_blocks(&self) -> u64 {
        self.layout.geometry().data.into()
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("volume", &self.inner.identity.volume)
            .field("generation", &self.inner.generation)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for HeldWrites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldWrites").finish_non_exhaustive()
    }
}
