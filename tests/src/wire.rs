//! All that goes over the network of this machine, written down while it does.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::net::UdpSocket;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

use crate::memory::{Needles, PIECE};
use crate::process::until;

/// `ETH_P_ALL`: every packet, of those that are sent too.
const EVERY_PACKET: u16 = 3;
/// Packets that wait to be written down, in bytes.
const WAITING: usize = 64 << 20;
/// The largest packet there is on a loopback device.
const PACKET: usize = 1 << 17;
const LOOK: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(10);
const CHUNK: usize = 1 << 20;
const MARK: &[u8] = b"what nobody would encrypt: a mark";

/// What listens to the network.
#[derive(Debug)]
pub struct Wire {
    file: PathBuf,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<u64>>,
}

/// What was heard.
#[derive(Debug)]
pub struct Capture {
    /// Where it is.
    pub file: PathBuf,
    /// How much it is.
    pub bytes: u64,
}

impl Wire {
    /// Begins to write down what is sent, into a file. `None` when this process may not.
    ///
    /// # Errors
    /// When nothing is heard, or the file can not be made.
    pub fn listen(file: &Path) -> Result<Option<Self>> {
        let protocol = Protocol::from_raw(
            NonZeroU32::new(u32::from(EVERY_PACKET.to_be())).context("a protocol")?,
        );
        let (family, flags) = (AddressFamily::PACKET, SocketFlags::CLOEXEC);
        let socket = match socket_with(family, SocketType::RAW, flags, Some(protocol)) {
            Ok(socket) => socket,
            Err(Errno::PERM | Errno::ACCESS | Errno::AFNOSUPPORT) => return Ok(None),
            Err(error) => return Err(error).context("open a packet socket"),
        };
        set_socket_timeout(&socket, Timeout::Recv, Some(LOOK))?;
        set_socket_recv_buffer_size_force(&socket, WAITING).context("make room for packets")?;
        let stop = Arc::new(AtomicBool::new(false));
        let to = File::create(file).with_context(|| format!("make {}", file.display()))?;
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || write_down(&socket, to, &stop)
        });
        let wire = Self { file: file.to_owned(), stop, thread };
        // The control: what is sent in the clear is found.
        let mut needles = Needles::default();
        needles.add("mark", MARK);
        let sender = UdpSocket::bind("127.0.0.1:0")?;
        until("a mark is heard", LIMIT, || {
            sender.send_to(MARK, sender.local_addr()?)?;
            Ok((!search(file, &needles)?.is_empty()).then_some(()))
        })?;
        Ok(Some(wire))
    }

    /// Ends it.
    ///
    /// # Errors
    /// When something could not be written down.
    pub fn end(self) -> Result<Capture> {
        self.stop.store(true, Ordering::Relaxed);
        let written = self.thread.join().map_err(|_| anyhow!("what listened panicked"))?;
        let bytes = written.context("write packets down")?;
        Ok(Capture { file: self.file, bytes })
    }
}

impl Capture {
    /// The names of what is in it.
    ///
    /// # Errors
    /// When it can not be read.
    pub fn search(&self, needles: &Needles) -> Result<Vec<String>> {
        search(&self.file, needles)
    }
}

fn write_down(socket: &OwnedFd, to: File, stop: &AtomicBool) -> io::Result<u64> {
    let (mut to, mut packet, mut bytes) = (BufWriter::new(to), vec![0; PACKET], 0);
    while !stop.load(Ordering::Relaxed) {
        match recv(socket, &mut packet[..], RecvFlags::empty()) {
            Ok((_, length)) => {
                to.write_all(&packet[..length.min(PACKET)])?;
                bytes += length as u64;
            }
            // Quiet; whoever looks sees all there was.
            Err(Errno::AGAIN | Errno::INTR) => to.flush()?,
            Err(error) => return Err(error.into()),
        }
    }
    to.flush()?;
    Ok(bytes)
}

fn search(file: &Path, needles: &Needles) -> Result<Vec<String>> {
    ensure!(!needles.is_empty(), "nothing to look for");
    let mut file = File::open(file).with_context(|| format!("open {}", file.display()))?;
    let (mut found, mut kept, mut chunk) = (Vec::new(), Vec::new(), vec![0; CHUNK]);
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(found);
        }
        let bytes = [&kept, &chunk[..read]].concat();
        needles.look(&bytes, |_, name| found.push(name.to_owned()));
        kept = bytes[bytes.len().saturating_sub(PIECE - 1)..].to_vec();
    }
}
