//! Where every block of a volume is: the keyed, size-independent placement.
//!
//! Blocks are counted from 0. Row `r` of an `n+k` volume holds the blocks `r*n .. r*n+n`, and
//!
//! * *stripe*: stripe `i` begins at row `b_i`, where `b_0 = 0` and
//!   `b_i = i*R + PRF(boundary, i) mod R/2`, with `R` the mean rows of a stripe. So a stripe has
//!   between `R/2 + 1` and `3R/2 - 1` rows, and row `r` is in stripe `r/R` or the one before;
//! * *group*: stripe `i` belongs to group `PRF(group, i) mod groups`;
//! * *slot*: `PRF(order, r)`, read digit by digit in the factorial number system, drives a
//!   Fisher-Yates shuffle of `0..n`; its entry `j` is the data slot of block `r*n + j`. There are
//!   `n! < 2^113` orders, so the bias from 128 bits is below 2^-15 for any and below 2^-66 for
//!   `n <= 20`; it concerns spread, not secrecy.
//!
//! Nothing here depends on the volume's size: resizing moves no block. All numbers cost a few AES
//! blocks, because this runs on every read and write.
//!
//! G1. `locate` and `block_of` are inverse to each other.
//! G2. No question panics or overflows, whatever numbers it is asked with.

use super::prf::{Prf, Use};
use super::{Geometry, PlaceKey, SLOTS_MAX};
use crate::ids::{GroupNo, RowAddr, Slot};
use std::fmt;
use std::ops::Range;

/// The place of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockPlace {
    /// The row that holds it.
    pub row: RowAddr,
    /// The data slot within the row.
    pub slot: Slot,
}

/// The placement of one volume: its geometry under its place key.
#[derive(Clone)]
pub struct Layout {
    geometry: Geometry,
    prf: Prf,
}

impl Layout {
    /// The placement of a volume with `geometry` under `key`.
    ///
    /// # Panics
    /// If `geometry` was altered after [`Geometry::new`] to one that it refuses.
    pub fn new(geometry: Geometry, key: &PlaceKey) -> Self {
        let Geometry { data, parity, shard_size, groups } = geometry;
        assert_eq!(Geometry::new(data, parity, shard_size, groups), Ok(geometry), "bad geometry");
        Self { geometry, prf: Prf::new(key) }
    }

    /// The volume's geometry.
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The place of a block.
    pub fn locate(&self, block: u64) -> BlockPlace {
        let n = u64::from(self.geometry.data);
        let row = block / n;
        let order = self.order(row);
        BlockPlace { row: self.row_addr(row), slot: Slot(order[(block % n) as usize]) }
    }

    /// The block that a data slot of a row holds. `None` when there is no such place: a parity
    /// slot, a row beyond its stripe, a stripe of another group, a block beyond 2^64.
    pub fn block_of(&self, row: RowAddr, slot: Slot) -> Option<u64> {
        let row = self.row_number(row)?;
        let position = self.order(row)[..self.n()].iter().position(|s| *s == slot.0)?;
        row.checked_mul(u64::from(self.geometry.data))?.checked_add(position as u64)
    }

    /// The blocks of a row in the order of its data slots. `None` as in [`Layout::block_of`].
    pub fn blocks_of(&self, row: RowAddr) -> Option<Vec<u64>> {
        let row = self.row_number(row)?;
        let first = row.checked_mul(u64::from(self.geometry.data))?;
        first.checked_add(u64::from(self.geometry.data) - 1)?;
        let mut blocks = vec![0; self.n()];
        for (block, slot) in (first..).zip(&self.order(row)[..self.n()]) {
            blocks[usize::from(*slot)] = block;
        }
        Some(blocks)
    }

    /// The address of the volume's row number `row`, counted from 0.
    pub fn row_addr(&self, row: u64) -> RowAddr {
        let candidate = row / u64::from(self.geometry.rows_per_stripe());
        let (stripe, begin) = match self.boundary(candidate) {
            Some(begin) if begin <= row => (candidate, begin),
            // Its boundary lies after the row (or after 2^64), so the row still belongs to the
            // stripe before. Boundary 0 is row 0, so there is one.
            _ => (candidate - 1, self.boundary(candidate - 1).unwrap_or(u64::MAX)),
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a stripe has below 3R/2 <= 24576 rows"
        )]
        RowAddr { group: self.group_of(stripe), stripe, index: (row - begin) as u32 }
    }

    /// The number of the row at an address, counted from 0 within the volume. `None` when there
    /// is no such row.
    pub fn row_number(&self, row: RowAddr) -> Option<u64> {
        let rows = self.stripe_rows(row.stripe);
        let number = rows.start.checked_add(u64::from(row.index))?;
        (rows.contains(&number) && row.group == self.group_of(row.stripe)).then_some(number)
    }

    /// The rows of a stripe; empty beyond 2^64 rows.
    pub fn stripe_rows(&self, stripe: u64) -> Range<u64> {
        let begin = self.boundary(stripe).unwrap_or(u64::MAX);
        let end = stripe.checked_add(1).and_then(|next| self.boundary(next)).unwrap_or(u64::MAX);
        begin..end
    }

    /// How many stripes hold the first `rows` rows of the volume.
    pub fn stripes(&self, rows: u64) -> u64 {
        rows.checked_sub(1).map_or(0, |last| self.row_addr(last).stripe + 1)
    }

    /// The group of a stripe.
    pub fn group_of(&self, stripe: u64) -> GroupNo {
        let number = self.prf.number(Use::Group, stripe);
        #[expect(clippy::cast_possible_truncation, reason = "below groups, a u16")]
        GroupNo((number % u128::from(self.geometry.groups)) as u16)
    }

    /// The first row of a stripe, unless it lies beyond 2^64.
    fn boundary(&self, stripe: u64) -> Option<u64> {
        if stripe == 0 {
            return Some(0);
        }
        // R is a power of two, so the remainder is a mask of the low bits.
        let mean = u64::from(self.geometry.rows_per_stripe());
        #[expect(clippy::cast_possible_truncation, reason = "only low bits are used")]
        let shift = self.prf.number(Use::Boundary, stripe) as u64 & (mean / 2 - 1);
        stripe.checked_mul(mean)?.checked_add(shift)
    }

    /// For each block of a row, in order of address, its data slot; entries from `n` are unused.
    fn order(&self, row: u64) -> [u8; SLOTS_MAX as usize] {
        let mut order = std::array::from_fn(|slot| slot as u8);
        let mut digits = self.prf.number(Use::Order, row);
        for i in (1..self.n()).rev() {
            let base = i as u128 + 1;
            order.swap(i, (digits % base) as usize);
            digits /= base;
        }
        order
    }

    fn n(&self) -> usize {
        usize::from(self.geometry.data)
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layout").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
