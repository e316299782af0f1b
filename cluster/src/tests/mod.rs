//! The shell under test: coders, links, sessions and writers as they serve volumes, over a network
//! in memory whose faults are drawn from a seed, and once over QUIC. The pure core is simulated
//! elsewhere; here it is only along for the ride.

mod backlog;
mod clients;
mod cluster;
mod loopback;
mod net;
mod pressure;
pub(crate) mod probe;
mod rig;
mod rng;
mod schedules;
mod seeds;
mod snapshots;
mod stopping;

use smalti_storage::store::{Admission, Opened};

/// The admission of a store whose disk is what its last run left behind.
pub(crate) fn as_it_is(Opened { incarnation, run, .. }: Opened) -> Admission {
    Admission { run, incarnation, clean: true }
}
