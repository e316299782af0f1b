//! A connection's part of the memory all connections share.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio_util::sync::PollSemaphore;

use crate::server::Shared;

pub(super) struct Share {
    shared: Arc<Shared>,
    /// Present while this connection waits in the queue.
    queue: Option<PollSemaphore>,
    held: usize,
}

impl Share {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, queue: None, held: 0 }
    }

    /// Takes `bytes`, waiting in line if there are none left.
    pub(super) fn poll_take(&mut self, cx: &mut Context<'_>, bytes: u32) -> Poll<()> {
        if bytes == 0 {
            return Poll::Ready(());
        }
        if self.queue.is_none() {
            if let Ok(permit) = self.shared.bytes.try_acquire_many(bytes) {
                permit.forget();
                self.held += bytes as usize;
                return Poll::Ready(());
            }
            self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        }
        let bytes_left = &self.shared.bytes;
        let queue = self.queue.get_or_insert_with(|| PollSemaphore::new(Arc::clone(bytes_left)));
        let permit = ready!(queue.poll_acquire_many(cx, bytes));
        permit.expect("the semaphore is never closed").forget();
        self.held += bytes as usize;
        self.leave_queue();
        Poll::Ready(())
    }

    /// Gives back what was taken.
    pub(super) fn give_back(&mut self, bytes: usize) {
        assert!(bytes <= self.held, "gave back more than was taken");
        if bytes > 0 {
            self.held -= bytes;
            self.shared.bytes.add_permits(bytes);
        }
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Whether another connection waits for bytes.
    pub(super) fn others_wait(&self) -> bool {
        self.shared.waiting.load(Ordering::Relaxed) > usize::from(self.queue.is_some())
    }

    /// Stops waiting.
    pub(super) fn leave_queue(&mut self) {
        if self.queue.take().is_some() {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.leave_queue();
        self.give_back(self.held);
    }
}
