//! The pseudorandom function behind the layout: one AES-256 block per question.
//!
//! `PRF(use, i) = AES-256(place key, [1, use, 0, 0, 0, 0, 0, 0] | i as 8 bytes big endian)`, read
//! as a big endian 128-bit number. The first byte is the construction's version and the second
//! separates the uses, so no two of them ever ask about the same AES input. AES is a permutation
//! and not a function, but telling the two apart takes about 2^64 questions; a volume has at most
//! 2^52 rows.

use super::PlaceKey;
use crate::secret::note_use;
use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::{Array, BlockCipherEncrypt, KeyInit};

const VERSION: u8 = 1;

/// What a pseudorandom number is for.
#[derive(Clone, Copy)]
pub(super) enum Use {
    /// Where a stripe begins.
    Boundary = 1,
    /// Which group a stripe belongs to.
    Group = 2,
    /// Which block of a row goes to which data slot.
    Order = 3,
}

#[derive(Clone)]
pub(super) struct Prf(Aes256);

impl Prf {
    pub(super) fn new(key: &PlaceKey) -> Self {
        // The schedule is moved to where it stays.
        note_use();
        Self(Aes256::new(&Array::from(*key.expose())))
    }

    #[inline]
    pub(super) fn number(&self, purpose: Use, index: u64) -> u128 {
        let input = u128::from(VERSION) << 120 | (purpose as u128) << 112 | u128::from(index);
        let mut block = Array::from(input.to_be_bytes());
        self.0.encrypt_block(&mut block);
        u128::from_be_bytes(block.into())
    }
}
