//! The frames of a session, version 1.
//!
//! ```text
//! version u8 = 1 | kind u8 | header length u32 little endian | header (postcard) | payload
//! ```
//!
//! Kind 1 is a request, kind 2 a reply. The payload is the bytes of a write, or the data segments
//! of a read one after another, and is copied once, into the frame; the receiver cuts views out of
//! the frame. Numbers and order of the header's variants are part of the version.

use crate::error::GatewayError;
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use smalti_nbd::{Extent, ReadReply, Segment};

const VERSION: u8 = 1;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
/// Version, kind and the header's length.
const PREFIX: usize = 6;
/// Room for any header without segments or extents.
const HEADER_GUESS: usize = 64;

/// Why a frame could not be understood. Nothing else of its session can be trusted either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Written by another version of the program.
    #[error("frame version {0} is not known")]
    Version(u8),
    /// A reply where a request was due, or the other way round, or neither.
    #[error("frame kind {0} does not belong here")]
    Kind(u8),
    /// The header does not decode, or does not end where it should.
    #[error("the header of a frame is damaged")]
    Header,
    /// The payload is not as long as the header says.
    #[error("the payload of a frame does not fit its header")]
    Payload,
    /// A reply to no request, or of another kind than the request.
    #[error("a reply answers no request")]
    Unasked,
}

/// One request of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRequest {
    /// Chosen by the client; unique among its unanswered requests.
    pub id: u64,
    /// What to do.
    pub op: BlockOp,
}

/// What a request asks for; see [`BlockDevice`](crate::BlockDevice).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockOp {
    /// Read bytes.
    Read {
        /// Where.
        offset: u64,
        /// How many.
        length: u32,
    },
    /// Write bytes.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// Make bytes read as zeroes.
    Zero {
        /// Where.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Describe the allocation.
    Status {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// Most extents of the answer.
        extents_max: u32,
    },
    /// Make all answered writes durable.
    Flush,
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockReply {
    /// The request's number.
    pub id: u64,
    /// Its outcome.
    pub result: Result<BlockAnswer, GatewayError>,
}

/// What a successful request gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockAnswer {
    /// Nothing but that it is done.
    Done,
    /// The bytes of a read.
    Read(ReadReply),
    /// The allocation.
    Status(Vec<Extent>),
}

#[derive(Serialize, Deserialize)]
struct RequestHeader {
    id: u64,
    op: OpHeader,
}

#[derive(Serialize, Deserialize)]
enum OpHeader {
    Read { offset: u64, length: u32 },
    Write { offset: u64, length: u32 },
    Zero { offset: u64, length: u64 },
    Status { offset: u64, length: u64, extents_max: u32 },
    Flush,
}

#[derive(Serialize, Deserialize)]
struct ReplyHeader {
    id: u64,
    result: ResultHeader,
}

#[derive(Serialize, Deserialize)]
enum ResultHeader {
    Done,
    Read(Vec<SegmentHeader>),
    Status(Vec<ExtentHeader>),
    /// A stable number, and the block of the errors that have one.
    Failed {
        code: u16,
        block: u64,
    },
}

#[derive(Serialize, Deserialize)]
enum SegmentHeader {
    Data(u32),
    Zero(u32),
}

#[derive(Serialize, Deserialize)]
struct ExtentHeader {
    length: u64,
    hole: bool,
    zero: bool,
}

impl BlockRequest {
    /// The frame of the request.
    pub fn encode(&self) -> Bytes {
        let none = Bytes::new();
        let (op, payload) = match &self.op {
            BlockOp::Read { offset, length } => {
                (OpHeader::Read { offset: *offset, length: *length }, &none)
            }
            BlockOp::Write { offset, data } => {
                (OpHeader::Write { offset: *offset, length: length_u32(data) }, data)
            }
            BlockOp::Zero { offset, length } => {
                (OpHeader::Zero { offset: *offset, length: *length }, &none)
            }
            BlockOp::Status { offset, length, extents_max } => {
                let (offset, length, extents_max) = (*offset, *length, *extents_max);
                (OpHeader::Status { offset, length, extents_max }, &none)
            }
            BlockOp::Flush => (OpHeader::Flush, &none),
        };
        frame(REQUEST, &RequestHeader { id: self.id, op }, payload.len(), [payload].into_iter())
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// Unless it is a whole request of this version.
    pub fn decode(frame: &Bytes) -> Result<Self, WireError> {
        let (RequestHeader { id, op }, payload) = parse(REQUEST, frame)?;
        if !matches!(op, OpHeader::Write { .. }) && !payload.is_empty() {
            return Err(WireError::Payload);
        }
        let op = match op {
            OpHeader::Read { offset, length } => BlockOp::Read { offset, length },
            OpHeader::Write { offset, length } if payload.len() == length as usize => {
                BlockOp::Write { offset, data: payload }
            }
            OpHeader::Write { .. } => return Err(WireError::Payload),
            OpHeader::Zero { offset, length } => BlockOp::Zero { offset, length },
            OpHeader::Status { offset, length, extents_max } => {
                BlockOp::Status { offset, length, extents_max }
            }
            OpHeader::Flush => BlockOp::Flush,
        };
        Ok(Self { id, op })
    }
}

impl BlockReply {
    /// The frame of the reply.
    pub fn encode(&self) -> Bytes {
        let mut payload = 0;
        let result = match &self.result {
            Ok(BlockAnswer::Done) => ResultHeader::Done,
            Ok(BlockAnswer::Read(reply)) => {
                let header = |segment: &Segment| match segment {
                    Segment::Data(data) => {
                        payload += data.len();
                        SegmentHeader::Data(length_u32(data))
                    }
                    Segment::Zero(length) => SegmentHeader::Zero(*length),
                };
                ResultHeader::Read(reply.segments().map(header).collect())
            }
            Ok(BlockAnswer::Status(extents)) => {
                let header = |extent: &Extent| {
                    let Extent { length, hole, zero } = *extent;
                    ExtentHeader { length, hole, zero }
                };
                ResultHeader::Status(extents.iter().map(header).collect())
            }
            Err(error) => {
                let (code, block) = error_code(error);
                ResultHeader::Failed { code, block }
            }
        };
        let header = ReplyHeader { id: self.id, result };
        let segments = match &self.result {
            Ok(BlockAnswer::Read(reply)) => Some(reply),
            _ => None,
        };
        let data =
            segments.into_iter().flat_map(ReadReply::segments).filter_map(
                |segment| match segment {
                    Segment::Data(data) => Some(data),
                    Segment::Zero(_) => None,
                },
            );
        frame(REPLY, &header, payload, data)
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// Unless it is a whole reply of this version.
    pub fn decode(frame: &Bytes) -> Result<Self, WireError> {
        let (ReplyHeader { id, result }, mut payload) = parse(REPLY, frame)?;
        let result = match result {
            ResultHeader::Done => Ok(BlockAnswer::Done),
            ResultHeader::Read(segments) => {
                let mut reply = ReadReply::new();
                for segment in segments {
                    reply.push(match segment {
                        SegmentHeader::Data(length) if length as usize <= payload.len() => {
                            Segment::Data(payload.split_to(length as usize))
                        }
                        SegmentHeader::Data(_) => return Err(WireError::Payload),
                        SegmentHeader::Zero(length) => Segment::Zero(length),
                    });
                }
                Ok(BlockAnswer::Read(reply))
            }
            ResultHeader::Status(extents) => {
                let extent = |ExtentHeader { length, hole, zero }| Extent { length, hole, zero };
                Ok(BlockAnswer::Status(extents.into_iter().map(extent).collect()))
            }
            ResultHeader::Failed { code, block } => Err(error_of(code, block)),
        };
        if payload.is_empty() { Ok(Self { id, result }) } else { Err(WireError::Payload) }
    }
}

/// Lengths in frames have 32 bits. Requests are bounded far below that, so a longer piece is a
/// mistake here, and saturating makes the other end refuse the frame.
fn length_u32(data: &Bytes) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

fn frame<'a>(
    kind: u8,
    header: &impl Serialize,
    payload_len: usize,
    payload: impl Iterator<Item = &'a Bytes>,
) -> Bytes {
    let mut buffer = BytesMut::with_capacity(PREFIX + HEADER_GUESS + payload_len);
    buffer.put_slice(&[VERSION, kind, 0, 0, 0, 0]);
    let buffer = postcard::to_extend(header, Extending(buffer)).map(|extending| extending.0);
    let mut buffer = buffer.expect("headers hold nothing that postcard can not write");
    let header_len = (buffer.len() - PREFIX) as u32;
    buffer[2..PREFIX].copy_from_slice(&header_len.to_le_bytes());
    payload.for_each(|piece| buffer.put_slice(piece));
    buffer.freeze()
}

/// Lets postcard write behind what is in the buffer.
struct Extending(BytesMut);

impl Extend<u8> for Extending {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        self.0.extend(bytes);
    }
}

fn parse<H: for<'de> Deserialize<'de>>(kind: u8, frame: &Bytes) -> Result<(H, Bytes), WireError> {
    let Some((&[version, found, a, b, c, d], rest)) = frame.split_first_chunk::<PREFIX>() else {
        return Err(WireError::Header);
    };
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    if found != kind {
        return Err(WireError::Kind(found));
    }
    let header_len = u32::from_le_bytes([a, b, c, d]) as usize;
    let header = rest.get(..header_len).ok_or(WireError::Header)?;
    let (header, left) = postcard::take_from_bytes(header).map_err(|_| WireError::Header)?;
    if !left.is_empty() {
        return Err(WireError::Header);
    }
    Ok((header, frame.slice(PREFIX + header_len..)))
}

fn error_code(error: &GatewayError) -> (u16, u64) {
    let code = match error {
        GatewayError::Internal => 0,
        GatewayError::Fenced => 1,
        GatewayError::Disconnected => 2,
        GatewayError::NoSpace => 3,
        GatewayError::Unreadable => 4,
        GatewayError::Forged { .. } => 5,
        GatewayError::Stale { .. } => 6,
        GatewayError::NoKey { .. } => 7,
        GatewayError::Invalid => 8,
    };
    (code, error.block().unwrap_or(0))
}

fn error_of(code: u16, block: u64) -> GatewayError {
    match code {
        1 => GatewayError::Fenced,
        2 => GatewayError::Disconnected,
        3 => GatewayError::NoSpace,
        4 => GatewayError::Unreadable,
        5 => GatewayError::Forged { block },
        6 => GatewayError::Stale { block },
        7 => GatewayError::NoKey { block },
        8 => GatewayError::Invalid,
        // A newer server may know errors that are not known here.
        _ => GatewayError::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_op() -> impl Strategy<Value = BlockOp> {
        prop_oneof![
            any::<(u64, u32)>().prop_map(|(offset, length)| BlockOp::Read { offset, length }),
            (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..300))
                .prop_map(|(offset, data)| BlockOp::Write { offset, data: data.into() }),
            any::<(u64, u64)>().prop_map(|(offset, length)| BlockOp::Zero { offset, length }),
            any::<(u64, u64, u32)>().prop_map(|(offset, length, extents_max)| {
                BlockOp::Status { offset, length, extents_max }
            }),
            Just(BlockOp::Flush),
        ]
    }

    fn any_segment() -> impl Strategy<Value = Segment> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..99).prop_map(|b| Segment::Data(b.into())),
            (0..9999u32).prop_map(Segment::Zero),
        ]
    }

    fn any_result() -> impl Strategy<Value = Result<BlockAnswer, GatewayError>> {
        prop_oneof![
            Just(Ok(BlockAnswer::Done)),
            proptest::collection::vec(any_segment(), 0..9)
                .prop_map(|segments| Ok(BlockAnswer::Read(segments.into_iter().collect()))),
            proptest::collection::vec(any::<(u64, bool, bool)>(), 0..9).prop_map(|extents| {
                let extent = |(length, hole, zero)| Extent { length, hole, zero };
                Ok(BlockAnswer::Status(extents.into_iter().map(extent).collect()))
            }),
            (0u16..9, any::<u64>()).prop_map(|(code, block)| Err(error_of(code, block))),
        ]
    }

    proptest! {
        #[test]
        fn requests_come_back(id: u64, op in any_op()) {
            let request = BlockRequest { id, op };
            prop_assert_eq!(BlockRequest::decode(&request.encode()), Ok(request));
        }

        #[test]
        fn replies_come_back(id: u64, result in any_result()) {
            let reply = BlockReply { id, result };
            prop_assert_eq!(BlockReply::decode(&reply.encode()), Ok(reply));
        }

        #[test]
        fn damaged_frames_are_refused_or_mean_something(
            op in any_op(),
            result in any_result(),
            at: prop::sample::Index,
            to: u8,
            keep: prop::sample::Index,
        ) {
            for frame in [BlockRequest { id: 7, op }.encode(), BlockReply { id: 7, result }.encode()]
            {
                let mut bytes = frame.to_vec();
                bytes[at.index(frame.len())] = to;
                let damaged = Bytes::from(bytes);
                // Nothing to say about a flipped byte but that it is no panic.
                let _ = (BlockRequest::decode(&damaged), BlockReply::decode(&damaged));
                let short = frame.slice(..keep.index(frame.len()));
                prop_assert!(BlockRequest::decode(&short).is_err());
                prop_assert!(BlockReply::decode(&short).is_err());
            }
        }
    }

    /// Nodes of different builds talk to each other during an upgrade.
    #[test]
    fn old_frames_keep_decoding() {
        let write = BlockOp::Write { offset: 4096, data: Bytes::from_static(b"abc") };
        let read = ReadReply::from_iter([
            Segment::Data(Bytes::from_static(b"xy")),
            Segment::Zero(300),
            Segment::Data(Bytes::from_static(b"z")),
        ]);
        let status = vec![Extent { length: 200, hole: true, zero: true }];
        let requests: [(&[u8], BlockOp); 5] = [
            (&[1, 1, 4, 0, 0, 0, 5, 0, 1, 2], BlockOp::Read { offset: 1, length: 2 }),
            (&[1, 1, 5, 0, 0, 0, 5, 1, 128, 32, 3, b'a', b'b', b'c'], write),
            (&[1, 1, 4, 0, 0, 0, 5, 2, 1, 2], BlockOp::Zero { offset: 1, length: 2 }),
            (
                &[1, 1, 5, 0, 0, 0, 5, 3, 1, 2, 9],
                BlockOp::Status { offset: 1, length: 2, extents_max: 9 },
            ),
            (&[1, 1, 2, 0, 0, 0, 5, 4], BlockOp::Flush),
        ];
        for (bytes, op) in requests {
            let request = BlockRequest { id: 5, op };
            assert_eq!(BlockRequest::decode(&Bytes::from_static(bytes)), Ok(request.clone()));
            assert_eq!(request.encode(), bytes);
        }
        let replies: [(&[u8], Result<BlockAnswer, GatewayError>); 4] = [
            (&[1, 2, 2, 0, 0, 0, 5, 0], Ok(BlockAnswer::Done)),
            (
                &[1, 2, 10, 0, 0, 0, 5, 1, 3, 0, 2, 1, 172, 2, 0, 1, b'x', b'y', b'z'],
                Ok(BlockAnswer::Read(read)),
            ),
            (&[1, 2, 7, 0, 0, 0, 5, 2, 1, 200, 1, 1, 1], Ok(BlockAnswer::Status(status))),
            (&[1, 2, 4, 0, 0, 0, 5, 3, 5, 77], Err(GatewayError::Forged { block: 77 })),
        ];
        for (bytes, result) in replies {
            let reply = BlockReply { id: 5, result };
            assert_eq!(BlockReply::decode(&Bytes::from_static(bytes)), Ok(reply.clone()));
            assert_eq!(reply.encode(), bytes);
        }
    }

    #[test]
    fn strange_frames_are_refused_by_name() {
        let good = BlockRequest { id: 1, op: BlockOp::Flush }.encode();
        assert_eq!(BlockReply::decode(&good), Err(WireError::Kind(1)));
        let changed = |at: usize, to: u8| {
            let mut bytes = good.to_vec();
            bytes[at] = to;
            BlockRequest::decode(&Bytes::from(bytes))
        };
        assert_eq!(changed(0, 2), Err(WireError::Version(2)));
        assert_eq!(changed(5, 255), Err(WireError::Header));
        assert_eq!(changed(2, 1), Err(WireError::Header));
        let longer = [&good[..], b"x"].concat();
        assert_eq!(BlockRequest::decode(&Bytes::from(longer)), Err(WireError::Payload));
    }
}
