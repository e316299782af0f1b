//! Faults and changes at random, round after round, under a load that is verified.
//!
//! A round is a few steps, one fault at most among them, and ends when the cluster is well again by itself:
//! no more is promised than that one fault at a time is survived, and a second one while the first is being
//! healed may be one too many. What is drawn follows from the seed; how steps and clients meet does not.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::files;
use crate::load::{Load, LoadConfig};
use crate::pattern::next_random;
use crate::process::until;
use crate::report::say;
use crate::spec::Spec;
use crate::status::Status;

/// A round that is over has the cluster well again within this.
const HEAL: Duration = Duration::from_secs(300);
/// A command is carried out within this, though nodes have just been killed.
const TAKEN: Duration = Duration::from_secs(90);
/// The cluster is well once it has said so for this long: what it says right after a fault may be from
/// before it.
const WELL_FOR: Duration = Duration::from_secs(4);
/// How long a client waits for an answer in the worst case: all nodes are killed, and one store is empty.
const GIVE_UP: Duration = Duration::from_secs(240);
/// One byte in so many is flipped in files that rot.
const ROT_EVERY: u64 = 1 << 16;
/// Files that rot have as many bytes at least: in smaller ones hardly any is flipped.
const ROT_LEN: u64 = 2 * ROT_EVERY;
/// So many files rot at once.
const ROT_FILES: usize = 2;
/// Everything that can be drawn.
const STEPS: [Step; 14] = [
    Step::Kill,
    Step::Stop,
    Step::Freeze,
    Step::EmptyStore,
    Step::EmptyNode,
    Step::Rot,
    Step::KillMany,
    Step::Drain,
    Step::Undrain,
    Step::Weigh,
    Step::Label,
    Step::PauseMoves,
    Step::Scrub,
    Step::OtherVolume,
];

/// One thing that is done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// SIGKILL, and started again, at once or later.
    Kill,
    /// SIGTERM, the same.
    Stop,
    /// SIGSTOP, and SIGCONT after a while.
    Freeze,
    /// Killed, its store's folder removed, started again.
    EmptyStore,
    /// The same with its metadata log.
    EmptyNode,
    /// Bytes of its files are flipped while it runs; all is scrubbed in the end, and then its store emptied.
    Rot,
    /// Two nodes or more are killed at the same moment, and start in any order.
    KillMany,
    Drain,
    Undrain,
    Weigh,
    Label,
    PauseMoves,
    Scrub,
    /// Another volume is made and deleted.
    OtherVolume,
}

impl Step {
    fn is_fault(self) -> bool {
        self <= Self::KillMany
    }
}

/// A cluster that is given no rest.
#[derive(Debug)]
pub struct Chaos {
    cluster: Cluster,
    load: Load,
    random: u64,
    drained: BTreeSet<usize>,
    paused: bool,
    /// The node whose files rot in this round.
    rotten: Option<usize>,
}

impl Chaos {
    /// Makes the cluster and starts the load.
    ///
    /// # Errors
    /// When there are fewer than three nodes, or the cluster can not be made.
    pub fn begin(spec: Spec, seed: u64) -> Result<Self> {
        ensure!(spec.nodes >= 3, "{} nodes are fewer than three", spec.nodes);
        let cluster = Cluster::up(spec)?;
        let give_up = GIVE_UP;
        let config = LoadConfig { give_up, ..LoadConfig::new(cluster.targets(), 0, seed) };
        let load = Load::start(config);
        Ok(Self {
            cluster,
            load,
            random: seed,
            drained: BTreeSet::new(),
            paused: false,
            rotten: None,
        })
    }

    /// Does so many rounds, and reads everything through every node in the end.
    ///
    /// # Errors
    /// When data was wrong or an operation got an error, the cluster is not well after a round, or a command
    /// failed that should not.
    pub fn run(mut self, rounds: u64) -> Result<()> {
        for round in 0..rounds {
            self.round(round).with_context(|| format!("in round {round}"))?;
        }
        let Self { mut cluster, load, .. } = self;
        let errors = load.server_errors();
        let mut loaded = load.finish()?;
        ensure!(errors == 0, "{errors} requests were answered with an error");
        for node in 0..cluster.nodes().len() {
            loaded.verify(&cluster.target(node)).with_context(|| format!("through node {node}"))?;
        }
        cluster.down()?;
        cluster.finish()
    }

    fn round(&mut self, round: u64) -> Result<()> {
        self.load.window();
        let mut steps: Vec<Step> = Vec::new();
        for _ in 0..=self.below(4) {
            let step = STEPS[self.below(STEPS.len())];
            if !(step.is_fault() && steps.iter().any(|step| step.is_fault())) {
                steps.push(step);
            }
        }
        let mut told = Vec::new();
        for step in &steps {
            told.push(self.step(*step, round).with_context(|| format!("{step:?}"))?);
            self.wait_some(&[0, 500, 2000]);
        }
        if std::mem::take(&mut self.paused) {
            self.taken(&["moves", "resume"], None)?;
        }
        let since = Instant::now();
        self.well_again()?;
        if let Some(node) = self.rotten.take() {
            self.taken(&["scrub"], None)?;
            self.well_again()?;
            // What no scrub reads may be rotten yet, and would be a second fault later.
            self.empty(node, Step::EmptyStore)?;
            self.cluster.start(node)?;
            self.well_again()?;
        }
        let all_run = (0..self.cluster.nodes().len()).all(|node| self.cluster.is_running(node));
        ensure!(all_run, "a node has ended by itself");
        self.load.progress(10, HEAL)?;
        let errors = self.load.server_errors();
        ensure!(errors == 0, "{errors} requests were answered with an error");
        let (told, after) = (told.join(", "), since.elapsed());
        let times = self.load.window().brief();
        say(self.cluster.spec.test, &format!("{round}: {told}; well after {after:.1?}; {times}"));
        Ok(())
    }

    fn step(&mut self, step: Step, round: u64) -> Result<String> {
        let node = self.below(self.cluster.nodes().len());
        let name = self.cluster.nodes()[node].name.clone();
        match step {
            Step::Kill | Step::Stop => {
                match step {
                    Step::Kill => self.cluster.kill(node)?,
                    _ => self.cluster.stop(node)?,
                }
                let away = self.wait_some(&[0, 200, 1000, 4000, 9000]);
                self.cluster.start(node)?;
                Ok(format!("{step:?} {name} for {away:?}"))
            }
            Step::Freeze => {
                self.cluster.signal(node, Signal::STOP)?;
                let away = self.wait_some(&[300, 1000, 3000, 8000]);
                self.cluster.signal(node, Signal::CONT)?;
                Ok(format!("{step:?} {name} for {away:?}"))
            }
            Step::EmptyStore | Step::EmptyNode => {
                self.empty(node, step)?;
                let away = self.wait_some(&[0, 200, 1000, 4000]);
                self.cluster.start(node)?;
                Ok(format!("{step:?} {name} for {away:?}"))
            }
            Step::Rot => {
                let flipped = self.rot(node)?;
                self.rotten = Some(node);
                Ok(format!("{step:?} {flipped} bytes of {name}"))
            }
            Step::KillMany => {
                let some = self.some_nodes();
                self.cluster.kill_together(&some)?;
                for node in &some {
                    self.wait_some(&[0, 0, 500]);
                    self.cluster.start(*node)?;
                }
                Ok(format!("{step:?} {}", some.len()))
            }
            Step::Drain => {
                // A volume of 2+1 needs three, and those that are left have to take all.
                if self.drained.len() + 3 >= self.cluster.nodes().len() {
                    return Ok("nobody more can be drained".to_owned());
                }
                self.taken(&["node", "drain", &name, "--no-wait"], None)?;
                self.drained.insert(node);
                Ok(format!("{step:?} {name}"))
            }
            Step::Undrain => {
                for node in std::mem::take(&mut self.drained) {
                    let name = self.cluster.nodes()[node].name.clone();
                    self.taken(&["node", "drain", &name, "--undo"], None)?;
                }
                Ok(format!("{step:?}"))
            }
            Step::Weigh => {
                let weight = ["50", "100", "200"][self.below(3)];
                self.taken(&["node", "set", &name, "--weight", weight], None)?;
                Ok(format!("{step:?} {name} {weight}"))
            }
            Step::Label => {
                let own = format!("own{node}");
                let domain = ["r1", "r2", "r3", &own][self.below(4)];
                self.taken(&["node", "set", &name, "--domain", domain], None)?;
                Ok(format!("{step:?} {name} {domain}"))
            }
            Step::PauseMoves => {
                self.paused = !self.paused;
                let word = if self.paused { "pause" } else { "resume" };
                self.taken(&["moves", word], None)?;
                Ok(format!("moves {word}"))
            }
            Step::Scrub => {
                self.taken(&["scrub", "--no-wait"], None)?;
                Ok(format!("{step:?}"))
            }
            Step::OtherVolume => {
                let volume = format!("w{round}");
                self.taken(&["volume", "create", &volume, "--size", "16M"], Some("exists"))?;
                self.taken(&["volume", "delete", &volume, "--yes"], Some("no volume"))?;
                Ok(format!("{step:?}"))
            }
        }
    }

    /// Kills a node and removes what it has.
    fn empty(&mut self, node: usize, step: Step) -> Result<()> {
        let data = self.cluster.data_dir(node)?;
        self.cluster.kill(node)?;
        let gone = if step == Step::EmptyNode { data } else { data.join("store") };
        std::fs::remove_dir_all(&gone).with_context(|| format!("remove {}", gone.display()))
    }

    /// Flips bytes in files of a store that runs; a file that goes away meanwhile is left alone.
    fn rot(&mut self, node: usize) -> Result<u64> {
        let mut found = files::walk(&self.cluster.data_dir(node)?.join("store"))?;
        let is_long = |path: &Path| path.metadata().is_ok_and(|file| file.len() >= ROT_LEN);
        let is_data = |end: &OsStr| end == "blob" || end == "sst";
        found.retain(|path| path.extension().is_some_and(is_data) && is_long(path));
        let mut flipped = 0;
        for _ in 0..ROT_FILES.min(found.len()) {
            let path = found.swap_remove(self.below(found.len()));
            match files::flip(&path, &mut self.random, ROT_EVERY) {
                Ok(bytes) => flipped += bytes,
                Err(_) if !path.exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(flipped)
    }

    /// Two nodes or more, in any order.
    fn some_nodes(&mut self) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.cluster.nodes().len()).collect();
        let count = 2 + self.below(all.len() - 1);
        (0..count).map(|_| all.swap_remove(self.below(all.len()))).collect()
    }

    /// Has a command carried out, as often as it is refused because the cluster does not agree yet. One that
    /// was not answered may have been carried out all the same: then it is refused like this.
    fn taken(&self, words: &[&str], done: Option<&str>) -> Result<()> {
        let mut last = None;
        let taken = until("a command is taken", TAKEN, || match self.cluster.command(words) {
            Ok(_) => Ok(Some(())),
            Err(error) => {
                let text = format!("{error:#}");
                let again = last.is_some() && done.is_some_and(|done| text.contains(done));
                last = Some(text);
                Ok(again.then_some(()))
            }
        });
        taken.with_context(|| last.unwrap_or_default())
    }

    fn well_again(&self) -> Result<()> {
        let mut last = String::from("no status at all");
        let mut since = None;
        let here = |state: &str| state == "up" || state == "draining";
        let is_well = |s: &Status| s.health == "ok" && s.nodes.iter().all(|n| here(&n.state));
        let well = until("the cluster is well again", HEAL, || {
            let status = self.cluster.status();
            last = status.as_ref().map_or_else(|error| format!("{error:#}"), Status::brief);
            let is_well = status.is_ok_and(|status| is_well(&status));
            since = is_well.then(|| since.unwrap_or_else(Instant::now));
            Ok(since.filter(|since| since.elapsed() >= WELL_FOR).map(|_| ()))
        });
        well.with_context(|| self.cluster.explain(&last))
    }

    fn below(&mut self, limit: usize) -> usize {
        (next_random(&mut self.random) % limit as u64) as usize
    }

    /// Lets one of these times pass, in milliseconds.
    fn wait_some(&mut self, millis: &[u64]) -> Duration {
        let pause = Duration::from_millis(millis[self.below(millis.len())]);
        std::thread::sleep(pause);
        pause
    }
}
