//! Replies of the transmission phase: short heads built on the stack, in front of device data.

use bytes::BufMut;

use super::wire;
use crate::device::Extent;
use crate::errno::Errno;

/// The longest head: a chunk with an offset and a length behind it.
pub const HEAD_BYTES_MAX: usize = 34;

/// The longest text sent with an error.
const ERROR_TEXT_BYTES_MAX: usize = 512;

/// Bytes that precede data, or a whole reply that has none.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    length: u8,
}

impl Head {
    fn build(fill: impl FnOnce(&mut &mut [u8])) -> Self {
        let mut bytes = [0; HEAD_BYTES_MAX];
        let mut rest = &mut bytes[..];
        fill(&mut rest);
        let length = HEAD_BYTES_MAX - rest.len();
        Self { bytes, length: u8::try_from(length).expect("the array is shorter than 256") }
    }

    /// The bytes to send.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// A simple reply; data of a read follows if there is no error.
pub fn simple_head(cookie: u64, errno: Option<Errno>) -> Head {
    Head::build(|out| {
        out.put_u32(wire::SIMPLE_REPLY_MAGIC);
        out.put_u32(errno.map_or(0, Errno::code));
        out.put_u64(cookie);
    })
}

fn put_chunk(out: &mut &mut [u8], cookie: u64, kind: u16, done: bool, payload: u32) {
    out.put_u32(wire::STRUCTURED_REPLY_MAGIC);
    out.put_u16(if done { wire::REPLY_FLAG_DONE } else { 0 });
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(payload);
}

/// The head of any chunk, with `payload` bytes to follow.
pub fn chunk_head(cookie: u64, kind: u16, done: bool, payload: u32) -> Head {
    Head::build(|out| put_chunk(out, cookie, kind, done, payload))
}

/// The head of a data chunk, with `length` bytes of data to follow. `length` is at most the
/// request's, so that the payload's length fits.
pub fn offset_data_head(cookie: u64, done: bool, offset: u64, length: u32) -> Head {
    Head::build(|out| {
        put_chunk(out, cookie, wire::REPLY_OFFSET_DATA, done, length.saturating_add(8));
        out.put_u64(offset);
    })
}

/// A whole chunk that stands for zeroes.
pub fn hole_head(cookie: u64, done: bool, offset: u64, length: u32) -> Head {
    Head::build(|out| {
        put_chunk(out, cookie, wire::REPLY_OFFSET_HOLE, done, 12);
        out.put_u64(offset);
        out.put_u32(length);
    })
}

/// The head of a closing error chunk and the part of `text` that follows it.
pub fn error_head(cookie: u64, errno: Errno, text: &str) -> (Head, &str) {
    let (text, length) = error_text(text);
    let head = Head::build(|out| {
        put_chunk(out, cookie, wire::REPLY_ERROR, true, 6 + u32::from(length));
        out.put_u32(errno.code());
        out.put_u16(length);
    });
    (head, text)
}

/// The head of a closing error chunk, the part of `text` that follows it, and then the offset.
pub fn error_offset_head(
    cookie: u64,
    errno: Errno,
    text: &str,
    offset: u64,
) -> (Head, &str, [u8; 8]) {
    let (text, length) = error_text(text);
    let head = Head::build(|out| {
        put_chunk(out, cookie, wire::REPLY_ERROR_OFFSET, true, 14 + u32::from(length));
        out.put_u32(errno.code());
        out.put_u16(length);
    });
    (head, text, offset.to_be_bytes())
}

fn error_text(text: &str) -> (&str, u16) {
    let text = &text[..text.floor_char_boundary(ERROR_TEXT_BYTES_MAX)];
    (text, u16::try_from(text.len()).expect("cut to less than 65536"))
}

/// Payload of a block status chunk: `extents` joined where equal, cut to `length` bytes and
/// `extents_max` descriptors. `None` if the device gave nothing to say.
pub fn block_status_payload(
    extents: &[Extent],
    length: u32,
    extents_max: usize,
) -> Option<Vec<u8>> {
    let mut joined: Vec<(u32, u32)> = Vec::with_capacity(extents.len().min(extents_max));
    let mut left = u64::from(length);
    for extent in extents {
        if extent.length == 0 {
            return None;
        }
        let taken = extent.length.min(left);
        left -= taken;
        let taken = u32::try_from(taken).expect("not more than the length of a request");
        let state = if extent.hole { wire::STATE_HOLE } else { 0 }
            | if extent.zero { wire::STATE_ZERO } else { 0 };
        let full = joined.len() == extents_max;
        match joined.last_mut() {
            // The sum stays within the request's length, a u32.
            Some((sum, last)) if *last == state => *sum += taken,
            _ if full => break,
            _ => joined.push((taken, state)),
        }
        if left == 0 {
            break;
        }
    }
    if joined.is_empty() {
        return None;
    }
    let mut payload = Vec::with_capacity(4 + 8 * joined.len());
    payload.put_u32(wire::BASE_ALLOCATION_ID);
    for (length, state) in joined {
        payload.put_u32(length);
        payload.put_u32(state);
    }
    Some(payload)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn heads_are_what_the_protocol_says() {
        assert_eq!(
            hex(simple_head(0x0102, Some(Errno::NoSpc)).as_slice()),
            "674466980000001c0000000000000102"
        );
        assert_eq!(
            hex(chunk_head(5, wire::REPLY_NONE, true, 0).as_slice()),
            "668e33ef00010000000000000000000500000000"
        );
        assert_eq!(
            hex(offset_data_head(5, false, 0x200, 0x10).as_slice()),
            "668e33ef000000010000000000000005000000180000000000000200"
        );
        assert_eq!(
            hex(hole_head(5, true, 0x200, 0x10).as_slice()),
            "668e33ef0001000200000000000000050000000c000000000000020000000010"
        );
        let (head, text) = error_head(5, Errno::Io, "no");
        assert_eq!(text, "no");
        assert_eq!(hex(head.as_slice()), "668e33ef00018001000000000000000500000008000000050002");
        let (head, text, offset) = error_offset_head(5, Errno::Io, "no", 9);
        assert_eq!((text, offset), ("no", 9u64.to_be_bytes()));
        assert_eq!(hex(head.as_slice()), "668e33ef00018002000000000000000500000010000000050002");
    }

    #[test]
    fn long_error_texts_are_cut() {
        let text = "é".repeat(400);
        let (head, cut) = error_head(1, Errno::Io, &text);
        assert_eq!(cut.len(), 512);
        assert_eq!(&head.as_slice()[24..], &512u16.to_be_bytes());
    }

    #[test]
    fn extents_join_and_are_cut() {
        let extent = |length, hole, zero| Extent { length, hole, zero };
        let extents = [
            extent(10, false, false),
            extent(5, false, false),
            extent(4, true, true),
            extent(u64::MAX, false, true),
        ];
        let payload = |length, most| block_status_payload(&extents, length, most).map(|p| hex(&p));
        let first = "000000010000000f00000000";
        assert_eq!(payload(100, 1).as_deref(), Some(first));
        assert_eq!(payload(100, 9), Some(format!("{first}00000004000000030000005100000002")));
        assert_eq!(payload(12, 9).as_deref(), Some("000000010000000c00000000"));
        assert_eq!(block_status_payload(&[], 100, 9), None);
        assert_eq!(block_status_payload(&[extent(0, true, true)], 100, 9), None);
    }

    proptest! {
        #[test]
        fn block_status_never_says_more_than_asked(
            extents in proptest::collection::vec((any::<u64>(), any::<bool>(), any::<bool>()), 0..40),
            length in 1u32.., most in 1usize..20,
        ) {
            let extents: Vec<_> = extents
                .into_iter()
                .map(|(length, hole, zero)| Extent { length: length >> (length % 64), hole, zero })
                .collect();
            if let Some(payload) = block_status_payload(&extents, length, most) {
                let descriptors = &payload[4..];
                prop_assert_eq!(descriptors.len() % 8, 0);
                prop_assert!(descriptors.len() / 8 <= most);
                let sum: u64 = descriptors
                    .chunks(8)
                    .map(|d| u64::from(u32::from_be_bytes([d[0], d[1], d[2], d[3]])))
                    .sum();
                prop_assert!(sum >= 1 && sum <= u64::from(length));
            }
        }
    }
}
