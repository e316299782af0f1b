//! Frames in a byte stream: `length u32 | bytes`, again and again. Pure.

use crate::wire::{FRAME_BYTES_MAX, reserve};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes before each frame.
pub(crate) const PREFIX: usize = 4;

/// Frames below this are copied together: the stream walks its pieces one by one, and a copy of
/// this size costs less than a piece of its own.
const COPY_BELOW: usize = 16 << 10;

/// A frame length over [`FRAME_BYTES_MAX`], as announced by the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong(pub(crate) u32);

/// Cuts a byte stream into frames.
///
/// A frame that lies in one piece is handed out as a view of it; others are copied once, into a
/// buffer that grows with what arrives.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    prefix: BytesMut,
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    len: usize,
    have: BytesMut,
}

impl Splitter {
    /// The next frame, or `None` when `input` is used up. Takes from `input` what it reads; call
    /// again with the same `input` while it returns frames.
    pub(crate) fn next(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, TooLong> {
        if self.body.is_none() {
            let Some(len) = self.take_prefix(input) else { return Ok(None) };
            if len as usize > FRAME_BYTES_MAX {
                return Err(TooLong(len));
            }
            if input.len() >= len as usize {
                return Ok(Some(input.split_to(len as usize)));
            }
            self.body = Some(Body { len: len as usize, have: BytesMut::new() });
        }
        let Some(body) = &mut self.body else { return Ok(None) };
        let take = input.len().min(body.len - body.have.len());
        reserve(&mut body.have, take, body.len);
        body.have.extend_from_slice(&input.split_to(take));
        if body.have.len() < body.len {
            return Ok(None);
        }
        Ok(self.body.take().map(|body| body.have.freeze()))
    }

    /// Whether the stream may end here.
    pub(crate) fn at_boundary(&self) -> bool {
        self.prefix.is_empty() && self.body.is_none()
    }

    fn take_prefix(&mut self, input: &mut Bytes) -> Option<u32> {
        if self.prefix.is_empty() && input.len() >= PREFIX {
            return Some(input.get_u32());
        }
        let take = input.len().min(PREFIX - self.prefix.len());
        self.prefix.extend_from_slice(&input.split_to(take));
        if self.prefix.len() < PREFIX {
            return None;
        }
        let len = self.prefix.get_u32();
        self.prefix.clear();
        Some(len)
    }
}

/// Turns frames into as few pieces as is cheap. Every frame must be within the limit.
pub(crate) fn join(frames: impl Iterator<Item = Bytes>, pieces: &mut Vec<Bytes>) {
    let mut copied = BytesMut::new();
    for frame in frames {
        debug_assert!(frame.len() <= FRAME_BYTES_MAX);
        copied.put_u32(frame.len() as u32);
        if frame.len() < COPY_BELOW {
            copied.extend_from_slice(&frame);
        } else {
            pieces.push(copied.split().freeze());
            pieces.push(frame);
        }
    }
    if !copied.is_empty() {
        pieces.push(copied.freeze());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Vec<Bytes>> {
        let frame = prop_oneof![
            4 => (0usize..200).boxed(),
            1 => (COPY_BELOW - 2..COPY_BELOW + 2).boxed(),
            1 => (0usize..60_000).boxed(),
        ];
        prop::collection::vec((frame, any::<u8>()), 0..20).prop_map(|list| {
            list.into_iter().map(|(len, byte)| Bytes::from(vec![byte; len])).collect()
        })
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(frames in frames(), cuts in prop::collection::vec(1usize..9000, 1..40)) {
            let mut pieces = Vec::new();
            join(frames.iter().cloned(), &mut pieces);
            let stream = Bytes::from(pieces.concat());
            let mut splitter = Splitter::default();
            let (mut got, mut rest, mut turn) = (Vec::new(), stream, 0);
            while !rest.is_empty() {
                let cut = cuts[turn % cuts.len()].min(rest.len());
                turn += 1;
                let mut input = rest.split_to(cut);
                while let Some(frame) = splitter.next(&mut input).expect("within the limit") {
                    got.push(frame);
                }
                prop_assert!(input.is_empty());
            }
            prop_assert!(splitter.at_boundary());
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn garbage_never_holds_more_than_it_sent(chunks in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 0..300), 0..40)) {
            let mut splitter = Splitter::default();
            let mut sent = 0;
            'stream: for chunk in chunks {
                sent += chunk.len();
                let mut input = Bytes::from(chunk);
                loop {
                    match splitter.next(&mut input) {
                        Ok(Some(frame)) => prop_assert!(frame.len() <= sent),
                        Ok(None) => break,
                        Err(TooLong(len)) => {
                            prop_assert!(len as usize > FRAME_BYTES_MAX);
                            break 'stream;
                        }
                    }
                }
                let held = splitter.body.as_ref().map_or(0, |body| body.have.capacity());
                prop_assert!(held <= (1 << 20) + 4 * sent, "{held} held for {sent}");
            }
        }
    }

    #[test]
    fn the_end_is_clean_only_between_frames() {
        let mut splitter = Splitter::default();
        for (byte, clean) in [(0, false), (0, false), (0, false), (2, false), (7, false), (7, true)]
        {
            let mut input = Bytes::copy_from_slice(&[byte]);
            let done = splitter.next(&mut input).expect("within the limit").is_some();
            assert_eq!((done, splitter.at_boundary()), (clean, clean));
        }
        let mut input = Bytes::from_static(&[0xff; 4]);
        assert_eq!(splitter.next(&mut input), Err(TooLong(u32::MAX)));
    }
}
