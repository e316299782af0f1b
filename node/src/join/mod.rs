//! `smalti join`: this machine becomes a node of a cluster that runs elsewhere.
//!
//! ```text
//! token, options, folder, ports are looked at -> parts in DIR/.making -> the cluster is asked
//!   refused: .making goes away          granted: the parts move to their places, node.toml last
//! ```
//! Everything that can be found wrong here is found before the token is used up.

mod folder;

use crate::config::Addresses;
use crate::init::pick_ports;
use crate::serve::StopSignals;
use anyhow::{Context, anyhow, bail, ensure};
use folder::Making;
use smalti_net::{JoinAddresses, JoinToken, JoinWish};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;

/// What `smalti join` is asked.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// The token.
    pub token: JoinToken,
    /// The folder of the node.
    pub dir: PathBuf,
    /// Where it is to listen for other nodes.
    pub listen: SocketAddr,
    /// Its name; none for one it is given.
    pub name: Option<String>,
    /// Its control API; none for a free port.
    pub api: Option<SocketAddr>,
    /// Its NBD service; none for a free port.
    pub nbd: Option<SocketAddr>,
}

/// A node that joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedNode {
    /// Its name.
    pub name: String,
    /// Its config file.
    pub config: PathBuf,
}

/// Joins, and makes the node's folder.
///
/// # Errors
/// Something can not be as asked, the cluster refused, or a file can not be written: one line.
/// What was begun in the folder is gone again.
pub async fn join(options: JoinOptions) -> anyhow::Result<JoinedNode> {
    let mut signals = StopSignals::listen()?;
    let addresses = addresses(&options)?;
    let making = Making::begin(&options.dir)?;
    let wish = JoinWish {
        name: options.name.clone().unwrap_or_default(),
        addresses: JoinAddresses { quic: addresses.quic, api: addresses.api, nbd: addresses.nbd },
    };
    let joined = tokio::select! {
        joined = smalti_net::join(&options.token, &wish) => joined.map_err(anyhow::Error::from),
        name = signals.next() => Err(anyhow!(
            "{name} came before the cluster had answered: if `smalti node list` shows the new \
             node, remove it"
        )),
    };
    match joined {
        Ok((joined, farewell)) => {
            // Before anything is waited for: until it is kept, a crash loses what the cluster has given.
            let node = making.finish(&joined, addresses);
            farewell.done().await;
            node
        }
        Err(error) => Err(and_left(error, making.undo())),
    }
}

/// Why it did not join, which what is left behind must not hide: the machine may be a member.
fn and_left(error: anyhow::Error, undone: anyhow::Result<()>) -> anyhow::Error {
    match undone {
        Ok(()) => error,
        Err(left) => anyhow!("{error:#}; and what was begun is left behind: {left:#}"),
    }
}

/// Where it will listen, which must be free.
fn addresses(options: &JoinOptions) -> anyhow::Result<Addresses> {
    let quic = options.listen;
    ensure!(quic.port() != 0, "--listen {quic}: port 0 can not be known to others");
    ensure!(
        !quic.ip().is_unspecified(),
        "--listen {quic}: others have to reach it there, so it has to be one of the machine's addresses"
    );
    let [free] = pick_ports(1)?[..] else { bail!("find free ports") };
    let (api, nbd) = (options.api.unwrap_or(free.api), options.nbd.unwrap_or(free.nbd));
    for (option, address) in [("--api", api), ("--nbd", nbd)] {
        ensure!(
            address.ip().is_loopback(),
            "{option} {address} is not a loopback address, and only those are served"
        );
        ensure!(address.port() != 0, "{option} {address}: port 0 can not be known to others");
    }
    ensure!(api != nbd, "--nbd {nbd} is also the address of the control API");
    UdpSocket::bind(quic).with_context(|| format!("listen at {quic}"))?;
    for (what, address) in [("control API", api), ("NBD", nbd)] {
        TcpListener::bind(address).with_context(|| format!("bind {what} to {address}"))?;
    }
    Ok(Addresses { quic, api, nbd })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_behind_does_not_hide_why() {
        let why = || anyhow!("no answer came");
        assert_eq!(and_left(why(), Ok(())).to_string(), "no answer came");
        let both = and_left(why(), Err(anyhow!("denied").context("clean d up"))).to_string();
        assert_eq!(both, "no answer came; and what was begun is left behind: clean d up: denied");
    }
}
