//! Where records go: the coordinator of the volume, as the gateway sees it.

use crate::device::BoxFuture;
use bytes::Bytes;
use futures::FutureExt;
use smalti_rowcommit::coordinator::{BlockWrite, OpError};
use smalti_storage::ids::{RowAddr, Slot};

/// Reads and writes records of one volume.
pub trait Rows: Send + Sync + 'static {
    /// Writes the records of blocks, none of them twice; an empty record makes its block absent.
    /// Durable when the future resolves. Dropping the future does not take the write back.
    fn write(&self, blocks: Vec<BlockWrite>) -> BoxFuture<Result<(), OpError>>;

    /// Reads the records of blocks, in the order asked; empty means absent.
    fn read(&self, blocks: Vec<(RowAddr, Slot)>) -> BoxFuture<Result<Vec<Bytes>, OpError>>;

    /// Says of blocks, in the order asked, whether they are present, as a [`Rows::read`] at the
    /// same instant would. Worth providing where that is known without fetching the records.
    fn present(&self, blocks: Vec<(RowAddr, Slot)>) -> BoxFuture<Result<Vec<bool>, OpError>> {
        let records = self.read(blocks);
        async move { Ok(records.await?.iter().map(is_present).collect()) }.boxed()
    }
}

/// Whether a record read is one of a present block. The absent record is empty here, but its all
/// zero form is as good.
pub(crate) fn is_present(record: &Bytes) -> bool {
    record.iter().any(|byte| *byte != 0)
}
