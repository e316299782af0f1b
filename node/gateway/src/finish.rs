//! Writes that end even when nobody waits for them any more.

use crate::device::BoxFuture;
use crate::error::GatewayError;
use futures::FutureExt;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::runtime::Handle;

/// A write that, once begun, runs to its end: dropped in the middle, it goes on as a task of its
/// own, so that its range lock is held until the outcome is known. Not being a task from the start
/// saves the change of threads that a small write would mostly consist of.
pub(crate) struct Finish {
    future: Option<BoxFuture<Result<(), GatewayError>>>,
    begun: bool,
    runtime: Handle,
}

impl Finish {
    pub(crate) fn new(
        runtime: Handle,
        future: impl Future<Output = Result<(), GatewayError>> + Send + 'static,
    ) -> Self {
        Self { future: Some(future.boxed()), begun: false, runtime }
    }
}

impl Future for Finish {
    type Output = Result<(), GatewayError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Taken out while it runs: if it panics, there is nothing left to go on with.
        let Some(mut future) = self.future.take() else {
            return Poll::Ready(Err(GatewayError::Internal));
        };
        self.begun = true;
        let poll = future.poll_unpin(cx);
        if poll.is_pending() {
            self.future = Some(future);
        }
        poll
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        if let Some(future) = self.future.take()
            && self.begun
        {
            self.runtime.spawn(async move {
                if let Err(error) = future.await {
                    tracing::warn!(%error, "a write failed after its client had left");
                }
            });
        }
    }
}
