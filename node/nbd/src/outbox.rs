//! Replies waiting for the socket: pieces handed to vectored writes without copying the data.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

use crate::proto::Head;

/// Zeroes to send where the protocol has no shorter way to say so.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// The queue of one connection. Its length is bounded by the requests in flight.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pieces: VecDeque<Queued>,
    /// Bytes of the front piece that have left already.
    front_sent: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Queued {
    piece: Piece,
    /// Set on the last piece of a reply: the payload bytes its request is accounted with.
    ends: Option<u32>,
}

#[derive(Debug)]
enum Piece {
    Head(Head),
    Data(Bytes),
}

impl Piece {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Head(head) => head.as_slice(),
            Self::Data(data) => data,
        }
    }
}

/// Replies that have left completely.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) replies: usize,
    /// What their requests were accounted with.
    pub(crate) cost: usize,
}

impl Outbox {
    pub(crate) fn head(&mut self, head: Head) {
        self.push(Piece::Head(head));
    }

    pub(crate) fn data(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.push(Piece::Data(data));
        }
    }

    pub(crate) fn zeroes(&mut self, mut length: usize) {
        while length > 0 {
            let part = length.min(ZEROES.len());
            self.push(Piece::Data(Bytes::from_static(&ZEROES[..part])));
            length -= part;
        }
    }

    fn push(&mut self, piece: Piece) {
        self.bytes += piece.as_slice().len();
        self.pieces.push_back(Queued { piece, ends: None });
    }

    /// Marks the end of a reply, which has at least a head.
    pub(crate) fn end_reply(&mut self, cost: u32) {
        let last = self.pieces.back_mut().expect("a reply was queued just before");
        debug_assert!(last.ends.is_none());
        last.ends = Some(cost);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Fills `slices` from the front and says how many it filled.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut skip = self.front_sent;
        let mut filled = 0;
        for (slice, queued) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(&queued.piece.as_slice()[skip..]);
            skip = 0;
            filled += 1;
        }
        filled
    }

    /// Takes `sent` bytes from the front.
    pub(crate) fn advance(&mut self, sent: usize) -> Sent {
        assert!(sent <= self.bytes, "a socket took more than it was given");
        self.bytes -= sent;
        self.front_sent += sent;
        let mut done = Sent::default();
        while let Some(front) = self.pieces.front() {
            let length = front.piece.as_slice().len();
            if self.front_sent < length {
                break;
            }
            self.front_sent -= length;
            if let Some(cost) = front.ends {
                done.replies += 1;
                done.cost += cost as usize;
            }
            self.pieces.pop_front();
        }
        done
    }

    /// Drops everything, as if it had been sent.
    pub(crate) fn discard(&mut self) -> Sent {
        self.advance(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::simple_head;

    proptest! {
        #[test]
        fn partial_writes_lose_nothing(
            replies in proptest::collection::vec((0usize..200_000, any::<bool>()), 1..8),
            steps in proptest::collection::vec(1usize..90_000, 1..6),
        ) {
            let mut outbox = Outbox::default();
            let mut expected = Vec::new();
            for (cookie, (length, zero)) in replies.iter().enumerate() {
                let head = simple_head(cookie as u64, None);
                outbox.head(head);
                expected.extend_from_slice(head.as_slice());
                if *zero {
                    outbox.zeroes(*length);
                    expected.resize(expected.len() + length, 0);
                } else {
                    outbox.data(Bytes::from(vec![cookie as u8 + 1; *length]));
                    expected.resize(expected.len() + length, cookie as u8 + 1);
                }
                outbox.end_reply(*length as u32);
            }
            prop_assert_eq!(outbox.bytes(), expected.len());
            let mut got = Vec::new();
            let mut done = Sent::default();
            for step in steps.iter().cycle() {
                if outbox.is_empty() {
                    break;
                }
                let mut slices = [IoSlice::new(&[]); 3];
                let filled = outbox.slices(&mut slices);
                let all = slices[..filled].concat_bytes();
                let taken = all.len().min(*step);
                got.extend_from_slice(&all[..taken]);
                let sent = outbox.advance(taken);
                done.replies += sent.replies;
                done.cost += sent.cost;
            }
            prop_assert!(got == expected);
            let cost = replies.iter().map(|reply| reply.0).sum();
            prop_assert_eq!(done, Sent { replies: replies.len(), cost });
        }
    }

    trait ConcatBytes {
        fn concat_bytes(&self) -> Vec<u8>;
    }

    impl ConcatBytes for [IoSlice<'_>] {
        fn concat_bytes(&self) -> Vec<u8> {
            self.iter().flat_map(|slice| slice.iter().copied()).collect()
        }
    }

    #[test]
    fn discarding_accounts_for_every_reply() {
        let mut outbox = Outbox::default();
        for cookie in 0..3 {
            outbox.head(simple_head(cookie, None));
            outbox.data(Bytes::from_static(b"abc"));
            outbox.end_reply(10);
        }
        assert_eq!(outbox.advance(17), Sent::default());
        assert_eq!(outbox.discard(), Sent { replies: 3, cost: 30 });
        assert!(outbox.is_empty());
    }
}
