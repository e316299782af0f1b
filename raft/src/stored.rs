//! Values on disk: what the codec made, behind a checksum.
//!
//! ```text
//! 2 | content | checksum 8 bytes          content: 4 | postcard
//! ```
//! RocksDB checks its blocks, but not what it was given and what it hands out: a bit that turned
//! over in memory, or a value under another key, would be a vote or an entry nobody made. So the
//! checksum covers family and key as well.

use crate::codec::CodecError;
use twox_hash::XxHash3_128;

const CHECKED: u8 = 2;
const CHECKSUM: usize = 8;

pub(crate) fn wrap(family: &str, key: &[u8], content: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(content.len() + 1 + CHECKSUM);
    stored.push(CHECKED);
    stored.extend_from_slice(content);
    let sum = checksum(family, key, &stored);
    stored.extend_from_slice(&sum);
    stored
}

pub(crate) fn unwrap<'a>(
    family: &str,
    key: &[u8],
    stored: &'a [u8],
) -> Result<&'a [u8], CodecError> {
    match stored.first() {
        None => Err(CodecError::Empty),
        Some(&CHECKED) => {
            let (checked, sum) =
                stored.split_last_chunk::<CHECKSUM>().ok_or(CodecError::Checksum)?;
            if checksum(family, key, checked) != *sum {
                return Err(CodecError::Checksum);
            }
            Ok(checked.get(1..).unwrap_or_default())
        }
        Some(other) => Err(CodecError::Version(*other)),
    }
}

fn checksum(family: &str, key: &[u8], checked: &[u8]) -> [u8; CHECKSUM] {
    let place = [family.as_bytes(), b"/", key].concat();
    #[expect(clippy::cast_possible_truncation, reason = "the low half of the hash is the seed")]
    let seed = XxHash3_128::oneshot(&place) as u64;
    #[expect(clippy::cast_possible_truncation, reason = "64 bits are enough against accidents")]
    let sum = XxHash3_128::oneshot_with_seed(seed, checked) as u64;
    sum.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value as version 2 wrote it. Never change it: stores hold such bytes.
    const FIXTURE: [u8; 12] = [2, 1, 7, 9, 132, 192, 94, 29, 63, 66, 11, 17];

    #[test]
    fn stays_readable() {
        assert_eq!(wrap("log", b"key", &[1, 7, 9]), FIXTURE);
        assert_eq!(unwrap("log", b"key", &FIXTURE).ok(), Some([1, 7, 9].as_slice()));
        // The first stores had no checksums.
        assert!(matches!(unwrap("log", b"key", &[1, 7, 9]), Err(CodecError::Version(1))));
    }

    #[test]
    fn no_turned_bit_cut_or_other_place_is_taken() {
        let good = wrap("meta", b"vote", &[1, 7, 2, 1]);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(unwrap("meta", b"vote", &bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(unwrap("meta", b"vote", &good[..len]).is_err(), "cut to {len}");
        }
        assert!(unwrap("meta", b"votf", &good).is_err());
        assert!(unwrap("log", b"vote", &good).is_err());
    }
}
