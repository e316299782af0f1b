//! Wrapping: keys encrypted for the public metadata, bound to the place they belong to.
//!
//! AES-256-GCM under the wrapping key of a key epoch. The additional data names purpose, shard and
//! key epoch, so that a wrapped key moved to another entry does not open.

use super::derive::{ShardId, ShardKey, WrappingKey};
use crate::geometry::PlaceKey;
use crate::ids::{KeyEpochNo, VolumeId};
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::Zeroizing;

const FORMAT: u8 = 1;
const SHARD_PURPOSE: &[u8] = b"smalti wrapped shard key v1";
const PLACE_PURPOSE: &[u8] = b"smalti wrapped place key v1";

/// Where a wrapped shard key belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyBinding {
    /// The column, which names the volume too.
    pub shard: ShardId,
    /// The generation of keys.
    pub key_epoch: KeyEpochNo,
}

/// A key under a wrapping key. Public: says nothing without the wrapping key.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WrappedKey {
    format: u8,
    nonce: [u8; 12],
    sealed: [u8; 32],
    tag: [u8; 16],
}

impl fmt::Debug for WrappedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrappedKey").field("format", &self.format).finish_non_exhaustive()
    }
}

/// Why a wrapped key did not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Wrapped by a newer program.
    #[error("wrapped key format {0} is not known")]
    Format(u8),
    /// The wrapping key, the binding or the bytes are not those it was wrapped with.
    #[error("wrapped key does not authenticate: wrong wrapping key, wrong place or altered")]
    Refused,
}

/// Wraps the key of a column.
///
/// `nonce` is 12 fresh random bytes. A wrapping key serves one key epoch of one volume, so it sees
/// far fewer than the 2^32 wrappings that random nonces allow.
///
/// ```
/// use smalti_storage::ids::{GroupNo, KeyEpochNo, Slot, VolumeId};
/// use smalti_storage::keys::{
///     KeyBinding, ShardId, ShardKey, WrappingKey, decrypt_shard_key, encrypt_shard_key,
/// };
///
/// let wrapping = WrappingKey::new([1; 32]);
/// let shard = ShardId { volume: VolumeId::default(), group: GroupNo(0), slot: Slot(1) };
/// let binding = KeyBinding { shard, key_epoch: KeyEpochNo(1) };
/// let wrapped = encrypt_shard_key(&wrapping, &ShardKey::new([2; 32]), &binding, [3; 12]);
///
/// let key = decrypt_shard_key(&wrapping, &wrapped, &binding)?;
/// assert_eq!(key.expose(), &[2; 32]);
/// # Ok::<(), smalti_storage::keys::KeyError>(())
/// ```
pub fn encrypt_shard_key(
    wrapping_key: &WrappingKey,
    shard_key: &ShardKey,
    binding: &KeyBinding,
    nonce: [u8; 12],
) -> WrappedKey {
    wrap(wrapping_key, shard_key.expose(), &binding.additional_data(), nonce)
}

/// Unwraps the key of a column.
///
/// ```
/// use smalti_storage::ids::{GroupNo, KeyEpochNo, Slot, VolumeId};
/// use smalti_storage::keys::{
///     KeyBinding, KeyError, ShardId, ShardKey, WrappingKey, decrypt_shard_key, encrypt_shard_key,
/// };
///
/// let wrapping = WrappingKey::new([1; 32]);
/// let shard = ShardId { volume: VolumeId::default(), group: GroupNo(0), slot: Slot(1) };
/// let binding = KeyBinding { shard, key_epoch: KeyEpochNo(1) };
/// let wrapped = encrypt_shard_key(&wrapping, &ShardKey::new([2; 32]), &binding, [3; 12]);
///
/// // A wrapped key opens only at its own place.
/// let elsewhere = KeyBinding { key_epoch: KeyEpochNo(2), ..binding };
/// assert_eq!(
///     decrypt_shard_key(&wrapping, &wrapped, &elsewhere).err(),
///     Some(KeyError::Refused),
/// );
/// assert!(decrypt_shard_key(&wrapping, &wrapped, &binding).is_ok());
/// ```
///
/// # Errors
/// When the format is unknown, or anything differs from when it was wrapped.
pub fn decrypt_shard_key(
    wrapping_key: &WrappingKey,
    wrapped: &WrappedKey,
    binding: &KeyBinding,
) -> Result<ShardKey, KeyError> {
    unwrap(wrapping_key, wrapped, &binding.additional_data()).map(|key| ShardKey::new(*key))
}

/// Wraps a volume's placement key for one key epoch; `nonce` as in [`encrypt_shard_key`].
pub fn encrypt_place_key(
    wrapping_key: &WrappingKey,
    place_key: &PlaceKey,
    volume: VolumeId,
    key_epoch: KeyEpochNo,
    nonce: [u8; 12],
) -> WrappedKey {
    wrap(wrapping_key, place_key.expose(), &place_data(volume, key_epoch), nonce)
}

/// Unwraps a volume's placement key.
///
/// # Errors
/// As [`decrypt_shard_key`].
pub fn decrypt_place_key(
    wrapping_key: &WrappingKey,
    wrapped: &WrappedKey,
    volume: VolumeId,
    key_epoch: KeyEpochNo,
) -> Result<PlaceKey, KeyError> {
    unwrap(wrapping_key, wrapped, &place_data(volume, key_epoch)).map(|key| PlaceKey::new(*key))
}

impl KeyBinding {
    fn additional_data(&self) -> Vec<u8> {
        [SHARD_PURPOSE, &self.shard.to_bytes(), &self.key_epoch.0.to_be_bytes()].concat()
    }
}

fn place_data(volume: VolumeId, key_epoch: KeyEpochNo) -> Vec<u8> {
    [PLACE_PURPOSE, volume.0.as_bytes(), &key_epoch.0.to_be_bytes()].concat()
}

fn wrap(wrapping: &WrappingKey, key: &[u8; 32], data: &[u8], nonce: [u8; 12]) -> WrappedKey {
    let mut sealed = [0; 32];
    let buffer = InOutBuf::new(key, &mut sealed).expect("both have 32 bytes");
    let tag = Aes256Gcm::new(wrapping.expose().into())
        .encrypt_inout_detached(&nonce.into(), data, buffer)
        .expect("32 bytes are below the limit of GCM");
    WrappedKey { format: FORMAT, nonce, sealed, tag: tag.into() }
}

fn unwrap(
    wrapping: &WrappingKey,
    wrapped: &WrappedKey,
    data: &[u8],
) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    if wrapped.format != FORMAT {
        return Err(KeyError::Format(wrapped.format));
    }
    let mut key = Zeroizing::new([0; 32]);
    let buffer = InOutBuf::new(&wrapped.sealed, &mut *key).expect("both have 32 bytes");
    Aes256Gcm::new(wrapping.expose().into())
        .decrypt_inout_detached(&wrapped.nonce.into(), data, buffer, &wrapped.tag.into())
        .map_err(|_| KeyError::Refused)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{GroupNo, Slot};
    use uuid::Uuid;

    fn binding() -> KeyBinding {
        let volume = VolumeId(Uuid::from_u128(77));
        let shard = ShardId { volume, group: GroupNo(5), slot: Slot(2) };
        KeyBinding { shard, key_epoch: KeyEpochNo(9) }
    }

    #[test]
    fn opens_only_with_its_key_at_its_place() {
        let wrapping = WrappingKey::new([1; 32]);
        let wrapped = encrypt_shard_key(&wrapping, &ShardKey::new([2; 32]), &binding(), [3; 12]);
        let open = |wrapping: &WrappingKey, binding: &KeyBinding| {
            decrypt_shard_key(wrapping, &wrapped, binding).map(|key| *key.expose())
        };
        assert_eq!(open(&wrapping, &binding()), Ok([2; 32]));
        assert_eq!(open(&WrappingKey::new([4; 32]), &binding()), Err(KeyError::Refused));
        let places = [
            KeyBinding { key_epoch: KeyEpochNo(8), ..binding() },
            KeyBinding { shard: ShardId { slot: Slot(1), ..binding().shard }, ..binding() },
            KeyBinding { shard: ShardId { group: GroupNo(4), ..binding().shard }, ..binding() },
            KeyBinding {
                shard: ShardId { volume: VolumeId::default(), ..binding().shard },
                ..binding()
            },
        ];
        for place in places {
            assert_eq!(open(&wrapping, &place), Err(KeyError::Refused), "{place:?}");
        }
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let wrapping = WrappingKey::new([1; 32]);
        let wrapped = encrypt_shard_key(&wrapping, &ShardKey::new([2; 32]), &binding(), [3; 12]);
        let bytes = postcard::to_stdvec(&wrapped).expect("serializes");
        assert_eq!(bytes.len(), 61);
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let wrapped = postcard::from_bytes(&bytes).expect("fixed fields");
            let expected = if bit < 8 { KeyError::Format(1 ^ 1 << bit) } else { KeyError::Refused };
            let opened = decrypt_shard_key(&wrapping, &wrapped, &binding());
            assert_eq!(opened.err(), Some(expected), "bit {bit}");
        }
    }

    #[test]
    fn a_place_key_is_bound_too_and_is_no_shard_key() {
        let wrapping = WrappingKey::new([1; 32]);
        let (volume, epoch) = (VolumeId(Uuid::from_u128(1)), KeyEpochNo(2));
        let wrapped = encrypt_place_key(&wrapping, &PlaceKey::new([5; 32]), volume, epoch, [6; 12]);
        let open = |volume, epoch| {
            decrypt_place_key(&wrapping, &wrapped, volume, epoch).map(|key| *key.expose())
        };
        assert_eq!(open(volume, epoch), Ok([5; 32]));
        assert_eq!(open(volume, KeyEpochNo(3)), Err(KeyError::Refused));
        assert_eq!(open(VolumeId::default(), epoch), Err(KeyError::Refused));
        let shard = ShardId { volume, ..ShardId::default() };
        let as_shard = KeyBinding { shard, key_epoch: epoch };
        let opened = decrypt_shard_key(&wrapping, &wrapped, &as_shard);
        assert_eq!(opened.err(), Some(KeyError::Refused));
    }

    /// Wrapped keys in the metadata are read by every later build. The expected bytes come from an
    /// independent implementation of AES-GCM.
    #[test]
    fn old_bytes_keep_opening() {
        let wrapping = WrappingKey::new(std::array::from_fn(|i| i as u8));
        let key = ShardKey::new(std::array::from_fn(|i| 0x80 + i as u8));
        let wrapped = encrypt_shard_key(&wrapping, &key, &binding(), [0xa5; 12]);
        let bytes = postcard::to_stdvec(&wrapped).expect("serializes");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, FIXED_WRAPPED);
        assert_eq!(
            decrypt_shard_key(&wrapping, &wrapped, &binding()).map(|key| *key.expose()),
            Ok(*key.expose())
        );
    }

    const FIXED_WRAPPED: &str = "01a5a5a5a5a5a5a5a5a5a5a5a5\
        a1c61e23b619ae0ea025296924aef9aa1d8b25c477c4d7d6dece1de2b8da6d04\
        e4c5adf9fd8ae47464d956188f358b65";

    #[test]
    fn nothing_secret_is_printed() {
        let wrapping = WrappingKey::new([0xab; 32]);
        let wrapped = encrypt_shard_key(&wrapping, &ShardKey::new([2; 32]), &binding(), [3; 12]);
        assert_eq!(format!("{wrapping:?}"), "WrappingKey(redacted)");
        assert_eq!(format!("{wrapped:?}"), "WrappedKey { format: 1, .. }");
    }
}
