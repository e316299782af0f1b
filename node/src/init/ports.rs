//! Picking loopback ports that stay free while a node is down.

use crate::config::Addresses;
use anyhow::bail;
use rand::RngExt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;

/// Below the range from which Linux takes ports for outgoing connections (from 32768, unless set
/// otherwise): one of those could take a killed node's port before it is back.
const PORTS: Range<u16> = 12_000..32_000;
const TRIES_MAX: usize = 2000;

/// Three ports for each node. They are held until all are found, so they are distinct.
pub(crate) fn pick(nodes: usize) -> anyhow::Result<Vec<Addresses>> {
    let mut held = Vec::new();
    let mut addresses = Vec::new();
    let mut rng = rand::rng();
    for _ in 0..TRIES_MAX {
        if addresses.len() == nodes * 3 {
            return Ok(addresses.as_chunks().0.iter().map(to_addresses).collect());
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rng.random_range(PORTS)));
        // One number for both protocols keeps a UDP and a TCP service from being mixed up.
        if let (Ok(tcp), Ok(udp)) = (TcpListener::bind(address), UdpSocket::bind(address)) {
            held.push((tcp, udp));
            addresses.push(address);
        }
    }
    bail!("find free ports: none after {TRIES_MAX} tries")
}

fn to_addresses(ports: &[SocketAddr; 3]) -> Addresses {
    let [quic, api, nbd] = *ports;
    Addresses { quic, api, nbd }
}
