//! `DIR/cluster.json`: what scripts know of a local cluster.
//!
//! `smalti up` writes it once the cluster is healthy; from then on every node that starts puts in
//! its own process id, and every change of the volumes goes in too. All of them change it under a
//! lock and replace it whole, so a reader never sees half a file.

use crate::files;
use anyhow::{Context, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use smalti_storage::ids::NodeId;
use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FILE_NAME: &str = "cluster.json";
const LOCK_NAME: &str = ".cluster.json.lock";
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// Every node of the local cluster, by number.
    pub nodes: Vec<NodeEntry>,
    /// Names of the volumes, sorted.
    pub volumes: Vec<String>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: NodeId,
    /// The process of its newest start. Whether that one still runs is for the reader to check.
    pub pid: u32,
    /// The command line that starts it again.
    pub argv: Vec<String>,
    /// Its folder.
    pub dir: PathBuf,
    /// Its QUIC address.
    pub quic: SocketAddr,
    /// Its control API.
    pub api: SocketAddr,
    /// Its NBD service.
    pub nbd: NbdEntry,
}

/// Where a node speaks NBD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NbdEntry {
    /// The path of its Unix socket.
    pub unix: PathBuf,
    /// `host:port`.
    pub tcp: SocketAddr,
}

impl ClusterFile {
    /// The path of the file in a cluster's folder.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join(FILE_NAME)
    }

    /// Reads the file; none when there is none.
    ///
    /// # Errors
    /// It can not be read or is not of the format.
    pub fn read(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = Self::path(dir);
        if !path.try_exists().with_context(|| format!("read {}", path.display()))? {
            return Ok(None);
        }
        let bytes = files::read_bounded(&path, FILE_BYTES_MAX)?;
        let file = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is not a cluster file", path.display()))?;
        Ok(Some(file))
    }

    /// Puts the file in place.
    ///
    /// # Errors
    /// It can not be locked or written.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let _lock = lock(dir)?;
        self.write_locked(dir)
    }

    /// Takes the file away, as long as the cluster is not up.
    ///
    /// # Errors
    /// It can not be locked or removed.
    pub fn remove(dir: &Path) -> anyhow::Result<()> {
        let _lock = lock(dir)?;
        let path = Self::path(dir);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Changes the file if there is one; it is not written when `change` changes nothing.
    ///
    /// # Errors
    /// It can not be locked, read or written.
    pub fn update(dir: &Path, change: impl FnOnce(&mut Self)) -> anyhow::Result<()> {
        let _lock = lock(dir)?;
        let Some(before) = Self::read(dir)? else { return Ok(()) };
        let mut after = before.clone();
        change(&mut after);
        if after == before { Ok(()) } else { after.write_locked(dir) }
    }

    /// Puts in the process id of a node that started.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn note_pid(dir: &Path, node: NodeId, pid: u32) -> anyhow::Result<()> {
        Self::update(dir, |file| {
            for entry in file.nodes.iter_mut().filter(|entry| entry.id == node) {
                entry.pid = pid;
            }
        })
    }

    /// Adds a volume, or takes it out.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn note_volume(dir: &Path, name: &str, exists: bool) -> anyhow::Result<()> {
        Self::update(dir, |file| {
            file.volumes.retain(|volume| volume != name);
            if exists {
                file.volumes.push(name.to_owned());
                file.volumes.sort();
            }
        })
    }

    fn write_locked(&self, dir: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        files::write_atomic(&Self::path(dir), &text, files::PUBLIC)
    }
}

/// Waits for the lock; holders keep it for one small write.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOCK_NAME);
    let take = || -> std::io::Result<File> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(files::PRIVATE)
            .open(&path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    };
    take().with_context(|| format!("lock {}", path.display()))
}

/// `nbd://host:port/NAME`.
pub fn nbd_tcp_uri(address: SocketAddr, volume: &str) -> String {
    format!("nbd://{address}/{volume}")
}

/// `nbd+unix:///NAME?socket=PATH`, with what a URI does not take as it is escaped.
///
/// # Errors
/// When the path is not UTF-8.
pub fn nbd_unix_uri(socket: &Path, volume: &str) -> anyhow::Result<String> {
    let Some(path) = socket.to_str() else {
        bail!("the path {} is not UTF-8", socket.display());
    };
    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~:@".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(format!("nbd+unix:///{volume}?socket={escaped}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn sample() -> ClusterFile {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let node = NodeEntry {
            name: "n1".into(),
            id: NodeId(1),
            pid: 42,
            argv: ["/x/smalti", "serve", "--config", "/d/n1/node.toml"].map(Into::into).into(),
            dir: "/d/n1".into(),
            quic: address(1),
            api: address(2),
            nbd: NbdEntry { unix: "/d/n1/nbd.sock".into(), tcp: address(3) },
        };
        ClusterFile { nodes: vec![node], volumes: vec!["v".into()] }
    }

    #[test]
    fn the_fields_are_those_of_the_contract() {
        let value: Value = serde_json::to_value(sample()).unwrap();
        let expected = json!({
            "nodes": [{
                "name": "n1",
                "id": 1,
                "pid": 42,
                "argv": ["/x/smalti", "serve", "--config", "/d/n1/node.toml"],
                "dir": "/d/n1",
                "quic": "127.0.0.1:1",
                "api": "127.0.0.1:2",
                "nbd": {"unix": "/d/n1/nbd.sock", "tcp": "127.0.0.1:3"},
            }],
            "volumes": ["v"],
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn it_is_kept_current() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ClusterFile::read(dir.path()).unwrap(), None);
        // Without a file there is nothing to keep current, and none may appear.
        ClusterFile::note_volume(dir.path(), "w", true).unwrap();
        assert_eq!(ClusterFile::read(dir.path()).unwrap(), None);

        sample().write(dir.path()).unwrap();
        ClusterFile::note_pid(dir.path(), NodeId(1), 43).unwrap();
        ClusterFile::note_pid(dir.path(), NodeId(9), 44).unwrap();
        ClusterFile::note_volume(dir.path(), "a", true).unwrap();
        ClusterFile::note_volume(dir.path(), "a", true).unwrap();
        let file = ClusterFile::read(dir.path()).unwrap().unwrap();
        assert_eq!(
            (file.nodes[0].pid, file.volumes.as_slice()),
            (43, &["a".into(), "v".into()][..])
        );
        ClusterFile::note_volume(dir.path(), "v", false).unwrap();
        assert_eq!(ClusterFile::read(dir.path()).unwrap().unwrap().volumes, ["a"]);
        ClusterFile::remove(dir.path()).unwrap();
        assert_eq!(ClusterFile::read(dir.path()).unwrap(), None);
    }

    #[test]
    fn concurrent_changes_are_all_kept() {
        let dir = tempfile::tempdir().unwrap();
        sample().write(dir.path()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let dir = dir.path();
                scope.spawn(move || {
                    for i in 0..8 {
                        ClusterFile::note_volume(dir, &format!("v{thread}-{i}"), true).unwrap();
                    }
                });
            }
        });
        assert_eq!(ClusterFile::read(dir.path()).unwrap().unwrap().volumes.len(), 33);
    }

    #[test]
    fn uris_escape_what_they_must() {
        let uri = nbd_unix_uri(Path::new("/tmp/a b&c/nbd.sock"), "v").unwrap();
        assert_eq!(uri, "nbd+unix:///v?socket=/tmp/a%20b%26c/nbd.sock");
        assert_eq!(nbd_tcp_uri(([127, 0, 0, 1], 9).into(), "v"), "nbd://127.0.0.1:9/v");
    }
}
