//! The UDP socket under an endpoint: large buffers, and batches that fit.

use crate::{config::NetConfig, error::BindError};
use quinn::{
    AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use rustix::net::sockopt;
use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// The kernel hands over at most this much of joined datagrams at once.
const RECEIVE_BATCH_BYTES: usize = 64 << 10;

/// What Linux gives a socket that asks for nothing.
const BUFFER_DEFAULT: usize = 212_992;

/// Binds the socket of an endpoint. Also returns the size of its receive buffer in bytes.
pub(crate) fn bind(
    addr: SocketAddr,
    config: &NetConfig,
) -> Result<(Arc<dyn AsyncUdpSocket>, usize), BindError> {
    let failed = |source| BindError::Socket { addr, source };
    let socket = UdpSocket::bind(addr).map_err(failed)?;
    let buffer = size_buffers(&socket, config.socket_buffer);
    let inner = TokioRuntime.wrap_udp_socket(socket).map_err(failed)?;
    let send_segments = config.segments_max();
    let receive_segments = RECEIVE_BATCH_BYTES.div_ceil(usize::from(config.datagram_max));
    Ok((Arc::new(Bounded { inner, send_segments, receive_segments }), buffer))
}

/// Asks for large buffers; a smaller grant costs speed, so it is only reported. The receive
/// buffer is where a burst waits while our task is not scheduled: what does not fit is lost.
fn size_buffers(socket: &UdpSocket, wanted: usize) -> usize {
    // Forcing past the system's limit needs a privilege that a node may have.
    let sized = sockopt::set_socket_recv_buffer_size_force(socket, wanted)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, wanted))
        .and_then(|()| {
            sockopt::set_socket_send_buffer_size_force(socket, wanted)
                .or_else(|_| sockopt::set_socket_send_buffer_size(socket, wanted))
        });
    if let Err(error) = sized {
        tracing::warn!(%error, "udp buffers keep their default size");
    }
    // The kernel reports twice what it grants.
    let granted = sockopt::socket_recv_buffer_size(socket).map_or(BUFFER_DEFAULT, |n| n / 2);
    if granted < wanted {
        tracing::info!(granted, wanted, "small udp receive buffer; see net.core.rmem_max");
    }
    granted
}

/// A socket that never takes a batch larger than one UDP payload.
///
/// Left alone, quinn joins up to ten datagrams of whatever size the path carries into one send.
/// Over 64 KiB the kernel refuses the whole batch, which looks like loss that never ends.
#[derive(Debug)]
struct Bounded {
    inner: Arc<dyn AsyncUdpSocket>,
    send_segments: usize,
    receive_segments: usize,
}

impl AsyncUdpSocket for Bounded {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.send_segments)
    }

    fn max_receive_segments(&self) -> usize {
        // Sizes the receive buffers: datagram size times this must hold a whole batch, and the
        // kernel's own figure of 64 would make them a hundred megabytes.
        self.inner.max_receive_segments().min(self.receive_segments)
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
