//! One `smalti up`, `smalti init` or `smalti join` per folder.

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::File;
use std::path::Path;

/// Held by a `smalti up`, `smalti init` or `smalti join` for as long as it is at work. The folder itself
/// is locked, so that an empty one stays empty.
#[derive(Debug)]
pub(crate) struct DirLock(#[expect(dead_code, reason = "holds the lock")] File);

impl DirLock {
    /// For `smalti up`, or whatever else `command` is.
    pub(crate) fn take(dir: &Path, command: &str) -> anyhow::Result<Self> {
        let file = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(Errno::WOULDBLOCK) => {
                bail!("another `{command}` is at work in {}", dir.display())
            }
            Err(error) => Err(error).with_context(|| format!("lock {}", dir.display())),
        }
    }
}
