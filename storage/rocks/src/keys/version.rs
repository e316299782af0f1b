//! The key of one version of a row slot: of its metadata and of its record.

use super::slot;
use smalti_storage::ids::{Epoch, RowSlot, Ver};

/// Length in bytes.
pub(crate) const LEN: usize = slot::LEN + 12;

/// A version key.
pub(crate) type Key = [u8; LEN];

/// Epoch and sequence are inverted so that a row slot's newest version comes first.
pub(crate) fn encode(at: RowSlot, ver: Ver) -> Key {
    let mut key = [0; LEN];
    key[..slot::LEN].copy_from_slice(&slot::encode(at));
    key[slot::LEN..slot::LEN + 4].copy_from_slice(&(!ver.epoch.0).to_be_bytes());
    key[slot::LEN + 4..].copy_from_slice(&(!ver.seq).to_be_bytes());
    key
}

/// `None` when `key` is not exactly a version key.
pub(crate) fn decode(key: &[u8]) -> Option<(RowSlot, Ver)> {
    let (at, key) = key.split_first_chunk::<{ slot::LEN }>()?;
    let (epoch, key) = key.split_first_chunk()?;
    let seq: [u8; 8] = key.try_into().ok()?;
    let ver = Ver { epoch: Epoch(!u32::from_be_bytes(*epoch)), seq: !u64::from_be_bytes(seq) };
    Some((slot::decode(at)?, ver))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smalti_storage::store::suite::place;

    fn any_key() -> impl Strategy<Value = (RowSlot, Ver)> {
        any::<(u32, u16, u64, u32, u8, u32, u64)>().prop_map(|(v, g, s, i, slot, e, n)| {
            (place(v, g, s, i, slot), Ver { epoch: Epoch(e), seq: n })
        })
    }

    proptest! {
        #[test]
        fn round_trips((at, ver) in any_key()) {
            prop_assert_eq!(decode(&encode(at, ver)), Some((at, ver)));
            prop_assert_eq!(decode(&encode(at, ver)[1..]), None);
        }

        #[test]
        fn orders_by_place_then_newest_first((a, x) in any_key(), (b, y) in any_key()) {
            prop_assert_eq!(encode(a, x).cmp(&encode(b, y)), (a, y).cmp(&(b, x)));
            prop_assert_eq!(encode(a, x).cmp(&encode(a, y)), y.cmp(&x));
        }
    }

    #[test]
    fn looks_as_written_down() {
        let ver = Ver { epoch: Epoch(0x0102_0304), seq: 0x0506_0708_090a_0b0c };
        let expected: Vec<u8> = (1..=12u8).map(|byte| !byte).collect();
        assert_eq!(encode(place(0, 0, 0, 0, 0), ver)[slot::LEN..], expected);
    }
}
