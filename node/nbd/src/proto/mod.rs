//! The protocol's numbers, parsers and encoders: pure functions over bytes, without I/O.
//!
//! Every parser takes what a client sent and returns a value or a refusal; none indexes out of
//! bounds, and none allocates more than a small multiple of the bytes it was given.

mod option;
mod reply;
mod request;
pub mod wire;

pub use option::{
    ClientOption, InfoRequest, MetaQuery, OptionFault, OptionHeader, block_size_info, export_info,
    export_name_reply, greeting, option_reply, text_info,
};
pub use reply::{
    HEAD_BYTES_MAX, Head, block_status_payload, chunk_head, error_head, error_offset_head,
    hole_head, offset_data_head, simple_head,
};
pub use request::{Command, Operation, REQUEST_BYTES, Refusal, Request, Rules};
