//! Exports held in memory, for tests and measurements: no device is faster or better behaved, so
//! what a client sees of them is the server.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::ready;

use crate::device::{
    BoxFuture, DeviceError, DeviceErrorKind, Export, ExportInfo, Exports, Extent, OpenError,
    ReadReply, Segment, ZeroFlags,
};

/// Bytes that are allocated, and given back, together.
const SHARD_BYTES: usize = 64 * 1024;

/// A device in memory. Clones share it. Shards never written to, or trimmed as a whole, are holes.
///
/// A range is not read or written atomically: neighbouring shards have locks of their own.
#[derive(Debug, Clone)]
pub struct MemoryExport {
    info: ExportInfo,
    shards: Arc<Vec<Shard>>,
}

/// `None` is a hole.
type Shard = RwLock<Option<Box<[u8]>>>;

/// The part of a range that lies in one shard.
struct Part {
    shard: usize,
    from: usize,
    length: usize,
}

impl MemoryExport {
    /// A device of zeroes.
    ///
    /// # Panics
    /// If the size is more than memory can be addressed.
    pub fn new(info: ExportInfo) -> Self {
        let size = usize::try_from(info.size).expect("the size fits the address space");
        let shards = (0..size.div_ceil(SHARD_BYTES)).map(|_| RwLock::new(None)).collect();
        Self { info, shards: Arc::new(shards) }
    }

    fn parts(offset: u64, length: u64) -> impl Iterator<Item = Part> {
        let size = SHARD_BYTES as u64;
        let end = offset + length;
        let mut at = offset;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let from = at % size;
                let length = (size - from).min(end - at);
                let part = Part {
                    shard: (at / size) as usize,
                    from: from as usize,
                    length: length as usize,
                };
                at += length;
                part
            })
        })
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.info.size => Ok(()),
            _ => Err(DeviceError::new(DeviceErrorKind::Invalid, "range outside the device")),
        }
    }

    fn read_now(&self, offset: u64, length: u32) -> Result<ReadReply, DeviceError> {
        self.check(offset, length.into())?;
        let piece = |part: Part| {
            let shard = self.shards[part.shard].read().unwrap_or_else(PoisonError::into_inner);
            match &*shard {
                Some(bytes) => Segment::Data(Bytes::copy_from_slice(
                    &bytes[part.from..part.from + part.length],
                )),
                None => Segment::Zero(part.length as u32),
            }
        };
        Ok(Self::parts(offset, length.into()).map(piece).collect())
    }

    fn write_now(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.check(offset, data.len() as u64)?;
        let mut rest = data;
        for part in Self::parts(offset, data.len() as u64) {
            let (now, later) = rest.split_at(part.length);
            rest = later;
            let mut shard = self.shards[part.shard].write().unwrap_or_else(PoisonError::into_inner);
            let bytes = shard.get_or_insert_with(|| vec![0; SHARD_BYTES].into_boxed_slice());
            bytes[part.from..part.from + part.length].copy_from_slice(now);
        }
        Ok(())
    }

    fn zero_now(&self, offset: u64, length: u64, may_trim: bool) -> Result<(), DeviceError> {
        self.check(offset, length)?;
        for part in Self::parts(offset, length) {
            let mut shard = self.shards[part.shard].write().unwrap_or_else(PoisonError::into_inner);
            match &mut *shard {
                _ if may_trim && part.length == SHARD_BYTES => *shard = None,
                Some(bytes) => bytes[part.from..part.from + part.length].fill(0),
                None if may_trim => {}
                // The client wants the space to stay allocated.
                empty @ None => *empty = Some(vec![0; SHARD_BYTES].into_boxed_slice()),
            }
        }
        Ok(())
    }

    fn status_now(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, DeviceError> {
        self.check(offset, length)?;
        let mut extents: Vec<Extent> = Vec::new();
        for part in Self::parts(offset, length) {
            let hole =
                self.shards[part.shard].read().unwrap_or_else(PoisonError::into_inner).is_none();
            let length = part.length as u64;
            let full = extents.len() == extents_max;
            match extents.last_mut() {
                Some(last) if last.hole == hole => last.length += length,
                _ if full => break,
                _ => extents.push(Extent { length, hole, zero: hole }),
            }
        }
        Ok(extents)
    }
}

impl Export for MemoryExport {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<Result<ReadReply, DeviceError>> {
        ready(self.read_now(offset, length)).boxed()
    }

    fn write(&self, offset: u64, data: Bytes, _fua: bool) -> BoxFuture<Result<(), DeviceError>> {
        ready(self.write_now(offset, &data)).boxed()
    }

    fn flush(&self) -> BoxFuture<Result<(), DeviceError>> {
        ready(Ok(())).boxed()
    }

    fn trim(&self, offset: u64, length: u64, _fua: bool) -> BoxFuture<Result<(), DeviceError>> {
        ready(self.zero_now(offset, length, true)).boxed()
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        flags: ZeroFlags,
    ) -> BoxFuture<Result<(), DeviceError>> {
        // Space that must stay allocated has to be written, which is not fast.
        let result = if flags.fast_only && !flags.may_trim {
            Err(DeviceError::new(DeviceErrorKind::NotSupported, "only holes are made fast"))
        } else {
            self.zero_now(offset, length, flags.may_trim)
        };
        ready(result).boxed()
    }

    fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> BoxFuture<Result<Vec<Extent>, DeviceError>> {
        ready(self.status_now(offset, length, extents_max)).boxed()
    }

    fn cache(&self, offset: u64, length: u64) -> BoxFuture<Result<(), DeviceError>> {
        ready(self.check(offset, length)).boxed()
    }
}

/// A fixed set of exports that counts who is attached.
#[derive(Default)]
pub struct FixedExports {
    exports: BTreeMap<String, Arc<dyn Export>>,
    refusals: Mutex<BTreeMap<String, OpenError>>,
    attached: Arc<AtomicUsize>,
}

impl std::fmt::Debug for FixedExports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FixedExports")
            .field("names", &self.exports.keys().collect::<Vec<_>>())
            .field("attached", &self.attached())
            .finish_non_exhaustive()
    }
}

impl FixedExports {
    /// A set of these exports, each under the name of its own information.
    pub fn new(exports: impl IntoIterator<Item = Arc<dyn Export>>) -> Self {
        let exports = exports.into_iter().map(|export| (export.info().name, export)).collect();
        Self { exports, ..Self::default() }
    }

    /// How many connections hold an export open.
    pub fn attached(&self) -> usize {
        self.attached.load(Ordering::SeqCst)
    }

    /// From now on, opening or describing `name` fails.
    pub fn refuse(&self, name: &str, error: OpenError) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.insert(name.to_owned(), error);
    }

    fn find(&self, name: &str) -> Result<&Arc<dyn Export>, OpenError> {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        match refusals.get(name) {
            Some(error) => Err(error.clone()),
            None => self.exports.get(name).ok_or(OpenError::Unknown),
        }
    }
}

impl Exports for FixedExports {
    fn list(&self) -> BoxFuture<Vec<String>> {
        ready(self.exports.keys().cloned().collect()).boxed()
    }

    fn describe(&self, name: &str) -> BoxFuture<Result<ExportInfo, OpenError>> {
        ready(self.find(name).map(|export| export.info())).boxed()
    }

    fn open(&self, name: &str) -> BoxFuture<Result<Arc<dyn Export>, OpenError>> {
        let opened = self.find(name).map(|export| {
            self.attached.fetch_add(1, Ordering::SeqCst);
            Arc::new(Attached { export: Arc::clone(export), attached: Arc::clone(&self.attached) })
                as Arc<dyn Export>
        });
        ready(opened).boxed()
    }
}

/// One attachment: an export that counts itself out when dropped.
struct Attached {
    export: Arc<dyn Export>,
    attached: Arc<AtomicUsize>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.attached.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Export for Attached {
    fn info(&self) -> ExportInfo {
        self.export.info()
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<Result<ReadReply, DeviceError>> {
        self.export.read(offset, length)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<Result<(), DeviceError>> {
        self.export.write(offset, data, fua)
    }

    fn flush(&self) -> BoxFuture<Result<(), DeviceError>> {
        self.export.flush()
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> BoxFuture<Result<(), DeviceError>> {
        self.export.trim(offset, length, fua)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        flags: ZeroFlags,
    ) -> BoxFuture<Result<(), DeviceError>> {
        self.export.write_zeroes(offset, length, flags)
    }

    fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> BoxFuture<Result<Vec<Extent>, DeviceError>> {
        self.export.block_status(offset, length, extents_max)
    }

    fn cache(&self, offset: u64, length: u64) -> BoxFuture<Result<(), DeviceError>> {
        self.export.cache(offset, length)
    }
}
