//! Settings of an endpoint, and what they become in QUIC's terms.

use crate::{congestion::Lan, error::BindError};
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt, congestion};
use std::{sync::Arc, time::Duration};

const MIB: u64 = 1 << 20;

/// The largest UDP payload over IPv4: 65,535 less the headers.
const UDP_PAYLOAD_MAX: u16 = 65_507;

/// The smallest datagram every QUIC path must carry.
const UDP_PAYLOAD_MIN: u16 = 1_200;

/// How the sender finds its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Congestion {
    /// Our own: starts fast, gives way on loss, never falls below a floor. See the module.
    Lan,
    /// RFC 9438, for shared and long paths.
    Cubic,
    /// Bottleneck bandwidth and round trip.
    Bbr,
}

/// Settings of an [`Endpoint`](crate::Endpoint). The defaults suit nodes in one room.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// A connection with nothing to say sends something this often.
    pub keep_alive: Duration,
    /// A connection that hears nothing for this long is dead. This only cleans up: who must
    /// notice a silent peer sooner sends heartbeats of its own.
    pub idle_timeout: Duration,
    /// One attempt to connect, from the first datagram to the peer's welcome.
    pub connect_timeout: Duration,
    /// Pause after the first failed attempt; doubles with every further one.
    pub backoff_min: Duration,
    /// The longest pause between attempts.
    pub backoff_max: Duration,
    /// What a peer may have under way to us on one stream, in bytes.
    pub stream_window: u64,
    /// What a peer may have under way to us in all, in bytes.
    pub connection_window: u64,
    /// What we hold per connection until the peer confirms it, in bytes.
    pub send_window: u64,
    /// The largest datagram to try, in bytes of UDP payload: 1,200 to 65,507. What the path
    /// really carries is found by probing.
    pub datagram_max: u16,
    /// The kernel's buffers of the UDP socket, in bytes; it may grant less.
    pub socket_buffer: usize,
    /// How the sender finds its rate.
    pub congestion: Congestion,
    /// What [`Congestion::Lan`] has on its way at once, per connection, in bytes: the longest
    /// queue that a small message finds before it. Raise it for long or very fast paths.
    pub in_flight_max: u64,
    /// Calls and sessions that one peer may have open to us on one connection.
    pub streams_max: u32,
    /// Connections to us in all.
    pub connections_max: usize,
    /// Connections to us from one node; the oldest gives way.
    pub connections_per_node_max: usize,
    /// Requests of one connection that are read or being answered, in bytes. At least
    /// [`REQUEST_BYTES_MAX`](crate::REQUEST_BYTES_MAX); more requests wait, unread.
    pub requests_bytes_max: u32,
    /// How long a peer may take to send the whole of a request or of a session's hello.
    pub request_timeout: Duration,
    /// What waits in a [`FrameSender`](crate::FrameSender), in bytes. A larger frame goes alone.
    pub session_queue_bytes: u32,
    /// How many frames wait in a [`FrameSender`](crate::FrameSender).
    pub session_queue_frames: usize,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_millis(500),
            idle_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(1),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_millis(500),
            stream_window: 16 * MIB,
            connection_window: 64 * MIB,
            send_window: 64 * MIB,
            datagram_max: 8_952,
            socket_buffer: 8 << 20,
            congestion: Congestion::Lan,
            in_flight_max: 512 << 10,
            streams_max: 1024,
            connections_max: 256,
            connections_per_node_max: 4,
            requests_bytes_max: 128 << 20,
            request_timeout: Duration::from_secs(30),
            session_queue_bytes: 8 << 20,
            session_queue_frames: 4096,
        }
    }
}

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Dialer,
    Acceptor,
}

impl NetConfig {
    pub(crate) fn check(&self) -> Result<(), BindError> {
        let positive = |value: Duration| value > Duration::ZERO;
        let window = |value: u64| (64 << 10..1 << 40).contains(&value);
        let rules = [
            ("keep_alive", positive(self.keep_alive) && self.keep_alive < self.idle_timeout),
            ("idle_timeout", self.idle_timeout <= Duration::from_secs(3600)),
            ("connect_timeout", positive(self.connect_timeout)),
            ("backoff_min", positive(self.backoff_min)),
            ("backoff_max", self.backoff_max >= self.backoff_min),
            ("stream_window", window(self.stream_window)),
            ("connection_window", window(self.connection_window)),
            ("send_window", window(self.send_window)),
            ("in_flight_max", window(self.in_flight_max)),
            ("datagram_max", (UDP_PAYLOAD_MIN..=UDP_PAYLOAD_MAX).contains(&self.datagram_max)),
            ("streams_max", (1..=1 << 20).contains(&self.streams_max)),
            ("connections_max", self.connections_max >= 1),
            ("connections_per_node_max", self.connections_per_node_max >= 1),
            (
                "requests_bytes_max",
                u64::from(self.requests_bytes_max) >= crate::wire::REQUEST_BYTES_MAX as u64,
            ),
            ("request_timeout", positive(self.request_timeout)),
            ("session_queue_bytes", self.session_queue_bytes >= 4096),
            ("session_queue_frames", (1..=1 << 20).contains(&self.session_queue_frames)),
        ];
        match rules.into_iter().find(|(_, holds)| !holds) {
            Some((name, _)) => Err(BindError::Config { name }),
            None => Ok(()),
        }
    }

    /// How many datagrams the kernel may cut from one send. All of them together must fit one
    /// UDP payload: a larger batch fails as a whole, every time, and the connection starves.
    pub(crate) fn segments_max(&self) -> usize {
        usize::from((UDP_PAYLOAD_MAX / self.datagram_max).max(1))
    }

    /// `buffer` is what the kernel granted for the socket, in bytes.
    pub(crate) fn transport(
        &self,
        role: Role,
        buffer: usize,
    ) -> Result<Arc<TransportConfig>, BindError> {
        let varint =
            |name, value: u64| VarInt::from_u64(value).map_err(|_| BindError::Config { name });
        let idle = IdleTimeout::try_from(self.idle_timeout)
            .map_err(|_| BindError::Config { name: "idle_timeout" })?;
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(self.datagram_max);
        let mut config = TransportConfig::default();
        config
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(Some(self.keep_alive))
            .stream_receive_window(varint("stream_window", self.stream_window)?)
            .receive_window(varint("connection_window", self.connection_window)?)
            .send_window(self.send_window)
            // The default, 333 ms, would make the handshake wait a second for a lost datagram.
            .initial_rtt(Duration::from_millis(10))
            .mtu_discovery_config(Some(mtu))
            .datagram_receive_buffer_size(None);
        match self.congestion {
            Congestion::Lan => {
                config.congestion_controller_factory(Arc::new(Lan::new(self.in_flight_max, buffer)))
            }
            Congestion::Cubic => {
                config.congestion_controller_factory(Arc::new(congestion::CubicConfig::default()))
            }
            Congestion::Bbr => {
                config.congestion_controller_factory(Arc::new(congestion::BbrConfig::default()))
            }
        };
        // Each connection carries requests one way only; the acceptor opens just its welcome.
        match role {
            Role::Dialer => config
                .max_concurrent_bidi_streams(VarInt::from_u32(0))
                .max_concurrent_uni_streams(VarInt::from_u32(1)),
            Role::Acceptor => config
                .max_concurrent_bidi_streams(VarInt::from_u32(self.streams_max))
                .max_concurrent_uni_streams(VarInt::from_u32(0)),
        };
        Ok(Arc::new(config))
    }
}
