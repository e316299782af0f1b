//! Power cuts and failing disks, for tests of what writes files.
//!
//! A program linked with this crate calls *our* `write`, `fsync`, `rename` and so on, whoever in it
//! calls them, the C++ of RocksDB included: a symbol of the program goes before one of the C
//! library. (The same could be preloaded into another program; but a test that links it needs no
//! second process to record, and cargo finds the file.) For folders nobody watches they pass the
//! call on. Below a [`Watch`]ed folder they
//!
//! * write down each change in the order it happened ([`Event`]);
//! * let the n-th fail, if told to ([`Fault`]).
//!
//! From the record [`Disk`] knows at each point which bytes and names were certainly on the disk
//! and which only in the kernel's memory, and [`Disk::image`] draws from a seed what a cut at that
//! point leaves ([`Image`]):
//!
//! P1. What was synced is there, byte for byte, unless the image is one of a lying disk.
//! P2. A name is durable once its directory was synced; syncing the file alone is not enough. But no
//!     later change in a directory is there without the name of a file that was synced before it:
//!     RocksDB counts on that for what its CURRENT names, and file systems keep it.
//! P3. After a failed sync the bytes it was for need not be there, though a later sync of the same
//!     file succeeds: that is what Linux does.
//!
//! Syncs of watched files are not carried out, only recorded. What is written past these calls
//! (through `fopen`, a mapping, `openat`) is in no record; a test that compares the last state with
//! the folder notices. Several folders may be watched at once, and other threads may use other
//! files meanwhile: a file is known by what the kernel calls it, not by the number of a descriptor.

mod calls;
mod disk;
mod hook;
mod image;
mod record;
mod rng;
mod trial;
mod watch;

pub use calls::{Failing, Said, child, each};
pub use disk::Disk;
pub use image::{Image, Mode};
pub use record::{Event, FileId, Record};
pub use rng::Draw;
pub use trial::{Cut, Trial};
pub use watch::{Fault, Kind, Watch};

/// A folder for images: in memory where the machine has such a place, for they are many.
///
/// # Errors
/// When no folder can be made.
pub fn scratch() -> std::io::Result<tempfile::TempDir> {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir()
        && let Ok(folder) = tempfile::TempDir::new_in(memory)
    {
        return Ok(folder);
    }
    tempfile::TempDir::new()
}
