//! The running node: a member of the cluster, its gateways, its NBD service, its control.

mod authority;
mod control;
mod custody;
mod keys;
mod links;
mod places;
mod reasons;
mod recover;
mod renewal;
mod replace;
mod report;
mod start;

pub use authority::Authority;
pub use control::MemberControl;
pub use start::start;
