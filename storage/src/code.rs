//! Erasure coding of rows: `k` parity records over `n` data records.
//!
//! The code is the one of reed-solomon-simd, a systematic Reed-Solomon code over GF(2^16), applied
//! to whole records: header, nonce and tag are coded like the ciphertext, or a rebuilt record
//! could not be opened.
//!
//! The code is linear, so it has a generator matrix `g` with `parity_p = sum_j g[p][j] * data_j`.
//! Full rows are encoded by the library's fast transform. Everything that concerns a part of a row
//! goes through the matrix instead: a delta costs `k` multiplications of one record, and a lost
//! record `n`, where the library's decoder would evaluate a polynomial over all 2^16 points of the
//! field (some 300 us) for every row. The matrix is read off the library by encoding unit vectors,
//! and the tests compare every result with the library's own.
//!
//! With `k = 1` the library's parity is the plain XOR of the data and with `n = 1` it is a copy;
//! both are computed as that, with the same bytes.
//!
//! C1. `delta(slot, old ^ new)` XORed onto the parity of the old row is the parity of the new row.
//! C2. Any `n` of the `n + k` records of a row give all others.
//! C3. A row of absent records has absent (all-zero) parity.

use crate::geometry::{Geometry, SLOTS_MAX};
use crate::ids::{Slot, SlotSet};
use bytes::Bytes;
use reed_solomon_simd::ReedSolomonEncoder;
use reed_solomon_simd::engine::tables::get_exp_log;
use reed_solomon_simd::engine::{DefaultEngine, Engine};
use std::cell::RefCell;
use std::fmt;

mod field;
mod fingerprint;

use field::{invert, mul};
pub use fingerprint::Fingerprint;

/// The library splits shards into pieces of this many bytes, 32 low halves of field elements and
/// then 32 high halves. Whole pieces need no padding.
const PIECE: usize = 64;

/// The code of one geometry. Cheap to share between threads; makes no allocation but its results.
pub struct Code {
    n: usize,
    k: usize,
    /// `k` rows of `n` field elements.
    generator: Vec<Vec<u16>>,
    engine: DefaultEngine,
}

/// Why a row could not be coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodeError {
    /// There is no such code.
    #[error("no code has {n}+{k} shards")]
    Shape {
        /// Data shards asked for.
        n: usize,
        /// Parity shards asked for.
        k: usize,
    },
    /// Not one record for each data slot.
    #[error("a row has {need} data records, not {have}")]
    Count {
        /// How many there must be.
        need: usize,
        /// How many were given.
        have: usize,
    },
    /// Records of different lengths, or a length that is not a positive multiple of 64.
    #[error("a record of {0} bytes does not fit the row")]
    Length(usize),
    /// A slot that the code does not have, or a parity slot where a data slot is needed.
    #[error("slot {0} has no place here")]
    Slot(Slot),
    /// A slot was given twice.
    #[error("slot {0} is given twice")]
    Duplicate(Slot),
    /// Fewer than `n` records.
    #[error("{have} records are too few to rebuild a row: {need} are needed")]
    NotEnough {
        /// How many are needed.
        need: usize,
        /// How many were given.
        have: usize,
    },
}

thread_local! {
    // Its work buffers are what makes an encoder worth keeping; one for each thread serves all
    // geometries, because setting it to another shape keeps them.
    static ENCODER: RefCell<Option<ReedSolomonEncoder>> = const { RefCell::new(None) };
}

/// XORs `src` onto `dst`.
///
/// # Panics
/// If the lengths differ.
pub fn xor(dst: &mut [u8], src: &[u8]) {
    assert_eq!(dst.len(), src.len(), "xor of different lengths");
    for (to, from) in dst.iter_mut().zip(src) {
        *to ^= from;
    }
}

impl Code {
    /// The code with `n` data and `k` parity shards.
    ///
    /// # Errors
    /// Unless both are at least 1 and their sum is at most 32.
    pub fn new(n: u8, k: u8) -> Result<Self, CodeError> {
        let (n, k) = (usize::from(n), usize::from(k));
        if n == 0 || k == 0 || n + k > usize::from(SLOTS_MAX) {
            return Err(CodeError::Shape { n, k });
        }
        let mut generator = vec![vec![0; n]; k];
        for j in 0..n {
            // The field's one is the number 1: low half 1, high half 0.
            let mut unit = vec![[0u8; PIECE]; n];
            unit[j][0] = 1;
            let columns: Vec<&[u8]> = unit.iter().map(|piece| &piece[..]).collect();
            let parity = encode_by_library(n, k, PIECE, &columns)?;
            for (row, piece) in generator.iter_mut().zip(&parity) {
                row[j] = u16::from_le_bytes([piece[0], piece[PIECE / 2]]);
            }
        }
        Ok(Self { n, k, generator, engine: DefaultEngine::new() })
    }

    /// The code of a geometry.
    ///
    /// # Errors
    /// If the geometry was altered after [`Geometry::new`] to one that it refuses.
    pub fn for_geometry(geometry: &Geometry) -> Result<Self, CodeError> {
        Self::new(geometry.data, geometry.parity)
    }

    /// The `k` parity records of a full row, given its `n` data records in the order of slots.
    ///
    /// # Errors
    /// Unless there are `n` records of one length, a positive multiple of 64.
    pub fn encode(&self, data: &[&[u8]]) -> Result<Vec<Bytes>, CodeError> {
        if data.len() != self.n {
            return Err(CodeError::Count { need: self.n, have: data.len() });
        }
        let len = common_length(data.iter().copied())?;
        if self.n == 1 {
            return Ok(vec![Bytes::copy_from_slice(data[0]); self.k]);
        }
        if self.k == 1 {
            let mut parity = data[0].to_vec();
            data[1..].iter().for_each(|record| xor(&mut parity, record));
            return Ok(vec![parity.into()]);
        }
        let parity = encode_by_library(self.n, self.k, len, data)?;
        Ok(parity.into_iter().map(Bytes::from).collect())
    }

    /// What to XOR onto each of the `k` parity records when data slot `slot` changes by `delta`
    /// (old record XOR new record).
    ///
    /// # Errors
    /// When `slot` is no data slot or the length is not a positive multiple of 64.
    pub fn delta(&self, slot: Slot, delta: &[u8]) -> Result<Vec<Bytes>, CodeError> {
        if slot.index() >= self.n {
            return Err(CodeError::Slot(slot));
        }
        common_length([delta])?;
        Ok(self
            .generator
            .iter()
            .map(|row| {
                let mut out = delta.to_vec();
                self.multiply(&mut out, row[slot.index()]);
                out.into()
            })
            .collect())
    }

    /// The records of the slots `want`, in that order, from any `n` or more records of the row.
    /// Data records are preferred; surplus records are not looked at. A wanted slot that is among
    /// those given is copied.
    ///
    /// # Errors
    /// With fewer than `n` records, an unknown or repeated slot, or records of different lengths.
    pub fn reconstruct(
        &self,
        have: &[(Slot, &[u8])],
        want: &[Slot],
    ) -> Result<Vec<(Slot, Bytes)>, CodeError> {
        let mut given = [None; SLOTS_MAX as usize];
        let mut seen = SlotSet::EMPTY;
        for (slot, record) in have {
            self.check_slot(*slot)?;
            if seen.contains(*slot) {
                return Err(CodeError::Duplicate(*slot));
            }
            seen = seen.with(*slot);
            given[slot.index()] = Some(*record);
        }
        if have.len() < self.n {
            return Err(CodeError::NotEnough { need: self.n, have: have.len() });
        }
        let len = common_length(have.iter().map(|(_, record)| *record))?;
        let sources: Vec<Slot> = seen.iter().take(self.n).collect();
        let lost = Lost::new(self, &sources);
        let mut scratch = Vec::with_capacity(len);
        want.iter()
            .map(|slot| {
                self.check_slot(*slot)?;
                if let Some(record) = given[slot.index()] {
                    return Ok((*slot, Bytes::copy_from_slice(record)));
                }
                let mut out = vec![0; len];
                for (source, factor) in sources.iter().zip(lost.factors(self, *slot)) {
                    let record = given[source.index()].unwrap_or_default();
                    self.accumulate(&mut out, record, factor, &mut scratch);
                }
                Ok((*slot, out.into()))
            })
            .collect()
    }

    fn check_slot(&self, slot: Slot) -> Result<(), CodeError> {
        if slot.index() < self.n + self.k { Ok(()) } else { Err(CodeError::Slot(slot)) }
    }

    /// `out += factor * record`.
    fn accumulate(&self, out: &mut [u8], record: &[u8], factor: u16, scratch: &mut Vec<u8>) {
        match factor {
            0 => {}
            1 => xor(out, record),
            _ => {
                scratch.clear();
                scratch.extend_from_slice(record);
                self.multiply(scratch, factor);
                xor(out, scratch);
            }
        }
    }

    /// `bytes *= factor`, for a factor that is not zero: the code has no zero in its generator.
    fn multiply(&self, bytes: &mut [u8], factor: u16) {
        assert_ne!(factor, 0, "multiplication by zero has no logarithm");
        if factor != 1 {
            let (pieces, rest) = bytes.as_chunks_mut::<PIECE>();
            assert!(rest.is_empty(), "length was checked");
            self.engine.mul(pieces, get_exp_log().log[usize::from(factor)]);
        }
    }
}

/// The solved system of one loss: which data slots are missing among the sources, and each of
/// them as a sum over the sources.
struct Lost {
    /// For each data slot its factors over the sources, in the order of the sources.
    data: Vec<Vec<u16>>,
}

impl Lost {
    /// `sources` are `n` slots, ascending.
    fn new(code: &Code, sources: &[Slot]) -> Self {
        let n = code.n;
        let place = |slot: usize| sources.iter().position(|source| source.index() == slot);
        let missing: Vec<usize> = (0..n).filter(|slot| place(*slot).is_none()).collect();
        let mut data = vec![vec![0; n]; n];
        for (slot, row) in data.iter_mut().enumerate() {
            if let Some(i) = place(slot) {
                row[i] = 1;
            }
        }
        // With P the parity sources, as many as there are missing slots M: for each p in P,
        // sum over M of g[p][m] * data_m  =  parity_p + sum over the rest of g[p][j] * data_j.
        let parity: Vec<usize> = (n - missing.len()..n).collect();
        let row_of = |i: usize| &code.generator[sources[i].index() - n];
        let system =
            parity.iter().map(|i| missing.iter().map(|m| row_of(*i)[*m]).collect()).collect();
        let inverse: Vec<Vec<u16>> =
            invert(system).expect("no square part of an MDS generator is singular");
        for (m, factors) in missing.iter().zip(&inverse) {
            for (i, factor) in parity.iter().zip(factors) {
                data[*m][*i] ^= factor;
                for (j, source) in sources.iter().enumerate().take(n - missing.len()) {
                    data[*m][j] ^= mul(*factor, row_of(*i)[source.index()]);
                }
            }
        }
        Self { data }
    }

    /// The factors of a slot over the sources.
    fn factors(&self, code: &Code, slot: Slot) -> Vec<u16> {
        if let Some(row) = self.data.get(slot.index()) {
            return row.clone();
        }
        let mut out = vec![0; code.n];
        for (row, factor) in self.data.iter().zip(&code.generator[slot.index() - code.n]) {
            for (to, from) in out.iter_mut().zip(row) {
                *to ^= mul(*factor, *from);
            }
        }
        out
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({}+{})", self.n, self.k)
    }
}

/// The length that all records share.
fn common_length<'a>(records: impl IntoIterator<Item = &'a [u8]>) -> Result<usize, CodeError> {
    let mut len = None;
    for record in records {
        if record.is_empty()
            || !record.len().is_multiple_of(PIECE)
            || *len.get_or_insert(record.len()) != record.len()
        {
            return Err(CodeError::Length(record.len()));
        }
    }
    len.ok_or(CodeError::Length(0))
}

/// Encodes with the library's transform. The caller checked counts and lengths.
fn encode_by_library(
    n: usize,
    k: usize,
    len: usize,
    data: &[&[u8]],
) -> Result<Vec<Vec<u8>>, CodeError> {
    let refused = |error| match error {
        reed_solomon_simd::Error::UnsupportedShardCount { .. } => CodeError::Shape { n, k },
        _ => CodeError::Length(len),
    };
    ENCODER.with_borrow_mut(|kept| {
        let encoder = match kept {
            Some(encoder) => {
                encoder.reset(n, k, len).map_err(refused)?;
                encoder
            }
            None => kept.insert(ReedSolomonEncoder::new(n, k, len).map_err(refused)?),
        };
        for record in data {
            encoder.add_original_shard(record).map_err(refused)?;
        }
        let result = encoder.encode().map_err(refused)?;
        Ok(result.recovery_iter().map(<[u8]>::to_vec).collect())
    })
}

#[cfg(test)]
mod tests;
