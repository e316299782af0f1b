//! A small NBD client: one request at a time, simple replies, and nothing hidden.
//!
//! Other people's clients prove that we speak the protocol; this one is for faults. It says
//! whether a server refused, answered with an error, or went away, and it never reconnects by itself.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
/// A server's text that is longer than this is not read.
const REPLY_MAX: u32 = 64 << 10;

/// Flush before the answer.
pub const FUA: u16 = 1;

/// Where a volume is served.
#[derive(Debug, Clone)]
pub struct Target {
    /// The socket.
    pub address: Address,
    /// Name of the export.
    pub export: String,
}

/// A socket address of either kind.
#[derive(Debug, Clone)]
pub enum Address {
    /// Unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl Target {
    /// An export on a Unix socket.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>, export: &str) -> Self {
        Self { address: Address::Unix(path.into()), export: export.to_owned() }
    }

    /// The same as a URI for other clients.
    #[must_use]
    pub fn uri(&self) -> String {
        match &self.address {
            Address::Unix(path) => {
                format!("nbd+unix:///{}?socket={}", self.export, path.display())
            }
            Address::Tcp(at) => format!("nbd://{at}/{}", self.export),
        }
    }
}

/// Why a request did not succeed.
#[derive(Debug)]
pub enum Error {
    /// The server refused the export, in its own words.
    Refused(String),
    /// The server answered the request with this NBD error number.
    Server(u32),
    /// The connection failed, ended, or stayed silent too long.
    Lost(io::Error),
    /// The server broke the protocol.
    Protocol(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(text) => write!(f, "export refused: {text}"),
            Self::Server(errno) => write!(f, "server answered with error {errno}"),
            Self::Lost(error) => write!(f, "connection lost: {error}"),
            Self::Protocol(text) => write!(f, "protocol broken: {text}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

/// A stream of either kind with time limits.
#[derive(Debug)]
pub enum Stream {
    /// Unix socket.
    Unix(UnixStream),
    /// TCP.
    Tcp(TcpStream),
}

impl Stream {
    /// Connects; reads and writes fail when nothing moves for `limit`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(address: &Address, limit: Duration) -> io::Result<Self> {
        match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))?;
                Ok(Self::Unix(stream))
            }
            Address::Tcp(at) => {
                let at = at.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
                let stream = TcpStream::connect_timeout(&at, limit)?;
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.read(buf),
            Self::Tcp(s) => s.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.write(buf),
            Self::Tcp(s) => s.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection in the transmission phase.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    size: u64,
    flags: u16,
    cookie: u64,
}

fn u32_at(stream: &mut Stream) -> Result<u32, Error> {
    let mut b = [0; 4];
    stream.read_exact(&mut b)?;
    Ok(u32::from_be_bytes(b))
}

fn u64_at(stream: &mut Stream) -> Result<u64, Error> {
    let mut b = [0; 8];
    stream.read_exact(&mut b)?;
    Ok(u64::from_be_bytes(b))
}

impl Client {
    /// Connects and negotiates the export.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server knows the export no way, [`Error::Lost`] when it is not
    /// there, [`Error::Protocol`] when it is not an NBD server.
    pub fn connect(target: &Target, limit: Duration) -> Result<Self, Error> {
        let mut stream = Stream::connect(&target.address, limit)?;
        let (magic, style) = (u64_at(&mut stream)?, u64_at(&mut stream)?);
        if magic != NBDMAGIC || style != IHAVEOPT {
            return Err(Error::Protocol(format!("greeting {magic:#x} {style:#x}")));
        }
        let mut flags = [0; 2];
        stream.read_exact(&mut flags)?;
        let mut hello = Vec::new();
        hello.extend(3_u32.to_be_bytes()); // fixed newstyle, no zeroes
        let name = target.export.as_bytes();
        hello.extend(IHAVEOPT.to_be_bytes());
        hello.extend(OPT_GO.to_be_bytes());
        hello.extend((name.len() as u32 + 6).to_be_bytes());
        hello.extend((name.len() as u32).to_be_bytes());
        hello.extend(name);
        hello.extend(0_u16.to_be_bytes());
        stream.write_all(&hello)?;
        let mut client = Self { stream, size: 0, flags: 0, cookie: 0 };
        client.finish_go()?;
        Ok(client)
    }

    fn finish_go(&mut self) -> Result<(), Error> {
        let mut known = false;
        loop {
            let magic = u64_at(&mut self.stream)?;
            let (option, kind) = (u32_at(&mut self.stream)?, u32_at(&mut self.stream)?);
            let len = u32_at(&mut self.stream)?;
            if magic != REPLY_MAGIC || option != OPT_GO || len > REPLY_MAX {
                return Err(Error::Protocol(format!(
                    "option reply {magic:#x} for {option}, {len} bytes"
                )));
            }
            let mut data = vec![0; len as usize];
            self.stream.read_exact(&mut data)?;
            match kind {
                REP_ACK if known => return Ok(()),
                REP_ACK => return Err(Error::Protocol("no export information".to_owned())),
                REP_INFO => {
                    if let [0, 0, s @ .., f1, f0] = &data[..]
                        && let Ok(size) = <[u8; 8]>::try_from(s)
                    {
                        self.size = u64::from_be_bytes(size);
                        self.flags = u16::from_be_bytes([*f1, *f0]);
                        known = true;
                    }
                }
                kind if kind & REP_ERROR != 0 => {
                    let text = String::from_utf8_lossy(&data);
                    return Err(Error::Refused(format!("{} ({})", text, kind & !REP_ERROR)));
                }
                kind => return Err(Error::Protocol(format!("option reply of kind {kind}"))),
            }
        }
    }

    /// Bytes of the export.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Transmission flags of the export.
    #[must_use]
    pub fn flags(&self) -> u16 {
        self.flags
    }

    fn request(
        &mut self,
        flags: u16,
        command: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Result<(), Error> {
        self.cookie += 1;
        let mut message = Vec::with_capacity(28 + data.len());
        message.extend(REQUEST.to_be_bytes());
        message.extend(flags.to_be_bytes());
        message.extend(command.to_be_bytes());
        message.extend(self.cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(len.to_be_bytes());
        message.extend(data);
        self.stream.write_all(&message)?;
        let magic = u32_at(&mut self.stream)?;
        let (errno, cookie) = (u32_at(&mut self.stream)?, u64_at(&mut self.stream)?);
        if magic != SIMPLE_REPLY || cookie != self.cookie {
            return Err(Error::Protocol(format!(
                "reply {magic:#x} to {cookie}, asked {}",
                self.cookie
            )));
        }
        if errno != 0 { Err(Error::Server(errno)) } else { Ok(()) }
    }

    /// Reads into the whole of `buf`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.request(0, 0, offset, buf.len() as u32, &[])?;
        self.stream.read_exact(buf)?;
        Ok(())
    }

    /// Writes all of `data`; `flags` is 0 or [`FUA`].
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::Lost`] the write may have happened or not.
    pub fn write(&mut self, offset: u64, data: &[u8], flags: u16) -> Result<(), Error> {
        self.request(flags, 1, offset, data.len() as u32, data)
    }

    /// Flushes.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn flush(&mut self) -> Result<(), Error> {
        self.request(0, 3, 0, 0, &[])
    }

    /// Discards a range.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn trim(&mut self, offset: u64, len: u32) -> Result<(), Error> {
        self.request(0, 4, offset, len, &[])
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut bye = Vec::with_capacity(28);
        bye.extend(REQUEST.to_be_bytes());
        bye.extend([0, 0, 0, 2]);
        bye.extend([0; 20]);
        // Only a courtesy: the server may be gone already.
        self.stream.write_all(&bye).ok();
    }
}
