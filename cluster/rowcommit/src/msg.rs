//! What a coordinator and a store say to each other, and how it is written on the wire.
//!
//! Messages to one store travel first-in first-out in one numbered session; a store drops what
//! comes from an older session, so a prepare can never arrive after its own abort. All requests
//! that wait for one store travel in one [`Frame`], and a store makes all updates of a frame
//! durable with one sync.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smalti_storage::ids::{
    Epoch, GroupNo, Incarnation, RowAddr, Slot, SlotSet, Ver, VolumeNo, Wid,
};
use smalti_storage::store::{VecEntry, VersionMeta};

/// The version of this encoding; the first byte of every frame.
pub const WIRE_VERSION: u8 = 2;

/// Most row slots that one scan answers with.
pub const SCAN_LIMIT: usize = 1024;

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
    /// Put a version in place if the slot's newest is `expect`. `prepared` keeps the older
    /// versions and marks this one as undecided; otherwise it replaces all others.
    Install {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
        /// Its metadata.
        meta: VersionMeta,
        /// The bytes; empty is the absent record.
        record: Bytes,
        /// Undecided, beside what is there.
        prepared: bool,
        /// The slot's newest version now.
        expect: Ver,
    },
    /// Forget a row slot whose newest version is `expect`: no in-sync slot knows the row.
    Purge {
        /// The row.
        row: RowAddr,
        /// The slot.
        slot: Slot,
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
    /// Nothing; carries the watermark.
    Nop,
    /// Everything the store holds of the volume was compared with the others since it came up: it
    /// is under suspicion no more.
    Vetted {
        /// The start that was compared; the request may reach a later one.
        incarnation: Incarnation,
    },
}

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
        /// All versions at or below it are committed.
        watermark: Ver,
        /// Rows with an undecided version.
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
        /// Which of them is undecided.
        prepared: Option<Ver>,
    },
    /// The next row slots.
    Scanned {
        /// Row slots in order, with their newest version; `None` where the metadata is damaged.
        entries: Vec<(RowAddr, Slot, Option<VersionMeta>)>,
        /// Whether these were the last.
        done: bool,
    },
    /// Durable (prepares, aborts, installs), or simply done (`Release`, `Nop`).
    Ok,
    /// A lease, valid from when it was asked for.
    Granted,
    /// Refused.
    Rejected(Reject),
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
        matches!(self, Self::Fetch { .. } | Self::Versions { .. } | Self::Scan { .. })
    }

    /// Whether a store that accepts it binds itself to the epoch: every change, and a lease.
    /// `Promise` is not among them, because it may have to wait first.
    pub fn binds(&self) -> bool {
        !self.is_read()
            && !matches!(self, Self::Promise | Self::Release | Self::Nop | Self::Vetted { .. })
    }

    /// The row slot that it changes, if it does.
    pub fn changes(&self) -> Option<(RowAddr, Slot)> {
        match self {
            Self::PrepData { row, slot, .. }
            | Self::PrepDelta { row, slot, .. }
            | Self::PrepFull { row, slot, .. }
            | Self::Abort { row, slot, .. }
            | Self::Install { row, slot, .. }
            | Self::Purge { row, slot, .. } => Some((*row, *slot)),
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
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smalti_storage::store::RecordHash;

    fn row() -> RowAddr {
        RowAddr { group: GroupNo(3), stripe: 70_000, index: 200 }
    }

    fn ver(seq: u64) -> Ver {
        Ver { epoch: Epoch(5), seq }
    }

    fn wid(seq: u64) -> Wid {
        Wid { generation: 4, seq }
    }

    fn meta() -> VersionMeta {
        VersionMeta {
            ver: ver(9),
            base: ver(8),
            touched: SlotSet(0b101),
            snap: 2,
            wid: wid(77),
            vec: vec![VecEntry { ver: ver(9), wid: wid(77), snap: 2 }, VecEntry::default()],
            present: true,
            hash: RecordHash([7; 16]),
        }
    }

    /// One of every kind.
    fn asks() -> Vec<Ask> {
        let (row, slot, record) = (row(), Slot(1), Bytes::from_static(b"record"));
        let update = Update { ver: ver(9), touched: SlotSet(0b101), snap: 2 };
        let changed = vec![Changed { slot: Slot(0), base: ver(8), wid: wid(77) }];
        let vec = vec![VecEntry::default()];
        vec![
            Ask::Promise,
            Ask::Fetch { row, slot, want: Want::HeadMeta },
            Ask::Fetch { row, slot, want: Want::Head },
            Ask::Fetch { row, slot, want: Want::Version(ver(3)) },
            Ask::Versions { row, slot },
            Ask::Scan { group: GroupNo(3), after: Some((row, slot)), limit: 1024 },
            Ask::PrepData { row, slot, update, base: ver(8), wid: wid(77), record: record.clone() },
            Ask::PrepDelta { row, slot, update, changed, delta: record.clone() },
            Ask::PrepFull { row, slot, update, wid: wid(77), vec, record: record.clone() },
            Ask::Abort { row, slot, ver: ver(9) },
            Ask::Install { row, slot, meta: meta(), record, prepared: true, expect: ver(8) },
            Ask::Purge { row, slot, expect: ver(8) },
            Ask::Lease { duration_us: 1_500_000 },
            Ask::Release,
            Ask::Nop,
            Ask::Vetted { incarnation: Incarnation(3) },
        ]
    }

    fn answers() -> Vec<Answer> {
        let record = Bytes::from_static(b"record");
        let reject = Answer::Rejected;
        vec![
            Answer::Promised {
                incarnation: Incarnation(3),
                suspect: true,
                watermark: ver(7),
                prepared: vec![(row(), Slot(1))],
            },
            Answer::PromiseLater(1_515_000),
            Answer::Version { meta: meta(), record },
            Answer::Missing,
            Answer::Corrupt,
            Answer::Versions { versions: vec![(meta(), false)], prepared: Some(ver(9)) },
            Answer::Scanned {
                entries: vec![(row(), Slot(1), Some(meta())), (row(), Slot(2), None)],
                done: true,
            },
            Answer::Ok,
            Answer::Granted,
            reject(Reject::StaleEpoch { known: Epoch(6) }),
            reject(Reject::Base { have: ver(8) }),
            reject(Reject::Corrupt),
            reject(Reject::NoSpace),
            reject(Reject::OldWid),
            reject(Reject::Invalid),
        ]
    }

    fn frame() -> Frame {
        Frame {
            volume: VolumeNo(1),
            epoch: Epoch(5),
            incarnation: Incarnation(2),
            session: 300,
            watermark: ver(6),
            requests: (1..).zip(asks()).map(|(id, ask)| Request { id, ask }).collect(),
        }
    }

    fn reply() -> Reply {
        let answers = (1..).zip(answers()).collect();
        Reply { volume: VolumeNo(1), session: 300, incarnation: Incarnation(3), answers }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn unhex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pair = |pair: &[u8]| {
            let text = std::str::from_utf8(pair).expect("hexadecimal digits");
            u8::from_str_radix(text, 16).expect("hexadecimal digits")
        };
        digits.chunks(2).map(pair).collect()
    }

    #[test]
    fn every_message_survives_the_wire() {
        assert_eq!(Frame::decode(&frame().encode()), Ok(frame()));
        assert_eq!(Reply::decode(&reply().encode()), Ok(reply()));
    }

    /// What version 2 looks like. These bytes never change; a new format gets a new version.
    #[test]
    fn messages_of_version_2_are_read_and_written_as_ever() {
        let old = unhex(include_str!("../fixtures/frame.v2.hex"));
        assert_eq!(hex(&frame().encode()), hex(&old));
        assert_eq!(Frame::decode(&old), Ok(frame()));
        let old = unhex(include_str!("../fixtures/reply.v2.hex"));
        assert_eq!(hex(&reply().encode()), hex(&old));
        assert_eq!(Reply::decode(&old), Ok(reply()));
    }

    #[test]
    fn damage_is_refused() {
        let bytes = frame().encode();
        assert_eq!(Frame::decode(&[]), Err(WireError::Malformed));
        assert_eq!(Frame::decode(&bytes[..bytes.len() - 1]), Err(WireError::Malformed));
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(Frame::decode(&longer), Err(WireError::Malformed));
        longer[0] = 1;
        assert_eq!(Frame::decode(&longer), Err(WireError::Version(1)));
    }

    #[test]
    fn kinds_of_requests() {
        let reads = asks().into_iter().filter(Ask::is_read).count();
        let binding = asks().into_iter().filter(Ask::binds).count();
        assert_eq!((reads, binding), (5, 7));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = WIRE_VERSION;
            }
            if let Ok(frame) = Frame::decode(&bytes) {
                prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
            }
            if let Ok(reply) = Reply::decode(&bytes) {
                prop_assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
            }
        }

        #[test]
        fn flipped_bytes_never_panic(at in 0usize..2000, with in 1u8..) {
            for whole in [frame().encode(), reply().encode()] {
                let mut bytes = whole.to_vec();
                let at = at % bytes.len();
                bytes[at] ^= with;
                if let Ok(value) = Frame::decode(&bytes) {
                    prop_assert_eq!(Frame::decode(&value.encode()), Ok(value));
                }
                if let Ok(value) = Reply::decode(&bytes) {
                    prop_assert_eq!(Reply::decode(&value.encode()), Ok(value));
                }
            }
        }
    }
}
