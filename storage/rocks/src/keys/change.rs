//! The keys of a group's index of changed rows: of the index itself, and behind it one of each row.

use smalti_storage::ids::{GroupNo, RowAddr, VolumeNo};

const TAG: u8 = b'c';
const INDEX_LEN: usize = 7;
const ROW_LEN: usize = INDEX_LEN + 12;

/// The key of the index, and the prefix of its rows.
pub(crate) fn of_index(volume: VolumeNo, group: GroupNo) -> [u8; INDEX_LEN] {
    let mut key = [TAG; INDEX_LEN];
    key[1..5].copy_from_slice(&volume.0.to_be_bytes());
    key[5..].copy_from_slice(&group.0.to_be_bytes());
    key
}

/// The prefix of all indexes of a volume.
pub(crate) fn of_volume(volume: VolumeNo) -> [u8; 5] {
    let [a, b, c, d] = volume.0.to_be_bytes();
    [TAG, a, b, c, d]
}

pub(crate) fn of_row(volume: VolumeNo, row: RowAddr) -> [u8; ROW_LEN] {
    let mut key = [0; ROW_LEN];
    key[..INDEX_LEN].copy_from_slice(&of_index(volume, row.group));
    key[INDEX_LEN..INDEX_LEN + 8].copy_from_slice(&row.stripe.to_be_bytes());
    key[INDEX_LEN + 8..].copy_from_slice(&row.index.to_be_bytes());
    key
}

/// `None` when `key` is not exactly that of a row.
pub(crate) fn row(key: &[u8]) -> Option<RowAddr> {
    let key: &[u8; ROW_LEN] = key.try_into().ok()?;
    let (&[TAG, _, _, _, _, a, b], key) = key.split_first_chunk::<INDEX_LEN>()? else {
        return None;
    };
    let (stripe, key) = key.split_first_chunk()?;
    Some(RowAddr {
        group: GroupNo(u16::from_be_bytes([a, b])),
        stripe: u64::from_be_bytes(*stripe),
        index: u32::from_be_bytes(key.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_row() -> impl Strategy<Value = (VolumeNo, RowAddr)> {
        any::<(u32, u16, u64, u32)>().prop_map(|(volume, group, stripe, index)| {
            (VolumeNo(volume), RowAddr { group: GroupNo(group), stripe, index })
        })
    }

    proptest! {
        #[test]
        fn round_trips_and_keeps_order((v, a) in any_row(), (w, b) in any_row()) {
            prop_assert_eq!(row(&of_row(v, a)), Some(a));
            prop_assert_eq!(of_row(v, a).cmp(&of_row(w, b)), (v, a).cmp(&(w, b)));
            prop_assert!(of_row(v, a).starts_with(&of_index(v, a.group)));
            prop_assert!(of_index(v, a.group).starts_with(&of_volume(v)));
        }

        #[test]
        fn takes_nothing_else(key in prop::collection::vec(any::<u8>(), 0..30)) {
            prop_assert!(row(&key).is_none() || (key.len() == ROW_LEN && key[0] == TAG));
        }
    }
}
