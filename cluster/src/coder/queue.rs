//! What a coder has handed to a link and the link has not handed on: bounded in frames and bytes.
//!
//! The coder never waits. When the bound is passed the session ends instead: what waited is let go
//! of at once, however long the line is stuck, and goes again in the next session, for the core
//! keeps what is not answered.

use super::sync::{Mutex, MutexGuard};
use smalti_rowcommit::msg::Frame;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

/// Frames that may wait. Each has all that waited for the store when it was made.
pub(super) const FRAMES: usize = 4096;

/// Bytes that may wait: more than one gateway has in flight, which is 64 MiB of records.
pub(super) const BYTES: usize = 96 << 20;

/// What a request costs beside its record.
const REQUEST_COST: usize = 64;

/// One link's queue, between the coder and one task.
#[derive(Debug, Default)]
pub(super) struct FrameQueue {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Frames of other sessions are not taken.
    session: Option<u64>,
    frames: VecDeque<Frame>,
    bytes: usize,
    /// There was a frame of the session.
    has_begun: bool,
    /// None while the session begins: what was unanswered before goes again at once, however much
    /// that is. It would not become less in yet another session.
    limits: Option<Limits>,
    /// The link's task, when it waits for a frame or for the end.
    waiting: Option<Waker>,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    frames: usize,
    bytes: usize,
}

impl State {
    fn let_go(&mut self) {
        // A new one: after a large backlog the memory of the old one would stay.
        self.frames = VecDeque::new();
        self.bytes = 0;
        self.has_begun = false;
        self.limits = None;
    }

    /// To be woken by the next change. Set under the same lock as the look before it, so none is
    /// missed; both futures of the queue are polled by one task, so one place will do.
    fn wait(&mut self, context: &Context<'_>) {
        match &mut self.waiting {
            Some(waker) => waker.clone_from(context.waker()),
            None => self.waiting = Some(context.waker().clone()),
        }
    }

    fn is_over(&self) -> bool {
        self.limits.is_some_and(|most| self.frames.len() > most.frames || self.bytes > most.bytes)
    }
}

impl FrameQueue {
    /// Frames and bytes that wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> (usize, usize) {
        let state = self.lock();
        (state.frames.len(), state.bytes)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is made whole under the lock, so a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on frames of this session are taken.
    pub(super) fn begin(&self, session: u64) {
        let mut state = self.lock();
        state.let_go();
        state.session = Some(session);
    }

    /// The session is over: frames that still come were made for a stream that is gone.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.let_go();
        state.session = None;
    }

    /// Queues a frame of the current session; ends the session if that is too much.
    pub(super) fn push(&self, frame: Frame) {
        let mut state = self.lock();
        if state.session != Some(frame.session) {
            return;
        }
        state.has_begun = true;
        state.bytes += cost(&frame);
        state.frames.push_back(frame);
        if state.is_over() {
            state.let_go();
            state.session = None;
        }
        let waiting = state.waiting.take();
        drop(state);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    /// Everything that waited in the coder has been queued.
    pub(super) fn flushed(&self) {
        let mut state = self.lock();
        if state.limits.is_none() && state.has_begun {
            let (frames, bytes) = (state.frames.len() + FRAMES, state.bytes + BYTES);
            state.limits = Some(Limits { frames, bytes });
        }
    }

    /// The next frame of a session; `None` when it has ended. Can be dropped without losing one.
    pub(super) async fn next(&self, session: u64) -> Option<Frame> {
        poll_fn(|context| {
            let mut state = self.lock();
            if state.session != Some(session) {
                return Poll::Ready(None);
            }
            let Some(frame) = state.frames.pop_front() else {
                state.wait(context);
                return Poll::Pending;
            };
            state.bytes -= cost(&frame);
            Poll::Ready(Some(frame))
        })
        .await
    }

    /// Waits until a session has ended, also while [`Self::next`] is not asked.
    pub(super) async fn ended(&self, session: u64) {
        poll_fn(|context| {
            let mut state = self.lock();
            if state.session != Some(session) {
                return Poll::Ready(());
            }
            state.wait(context);
            Poll::Pending
        })
        .await;
    }
}

fn cost(frame: &Frame) -> usize {
    frame.payload_len() + (1 + frame.requests.len()) * REQUEST_COST
}
