//! Making the folders of a new cluster on this machine: authority, nodes, keys, shares, configs.
//!
//! Everything is made in `DIR/.making` and then moved to its place, the marker `local.json` last.
//! So a folder with the marker is whole, and one with `.making` but no marker is half made and
//! has never held data.

mod founding;
mod ports;

pub(crate) use ports::pick as pick_ports;

pub use founding::{Founding, FoundingCustody, FoundingHolder, FoundingNode};

use crate::config::{
    Addresses, CredentialsConfig, CustodyConfig, NodeConfig, PeerConfig, Sockets, Tunables, VERSION,
};
use crate::custody::{CustodianKey, master_share_path, master_share_purpose};
use crate::files;
use crate::volume_spec::NODES_MIN;
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use smalti_net::ClusterCa;
use smalti_storage::ids::{ClusterId, NodeId};
use smalti_storage::keys::{Dealing, Secret, get_key_parts, verify_part};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
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
    check_nodes(nodes)?;
    check_socket_paths(dir)?;
    ensure!(inspect(dir)? == DirState::Free, "{} is not empty", dir.display());
    let cluster = ClusterId(Uuid::new_v4());
    let names: Vec<String> = (1..=nodes).map(|number| format!("n{number}")).collect();

    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("make {}", dir.display()))?;
    let making = dir.join(MAKING);
    files::make_private_dir(&making)?;
    let marker = Marker { version: 1, cluster, nodes: names };
    if let Err(error) = make_parts(&making, &marker) {
        // Nothing has its place yet, so nothing is lost and the folder can be free again.
        fs::remove_dir_all(&making).context("clean up after a failure to make the cluster")?;
        return Err(error.context("make the parts of the cluster"));
    }
    let parts = std::iter::once("ca").chain(marker.nodes.iter().map(String::as_str));
    for name in parts.chain([MARKER]) {
        // The marker must not be in place while a part might not be.
        files::sync_dir(dir).context("sync the cluster's folder")?;
        fs::rename(making.join(name), dir.join(name))
            .with_context(|| format!("move {name} to its place"))?;
    }
    fs::remove_dir(&making).with_context(|| format!("remove {}", making.display()))?;
    files::sync_dir(dir).context("sync the cluster's folder")?;
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

fn check_socket_paths(dir: &Path) -> anyhow::Result<()> {
    ensure!(dir.to_str().is_some(), "the path {} is not UTF-8", dir.display());
    let longest = dir.join(format!("n{NODES_MAX}")).join("nbd.sock");
    let length = longest.as_os_str().len();
    ensure!(
        length <= 107,
        "{} has {length} bytes, a socket's path may have 107: use a folder with a shorter path",
        longest.display()
    );
    Ok(())
}

fn make_parts(making: &Path, marker: &Marker) -> anyhow::Result<()> {
    let (cluster, names) = (marker.cluster, &marker.nodes);
    let ca = ClusterCa::generate(cluster).context("make the cluster's authority")?;
    files::make_private_dir(&making.join("ca"))?;
    ca.save(&making.join("ca"))?;

    let addresses = ports::pick(names.len())?;
    let (threshold, count) = custodians(names.len());
    let dealing = {
        let mut rng = rand::rng();
        let secret = Secret::random(&mut rng);
        get_key_parts(&secret, threshold, count, &mut rng).context("split the master secret")?
    };
    let configs = configs(cluster, names, &addresses);
    for (index, config) in configs.iter().enumerate() {
        let folder = making.join(&config.name);
        make_node(&folder, config, &ca)
            .and_then(|()| keep_share(&folder, config, &dealing, index))
            .with_context(|| format!("make node {}", config.name))?;
    }
    let [first, ..] = configs.as_slice() else { bail!("there is no first node") };
    let founding = Founding::of(&configs, &dealing.commitments, threshold, count);
    founding.write(&making.join(&first.name).join(FOUNDING_FILE))?;
    for config in &configs {
        files::sync_dir(&making.join(&config.name))?;
    }
    let text = serde_json::to_vec_pretty(marker)?;
    files::write_atomic(&making.join(MARKER), &text, files::PUBLIC)
}

const FOUNDING_FILE: &str = "founding.json";

fn configs(cluster: ClusterId, names: &[String], addresses: &[Addresses]) -> Vec<NodeConfig> {
    let peers: Vec<PeerConfig> = (1..)
        .zip(names.iter().zip(addresses))
        .map(|(id, (name, addresses))| PeerConfig {
            id: NodeId(id),
            name: name.clone(),
            quic: addresses.quic,
        })
        .collect();
    let config = |(index, me): (usize, &PeerConfig)| NodeConfig {
        version: VERSION,
        cluster,
        node: me.id,
        name: me.name.clone(),
        data_dir: "data".into(),
        local_cluster: Some("..".into()),
        founding: (index == 0).then(|| FOUNDING_FILE.into()),
        // One node is enough to let others join, and the key is to be in one place.
        authority: (index == 0).then(|| "../ca".into()),
        certificate_seconds: None,
        addresses: addresses[index],
        sockets: Sockets { nbd: "nbd.sock".into(), api: "api.sock".into() },
        tunables: Tunables::default(),
        peers: peers.iter().filter(|peer| peer.id != me.id).cloned().collect(),
        custody: CustodyConfig { shares_dir: "shares".into(), key_file: "custody.key".into() },
        credentials: CredentialsConfig { dir: "tls".into() },
    };
    peers.iter().enumerate().map(config).collect()
}

fn make_node(folder: &Path, config: &NodeConfig, ca: &ClusterCa) -> anyhow::Result<()> {
    files::make_private_dir(folder)?;
    for inner in [&config.data_dir, &config.custody.shares_dir, &config.credentials.dir] {
        files::make_private_dir(&folder.join(inner))?;
    }
    ca.issue(config.node, &config.name)?.save(&folder.join(&config.credentials.dir))?;
    let text = config.to_toml()?;
    files::write_atomic(&folder.join(CONFIG_FILE), text.as_bytes(), files::PUBLIC)
}

/// Every node gets a custodian key, for shares may be dealt to it later; the first ones get their
/// shares of the master secret.
fn keep_share(
    folder: &Path,
    config: &NodeConfig,
    dealing: &Dealing,
    index: usize,
) -> anyhow::Result<()> {
    let key = CustodianKey::create(&folder.join(&config.custody.key_file))?;
    let Some(part) = dealing.parts.get(index) else { return Ok(()) };
    let path = master_share_path(&folder.join(&config.custody.shares_dir));
    let purpose = master_share_purpose(config.cluster, config.node);
    key.seal_share(&path, &purpose, part)?;
    // The master secret is gone when this returns. What can not be opened now never can be.
    let again = CustodianKey::load(&folder.join(&config.custody.key_file))?;
    verify_part(&again.open_share(&path, &purpose)?, &dealing.commitments)?;
    Ok(())
}

#[cfg(test)]
mod tests;
