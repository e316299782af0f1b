//! A verified load that follows the volume from node to node.
//!
//! Each thread owns a range of blocks, has one request in flight, and when its connection goes
//! away it connects to the next node and tries again, as a client with several paths would. The
//! time from the first attempt to the answer, reconnecting included, is what a user waits: the
//! longest of those times is the pause.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::histogram::Histogram;
use crate::model::Model;
use crate::nbd::{Client, Error, FUA, Target};
use crate::pattern::{BLOCK, fill, look, next_random};
use crate::process::until;

/// At most this many blocks in one request.
const SPAN_MAX: u64 = 16;
/// NBD's number for a server that is about to close the connection.
const SHUTTING_DOWN: u32 = 108;
/// Between two attempts to connect, so that a refusing port does not burn a core.
const RETRY: Duration = Duration::from_millis(20);
/// Findings kept for the message; the first ones tell the story.
const FINDINGS_MAX: usize = 8;

/// How to load a volume.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// Where the volume is served, in the order in which they are tried.
    pub targets: Vec<Target>,
    /// Index of the target to begin with.
    pub first: usize,
    /// Threads, each with a connection.
    pub threads: u64,
    /// Blocks of each thread.
    pub blocks: u64,
    /// First block used.
    pub base: u64,
    /// Seed of contents and offsets.
    pub seed: u64,
    /// A connection this long silent is given up.
    pub io_limit: Duration,
    /// An operation that no target answers for this long fails the load.
    pub give_up: Duration,
}

impl LoadConfig {
    /// Four threads of 512 blocks each.
    #[must_use]
    pub fn new(targets: Vec<Target>, first: usize, seed: u64) -> Self {
        Self {
            targets,
            first,
            threads: 4,
            blocks: 512,
            base: 0,
            seed,
            io_limit: Duration::from_secs(5),
            give_up: Duration::from_secs(60),
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    quiet: AtomicBool,
    prefer: AtomicUsize,
    reconnects: AtomicU64,
    server_errors: AtomicU64,
    done: Vec<AtomicU64>,
    window: Mutex<Histogram>,
    findings: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<Model>>>,
    total: Histogram,
    config: LoadConfig,
}

/// What a load left behind.
#[derive(Debug)]
pub struct Loaded {
    /// What the volume must hold.
    pub model: Model,
    /// Times of all operations.
    pub times: Histogram,
    /// Connections made after the first of each thread.
    pub reconnects: u64,
    /// Requests the server answered with an error.
    pub server_errors: u64,
    seed: u64,
}

impl Load {
    /// Starts the threads.
    #[must_use]
    pub fn start(config: LoadConfig) -> Self {
        let shared = Arc::new(Shared {
            prefer: AtomicUsize::new(config.first),
            done: (0..config.threads).map(|_| AtomicU64::new(0)).collect(),
            ..Shared::default()
        });
        let spawn = |index: u64| {
            let worker = Worker {
                shared: Arc::clone(&shared),
                config: config.clone(),
                index,
                random: config.seed.wrapping_add(index.wrapping_mul(0x1234_5678_9abc_def1)),
                client: None,
                target: config.first,
                connected_before: false,
                model: Model::default(),
                seq: 0,
            };
            std::thread::spawn(move || worker.run())
        };
        let threads = (0..config.threads).map(spawn).collect();
        Self { shared, threads, total: Histogram::default(), config }
    }

    /// Operations finished by the slowest thread.
    #[must_use]
    pub fn slowest(&self) -> u64 {
        self.shared.done.iter().map(|d| d.load(Ordering::Relaxed)).min().unwrap_or(0)
    }

    /// Waits until every thread has finished `more` operations from now.
    ///
    /// # Errors
    /// When a thread has ended, a finding is there, or `limit` has passed.
    pub fn progress(&self, more: u64, limit: Duration) -> Result<()> {
        let start: Vec<u64> = self.shared.done.iter().map(|d| d.load(Ordering::Relaxed)).collect();
        until("the load makes progress", limit, || {
            ensure!(
                !self.threads.iter().any(JoinHandle::is_finished),
                "a load thread ended early: {}",
                self.findings().join("; ")
            );
            ensure!(self.findings().is_empty(), "wrong data: {}", self.findings().join("; "));
            let now = self.shared.done.iter().map(|d| d.load(Ordering::Relaxed));
            Ok(now.zip(&start).all(|(now, then)| now >= then + more).then_some(()))
        })
    }

    /// Times since the last call.
    pub fn window(&mut self) -> Histogram {
        let window = std::mem::take(&mut *lock(&self.shared.window));
        self.total.merge(&window);
        window
    }

    /// Requests answered with an error so far.
    #[must_use]
    pub fn server_errors(&self) -> u64 {
        self.shared.server_errors.load(Ordering::Relaxed)
    }

    /// Connections made so far after the first of each thread.
    #[must_use]
    pub fn reconnects(&self) -> u64 {
        self.shared.reconnects.load(Ordering::Relaxed)
    }

    /// Where a thread goes when it has lost its connection.
    pub fn prefer(&self, target: usize) {
        self.shared.prefer.store(target, Ordering::Relaxed);
    }

    fn findings(&self) -> Vec<String> {
        lock(&self.shared.findings).clone()
    }

    /// Lets operations in flight fail without trying again: everything is about to be killed.
    pub fn let_go(&self) {
        self.shared.quiet.store(true, Ordering::Relaxed);
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Ends the load.
    ///
    /// # Errors
    /// When any read showed wrong data, or an operation was never answered.
    pub fn finish(mut self) -> Result<Loaded> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut model = Model::default();
        let mut failed = None;
        for thread in std::mem::take(&mut self.threads) {
            match thread.join().map_err(|_| anyhow!("a load thread panicked"))? {
                Ok(part) => model.merge(part),
                Err(error) => failed = Some(error),
            }
        }
        self.window();
        let findings = self.findings();
        ensure!(
            findings.is_empty(),
            "wrong data (seed {}): {}",
            self.config.seed,
            findings.join("; ")
        );
        if let Some(error) = failed {
            return Err(error);
        }
        Ok(Loaded {
            model,
            times: std::mem::take(&mut self.total),
            reconnects: self.reconnects(),
            server_errors: self.server_errors(),
            seed: self.config.seed,
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Loaded {
    /// Reads every block that was written and compares.
    ///
    /// # Errors
    /// When a block cannot be read or holds what no order of the writes explains.
    pub fn verify(&mut self, target: &Target) -> Result<u64> {
        let mut client = Client::connect(target, Duration::from_secs(30))
            .with_context(|| format!("connect to {} to verify", target.uri()))?;
        let mut findings = Vec::new();
        let mut buf = vec![0; BLOCK];
        let blocks = self.model.block_numbers();
        for block in &blocks {
            client
                .read(block * BLOCK as u64, &mut buf)
                .with_context(|| format!("read block {block} to verify"))?;
            if let Err(finding) = self.model.observed(*block, &look(self.seed, *block, &buf)) {
                findings.push(finding);
            }
        }
        ensure!(
            findings.is_empty(),
            "{} of {} blocks wrong (seed {}): {}",
            findings.len(),
            blocks.len(),
            self.seed,
            findings[..findings.len().min(FINDINGS_MAX)].join("; ")
        );
        Ok(blocks.len() as u64)
    }
}

struct Worker {
    shared: Arc<Shared>,
    config: LoadConfig,
    index: u64,
    random: u64,
    client: Option<Client>,
    target: usize,
    connected_before: bool,
    model: Model,
    seq: u64,
}

impl Worker {
    fn run(mut self) -> Result<Model> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let dice = next_random(&mut self.random);
            let span = if dice.is_multiple_of(8) { 1 + (dice >> 8) % SPAN_MAX } else { 1 };
            let room = self.config.blocks - span;
            let first =
                self.config.base + self.index * self.config.blocks + (dice >> 16) % (room + 1);
            let started = Instant::now();
            let done = match (dice >> 4) % 8 {
                0 => self.persist(started, |w, c| w.try_flush(c))?,
                1..=3 => self.persist(started, |w, c| w.try_read(c, first, span))?,
                n => {
                    let flags = if n == 4 { FUA } else { 0 };
                    self.persist(started, |w, c| w.try_write(c, first, span, flags))?
                }
            };
            if done {
                lock(&self.shared.window).add(started.elapsed());
                self.shared.done[self.index as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(self.model)
    }

    /// Tries until it is done; false when the load was told to let go.
    fn persist(
        &mut self,
        started: Instant,
        mut attempt: impl FnMut(&mut Self, &mut Client) -> Result<(), Error>,
    ) -> Result<bool> {
        loop {
            let outcome = match self.client.take() {
                Some(client) => Ok(client),
                None => self.connect(),
            };
            let error = match outcome {
                Ok(mut client) => match attempt(self, &mut client) {
                    Ok(()) => {
                        self.client = Some(client);
                        return Ok(true);
                    }
                    // An announced end is an end, not a failure: somebody else will serve.
                    Err(Error::Server(errno)) if errno != SHUTTING_DOWN => {
                        self.shared.server_errors.fetch_add(1, Ordering::Relaxed);
                        self.client = Some(client);
                        Error::Server(errno)
                    }
                    Err(error) => {
                        self.target = self.shared.prefer.load(Ordering::Relaxed);
                        error
                    }
                },
                Err(error) => {
                    self.target += 1;
                    error
                }
            };
            if self.shared.quiet.load(Ordering::Relaxed) {
                return Ok(false);
            }
            ensure!(
                started.elapsed() < self.config.give_up,
                "no node answered for {:?} (seed {}), last: {error}",
                self.config.give_up,
                self.config.seed
            );
            std::thread::sleep(RETRY);
        }
    }

    fn connect(&mut self) -> Result<Client, Error> {
        let target = &self.config.targets[self.target % self.config.targets.len()];
        let client = Client::connect(target, self.config.io_limit)?;
        if self.connected_before {
            self.shared.reconnects.fetch_add(1, Ordering::Relaxed);
        }
        self.connected_before = true;
        Ok(client)
    }

    fn try_flush(&mut self, client: &mut Client) -> Result<(), Error> {
        client.flush()
    }

    fn try_read(&mut self, client: &mut Client, first: u64, span: u64) -> Result<(), Error> {
        let mut buf = vec![0; span as usize * BLOCK];
        client.read(first * BLOCK as u64, &mut buf)?;
        for (block, bytes) in (first..).zip(buf.chunks_exact(BLOCK)) {
            let seen = look(self.config.seed, block, bytes);
            if let Err(finding) = self.model.observed(block, &seen) {
                let mut findings = lock(&self.shared.findings);
                if findings.len() < FINDINGS_MAX {
                    findings.push(finding);
                }
            }
        }
        Ok(())
    }

    fn try_write(
        &mut self,
        client: &mut Client,
        first: u64,
        span: u64,
        flags: u16,
    ) -> Result<(), Error> {
        // A new number for every attempt: the one before may still take effect.
        self.seq += 1;
        let mut buf = vec![0; span as usize * BLOCK];
        for (block, bytes) in (first..).zip(buf.chunks_exact_mut(BLOCK)) {
            fill(self.config.seed, block, self.seq, bytes);
            self.model.sent(block, self.seq);
        }
        client.write(first * BLOCK as u64, &buf, flags)?;
        (first..first + span).for_each(|block| self.model.acknowledged(block, self.seq));
        Ok(())
    }
}
