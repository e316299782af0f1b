//! The server over real sockets: raw bytes for what well-behaved clients never send, real clients
//! for the rest.
#![allow(clippy::unwrap_used, reason = "tests")]

mod clients;
mod ending;
mod garbage;
mod limits;
mod negotiation;
mod replies;
mod support;
mod transmission;
