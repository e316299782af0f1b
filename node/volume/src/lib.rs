//! The library surface: what a volume is cut into, and how it is put together again.
//!
//! ```text
//! shard_volume(id, n, k) ──> ShardMetadata: stores of every shard, wrapped keys, commitments
//!                             │ kept in the cluster map; says nothing without the custodians
//! unshard_volume(id, metadata) ──> Gateway: one virtual volume of plaintext bytes
//!   read_data(id, offset, size) ──> bytes, fetched, decoded, opened and assembled
//!   reconstruct_volume(id, metadata, out) ──> all of it, in order
//! rotate_keys(id, metadata) ──> KeyEpoch: new keys, which new blocks are sealed under
//! ```
//!
//! These functions are what the running system itself is built on: making a volume calls
//! [`shard_volume`], attaching one [`unshard_volume`], the control API's reads and exports
//! [`read_data`] and [`reconstruct_volume`]. Key derivation, wrapping and sharing are one room
//! below, in [`smalti_storage::keys`].
//!
//! They know no network and no actor. Whoever calls them says how custodians, stores and open
//! volumes are reached ([`Cluster`], [`Volumes`]); [`memory::MemoryCluster`] is a whole cluster
//! within the process, running the protocol that serves volumes, for examples and tests.
//!
//! V1. The master secret is assembled only to derive shard keys and wiped at once; a wrapping
//!     secret only to open or make the keys of its key epoch.
//! V2. Every custodian has its share, durably, before metadata that depends on it is handed out.
//! V3. No share is used before it was verified, and a bad one is named.
//! V4. Every new secret is sealed to the cluster's recovery secret before it is dealt, if there is one.

mod access;
mod cluster;
mod custody;
mod error;
pub mod memory;
mod metadata;
mod recover;
mod rotate;
mod shard;

pub use access::{read_data, reconstruct_volume};
pub use cluster::{Cluster, Session, Volumes};
pub use error::{KeysError, VolumeError};
pub use metadata::{Shard, ShardMetadata};
pub use recover::{Opened, deal_anew, open_sealed};
pub use rotate::rotate_keys;
pub use shard::{VolumeShape, shard_volume, unshard_volume};
