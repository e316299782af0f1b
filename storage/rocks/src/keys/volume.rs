//! The key of a volume's state.

use smalti_storage::ids::VolumeNo;

const TAG: u8 = b'v';

pub(crate) fn encode(volume: VolumeNo) -> [u8; 5] {
    let [a, b, c, d] = volume.0.to_be_bytes();
    [TAG, a, b, c, d]
}

/// `None` when `key` is not exactly a volume key.
pub(crate) fn decode(key: &[u8]) -> Option<VolumeNo> {
    let [TAG, volume @ ..] = key else { return None };
    Some(VolumeNo(u32::from_be_bytes(volume.try_into().ok()?)))
}

/// The prefix of all volume keys.
pub(crate) const PREFIX: [u8; 1] = [TAG];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trips_and_keeps_order(a: u32, b: u32) {
            prop_assert_eq!(decode(&encode(VolumeNo(a))), Some(VolumeNo(a)));
            prop_assert_eq!(encode(VolumeNo(a)).cmp(&encode(VolumeNo(b))), a.cmp(&b));
        }

        #[test]
        fn takes_nothing_else(key in prop::collection::vec(any::<u8>(), 0..8)) {
            prop_assert_eq!(decode(&key).is_some(), key.len() == 5 && key[0] == TAG);
        }
    }
}
