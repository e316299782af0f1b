//! What cluster a test wants.

use std::path::PathBuf;

/// What cluster to make.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Name of the test, for messages and the folder.
    pub test: &'static str,
    /// Node processes.
    pub nodes: usize,
    /// Name of the volume.
    pub volume: &'static str,
    /// Its size as the command line takes it.
    pub size: &'static str,
    /// Data and parity shards, or the default of the program.
    pub geometry: Option<(u32, u32)>,
    /// Slots that have to be in sync for writes; the program's default when absent.
    pub min_insync: Option<u32>,
    /// Recovery shares, and how many of them are needed; none when absent.
    pub recovery: Option<(u32, u32)>,
    /// The program that its nodes run, if not the one that is tested.
    pub program: Option<PathBuf>,
}

impl Spec {
    /// Three nodes and a volume `v` of the default geometry.
    #[must_use]
    pub fn three(test: &'static str, size: &'static str) -> Self {
        let (geometry, min_insync, recovery, program) = (None, None, None, None);
        Self { test, nodes: 3, volume: "v", size, geometry, min_insync, recovery, program }
    }
}
