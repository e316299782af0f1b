//! The key of a row slot: of prepared marks, and the prefix of all its versions.

use smalti_storage::ids::{GroupNo, RowAddr, RowSlot, Slot, VolumeNo};

/// Length in bytes; also the length of the prefix extractor, so it is part of the format.
pub(crate) const LEN: usize = 19;
/// Length of the prefix of all slots of a volume.
pub(crate) const VOLUME_LEN: usize = 4;
/// Length of the prefix of all slots of a group.
pub(crate) const GROUP_LEN: usize = 6;

pub(crate) fn encode(at: RowSlot) -> [u8; LEN] {
    let mut key = [0; LEN];
    key[..4].copy_from_slice(&at.volume.0.to_be_bytes());
    key[4..6].copy_from_slice(&at.row.group.0.to_be_bytes());
    key[6..14].copy_from_slice(&at.row.stripe.to_be_bytes());
    key[14..18].copy_from_slice(&at.row.index.to_be_bytes());
    key[18] = at.slot.0;
    key
}

/// `None` when `key` is not exactly a slot key.
pub(crate) fn decode(key: &[u8]) -> Option<RowSlot> {
    let (volume, key) = key.split_first_chunk()?;
    let (group, key) = key.split_first_chunk()?;
    let (stripe, key) = key.split_first_chunk()?;
    let (index, key) = key.split_first_chunk()?;
    let [slot] = key else { return None };
    Some(RowSlot {
        volume: VolumeNo(u32::from_be_bytes(*volume)),
        row: RowAddr {
            group: GroupNo(u16::from_be_bytes(*group)),
            stripe: u64::from_be_bytes(*stripe),
            index: u32::from_be_bytes(*index),
        },
        slot: Slot(*slot),
    })
}

/// The prefix of all slots of a volume.
pub(crate) fn of_volume(volume: VolumeNo) -> [u8; VOLUME_LEN] {
    volume.0.to_be_bytes()
}

/// The prefix of all slots of a group.
pub(crate) fn of_group(volume: VolumeNo, group: GroupNo) -> [u8; GROUP_LEN] {
    let mut key = [0; GROUP_LEN];
    key[..4].copy_from_slice(&volume.0.to_be_bytes());
    key[4..].copy_from_slice(&group.0.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::after_prefix;
    use proptest::prelude::*;

    pub(crate) fn any_slot() -> impl Strategy<Value = RowSlot> {
        any::<(u32, u16, u64, u32, u8)>().prop_map(|(volume, group, stripe, index, slot)| RowSlot {
            volume: VolumeNo(volume),
            row: RowAddr { group: GroupNo(group), stripe, index },
            slot: Slot(slot),
        })
    }

    proptest! {
        #[test]
        fn round_trips_and_keeps_order(a in any_slot(), b in any_slot()) {
            prop_assert_eq!(decode(&encode(a)), Some(a));
            prop_assert_eq!(encode(a).cmp(&encode(b)), a.cmp(&b));
            prop_assert!(encode(a).starts_with(&of_group(a.volume, a.row.group)));
            prop_assert!(encode(a).starts_with(&of_volume(a.volume)));
        }

        #[test]
        fn takes_nothing_of_another_length(key in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(decode(&key).is_some(), key.len() == LEN);
        }

        #[test]
        fn what_follows_a_prefix_is_just_behind_it(
            prefix in prop::collection::vec(prop_oneof![Just(255u8), any::<u8>()], 1..20),
            rest in prop::collection::vec(any::<u8>(), 0..12),
        ) {
            let end = after_prefix(&prefix);
            let inside = [prefix.as_slice(), &rest].concat();
            prop_assert!(inside < end || inside.len() > 31);
            if prefix.iter().any(|byte| *byte < 255) {
                // Nothing lies between: the end without its last step is still inside or before.
                prop_assert!(!end.starts_with(&prefix) && end.len() <= prefix.len());
            }
        }
    }

    #[test]
    fn looks_as_written_down() {
        let at = RowSlot {
            volume: VolumeNo(0x0102_0304),
            row: RowAddr {
                group: GroupNo(0x0506),
                stripe: 0x0708_090a_0b0c_0d0e,
                index: 0x0f10_1112,
            },
            slot: Slot(0x13),
        };
        let expected: Vec<u8> = (1..=0x13).collect();
        assert_eq!(encode(at).as_slice(), expected);
    }
}
