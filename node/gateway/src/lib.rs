//! The gateway of an attached volume: bytes of a client on one side, sealed records on the other.
//!
//! ```text
//! NBD client -> NbdExport -> dyn BlockDevice = Gateway ----------------------> Rows (coordinator)
//!                                            | ForwardClient -> frames -> ForwardServer -> Gateway
//! ```
//!
//! A [`Gateway`] stands on the coordinator's node, seals what is written and opens what is read; a
//! [`ForwardClient`] is the same device on any other node. This is the only room with plaintext
//! and volume keys. It knows no map, no store and no network: records go to [`Rows`], frames to
//! [`FrameTx`], and whoever embeds it provides both.
//!
//! B1. A write is answered after its records are durable; nothing acknowledged is volatile.
//! B2. Between reading a block to change a part of it and the acknowledgement of the change, no
//!     other write of that block happens, whether or not its client still waits for the answer.
//! B3. The client write number of a block only grows.
//! B4. No byte is returned that did not authenticate as the block asked for, or that is older than
//!     what this gateway remembers to have written there.
//! B5. Requests of a client's old forwarding session have ended before the new one starts any.

mod device;
mod error;
mod export;
mod finish;
mod forward;
mod freshness;
mod gateway;
mod pieces;
mod range_lock;
mod rows;
pub mod test_support;

pub use device::{BlockDevice, BoxFuture};
pub use error::GatewayError;
pub use export::NbdExport;
pub use forward::{
    BlockAnswer, BlockOp, BlockReply, BlockRequest, ClientId, ForwardClient, ForwardLimits,
    ForwardServer, FrameClosed, FrameTx, REQUEST_BYTES_MAX, ServeEnd, ServeError, WireError,
};
pub use gateway::{Gateway, GatewayConfig, GatewayLimits, GatewayStats, HeldWrites, Resealed};
pub use rows::Rows;
