//! The Raft store when the power is cut and when its disk fails.
//!
//! `workload` does what openraft does and remembers what must be there; `cuts` opens what power
//! cuts leave; `calls` lets each call that changes something fail once.
#![allow(clippy::unwrap_used, reason = "tests")]

mod calls;
mod cuts;
mod damage;
mod flips;
mod workload;
