//! Block status: data where records are, holes elsewhere.

use super::Inner;
use crate::error::GatewayError;
use crate::pieces::{BLOCK, Piece};
use smalti_nbd::Extent;
use std::sync::Arc;

/// Blocks asked about at once.
const STEP_BLOCKS: u64 = 512;
/// Blocks asked about for one answer; the client asks again from where it ended. 16 MiB.
const ANSWER_BLOCKS: u64 = 4096;

impl Inner {
    pub(super) async fn block_status(
        self: Arc<Self>,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, GatewayError> {
        let piece = Piece { offset, length };
        let mut blocks = piece.blocks();
        blocks.end = blocks.end.min(blocks.start.saturating_add(ANSWER_BLOCKS));
        let mut extents: Vec<Extent> = Vec::new();
        while !blocks.is_empty() {
            let step = blocks.start..blocks.end.min(blocks.start + STEP_BLOCKS);
            blocks.start = step.end;
            for (block, present) in step.clone().zip(self.present(step).await?) {
                let within = piece.within(block);
                let length = (within.end - within.start) as u64;
                debug_assert!(length > 0 && length <= BLOCK);
                let full = extents.len() == extents_max;
                match extents.last_mut() {
                    Some(last) if last.hole != present => last.length += length,
                    _ if full => return Ok(extents),
                    _ => extents.push(Extent { length, hole: !present, zero: !present }),
                }
            }
        }
        Ok(extents)
    }
}
