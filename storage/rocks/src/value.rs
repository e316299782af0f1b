//! Small values on disk: metadata, marks, states.
//!
//! ```text
//! format u8 = 1 | postcard body | checksum 8 bytes
//! ```
//! The checksum covers the key as well, so a value that strayed to another key never verifies.
//! Records are not stored this way: they are kept as they are, and their metadata has their hash.

use serde::Serialize;
use serde::de::DeserializeOwned;
use twox_hash::XxHash3_128;

const FORMAT: u8 = 1;
const CHECKSUM: usize = 8;

/// Why a value can not be used. What to do is the same: it is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable;

pub(crate) fn encode<T: Serialize>(key: &[u8], value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(192);
    out.push(FORMAT);
    let mut out = postcard::to_extend(value, out).expect("plain structs of numbers always encode");
    let checksum = checksum(key, &out);
    out.extend_from_slice(&checksum);
    out
}

pub(crate) fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, Unreadable> {
    let (content, found) = bytes.split_last_chunk::<CHECKSUM>().ok_or(Unreadable)?;
    if checksum(key, content) != *found {
        return Err(Unreadable);
    }
    let (&FORMAT, body) = content.split_first().ok_or(Unreadable)? else {
        return Err(Unreadable);
    };
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(Unreadable),
    }
}

fn checksum(key: &[u8], content: &[u8]) -> [u8; CHECKSUM] {
    #[expect(clippy::cast_possible_truncation, reason = "the low half of the hash is the seed")]
    let seed = XxHash3_128::oneshot(key) as u64;
    #[expect(clippy::cast_possible_truncation, reason = "64 bits are enough against accidents")]
    let sum = XxHash3_128::oneshot_with_seed(seed, content) as u64;
    sum.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smalti_storage::ids::{SlotSet, Ver, Wid};
    use smalti_storage::store::suite::ver;
    use smalti_storage::store::{RecordHash, VecEntry, VersionMeta};

    fn any_ver() -> impl Strategy<Value = Ver> {
        any::<(u32, u64)>().prop_map(|(epoch, seq)| ver(epoch, seq))
    }

    fn any_wid() -> impl Strategy<Value = Wid> {
        any::<(u32, u64)>().prop_map(|(generation, seq)| Wid { generation, seq })
    }

    fn any_meta() -> impl Strategy<Value = VersionMeta> {
        let vec = prop::collection::vec((any_ver(), any_wid(), any::<u32>()), 0..32);
        (any_ver(), any_ver(), any_wid(), vec, any::<(u32, u32, bool, [u8; 16])>()).prop_map(
            |(ver, base, wid, vec, (touched, snap, present, hash))| VersionMeta {
                ver,
                base,
                touched: SlotSet(touched),
                snap,
                wid,
                vec: vec.into_iter().map(|(ver, wid, snap)| VecEntry { ver, wid, snap }).collect(),
                present,
                hash: RecordHash(hash),
            },
        )
    }

    proptest! {
        #[test]
        fn round_trips(meta in any_meta(), key: [u8; 31]) {
            prop_assert_eq!(decode(&key, &encode(&key, &meta)), Ok(meta));
        }

        #[test]
        fn no_flipped_bit_cut_or_other_key_verifies(
            meta in any_meta(), key: [u8; 31], at: prop::sample::Index, bit in 0..8u8,
        ) {
            let good = encode(&key, &meta);
            let mut bad = good.clone();
            bad[at.index(good.len())] ^= 1u8 << bit;
            prop_assert_eq!(decode::<VersionMeta>(&key, &bad), Err(Unreadable));
            let cut = &good[..at.index(good.len())];
            prop_assert_eq!(decode::<VersionMeta>(&key, cut), Err(Unreadable));
            let mut other = key;
            other[at.index(key.len())] ^= 1u8 << bit;
            prop_assert_eq!(decode::<VersionMeta>(&other, &good), Err(Unreadable));
        }

        #[test]
        fn never_panics(key: [u8; 31], bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(decode::<VersionMeta>(&key, &bytes), Err(Unreadable));
        }
    }

    #[test]
    fn version_1_stays_readable() {
        let meta = VersionMeta {
            ver: ver(2, 300),
            base: ver(1, 7),
            touched: SlotSet(0b101),
            snap: 4,
            wid: Wid { generation: 2, seq: 9 },
            vec: vec![VecEntry { ver: ver(2, 300), wid: Wid { generation: 2, seq: 9 }, snap: 3 }],
            present: true,
            hash: RecordHash([7; 16]),
        };
        let old = FIXTURE.as_slice();
        assert_eq!(decode(b"key", old), Ok(meta.clone()), "now {:02x?}", encode(b"key", &meta));
        assert_eq!(encode(b"key", &meta), old);
    }

    /// A value as format 1 wrote it. Never change it: stores hold such bytes.
    const FIXTURE: [u8; 42] = [
        0x01, 0x02, 0xac, 0x02, 0x01, 0x07, 0x05, 0x04, 0x02, 0x09, 0x01, 0x02, 0xac, 0x02, 0x02,
        0x09, 0x03, 0x01, 0x07, 0x07, 0x07, 0x07, 0x07, 0x07, 0x07, 0x07, 0x07, 0x07, 0x07, 0x07,
        0x07, 0x07, 0x07, 0x07, 0x58, 0xd1, 0x6f, 0x39, 0x4d, 0x46, 0x77, 0xbe,
    ];
}
