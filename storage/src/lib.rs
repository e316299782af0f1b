//! What a volume is made of: geometry, records, keys, codes, and the interface of a shard store.
//!
//! First and lowest room of the house. Everything here but the store does no I/O, reads no clock
//! and draws no randomness of its own; nothing here knows a network, Raft or an actor.
//!
//! On the way of a write: [`geometry`] says which row and slot a block belongs to, [`seal`] turns
//! its plaintext into a [`record`] under the keys of [`keys`], [`code`] makes the parity records,
//! and a [`store`] keeps each of them.

pub mod code;
pub mod geometry;
pub mod ids;
pub mod keys;
pub mod record;
pub mod seal;
pub mod secret;
pub mod store;
