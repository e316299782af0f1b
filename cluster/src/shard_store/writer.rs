//! The one thread that changes a store.

use super::Job;
use super::pace::Pace;
use super::replies::ReplySender;
use super::rewriting::Rewriting;
use super::space::{SpaceWatch, StoreSpace};
use crate::clock;
use smalti_rowcommit::msg::Reply;
use smalti_rowcommit::store::read::Fence;
use smalti_rowcommit::store::{Room, StoreConfig};
use smalti_rowcommit::{StoreCore, Time};
use smalti_storage::store::{Change, ShardStore, StoreError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};

/// Frames that one batch takes at most: it bounds how long the first of them waits.
const BATCH_FRAMES: usize = 64;

/// A batch with so many bytes of records takes no further frame.
const BATCH_BYTES: usize = 8 << 20;

pub(super) struct Writer {
    store: Arc<dyn ShardStore>,
    config: StoreConfig,
    /// When the process came up.
    boot: Time,
    fence: Arc<Fence>,
    jobs: mpsc::Receiver<Job>,
    waiting: Waiting,
    space: SpaceWatch,
    pace: Pace,
    rewriting: Rewriting,
}

/// Who waits for the writer.
pub(super) struct Waiting {
    /// For the store's admission.
    pub(super) admitted: watch::Sender<bool>,
    /// For a map that is durable.
    pub(super) adopted: Arc<Notify>,
    /// For what is seen of the disk.
    pub(super) space: watch::Sender<StoreSpace>,
    /// For how long it takes.
    pub(super) pace: watch::Sender<Option<Duration>>,
    /// For whether it rewrites.
    pub(super) rewrites: watch::Sender<bool>,
}

impl Writer {
    /// For a store whose readers look at `fence`.
    pub(super) fn new(
        store: Arc<dyn ShardStore>,
        config: StoreConfig,
        fence: Arc<Fence>,
        jobs: mpsc::Receiver<Job>,
        waiting: Waiting,
    ) -> Self {
        let boot = clock::now();
        Self {
            store,
            config,
            boot,
            fence,
            jobs,
            waiting,
            space: SpaceWatch::default(),
            pace: Pace::default(),
            rewriting: Rewriting::default(),
        }
    }

    /// Waits for the store's admission: what it is to be taken for is not known before. `None`: the
    /// process is ending, and nothing was changed.
    ///
    /// It is done here, so that a store which is to end is admitted before its end or not at all: a
    /// clean marker under the name of this run is for those that this run has served in.
    async fn admitted(&mut self) -> Result<Option<StoreCore>, StoreError> {
        let mut known = None;
        loop {
            match self.jobs.recv().await {
                Some(Job::Admitted(admission)) => {
                    self.store.admit(admission)?;
                    break;
                }
                Some(Job::Map(map)) => known = Some(map),
                Some(Job::LookAtSpace | Job::Around(_)) => {}
                Some(Job::Frame { from, .. }) => {
                    tracing::error!(%from, "a frame came before the store was admitted");
                }
                Some(Job::Stop) | None => return Ok(None),
            }
        }
        let (store, fence) = (Arc::clone(&self.store), Arc::clone(&self.fence));
        let mut core = StoreCore::new(store, self.config, self.boot).with_fence(fence);
        if let Some(map) = known {
            core.set_map(&map)?;
        }
        // Whoever is told that it serves is told what room there is.
        self.look_at_space(&mut core)?;
        // Their frames come behind this job.
        self.waiting.admitted.send_replace(true);
        Ok(Some(core))
    }

    /// Runs until told to stop or everybody has gone. It waits for jobs as a task does, and for the
    /// disk as a thread does: it needs a thread of its own.
    ///
    /// # Errors
    /// When the disk failed: what was acknowledged is safe, and nothing more may be.
    pub(super) async fn run(mut self) -> Result<(), StoreError> {
        let Some(mut core) = self.admitted().await? else {
            return if self.store.opened().clean { self.store.close() } else { Ok(()) };
        };
        let mut answers: Vec<(ReplySender, Reply)> = Vec::new();
        let mut stop = false;
        while !stop {
            let mut has_new_map = false;
            let mut bytes = 0;
            // With nothing to do it goes on letting go of what nobody needs.
            let first = match self.jobs.try_recv() {
                Err(mpsc::error::TryRecvError::Empty) if core.is_collecting() => None,
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
                        let answer = core.handle(clock::now(), from, frame)?;
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
                        core.set_map(&map)?;
                        has_new_map = true;
                    }
                    Job::LookAtSpace => self.look_at_space(&mut core)?,
                    Job::Around(around) => {
                        self.rewriting.set_around(around);
                        self.pace_rewriting();
                    }
                    Job::Admitted(_) => tracing::error!("the store was admitted already"),
                    Job::Stop => stop = true,
                }
                if taken >= BATCH_FRAMES || bytes >= BATCH_BYTES || stop {
                    break;
                }
                next = self.jobs.try_recv().ok();
            }
            core.collect()?;
            let (batch, _) = core.take_batch();
            if !batch.changes.is_empty() {
                let (begun, bytes) = (clock::now(), batch.changes.iter().map(record_bytes).sum());
                self.store.commit(batch)?;
                self.space.took(bytes);
                let now = clock::now();
                self.pace.note(bytes, begun, now);
                self.rewriting.batch(begun, now);
                self.pace_rewriting();
            }
            core.committed();
            if self.space.is_due() {
                self.look_at_space(&mut core)?;
            }
            for (to, answer) in answers.drain(..) {
                to.offer(answer);
            }
            if has_new_map {
                self.waiting.adopted.notify_waiters();
            }
        }
        if core.is_vetted() {
            return self.store.close();
        }
        tracing::info!(
            "the store was not compared since it came up: it ends without a clean marker"
        );
        Ok(())
    }

    fn pace_rewriting(&mut self) {
        let now = clock::now();
        self.rewriting.pace(&*self.store, now);
        self.waiting.rewrites.send_replace(self.rewriting.is_at_work(now));
    }

    /// By the clock, for others may fill the disk or free it; and with every few megabytes, for
    /// this store may do so faster than the clock asks.
    fn look_at_space(&mut self, core: &mut StoreCore) -> Result<(), StoreError> {
        let space = self.store.space()?;
        if let Some(room) = self.space.saw(space) {
            let mib = space.free >> 20;
            match room {
                Room::All => tracing::info!(mib, "the disk has room again"),
                Room::Freeing => tracing::warn!(mib, "the disk is full: new data is refused"),
                Room::Nothing => {
                    tracing::warn!(mib, "the disk is full: new data and trims are refused");
                }
            }
            core.set_room(room);
        }
        let scarce = self.space.room() != Room::All || space.room() == 0;
        self.rewriting.set_urgent(scarce || self.store.is_behind());
        self.pace_rewriting();
        self.waiting.space.send_replace(StoreSpace::of(space, self.space.room()));
        self.waiting.pace.send_replace(self.pace.mean(clock::now()));
        Ok(())
    }
}

fn record_bytes(change: &Change) -> u64 {
    match change {
        Change::PutVersion { record, .. } => record.len() as u64,
        _ => 0,
    }
}
