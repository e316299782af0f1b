//! The key of a drop whose space was not taken back yet: its number, and what the dropped keys begin with.

use super::slot;

const TAG: u8 = b'd';
const HEAD: usize = 9;

pub(crate) fn encode(no: u64, prefix: &[u8]) -> Vec<u8> {
    [&[TAG], &no.to_be_bytes()[..], prefix].concat()
}

/// `None` when `key` is not exactly that of a dropped volume or group.
pub(crate) fn decode(key: &[u8]) -> Option<(u64, &[u8])> {
    let (&[TAG, ref no @ ..], prefix) = key.split_first_chunk::<HEAD>()? else { return None };
    let no = u64::from_be_bytes(*no);
    [slot::VOLUME_LEN, slot::GROUP_LEN].contains(&prefix.len()).then_some((no, prefix))
}

/// The prefix of all of them.
pub(crate) const PREFIX: [u8; 1] = [TAG];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smalti_storage::ids::{GroupNo, VolumeNo};

    proptest! {
        #[test]
        fn round_trips_and_keeps_order(a: u64, b: u64, volume: u32, group: u16) {
            let (volume, group) = (VolumeNo(volume), GroupNo(group));
            let (whole, part) = (slot::of_volume(volume), slot::of_group(volume, group));
            let (first, second) = (encode(a, &whole), encode(b, &part));
            prop_assert_eq!(decode(&first), Some((a, &whole[..])));
            prop_assert_eq!(decode(&second), Some((b, &part[..])));
            if a != b {
                prop_assert_eq!(first.cmp(&second), a.cmp(&b));
            }
        }

        #[test]
        fn takes_nothing_else(key in prop::collection::vec(any::<u8>(), 0..20)) {
            let expected = [HEAD + 4, HEAD + 6].contains(&key.len()) && key[0] == TAG;
            prop_assert_eq!(decode(&key).is_some(), expected);
        }
    }

    #[test]
    fn looks_as_written_down() {
        let prefix = slot::of_group(VolumeNo(0x0102_0304), GroupNo(0x0506));
        let key = encode(0x0708_090a_0b0c_0d0e, &prefix);
        assert_eq!(key, b"d\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x01\x02\x03\x04\x05\x06");
    }
}
