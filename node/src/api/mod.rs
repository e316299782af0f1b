//! The control API: HTTP with JSON on a Unix socket (mode 0600) and on loopback TCP.
//!
//! ```text
//! listen (connections, limits) -> routes (JSON in and out, errors) -> Control
//! ```
//!
//! It asks nobody who they are: the Unix socket belongs to the node's user, the TCP port to the
//! machine. A page in a browser on that machine is kept out: a foreign `Host` is refused (DNS
//! rebinding), and changes need a JSON body type or a method that browsers ask leave for. A passphrase is taken
//! over the Unix socket only.

mod contents;
mod custody;
mod error;
mod listen;
mod metrics;
mod openapi;
mod patient;
mod places;
mod recovery;
mod routes;
mod tokens;

pub use error::ErrorBody;
pub use listen::{ApiServer, bind_unix};
pub use openapi::document;
pub use routes::{ApiState, LocalUser, router};
