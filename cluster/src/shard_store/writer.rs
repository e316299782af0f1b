//! The one thread that changes a store.

use super::Job;
use crate::clock;
use smalti_rowcommit::StoreCore;
use smalti_rowcommit::msg::Reply;
use smalti_storage::store::{ShardStore, StoreError};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Frames that one batch takes at most: it bounds how long the first of them waits.
const BATCH_FRAMES: usize = 64;

pub(super) struct Writer {
    pub(super) core: StoreCore,
    pub(super) store: Arc<dyn ShardStore>,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) adopted: watch::Sender<u64>,
}

impl Writer {
    /// Runs until told to stop or everybody has gone.
    ///
    /// # Errors
    /// When the disk failed: what was acknowledged is safe, and nothing more may be.
    pub(super) fn run(mut self) -> Result<(), StoreError> {
        let mut answers: Vec<(mpsc::Sender<Reply>, Reply)> = Vec::new();
        let mut stop = false;
        while !stop {
            let Some(mut job) = self.jobs.blocking_recv() else { break };
            let mut map_version = None;
            for taken in 1.. {
                match job {
                    Job::Frame { from, frame, reply } => {
                        if let Some(answer) = self.core.handle(clock::now(), from, frame)? {
                            answers.push((reply, answer));
                        }
                    }
                    Job::Map(map) => {
                        self.core.set_map(&map)?;
                        map_version = Some(map.version);
                    }
                    Job::SpaceLow(low) => self.core.set_space_low(low),
                    Job::Stop => stop = true,
                }
                if taken >= BATCH_FRAMES || stop {
                    break;
                }
                match self.jobs.try_recv() {
                    Ok(next) => job = next,
                    Err(_) => break,
                }
            }
            let (batch, _) = self.core.take_batch();
            if !batch.changes.is_empty() {
                self.store.commit(batch)?;
            }
            self.core.committed();
            for (to, answer) in answers.drain(..) {
                // A session whose reader has gone, or is so slow that its queue is full, loses
                // the answer; its coordinator finds the store silent and asks again.
                if to.try_send(answer).is_err() {
                    tracing::debug!("a session did not take its answer");
                }
            }
            if let Some(version) = map_version {
                self.adopted.send_replace(version);
            }
        }
        self.store.close()
    }
}
