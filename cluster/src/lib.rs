//! The actors around the protocol, and the member that runs them.
//!
//! ```text
//! gateway → coder (one per volume, where it is coordinated) → link → shard store (one per disk)
//!           the pure core orders, encodes, prepares                  one writer, one sync per batch
//! ```
//!
//! Thin on purpose: what is decided is decided in `smalti-rowcommit`, and here messages, time and
//! disk results are carried to it. A [`Member`] is one node's part in the cluster: its store, its
//! share of custody, its seat in the Raft group, the coders of the volumes it coordinates.
//!
//! This crate knows ciphertext and wrapped keys; plaintext and NBD are the gateway's.

pub mod clock;
pub mod coder;
pub mod custodian;
pub mod fabric;
mod introduction;
pub mod member;
pub mod shard_store;
#[cfg(test)]
mod tests;
mod transport;

pub use coder::CoderHandle;
pub use member::{Member, MemberConfig, StartError};
