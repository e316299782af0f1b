//! The config file of a node, in TOML or JSON.
//!
//! Relative paths in it are relative to the file's own folder, so a node directory can be moved.
//! Everything wrong with a file is told in one line that names the file, the line and the matter.

mod custody;
mod read;

pub(crate) use custody::credential_name;
pub use custody::{CustodyConfig, ProviderConfig};
pub use read::ConfigError;
pub(crate) use read::SOCKET_PATH_MAX;

use serde::{Deserialize, Serialize};
use smalti_storage::ids::{ClusterId, NodeId};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The version of the file's format that is written.
pub const VERSION: u32 = 1;

/// A node that is stopped for longer than a third of that can not come back, and a node that is removed
/// is refused whatever its certificate says: so it is long.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Everything a node process needs to know before it can ask others.
///
/// The last table has only required fields and ends in a quoted string: a file that was cut short
/// is then never a valid one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Format of this file; [`VERSION`].
    pub version: u32,
    /// The cluster.
    pub cluster: ClusterId,
    /// This node's number, from 1.
    pub node: NodeId,
    /// This node's name, for people.
    pub name: String,
    /// The folder of the shard store and the Raft log.
    pub data_dir: PathBuf,
    /// For nodes of a local cluster: the folder whose `cluster.json` this node keeps current.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_cluster: Option<PathBuf>,
    /// On the node that founds the cluster: what it proposes (see [`crate::init::Founding`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founding: Option<PathBuf>,
    /// On a node that may let others join: the folder with `ca.crt` and `ca.key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<PathBuf>,
    /// On such a node: for how many seconds a certificate holds that it signs; a year unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_seconds: Option<u64>,
    /// Where it listens.
    pub addresses: Addresses,
    /// Unix sockets it makes.
    pub sockets: Sockets,
    /// Times and limits.
    #[serde(default)]
    pub tunables: Tunables,
    /// The other nodes of the cluster when the file was written. The map knows newer ones.
    #[serde(default)]
    pub peers: Vec<PeerConfig>,
    /// Its part in keeping keys. Not the last table, for one of its fields is any of several.
    pub custody: CustodyConfig,
    /// What it proves itself with.
    pub credentials: CredentialsConfig,
}

/// TCP and UDP addresses of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addresses {
    /// QUIC (UDP) for other nodes, with mutual TLS.
    pub quic: SocketAddr,
    /// The control API (TCP). Loopback only, for it asks nobody who they are.
    pub api: SocketAddr,
    /// NBD (TCP). Loopback only, likewise.
    pub nbd: SocketAddr,
}

/// Unix sockets of a node, both for its own user only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sockets {
    /// NBD.
    pub nbd: PathBuf,
    /// The control API.
    pub api: PathBuf,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its QUIC address.
    pub quic: SocketAddr,
}

/// Times and limits; every one has a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tunables {
    /// A store that has not answered for this long is taken out of the in-sync set.
    pub suspect_timeout_ms: u64,
    /// The same after a power cut, until those that are there have been compared: how much later
    /// than the last of them a machine may be up again.
    pub power_timeout_ms: u64,
    /// A store that is away for this long does not come back: its slots are rebuilt elsewhere. Where
    /// nothing is left to spare that begins after 5 seconds.
    pub down_out_ms: u64,
    /// A store whose disk is far slower than the others' is done without for this long, and for twice
    /// as long each time that it was slow again, where its groups have a slot to spare even then.
    pub slow_out_ms: u64,
    /// Every record is read and compared once in so many seconds; 0: only when asked.
    pub scrub_interval_s: u64,
    /// After so long all key shares become new ones; 0: only when asked.
    pub share_interval_s: u64,
    /// A volume gets new keys after so long; 0: only when asked, or for the number of blocks.
    pub key_interval_s: u64,
    /// A volume gets new keys once one of its keys has sealed so many blocks; 0: only when asked, or for their
    /// age.
    pub key_blocks: u64,
    /// Whether all memory is kept out of swap, where the system has no limit for that.
    pub lock_memory: bool,
    /// How long a coordinator may serve reads on one round of grants.
    pub lease_ms: u64,
    /// A clean shutdown that takes longer than this is given up.
    pub shutdown_timeout_ms: u64,
}

/// Certificates and keys for QUIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialsConfig {
    /// Folder with `node.crt`, `node.key` (mode 0600) and `ca.crt`.
    pub dir: PathBuf,
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            suspect_timeout_ms: 500,
            power_timeout_ms: 30_000,
            down_out_ms: 600_000,
            slow_out_ms: 120_000,
            scrub_interval_s: 14 * 24 * 60 * 60,
            share_interval_s: 90 * 24 * 60 * 60,
            key_interval_s: 30 * 24 * 60 * 60,
            key_blocks: 1 << 30,
            lock_memory: true,
            lease_ms: 1500,
            shutdown_timeout_ms: 10_000,
        }
    }
}

impl Tunables {
    /// [`Self::suspect_timeout_ms`] as a duration.
    pub const fn suspect_timeout(&self) -> Duration {
        Duration::from_millis(self.suspect_timeout_ms)
    }

    /// [`Self::power_timeout_ms`] as a duration.
    pub const fn power_timeout(&self) -> Duration {
        Duration::from_millis(self.power_timeout_ms)
    }

    /// [`Self::down_out_ms`] as a duration.
    pub const fn down_out(&self) -> Duration {
        Duration::from_millis(self.down_out_ms)
    }

    /// [`Self::slow_out_ms`] as a duration.
    pub const fn slow_out(&self) -> Duration {
        Duration::from_millis(self.slow_out_ms)
    }

    /// [`Self::lease_ms`] as a duration.
    pub const fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// [`Self::shutdown_timeout_ms`] as a duration.
    pub const fn shutdown_timeout(&self) -> Duration {
        Duration::from_millis(self.shutdown_timeout_ms)
    }
}

impl NodeConfig {
    /// [`Self::certificate_seconds`] as a duration.
    pub const fn certificate_life(&self) -> Duration {
        match self.certificate_seconds {
            Some(seconds) => Duration::from_secs(seconds),
            None => CERTIFICATE_LIFE,
        }
    }

    /// Reads and checks a config file, and makes its paths absolute.
    ///
    /// # Errors
    /// The file can not be read, is not of the format, or holds something that can not be.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        read::load(path)
    }

    /// Reads and checks the text of a config file called `path`; paths in it stay as they are.
    ///
    /// # Errors
    /// As [`load`](Self::load), but for reading the file.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        read::parse(path, text)
    }

    /// The text of the file, in TOML.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        Ok(toml::to_string(self)?)
    }

    fn resolve(mut self, folder: &Path) -> Self {
        let paths = [
            &mut self.data_dir,
            &mut self.sockets.nbd,
            &mut self.sockets.api,
            &mut self.credentials.dir,
        ];
        let optional = [&mut self.local_cluster, &mut self.founding, &mut self.authority];
        let optional = optional.into_iter().flatten();
        for path in paths.into_iter().chain(optional) {
            *path = folder.join(&*path);
        }
        self.custody = self.custody.resolve(folder);
        self
    }
}
