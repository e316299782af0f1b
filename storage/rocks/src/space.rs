//! Space on the file system below a store.

use smalti_storage::store::{Space, StoreError};
use std::path::Path;

/// How much there is, and how much of it is free for a store that takes up `used` bytes and has so many
/// bytes of buffers.
pub(crate) fn below(path: &Path, used: u64, buffers: u64) -> Result<Space, StoreError> {
    let found = rustix::fs::statvfs(path)
        .map_err(|error| StoreError::Io(format!("free space is not known: {error}")))?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Space { total: bytes(found.f_blocks), free: bytes(found.f_bavail), used, buffers })
}
