//! `smalti down`.

use super::layout::Layout;
use super::stop;
use crate::cli::print;
use std::path::Path;

/// Stops the nodes of the cluster in a folder.
///
/// # Errors
/// The folder holds no cluster, or a node could not be stopped.
pub async fn down(dir: &Path) -> anyhow::Result<()> {
    let layout = Layout::load(dir)?;
    stop::mark_down(&layout);
    let stopped = stop::stop_all(&layout, std::future::pending()).await?;
    print(&format!("{}\n", stopped.describe()))
}
