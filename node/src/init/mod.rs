//! Making the folders of a new cluster: authority, nodes, keys, shares, configs.
//!
//! Everything is made in `DIR/.making` and then moved to its place. For `smalti up` the marker
//! `local.json` is moved last: a folder with it is whole. For `smalti init`, whose folders are carried
//! to other machines, there is no marker, and `.making` goes when all else is in place. So what has
//! `.making` and no marker is half made, and has never held data.

mod deal;
mod founding;
mod parts;
mod ports;
mod recovery;

pub(crate) use ports::pick as pick_ports;

pub use deal::{API_PORT, Dealt, InitOptions, NBD_PORT, NamedAddress, deal};
pub use founding::{Founding, FoundingCustody, FoundingHolder, FoundingNode, FoundingRecovery};
pub use recovery::{RecoveryShares, RecoveryWish};

use crate::config::SOCKET_PATH_MAX;
use crate::files;
use crate::volume_spec::NODES_MIN;
use anyhow::{Context, ensure};
use parts::{Founder, Parts};
use serde::{Deserialize, Serialize};
use smalti_storage::ids::ClusterId;
use std::fs;
use std::path::Path;
use uuid::Uuid;

/// More than this on one machine is a mistake.
pub const NODES_MAX: usize = 32;
/// A node's config file within its folder.
pub const CONFIG_FILE: &str = "node.toml";
const MARKER: &str = "local.json";
pub(crate) const MAKING: &str = ".making";
const MARKER_BYTES_MAX: u64 = 64 << 10;

/// What a folder is to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirState {
    /// Not there, or empty.
    Free,
    /// A whole cluster.
    Made(Marker),
    /// A cluster whose making was interrupted.
    HalfMade,
    /// Something else.
    Foreign,
}

/// `local.json`: that the folder is a whole local cluster, and its nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marker {
    /// Format of the folder; 1.
    pub version: u32,
    /// The cluster.
    pub cluster: ClusterId,
    /// Names of the nodes, which are also the names of their folders.
    pub nodes: Vec<String>,
}

/// How many custodians there are, and how many shares are needed: 2 of 3, or 3 of 5 where there
/// are that many nodes. Never more are needed than survive the loss of a node (or two of five).
pub const fn custodians(nodes: usize) -> (u8, u8) {
    if nodes >= 5 { (3, 5) } else { (2, 3) }
}

/// Looks what a folder is.
///
/// # Errors
/// It can not be read, or its marker is not of a known format.
pub fn inspect(dir: &Path) -> anyhow::Result<DirState> {
    let look = || -> anyhow::Result<DirState> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(DirState::Free);
            }
            Err(error) => return Err(error.into()),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name());
        }
        if names.iter().any(|name| name == MARKER) {
            return Ok(DirState::Made(read_marker(dir)?));
        }
        if names.iter().any(|name| name == MAKING) {
            return Ok(DirState::HalfMade);
        }
        // The root of a fresh ext4 file system is as good as empty.
        let free = names.iter().all(|name| name == "lost+found");
        Ok(if free { DirState::Free } else { DirState::Foreign })
    };
    look().with_context(|| format!("look at {}", dir.display()))
}

fn read_marker(dir: &Path) -> anyhow::Result<Marker> {
    let path = dir.join(MARKER);
    let bytes = files::read_bounded(&path, MARKER_BYTES_MAX)?;
    let marker: Marker =
        serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
    ensure!(marker.version == 1, "{}: version {} is not known", path.display(), marker.version);
    let plain = |name: &String| name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    ensure!(
        (NODES_MIN..=NODES_MAX).contains(&marker.nodes.len()) && marker.nodes.iter().all(plain),
        "{}: its list of nodes can not be",
        path.display()
    );
    Ok(marker)
}

/// Makes a cluster of `nodes` nodes in `dir`, which must be free and have an absolute path.
///
/// # Errors
/// The number of nodes or the folder can not be, or a step failed.
pub fn make(dir: &Path, nodes: usize) -> anyhow::Result<Marker> {
    make_with(dir, nodes, None, |_| Ok(()))
}

/// The same, with recovery shares if there are to be some. `hand_out` gives them to people, before the folder is
/// whole.
///
/// # Errors
/// As [`make`], and when the shares can not be handed out.
pub fn make_with(
    dir: &Path,
    nodes: usize,
    recovery: Option<RecoveryWish>,
    hand_out: impl FnOnce(Option<RecoveryShares>) -> anyhow::Result<()>,
) -> anyhow::Result<Marker> {
    check_nodes(nodes)?;
    check_socket_paths(dir, &format!("n{NODES_MAX}"))?;
    ensure!(inspect(dir)? == DirState::Free, "{} is not empty", dir.display());
    let names: Vec<String> = (1..=nodes).map(|number| format!("n{number}")).collect();
    let founders = names.iter().cloned().zip(ports::pick(nodes)?);
    let founders: Vec<Founder> =
        founders.map(|(name, addresses)| Founder { name, addresses }).collect();
    let marker = Marker { version: 1, cluster: ClusterId(Uuid::new_v4()), nodes: names };
    let (cluster, made) = (marker.cluster, Some(&marker));
    Parts { cluster, founders: &founders, marker: made, passphrase: None, recovery }
        .place(dir, hand_out)?;
    Ok(marker)
}

/// Checks the number of nodes of a local cluster.
///
/// # Errors
/// Fewer than 3 or more than 32.
pub fn check_nodes(nodes: usize) -> anyhow::Result<()> {
    ensure!(
        nodes >= NODES_MIN,
        "{nodes} nodes are too few: with fewer than {NODES_MIN} none could be lost"
    );
    ensure!(nodes <= NODES_MAX, "{nodes} nodes are more than the {NODES_MAX} of a local cluster");
    Ok(())
}

fn check_socket_paths(dir: &Path, longest_name: &str) -> anyhow::Result<()> {
    ensure!(dir.to_str().is_some(), "the path {} is not UTF-8", dir.display());
    let longest = dir.join(longest_name).join(parts::NBD_SOCKET);
    let length = longest.as_os_str().len();
    ensure!(
        length <= SOCKET_PATH_MAX,
        "{} has {length} bytes, a socket's path may have {SOCKET_PATH_MAX}: use a folder with a \
         shorter path",
        longest.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests;
