//! What stands at the start of a stream, and how requests and answers are framed.
//!
//! ```text
//! dialer:   kind u8 | version u8 | service u8 | length u32 | request or hello
//! acceptor: status u8 | length u32 | answer, or a text that says why not
//! session, then, both ways: length u32 | frame, again and again
//! ```
//!
//! All numbers are big-endian. A call ends with the answer, and both directions with it. There is
//! no checksum: QUIC authenticates every packet.

use crate::error::{CallError, SessionError};
use bytes::{Bytes, BytesMut};
use quinn::{ConnectionError, ReadError, ReadExactError, RecvStream, VarInt, WriteError};
use smalti_storage::ids::NodeId;

/// The largest frame of a session, in bytes: 64 MiB.
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// The largest request or answer of a call, in bytes: 64 MiB.
pub const REQUEST_BYTES_MAX: usize = 64 << 20;

/// The largest hello of a session, in bytes: 64 KiB.
pub const HELLO_BYTES_MAX: usize = 64 << 10;

/// The version of the stream format.
const VERSION: u8 = 1;

/// The longest text with a refusal that is read, in bytes.
const REASON_BYTES_MAX: usize = 1024;

/// What the acceptor sends on its only stream once it has let a dialer in. Until then the
/// dialer's handshake looks complete while its certificate may still be refused.
pub(crate) const WELCOME: [u8; 8] = *b"smalti\0\x01";

pub(crate) const HEADER_LEN: usize = 7;
pub(crate) const ANSWER_LEN: usize = 5;

/// Why a connection or a stream was given up. Numbers are part of the protocol.
pub(crate) mod code {
    use quinn::VarInt;

    /// An orderly end.
    pub(crate) const CLOSED: VarInt = VarInt::from_u32(0);
    /// The node is no longer a member.
    pub(crate) const REMOVED: VarInt = VarInt::from_u32(1);
    /// The peer broke the protocol.
    pub(crate) const PROTOCOL: VarInt = VarInt::from_u32(2);
    /// Too many connections.
    pub(crate) const CROWDED: VarInt = VarInt::from_u32(3);
    /// The caller stopped waiting.
    pub(crate) const CANCELLED: VarInt = VarInt::from_u32(4);
}

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Call,
    Session,
}

impl Kind {
    const fn byte(self) -> u8 {
        match self {
            Self::Call => 1,
            Self::Session => 2,
        }
    }

    const fn payload_max(self) -> usize {
        match self {
            Self::Call => REQUEST_BYTES_MAX,
            Self::Session => HELLO_BYTES_MAX,
        }
    }
}

/// The start of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) service: u8,
    pub(crate) len: u32,
}

impl Header {
    pub(crate) fn encode(self) -> [u8; HEADER_LEN] {
        let [a, b, c, d] = self.len.to_be_bytes();
        [self.kind.byte(), VERSION, self.service, a, b, c, d]
    }

    /// # Errors
    /// The status and the text to answer with.
    pub(crate) fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, (Status, &'static str)> {
        let [kind, version, service, a, b, c, d] = bytes;
        if version != VERSION {
            return Err((Status::Protocol, "unknown stream version"));
        }
        let kind = match kind {
            1 => Kind::Call,
            2 => Kind::Session,
            _ => return Err((Status::Protocol, "unknown stream kind")),
        };
        let len = u32::from_be_bytes([a, b, c, d]);
        if len as usize > kind.payload_max() {
            return Err((Status::TooLarge, "payload over the limit"));
        }
        Ok(Self { kind, service, len })
    }
}

/// How the acceptor took it. Numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ok,
    NoService,
    TooLarge,
    Protocol,
    /// The service failed while it worked on the request.
    Failed,
    /// The service's answer is over the limit.
    AnswerTooLarge,
}

impl Status {
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::NoService => 1,
            Self::TooLarge => 2,
            Self::Protocol => 3,
            Self::Failed => 4,
            Self::AnswerTooLarge => 5,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Ok,
            1 => Self::NoService,
            2 => Self::TooLarge,
            3 => Self::Protocol,
            4 => Self::Failed,
            5 => Self::AnswerTooLarge,
            _ => return None,
        })
    }
}

pub(crate) fn answer_head(status: Status, len: u32) -> [u8; ANSWER_LEN] {
    let [a, b, c, d] = len.to_be_bytes();
    [status.byte(), a, b, c, d]
}

/// Reads an answer: its body, or the error it stands for.
pub(crate) async fn read_answer(
    stream: &mut RecvStream,
    node: NodeId,
    request_len: usize,
    answer_max: usize,
) -> Result<Bytes, CallError> {
    let mut head = [0; ANSWER_LEN];
    stream.read_exact(&mut head).await.map_err(|e| exact_error(e, node))?;
    let [status, a, b, c, d] = head;
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    let protocol = |what| CallError::Protocol { node, what };
    let status = Status::from_byte(status).ok_or(protocol("unknown status"))?;
    let max = if status == Status::Ok { answer_max } else { REASON_BYTES_MAX };
    if len > max {
        let _ = stream.stop(code::PROTOCOL);
        return Err(CallError::TooLarge { len: len as u64, max: max as u64, sent: true });
    }
    let body = read_body(stream, len).await.map_err(|e| body_error(e, node))?;
    let text = || String::from_utf8_lossy(&body).into_owned();
    match status {
        Status::Ok => Ok(body),
        Status::NoService => Err(CallError::Refused { node, reason: text() }),
        Status::TooLarge => Err(CallError::TooLarge {
            len: request_len as u64,
            max: REQUEST_BYTES_MAX as u64,
            sent: false,
        }),
        Status::Protocol => Err(protocol("peer could not read our stream")),
        Status::Failed => Err(CallError::Failed { node }),
        Status::AnswerTooLarge => Err(CallError::TooLarge {
            len: REQUEST_BYTES_MAX as u64 + 1,
            max: REQUEST_BYTES_MAX as u64,
            sent: true,
        }),
    }
}

/// A body that did not come.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// The peer stopped early.
    Truncated,
    Read(ReadError),
}

/// Reads exactly `len` bytes. What is held follows what has arrived, never what was announced.
pub(crate) async fn read_body(stream: &mut RecvStream, len: usize) -> Result<Bytes, BodyError> {
    let mut body = BytesMut::new();
    while body.len() < len {
        let missing = len - body.len();
        let chunk = match stream.read_chunk(missing, true).await {
            Ok(Some(chunk)) => chunk.bytes,
            Ok(None) => return Err(BodyError::Truncated),
            Err(error) => return Err(BodyError::Read(error)),
        };
        if chunk.len() == len {
            return Ok(chunk);
        }
        reserve(&mut body, chunk.len(), len);
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Makes room for `more` bytes of a buffer that will hold `total` in the end: doubling, so that
/// the copies stay linear, but never past `total`, and never far past what has arrived.
pub(crate) fn reserve(buffer: &mut BytesMut, more: usize, total: usize) {
    const STEP: usize = 512 << 10;
    if buffer.capacity() - buffer.len() < more {
        let target = (buffer.len() + more).max(buffer.len() * 2).max(STEP).min(total);
        buffer.reserve(target - buffer.len());
    }
}

/// What became of a connection, as text for people.
pub(crate) fn lost_reason(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TimedOut => "no sign of life".to_owned(),
        ConnectionError::Reset => "peer restarted".to_owned(),
        ConnectionError::LocallyClosed => "closed here".to_owned(),
        ConnectionError::ApplicationClosed(close) => {
            format!("closed by peer: {}", String::from_utf8_lossy(&close.reason))
        }
        other => other.to_string(),
    }
}

pub(crate) fn lost(error: &ConnectionError, node: NodeId) -> CallError {
    CallError::Lost { node, reason: lost_reason(error) }
}

pub(crate) fn write_error(error: &WriteError, node: NodeId) -> CallError {
    match error {
        WriteError::ConnectionLost(error) => lost(error, node),
        _ => CallError::Protocol { node, what: "request not read to its end" },
    }
}

pub(crate) fn read_error(error: &ReadError, node: NodeId) -> CallError {
    match error {
        ReadError::ConnectionLost(error) => lost(error, node),
        _ => CallError::Protocol { node, what: "answer aborted" },
    }
}

fn exact_error(error: ReadExactError, node: NodeId) -> CallError {
    match error {
        ReadExactError::FinishedEarly(_) => CallError::Protocol { node, what: "no answer" },
        ReadExactError::ReadError(error) => read_error(&error, node),
    }
}

fn body_error(error: BodyError, node: NodeId) -> CallError {
    match error {
        BodyError::Truncated => CallError::Protocol { node, what: "answer cut short" },
        BodyError::Read(error) => read_error(&error, node),
    }
}

pub(crate) fn session_lost(error: &ConnectionError) -> SessionError {
    SessionError::Lost { reason: lost_reason(error) }
}

pub(crate) fn session_ended(code: VarInt) -> SessionError {
    SessionError::Ended { code: code.into_inner() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_bytes_of_version_one() {
        let header = Header { kind: Kind::Call, service: 9, len: 0x0102_0304 };
        assert_eq!(header.encode(), [1, 1, 9, 1, 2, 3, 4]);
        assert_eq!(answer_head(Status::NoService, 5), [1, 0, 0, 0, 5]);
    }

    proptest! {
        #[test]
        fn headers_round_trip_or_are_refused(bytes in any::<[u8; HEADER_LEN]>()) {
            if let Ok(header) = Header::decode(bytes) {
                prop_assert_eq!(header.encode(), bytes);
                prop_assert!(header.len as usize <= header.kind.payload_max());
            }
        }

        #[test]
        fn statuses_round_trip(byte in any::<u8>()) {
            if let Some(status) = Status::from_byte(byte) {
                prop_assert_eq!(status.byte(), byte);
            }
        }

        #[test]
        fn buffers_grow_within_their_total(chunks in prop::collection::vec(1usize..2_000_000, 1..20)) {
            let total: usize = chunks.iter().sum();
            let mut buffer = BytesMut::new();
            for chunk in chunks {
                reserve(&mut buffer, chunk, total);
                buffer.resize(buffer.len() + chunk, 0);
                prop_assert!(buffer.capacity() <= (2 * buffer.len()).max(512 << 10) * 2);
            }
        }
    }
}
