//! The folder of a node that joins: made aside, moved to its place whole.

use super::JoinedNode;
use crate::config::{
    Addresses, CredentialsConfig, CustodyConfig, NodeConfig, PeerConfig, ProviderConfig,
    SOCKET_PATH_MAX, Sockets, Tunables, VERSION,
};
use crate::custody;
use crate::files;
use crate::init::{self, CONFIG_FILE, DirState, MAKING};
use crate::local::DirLock;
use anyhow::{Context, bail, ensure};
use smalti_net::Joined;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const DATA: &str = "data";
const SHARES: &str = "shares";
const TLS: &str = "tls";
const CUSTODY_KEY: &str = "custody.key";
const NBD_SOCKET: &str = "nbd.sock";
const API_SOCKET: &str = "api.sock";

/// A node's folder while it is made. Undone unless it is finished.
pub(super) struct Making {
    dir: PathBuf,
    /// Whether the folder was not there.
    made: bool,
    open: bool,
    _lock: DirLock,
}

impl Making {
    /// Makes all that does not depend on the cluster.
    pub(super) fn begin(dir: &Path) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir).context("find the folder")?;
        ensure!(dir.to_str().is_some(), "the path {} is not UTF-8", dir.display());
        let length = dir.join(API_SOCKET).as_os_str().len();
        ensure!(
            length <= SOCKET_PATH_MAX,
            "{} is too long a path: one of a socket in it would have {length} bytes and may have {}",
            dir.display(),
            SOCKET_PATH_MAX
        );
        // Before it is looked at: what another join has begun is no half made folder.
        let lock = || DirLock::take(&dir, "smalti join");
        let held = if dir.is_dir() { Some(lock()?) } else { None };
        check_free(&dir)?;
        let made = !dir.exists();
        let make = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        make.with_context(|| format!("make {}", dir.display()))?;
        let lock = match held {
            Some(held) => held,
            None => lock()?,
        };
        // Whoever had the lock before may have been at work.
        check_free(&dir)?;
        let making = Self { dir, made, open: true, _lock: lock };
        let aside = making.aside();
        files::make_private_dir(&aside)?;
        for inner in [DATA, SHARES, TLS] {
            files::make_private_dir(&aside.join(inner))?;
        }
        custody::create_key(&aside.join(CUSTODY_KEY))?;
        Ok(making)
    }

    fn aside(&self) -> PathBuf {
        self.dir.join(MAKING)
    }

    /// Takes away what was made.
    pub(super) fn undo(mut self) -> anyhow::Result<()> {
        self.open = false;
        self.clear()
    }

    fn clear(&self) -> anyhow::Result<()> {
        let clear = || -> std::io::Result<()> {
            fs::remove_dir_all(self.aside())?;
            if self.made { fs::remove_dir(&self.dir) } else { Ok(()) }
        };
        clear().with_context(|| format!("clean {} up", self.dir.display()))
    }

    /// Puts everything in its place. The cluster has the node for a member from before: should this be
    /// cut off, what it leaves is told apart.
    pub(super) fn finish(
        mut self,
        joined: &Joined,
        addresses: Addresses,
    ) -> anyhow::Result<JoinedNode> {
        // A private key that the cluster has signed for is not thrown away for a full disk.
        self.open = false;
        let name = joined.name.clone();
        self.place(joined, addresses).with_context(|| {
            format!("keep what {name} is: the cluster has it for a member; remove it there")
        })?;
        Ok(JoinedNode { name, config: self.dir.join(CONFIG_FILE) })
    }

    fn place(&self, joined: &Joined, addresses: Addresses) -> anyhow::Result<()> {
        let aside = self.aside();
        joined.credentials.save(&aside.join(TLS))?;
        let text = config(joined, addresses).to_toml()?;
        let path = aside.join(CONFIG_FILE);
        // It has to be read again when the node starts: better refused here than there.
        NodeConfig::parse(&path, &text)?;
        files::write_atomic(&path, text.as_bytes(), files::PUBLIC)?;
        for part in [DATA, SHARES, TLS, CUSTODY_KEY, CONFIG_FILE] {
            // The config must not be in place while a part might not be.
            files::sync_dir(&self.dir).context("sync the node's folder")?;
            fs::rename(aside.join(part), self.dir.join(part))
                .with_context(|| format!("move {part} to its place"))?;
        }
        fs::remove_dir(&aside).with_context(|| format!("remove {}", aside.display()))?;
        files::sync_dir(&self.dir).context("sync the node's folder")
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if self.open
            && let Err(error) = self.clear()
        {
            tracing::warn!(error = format!("{error:#}"), "parts of a node are left behind");
        }
    }
}

fn check_free(dir: &Path) -> anyhow::Result<()> {
    if dir.join(CONFIG_FILE).exists() {
        bail!("{} is a node's folder already", dir.display());
    }
    match init::inspect(dir)? {
        DirState::Free => Ok(()),
        DirState::HalfMade => bail!(
            "{} is half made: an earlier `smalti join`, `up` or `init` was cut off while making it; \
             it holds no data: remove it, and the node as well if `smalti node list` shows it",
            dir.display()
        ),
        DirState::Made(_) | DirState::Foreign => {
            bail!("{} is not empty: choose another folder", dir.display())
        }
    }
}

fn config(joined: &Joined, addresses: Addresses) -> NodeConfig {
    let identity = joined.credentials.identity();
    let peers = joined.peers.iter().map(|peer| PeerConfig {
        id: peer.id,
        name: peer.name.clone(),
        quic: peer.quic,
    });
    NodeConfig {
        version: VERSION,
        cluster: identity.cluster,
        node: identity.node,
        name: joined.name.clone(),
        data_dir: DATA.into(),
        local_cluster: None,
        founding: None,
        authority: None,
        certificate_seconds: None,
        addresses,
        sockets: Sockets { nbd: NBD_SOCKET.into(), api: API_SOCKET.into() },
        tunables: Tunables::default(),
        peers: peers.collect(),
        custody: CustodyConfig {
            shares_dir: SHARES.into(),
            provider: ProviderConfig::KeyFile(CUSTODY_KEY.into()),
        },
        credentials: CredentialsConfig { dir: TLS.into() },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use smalti_net::{ClusterCa, JoinPeer};
    use smalti_storage::ids::{ClusterId, NodeId};
    use uuid::Uuid;

    fn joined() -> Joined {
        let ca = ClusterCa::generate(ClusterId(Uuid::from_u128(7))).unwrap();
        let credentials = ca.issue(NodeId(4), "x").unwrap();
        let quic = ([127, 0, 0, 1], 9).into();
        let peers = vec![JoinPeer { id: NodeId(1), name: "n1".into(), quic }];
        Joined { credentials, name: "x".into(), peers }
    }

    fn addresses() -> Addresses {
        let at = |port| ([127, 0, 0, 1], port).into();
        Addresses { quic: at(1), api: at(2), nbd: at(3) }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_finished_folder_is_a_nodes_and_no_other_join_takes_it() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("a/b");
        let made = Making::begin(&dir).unwrap().finish(&joined(), addresses()).unwrap();
        assert_eq!(names(&dir), ["custody.key", "data", "node.toml", "shares", "tls"]);
        let config = NodeConfig::load(&made.config).unwrap();
        assert_eq!((config.node, config.name.as_str()), (NodeId(4), "x"));
        assert_eq!((config.peers.len(), config.authority), (1, None));
        smalti_net::NodeCredentials::load(&config.credentials.dir).unwrap();
        custody::load_key(config.custody.provider.file().unwrap()).unwrap();
        let error = Making::begin(&dir).err().unwrap().to_string();
        assert!(error.contains("is a node's folder already"), "{error}");
    }

    #[test]
    fn what_is_undone_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("d");
        Making::begin(&dir).unwrap().undo().unwrap();
        assert!(!dir.exists());
        fs::create_dir(&dir).unwrap();
        drop(Making::begin(&dir).unwrap());
        assert_eq!(names(&dir), Vec::<String>::new());
    }

    #[test]
    fn half_made_and_foreign_folders_are_told_apart() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("d");
        let mut held = Making::begin(&dir).unwrap();
        let error = Making::begin(&dir).err().unwrap().to_string();
        let at_work = format!("another `smalti join` is at work in {}", dir.display());
        assert_eq!(error, at_work);
        // As if it had been killed.
        held.open = false;
        drop(held);
        let error = Making::begin(&dir).err().unwrap().to_string();
        assert!(error.contains("is half made"), "{error}");
        assert_eq!(names(&dir), [".making"]);
        let error = Making::begin(home.path()).err().unwrap().to_string();
        assert!(error.contains("is not empty"), "{error}");
    }
}
