//! The shard store: versions of row slots, kept durably.
//!
//! A store knows no volume names, no keys and no plaintext; it keeps, for each slot of a row it
//! was given, one or more immutable *versions*, and a little state per volume. Its users decide
//! what a version means. Two implementations stand behind one trait and pass one conformance
//! suite: [`memory::MemoryStore`] here, and the RocksDB store in the `smalti-rocks` crate.
//!
//! S1. [`ShardStore::commit`] is atomic, and durable when it returns unless the batch is relaxed.
//! S2. What a read returns was committed; a reader never sees part of a batch.
//! S3. A version, once written, never changes; only whole versions are deleted.

use crate::ids::{
    Epoch, GroupNo, Incarnation, RowAddr, RowSlot, RunId, Slot, SlotSet, StoreId, Ver, VolumeNo,
    Wid,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

pub mod memory;
mod space;
pub mod suite;

pub use space::Space;

/// One entry of a parity slot's version vector: which version of data slot `j` this parity covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VecEntry {
    /// Version of the data slot's record.
    pub ver: Ver,
    /// The client write that made it.
    pub wid: Wid,
    /// The newest snapshot when that write was issued.
    pub snap: u32,
}

/// Everything about a version but its record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VersionMeta {
    /// This version.
    pub ver: Ver,
    /// The version of this slot that it replaced.
    pub base: Ver,
    /// All slots the update touched: changed data slots and every parity slot.
    pub touched: SlotSet,
    /// The newest snapshot when the write was issued (0: none).
    pub snap: u32,
    /// The client write, on data slots; on parity slots the newest of the vector.
    pub wid: Wid,
    /// Parity slots: one entry per data slot. Empty on data slots.
    pub vec: Vec<VecEntry>,
    /// Whether the record holds bytes. An absent record is all zeroes and is not stored.
    pub present: bool,
    /// [`VersionMeta::compute_hash`] over identity, the fields above and the record.
    pub hash: RecordHash,
}

/// Detects bit rot, torn, lost and misdirected writes; not a defence against an adversary (the
/// record's AEAD tag is).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecordHash(pub [u8; 16]);

impl fmt::Debug for RecordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl VersionMeta {
    /// Computes the hash that belongs to this version at `at` with `record` (empty when absent).
    ///
    /// XXH3-128 over a fixed-layout encoding of place, every field but the hash, and the record's
    /// bytes, so that a record that lies at the wrong place or under another version never
    /// verifies.
    pub fn compute_hash(&self, at: RowSlot, record: &[u8]) -> RecordHash {
        use twox_hash::XxHash3_128;
        let mut head = Vec::with_capacity(96 + self.vec.len() * 28);
        head.extend_from_slice(&at.volume.0.to_be_bytes());
        head.extend_from_slice(&at.row.group.0.to_be_bytes());
        head.extend_from_slice(&at.row.stripe.to_be_bytes());
        head.extend_from_slice(&at.row.index.to_be_bytes());
        head.push(at.slot.0);
        for ver in [self.ver, self.base] {
            head.extend_from_slice(&ver.epoch.0.to_be_bytes());
            head.extend_from_slice(&ver.seq.to_be_bytes());
        }
        head.extend_from_slice(&self.touched.0.to_be_bytes());
        head.extend_from_slice(&self.snap.to_be_bytes());
        head.extend_from_slice(&self.wid.generation.to_be_bytes());
        head.extend_from_slice(&self.wid.seq.to_be_bytes());
        head.push(u8::from(self.present));
        for entry in &self.vec {
            head.extend_from_slice(&entry.ver.epoch.0.to_be_bytes());
            head.extend_from_slice(&entry.ver.seq.to_be_bytes());
            head.extend_from_slice(&entry.wid.generation.to_be_bytes());
            head.extend_from_slice(&entry.wid.seq.to_be_bytes());
            head.extend_from_slice(&entry.snap.to_be_bytes());
        }
        // Chained by seeding: the record is hashed on its own, so its bytes are not copied.
        let seed = XxHash3_128::oneshot(&head);
        #[expect(clippy::cast_possible_truncation, reason = "the low half of the hash is the seed")]
        let body = XxHash3_128::oneshot_with_seed(seed as u64, record);
        RecordHash((seed ^ body.rotate_left(1)).to_be_bytes())
    }

    /// Sets the hash; the last step in making a version.
    #[must_use]
    pub fn sealed_for(mut self, at: RowSlot, record: &[u8]) -> Self {
        self.hash = self.compute_hash(at, record);
        self
    }

    /// Whether `record` is what was written at `at` as this version.
    pub fn verifies(&self, at: RowSlot, record: &[u8]) -> bool {
        self.hash == self.compute_hash(at, record)
    }
}

/// Durable state of one volume on one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VolumeState {
    /// The newest epoch this store promised to; it serves nothing older.
    pub promised: Epoch,
    /// Every version at or below it is known committed (a lower bound).
    pub watermark: Ver,
    /// How many of the volume's deleted snapshots nothing is kept for any more.
    pub collected: u32,
    /// The watermark when the store came up after a crash, until it has been compared: all that it
    /// can say for itself.
    pub doubted: Option<Ver>,
}

/// Which rows of a group have changed while some of its slots were out of sync: whoever was in sync
/// with a slot when the index began, or later, lacks nothing of it but these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChangeIndex {
    /// The slots that were in sync when it began, or later, and who held them.
    pub seats: BTreeSet<(Slot, StoreId)>,
}

/// One change within a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub enum Change {
    /// Adds a version, or replaces it. `record` is empty exactly when `meta.present` is false.
    /// `fresh`: it is certainly not there yet, so there is no need to look.
    PutVersion { at: RowSlot, meta: VersionMeta, record: Bytes, fresh: bool },
    /// Removes a version and its record; removing one that is not there is no error.
    DeleteVersion { at: RowSlot, ver: Ver },
    /// Marks a version as prepared and not known committed; one mark per row slot.
    SetPrepared { at: RowSlot, ver: Ver },
    /// Clears the mark of a row slot.
    ClearPrepared { at: RowSlot },
    /// Forgets every version and the mark of one row slot, readable or not: the way out when its
    /// metadata is corrupt.
    DropSlot { at: RowSlot },
    /// Replaces the state of a volume.
    SetVolume { volume: VolumeNo, state: VolumeState },
    /// Begins the index of changed rows of a group, or replaces what it says of stores.
    SetIndex { volume: VolumeNo, group: GroupNo, index: ChangeIndex },
    /// Puts a row into its group's index.
    NoteChanged { volume: VolumeNo, row: RowAddr },
    /// Forgets the index of a group with all its rows.
    DropIndex { volume: VolumeNo, group: GroupNo },
    /// Forgets everything of one group of a volume.
    DropGroup { volume: VolumeNo, group: GroupNo },
    /// Forgets everything of a volume.
    DropVolume { volume: VolumeNo },
}

/// Changes that become durable together, applied in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Batch {
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// Need not be durable when [`ShardStore::commit`] returns; for lazy garbage collection. A
    /// relaxed batch is durable once any later batch that is not relaxed is: a crash loses only
    /// whole relaxed batches at the very end.
    pub relaxed: bool,
}

impl Batch {
    /// A batch that is durable when its commit returns.
    pub fn durable(changes: Vec<Change>) -> Self {
        Self { changes, relaxed: false }
    }

    /// A batch that a crash may lose, until a later durable one.
    pub fn relaxed(changes: Vec<Change>) -> Self {
        Self { changes, relaxed: true }
    }

    /// Refuses what no store may take, before anything is applied.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when a record and its `present` contradict each other.
    pub fn check(&self) -> Result<(), StoreError> {
        for change in &self.changes {
            if let Change::PutVersion { at, meta, record, .. } = change
                && meta.present == record.is_empty()
            {
                let ver = meta.ver;
                let what = if meta.present { "present without bytes" } else { "absent with bytes" };
                return Err(StoreError::Refused(format!("version {ver} of {at} is {what}")));
            }
        }
        Ok(())
    }
}

/// How a store came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Opened {
    /// The store's identity, drawn when its directory was made.
    pub id: StoreId,
    /// This start's number: one more than the last one's, or what [`ShardStore::admit`] was given.
    pub incarnation: Incarnation,
    /// Whether the last run ended with [`ShardStore::close`]. A store that did not may have lost
    /// the tail of what it acknowledged if its disk lied.
    pub clean: bool,
    /// It did not end so, and its disk may have gone back behind what it had synced: the machine was
    /// started anew since the store last was known to be whole, so what a disk that lied had not
    /// written yet is gone; or something is missing. If only the process died, the system still had all
    /// of it.
    pub went_back: bool,
    /// The last run that was admitted, of which this disk is what remained; then this one.
    pub run: RunId,
    /// Names that were announced since, the newest first: of starts that were broken off.
    pub announced: Announced,
}

/// The last names that a store announced and was not admitted under; nil where there are fewer.
pub type Announced = [RunId; 4];

/// For stores: a name more. More starts than that in a row are not broken off between their
/// registration and the disk.
pub fn announce_too(announced: Announced, run: RunId) -> Announced {
    let [first, second, third, _] = announced;
    [run, first, second, third]
}

/// What the cluster made of a store's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Admission {
    /// The run that begins.
    pub run: RunId,
    /// Its number, not less than the store's own.
    pub incarnation: Incarnation,
    /// Whether the disk is known to be what the last run left behind.
    pub clean: bool,
}

/// For stores: refuses an admission under a number that was used.
pub fn admitted_before(admission: Admission, last: Incarnation) -> StoreError {
    let what = format!("run {} was admitted as {}", admission.run, admission.incarnation);
    StoreError::Refused(format!("{what}, and this start is {last}"))
}

/// One row slot with all its versions, newest first.
pub type SlotVersions = (RowSlot, Vec<VersionMeta>);

/// What a store may answer instead of data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk failed; the process must stop, because a failed write or sync can not be retried.
    #[error("store i/o failed: {0}")]
    Io(String),
    /// A part of its tables can not be read, and so not be told what it lacks: the store is to be made anew.
    #[error("store is damaged: {0}")]
    Damaged(String),
    /// Bytes are there but are not what was written.
    #[error("stored {what} of {at} does not verify")]
    Corrupt {
        /// Which row slot.
        at: RowSlot,
        /// Which part: metadata or record.
        what: &'static str,
    },
    /// The directory is not a store, or another one's, or of a newer format.
    #[error("{0}")]
    Refused(String),
}

/// A shard store. Methods block; callers run them off the async runtime.
pub trait ShardStore: Send + Sync + 'static {
    /// How this store came up.
    fn opened(&self) -> Opened;

    /// Notes the name under which this start is about to be registered; durable when it returns. If
    /// the start is broken off before it is admitted, the next one can tell the cluster that it knows
    /// that name, and is not taken for an older disk.
    ///
    /// # Errors
    /// When the disk fails, or the store has ended.
    fn announce(&self, run: RunId) -> Result<(), StoreError>;

    /// Begins to serve as what the cluster has registered this start as; durable when it returns.
    /// Before it is, nothing may be served: the next start could not tell the disk from one that is
    /// older.
    ///
    /// # Errors
    /// When the disk fails, or the number is one that the store has used.
    fn admit(&self, admission: Admission) -> Result<(), StoreError>;

    /// All versions of a row slot, newest first; empty when never written.
    fn versions(&self, at: RowSlot) -> Result<Vec<VersionMeta>, StoreError>;

    /// The newest version of a row slot.
    fn head(&self, at: RowSlot) -> Result<Option<VersionMeta>, StoreError>;

    /// The `limit` newest versions of each of several row slots, newest first; the answers stand
    /// in the order of the questions. Worth asking for rows that lie together at once. Of
    /// one that is asked for, older ones are not looked at: they may be unreadable.
    fn newest(&self, slots: &[RowSlot], limit: usize) -> Vec<Result<Vec<VersionMeta>, StoreError>> {
        let newest = |at: &RowSlot| {
            if limit == 1 {
                return Ok(self.head(*at)?.into_iter().collect());
            }
            let mut versions = self.versions(*at)?;
            versions.truncate(limit);
            Ok(versions)
        };
        slots.iter().map(newest).collect()
    }

    /// One version's metadata.
    fn meta(&self, at: RowSlot, ver: Ver) -> Result<Option<VersionMeta>, StoreError>;

    /// The metadata of several versions at once; the answers stand in the order of the questions.
    fn metas(&self, wanted: &[(RowSlot, Ver)]) -> Vec<Result<Option<VersionMeta>, StoreError>> {
        wanted.iter().map(|(at, ver)| self.meta(*at, *ver)).collect()
    }

    /// A version's record bytes, *not* verified against its hash: the caller has the metadata and
    /// must. `None` when the version is not there or has no bytes.
    fn record(&self, at: RowSlot, ver: Ver) -> Result<Option<Bytes>, StoreError>;

    /// Several records at once; the answers stand in the order of the questions.
    fn records(&self, wanted: &[(RowSlot, Ver)]) -> Vec<Result<Option<Bytes>, StoreError>>;

    /// Up to `limit` row slots of a group after `after`, in order of row and slot. Fewer than
    /// `limit` means the end only when the next call answers nothing: a page ends early before a
    /// row slot whose metadata is corrupt, and only a page that would begin with it is the error
    /// [`StoreError::Corrupt`]; go on after the row slot it names.
    fn scan(
        &self,
        volume: VolumeNo,
        group: GroupNo,
        after: Option<RowSlot>,
        limit: usize,
    ) -> Result<Vec<SlotVersions>, StoreError>;

    /// All prepared marks of a volume, in order.
    fn prepared(&self, volume: VolumeNo) -> Result<Vec<(RowSlot, Ver)>, StoreError>;

    /// The prepared mark of one row slot.
    fn prepared_at(&self, at: RowSlot) -> Result<Option<Ver>, StoreError> {
        let all = self.prepared(at.volume)?;
        Ok(all.into_iter().find(|(marked, _)| *marked == at).map(|(_, ver)| ver))
    }

    /// The volume's state; the default when it was never set.
    fn volume(&self, volume: VolumeNo) -> Result<VolumeState, StoreError>;

    /// The index of changed rows of a group; `None` when there is none that can be read.
    fn index(&self, volume: VolumeNo, group: GroupNo) -> Result<Option<ChangeIndex>, StoreError>;

    /// Up to `limit` rows of a group's index after `after`, in order. Fewer are the end.
    fn changed(
        &self,
        volume: VolumeNo,
        group: GroupNo,
        after: Option<RowAddr>,
        limit: usize,
    ) -> Result<Vec<RowAddr>, StoreError>;

    /// Every volume with state or rows here.
    fn volumes(&self) -> Result<Vec<VolumeNo>, StoreError>;

    /// Makes a batch durable, atomically. An error leaves the store unusable: stop the process.
    fn commit(&self, batch: Batch) -> Result<(), StoreError>;

    /// Space below the store.
    fn space(&self) -> Result<Space, StoreError>;

    /// From now on and for a second the store rewrites what it has, for its own sake, at so many bytes a
    /// second; `None`: as fast as it can.
    fn pace_rewriting(&self, bytes_per_sec: Option<u64>) {
        let _ = bytes_per_sec;
    }

    /// Bytes that it has rewritten so, or waits to.
    fn rewritten(&self) -> u64 {
        0
    }

    /// Whether commits wait for what it rewrites, or soon will.
    fn is_behind(&self) -> bool {
        false
    }

    /// Ends the run and leaves the clean marker.
    fn close(&self) -> Result<(), StoreError>;
}
