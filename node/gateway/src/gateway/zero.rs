//! Zeroing: whole blocks become absent, ragged ends are completed and written.

use super::{Inner, PIECE_BLOCKS};
use crate::device::BoxFuture;
use crate::error::GatewayError;
use crate::pieces::{Piece, pieces};
use futures::future::try_join_all;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::ops::Range;
use std::sync::Arc;

/// Pieces of one request under way together.
const PIECES_AHEAD: usize = 4;

/// Requests of so many blocks and more find out which are absent already and leave them alone. A file system
/// begins by discarding its whole device: on a new volume, asking is far cheaper than writing
/// absence durably where there is nothing.
const ASK_BLOCKS: usize = 32;

impl Inner {
    /// Zeroes bytes inside the volume; there is at least one.
    pub(super) fn zero(
        self: Arc<Self>,
        offset: u64,
        length: u64,
    ) -> BoxFuture<Result<(), GatewayError>> {
        // As a whole and before the first poll: a write that is called later must not be undone by
        // a piece that begins later still.
        let all = Piece { offset, length };
        let place = self.locks.acquire(all.blocks());
        let ask = all.block_count() >= ASK_BLOCKS;
        async move {
            let held = Arc::new(place.await);
            let mut cut = pieces(offset, length, self.row_blocks(), PIECE_BLOCKS);
            let mut running = FuturesUnordered::new();
            let mut result = Ok(());
            loop {
                // An error keeps new pieces from beginning; those under way are waited for.
                while running.len() < PIECES_AHEAD
                    && result.is_ok()
                    && let Some(piece) = cut.next()
                {
                    let this = Arc::clone(&self);
                    let work = async move { this.zero_piece(piece, ask).await };
                    running.push(Arc::clone(&self).carry_out(piece, Arc::clone(&held), work));
                }
                let Some(done) = running.next().await else { return result };
                result = result.and(done);
            }
        }
        .boxed()
    }

    async fn zero_piece(&self, piece: Piece, ask: bool) -> Result<(), GatewayError> {
        // What is to be written: a block and, unless it becomes absent, its contents.
        let mut blocks: Vec<(u64, Option<Vec<u8>>)> = Vec::new();
        let ragged = piece.ragged_blocks();
        let old = try_join_all(ragged.clone().map(|block| self.read_for_update(block))).await?;
        for (block, old) in ragged.zip(old) {
            if let Some(mut whole) = old {
                whole[piece.within(block)].fill(0);
                let empty = whole.iter().all(|byte| *byte == 0);
                blocks.push((block, (!empty).then_some(whole)));
            }
        }
        let whole = piece.whole_blocks();
        if ask {
            let present = self.present(whole.clone()).await?;
            let present = whole.zip(present).filter(|(_, present)| *present);
            blocks.extend(present.map(|(block, _)| (block, None)));
        } else {
            blocks.extend(whole.map(|block| (block, None)));
        }
        if blocks.is_empty() {
            return Ok(());
        }
        let first_seq = self.take_seqs(blocks.len());
        let mut writes = Vec::with_capacity(blocks.len());
        for ((block, contents), seq) in blocks.iter().zip(first_seq..) {
            match contents {
                None => writes.push(self.block_write(*block, seq)),
                Some(whole) => self.seal(*block..block + 1, seq, |_| whole, &mut writes)?,
            }
        }
        let absent = blocks.iter().filter(|(_, contents)| contents.is_none());
        self.fresh.zeroing(absent.map(|(block, _)| *block));
        self.rows.write(writes).await?;
        let done = blocks.iter().zip(first_seq..);
        self.fresh.written(done.map(|((block, contents), seq)| (*block, seq, contents.is_none())));
        Ok(())
    }

    /// Which of some consecutive blocks are present.
    pub(super) async fn present(&self, blocks: Range<u64>) -> Result<Vec<bool>, GatewayError> {
        let places: Vec<_> = blocks.clone().map(|block| self.place(block)).collect();
        let asked = places.len();
        let marks = self.fresh.marks(blocks.clone());
        let present = self.rows.present(places).await?;
        if present.len() != asked {
            tracing::error!(asked, got = present.len(), "the presence of blocks is missing");
            return Err(GatewayError::Internal);
        }
        for ((block, mark), present) in blocks.zip(marks).zip(&present) {
            if !present {
                self.accept_absent(block, mark)?;
            }
        }
        Ok(present)
    }
}
