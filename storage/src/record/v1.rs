//! Record format 1: a 64-byte header and one block of ciphertext.
//!
//! | Bytes | Field |
//! |---|---|
//! | 0 | format, 1 |
//! | 1 | present, 1 |
//! | 2..6 | snapshot sequence |
//! | 6..10 | key epoch |
//! | 10..14 | gateway generation of the client write |
//! | 14..20 | sequence of the client write, 48 bits |
//! | 20..36 | session salt |
//! | 36..48 | nonce |
//! | 48..64 | AES-GCM tag |
//! | 64..4160 | ciphertext |
//!
//! Numbers are big endian. The absent record (never written, or trimmed) is all zeroes: presence
//! is inside the coded bytes, so a lost slot of a thin volume is rebuilt like any other, and the
//! parity of absent records is itself all zeroes.

use crate::ids::{KeyEpochNo, Wid};

/// Bytes of a block of a volume.
pub const BLOCK_LEN: usize = 4096;
/// Bytes before the ciphertext.
pub const HEADER_LEN: usize = 64;
/// Bytes of a record.
pub const RECORD_LEN: usize = HEADER_LEN + BLOCK_LEN;
/// The absent record.
pub static ABSENT: [u8; RECORD_LEN] = [0; RECORD_LEN];
/// The number of this format; another one in programs that seal nothing, so that neither reads what the other wrote.
pub const FORMAT: u8 = if crate::seal::COPIES { 0xff } else { 1 };

const PRESENT: u8 = 1;
const SEQ_LIMIT: u64 = 1 << 48;

// The coder works in pieces of 64 bytes and must never have to pad a record.
const _: () = assert!(RECORD_LEN == 4160 && RECORD_LEN.is_multiple_of(64));

/// What stands before the ciphertext of a present record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// The newest snapshot of the volume when the block was written (0: none).
    pub snap: u32,
    /// The generation of shard keys it is sealed under.
    pub key_epoch: KeyEpochNo,
    /// The client write that it is.
    pub wid: Wid,
    /// Salt of the session key.
    pub salt: [u8; 16],
    /// Nonce under the session key.
    pub nonce: [u8; 12],
    /// Authenticates ciphertext and additional data.
    pub tag: [u8; 16],
}

/// A decoded record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// Never written, or trimmed: reads as zeroes.
    Absent,
    /// Holds a sealed block.
    Present {
        /// Its header.
        header: RecordHeader,
        /// [`BLOCK_LEN`] bytes.
        ciphertext: &'a [u8],
    },
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Not [`RECORD_LEN`] bytes.
    #[error("a record has {RECORD_LEN} bytes, not {0}")]
    Length(usize),
    /// Written by a newer program, or no record at all.
    #[error("record format {0} is not known")]
    UnknownFormat(u8),
    /// The presence byte is neither 0 nor 1.
    #[error("record presence is {0}, neither 0 nor 1")]
    Presence(u8),
    /// The record says absent but is not all zeroes.
    #[error("an absent record has a byte that is not zero at {0}")]
    DirtyAbsent(usize),
    /// The write sequence needs more than 48 bits.
    #[error("write sequence {0} does not fit in 48 bits")]
    Sequence(u64),
}

impl RecordHeader {
    /// The bytes before the ciphertext.
    ///
    /// # Errors
    /// When the write sequence does not fit.
    pub fn encode(&self) -> Result<[u8; HEADER_LEN], RecordError> {
        if self.wid.seq >= SEQ_LIMIT {
            return Err(RecordError::Sequence(self.wid.seq));
        }
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = FORMAT;
        bytes[1] = PRESENT;
        bytes[2..6].copy_from_slice(&self.snap.to_be_bytes());
        bytes[6..10].copy_from_slice(&self.key_epoch.0.to_be_bytes());
        bytes[10..14].copy_from_slice(&self.wid.generation.to_be_bytes());
        bytes[14..20].copy_from_slice(&self.wid.seq.to_be_bytes()[2..]);
        bytes[20..36].copy_from_slice(&self.salt);
        bytes[36..48].copy_from_slice(&self.nonce);
        bytes[48..64].copy_from_slice(&self.tag);
        Ok(bytes)
    }
}

impl<'a> Record<'a> {
    /// Reads a record. Says nothing about its authenticity: any header that can be told apart
    /// decodes, and opening it decides.
    ///
    /// # Errors
    /// When the bytes are not a record of a known format.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let Ok(bytes) = <&[u8; RECORD_LEN]>::try_from(bytes) else {
            return Err(RecordError::Length(bytes.len()));
        };
        match (bytes[0], bytes[1]) {
            // Compared as a whole first, which is many times faster than byte by byte.
            (0, _) if *bytes == ABSENT => Ok(Self::Absent),
            (0, _) | (FORMAT, 0) => match bytes.iter().position(|byte| *byte != 0) {
                None => Ok(Self::Absent),
                Some(at) => Err(RecordError::DirtyAbsent(at)),
            },
            (FORMAT, PRESENT) => {
                let (header, ciphertext) = bytes.split_at(HEADER_LEN);
                Ok(Self::Present { header: decode_header(header), ciphertext })
            }
            (FORMAT, other) => Err(RecordError::Presence(other)),
            (other, _) => Err(RecordError::UnknownFormat(other)),
        }
    }

    /// The header of a present record.
    pub const fn header(&self) -> Option<&RecordHeader> {
        match self {
            Self::Absent => None,
            Self::Present { header, .. } => Some(header),
        }
    }
}

/// Cuts a field out of a header; the caller names bounds inside it.
fn field<const N: usize>(header: &[u8], from: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&header[from..from + N]);
    out
}

fn decode_header(header: &[u8]) -> RecordHeader {
    let mut seq = [0; 8];
    seq[2..].copy_from_slice(&header[14..20]);
    RecordHeader {
        snap: u32::from_be_bytes(field(header, 2)),
        key_epoch: KeyEpochNo(u32::from_be_bytes(field(header, 6))),
        wid: Wid {
            generation: u32::from_be_bytes(field(header, 10)),
            seq: u64::from_be_bytes(seq),
        },
        salt: field(header, 20),
        nonce: field(header, 36),
        tag: field(header, 48),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_header() -> impl Strategy<Value = RecordHeader> {
        (any::<(u32, u32, u32)>(), 0..SEQ_LIMIT, any::<([u8; 16], [u8; 12], [u8; 16])>()).prop_map(
            |((snap, epoch, generation), seq, (salt, nonce, tag))| RecordHeader {
                snap,
                key_epoch: KeyEpochNo(epoch),
                wid: Wid { generation, seq },
                salt,
                nonce,
                tag,
            },
        )
    }

    fn record(header: &RecordHeader, fill: u8) -> Vec<u8> {
        let mut bytes = header.encode().expect("fits").to_vec();
        bytes.resize(RECORD_LEN, fill);
        bytes
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(header in any_header(), fill: u8) {
            let bytes = record(&header, fill);
            let Ok(Record::Present { header: back, ciphertext }) = Record::decode(&bytes) else {
                panic!("does not decode as present");
            };
            prop_assert_eq!(back, header);
            prop_assert_eq!(ciphertext, &[fill; BLOCK_LEN][..]);
            prop_assert_eq!(&back.encode().expect("fits")[..], &bytes[..HEADER_LEN]);
        }

        #[test]
        fn any_bytes_decode_or_fail_cleanly(
            head in proptest::collection::vec(0u8..4, 2),
            byte: u8,
            len in prop_oneof![Just(RECORD_LEN), 0usize..RECORD_LEN + 9],
        ) {
            let mut bytes = vec![byte; len];
            for (to, from) in bytes.iter_mut().zip(head) {
                *to = from;
            }
            let decoded = Record::decode(&bytes);
            prop_assert_eq!(matches!(decoded, Err(RecordError::Length(_))), len != RECORD_LEN);
        }
    }

    /// The layout above, byte for byte: records on disk are read by every later build.
    #[test]
    fn old_bytes_keep_decoding() {
        let hex = "0101\
            00000007\
            00000003\
            0000002a\
            0000deadbeef\
            000102030405060708090a0b0c0d0e0f\
            0000000000000009c0ffee11\
            f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff";
        let mut bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex"))
            .collect();
        bytes.resize(RECORD_LEN, 0x5a);
        let header = RecordHeader {
            snap: 7,
            key_epoch: KeyEpochNo(3),
            wid: Wid { generation: 42, seq: 0xdead_beef },
            salt: std::array::from_fn(|i| i as u8),
            nonce: [0, 0, 0, 0, 0, 0, 0, 9, 0xc0, 0xff, 0xee, 0x11],
            tag: std::array::from_fn(|i| 0xf0 + i as u8),
        };
        let ciphertext = &[0x5a; BLOCK_LEN][..];
        assert_eq!(Record::decode(&bytes), Ok(Record::Present { header, ciphertext }));
        assert_eq!(header.encode().expect("fits"), bytes[..HEADER_LEN]);
    }

    #[test]
    fn what_is_no_record_is_refused_by_name() {
        assert_eq!(Record::decode(&ABSENT), Ok(Record::Absent));
        let with = |changes: &[(usize, u8)]| {
            let mut bytes = ABSENT.to_vec();
            for (at, byte) in changes {
                bytes[*at] = *byte;
            }
            Record::decode(&bytes).map(|record| record.header().is_some())
        };
        assert_eq!(with(&[(4159, 1)]), Err(RecordError::DirtyAbsent(4159)));
        assert_eq!(with(&[(1, 1)]), Err(RecordError::DirtyAbsent(1)));
        assert_eq!(with(&[(0, 1)]), Err(RecordError::DirtyAbsent(0)));
        assert_eq!(with(&[(0, 1), (1, 2)]), Err(RecordError::Presence(2)));
        assert_eq!(with(&[(0, 2), (1, 1)]), Err(RecordError::UnknownFormat(2)));
        assert_eq!(with(&[(0, 1), (1, 1)]), Ok(true));
        assert_eq!(Record::decode(&[]), Err(RecordError::Length(0)));
        assert_eq!(Record::decode(&[0; 4161]), Err(RecordError::Length(4161)));
    }

    #[test]
    fn a_sequence_of_49_bits_is_refused() {
        let mut header = RecordHeader {
            snap: 0,
            key_epoch: KeyEpochNo(0),
            wid: Wid { generation: 1, seq: SEQ_LIMIT - 1 },
            salt: [0; 16],
            nonce: [0; 12],
            tag: [0; 16],
        };
        assert!(header.encode().is_ok());
        header.wid.seq = SEQ_LIMIT;
        assert_eq!(header.encode(), Err(RecordError::Sequence(SEQ_LIMIT)));
    }
}
