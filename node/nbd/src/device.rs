//! What stands behind the server: the device and the set of devices, as the embedding program
//! provides them.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// The future every device call returns. It owns what it needs: the server keeps it next to the
/// export, not inside a borrow of it.
pub type BoxFuture<T> = futures::future::BoxFuture<'static, T>;

/// What the server tells a client about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// The canonical name, as listed.
    pub name: String,
    /// A text for people, if there is one.
    pub description: Option<String>,
    /// Size in bytes. It is read once per connection, when the export is opened.
    pub size: u64,
    /// Writes, trims and zeroing are refused with `EPERM` before they reach the device.
    pub read_only: bool,
    /// A flush on one connection covers writes answered on every other connection, and a write
    /// answered on one is seen by reads on all. Advertised as `CAN_MULTI_CONN`.
    pub multi_conn: bool,
    /// The size in bytes of requests the device serves best: a power of two of 512 or more;
    /// anything else is told as 4096.
    pub preferred_block_bytes: u32,
}

impl ExportInfo {
    /// A writable export that several connections may share, preferring 4096-byte requests.
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        Self {
            name: name.into(),
            description: None,
            size,
            read_only: false,
            multi_conn: true,
            preferred_block_bytes: 4096,
        }
    }
}

/// One opened device.
///
/// The server checks offsets, lengths and the read-only mark before it calls: every range lies
/// within [`ExportInfo::size`] and is not empty. Calls may overlap in time in any number up to
/// the limits; the server orders nothing. Futures are polled by the connection's task, so work
/// that takes long belongs on a pool. They are polled to their end even when the client has left,
/// unless `drain_timeout` passes, or `stop_timeout` when the server stops: then they are dropped.
pub trait Export: Send + Sync {
    /// What the client is told; called once after opening.
    fn info(&self) -> ExportInfo;

    /// Reads `length` bytes at `offset`. The reply's segments must add up to `length`.
    fn read(&self, offset: u64, length: u32) -> BoxFuture<Result<ReadReply, DeviceError>>;

    /// Writes `data` at `offset`; with `fua` it is durable when the future resolves.
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<Result<(), DeviceError>>;

    /// Makes every write answered before this call durable.
    fn flush(&self) -> BoxFuture<Result<(), DeviceError>>;

    /// Says that the bytes are no longer needed. What reads return afterwards is the device's
    /// choice, but it must not be data of another owner.
    fn trim(&self, offset: u64, length: u64, fua: bool) -> BoxFuture<Result<(), DeviceError>>;

    /// Makes the range read as zeroes.
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        flags: ZeroFlags,
    ) -> BoxFuture<Result<(), DeviceError>>;

    /// Describes the allocation from `offset` on, in order and without gaps, in at least one and
    /// at most `extents_max` extents. It may stop before `offset + length`.
    fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> BoxFuture<Result<Vec<Extent>, DeviceError>>;

    /// Asks to prefetch a range; doing nothing is a fair answer.
    fn cache(&self, offset: u64, length: u64) -> BoxFuture<Result<(), DeviceError>>;
}

/// How a range is to be zeroed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// The device may give the space back (the client did not set `NO_HOLE`).
    pub may_trim: bool,
    /// Answer [`DeviceErrorKind::NotSupported`] at once unless zeroing is much faster than writing.
    pub fast_only: bool,
    /// Durable when the future resolves.
    pub fua: bool,
}

/// One run of equal allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, at least one.
    pub length: u64,
    /// No space is allocated.
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

/// A piece of what a read returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// These bytes.
    Data(Bytes),
    /// So many zero bytes, which need not be held in memory.
    Zero(u32),
}

impl Segment {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Zero(length) => *length as usize,
        }
    }

    /// Whether the segment holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a read returned: segments in order, so that nothing has to be copied together.
///
/// The first segment stands by itself because most reads have exactly one and need no list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadReply {
    first: Option<Segment>,
    rest: Vec<Segment>,
}

impl ReadReply {
    /// A reply without bytes, to be filled with [`ReadReply::push`].
    pub fn new() -> Self {
        Self::default()
    }

    /// A reply of one piece.
    pub fn data(data: Bytes) -> Self {
        Self { first: Some(Segment::Data(data)), rest: Vec::new() }
    }

    /// A reply of zeroes.
    pub fn zero(length: u32) -> Self {
        Self { first: Some(Segment::Zero(length)), rest: Vec::new() }
    }

    /// Appends a segment; zero runs that touch are joined, empty segments are dropped.
    pub fn push(&mut self, segment: Segment) {
        if segment.is_empty() {
            return;
        }
        if let Segment::Zero(more) = segment
            && let Some(Segment::Zero(length)) = self.rest.last_mut().or(self.first.as_mut())
            && let Some(sum) = length.checked_add(more)
        {
            *length = sum;
            return;
        }
        if self.first.is_none() {
            self.first = Some(segment);
        } else {
            self.rest.push(segment);
        }
    }

    /// The bytes of all segments.
    pub fn len(&self) -> usize {
        self.first.iter().chain(&self.rest).map(Segment::len).sum()
    }

    /// Whether the reply holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The segments in order.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.first.iter().chain(&self.rest)
    }

    pub(crate) fn into_segments(self) -> impl Iterator<Item = Segment> {
        self.first.into_iter().chain(self.rest)
    }
}

impl FromIterator<Segment> for ReadReply {
    fn from_iter<I: IntoIterator<Item = Segment>>(segments: I) -> Self {
        let mut reply = Self::new();
        segments.into_iter().for_each(|segment| reply.push(segment));
        reply
    }
}

/// Why a device call failed, in the terms a client can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceErrorKind {
    /// The device may not be changed, by this client or at all.
    NotPermitted,
    /// The data could not be read or made durable.
    Io,
    /// Out of memory.
    NoMemory,
    /// The request makes no sense to this device.
    Invalid,
    /// Out of space.
    NoSpace,
    /// The request is too large for one piece.
    Overflow,
    /// Not supported, such as zeroing that would not be fast.
    NotSupported,
    /// The device is going away; another connection may still serve it.
    ShuttingDown,
}

/// A failed device call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DeviceError {
    kind: DeviceErrorKind,
    message: Cow<'static, str>,
    offset: Option<u64>,
}

impl DeviceError {
    /// An error with a text for people, which clients with structured replies get to see.
    pub fn new(kind: DeviceErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into(), offset: None }
    }

    /// Names the byte of the device where a read failed.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> DeviceErrorKind {
        self.kind
    }

    /// Where it failed, if the device said so.
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// Why an export cannot be described or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is none of that name.
    #[error("no such export")]
    Unknown,
    /// There may be one, but not for this client.
    #[error("{reason}")]
    Policy {
        /// Told to the client.
        reason: String,
    },
    /// It cannot be served at the moment.
    #[error("{reason}")]
    Unavailable {
        /// Told to the client.
        reason: String,
    },
}

/// What there is to open.
///
/// Futures may be dropped before they end (the client left, the node stops, `open_timeout`
/// passed): an attach must then undo itself.
pub trait Exports: Send + Sync {
    /// The names a client may see.
    fn list(&self) -> BoxFuture<Vec<String>>;

    /// Describes an export without attaching to it.
    fn describe(&self, name: &str) -> BoxFuture<Result<ExportInfo, OpenError>>;

    /// Attaches to an export for one connection. Dropping the last reference detaches.
    fn open(&self, name: &str) -> BoxFuture<Result<Arc<dyn Export>, OpenError>>;
}

impl fmt::Debug for dyn Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Export").field(&self.info().name).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_runs_join_and_empty_segments_vanish() {
        let reply: ReadReply = [
            Segment::Zero(3),
            Segment::Data(Bytes::new()),
            Segment::Zero(4),
            Segment::Data(Bytes::from_static(b"ab")),
            Segment::Zero(0),
            Segment::Zero(1),
            Segment::Zero(1),
        ]
        .into_iter()
        .collect();
        let expected =
            [Segment::Zero(7), Segment::Data(Bytes::from_static(b"ab")), Segment::Zero(2)];
        assert_eq!(reply.segments().cloned().collect::<Vec<_>>(), expected);
        assert_eq!(reply.len(), 11);
    }

    #[test]
    fn zero_runs_that_would_overflow_stay_apart() {
        let reply: ReadReply = [Segment::Zero(u32::MAX), Segment::Zero(2)].into_iter().collect();
        assert_eq!(reply.segments().count(), 2);
    }
}
