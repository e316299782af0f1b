//! Requests cut into pieces: what one lock, one permit and one call of the coordinator cover.

use smalti_storage::record::BLOCK_LEN;
use std::ops::Range;

pub(crate) const BLOCK: u64 = BLOCK_LEN as u64;

/// A run of bytes of the volume, not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Piece {
    pub(crate) fn end(self) -> u64 {
        self.offset + self.length
    }

    /// The blocks it touches.
    pub(crate) fn blocks(self) -> Range<u64> {
        self.offset / BLOCK..self.end().div_ceil(BLOCK)
    }

    pub(crate) fn block_count(self) -> usize {
        let blocks = self.blocks();
        (blocks.end - blocks.start) as usize
    }

    /// The blocks it covers as a whole; possibly none.
    pub(crate) fn whole_blocks(self) -> Range<u64> {
        let first = self.offset.div_ceil(BLOCK);
        first..(self.end() / BLOCK).max(first)
    }

    /// The blocks it touches without covering them: none, one or two.
    pub(crate) fn ragged_blocks(self) -> impl Iterator<Item = u64> + Clone {
        let (blocks, whole) = (self.blocks(), self.whole_blocks());
        let first = (!whole.contains(&blocks.start)).then_some(blocks.start);
        let last = blocks.end - 1;
        let last = (last != blocks.start && !whole.contains(&last)).then_some(last);
        first.into_iter().chain(last)
    }

    /// The part of a touched block that lies in the piece.
    pub(crate) fn within(self, block: u64) -> Range<usize> {
        let from = self.offset.saturating_sub(block * BLOCK).min(BLOCK);
        let to = self.end().saturating_sub(block * BLOCK).min(BLOCK);
        from as usize..to as usize
    }
}

/// Cuts a range inside a volume at row boundaries into pieces of at most about `blocks_max`
/// blocks, so that no row is split that need not be.
///
/// `offset + length` must not overflow, nor lie within `blocks_max` blocks of doing so.
pub(crate) fn pieces(
    offset: u64,
    length: u64,
    row_blocks: u64,
    blocks_max: u64,
) -> impl Iterator<Item = Piece> {
    let end = offset + length;
    let span = (blocks_max / row_blocks).max(1) * row_blocks;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let block = at / BLOCK;
            let cut = ((block - block % row_blocks + span) * BLOCK).min(end);
            let piece = Piece { offset: at, length: cut - at };
            at = cut;
            piece
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_cover_the_range_in_order_and_keep_rows_whole(
            offset in 0u64..100 * BLOCK,
            length in 0u64..300 * BLOCK,
            row in 1u64..6,
            max in 1u64..40,
        ) {
            let cut: Vec<Piece> = pieces(offset, length, row, max).collect();
            let mut at = offset;
            for piece in &cut {
                prop_assert_eq!(piece.offset, at);
                prop_assert!(piece.length > 0 && piece.block_count() as u64 <= max.max(row));
                at = piece.end();
                prop_assert!(at == offset + length || at % (row * BLOCK) == 0);
            }
            prop_assert_eq!(at, offset + length);
        }

        #[test]
        fn blocks_are_whole_or_ragged(offset in 0u64..9 * BLOCK, length in 1u64..9 * BLOCK) {
            let piece = Piece { offset, length };
            let ragged: Vec<u64> = piece.ragged_blocks().collect();
            let mut bytes = 0;
            for block in piece.blocks() {
                let within = piece.within(block);
                prop_assert!(!within.is_empty());
                bytes += within.len() as u64;
                let whole = within == (0..BLOCK_LEN);
                prop_assert_eq!(piece.whole_blocks().contains(&block), whole);
                prop_assert_eq!(ragged.contains(&block), !whole);
            }
            prop_assert_eq!(bytes, length);
        }
    }
}
