//! The shard store on RocksDB: what a node keeps on its disk.
//!
//! Last step of a write's way: the shard-store actor hands over a [`Batch`], and when
//! [`RocksStore::commit`] returns it is on the disk. The rules of the trait hold (S1 to S3), and:
//!
//! R1. A commit is one RocksDB write with `sync`, except for relaxed batches; after an error the
//!     store takes nothing more, because a failed sync can not be retried.
//! R2. Two puts of one version key always have a deletion between them, so `SingleDelete` is legal.
//! R3. Nothing is written into a directory before it is known to be ours and whole.
//! R4. Metadata is verified when read; records are verified by the caller, who has their hash.
//! R5. A store that was killed, or whose log or manifest is not as the last run left it, never
//!     comes up clean.
//!
//! [`Batch`]: smalti_storage::store::Batch
//! [`RocksStore::commit`]: smalti_storage::store::ShardStore::commit

mod apply;
mod blobs;
mod database;
mod drops;
mod garbage;
mod held;
mod keys;
mod label;
mod options;
mod reclaim;
mod space;
mod store;
mod value;

pub use options::{Expect, RocksOptions};
pub use store::RocksStore;
