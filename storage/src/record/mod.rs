//! Records: the bytes of one block as they are coded and kept.
//!
//! The first byte of a record names its format; each format is a module. Only [`v1`] exists.

pub mod v1;

pub use v1::{ABSENT, BLOCK_LEN, HEADER_LEN, RECORD_LEN, Record, RecordError, RecordHeader};
