//! Derivation: HKDF-SHA256 (RFC 5869), one label for each purpose.
//!
//! `salt` is the label, `ikm` the parent key, and `info` the fixed-length fields of what is
//! derived, so two derivations never meet.

use crate::geometry::PlaceKey;
use crate::ids::{GroupNo, Slot, VolumeId};
use crate::secret::{note_use, secret_bytes};
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::fmt;
use zeroize::Zeroizing;

secret_bytes!(
    /// The key that all shard and place keys come from. Exists only while keys are derived.
    MasterKey
);
secret_bytes!(
    /// The key of one column (the shards of one group in one data slot) in one key epoch.
    ShardKey
);
secret_bytes!(
    /// The key that wraps the shard keys of one key epoch in the metadata.
    WrappingKey
);

const SHARD_LABEL: &[u8] = b"smalti shard key v1";
const PLACE_LABEL: &[u8] = b"smalti place key v1";

/// Names a column: the shards of one group that stand in one data slot. Each single shard then
/// has its own key, which sealing derives from its column's.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ShardId {
    /// The volume.
    pub volume: VolumeId,
    /// The placement group.
    pub group: GroupNo,
    /// The data slot.
    pub slot: Slot,
}

impl ShardId {
    /// The fixed-length encoding that derivation and wrapping bind.
    pub(super) fn to_bytes(self) -> [u8; 19] {
        let mut bytes = [0; 19];
        bytes[..16].copy_from_slice(self.volume.0.as_bytes());
        bytes[16..18].copy_from_slice(&self.group.0.to_be_bytes());
        bytes[18] = self.slot.0;
        bytes
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.volume, self.group, self.slot)
    }
}

/// HKDF-SHA256 to 32 bytes. The caller takes them into a key type; the copy here is wiped.
pub(crate) fn hkdf(salt: &[u8], secret: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut out = Zeroizing::new([0; 32]);
    note_use();
    Hkdf::<Sha256>::new(Some(salt), secret)
        .expand_multi_info(info, &mut *out)
        .expect("32 bytes are far below the limit of HKDF");
    out
}

/// The key of a column as of `timestamp`, the second (since 1970) at which its key epoch began.
/// Another timestamp gives an unrelated key, which is how keys rotate.
///
/// ```
/// use smalti_storage::ids::{GroupNo, Slot, VolumeId};
/// use smalti_storage::keys::{MasterKey, ShardId, derive_shard_key};
///
/// let master = MasterKey::new([7; 32]);
/// let shard = ShardId { volume: VolumeId::default(), group: GroupNo(3), slot: Slot(0) };
/// let key = derive_shard_key(&master, &shard, 1_700_000_000);
/// let again = derive_shard_key(&master, &shard, 1_700_000_000);
/// let rotated = derive_shard_key(&master, &shard, 1_702_592_000);
/// assert_eq!(key.expose(), again.expose());
/// assert_ne!(key.expose(), rotated.expose());
/// ```
pub fn derive_shard_key(master: &MasterKey, shard: &ShardId, timestamp: u64) -> ShardKey {
    let info: [&[u8]; 2] = [&shard.to_bytes(), &timestamp.to_be_bytes()];
    ShardKey::new(*hkdf(SHARD_LABEL, master.expose(), &info))
}

/// The placement key of a volume. Does not vary with time, because placement never changes.
pub fn derive_place_key(master: &MasterKey, volume: VolumeId) -> PlaceKey {
    PlaceKey::new(*hkdf(PLACE_LABEL, master.expose(), &[volume.0.as_bytes()]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use uuid::Uuid;

    fn shard(volume: u128, group: u16, slot: u8) -> ShardId {
        let volume = VolumeId(Uuid::from_u128(volume));
        ShardId { volume, group: GroupNo(group), slot: Slot(slot) }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn every_input_changes_the_key() {
        let master = MasterKey::new([1; 32]);
        let keys: HashSet<[u8; 32]> = [
            derive_shard_key(&master, &shard(1, 2, 3), 4),
            derive_shard_key(&MasterKey::new([2; 32]), &shard(1, 2, 3), 4),
            derive_shard_key(&master, &shard(2, 2, 3), 4),
            derive_shard_key(&master, &shard(1, 3, 3), 4),
            derive_shard_key(&master, &shard(1, 2, 4), 4),
            derive_shard_key(&master, &shard(1, 2, 3), 5),
        ]
        .iter()
        .map(|key| *key.expose())
        .chain([*derive_place_key(&master, shard(1, 2, 3).volume).expose()])
        .chain([*derive_place_key(&master, shard(2, 2, 3).volume).expose()])
        .collect();
        assert_eq!(keys.len(), 8);
    }

    proptest! {
        #[test]
        fn no_two_columns_share_a_key(a: (u128, u16, u8, u64), b: (u128, u16, u8, u64)) {
            let master = MasterKey::new([9; 32]);
            let key = |(volume, group, slot, time)| {
                *derive_shard_key(&master, &shard(volume, group, slot), time).expose()
            };
            prop_assert_eq!(key(a) == key(b), a == b);
        }
    }

    /// Keys derived today must be derived by every later build. The expected values come from an
    /// independent implementation of HKDF.
    #[test]
    fn derivation_never_changes() {
        let master = MasterKey::new(std::array::from_fn(|i| i as u8));
        let shard = shard(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff, 0x1234, 5);
        let key = derive_shard_key(&master, &shard, 1_700_000_000);
        assert_eq!(hex(key.expose()), FIXED_SHARD_KEY);
        assert_eq!(hex(derive_place_key(&master, shard.volume).expose()), FIXED_PLACE_KEY);
    }

    const FIXED_SHARD_KEY: &str =
        "519497d06a83b1d6c99a3f5f0823042791ffeac6e2ab8cc50031a58c865e0b2a";
    const FIXED_PLACE_KEY: &str =
        "2b83ac18a17496d893976f773e5f219b5c449b6e63ac1319e868ab23bb4ae8c4";
}
