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
        let (layout, unusable) = Self::load_usable(dir)?;
        match unusable.into_iter().next() {
            None => Ok(layout),
            Some(error) => Err(error),
        }
    }

    /// The same without nodes whose config can not be used; of each, why.
    ///
    /// # Errors
    /// The folder holds no whole cluster.
    pub fn load_usable(dir: &Path) -> anyhow::Result<(Self, Vec<anyhow::Error>)> {
        let dir = std::path::absolute(dir).context("find the folder")?;
        let marker = match init::inspect(&dir)? {
            DirState::Made(marker) => marker,
            DirState::HalfMade => bail!(half_made(&dir)),
            DirState::Free => bail!("{} holds no cluster; `smalti up` makes one", dir.display()),
            DirState::Foreign => match node_in(&dir) {
                Some(node) => bail!(
                    "{} holds no cluster that `smalti up` made, but the folder of a node: ask that node \
                     with `--api unix:{}`",
                    dir.display(),
                    node.join("api.sock").display()
                ),
                None => bail!("{} holds no cluster, but something else", dir.display()),
            },
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
        let (mut nodes, mut unusable) = (Vec::new(), Vec::new());
        for name in &marker.nodes {
            match load(name) {
                Ok(node) => nodes.push(node),
                Err(error) => unusable.push(error),
            }
        }
        Ok((Self { dir, nodes }, unusable))
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

/// A node's folder, in a folder that no `smalti up` made: that itself, or the first one in it.
fn node_in(dir: &Path) -> Option<PathBuf> {
    let below = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut folders: Vec<PathBuf> = below.chain([dir.to_owned()]).collect();
    folders.retain(|folder| folder.join(CONFIG_FILE).is_file());
    folders.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_a_node_is_told_from_others() {
        let dir = tempfile::tempdir().expect("a folder");
        let told = |dir: &Path| Layout::load(dir).expect_err("no cluster").to_string();
        assert!(told(dir.path()).contains("`smalti up` makes one"));
        for name in ["n1", "n2", "else"] {
            std::fs::create_dir(dir.path().join(name)).expect("made");
        }
        assert!(told(dir.path()).ends_with("but something else"));
        for name in ["n2", "n1"] {
            std::fs::write(dir.path().join(name).join(CONFIG_FILE), "").expect("written");
        }
        let socket = dir.path().join("n1/api.sock").display().to_string();
        assert!(told(dir.path()).contains(&format!("--api unix:{socket}`")));
        assert!(told(&dir.path().join("n1")).contains(&format!("--api unix:{socket}`")));
    }
}
