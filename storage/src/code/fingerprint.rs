//! Fingerprints of records that are linear over the code's field (division fingerprints: Hendricks,
//! Ganger, Reiter, "Verifying distributed erasure-coded data", PODC 2007).
//!
//! A record is a row of pieces of 32 field elements each. Its fingerprint is the sum of piece `p`
//! times `x^p` for a fixed `x` of order 2^16 - 1, and of that the sum of its four quarters: eight
//! field elements, 16 bytes.
//!
//! F1. The fingerprint of a sum is the sum of the fingerprints, that of a multiple the multiple. So
//!     what a parity record will have can be told from the data records' fingerprints alone.
//! F2. A change within eight elements of one quarter of a piece is always seen; any other with a
//!     probability of 1 - 2^-16 or more, if it is an accident. It is no defence against malice.

use super::field::mul;
use super::{Code, CodeError, PIECE, common_length};
use crate::ids::Slot;
use reed_solomon_simd::engine::{DefaultEngine, Engine};
use serde::{Deserialize, Serialize};
use std::ops::BitXor;
use std::sync::LazyLock;

/// Field elements of a fingerprint.
const LANES: usize = 8;

/// Pieces that are multiplied at once.
const STRIDE: usize = 8;

/// The logarithm of `x`.
const LOG_X: u16 = 1;

static ENGINE: LazyLock<DefaultEngine> = LazyLock::new(DefaultEngine::new);

/// 16 bytes that are linear in a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint([u16; LANES]);

impl Fingerprint {
    /// That of a record; empty bytes are the absent one, all zeroes.
    ///
    /// # Errors
    /// When the length is no multiple of 64.
    pub fn of(record: &[u8]) -> Result<Self, CodeError> {
        if record.is_empty() {
            return Ok(Self::default());
        }
        common_length([record])?;
        let (pieces, _) = record.as_chunks::<PIECE>();
        // Horner's rule, with all pieces of a stride side by side.
        let mut sum = [[0u8; PIECE]; STRIDE];
        for stride in pieces.chunks(STRIDE).rev() {
            ENGINE.mul(&mut sum, LOG_X * STRIDE as u16);
            for (to, from) in sum.iter_mut().zip(stride) {
                super::xor(to, from);
            }
        }
        let mut folded = [[0u8; PIECE]];
        for piece in sum.iter().rev() {
            ENGINE.mul(&mut folded, LOG_X);
            super::xor(&mut folded[0], piece);
        }
        Ok(Self::quartered(&folded[0]))
    }

    fn quartered(piece: &[u8; PIECE]) -> Self {
        let (low, high) = piece.split_at(PIECE / 2);
        let mut lanes = [0; LANES];
        for (i, (low, high)) in low.iter().zip(high).enumerate() {
            lanes[i % LANES] ^= u16::from_le_bytes([*low, *high]);
        }
        Self(lanes)
    }

    /// Times a field element.
    #[must_use]
    fn times(self, factor: u16) -> Self {
        Self(self.0.map(|lane| mul(lane, factor)))
    }
}

impl BitXor for Fingerprint {
    type Output = Self;

    fn bitxor(self, other: Self) -> Self {
        let mut lanes = self.0;
        lanes.iter_mut().zip(other.0).for_each(|(to, from)| *to ^= from);
        Self(lanes)
    }
}

impl Code {
    /// The fingerprints of the `k` parity records of a row, or of what changes in them, from those
    /// of data records or of what changes in these. Slots that are left out are zeroes.
    ///
    /// # Errors
    /// When a slot is no data slot.
    pub fn coded_fingerprints(
        &self,
        data: impl IntoIterator<Item = (Slot, Fingerprint)>,
    ) -> Result<Vec<Fingerprint>, CodeError> {
        let mut sums = vec![Fingerprint::default(); self.k];
        for (slot, of) in data {
            if slot.index() >= self.n {
                return Err(CodeError::Slot(slot));
            }
            for (sum, row) in sums.iter_mut().zip(&self.generator) {
                *sum = *sum ^ of.times(row[slot.index()]);
            }
        }
        Ok(sums)
    }

    /// Which record of a row is wrong, if it is one alone. Given what fingerprints of parity records
    /// differ by from the coded ones (the syndromes), for all parity slots that are known, some of
    /// them zero. None: fewer than two are known, or no single record explains them all.
    ///
    /// A wrong parity record shows in its own syndrome only; a wrong data record `j` in all of them,
    /// in the ratio of column `j` of the generator, and no two columns agree in two rows.
    pub fn find_wrong(&self, syndromes: &[(Slot, Fingerprint)]) -> Option<Slot> {
        if syndromes.len() < 2 {
            return None;
        }
        let zero = Fingerprint::default();
        let mut wrong = syndromes.iter().filter(|(_, of)| *of != zero);
        let (slot, _) = wrong.next()?;
        if wrong.next().is_none() {
            return Some(*slot);
        }
        let rows: Option<Vec<(&Vec<u16>, Fingerprint)>> = syndromes
            .iter()
            .map(|(slot, of)| Some((self.generator.get(slot.index().checked_sub(self.n)?)?, *of)))
            .collect();
        let rows = rows?;
        let (first, of_first) = rows.first()?;
        let explains =
            |j: &usize| rows.iter().all(|(row, of)| of.times(first[*j]) == of_first.times(row[*j]));
        let mut found = (0..self.n).filter(explains);
        let j = found.next().filter(|_| found.next().is_none())?;
        Some(Slot(u8::try_from(j).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEN: usize = 4160;

    fn record() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), LEN)
    }

    fn of(record: &[u8]) -> Fingerprint {
        Fingerprint::of(record).expect("a whole number of pieces")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn one_wrong_record_is_found_where_two_parity_records_are_known(
            data in prop::collection::vec(record(), 1..6),
            k in 2u8..4,
            (which, at, bit) in (any::<prop::sample::Index>(), 0..LEN, 0u8..8),
        ) {
            let n = u8::try_from(data.len()).expect("few");
            let code = Code::new(n, k).expect("a small code");
            let records: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            let parity = code.encode(&records).expect("whole records");
            let mut all: Vec<Vec<u8>> = data.clone();
            all.extend(parity.iter().map(|record| record.to_vec()));
            let wrong = which.index(all.len());
            all[wrong][at] ^= 1 << bit;
            let prints = all.iter().map(|record| of(record));
            let prints: Vec<(Slot, Fingerprint)> = (0u8..).map(Slot).zip(prints).collect();
            let (data, parity) = prints.split_at(usize::from(n));
            let coded = code.coded_fingerprints(data.iter().copied()).expect("data slots");
            let syndromes = parity.iter().zip(coded).map(|((slot, of), coded)| (*slot, *of ^ coded));
            let syndromes: Vec<_> = syndromes.collect();
            let found = code.find_wrong(&syndromes);
            if n == 1 && k == 2 && wrong == 0 {
                // Three copies: both parity records differ from the one data record alike.
                prop_assert_eq!(found, Some(Slot(0)));
            }
            prop_assert_eq!(found.map(Slot::index), Some(wrong));
            prop_assert_eq!(code.find_wrong(&syndromes[..1]), None);
        }

        #[test]
        fn parity_has_the_coded_fingerprint(
            rows in (1usize..6, 1u8..4).prop_flat_map(|(n, k)| {
                (prop::collection::vec(record(), n), Just(k))
            }),
        ) {
            let (data, k) = rows;
            let n = u8::try_from(data.len()).expect("few");
            let code = Code::new(n, k).expect("a small code");
            let records: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            let parity = code.encode(&records).expect("whole records");
            let prints = (0..n).map(Slot).zip(data.iter().map(|record| of(record)));
            let told = code.coded_fingerprints(prints).expect("data slots");
            let found: Vec<Fingerprint> = parity.iter().map(|record| of(record)).collect();
            prop_assert_eq!(told, found);
        }

        #[test]
        fn a_sum_has_the_sum(a in record(), b in record()) {
            let sum: Vec<u8> = a.iter().zip(&b).map(|(a, b)| a ^ b).collect();
            prop_assert_eq!(of(&sum), of(&a) ^ of(&b));
        }

        #[test]
        fn a_changed_byte_is_seen(mut a in record(), at in 0..LEN, by in 1u8..) {
            let before = of(&a);
            a[at] ^= by;
            prop_assert_ne!(of(&a), before);
        }

        #[test]
        fn two_changed_bytes_in_different_pieces_are_seen(
            mut a in record(), at in 0..LEN / 2, other in LEN / 2 + 64..LEN, by in 1u8..,
        ) {
            let before = of(&a);
            a[at] ^= by;
            a[other] ^= by;
            prop_assert_ne!(of(&a), before);
        }
    }

    #[test]
    fn looks_as_written_down() {
        // The first element of the second piece is 1: x itself, in the first lane.
        let mut record = vec![0; 128];
        record[64] = 1;
        let x = reed_solomon_simd::engine::tables::get_exp_log().exp[1];
        assert_eq!(of(&record), Fingerprint([x, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(of(&[]), Fingerprint::default());
        assert_eq!(Fingerprint::of(&[0; 65]), Err(CodeError::Length(65)));
    }
}
