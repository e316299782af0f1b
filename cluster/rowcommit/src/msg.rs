//! What a coordinator and a store say to each other, and how it is written on the wire.
//!
//! Messages to one store travel first-in first-out in one numbered session; a store drops what
//! comes from an older session, so a prepare can never arrive after its own abort. All requests
//! that wait for one store travel in one [`Frame`], and a store makes all updates of a frame
//! durable with one sync.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smalti_storage::code::Fingerprint;
use smalti_storage::ids::{
    Epoch, GroupNo, Incarnation, RowAddr, Slot, SlotSet, StoreId, Ver, VolumeNo, Wid,
};
use smalti_storage::store::{VecEntry, VersionMeta};

/// The version of this encoding; the first byte of every frame.
pub const WIRE_VERSION: u8 = 8;

/// Most versions that one scan answers with; a row slot more than that has comes alone.
pub const SCAN_LIMIT: usize = 1024;

/// In place of the undecided version of a slot whose row was found lost when it was settled: its newest
/// version is undecided, and stays so until a takeover can decide the row.
pub const FROZEN: Ver = Ver { epoch: Epoch(u32::MAX), seq: u64::MAX - 1 };

/// In place of the undecided version of a slot that could not tell what it holds when its row was
/// settled. Until the slot is restored nothing is built on it, and it counts for nothing in takeovers.
pub const UNREADABLE: Ver = Ver { epoch: Epoch(u32::MAX), seq: u64::MAX };

/// A coordinator's requests to one store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// The volume all requests are about.
    pub volume: VolumeNo,
    /// The epoch the coordinator acts in.
    pub epoch: Epoch,
    /// The start of the coordinator's process.
    pub incarnation: Incarnation,
    /// The session; grows with every reconnect.
    pub session: u64,
    /// Every version at or below it is committed. `NONE` while the store is not in sync.
    pub watermark: Ver,
    /// The requests, in order.
    pub requests: Vec<Request>,
}

impl Frame {
    /// Bytes of record data it carries.
    pub fn payload_len(&self) -> usize {
        self.requests.iter().map(|request| request.ask.payload_len()).sum()
    }
}

/// One numbered request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the coordinator; echoed by the answer.
    pub id: u64,
    /// What is asked.
    pub ask: Ask,
}

/// A store's answers to one session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reply {
    /// The volume.
    pub volume: VolumeNo,
    /// The session the requests came in.
    pub session: u64,
    /// The start of the store that answers.
    pub incarnation: Incarnation,
    /// Pairs of request number and answer.
    pub answers: Vec<(u64, Answer)>,
}

/// What a version is made of, apart from its base and vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Update {
    /// Its version.
    pub ver: Ver,
    /// Changed data slots and all parity slots.
    pub touched: SlotSet,
    /// The newest snapshot when it was issued.
    pub snap: u32,
}

/// One changed data slot, as a parity slot needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Changed {
    /// The data slot.
    pub slot: Slot,
    /// The version it must be at before.
    pub base: Ver,
    /// The client write that changes it.
    pub wid: Wid,
}

/// Which bytes a fetch wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Want {
    /// Metadata of the newest version.
    HeadMeta,
    /// The newest version.
    Head,
    /// This version.
    Version(Ver),
    /// Metadata of the version that a snapshot holds: the newest one stamped below its number.
    HeldMeta(u32),
    /// The version that a snapshot holds.
    Held(u32),
}

impl Want {
    /// Whether it wants no bytes.
    pub fn is_meta(self) -> bool {
        matches!(self, Self::HeadMeta | Self::HeldMeta(_))
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ask {
    /// Promise the frame's epoch: serve nothing older from now on.
    Promise,
    /// A record or its metadata.
    Fetch {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
        /// Which version, and whether its bytes.
        want: Want,
    },
    /// All versions of a row slot, each with its record verified.
    Versions {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
    },
    /// The next row slots of a group, in order, with their versions.
    Scan {
        /// The group.
        group: GroupNo,
        /// The row slot after which to go on.
        after: Option<(RowAddr, Slot)>,
        /// Most row slots to answer with.
        limit: u32,
    },
    /// The next rows of a group, in order, that have changed while slots of it were out, if those are
    /// all that a store may lack of a slot.
    Changed {
        /// The group.
        group: GroupNo,
        /// The slot.
        slot: Slot,
        /// The store.
        of: StoreId,
        /// The row after which to go on.
        after: Option<RowAddr>,
        /// Most rows to answer with.
        limit: u32,
    },
    /// What the store holds undecided of a group, and whether it is right but for what has changed
    /// since it was in sync.
    Undecided {
        /// The group.
        group: GroupNo,
    },
    /// Prepare a changed data slot. An empty record is the absent one.
    PrepData {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
        /// What is common to all slots of the update.
        update: Update,
        /// The version the slot must be at.
        base: Ver,
        /// The client write.
        wid: Wid,
        /// The bytes; empty is the absent record.
        record: Bytes,
    },
    /// Prepare a parity slot by adding `delta` to its record.
    PrepDelta {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
        /// What is common to all slots of the update.
        update: Update,
        /// The data slots that change.
        changed: Vec<Changed>,
        /// What to add to the record.
        delta: Bytes,
        /// The fingerprint of `delta`, computed from the data records and not from `delta`: so an
        /// error in coding it, or in adding it, is found before it is acknowledged.
        fingerprint: Fingerprint,
    },
    /// Prepare a slot of a row all of whose data slots change, whatever it held before.
    PrepFull {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
        /// What is common to all slots of the update.
        update: Update,
        /// The client write.
        wid: Wid,
        /// The version vector; empty on data slots.
        vec: Vec<VecEntry>,
        /// The bytes; empty is the absent record.
        record: Bytes,
    },
    /// Forget a prepared version.
    Abort {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
        /// The version.
        ver: Ver,
    },
    /// Forget the prepared version of a slot that can not tell which it has, if it is newer, and
    /// mark the slot as [`UNREADABLE`].
    AbortNewer {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
        /// What stays.
        than: Ver,
    },
    /// Hold on to what is undecided of a slot, whatever watermark comes: its row is lost. Or do so
    /// no more.
    Freeze {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
        /// Which of the two.
        frozen: bool,
    },
    /// Put an undecided version beside what is there, if the slot's newest is `expect`.
    Install {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
        /// Its metadata.
        meta: VersionMeta,
        /// The bytes; empty is the absent record.
        record: Bytes,
        /// The slot's newest version now.
        expect: Ver,
    },
    /// Make the slot hold these committed versions and nothing else, in one step, if its newest is
    /// `expect`: the newest that is to be, and those that snapshots hold. Without any the row slot is
    /// forgotten: no in-sync slot knows the row.
    Restore {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
        /// What it lacks, or has wrong: metadata, and bytes where they are not absent. One that
        /// is present and comes without bytes is lost: nobody can construct it any more.
        versions: Vec<(VersionMeta, Bytes)>,
        /// What it has and keeps.
        keep: Vec<Ver>,
        /// The slot's newest version now.
        expect: Ver,
    },
    /// Grant a read lease, or renew it.
    Lease {
        /// How long, in microseconds.
        duration_us: u64,
    },
    /// Give the read lease back: the coordinator has stopped serving.
    Release,
    /// Say that the sender is still the one to obey: every request of this kind that is answered with
    /// `Ok` proves that no other coordinator has been promised anything here until then.
    Confirm,
    /// Nothing; carries the watermark.
    Nop,
    /// Everything the store holds of the volume was compared with the others since it came up: it
    /// is under suspicion no more.
    Vetted {
        /// The start that was compared; the request may reach a later one.
        incarnation: Incarnation,
    },
    /// The next row slots of a group, as [`Ask::Scan`], with every record read and verified.
    Digest {
        /// The group.
        group: GroupNo,
        /// The row slot after which to go on.
        after: Option<(RowAddr, Slot)>,
        /// Most row slots to answer with.
        limit: u32,
    },
    /// The same of one row slot.
    Prove {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
    },
}

/// A version, and the fingerprint of its record if that verifies.
pub type Proven = (VersionMeta, Option<Fingerprint>);

/// A row slot with its versions, newest first; `None` where metadata is damaged.
pub type ProvenSlot = (RowAddr, Slot, Option<Vec<Proven>>);

/// A row slot in the answer to a scan.
pub type ScannedSlot = (RowAddr, Slot, Option<Vec<VersionMeta>>);

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Answer {
    /// Promised; with all that is undecided here.
    Promised {
        /// This start of the store.
        incarnation: Incarnation,
        /// The last run did not end in order, and nobody has compared its rows since: it may have
        /// lost what it acknowledged.
        suspect: bool,
        /// It is one, and its disk may have gone back behind what it had synced: its machine was
        /// started anew, or something is missing.
        went_back: bool,
        /// All versions at or below it are committed.
        watermark: Ver,
        /// Rows with an undecided version, or marked as [`UNREADABLE`].
        prepared: Vec<(RowAddr, Slot)>,
    },
    /// Not before this many microseconds have passed: a read lease of another coordinator, or
    /// one that was forgotten in a restart, may still be valid.
    PromiseLater(u64),
    /// A version, with its record where it was wanted. The record is empty when absent.
    Version {
        /// Its metadata.
        meta: VersionMeta,
        /// Its bytes.
        record: Bytes,
    },
    /// The row slot, or that version of it, is not here.
    Missing,
    /// It is here but does not verify.
    Corrupt,
    /// All versions, newest first.
    Versions {
        /// Each with whether its record verifies.
        versions: Vec<(VersionMeta, bool)>,
        /// Which of them is undecided; [`UNREADABLE`] where a takeover could not tell, [`FROZEN`]
        /// where it could not decide.
        prepared: Option<Ver>,
    },
    /// The next row slots.
    Scanned {
        /// Row slots in order, with their versions, newest first; `None` where metadata is damaged.
        entries: Vec<ScannedSlot>,
        /// Whether these were the last.
        done: bool,
    },
    /// The next rows that have changed.
    Changed {
        /// In order.
        rows: Vec<RowAddr>,
        /// Whether these were the last.
        done: bool,
    },
    /// Undecided rows.
    Undecided {
        /// All that the store lacks is what has changed since it was in sync.
        right: bool,
        /// The rows.
        rows: Vec<RowAddr>,
    },
    /// Durable (prepares, aborts, installs), or simply done (`Release`, `Nop`, `Confirm`).
    Ok,
    /// A lease, valid from when it was asked for.
    Granted,
    /// Refused.
    Rejected(Reject),
    /// The next row slots, read and verified.
    Digested {
        /// In order.
        entries: Vec<ProvenSlot>,
        /// Whether these were the last.
        done: bool,
    },
    /// All versions of a row slot; `None` where metadata is damaged.
    Proven(Option<Vec<Proven>>),
}

/// Why a store refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reject {
    /// The sender is not the coordinator of this epoch as far as the store knows.
    StaleEpoch {
        /// The newest epoch the store knows.
        known: Epoch,
    },
    /// The slot's newest version is not the expected one.
    Base {
        /// It is this one.
        have: Ver,
    },
    /// The version to build on does not verify.
    Corrupt,
    /// The disk is full.
    NoSpace,
    /// The block holds a newer client write already.
    OldWid,
    /// The request makes no sense.
    Invalid,
    /// The parity record would not have the fingerprint that it must have.
    Fingerprint,
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Another version of the encoding.
    #[error("wire version {0} is not spoken here")]
    Version(u8),
    /// Damaged, or not ours.
    #[error("malformed message")]
    Malformed,
}

macro_rules! wire {
    ($name:ident) => {
        impl $name {
            /// Writes it with its leading version byte.
            pub fn encode(&self) -> Bytes {
                let out = postcard::to_extend(self, vec![WIRE_VERSION])
                    .expect("a vector grows and every field is serialisable");
                Bytes::from(out)
            }

            /// Reads it.
            ///
            /// # Errors
            /// [`WireError`] for another version, damage or bytes left over.
            pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
                let (version, body) = bytes.split_first().ok_or(WireError::Malformed)?;
                if *version != WIRE_VERSION {
                    return Err(WireError::Version(*version));
                }
                match postcard::take_from_bytes(body) {
                    Ok((value, [])) => Ok(value),
                    _ => Err(WireError::Malformed),
                }
            }
        }
    };
}

wire!(Frame);
wire!(Reply);

impl Ask {
    /// Whether the request only reads, so that it needs no place in the order of updates.
    pub fn is_read(&self) -> bool {
        matches!(
            self,
            Self::Fetch { .. }
                | Self::Versions { .. }
                | Self::Scan { .. }
                | Self::Changed { .. }
                | Self::Confirm
                | Self::Digest { .. }
                | Self::Prove { .. }
        )
    }

    /// Whether it reads many rows.
    pub fn is_long(&self) -> bool {
        matches!(self, Self::Scan { .. } | Self::Changed { .. } | Self::Digest { .. })
    }

    /// Whether a store that accepts it binds itself to the epoch: every change, and a lease.
    /// `Promise` is not among them, because it may have to wait first.
    pub fn binds(&self) -> bool {
        !self.is_read()
            && !matches!(
                self,
                Self::Promise
                    | Self::Release
                    | Self::Nop
                    | Self::Undecided { .. }
                    | Self::Vetted { .. }
            )
    }

    /// The row slot that it changes, if it does.
    pub fn changes(&self) -> Option<(RowAddr, Slot)> {
        match self {
            Self::PrepData { row, slot, .. }
            | Self::PrepDelta { row, slot, .. }
            | Self::PrepFull { row, slot, .. }
            | Self::Abort { row, slot, .. }
            | Self::AbortNewer { row, slot, .. }
            | Self::Freeze { row, slot, .. }
            | Self::Install { row, slot, .. }
            | Self::Restore { row, slot, .. } => Some((*row, *slot)),
            _ => None,
        }
    }

    /// Bytes of record data it carries.
    pub fn payload_len(&self) -> usize {
        match self {
            Self::PrepData { record, .. }
            | Self::PrepFull { record, .. }
            | Self::Install { record, .. } => record.len(),
            Self::PrepDelta { delta, .. } => delta.len(),
            Self::Restore { versions, .. } => versions.iter().map(|(_, record)| record.len()).sum(),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests;
