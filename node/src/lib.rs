//! The `smalti` program: one node's daemon, its control API, and the command line.
//!
//! ```text
//! smalti up ──spawns──> smalti serve --config FILE      (one process per node)
//! smalti status|volume|... ──HTTP──> api ──> Control ──> the running node
//! ```
//!
//! Last room of the house: nothing imports it. The control API and the command line know the node
//! only through [`control::Control`], and facts about a cluster only in the shapes defined there.

pub mod api;
pub mod attach;
pub mod cli;
pub mod client;
pub mod cluster_file;
pub mod config;
pub mod control;
pub mod custody;
pub mod daemon;
pub mod data_disk;
pub mod files;
pub mod init;
pub mod join;
pub mod local;
pub mod memory;
mod rotation;
pub mod serve;
pub mod size;
pub mod telemetry;
pub mod volume_spec;
