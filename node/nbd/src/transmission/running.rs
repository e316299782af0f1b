//! One request on its way through the device.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::device::{BoxFuture, DeviceError, Extent, ReadReply};
use crate::proto::Operation;
use crate::session::Session;

/// Descriptors in one block status reply: 64 KiB of them.
pub(super) const EXTENTS_MAX: usize = 8192;

/// What is remembered of a request until its reply.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    pub(super) cookie: u64,
    pub(super) operation: Operation,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl Ticket {
    /// Memory the request is accounted with until its reply has left.
    pub(super) fn cost(&self) -> u32 {
        match self.operation {
            Operation::Read { .. } | Operation::Write { .. } => self.length,
            Operation::BlockStatus { one: false } => 8 * EXTENTS_MAX as u32,
            _ => 0,
        }
    }
}

/// What came of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    Done,
    Read(ReadReply),
    Status(Vec<Extent>),
    Failed(DeviceError),
}

pub(super) struct Running {
    ticket: Ticket,
    work: Work,
}

enum Work {
    /// Requests of no bytes never reach the device.
    Nothing,
    Unit(BoxFuture<Result<(), DeviceError>>),
    Read(BoxFuture<Result<ReadReply, DeviceError>>),
    Status(BoxFuture<Result<Vec<Extent>, DeviceError>>),
}

impl Running {
    /// Calls the device. `data` is the payload of a write.
    pub(super) fn start(session: &Session, ticket: Ticket, data: Bytes) -> Self {
        let export = &session.export;
        let Ticket { operation, offset, length, .. } = ticket;
        let wide = u64::from(length);
        let work = match operation {
            Operation::Flush => Work::Unit(export.flush()),
            _ if length == 0 => Work::Nothing,
            Operation::Read { .. } => Work::Read(export.read(offset, length)),
            Operation::Write { fua } => Work::Unit(export.write(offset, data, fua)),
            Operation::Trim { fua } => Work::Unit(export.trim(offset, wide, fua)),
            Operation::Cache => Work::Unit(export.cache(offset, wide)),
            Operation::WriteZeroes(flags) => Work::Unit(export.write_zeroes(offset, wide, flags)),
            Operation::BlockStatus { one } => {
                Work::Status(export.block_status(offset, wide, extents_max(one)))
            }
        };
        Self { ticket, work }
    }
}

pub(super) fn extents_max(one: bool) -> usize {
    if one { 1 } else { EXTENTS_MAX }
}

impl Future for Running {
    type Output = (Ticket, Outcome);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match &mut self.work {
            Work::Nothing => Ok(Outcome::Done),
            Work::Unit(future) => ready!(future.as_mut().poll(cx)).map(|()| Outcome::Done),
            Work::Read(future) => ready!(future.as_mut().poll(cx)).map(Outcome::Read),
            Work::Status(future) => ready!(future.as_mut().poll(cx)).map(Outcome::Status),
        };
        Poll::Ready((self.ticket, outcome.unwrap_or_else(Outcome::Failed)))
    }
}
