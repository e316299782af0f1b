//! Bytes on disk and on the wire: one version byte, then postcard.
//!
//! Postcard numbers enum variants by their order, so the order of variants in the types that get
//! here is part of the version, their own and those of the pinned openraft. The fixtures of
//! [`crate::storage_tests`] notice a change.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// The version this code writes and reads. Version 1 knew no read modes of volumes, version 3 no
/// snapshots of them, version 4 no runs of stores, version 7 no weights of nodes, version 8 no
/// scrubs, version 9 no tokens to join with, version 10 no shrinks below `min_insync`, version 11
/// no groups that are offline, version 12 no key epochs after the first, version 13 no custodians, version 14
/// no recovery and no revocation; 2 is what marks a value with a checksum ([`crate::stored`]).
pub(crate) const VERSION: u8 = 15;

#[derive(Debug, Error)]
pub(crate) enum CodecError {
    #[error("no bytes where a value was expected")]
    Empty,
    #[error("format version {0} is not known to this program")]
    Version(u8),
    #[error("malformed value")]
    Malformed(#[source] postcard::Error),
    #[error("a stored value does not verify")]
    Checksum,
    #[error("{0} bytes are left over after a value")]
    Trailing(usize),
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    postcard::to_extend(value, vec![VERSION]).map_err(CodecError::Malformed)
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (version, rest) = bytes.split_first().ok_or(CodecError::Empty)?;
    if *version != VERSION {
        return Err(CodecError::Version(*version));
    }
    let (value, rest) = postcard::take_from_bytes(rest).map_err(CodecError::Malformed)?;
    if rest.is_empty() { Ok(value) } else { Err(CodecError::Trailing(rest.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_values_of_a_known_version_decode() {
        let bytes = encode(&(7u32, "seven")).expect("encodes");
        assert_eq!(decode::<(u32, String)>(&bytes).expect("decodes"), (7, "seven".into()));
        assert!(matches!(decode::<u32>(&[]), Err(CodecError::Empty)));
        // Older ones had fewer fields: what they wrote would pass for something else.
        for other in (0..VERSION).chain([VERSION + 1]) {
            let refused = decode::<u32>(&[other, 7]);
            assert!(matches!(refused, Err(CodecError::Version(version)) if version == other));
        }
        assert!(matches!(decode::<u32>(&[VERSION]), Err(CodecError::Malformed(_))));
        assert!(matches!(decode::<u32>(&[VERSION, 7, 0]), Err(CodecError::Trailing(1))));
        // A length that promises more than there is must not be believed.
        assert!(decode::<Vec<u64>>(&[VERSION, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    }
}
