//! A block device as an NBD export.

use crate::device::{BlockDevice, BoxFuture};
use bytes::Bytes;
use futures::future::ready;
use futures::{FutureExt, TryFutureExt};
use smalti_nbd::{DeviceError, Export, ExportInfo, Extent, ReadReply, ZeroFlags};
use std::fmt;
use std::sync::Arc;

/// A [`BlockDevice`] as the NBD server sees it.
///
/// `fua` needs nothing here, because a write is answered when it is durable. Zeroing makes whole
/// blocks absent and is always fast; a client that asks for no holes gets them all the same,
/// because a place once written is no promise either: a new version always needs new space.
pub struct NbdExport {
    info: ExportInfo,
    device: Arc<dyn BlockDevice>,
}

impl NbdExport {
    /// Exports `device`, described by `info`.
    pub fn new(info: ExportInfo, device: Arc<dyn BlockDevice>) -> Self {
        Self { info, device }
    }
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
        self.device.zero(offset, length).map_err(DeviceError::from).boxed()
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
