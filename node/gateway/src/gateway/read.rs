//! Reads: fetch, open, assemble.

use super::{Inner, PIECE_BLOCKS, SPAWN_BLOCKS, TURN_BLOCKS};
use crate::error::GatewayError;
use crate::freshness::Mark;
use crate::pieces::{Piece, pieces};
use crate::rows::{Rows, is_present};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use smalti_nbd::{ReadReply, Segment};
use smalti_storage::ids::{RowAddr, Slot};
use smalti_storage::record::BLOCK_LEN;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::task::yield_now;
use tokio_util::task::AbortOnDropHandle;

/// Pieces of one read that are fetched together.
const PIECES_AHEAD: usize = 8;

/// Blocks as they came from the coordinator.
pub(super) struct Fetched {
    pub(super) first: u64,
    places: Vec<(RowAddr, Slot)>,
    marks: Vec<Mark>,
    pub(super) records: Vec<Bytes>,
}

impl Inner {
    pub(super) async fn read(
        self: Arc<Self>,
        offset: u64,
        length: u64,
    ) -> Result<ReadReply, GatewayError> {
        let mut cut = pieces(offset, length, self.row_blocks(), PIECE_BLOCKS);
        let first = cut.next().ok_or(GatewayError::Internal)?;
        let mut reply = ReadReply::new();
        if first.end() == offset + length {
            self.read_piece(first, &mut reply).await?;
            return Ok(reply);
        }
        let parts = stream::iter(std::iter::once(first).chain(cut)).map(|piece| {
            let this = Arc::clone(&self);
            async move {
                let mut reply = ReadReply::new();
                this.read_piece(piece, &mut reply).await.map(|()| reply)
            }
        });
        let mut parts = parts.buffered(PIECES_AHEAD);
        while let Some(part) = parts.try_next().await? {
            part.segments().for_each(|segment| reply.push(segment.clone()));
        }
        Ok(reply)
    }

    async fn read_piece(
        self: &Arc<Self>,
        piece: Piece,
        reply: &mut ReadReply,
    ) -> Result<(), GatewayError> {
        let opened = match self.read_and_open(piece).await {
            // Its keys were forgotten with the record on its way here: it was sealed anew before that.
            Err(GatewayError::NoKey { .. }) => self.read_and_open(piece).await?,
            opened => opened?,
        };
        assemble(piece, &opened, reply);
        Ok(())
    }

    async fn read_and_open(self: &Arc<Self>, piece: Piece) -> Result<Opened, GatewayError> {
        let fetched = self.fetch(piece.blocks()).await?;
        if fetched.present() < SPAWN_BLOCKS {
            return self.open_all(&fetched).await;
        }
        let this = Arc::clone(self);
        let task = self.runtime.spawn(async move { this.open_all(&fetched).await });
        AbortOnDropHandle::new(task).await.map_err(|error| {
            tracing::error!(%error, "opening blocks failed");
            GatewayError::Internal
        })?
    }

    /// Fetches the records of consecutive blocks.
    pub(super) async fn fetch(&self, blocks: Range<u64>) -> Result<Fetched, GatewayError> {
        self.fetch_from(self.rows.as_ref(), blocks).await
    }

    /// The same from other rows than those of clients.
    pub(super) async fn fetch_from(
        &self,
        rows: &dyn Rows,
        blocks: Range<u64>,
    ) -> Result<Fetched, GatewayError> {
        let places: Vec<_> = blocks.clone().map(|block| self.place(block)).collect();
        let marks = self.fresh.marks(blocks.clone());
        let records = rows.read(places.clone()).await?;
        if records.len() != places.len() {
            tracing::error!(asked = places.len(), got = records.len(), "records are missing");
            return Err(GatewayError::Internal);
        }
        Ok(Fetched { first: blocks.start, places, marks, records })
    }

    pub(super) fn place(&self, block: u64) -> (RowAddr, Slot) {
        let place = self.layout.locate(block);
        (place.row, place.slot)
    }

    /// Opens what was fetched: the plaintext of the present blocks one after another, and which
    /// blocks these are.
    async fn open_all(&self, fetched: &Fetched) -> Result<Opened, GatewayError> {
        let mut data = BytesMut::zeroed(fetched.present() * BLOCK_LEN);
        let mut present = Vec::with_capacity(fetched.records.len());
        let mut filled = 0;
        for index in 0..fetched.records.len() {
            if index % TURN_BLOCKS == TURN_BLOCKS - 1 {
                yield_now().await;
            }
            let room = data.get_mut(filled..filled + BLOCK_LEN);
            let here = self.open_one(fetched, index, room.unwrap_or_default())?;
            filled += if here { BLOCK_LEN } else { 0 };
            present.push(here);
        }
        Ok(Opened { data: data.freeze(), present })
    }

    /// Opens one of the fetched blocks into `out`, one block long, unless it is absent. Says
    /// whether it is present.
    pub(super) fn open_one(
        &self,
        fetched: &Fetched,
        index: usize,
        out: &mut [u8],
    ) -> Result<bool, GatewayError> {
        let (row, slot) = fetched.places[index];
        let (record, before) = (&fetched.records[index], fetched.marks[index]);
        let block = fetched.first + index as u64;
        if !is_present(record) {
            return self.accept_absent(block, before).map(|()| false);
        }
        let header = self
            .sealer
            .open_into(block, row, slot, record, out)
            .map_err(|error| {
                self.forged.fetch_add(1, Ordering::Relaxed);
                let volume = self.identity.volume;
                tracing::error!(%volume, block, %row, %slot, %error, "a record was refused");
                GatewayError::opening(block, &error)
            })?
            .ok_or(GatewayError::Internal)?;
        if !self.fresh.accepts(block, before, Some(header.wid)) {
            // Authentic, but what its place held before: never to be shown.
            out.fill(0);
            return Err(self.refuse_stale(block));
        }
        Ok(true)
    }

    pub(super) fn accept_absent(&self, block: u64, before: Mark) -> Result<(), GatewayError> {
        let fresh = self.fresh.accepts(block, before, None);
        if fresh { Ok(()) } else { Err(self.refuse_stale(block)) }
    }

    fn refuse_stale(&self, block: u64) -> GatewayError {
        self.stale.fetch_add(1, Ordering::Relaxed);
        let volume = self.identity.volume;
        tracing::error!(%volume, block, "a record is older than what was written");
        GatewayError::Stale { block }
    }
}

impl Fetched {
    fn present(&self) -> usize {
        self.records.iter().filter(|record| is_present(record)).count()
    }
}

struct Opened {
    data: Bytes,
    present: Vec<bool>,
}

/// Puts the bytes of a piece together: present blocks that follow one another are one segment.
fn assemble(piece: Piece, opened: &Opened, reply: &mut ReadReply) {
    let mut run = 0..0;
    let mut next = 0;
    for (block, present) in piece.blocks().zip(&opened.present) {
        let within = piece.within(block);
        if *present {
            let bytes = next + within.start..next + within.end;
            next += BLOCK_LEN;
            if run.is_empty() {
                run = bytes;
            } else {
                run.end = bytes.end;
            }
        } else {
            reply.push(Segment::Data(opened.data.slice(run)));
            run = 0..0;
            reply.push(Segment::Zero(within.len() as u32));
        }
    }
    reply.push(Segment::Data(opened.data.slice(run)));
}
