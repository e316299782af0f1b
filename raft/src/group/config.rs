//! How a member is set up, and its timing.

use super::errors::StartError;
use crate::rpc::SNAPSHOT_CHUNK_BYTES;
use openraft::{Config, SnapshotPolicy};
use smalti_storage::ids::NodeId;
use std::path::PathBuf;

/// Between two heartbeats of a leader, and the time a member has to take in what comes with one.
const HEARTBEAT_MS: u64 = 50;

/// The shortest election timeout of position 0. openraft adds a lease of the same size, so the
/// first member campaigns 0.7 s after the last heartbeat: more than a synced write takes on a busy
/// disk.
const ELECTION_MS: u64 = 300;

/// From one position's window to the next, and the width of a window. openraft draws a member's
/// timeout once per process: were two windows to overlap, two survivors could draw the same and
/// campaign against each other for ever.
const WINDOW_STEP_MS: u64 = 100;
const WINDOW_MS: u64 = 80;

/// Positions that have a window of their own.
pub const POSITIONS: u8 = 32;

/// How a member is started.
#[derive(Clone, Debug)]
pub struct RaftGroupConfig {
    /// This member.
    pub node: NodeId,
    /// Its own directory, for nothing else.
    pub dir: PathBuf,
    /// Its place in the list of voters, from 0: every voter has another one. Lower ones campaign
    /// earlier.
    pub position: u8,
    /// A snapshot is taken, and the log before it dropped, every so many commands.
    pub snapshot_every: u64,
    /// It may vote though the map does not name its store. Only for groups in which no store is ever
    /// lost, as in tests: a member that forgot what it voted for can make the group lose data.
    pub trusted: bool,
}

impl RaftGroupConfig {
    /// The usual settings.
    pub fn new(node: NodeId, dir: impl Into<PathBuf>, position: u8) -> Self {
        Self { node, dir: dir.into(), position, snapshot_every: 1000, trusted: false }
    }

    pub(super) fn openraft(&self) -> Result<Config, StartError> {
        if self.position >= POSITIONS {
            let text = format!("position {} of at most {POSITIONS}", self.position);
            return Err(StartError::Config(text));
        }
        let earliest = ELECTION_MS + WINDOW_STEP_MS * u64::from(self.position);
        let config = Config {
            cluster_name: "smalti".into(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: earliest,
            election_timeout_max: earliest + WINDOW_MS,
            install_snapshot_timeout: 5_000,
            snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every.max(1)),
            max_in_snapshot_log_to_keep: self.snapshot_every / 2,
            ..Config::default()
        };
        config.validate().map_err(|error| StartError::Config(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn election_windows_of_positions_are_disjoint() {
        let config = |position| RaftGroupConfig::new(NodeId(1), "", position).openraft();
        let mut end = 0;
        for position in 0..POSITIONS {
            let config = config(position).expect("valid");
            assert!(config.election_timeout_min > end);
            end = config.election_timeout_max;
        }
        assert!(config(POSITIONS).is_err());
    }
}
