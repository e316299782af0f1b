//! A volume's content as a file: written through one node, and compared through any.

use crate::cluster::Cluster;
use crate::files;
use crate::process::sh;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(240);

/// What a volume is to hold.
#[derive(Debug)]
pub struct Image {
    bytes: usize,
    file: PathBuf,
    back: PathBuf,
}

impl Image {
    /// Fills the volume, or its beginning, with random bytes through a node.
    ///
    /// # Errors
    /// When the write fails.
    pub fn write(cluster: &Cluster, bytes: usize, node: usize, seed: u64) -> Result<Self> {
        let scratch = cluster.scratch()?;
        let image = Self { bytes, file: scratch.join("image"), back: scratch.join("back") };
        files::random_file(&image.file, bytes, seed)?;
        image.write_again(cluster, node)?;
        Ok(image)
    }

    /// Writes the same once more.
    ///
    /// # Errors
    /// When the write fails.
    pub fn write_again(&self, cluster: &Cluster, node: usize) -> Result<()> {
        sh(&["nbdcopy", "--flush", &text(&self.file), &cluster.uri(node)], LIMIT).map(drop)
    }

    /// Reads all of the volume through a node.
    ///
    /// # Errors
    /// When a read fails.
    pub fn read(&self, cluster: &Cluster, node: usize) -> Result<()> {
        sh(&["nbdcopy", &cluster.uri(node), &text(&self.back)], LIMIT)
            .with_context(|| format!("read through node {node}"))
            .map(drop)
    }

    /// Reads all of the volume, and compares what was written.
    ///
    /// # Errors
    /// When a read fails or gives other bytes.
    pub fn verify(&self, cluster: &Cluster, node: usize) -> Result<()> {
        self.read(cluster, node)?;
        files::same(&self.file, &self.back, Some(self.bytes))
            .with_context(|| format!("read through node {node}"))?;
        Ok(std::fs::remove_file(&self.back)?)
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
