//! A key in a file that only the node's user may read.

use super::{KEY_LEN, read_key};
use crate::files;
use anyhow::Context;
use rand::TryRng;
use rand::rngs::SysRng;
use smalti_storage::keys::RestKey;
use std::path::Path;
use zeroize::Zeroizing;

/// Draws a key and puts it in a file of mode 0600.
///
/// # Errors
/// The file can not be written, or the system has no randomness to give.
pub fn create_key(path: &Path) -> anyhow::Result<RestKey> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    SysRng.try_fill_bytes(&mut *key).context("draw the custodian key")?;
    files::write_atomic(path, &*key, files::PRIVATE).context("keep the custodian key")?;
    Ok(RestKey::new(*key))
}

/// Reads the key of a node.
///
/// # Errors
/// The file can not be read, is readable by others, or does not have 32 bytes.
pub fn load_key(path: &Path) -> anyhow::Result<RestKey> {
    let load = || read_key(&files::read_private(path, KEY_LEN as u64)?, path);
    load().context("load the custodian key")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn key_files_are_private_and_of_one_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let key = create_key(&path).unwrap();
        assert_eq!(load_key(&path).unwrap().expose(), key.expose());
        let other = create_key(&dir.path().join("other")).unwrap();
        assert_ne!(other.expose(), key.expose());
        for length in [0, 31, 33] {
            files::write_atomic(&path, &vec![1; length], files::PRIVATE).unwrap();
            assert!(load_key(&path).is_err(), "{length}");
        }
        files::write_atomic(&path, &[1; 32], files::PUBLIC).unwrap();
        assert!(load_key(&path).is_err(), "others can read it");
    }
}
