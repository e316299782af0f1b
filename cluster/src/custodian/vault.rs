//! Where shares rest: one file each, sealed by the node's key provider.
//!
//! A share is filed under its secret, the share epoch and its dealing, by a digest of the public commitments.
//! So dealings of one secret, of which the map names one, do not overwrite each other's shares, a share is
//! found by what the map says of its secret, and one that was dealt for a share epoch that the map has
//! not heard of yet is told from one that it has done without.

use smalti_storage::ids::{ClusterId, KeyEpochNo, NodeId, VolumeId};
use smalti_storage::keys::{KeyPart, KeyProvider, RestError, SecretName, ShareName};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// The file does not open, or nothing can be sealed.
    #[error("share file {path}: {source}")]
    Sealed {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: RestError,
    },
    /// The key is out of reach just now. What is in the file is not known.
    #[error("{0}")]
    Provider(RestError),
    /// What was sealed is no share.
    #[error("share file {0} has no share in it")]
    NoShare(PathBuf),
    /// There is none.
    #[error("no share of that secret is kept here")]
    Absent,
}

impl VaultError {
    fn of(source: RestError, path: &Path) -> Self {
        match source.may_pass() {
            true => Self::Provider(source),
            false => Self::Sealed { path: path.to_owned(), source },
        }
    }
}

/// A folder of sealed shares.
pub struct Vault {
    folder: PathBuf,
    cluster: ClusterId,
    node: NodeId,
    provider: Arc<dyn KeyProvider>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Vault {
    /// The shares of `node` in `folder`.
    pub fn new(
        folder: PathBuf,
        cluster: ClusterId,
        node: NodeId,
        provider: Arc<dyn KeyProvider>,
    ) -> Self {
        Self { folder, cluster, node, provider }
    }

    /// Where its shares are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether its key provider can seal and open just now, as far as that knows.
    ///
    /// # Errors
    /// What keeps it from that.
    pub fn ready(&self) -> Result<(), RestError> {
        self.provider.ready()
    }

    fn path(&self, share: &ShareName) -> PathBuf {
        self.folder.join(file_name(share))
    }

    /// What a sealed share is bound to, so that no file opens in the place of another.
    fn purpose(&self, share: &ShareName) -> Vec<u8> {
        format!("share|{}|{}|{}", self.cluster, self.node.0, file_name(share)).into_bytes()
    }

    /// Keeps a share: durable when this returns, and never half there.
    ///
    /// # Errors
    /// When the disk or the key provider fails.
    pub fn keep(&self, share: &ShareName, part: &KeyPart) -> Result<(), VaultError> {
        let path = self.path(share);
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| VaultError::Io { path, source }
        };
        let sealed = self
            .provider
            .seal(&self.purpose(share), &part.to_bytes())
            .map_err(|error| VaultError::of(error, &path))?;
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
        self.sync()
    }

    /// Reads a share. It is well formed; its verification needs the commitments.
    ///
    /// # Errors
    /// When there is none, or it does not open.
    pub fn find(&self, share: &ShareName) -> Result<KeyPart, VaultError> {
        let path = self.path(share);
        let sealed = match fs::read(&path) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(VaultError::Absent);
            }
            Err(source) => return Err(VaultError::Io { path, source }),
        };
        let bytes = self
            .provider
            .open(&self.purpose(share), &sealed)
            .map_err(|error| VaultError::of(error, &path))?;
        KeyPart::from_bytes(&bytes).map_err(|_| VaultError::NoShare(path))
    }

    /// The shares that are there.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn names(&self) -> Result<Vec<ShareName>, VaultError> {
        Ok(self.files()?.iter().filter_map(|path| read_name(path)).collect())
    }

    /// Destroys the shares that are not `wanted`, and what was begun and not kept, and says which. Gone from
    /// the folder, durably, when this returns.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn retain(
        &self,
        wanted: impl Fn(&ShareName) -> bool,
    ) -> Result<Vec<ShareName>, VaultError> {
        let (mut gone, mut failed) = (Vec::new(), None);
        for path in self.files()? {
            let share = read_name(&path);
            let draft = path.extension().is_some_and(|extension| extension == "new");
            if share.is_none_or(|share| wanted(&share)) && !draft {
                continue;
            }
            // One that can not be destroyed keeps no other one.
            match fs::remove_file(&path) {
                Ok(()) => gone.extend(share),
                Err(source) => failed = Some(VaultError::Io { path, source }),
            }
        }
        // Also what an earlier call removed, and failed after.
        self.sync()?;
        failed.map_or(Ok(gone), Err)
    }

    /// Makes durable which files there are.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> Result<(), VaultError> {
        let synced = fs::File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| VaultError::Io { path: self.folder.clone(), source })
    }

    fn files(&self) -> Result<Vec<PathBuf>, VaultError> {
        let list = || fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.path())).collect();
        let listed: std::io::Result<Vec<PathBuf>> = list();
        listed.map_err(|source| VaultError::Io { path: self.folder.clone(), source })
    }
}

fn file_name(share: &ShareName) -> String {
    let ShareName { share_epoch, dealing, .. } = share;
    match share.secret {
        SecretName::Master => format!("master-{share_epoch}-{dealing}.share"),
        SecretName::Wrapping { volume, key_epoch } => {
            format!("{volume}-{}-{share_epoch}-{dealing}.share", key_epoch.0)
        }
    }
}

/// What a share file is of; `None` when it is none.
fn read_name(path: &Path) -> Option<ShareName> {
    let name = path.file_name()?.to_str()?.strip_suffix(".share")?;
    let (secret, rest) = match name.strip_prefix("master-") {
        Some(rest) => (SecretName::Master, rest),
        None => {
            let (volume, rest) = name.split_at_checked(UUID_LEN)?;
            let (key_epoch, rest) = rest.strip_prefix('-')?.split_once('-')?;
            let volume = VolumeId(volume.parse().ok()?);
            let key_epoch = KeyEpochNo(key_epoch.parse().ok()?);
            (SecretName::Wrapping { volume, key_epoch }, rest)
        }
    };
    let (share_epoch, dealing) = rest.split_once('-')?;
    let share = ShareName {
        secret,
        share_epoch: share_epoch.parse().ok()?,
        dealing: dealing.parse().ok()?,
    };
    // Numbers can be written in more than one way.
    (file_name(&share) == path.file_name()?.to_str()?).then_some(share)
}
