//! The one thread that changes a store.

use super::Job;
use super::replies::ReplySender;
use super::space::SpaceWatch;
use crate::clock;
use smalti_rowcommit::StoreCore;
use smalti_rowcommit::msg::Reply;
use smalti_storage::store::{Change, ShardStore, StoreError};
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};

/// Frames that one batch takes at most: it bounds how long the first of them waits.
const BATCH_FRAMES: usize = 64;

/// A batch with so many bytes of records takes no further frame.
const BATCH_BYTES: usize = 8 << 20;

pub(super) struct Writer {
    core: StoreCore,
    store: Arc<dyn ShardStore>,
    jobs: mpsc::Receiver<Job>,
    adopted: Arc<Notify>,
    space: SpaceWatch,
}

impl Writer {
    /// For a store and its core; every map that it has made durable is announced in `adopted`.
    pub(super) fn new(
        core: StoreCore,
        store: Arc<dyn ShardStore>,
        jobs: mpsc::Receiver<Job>,
        adopted: Arc<Notify>,
    ) -> Self {
        Self { core, store, jobs, adopted, space: SpaceWatch::default() }
    }

    /// Runs until told to stop or everybody has gone. It waits for jobs as a task does, and for the
    /// disk as a thread does: it needs a thread of its own.
    ///
    /// # Errors
    /// When the disk failed: what was acknowledged is safe, and nothing more may be.
    pub(super) async fn run(mut self) -> Result<(), StoreError> {
        let mut answers: Vec<(ReplySender, Reply)> = Vec::new();
        let mut stop = false;
        while !stop {
            let mut has_new_map = false;
            let mut bytes = 0;
            // With nothing to do it goes on letting go of what nobody needs.
            let first = match self.jobs.try_recv() {
                Err(mpsc::error::TryRecvError::Empty) if self.core.is_collecting() => None,
                Err(_) => match self.jobs.recv().await {
                    Some(job) => Some(job),
                    None => break,
                },
                Ok(job) => Some(job),
            };
            let mut next = first;
            for taken in 1.. {
                let Some(job) = next else { break };
                match job {
                    Job::Frame { from, frame, reply, room } => {
                        bytes += frame.payload_len();
                        #[cfg(test)]
                        let noted =
                            (frame.volume, frame.session, crate::tests::probe::print(&frame));
                        let answer = self.core.handle(clock::now(), from, frame)?;
                        #[cfg(test)]
                        crate::tests::probe::served(
                            self.store.opened().id,
                            noted.0,
                            noted.1,
                            noted.2,
                            answer.as_ref(),
                        );
                        if let Some(answer) = answer {
                            answers.push((reply, answer));
                        }
                        drop(room);
                    }
                    Job::Map(map) => {
                        self.core.set_map(&map)?;
                        has_new_map = true;
                    }
                    Job::LookAtSpace => self.look_at_space()?,
                    Job::Stop => stop = true,
                }
                if taken >= BATCH_FRAMES || bytes >= BATCH_BYTES || stop {
                    break;
                }
                next = self.jobs.try_recv().ok();
            }
            self.core.collect()?;
            let (batch, _) = self.core.take_batch();
            if !batch.changes.is_empty() {
                self.space.took(batch.changes.iter().map(record_bytes).sum());
                self.store.commit(batch)?;
            }
            self.core.committed();
            if self.space.is_due() {
                self.look_at_space()?;
            }
            for (to, answer) in answers.drain(..) {
                to.offer(answer);
            }
            if has_new_map {
                self.adopted.notify_waiters();
            }
        }
        if self.core.is_vetted() {
            return self.store.close();
        }
        tracing::info!(
            "the store was not compared since it came up: it ends without a clean marker"
        );
        Ok(())
    }

    /// By the clock, for others may fill the disk or free it; and with every few megabytes, for
    /// this store may do so faster than the clock asks.
    fn look_at_space(&mut self) -> Result<(), StoreError> {
        let space = self.store.space()?;
        if let Some(low) = self.space.saw(space) {
            let mib = space.free >> 20;
            if low {
                tracing::warn!(mib, "the disk is full: new data is refused");
            } else {
                tracing::info!(mib, "the disk has room again");
            }
            self.core.set_space_low(low);
        }
        Ok(())
    }
}

fn record_bytes(change: &Change) -> u64 {
    match change {
        Change::PutVersion { record, .. } => record.len() as u64,
        _ => 0,
    }
}
