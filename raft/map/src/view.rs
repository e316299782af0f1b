//! The map as readers hold it: an immutable snapshot, cheap to clone, with its version.

use crate::types::ClusterMap;
use std::sync::Arc;

/// A snapshot of the map. Hold one for the length of one operation.
pub type MapView = Arc<ClusterMap>;
