//! The store when the power is cut and when its disk fails.
//!
//! `workload` writes and remembers what it was told; `cuts` opens what power cuts leave; `calls`
//! lets each call that changes something fail once; `limbo` fails one at the worst moment; `sectors` has
//! a part of the disk that can not be read.

mod fault_tests {
    //! Run one after the other (`tests/scripts/run-tests`): `calls` starts processes, and until
    //! such a one runs its program it holds a copy of every lock, also of one that a test beside it
    //! has just given back.

    mod calls;
    mod cuts;
    mod limbo;
    mod sectors;
    mod workload;
}
