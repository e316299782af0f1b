//! What seals the shares of a node's custodian: key providers, and how one takes the place of another.
//!
//! ```text
//! [custody] of node.toml -> open -> KeyProvider -> the custodian's vault
//!                                -> PassphraseKey, which `smalti key unlock` gives its passphrase
//! ```
//!
//! P1. A key is in memory only while the process runs, or in a file that only the node's user may read.
//! P2. At every moment of a change, and after a crash at any, the config names a provider that opens all shares in
//!     the folder it names.

mod change;
mod credential;
mod key_file;
mod passphrase;
mod stretch;

pub use change::{Change, NewProvider, settle};
pub use key_file::{create_key, load_key};
pub use passphrase::{PASSPHRASE_MAX, Passphrase, PassphraseKey, UnlockError};

use crate::config::{CustodyConfig, ProviderConfig};
use anyhow::{Context, ensure};
use smalti_storage::keys::{KeyProvider, RestKey};
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

pub(crate) const KEY_LEN: usize = 32;

/// A key provider as the config names it.
#[derive(Clone, Debug)]
pub struct Provider {
    /// What seals and opens.
    pub key: Arc<dyn KeyProvider>,
    /// The same, where it waits for a passphrase.
    pub lock: Option<Arc<PassphraseKey>>,
}

/// Opens what a config names; what waits for a passphrase is locked.
///
/// # Errors
/// The key can not be had, or its file is not what it should be.
pub fn open(config: &CustodyConfig) -> anyhow::Result<Provider> {
    let ready = |key: RestKey| Provider { key: Arc::new(key), lock: None };
    match &config.provider {
        ProviderConfig::KeyFile(path) => load_key(path).map(ready),
        ProviderConfig::Credential(name) => {
            credential::load(name).context("load the custodian key").map(ready)
        }
        ProviderConfig::Passphrase(path) => {
            let lock = Arc::new(PassphraseKey::load(path)?);
            Ok(Provider { key: Arc::clone(&lock) as _, lock: Some(lock) })
        }
    }
}

/// The same, unlocked where that takes a passphrase.
///
/// # Errors
/// Also when it is the wrong one.
pub fn open_with(
    config: &CustodyConfig,
    passphrase: Option<&Passphrase>,
) -> anyhow::Result<Provider> {
    let provider = open(config)?;
    if let Some(lock) = &provider.lock {
        lock.unlock(passphrase.context("its shares are sealed under a passphrase")?)?;
    }
    Ok(provider)
}

fn read_key(bytes: &[u8], path: &Path) -> anyhow::Result<RestKey> {
    let length = bytes.len();
    ensure!(length == KEY_LEN, "{} has {length} bytes, not {KEY_LEN}", path.display());
    let mut key = Zeroizing::new([0; KEY_LEN]);
    key.copy_from_slice(bytes);
    Ok(RestKey::new(*key))
}
