//! `smalti down`.

use super::layout::Layout;
use super::stop;
use crate::cli::print;
use std::path::Path;

/// Stops the nodes of the cluster in a folder: all that can be told, also where one can not.
///
/// # Errors
/// The folder holds no cluster, or a node could not be stopped.
pub async fn down(dir: &Path) -> anyhow::Result<()> {
    let (layout, unusable) = Layout::load_usable(dir)?;
    stop::mark_down(&layout);
    let stopped = stop::stop_all(&layout, std::future::pending()).await?;
    print(&format!("{}\n", stopped.describe()))?;
    match unusable.into_iter().next() {
        None => Ok(()),
        Some(error) => Err(error.context("a node may still run")),
    }
}
