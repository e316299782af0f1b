//! Black-box tests: the real `smalti` program, real processes, real NBD clients.
//!
//! Knows nothing of the product's insides and links none of its crates, but for [`thief`] and [`rogue`], who
//! may know everything. It holds the program only to its command line, to the files it documents, and to the NBD
//! protocol.
//!
//! [`cluster`] starts, kills, freezes and restarts nodes, and [`asking`] asks them, [`tuning`]
//! gives them other times; [`nbd`] is a small client of its own;
//! [`load`] writes patterns that can be told apart ([`pattern`]), follows the cluster from node to
//! node and remembers what was acknowledged ([`model`]); [`clients`] and [`fio`] drive other
//! people's clients; [`files`] makes images and searches folders byte by byte; [`report`] prints.
//! [`chaos`] draws faults and changes at random. [`thief`] makes what can be made of stolen folders, and
//! [`memory`] looks for it in processes; [`rogue`] makes stores lie, and [`wire`]
//! listens to the network.

pub mod asking;
pub mod chaos;
pub mod clients;
pub mod cluster;
pub mod files;
pub mod fio;
pub mod histogram;
pub mod image;
pub mod lan;
pub mod load;
pub mod memory;
pub mod model;
pub mod mount;
pub mod nbd;
pub mod pattern;
pub mod ports;
pub mod process;
pub mod report;
pub mod rogue;
pub mod settings;
pub mod spec;
pub mod status;
pub mod thief;
pub mod tuning;
pub mod wire;

pub use cluster::Cluster;
pub use load::{Load, LoadConfig};
pub use nbd::{Client, Target};
pub use spec::Spec;
