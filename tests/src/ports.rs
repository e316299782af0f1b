//! Addresses on loopback that nobody has just now. All are below the range of outgoing connections, so
//! that none of those takes them either.

use std::net::{TcpListener, UdpSocket};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

const TRIES_MAX: usize = 1000;

/// An address for a node to listen at.
///
/// # Errors
/// When none is found.
pub fn free_address() -> Result<String> {
    let port = find(|port| UdpSocket::bind(("127.0.0.1", port)).is_ok())?;
    Ok(format!("127.0.0.1:{port}"))
}

/// The first of so many TCP ports in a row.
///
/// # Errors
/// When there are none.
pub fn free_run(count: u16) -> Result<u16> {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    find(|first| (first..first + count).all(free))
}

fn find(free: impl Fn(u16) -> bool) -> Result<u16> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut random = now.as_nanos() as u64 ^ u64::from(std::process::id()) << 32;
    for _ in 0..TRIES_MAX {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let port = 12_000 + u16::try_from((random >> 33) % 19_000)?;
        if free(port) {
            return Ok(port);
        }
    }
    bail!("no port is free")
}
