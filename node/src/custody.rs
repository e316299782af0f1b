//! The key shares a node keeps on its own disk, each sealed under the node's custodian key.

use crate::files;
use anyhow::{Context, anyhow};
use rand::Rng;
use smalti_storage::ids::{ClusterId, NodeId};
use smalti_storage::keys::{KeyPart, open_at_rest, seal_at_rest};
use std::fmt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const KEY_LEN: u64 = 32;
/// A sealed share has well under a hundred bytes.
const SHARE_BYTES_MAX: u64 = 4096;

/// The key under which a node's shares rest. Wiped when dropped.
pub struct CustodianKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for CustodianKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustodianKey")
    }
}

impl CustodianKey {
    /// Draws a key and puts it in a file of mode 0600.
    ///
    /// # Errors
    /// The file can not be written.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let mut key = Zeroizing::new([0; 32]);
        rand::rng().fill_bytes(&mut *key);
        files::write_atomic(path, &*key, files::PRIVATE).context("keep the custodian key")?;
        Ok(Self(key))
    }

    /// Reads the key of a node.
    ///
    /// # Errors
    /// The file can not be read, is readable by others, or does not have 32 bytes.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let bytes = files::read_private(path, KEY_LEN).context("load the custodian key")?;
        let mut key = Zeroizing::new([0; 32]);
        if bytes.len() != key.len() {
            let length = bytes.len();
            return Err(anyhow!(
                "load the custodian key: {} has {length} bytes, not {KEY_LEN}",
                path.display()
            ));
        }
        key.copy_from_slice(&bytes);
        Ok(Self(key))
    }

    /// The key's bytes.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Puts a share in a file, sealed and bound to `purpose`.
    ///
    /// # Errors
    /// The file can not be written.
    pub fn seal_share(&self, path: &Path, purpose: &[u8], part: &KeyPart) -> anyhow::Result<()> {
        let mut nonce = [0; 12];
        rand::rng().fill_bytes(&mut nonce);
        let sealed = seal_at_rest(&self.0, purpose, &part.to_bytes(), nonce);
        files::write_atomic(path, &sealed, files::PRIVATE).context("keep a key share")
    }

    /// Opens a share that [`seal_share`](Self::seal_share) put in a file. It is well formed, not
    /// verified against commitments.
    ///
    /// # Errors
    /// The file can not be read, or was not sealed under this key for this purpose.
    pub fn open_share(&self, path: &Path, purpose: &[u8]) -> anyhow::Result<KeyPart> {
        let open = || -> anyhow::Result<KeyPart> {
            let sealed = files::read_private(path, SHARE_BYTES_MAX)?;
            let bytes = open_at_rest(&self.0, purpose, &sealed)?;
            Ok(KeyPart::from_bytes(&bytes)?)
        };
        open().with_context(|| format!("open the key share {}", path.display()))
    }
}

/// The file of a node's share of the master secret.
pub fn master_share_path(shares_dir: &Path) -> PathBuf {
    shares_dir.join("master.share")
}

/// What a node's share of the master secret is bound to at rest.
pub fn master_share_purpose(cluster: ClusterId, node: NodeId) -> Vec<u8> {
    format!("master share|{cluster}|{}", node.0).into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use smalti_storage::keys::{Secret, get_key_parts, verify_part};

    #[test]
    fn shares_come_back_under_their_key_and_purpose_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name| dir.path().join(name);
        let key = CustodianKey::create(&file("a.key")).unwrap();
        let other = CustodianKey::create(&file("b.key")).unwrap();
        let secret = Secret::random(&mut rand::rng());
        let dealing = get_key_parts(&secret, 2, 3, &mut rand::rng()).unwrap();
        key.seal_share(&file("s"), b"x", &dealing.parts[1]).unwrap();

        let again = CustodianKey::load(&file("a.key")).unwrap();
        let part = again.open_share(&file("s"), b"x").unwrap();
        assert_eq!(part.index(), 2);
        verify_part(&part, &dealing.commitments).unwrap();
        assert!(again.open_share(&file("s"), b"y").is_err());
        assert!(other.open_share(&file("s"), b"x").is_err());

        let sealed = std::fs::read(file("s")).unwrap();
        let plain = dealing.parts[1].to_bytes();
        assert!(!sealed.windows(8).any(|w| plain[3..].windows(8).any(|p| p == w)));
    }

    #[test]
    fn key_files_of_another_length_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        for length in [0, 31, 33] {
            files::write_atomic(&path, &vec![1; length], files::PRIVATE).unwrap();
            assert!(CustodianKey::load(&path).is_err(), "{length}");
        }
    }
}
