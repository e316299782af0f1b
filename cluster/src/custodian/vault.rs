//! Where shares rest: one file each, sealed under the custodian key of the node.
//!
//! A share of a wrapping secret is filed under its dealing: by volume, key epoch and a digest of the public
//! commitments. So dealings for the same key epoch, of which the map takes one, do not overwrite each
//! other's shares, and a share is found by what the map says of its secret.

use smalti_storage::ids::{ClusterId, KeyEpochNo, NodeId, VolumeId};
use smalti_storage::keys::{Dealt, KeyPart, SecretName, open_at_rest, seal_at_rest};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Characters of a written uuid.
const UUID_LEN: usize = 36;

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
    fn path(&self, secret: &SecretName, dealing: &Dealt) -> PathBuf {
        self.folder.join(match secret {
            SecretName::Master => "master.share".to_owned(),
            SecretName::Wrapping { volume, key_epoch } => {
                format!("{volume}-{}-{dealing}.share", key_epoch.0)
            }
        })
    }

    /// What a sealed share is bound to, so that no file opens in the place of another.
    fn purpose(&self, secret: &SecretName, dealing: &Dealt) -> Vec<u8> {
        let (cluster, node) = (self.cluster, self.node.0);
        match secret {
            SecretName::Master => format!("master share|{cluster}|{node}"),
            SecretName::Wrapping { volume, key_epoch } => {
                format!("wrapping share|{cluster}|{node}|{volume}|{}|{dealing}", key_epoch.0)
            }
        }
        .into_bytes()
    }

    /// Keeps a share: durable when this returns, and never half there.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn keep(
        &self,
        secret: &SecretName,
        dealing: &Dealt,
        part: &KeyPart,
    ) -> Result<(), VaultError> {
        let path = self.path(secret, dealing);
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| VaultError::Io { path, source }
        };
        let purpose = self.purpose(secret, dealing);
        let sealed = seal_at_rest(&self.key, &purpose, &part.to_bytes(), rand::random());
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
    pub fn find(&self, secret: &SecretName, dealing: &Dealt) -> Result<KeyPart, VaultError> {
        let path = self.path(secret, dealing);
        let sealed = match fs::read(&path) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(VaultError::Absent);
            }
            Err(source) => return Err(VaultError::Io { path, source }),
        };
        let purpose = self.purpose(secret, dealing);
        let bytes = open_at_rest(&self.key, &purpose, &sealed).map_err(|error| {
            VaultError::Sealed { path: path.clone(), reason: error.to_string() }
        })?;
        KeyPart::from_bytes(&bytes)
            .map_err(|error| VaultError::Sealed { path, reason: error.to_string() })
    }

    /// Destroys the shares of wrapping secrets that are not `wanted`, and says whose. Gone from the folder,
    /// durably, when this returns.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn retain(
        &self,
        wanted: impl Fn(VolumeId, KeyEpochNo, &Dealt) -> bool,
    ) -> Result<Vec<(VolumeId, KeyEpochNo)>, VaultError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| VaultError::Io { path, source }
        };
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(VaultError::Io { path: self.folder.clone(), source }),
        };
        let (mut gone, mut failed) = (Vec::new(), None);
        for entry in entries {
            let path = entry.map_err(fail(&self.folder))?.path();
            let Some((volume, key_epoch, dealing)) = read_name(&path) else { continue };
            if wanted(volume, key_epoch, &dealing) {
                continue;
            }
            // One that can not be destroyed keeps no other one.
            match fs::remove_file(&path).map_err(fail(&path)) {
                Ok(()) => gone.push((volume, key_epoch)),
                Err(error) => failed = Some(error),
            }
        }
        // Also what an earlier call removed, and failed after.
        let synced = fs::File::open(&self.folder).and_then(|dir| dir.sync_all());
        synced.map_err(fail(&self.folder))?;
        failed.map_or(Ok(gone), Err)
    }
}

/// What a share file is of; `None` when it is none of a wrapping secret.
fn read_name(path: &Path) -> Option<(VolumeId, KeyEpochNo, Dealt)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".share")?;
    let (volume, rest) = name.split_at_checked(UUID_LEN)?;
    let (key_epoch, dealing) = rest.strip_prefix('-')?.split_once('-')?;
    Some((
        VolumeId(volume.parse().ok()?),
        KeyEpochNo(key_epoch.parse().ok()?),
        dealing.parse().ok()?,
    ))
}
