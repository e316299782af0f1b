//! The chaos lab: what is done to the data path to see whether it keeps its promises.
//!
//! [`sim`] runs the pure protocol core on one thread against faults drawn from a seed; [`model`]
//! runs it through all there is of a very small world.

pub mod model;
#[cfg(feature = "mutants")]
pub mod mutants;
pub mod sim;
