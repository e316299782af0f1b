//! A cluster of node processes on this machine: `smalti up` and `smalti down`.
//!
//! Nodes are separate processes that live on without `up`; who runs is told by the pid file that
//! every node holds locked, never by a file that may be out of date.

mod dir_lock;
mod down;
mod layout;
mod logs;
mod pid_file;
mod ready;
mod spawn;
mod stop;
mod up;

pub(crate) use dir_lock::DirLock;
pub use down::down;
pub use layout::{Layout, LayoutNode};
pub use pid_file::PidFile;
pub use spawn::enter_new_session;
pub use up::{UpOptions, VolumeWish, up};
