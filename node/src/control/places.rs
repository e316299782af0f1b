//! Facts and wishes about what lies on which node.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is to be changed of a node; what is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeNode {
    /// Its share of the slots relative to the other nodes, 0 to 10,000. 100 is usual; 0 empties it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Its failure domain, as a rack; empty for one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Whether its slots, seats and vote are to move away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<bool>,
}

/// Which node is to take another one's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceNode {
    /// Its name.
    pub with: String,
}

/// Whether slots may begin to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PauseMoves {
    /// None may.
    pub paused: bool,
}

/// Slots that move from store to store: rebuilt, drained or balanced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MovesStatus {
    /// The operator wants none to begin.
    pub paused: bool,
    /// So many move.
    pub moving: u32,
    /// So many have yet to begin.
    pub waiting: u32,
    /// So many have moved, and their old stores keep them as well until their groups are whole.
    pub kept: u32,
    /// So many should move, and no node can take them.
    pub stuck: u32,
}

/// How full the disk of a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// There is room.
    Ok,
    /// Nothing is moved there any more.
    NearFull,
    /// New data is refused.
    Full,
}

/// The disk of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskFacts {
    /// Bytes of it.
    pub total: u64,
    /// Free bytes.
    pub free: u64,
    /// Bytes that the store takes up.
    pub used: u64,
    /// How full it is.
    pub state: DiskState,
}

/// `smalti what-if stop NODE... --json`: what would be if these nodes were stopped now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhatIfReport {
    /// The nodes.
    pub stop: Vec<String>,
    /// Everything would go on, but for a moment, and that is sure.
    pub safe: bool,
    /// More than half of the voters would be left.
    pub quorum: bool,
    /// Volumes could still be attached anew.
    pub custody: bool,
    /// Every volume, by name.
    pub volumes: Vec<WhatIfVolume>,
}

/// One volume of a [`WhatIfReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhatIfVolume {
    /// Its name.
    pub name: String,
    /// All of it could be read.
    pub reads: bool,
    /// And written.
    pub writes: bool,
    /// Slots that every group could lose beyond that without losing data.
    pub spare: u32,
    /// Its coordinator would be another one: clients wait for a moment.
    pub takeover: bool,
    /// That is sure: the stores that it counts on all answer, and none is being compared after a crash.
    #[serde(default)]
    pub sure: bool,
}
