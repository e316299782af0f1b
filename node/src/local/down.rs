//! `smalti down`.

use super::layout::Layout;
use super::stop;
use crate::cli::print;
use anyhow::ensure;
use std::path::Path;

/// Stops the nodes of the cluster in a folder: all that can be told, also where one can not.
///
/// # Errors
/// The folder holds no cluster, or a node could not be stopped.
pub async fn down(dir: &Path) -> anyhow::Result<()> {
    let (layout, unusable) = Layout::load_usable(dir)?;
    stop::mark_down(&layout);
    let stopped = stop::stop_all(&layout, std::future::pending()).await?;
    if layout.nodes().len() > 0 {
        print(&format!("{}\n", stopped.describe()))?;
    }
    ensure!(
        unusable.is_empty(),
        "these nodes may still run: {}",
        unusable.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>().join("; ")
    );
    Ok(())
}
