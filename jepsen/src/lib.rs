//! The chaos lab: what is done to the data path to see whether it keeps its promises.
//!
//! [`sim`] runs the pure protocol core on one thread against faults drawn from a seed.

#[cfg(feature = "mutants")]
pub mod mutants;
pub mod sim;
