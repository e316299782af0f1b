//! Outcomes into replies, simple or structured.

use bytes::Bytes;
use tracing::error;

use super::running::{Outcome, Ticket, extents_max};
use crate::device::{DeviceError, DeviceErrorKind, ReadReply, Segment};
use crate::errno::Errno;
use crate::outbox::Outbox;
use crate::proto::{
    Operation, Refusal, block_status_payload, chunk_head, error_head, error_offset_head, hole_head,
    offset_data_head, simple_head, wire,
};
use crate::session::Session;

/// Zero runs shorter than this are sent as data: a hole costs a head of its own and another one
/// for the data behind it, and the client more work than copying.
const HOLE_BYTES_MIN: u32 = 512;

/// Queues the reply of a request that reached the device.
pub(super) fn answer(outbox: &mut Outbox, session: &Session, ticket: Ticket, outcome: Outcome) {
    let cookie = ticket.cookie;
    let structured = session.rules.structured;
    match outcome {
        Outcome::Failed(error) => fail(outbox, structured, ticket, &error),
        Outcome::Read(reply) if reply.len() != ticket.length as usize => {
            error!(export = %session.info.name, offset = ticket.offset, wanted = ticket.length,
                got = reply.len(), "the device returned a read of the wrong length");
            fail(outbox, structured, ticket, &broken_device());
        }
        Outcome::Read(reply) => read(outbox, structured, ticket, reply),
        Outcome::Done if structured && matches!(ticket.operation, Operation::Read { .. }) => {
            outbox.head(chunk_head(cookie, wire::REPLY_NONE, true, 0));
        }
        Outcome::Done => outbox.head(simple_head(cookie, None)),
        Outcome::Status(extents) => {
            let one = matches!(ticket.operation, Operation::BlockStatus { one: true });
            match block_status_payload(&extents, ticket.length, extents_max(one)) {
                Some(payload) => {
                    let length = u32::try_from(payload.len()).expect("bounded by extents_max");
                    outbox.head(chunk_head(cookie, wire::REPLY_BLOCK_STATUS, true, length));
                    outbox.data(Bytes::from(payload));
                }
                None => {
                    error!(export = %session.info.name, offset = ticket.offset,
                        "the device described no allocation");
                    fail(outbox, structured, ticket, &broken_device());
                }
            }
        }
    }
    outbox.end_reply(ticket.cost());
}

/// Queues the reply of a request that did not pass the checks.
pub(super) fn refuse(outbox: &mut Outbox, structured: bool, cookie: u64, refusal: Refusal) {
    if structured {
        let (head, text) = error_head(cookie, refusal.errno, refusal.text);
        outbox.head(head);
        outbox.data(Bytes::copy_from_slice(text.as_bytes()));
    } else {
        outbox.head(simple_head(cookie, Some(refusal.errno)));
    }
    outbox.end_reply(0);
}

fn broken_device() -> DeviceError {
    DeviceError::new(DeviceErrorKind::Io, "the device broke its contract")
}

fn fail(outbox: &mut Outbox, structured: bool, ticket: Ticket, error: &DeviceError) {
    let errno = Errno::from(error.kind());
    if !structured {
        outbox.head(simple_head(ticket.cookie, Some(errno)));
        return;
    }
    // Only a read may say where it failed, and only within what was asked for.
    let end = ticket.offset.saturating_add(u64::from(ticket.length));
    let offset = error.offset().filter(|at| {
        matches!(ticket.operation, Operation::Read { .. }) && (ticket.offset..end).contains(at)
    });
    match offset {
        Some(at) => {
            let (head, text, at) = error_offset_head(ticket.cookie, errno, error.message(), at);
            outbox.head(head);
            outbox.data(Bytes::from([text.as_bytes(), &at].concat()));
        }
        None => {
            let (head, text) = error_head(ticket.cookie, errno, error.message());
            outbox.head(head);
            outbox.data(Bytes::copy_from_slice(text.as_bytes()));
        }
    }
}

fn read(outbox: &mut Outbox, structured: bool, ticket: Ticket, reply: ReadReply) {
    let Ticket { cookie, offset, length, operation } = ticket;
    if !structured {
        outbox.head(simple_head(cookie, None));
        return segments(outbox, reply.into_segments());
    }
    let is_hole = |segment: &Segment, min: u32| matches!(segment, Segment::Zero(n) if *n >= min);
    if matches!(operation, Operation::Read { whole: true }) {
        // One chunk: all of it a hole, or all of it data.
        if reply.segments().all(|segment| is_hole(segment, 0)) {
            outbox.head(hole_head(cookie, true, offset, length));
        } else {
            outbox.head(offset_data_head(cookie, true, offset, length));
            segments(outbox, reply.into_segments());
        }
        return;
    }
    let end = offset + u64::from(length);
    let mut at = offset;
    let mut run: Vec<Segment> = Vec::new();
    let mut run_bytes = 0u32;
    let mut rest = reply.into_segments().peekable();
    while let Some(segment) = rest.next() {
        let bytes = u32::try_from(segment.len()).expect("all segments together fit the length");
        if is_hole(&segment, HOLE_BYTES_MIN) {
            at += u64::from(bytes);
            outbox.head(hole_head(cookie, at == end, at - u64::from(bytes), bytes));
            continue;
        }
        run.push(segment);
        run_bytes += bytes;
        if rest.peek().is_none_or(|next| is_hole(next, HOLE_BYTES_MIN)) {
            let from = at;
            at += u64::from(run_bytes);
            outbox.head(offset_data_head(cookie, at == end, from, run_bytes));
            segments(outbox, run.drain(..));
            run_bytes = 0;
        }
    }
}

fn segments(outbox: &mut Outbox, segments: impl Iterator<Item = Segment>) {
    for segment in segments {
        match segment {
            Segment::Data(data) => outbox.data(data),
            Segment::Zero(length) => outbox.zeroes(length as usize),
        }
    }
}
