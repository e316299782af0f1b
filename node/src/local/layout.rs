//! The nodes of a local cluster, as its folder has them.

use crate::client::ApiAddress;
use crate::cluster_file::{NbdEntry, NodeEntry};
use crate::config::NodeConfig;
use crate::init::{self, CONFIG_FILE, DirState};
use anyhow::{Context, bail, ensure};
use std::path::{Path, PathBuf};

/// A local cluster.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
    nodes: Vec<LayoutNode>,
}

/// One of its nodes.
#[derive(Clone, Debug)]
pub struct LayoutNode {
    /// Its folder.
    pub folder: PathBuf,
    /// Its config file.
    pub config_path: PathBuf,
    /// What that file says.
    pub config: NodeConfig,
}

impl Layout {
    /// Reads the cluster in a folder.
    ///
    /// # Errors
    /// The folder holds no whole cluster, or a config in it can not be used.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir).context("find the folder")?;
        let marker = match init::inspect(&dir)? {
            DirState::Made(marker) => marker,
            DirState::HalfMade => bail!(half_made(&dir)),
            DirState::Free | DirState::Foreign => {
                bail!("{} holds no cluster; `smalti up` makes one", dir.display())
            }
        };
        let dir = dir.canonicalize().with_context(|| format!("find {}", dir.display()))?;
        let load = |name: &String| -> anyhow::Result<LayoutNode> {
            let folder = dir.join(name);
            let config_path = folder.join(CONFIG_FILE);
            let config = NodeConfig::load(&config_path)?;
            ensure!(
                config.cluster == marker.cluster,
                "{} is of another cluster than its folder",
                config_path.display()
            );
            Ok(LayoutNode { folder, config_path, config })
        };
        let nodes = marker.nodes.iter().map(load).collect::<anyhow::Result<_>>()?;
        Ok(Self { dir, nodes })
    }

    /// The cluster's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its nodes, by number.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &LayoutNode> {
        self.nodes.iter()
    }
}

impl LayoutNode {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Its control API for the local administrator.
    pub fn api_address(&self) -> ApiAddress {
        ApiAddress::Unix(self.config.sockets.api.clone())
    }

    /// Where its output goes.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join("node.log")
    }

    /// The command line that starts it.
    ///
    /// # Errors
    /// A path in it is not UTF-8.
    pub fn argv(&self, program: &Path) -> anyhow::Result<Vec<String>> {
        let text = |path: &Path| -> anyhow::Result<String> {
            let text = path.to_str();
            Ok(text.with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned())
        };
        Ok(vec![
            text(program)?,
            "serve".to_owned(),
            "--config".to_owned(),
            text(&self.config_path)?,
        ])
    }

    /// Its entry in `cluster.json`.
    ///
    /// # Errors
    /// As [`argv`](Self::argv).
    pub fn entry(&self, program: &Path, pid: u32) -> anyhow::Result<NodeEntry> {
        Ok(NodeEntry {
            name: self.config.name.clone(),
            id: self.config.node,
            pid,
            argv: self.argv(program)?,
            dir: self.folder.clone(),
            quic: self.config.addresses.quic,
            api: self.config.addresses.api,
            nbd: NbdEntry { unix: self.config.sockets.nbd.clone(), tcp: self.config.addresses.nbd },
        })
    }
}

pub(super) fn half_made(dir: &Path) -> String {
    format!(
        "{} is half made: an earlier `smalti up` or `smalti init` was cut off while making it; \
         it holds no data yet, so remove it and start again",
        dir.display()
    )
}
