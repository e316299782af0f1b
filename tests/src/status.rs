//! What the program says about itself: `cluster.json` and `smalti status --json`.
//!
//! Fields that scripts may rely on are required here: leaving one out fails every test that looks.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

/// `DIR/cluster.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct ClusterFile {
    /// Every node of the local cluster.
    pub nodes: Vec<NodeEntry>,
    /// Names of the volumes.
    pub volumes: Vec<String>,
}

/// One node in `cluster.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct NodeEntry {
    /// Short name.
    pub name: String,
    /// Id, a number or a uuid.
    pub id: Value,
    /// Process id of the running node.
    pub pid: u32,
    /// Command line that starts this node again.
    pub argv: Vec<String>,
    /// Folder of the node.
    pub dir: PathBuf,
    /// Address of the node-to-node transport.
    pub quic: String,
    /// Address of the control API.
    pub api: String,
    /// Where its NBD server listens.
    pub nbd: NbdEntry,
}

/// NBD addresses of a node.
#[derive(Debug, Clone, Deserialize)]
pub struct NbdEntry {
    /// Path of the Unix socket.
    pub unix: PathBuf,
    /// `host:port`.
    pub tcp: String,
}

/// `smalti status --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// `ok`, `degraded` or `stalled`.
    pub health: String,
    /// Every node of the map.
    pub nodes: Vec<NodeStatus>,
    /// Every volume.
    pub volumes: Vec<VolumeStatus>,
    /// The metadata group.
    pub raft: RaftStatus,
    /// How many custodians can be asked.
    pub custody: CustodyStatus,
    /// Slots that are not where they are to be.
    pub moves: MovesStatus,
}

impl Status {
    /// Whether health is `ok`, and everything is where it is to be.
    pub fn is_at_rest(&self) -> bool {
        self.health == "ok" && self.moves == MovesStatus::default()
    }
}

/// Slots that are not where they are to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct MovesStatus {
    /// They move.
    pub moving: u64,
    /// They have yet to begin.
    pub waiting: u64,
    /// They have moved, and their old stores keep them.
    pub kept: u64,
    /// Nobody can take them.
    pub stuck: u64,
}

/// One node in the status.
#[derive(Debug, Clone, Deserialize)]
pub struct NodeStatus {
    /// Short name.
    pub name: String,
    /// Id, as in `cluster.json`.
    pub id: Value,
    /// `up`, `down` or `draining`.
    pub state: String,
}

/// One volume in the status.
#[derive(Debug, Clone, Deserialize)]
pub struct VolumeStatus {
    /// Name.
    pub name: String,
    /// `ok`, `degraded` or `stalled`.
    pub health: String,
    /// Configuration epoch.
    pub epoch: u64,
    /// Name or id of the coordinating node; null while nobody is attached.
    pub coordinator: Value,
    /// Rows some slot of which is out of sync and has yet to catch up; null while nobody knows.
    pub rows_behind: Option<u64>,
    /// Rows of which something can not be read.
    pub rows_lost: u64,
    /// Rows that slots got since the present coordinator began.
    pub rows_repaired: u64,
    /// Slots that are being brought up to date, rebuilt or moved.
    pub slots_catching_up: u64,
    /// Rows that they lack yet, about.
    pub rows_left: u64,
    /// The same in bytes.
    pub bytes_left: u64,
    /// Rows a second of late.
    pub rows_per_second: u64,
    /// When that will be over.
    pub seconds_left: Option<u64>,
    /// Placement groups.
    pub groups: u64,
    /// Those with all slots in sync.
    pub groups_full: u64,
    /// Those that are not served.
    pub groups_offline: u64,
    /// Data shards.
    pub data: u32,
    /// Parity shards.
    pub parity: u32,
}

/// The metadata group.
#[derive(Debug, Clone, Deserialize)]
pub struct RaftStatus {
    /// Name or id of the leading node; null while there is none.
    pub leader: Value,
    /// Term.
    pub term: u64,
}

/// Custodians.
#[derive(Debug, Clone, Deserialize)]
pub struct CustodyStatus {
    /// Shares needed to open a volume.
    pub needed: u32,
    /// Custodians that answer now.
    pub reachable: u32,
    /// Custodians in all.
    pub total: u32,
}

impl Status {
    /// The state of the node `name`, or `missing`.
    #[must_use]
    pub fn node_state(&self, name: &str) -> &str {
        self.nodes.iter().find(|n| n.name == name).map_or("missing", |n| &n.state)
    }

    /// One line for messages.
    #[must_use]
    pub fn brief(&self) -> String {
        let nodes: Vec<String> =
            self.nodes.iter().map(|n| format!("{} {}", n.name, n.state)).collect();
        let volumes: Vec<String> = self
            .volumes
            .iter()
            .map(|v| {
                let behind = v.rows_behind.map_or("unknown".into(), |rows| rows.to_string());
                let lost = v.rows_lost;
                format!(
                    "{} {} epoch {} {behind} rows behind, {lost} lost",
                    v.name, v.health, v.epoch
                )
            })
            .collect();
        format!("{} [{}] [{}]", self.health, nodes.join(", "), volumes.join(", "))
    }
}

/// Whether a name-or-id field points at this node.
#[must_use]
pub fn points_at(field: &Value, node: &NodeEntry) -> bool {
    *field == node.id || field.as_str() == Some(&node.name)
}
