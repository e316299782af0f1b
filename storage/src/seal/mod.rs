//! Sealing: a block's plaintext to its record, and back.
//!
//! AES-256-GCM. Every shard (one column of one stripe) is sealed under its own *session key*,
//! `HKDF-SHA256(salt = session salt, ikm = column key,
//! info = "smalti session key v1" | format | volume | key epoch | stripe | slot)`. The salt is 128
//! random bits drawn at each attach and again after 2^32 blocks.
//!
//! The nonce is a 64-bit counter of this sealer and 32 fresh random bits; the counter alone makes
//! it unique under a salt. Nothing in it comes from a version or an address, so no roll-back,
//! restore, clone or retry can bring a (key, nonce) pair back.
//!
//! The additional data is `format | cluster | volume | block | key epoch | snapshot | generation |
//! write sequence`, all of fixed length. It names no node and no row, so that a record may move.
//!
//! E1. No two blocks are sealed with the same key and nonce.
//! E2. A record opens only as the block, write and volume it was sealed as.
//! E3. Plaintext reaches the caller's buffer only after its tag was verified.

use crate::ids::{ClusterId, GroupNo, KeyEpochNo, RowAddr, Slot, VolumeId, Wid};
use crate::record::v1::FORMAT;
use crate::record::{BLOCK_LEN, HEADER_LEN, RECORD_LEN, Record, RecordError, RecordHeader};
use bytes::Bytes;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

#[cfg_attr(smalti_bench_copy, path = "copy.rs")]
mod cache;
mod volume_keys;

pub use crate::keys::ShardKey;
pub use volume_keys::{EpochKeys, KeysError, VolumeKeys};

use cache::{Session, SessionCache};

/// Whether records are not sealed at all: so in programs that are built to measure what sealing costs, with
/// `RUSTFLAGS='--cfg smalti_bench_copy'`. No feature of a crate brings that about.
pub const COPIES: bool = cfg!(smalti_bench_copy);

/// How many blocks one salt may seal.
pub const BLOCKS_PER_SALT: u64 = 1 << 32;

const AAD_LEN: usize = 61;

/// Whose blocks a sealer seals; bound into every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
}

/// What one sealed block is, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealPlace {
    /// The block's address within the volume, counted in blocks.
    pub block: u64,
    /// The row that holds it.
    pub row: RowAddr,
    /// The data slot that holds it.
    pub slot: Slot,
    /// The newest snapshot of the volume (0: none).
    pub snap: u32,
    /// The client write.
    pub wid: Wid,
}

/// Why a block was not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The plaintext is not one block.
    #[error("a block has {BLOCK_LEN} bytes, not {0}")]
    Length(usize),
    /// 2^32 blocks were sealed: the caller draws a new salt and calls [`Sealer::resalt`].
    #[error("the session salt is used up and a new one is needed")]
    SaltUsedUp,
    /// The salt given to [`Sealer::resalt`] is the one in use.
    #[error("the new session salt is the old one")]
    SaltRepeated,
    /// No column of the volume is there.
    #[error("no shard key for {group} {slot}")]
    NoColumn {
        /// The group asked for.
        group: GroupNo,
        /// The slot asked for.
        slot: Slot,
    },
    /// The write sequence does not fit in a record.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Why a record was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The bytes are not a record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The buffer is not one block.
    #[error("a block has {BLOCK_LEN} bytes, not {0}")]
    Length(usize),
    /// The record names a key epoch whose keys are not here: destroyed, or not yet fetched.
    #[error("no keys of key epoch {0} to open block {1}")]
    NoEpoch(KeyEpochNo, u64),
    /// No column of the volume is there.
    #[error("no shard key for {group} {slot}")]
    NoColumn {
        /// The group asked for.
        group: GroupNo,
        /// The slot asked for.
        slot: Slot,
    },
    /// The record is not what was sealed as this block here: altered, swapped or of another key.
    #[error("the record of block {0} does not authenticate")]
    Forged(u64),
}

/// An opened record.
#[derive(Clone, PartialEq, Eq)]
pub enum Opened {
    /// Never written, or trimmed: reads as zeroes.
    Absent,
    /// The block's [`BLOCK_LEN`] bytes of plaintext.
    Data(Vec<u8>),
}

/// Seals and opens the blocks of one attached volume. All methods may be called by many threads
/// at once.
pub struct Sealer {
    identity: SealIdentity,
    state: RwLock<State>,
}

/// What changes over an attach. Both parts are taken together, so a block is sealed under the
/// counter of the very salt that its key came from.
#[derive(Clone)]
struct State {
    keys: Arc<Keys>,
    salt: Arc<Salt>,
}

/// The keys with the session keys made from them: dropped together, so that a destroyed key epoch
/// leaves nothing behind in a cache.
struct Keys {
    volume: Arc<VolumeKeys>,
    sessions: SessionCache,
}

struct Salt {
    bytes: [u8; 16],
    sealed: AtomicU64,
}

impl Sealer {
    /// A sealer for an attach. `salt` is 16 fresh random bytes.
    pub fn new(identity: SealIdentity, keys: Arc<VolumeKeys>, salt: [u8; 16]) -> Self {
        let state = State { keys: Keys::new(keys), salt: Salt::new(salt) };
        Self { identity, state: RwLock::new(state) }
    }

    /// Seals one block under the current key epoch to a record of [`RECORD_LEN`] bytes. `random`
    /// is 4 fresh random bytes.
    ///
    /// A write that is sent again is sent as the record that was sealed first: sealing twice would
    /// give two different records for one client write.
    ///
    /// # Errors
    /// When the salt is used up, the plaintext is not a block, or the place is none.
    pub fn seal(
        &self,
        place: &SealPlace,
        plaintext: &[u8],
        random: [u8; 4],
    ) -> Result<Bytes, SealError> {
        if plaintext.len() != BLOCK_LEN {
            return Err(SealError::Length(plaintext.len()));
        }
        let State { keys, salt } = self.state();
        let key_epoch = keys.volume.current();
        let (group, slot) = (place.row.group, place.slot);
        let session =
            Session { salt: salt.bytes, key_epoch, group, stripe: place.row.stripe, slot };
        let cipher = keys
            .volume
            .column(key_epoch, group, slot)
            .map(|key| keys.sessions.cipher(session, self.identity.volume, key))
            .ok_or(SealError::NoColumn { group, slot })?;
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&salt.next()?.to_be_bytes());
        nonce[8..].copy_from_slice(&random);
        let mut header = RecordHeader {
            snap: place.snap,
            key_epoch,
            wid: place.wid,
            salt: salt.bytes,
            nonce,
            tag: [0; 16],
        };
        // Encoded once before the work, so that a sequence that does not fit costs nothing.
        header.encode()?;
        let mut record = vec![0; RECORD_LEN];
        let aad = self.additional_data(place.block, &header);
        header.tag = cipher.encrypt(nonce, &aad, plaintext, &mut record[HEADER_LEN..]);
        record[..HEADER_LEN].copy_from_slice(&header.encode()?);
        keys.volume.count(group, slot);
        Ok(record.into())
    }

    /// Opens the record of `block`, found at `row` and `slot`.
    ///
    /// # Errors
    /// Unless the record is absent or was sealed for exactly this block of this volume.
    pub fn open(
        &self,
        block: u64,
        row: RowAddr,
        slot: Slot,
        record: &[u8],
    ) -> Result<Opened, OpenError> {
        let mut out = vec![0; BLOCK_LEN];
        let header = self.open_into(block, row, slot, record, &mut out)?;
        Ok(if header.is_some() { Opened::Data(out) } else { Opened::Absent })
    }

    /// Opens a record into `out`, one block long, which is zeroed when the record is absent.
    /// Gives the header, authentic with the rest, unless it is absent.
    ///
    /// # Errors
    /// As [`Sealer::open`]; `out` is then as it was.
    pub fn open_into(
        &self,
        block: u64,
        row: RowAddr,
        slot: Slot,
        record: &[u8],
        out: &mut [u8],
    ) -> Result<Option<RecordHeader>, OpenError> {
        if out.len() != BLOCK_LEN {
            return Err(OpenError::Length(out.len()));
        }
        let Record::Present { header, ciphertext } = Record::decode(record)? else {
            out.fill(0);
            return Ok(None);
        };
        let keys = self.state().keys;
        let RecordHeader { salt, key_epoch, .. } = header;
        if !keys.volume.has_epoch(key_epoch) {
            return Err(OpenError::NoEpoch(key_epoch, block));
        }
        let cipher = keys
            .volume
            .column(key_epoch, row.group, slot)
            .map(|key| {
                let session =
                    Session { salt, key_epoch, group: row.group, stripe: row.stripe, slot };
                keys.sessions.cipher(session, self.identity.volume, key)
            })
            .ok_or(OpenError::NoColumn { group: row.group, slot })?;
        let aad = self.additional_data(block, &header);
        match cipher.decrypt(header.nonce, &aad, ciphertext, header.tag, out) {
            true => Ok(Some(header)),
            false => Err(OpenError::Forged(block)),
        }
    }

    /// Goes on under a new salt: 16 fresh random bytes. Records under the old one still open.
    ///
    /// # Errors
    /// When the salt is the one in use, which would repeat its nonces.
    pub fn resalt(&self, salt: [u8; 16]) -> Result<(), SealError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.salt.bytes == salt {
            return Err(SealError::SaltRepeated);
        }
        state.salt = Salt::new(salt);
        Ok(())
    }

    /// Takes the keys of a rotation, or of a destroyed key epoch. Session keys made from the old
    /// ones are wiped when the last call that uses them ends.
    pub fn set_keys(&self, keys: Arc<VolumeKeys>) {
        let keys = Keys::new(keys);
        self.state.write().unwrap_or_else(PoisonError::into_inner).keys = keys;
    }

    /// The keys in use.
    pub fn keys(&self) -> Arc<VolumeKeys> {
        Arc::clone(&self.state().keys.volume)
    }

    /// How many blocks were sealed under the current salt.
    pub fn sealed(&self) -> u64 {
        self.state().salt.sealed.load(Ordering::Relaxed).min(BLOCKS_PER_SALT)
    }

    fn state(&self) -> State {
        // Nothing that runs under this lock can leave the state half changed.
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn additional_data(&self, block: u64, header: &RecordHeader) -> [u8; AAD_LEN] {
        let mut data = [0; AAD_LEN];
        data[0] = FORMAT;
        data[1..17].copy_from_slice(self.identity.cluster.0.as_bytes());
        data[17..33].copy_from_slice(self.identity.volume.0.as_bytes());
        data[33..41].copy_from_slice(&block.to_be_bytes());
        data[41..45].copy_from_slice(&header.key_epoch.0.to_be_bytes());
        data[45..49].copy_from_slice(&header.snap.to_be_bytes());
        data[49..53].copy_from_slice(&header.wid.generation.to_be_bytes());
        data[53..61].copy_from_slice(&header.wid.seq.to_be_bytes());
        data
    }
}

impl Keys {
    fn new(volume: Arc<VolumeKeys>) -> Arc<Self> {
        Arc::new(Self { volume, sessions: SessionCache::default() })
    }
}

impl Salt {
    fn new(bytes: [u8; 16]) -> Arc<Self> {
        Arc::new(Self { bytes, sealed: AtomicU64::new(0) })
    }

    /// The next counter. Each is given out once, whatever the order of threads, because the
    /// addition is atomic; it could wrap only after 2^64 refused calls.
    fn next(&self) -> Result<u64, SealError> {
        let counter = self.sealed.fetch_add(1, Ordering::Relaxed);
        if counter < BLOCKS_PER_SALT { Ok(counter) } else { Err(SealError::SaltUsedUp) }
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "Absent",
            Self::Data(_) => "Data(redacted)",
        })
    }
}

#[cfg(test)]
mod tests;
