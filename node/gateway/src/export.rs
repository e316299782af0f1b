//! A block device as an NBD export.

use crate::device::{BlockDevice, BoxFuture};
use crate::error::GatewayError;
use bytes::Bytes;
use futures::future::{join_all, ready};
use futures::{FutureExt, TryFutureExt};
use smalti_nbd::{DeviceError, Export, ExportInfo, Extent, ReadReply, ZeroFlags};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A [`BlockDevice`] as the NBD server sees it.
///
/// `fua` needs nothing here, because a write is answered when it is durable. Zeroing makes whole
/// blocks absent and is always fast; a client that asks for no holes gets them all the same,
/// because a place once written is no promise either: a new version always needs new space.
///
/// On a full disk whole rows still become absent. A row of which only a part does needs new parity,
/// for which there may be no room: a trim leaves it as it is then, being no more than advice.
pub struct NbdExport {
    info: ExportInfo,
    device: Arc<dyn BlockDevice>,
    row_bytes: u64,
}

impl NbdExport {
    /// Exports `device`, described by `info`, whose rows hold so many bytes.
    pub fn new(info: ExportInfo, device: Arc<dyn BlockDevice>, row_bytes: u64) -> Self {
        Self { info, device, row_bytes }
    }
}

/// The part of a range before its whole rows, those, and the part behind them, as far as there are any.
fn by_rows(offset: u64, length: u64, row: u64) -> [Range<u64>; 3] {
    let end = offset + length;
    let first = offset.next_multiple_of(row).min(end);
    let last = (end / row * row).max(first);
    [offset..first, first..last, last..end]
}

impl Export for NbdExport {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<Result<ReadReply, DeviceError>> {
        self.device.read(offset, length).map_err(DeviceError::from).boxed()
    }

    fn write(&self, offset: u64, data: Bytes, _fua: bool) -> BoxFuture<Result<(), DeviceError>> {
        self.device.write(offset, data).map_err(DeviceError::from).boxed()
    }

    fn flush(&self) -> BoxFuture<Result<(), DeviceError>> {
        self.device.flush().map_err(DeviceError::from).boxed()
    }

    fn trim(&self, offset: u64, length: u64, _fua: bool) -> BoxFuture<Result<(), DeviceError>> {
        // All of them begin now: a write that is called later must not be undone.
        let parts = by_rows(offset, length, self.row_bytes).into_iter().filter(|p| !p.is_empty());
        let parts = parts.map(|part| {
            let whole = part.start % self.row_bytes == 0 && part.end % self.row_bytes == 0;
            let zeroed = self.device.zero(part.start, part.end - part.start);
            zeroed.map(move |result| match result {
                Err(GatewayError::NoSpace) if !whole => Ok(()),
                other => other,
            })
        });
        let parts: Vec<_> = parts.collect();
        async move { join_all(parts).await.into_iter().collect::<Result<(), _>>() }
            .map_err(DeviceError::from)
            .boxed()
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        _flags: ZeroFlags,
    ) -> BoxFuture<Result<(), DeviceError>> {
        self.device.zero(offset, length).map_err(DeviceError::from).boxed()
    }

    fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> BoxFuture<Result<Vec<Extent>, DeviceError>> {
        self.device.block_status(offset, length, extents_max).map_err(DeviceError::from).boxed()
    }

    fn cache(&self, _offset: u64, _length: u64) -> BoxFuture<Result<(), DeviceError>> {
        ready(Ok(())).boxed()
    }
}

impl fmt::Debug for NbdExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdExport").field("info", &self.info).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_its_whole_rows() {
        assert_eq!(by_rows(0, 16, 8), [0..0, 0..16, 16..16]);
        assert_eq!(by_rows(3, 20, 8), [3..8, 8..16, 16..23]);
        assert_eq!(by_rows(3, 2, 8), [3..5, 5..5, 5..5]);
        assert_eq!(by_rows(3, 9, 8), [3..8, 8..8, 8..12]);
        assert_eq!(by_rows(8, 7, 8), [8..8, 8..8, 8..15]);
    }
}
