//! Where shares rest: one file each, sealed under the custodian key of the node.

use smalti_storage::ids::{ClusterId, NodeId};
use smalti_storage::keys::{KeyPart, SecretName, open_at_rest, seal_at_rest};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Why a share can not be kept or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// The disk.
    #[error("share file {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file does not open under this node's custodian key.
    #[error("share file {path} does not open: {reason}")]
    Sealed {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is none.
    #[error("no share of that secret is kept here")]
    Absent,
}

/// A folder of sealed shares.
pub struct Vault {
    folder: PathBuf,
    cluster: ClusterId,
    node: NodeId,
    key: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Vault {
    /// The shares of `node` in `folder`, sealed under `key`.
    pub fn new(
        folder: PathBuf,
        cluster: ClusterId,
        node: NodeId,
        key: Zeroizing<[u8; 32]>,
    ) -> Self {
        Self { folder, cluster, node, key }
    }

    /// The file a share rests in.
    fn path(&self, secret: &SecretName) -> PathBuf {
        self.folder.join(match secret {
            SecretName::Master => "master.share".to_owned(),
            SecretName::Wrapping { volume, key_epoch } => format!("{volume}-{}.share", key_epoch.0),
        })
    }

    /// What a sealed share is bound to, so that no file opens in the place of another.
    fn purpose(&self, secret: &SecretName) -> Vec<u8> {
        let (cluster, node) = (self.cluster, self.node.0);
        match secret {
            SecretName::Master => format!("master share|{cluster}|{node}"),
            SecretName::Wrapping { volume, key_epoch } => {
                format!("wrapping share|{cluster}|{node}|{volume}|{}", key_epoch.0)
            }
        }
        .into_bytes()
    }

    /// Keeps a share: durable when this returns, and never half there.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn keep(&self, secret: &SecretName, part: &KeyPart) -> Result<(), VaultError> {
        let path = self.path(secret);
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| VaultError::Io { path, source }
        };
        let sealed =
            seal_at_rest(&self.key, &self.purpose(secret), &part.to_bytes(), rand::random());
        let draft = path.with_extension("new");
        fs::create_dir_all(&self.folder).map_err(fail(&self.folder))?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .map_err(fail(&draft))?;
        file.write_all(&sealed).and_then(|()| file.sync_all()).map_err(fail(&draft))?;
        fs::rename(&draft, &path).map_err(fail(&path))?;
        fs::File::open(&self.folder).and_then(|dir| dir.sync_all()).map_err(fail(&self.folder))
    }

    /// Reads a share. It is well formed; its verification needs the commitments.
    ///
    /// # Errors
    /// When there is none, or it does not open.
    pub fn find(&self, secret: &SecretName) -> Result<KeyPart, VaultError> {
        let path = self.path(secret);
        let sealed = match fs::read(&path) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(VaultError::Absent);
            }
            Err(source) => return Err(VaultError::Io { path, source }),
        };
        let bytes = open_at_rest(&self.key, &self.purpose(secret), &sealed).map_err(|error| {
            VaultError::Sealed { path: path.clone(), reason: error.to_string() }
        })?;
        KeyPart::from_bytes(&bytes)
            .map_err(|error| VaultError::Sealed { path, reason: error.to_string() })
    }

    /// Destroys the share of a secret that is no longer needed.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn destroy(&self, secret: &SecretName) -> Result<(), VaultError> {
        let path = self.path(secret);
        match fs::remove_file(&path) {
            Ok(()) => fs::File::open(&self.folder)
                .and_then(|dir| dir.sync_all())
                .map_err(|source| VaultError::Io { path: self.folder.clone(), source }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(VaultError::Io { path, source }),
        }
    }
}
