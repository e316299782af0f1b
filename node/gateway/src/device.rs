//! What a local and a forwarded gateway have in common.

use crate::error::GatewayError;
use bytes::Bytes;
use smalti_nbd::{Extent, ReadReply};

/// The future every device call returns; it owns what it needs.
pub type BoxFuture<T> = futures::future::BoxFuture<'static, T>;

/// One attached volume as a device of bytes.
///
/// Any offset and length inside the volume will do; what reaches beyond it is
/// [`GatewayError::Invalid`]. Calls may overlap in any number. Changes of one block take effect in
/// the order in which they were called, whoever still waits for them, and each as a whole. A call
/// that fails with an error, or whose future is dropped, was carried out, in part or not at all.
///
/// Nothing happens before a future is polled but that it takes its place in that order, so one that
/// is neither polled nor dropped is in the way of others.
pub trait BlockDevice: Send + Sync + 'static {
    /// Reads `length` bytes at `offset`; the segments add up to it.
    fn read(&self, offset: u64, length: u32) -> BoxFuture<Result<ReadReply, GatewayError>>;

    /// Writes `data` at `offset`; durable when the future resolves.
    fn write(&self, offset: u64, data: Bytes) -> BoxFuture<Result<(), GatewayError>>;

    /// Makes a range read as zeroes and gives the space of whole blocks back; durable when the
    /// future resolves.
    fn zero(&self, offset: u64, length: u64) -> BoxFuture<Result<(), GatewayError>>;

    /// Describes the allocation from `offset` on, in order and without gaps, in at least one and
    /// at most `extents_max` extents. It may stop before `offset + length`, never behind it.
    fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> BoxFuture<Result<Vec<Extent>, GatewayError>>;

    /// Makes every write answered before this call durable.
    fn flush(&self) -> BoxFuture<Result<(), GatewayError>>;
}
