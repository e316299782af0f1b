//! An NBD server as a library: fixed newstyle negotiation, structured replies, many requests in
//! flight, over any byte stream tokio knows.
//!
//! Where it stands in the path: a client's bytes come in, calls on an [`Export`] go out, its
//! answers go back. The crate knows nothing of volumes, peers or keys; whoever embeds it gives
//! [`Exports`] (what there is to open) and [`Limits`] (how much any client may ask for).
//!
//! What must hold:
//!
//! N1. Nothing a client sends makes the server panic or hold more memory than [`Limits`] allows.
//! N2. A reply is queued only after the device answered; a success is never sent for a failure.
//! N3. The bytes of a request are accounted until its reply has left for the socket.
//! N4. `OPT_INFO` never opens an export; an opened export is dropped when its connection ends,
//!     after its last request has ended (or `drain_timeout` or `stop_timeout` has passed).

mod device;
mod errno;
mod handshake;
mod limits;
mod outbox;
pub mod proto;
mod server;
mod session;
pub mod test_support;
mod transmission;

pub use device::{
    BoxFuture, DeviceError, DeviceErrorKind, Export, ExportInfo, Exports, Extent, OpenError,
    ReadReply, Segment, ZeroFlags,
};
pub use errno::Errno;
pub use limits::{Limits, LimitsError};
pub use server::{Listener, Peer, Server};
