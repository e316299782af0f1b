//! The table of a config file about custody: where shares are, and what seals them.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// `NAME_MAX` of Linux.
const CREDENTIAL_MAX: usize = 255;

/// Custody of key shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
pub struct CustodyConfig {
    /// Folder of the sealed shares this node keeps.
    pub shares_dir: PathBuf,
    /// What seals them.
    pub provider: ProviderConfig,
}

/// Where the key comes from under which shares are sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderConfig {
    /// `key_file`: 32 bytes, mode 0600.
    KeyFile(PathBuf),
    /// `passphrase_file`: what a passphrase is stretched with, by Argon2id. Without that the node is locked.
    Passphrase(PathBuf),
    /// `credential`: the name of one that systemd gives to the service.
    Credential(String),
}

/// The table as it is written, in which one way is chosen of those that there are.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    shares_dir: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    passphrase_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credential: Option<String>,
}

impl TryFrom<Table> for CustodyConfig {
    type Error = String;

    fn try_from(table: Table) -> Result<Self, String> {
        let Table { shares_dir, key_file, passphrase_file, credential } = table;
        let provider = match (key_file, passphrase_file, credential) {
            (Some(path), None, None) => ProviderConfig::KeyFile(path),
            (None, Some(path), None) => ProviderConfig::Passphrase(path),
            (None, None, Some(name)) => ProviderConfig::Credential(credential_name(name)?),
            (None, None, None) => {
                return Err("missing field `key_file`, `passphrase_file` or `credential`".into());
            }
            _ => {
                let only =
                    "only one of `key_file`, `passphrase_file` and `credential` may be there";
                return Err(only.into());
            }
        };
        Ok(Self { shares_dir, provider })
    }
}

impl From<CustodyConfig> for Table {
    fn from(config: CustodyConfig) -> Self {
        let CustodyConfig { shares_dir, provider } = config;
        let none = Self { shares_dir, key_file: None, passphrase_file: None, credential: None };
        match provider {
            ProviderConfig::KeyFile(path) => Self { key_file: Some(path), ..none },
            ProviderConfig::Passphrase(path) => Self { passphrase_file: Some(path), ..none },
            ProviderConfig::Credential(name) => Self { credential: Some(name), ..none },
        }
    }
}

/// Checks a name that is to be one file of a folder.
pub(crate) fn credential_name(name: String) -> Result<String, String> {
    let is_name = (1..=CREDENTIAL_MAX).contains(&name.len())
        && !name.contains(['/', '\0'])
        && !matches!(name.as_str(), "." | "..");
    match is_name {
        true => Ok(name),
        false => Err(format!("credential: {name:?} is no name of a file")),
    }
}

impl CustodyConfig {
    /// With paths taken from `folder`.
    pub(crate) fn resolve(self, folder: &Path) -> Self {
        let provider = match self.provider {
            ProviderConfig::KeyFile(path) => ProviderConfig::KeyFile(folder.join(path)),
            ProviderConfig::Passphrase(path) => ProviderConfig::Passphrase(folder.join(path)),
            ProviderConfig::Credential(name) => ProviderConfig::Credential(name),
        };
        Self { shares_dir: folder.join(self.shares_dir), provider }
    }

    /// With paths in `folder` as they are seen from there, for a file that may be moved with it.
    pub(crate) fn relative_to(self, folder: &Path) -> Self {
        let within = |path: PathBuf| match path.strip_prefix(folder) {
            Ok(path) => path.to_owned(),
            Err(_) => path,
        };
        let provider = match self.provider {
            ProviderConfig::KeyFile(path) => ProviderConfig::KeyFile(within(path)),
            ProviderConfig::Passphrase(path) => ProviderConfig::Passphrase(within(path)),
            ProviderConfig::Credential(name) => ProviderConfig::Credential(name),
        };
        Self { shares_dir: within(self.shares_dir), provider }
    }
}

impl ProviderConfig {
    /// The file that goes with it, if it has one.
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::KeyFile(path) | Self::Passphrase(path) => Some(path),
            Self::Credential(_) => None,
        }
    }
}
