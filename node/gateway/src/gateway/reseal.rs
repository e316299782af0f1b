//! Sealing anew: records of older key epochs are opened and written again under the current one.

use super::{Gateway, Inner, TURN_BLOCKS};
use crate::error::GatewayError;
use crate::rows::{Rows, is_present};
use bytes::Bytes;
use futures::FutureExt;
use smalti_rowcommit::coordinator::BlockWrite;
use smalti_storage::geometry::Layout;
use smalti_storage::ids::{KeyEpochNo, RowAddr, Slot};
use smalti_storage::record::{BLOCK_LEN, Record};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

impl Gateway {
    /// Of these blocks, those that are sealed under an older key epoch than that of new records are sealed
    /// anew, as ordinary writes that change nothing. Their contents go through `rows`, which may tell such
    /// work from that of clients. A block is locked meanwhile, so writes of clients come before or after.
    /// One that can not be read, or does not open, keeps no other one back.
    ///
    /// # Errors
    /// As reads and writes that fail for another reason than a block; what was done until then is done.
    pub async fn reseal(
        &self,
        blocks: &[(RowAddr, Slot)],
        rows: &Arc<dyn Rows>,
    ) -> Result<Resealed, GatewayError> {
        let mut done = Resealed::default();
        for span in spans(&self.inner.layout, blocks)? {
            match self.reseal_span(span.clone(), rows).await {
                Ok(sealed) => done.sealed += sealed,
                Err(error) if is_of_a_block(&error) => {
                    // Which one?
                    for block in span {
                        match self.reseal_span(block..block + 1, rows).await {
                            Ok(sealed) => done.sealed += sealed,
                            Err(error) if is_of_a_block(&error) => {
                                let volume = self.inner.identity.volume;
                                tracing::warn!(%volume, block, %error, "not sealed anew");
                                done.failed += 1;
                            }
                            Err(error) => return Err(error),
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Seen to its end with the blocks locked, whoever waits for it.
    async fn reseal_span(
        &self,
        span: Range<u64>,
        rows: &Arc<dyn Rows>,
    ) -> Result<u64, GatewayError> {
        let work = Arc::clone(&self.inner).reseal_span(span, Arc::clone(rows));
        self.inner.runtime.spawn(work.boxed()).await.map_err(|error| {
            tracing::error!(%error, "sealing anew failed");
            GatewayError::Internal
        })?
    }
}

/// What became of blocks that were to be sealed anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resealed {
    /// So many were.
    pub sealed: u64,
    /// So many can not be read, do not open, or have no room just now.
    pub failed: u64,
}

fn is_of_a_block(error: &GatewayError) -> bool {
    matches!(
        error,
        GatewayError::Unreadable
            | GatewayError::Forged { .. }
            | GatewayError::Stale { .. }
            | GatewayError::NoKey { .. }
            // Of a store, and so of its groups.
            | GatewayError::NoSpace
    )
}

impl Inner {
    async fn reseal_span(
        self: Arc<Self>,
        span: Range<u64>,
        rows: Arc<dyn Rows>,
    ) -> Result<u64, GatewayError> {
        let _held = self.locks.acquire(span.clone()).await;
        let fetched = self.fetch_from(rows.as_ref(), span.clone()).await?;
        let current = self.sealer.keys().current();
        let old = (span.start..).zip(&fetched.records).enumerate();
        let old = old.filter(|(_, (_, record))| is_older(record, current));
        let mut contents = Vec::new();
        for (index, (block, _)) in old {
            let mut whole = zeroize::Zeroizing::new(vec![0; BLOCK_LEN]);
            if self.open_one(&fetched, index, &mut whole)? {
                contents.push((block, whole));
            }
        }
        if contents.is_empty() {
            return Ok(0);
        }
        let first_seq = self.take_seqs(contents.len());
        let mut writes: Vec<BlockWrite> = Vec::with_capacity(contents.len());
        for ((block, whole), seq) in contents.iter().zip(first_seq..) {
            self.seal(*block..block + 1, seq, |_| whole.as_slice(), &mut writes)?;
        }
        rows.write(writes).await?;
        let count = contents.len() as u64;
        let done = contents.into_iter().map(|(block, _)| block).zip(first_seq..);
        self.fresh.written(done.map(|(block, seq)| (block, seq, false)));
        Ok(count)
    }
}

fn is_older(record: &Bytes, current: KeyEpochNo) -> bool {
    is_present(record)
        && match Record::decode(record) {
            Ok(Record::Absent) => false,
            Ok(Record::Present { header, .. }) => header.key_epoch < current,
            // No record at all: for whoever opens it to refuse.
            Err(_) => true,
        }
}

/// Blocks in runs that lie close to one another, each with at most [`TURN_BLOCKS`].
fn spans(layout: &Layout, blocks: &[(RowAddr, Slot)]) -> Result<Vec<Range<u64>>, GatewayError> {
    let number = |(row, slot): &(RowAddr, Slot)| layout.block_of(*row, *slot);
    let numbers: Option<BTreeSet<u64>> = blocks.iter().map(number).collect();
    let Some(numbers) = numbers else {
        tracing::error!("blocks to be sealed anew that the volume does not have");
        return Err(GatewayError::Internal);
    };
    let mut spans: Vec<Range<u64>> = Vec::new();
    for block in numbers {
        match spans.last_mut() {
            Some(span) if block == span.end && block - span.start < TURN_BLOCKS as u64 => {
                span.end = block + 1;
            }
            _ => spans.push(block..block + 1),
        }
    }
    Ok(spans)
}
