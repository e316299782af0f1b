//! Writes: lock, complete the ragged ends, seal, send, remember.

use super::{Inner, PIECE_BLOCKS, SPAWN_BLOCKS, TURN_BLOCKS};
use crate::device::BoxFuture;
use crate::error::GatewayError;
use crate::finish::Finish;
use crate::pieces::{BLOCK, Piece, pieces};
use crate::range_lock::RangeGuard;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{join_all, try_join_all};
use smalti_rowcommit::coordinator::BlockWrite;
use smalti_storage::ids::Wid;
use smalti_storage::record::BLOCK_LEN;
use smalti_storage::seal::SealPlace;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::task::yield_now;

impl Inner {
    /// Writes bytes inside the volume; there is at least one.
    pub(super) fn write(
        self: Arc<Self>,
        offset: u64,
        mut data: Bytes,
    ) -> BoxFuture<Result<(), GatewayError>> {
        let whole = Piece { offset, length: data.len() as u64 };
        // Queued before the first poll, so that calls that overlap take effect in their order.
        let place = self.locks.acquire(whole.blocks());
        async move {
            let held = Arc::new(place.await);
            let (row, length) = (self.row_blocks(), whole.length);
            let mut cut = pieces(offset, length, row, PIECE_BLOCKS).peekable();
            let mut begin = |piece: Piece| {
                let data = data.split_to(piece.length as usize);
                let this = Arc::clone(&self);
                let work = async move { this.write_piece(piece, data).await };
                Arc::clone(&self).carry_out(piece, Arc::clone(&held), work)
            };
            let first = cut.next().ok_or(GatewayError::Internal)?;
            if cut.peek().is_none() {
                return begin(first).await;
            }
            // All of them to their end; the first error counts.
            let all = join_all(std::iter::once(first).chain(cut).map(begin)).await;
            all.into_iter().collect()
        }
        .boxed()
    }

    /// Carries out a piece of a write whose range is held. From its admission on it is seen to its
    /// end, with the range held, even if this future is dropped. So what outlives its callers is
    /// bounded by the admission.
    pub(super) async fn carry_out(
        self: Arc<Self>,
        piece: Piece,
        held: Arc<RangeGuard>,
        work: impl Future<Output = Result<(), GatewayError>> + Send + 'static,
    ) -> Result<(), GatewayError> {
        let permit = self.admit(piece.block_count()).await;
        let work = async move {
            let result = work.await;
            drop((permit, held));
            result
        };
        let runtime = self.runtime.clone();
        if piece.block_count() < SPAWN_BLOCKS {
            return Finish::new(runtime, work).await;
        }
        let task = runtime.spawn(work);
        let joined = async move {
            task.await.unwrap_or_else(|error| {
                tracing::error!(%error, "a write failed");
                Err(GatewayError::Internal)
            })
        };
        Finish::new(runtime, joined).await
    }

    async fn write_piece(&self, piece: Piece, data: Bytes) -> Result<(), GatewayError> {
        let blocks = piece.blocks();
        let ragged = piece.ragged_blocks();
        let old = try_join_all(ragged.clone().map(|block| self.read_for_update(block))).await?;
        let complete = |(block, old): (u64, Option<Vec<u8>>)| {
            let mut whole = old.unwrap_or_else(|| vec![0; BLOCK_LEN]);
            let within = piece.within(block);
            let from = (block * BLOCK).saturating_sub(piece.offset) as usize;
            whole[within.clone()].copy_from_slice(&data[from..from + within.len()]);
            (block, whole)
        };
        let ends: Vec<(u64, Vec<u8>)> = ragged.zip(old).map(complete).collect();
        let plaintext = |block: u64| match ends.iter().find(|(end, _)| *end == block) {
            Some((_, whole)) => whole.as_slice(),
            None => {
                let from = (block * BLOCK - piece.offset) as usize;
                &data[from..from + BLOCK_LEN]
            }
        };
        let count = piece.block_count();
        let first_seq = self.take_seqs(count);
        let mut writes = Vec::with_capacity(count);
        let mut turn = blocks.start;
        while turn < blocks.end {
            let until = blocks.end.min(turn + TURN_BLOCKS as u64);
            let seq = first_seq + (turn - blocks.start);
            self.seal(turn..until, seq, plaintext, &mut writes)?;
            turn = until;
            if turn < blocks.end {
                yield_now().await;
            }
        }
        self.rows.write(writes).await?;
        self.fresh.written(blocks.zip(first_seq..).map(|(block, seq)| (block, seq, false)));
        Ok(())
    }

    /// The present contents of a block that the caller has locked; `None` when it is absent.
    pub(super) async fn read_for_update(
        &self,
        block: u64,
    ) -> Result<Option<Vec<u8>>, GatewayError> {
        let fetched = self.fetch(block..block + 1).await?;
        let mut whole = vec![0; BLOCK_LEN];
        Ok(self.open_one(&fetched, 0, &mut whole)?.then_some(whole))
    }

    /// Numbers for so many writes; the first of them. Taken with the blocks locked, so that the
    /// numbers of one block are sent in their order.
    pub(super) fn take_seqs(&self, count: usize) -> u64 {
        self.next_seq.fetch_add(count as u64, Ordering::Relaxed)
    }

    /// Seals consecutive blocks, at most [`TURN_BLOCKS`], numbered from `seq`.
    pub(super) fn seal<'a>(
        &self,
        blocks: Range<u64>,
        seq: u64,
        plaintext: impl Fn(u64) -> &'a [u8],
        writes: &mut Vec<BlockWrite>,
    ) -> Result<(), GatewayError> {
        let mut nonces = [[0; 4]; TURN_BLOCKS];
        let nonces = &mut nonces[..(blocks.end - blocks.start) as usize];
        self.salter.draw(&self.sealer, nonces)?;
        let snap = self.snap.load(Ordering::Relaxed);
        for ((block, nonce), seq) in blocks.zip(nonces).zip(seq..) {
            let write = self.block_write(block, seq);
            let BlockWrite { row, slot, wid, .. } = write;
            let place = SealPlace { block, row, slot, snap, wid };
            let record = self.sealer.seal(&place, plaintext(block), *nonce).map_err(|error| {
                tracing::error!(volume = %self.identity.volume, block, %error, "cannot seal");
                GatewayError::Internal
            })?;
            writes.push(BlockWrite { record, ..write });
        }
        Ok(())
    }

    /// The write that makes a block absent.
    pub(super) fn block_write(&self, block: u64, seq: u64) -> BlockWrite {
        let (row, slot) = self.place(block);
        let wid = Wid { generation: self.generation, seq };
        BlockWrite { row, slot, wid, record: Bytes::new() }
    }
}
