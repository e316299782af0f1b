//! Places for those who are listened to before they have proven who they are: few, and fewer of one
//! source.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

/// All at once. Strangers can make us do a handshake, so that their number must not be theirs.
const PLACES: usize = 8;

/// Of one source, so that it takes several to shut all others out.
const PLACES_PER_SOURCE: usize = 2;

/// What of an IPv6 address is one source: hosts choose the rest as they like.
const SOURCE_MASK: u128 = !0 << 64;

#[derive(Debug, Default)]
pub(super) struct Gate {
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    gate: Arc<Gate>,
    source: IpAddr,
}

impl Gate {
    /// A place for that address, if there is one.
    pub(super) fn enter(self: &Arc<Self>, addr: SocketAddr) -> Option<Place> {
        let source = source(addr);
        // Whoever is on this machine can do us worse.
        let limit = if source.is_loopback() { PLACES } else { PLACES_PER_SOURCE };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&source).copied().unwrap_or(0);
        if own >= limit || taken.values().sum::<usize>() >= PLACES {
            return None;
        }
        taken.insert(source, own + 1);
        Some(Place { gate: Arc::clone(self), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.gate.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.source) {
            *own = own.saturating_sub(1);
        }
        taken.retain(|_, own| *own > 0);
    }
}

fn source(addr: SocketAddr) -> IpAddr {
    match addr.ip().to_canonical() {
        IpAddr::V6(ip) if !ip.is_loopback() => {
            Ipv6Addr::from_bits(ip.to_bits() & SOURCE_MASK).into()
        }
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(gate: &Arc<Gate>, ip: &str) -> Option<Place> {
        gate.enter(SocketAddr::new(ip.parse().expect("an address"), 9))
    }

    #[test]
    fn one_source_does_not_shut_others_out() {
        let gate = Arc::new(Gate::default());
        let mut held: Vec<_> = (0..8).filter_map(|_| enter(&gate, "192.0.2.1")).collect();
        assert_eq!(held.len(), 2);
        assert!(enter(&gate, "::ffff:192.0.2.1").is_none(), "the same in other words");
        held.extend(["2001:db8::1", "2001:db8::2"].map(|ip| enter(&gate, ip).expect("two")));
        assert!(enter(&gate, "2001:db8::3").is_none(), "one network of a host");
        held.extend((0..8).filter_map(|_| enter(&gate, "127.0.0.1")));
        assert_eq!(held.len(), 8, "and of all of them there are only so many");
        assert!(enter(&gate, "192.0.2.9").is_none());
        held.remove(0);
        assert!(enter(&gate, "192.0.2.9").is_some());
        drop(held);
        assert!(gate.taken.lock().expect("whole").is_empty());
    }
}
