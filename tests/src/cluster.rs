//! A local cluster of real node processes: made, killed, frozen, restarted, looked at.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::files;
use crate::nbd::{Address, Target};
use crate::process::{self, Output, cmdline, signal, tail, until};
use crate::spec::Spec;
use crate::status::{ClusterFile, NbdEntry, NodeEntry, Status, points_at};

/// A cluster of fresh nodes is up and its volume made within this.
pub const UP_LIMIT: Duration = Duration::from_secs(120);
/// All rows are in sync again within this after the last fault.
pub const HEAL_LIMIT: Duration = Duration::from_secs(120);
/// Any single command of ours ends within this.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Where the program is: `SMALTI_BIN`, or beside this test in the target folder.
///
/// # Errors
/// When there is none.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SMALTI_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "SMALTI_BIN is {}, which is no file", path.display());
        return Ok(path);
    }
    let exe = std::env::current_exe().context("find this test's own file")?;
    let beside = exe.ancestors().skip(1).take(2).map(|folder| folder.join("smalti"));
    beside.into_iter().find(|path| path.is_file()).with_context(|| {
        format!(
            "no `smalti` beside {}: build it with `cargo build --release -p smalti-node` or set \
             SMALTI_BIN",
            exe.display()
        )
    })
}

/// Runs `smalti` with these words.
///
/// # Errors
/// When it cannot be started or does not end in time; not when it fails.
pub fn smalti(words: &[&str], limit: Duration) -> Result<Output> {
    process::run(Command::new(program()?).args(words), limit)
}

/// A running local cluster. Dropping it without [`Cluster::finish`] means the test failed: the
/// nodes are stopped, the folder is kept and the ends of the logs are printed.
#[derive(Debug)]
pub struct Cluster {
    /// What it was made from.
    pub spec: Spec,
    home: PathBuf,
    nodes: Vec<NodeEntry>,
    restarted: Vec<Option<Child>>,
    /// Words before a node's own command line, for one on a machine of its own.
    enter: BTreeMap<usize, Vec<String>>,
    recovery_shares: Vec<String>,
    finished: bool,
}

impl Cluster {
    /// Makes a folder and a healthy cluster in it.
    ///
    /// # Errors
    /// When `smalti up` fails, or `cluster.json` is not as documented.
    pub fn up(spec: Spec) -> Result<Self> {
        // Unix socket paths hold 107 bytes, so the folder stands high up with a short name.
        let base = std::env::var_os("SMALTI_TEST_DIR").map_or_else(|| "/tmp".into(), PathBuf::from);
        Self::up_in(&base, spec)
    }

    /// The same in a folder made in `base`.
    ///
    /// # Errors
    /// As [`Cluster::up`].
    pub fn up_in(base: &Path, spec: Spec) -> Result<Self> {
        let home = make_home(base)?;
        let restarted = (0..spec.nodes).map(|_| None).collect();
        let (nodes, enter, recovery_shares) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut cluster =
            Self { restarted, spec, home, nodes, enter, recovery_shares, finished: false };
        cluster.run_up()?;
        Ok(cluster)
    }

    /// A cluster of nodes that are [adopted](Self::adopt), which `smalti up` knows nothing of: whoever
    /// made it asks its nodes one by one, and stops them before it ends.
    ///
    /// # Errors
    /// When its folder can not be made.
    pub fn bare(spec: Spec) -> Result<Self> {
        let base = std::env::var_os("SMALTI_TEST_DIR").map_or_else(|| "/tmp".into(), PathBuf::from);
        let home = make_home(&base)?;
        std::fs::create_dir(home.join("c"))?;
        let (nodes, restarted, enter) = (Vec::new(), Vec::new(), BTreeMap::new());
        let recovery_shares = Vec::new();
        Ok(Self { restarted, spec, home, nodes, enter, recovery_shares, finished: false })
    }

    /// Runs `smalti up --detach` on the folder: the first time, or to resume.
    ///
    /// # Errors
    /// When it fails, or `cluster.json` is not as documented.
    pub fn run_up(&mut self) -> Result<()> {
        let (nodes, dir) = (self.spec.nodes.to_string(), self.dir_text());
        let mut words = vec!["up", "--nodes", &nodes, "--dir", &dir];
        words.extend(["--volume", self.spec.volume, "--size", self.spec.size]);
        let numbers;
        if let Some((data, parity)) = self.spec.geometry {
            numbers = (data.to_string(), parity.to_string());
            words.extend(["--data", &numbers.0, "--parity", &numbers.1]);
        }
        let least = self.spec.min_insync.map(|least| least.to_string());
        if let Some(least) = &least {
            words.extend(["--min-insync", least]);
        }
        let recovery = self.spec.recovery.filter(|_| !self.dir().exists());
        let recovery = recovery.map(|(shares, needed)| (shares.to_string(), needed.to_string()));
        if let Some((shares, needed)) = &recovery {
            words.extend(["--recovery-shares", shares, "--recovery-threshold", needed]);
        }
        words.push("--detach");
        let program = self.spec.program.clone().map_or_else(program, Ok)?;
        let said = process::run(Command::new(program).args(&words), UP_LIMIT)?.ok()?;
        if recovery.is_some() {
            let lines = said.lines().filter(|line| line.starts_with("smalti-recovery-"));
            self.recovery_shares = lines.map(str::to_owned).collect();
        }
        let file = self.file()?;
        ensure!(
            file.nodes.len() == self.spec.nodes,
            "cluster.json has {} nodes, not {}",
            file.nodes.len(),
            self.spec.nodes
        );
        ensure!(
            file.volumes.iter().any(|v| v == self.spec.volume),
            "cluster.json lists volumes {:?} without {}",
            file.volumes,
            self.spec.volume
        );
        self.nodes = file.nodes;
        Ok(())
    }

    /// Takes a node that `smalti join` or `smalti init` made up as the next one; it does not run yet. `dir` is its folder.
    ///
    /// # Errors
    /// When its config lacks what is documented.
    pub fn adopt(&mut self, dir: &Path) -> Result<usize> {
        let config = dir.join("node.toml");
        let text = std::fs::read_to_string(&config)
            .with_context(|| format!("read {}", config.display()))?;
        let value = |key: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("{key} = ")));
            let value = line.and_then(|line| line.split_once(" = ")).map(|(_, value)| value);
            value.map(|value| value.trim_matches('"').to_owned())
        };
        let needed = |key: &str| value(key).with_context(|| format!("the config has no {key}"));
        let words = [program()?, "serve".into(), "--config".into(), config];
        let argv = words.map(|word| word.display().to_string()).to_vec();
        // The first lines of these names are those of the addresses; sockets come after them.
        self.nodes.push(NodeEntry {
            name: needed("name")?,
            id: needed("node")?.parse::<u64>()?.into(),
            pid: 0,
            argv,
            dir: dir.to_owned(),
            quic: needed("quic")?,
            api: needed("api")?,
            nbd: NbdEntry { unix: dir.join("nbd.sock"), tcp: needed("nbd")? },
        });
        self.restarted.push(None);
        Ok(self.nodes.len() - 1)
    }

    /// From now on a node is started by its command line behind these words, which must become it.
    pub fn enter(&mut self, node: usize, words: Vec<String>) {
        self.enter.insert(node, words);
    }

    /// The config file of a node.
    ///
    /// # Errors
    /// When its command line names none.
    pub fn config(&self, node: usize) -> Result<PathBuf> {
        let argv = &self.nodes[node].argv;
        let at = argv.iter().position(|word| word == "--config").context("argv has --config")?;
        Ok(argv.get(at + 1).context("--config has a value")?.into())
    }

    /// The `data_dir` of a node's config file, which is relative to the file.
    ///
    /// # Errors
    /// When there is no such file, line or folder.
    pub fn data_dir(&self, node: usize) -> Result<PathBuf> {
        let config = self.config(node)?;
        let text = std::fs::read_to_string(&config)?;
        let line = text.lines().find(|line| line.starts_with("data_dir"));
        let value = line.and_then(|line| line.split('"').nth(1)).context("config has data_dir")?;
        let path = config.parent().context("config is in a folder")?.join(value);
        ensure!(path.is_dir(), "{} is no folder", path.display());
        Ok(path)
    }

    /// The cluster's folder.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.home.join("c")
    }

    /// A folder for the test's own files, away from the nodes' ones.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn scratch(&self) -> Result<PathBuf> {
        let path = self.home.join("s");
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    fn dir_text(&self) -> String {
        self.dir().display().to_string()
    }

    /// Reads `cluster.json`.
    ///
    /// # Errors
    /// When it is not there or lacks a documented field.
    pub fn file(&self) -> Result<ClusterFile> {
        let path = self.dir().join("cluster.json");
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// The recovery shares that the first `up` has printed.
    #[must_use]
    pub fn recovery_shares(&self) -> &[String] {
        &self.recovery_shares
    }

    /// The nodes as of the last `up`.
    #[must_use]
    pub fn nodes(&self) -> &[NodeEntry] {
        &self.nodes
    }

    /// The volume through a node's Unix socket.
    #[must_use]
    pub fn target(&self, node: usize) -> Target {
        Target::unix(&self.nodes[node].nbd.unix, self.spec.volume)
    }

    /// The volume through a node's TCP port.
    #[must_use]
    pub fn tcp_target(&self, node: usize) -> Target {
        Target {
            address: Address::Tcp(self.nodes[node].nbd.tcp.clone()),
            export: self.spec.volume.to_owned(),
        }
    }

    /// The volume through every node.
    #[must_use]
    pub fn targets(&self) -> Vec<Target> {
        (0..self.nodes.len()).map(|i| self.target(i)).collect()
    }

    /// NBD URI of the volume through a node's Unix socket.
    #[must_use]
    pub fn uri(&self, node: usize) -> String {
        self.target(node).uri()
    }

    /// The process id of a node that is thought to run.
    #[must_use]
    pub fn pid(&self, node: usize) -> u32 {
        self.restarted[node].as_ref().map_or(self.nodes[node].pid, Child::id)
    }

    /// Whether the process behind the node's pid is that node, by its command line.
    #[must_use]
    pub fn is_running(&self, node: usize) -> bool {
        // The program's path may be spelled in another way, so the first word is left out.
        let arguments = self.nodes[node].argv.get(1..);
        cmdline(self.pid(node)).is_some_and(|words| words.get(1..) == arguments)
    }

    /// Sends a signal to a node after making sure that its pid still is that node.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, node: usize, what: Signal) -> Result<()> {
        let pid = self.pid(node);
        ensure!(
            self.is_running(node),
            "process {pid} is not {}: it is {:?}, expected {:?}",
            self.nodes[node].name,
            cmdline(pid),
            self.nodes[node].argv
        );
        signal(pid, what)
    }

    /// Kills a node with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, node: usize) -> Result<()> {
        self.signal(node, Signal::KILL)?;
        self.wait_gone(node)
    }

    /// Stops a node in order and waits until it is gone.
    ///
    /// # Errors
    /// When it does not run, or does not end, or in another way.
    pub fn stop(&mut self, node: usize) -> Result<()> {
        self.signal(node, Signal::TERM)?;
        self.wait_gone(node)?;
        let mark = self.data_dir(node)?.join("node.pid");
        let left = std::fs::read_to_string(&mark)?;
        ensure!(left.is_empty(), "node {node} did not end in order: it left {}", mark.display());
        Ok(())
    }

    /// Kills several nodes at the same moment.
    ///
    /// # Errors
    /// When one does not run.
    pub fn kill_together(&mut self, nodes: &[usize]) -> Result<()> {
        nodes.iter().try_for_each(|node| self.signal(*node, Signal::KILL))?;
        nodes.iter().try_for_each(|node| self.wait_gone(*node))
    }

    /// Waits until a node that was sent SIGKILL or SIGTERM is gone.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn wait_gone(&mut self, node: usize) -> Result<()> {
        until("a killed node is gone", COMMAND_LIMIT, || {
            // Only a child of this test is ours to reap; a zombie counts as gone either way.
            if let Some(child) = &mut self.restarted[node] {
                child.try_wait()?;
            }
            Ok((!self.is_running(node)).then_some(()))
        })
    }

    /// Starts a node again by its documented command line, in a session of its own.
    ///
    /// # Errors
    /// When it cannot be started; what it does later is seen in the status.
    pub fn start(&mut self, node: usize) -> Result<()> {
        ensure!(!self.is_running(node), "{} runs already", self.nodes[node].name);
        let enter = self.enter.get(&node).cloned().unwrap_or_default();
        let argv = [enter, self.nodes[node].argv.clone()].concat();
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.log_path(node))
            .context("open the node's log")?;
        // setsid becomes the node: the process id stays.
        let child = Command::new("setsid")
            .args(&argv)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {argv:?}"))?;
        self.restarted[node] = Some(child);
        until("a started node is itself", COMMAND_LIMIT, || {
            if let Some(child) = &mut self.restarted[node]
                && let Some(status) = child.try_wait()?
            {
                bail!("{} ended at once with {status}", self.nodes[node].name);
            }
            Ok(self.is_running(node).then_some(()))
        })
    }

    /// How many lines of a node's log have these words.
    ///
    /// # Errors
    /// When there is no log.
    pub fn logged(&self, node: usize, words: &str) -> Result<usize> {
        let path = self.log_path(node);
        let log = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(String::from_utf8_lossy(&log).lines().filter(|line| line.contains(words)).count())
    }

    fn log_path(&self, node: usize) -> PathBuf {
        let entry = &self.nodes[node];
        let candidates =
            [entry.dir.join("node.log"), self.dir().join(format!("{}.log", entry.name))];
        let [_, fallback] = &candidates;
        candidates.iter().find(|p| p.exists()).unwrap_or(fallback).clone()
    }

    /// What `smalti status --json` says.
    ///
    /// # Errors
    /// When it prints no such thing.
    pub fn status(&self) -> Result<Status> {
        let out = smalti(&["status", "--json", "--dir", &self.dir_text()], COMMAND_LIMIT)?;
        serde_json::from_str(&out.stdout).with_context(|| {
            format!("parse the status: {} {}", tail(&out.stdout, 5), tail(&out.stderr, 5))
        })
    }

    /// Waits until the status satisfies `condition`.
    ///
    /// # Errors
    /// When it has not within `limit`; the last status is in the message, and what `why` says.
    pub fn wait_status(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&Status) -> bool,
    ) -> Result<Status> {
        let mut last = String::from("no status at all");
        let waited = until(what, limit, || match self.status() {
            Ok(status) => {
                last = status.brief();
                Ok(condition(&status).then_some(status))
            }
            // While nodes are down it may be refused; the deadline decides.
            Err(error) => {
                last = format!("{error:#}");
                Ok(None)
            }
        });
        waited.with_context(|| self.explain(&last))
    }

    /// Waits until health is `ok`, every node up, no row behind and every slot in its place.
    ///
    /// # Errors
    /// When it is not within [`HEAL_LIMIT`].
    pub fn wait_ok(&self) -> Result<Status> {
        self.wait_status("the cluster is healthy", HEAL_LIMIT, |s| {
            s.is_at_rest()
                && s.nodes.iter().all(|n| n.state == "up")
                && s.volumes.iter().all(|v| v.health == "ok" && v.rows_behind == Some(0))
        })
    }

    /// Waits until health is `degraded`.
    ///
    /// # Errors
    /// When it is not within [`COMMAND_LIMIT`].
    pub fn wait_degraded(&self) -> Result<Status> {
        self.wait_status("the cluster says it is degraded", COMMAND_LIMIT, |s| {
            s.health == "degraded"
        })
    }

    /// Index of the node that coordinates the volume.
    ///
    /// # Errors
    /// When the status names none.
    pub fn coordinator(&self) -> Result<usize> {
        let status = self.status()?;
        let volume = status
            .volumes
            .iter()
            .find(|v| v.name == self.spec.volume)
            .context("the volume is not in the status")?;
        self.nodes
            .iter()
            .position(|n| points_at(&volume.coordinator, n))
            .with_context(|| format!("coordinator {} is no node", volume.coordinator))
    }

    /// Index of the node that leads the metadata group.
    ///
    /// # Errors
    /// When the status names none.
    pub fn leader(&self) -> Result<usize> {
        let leader = self.status()?.raft.leader;
        self.nodes
            .iter()
            .position(|n| points_at(&leader, n))
            .with_context(|| format!("leader {leader} is no node"))
    }

    /// Stops all nodes cleanly with `smalti down`.
    ///
    /// # Errors
    /// When it fails or leaves a node running.
    pub fn down(&mut self) -> Result<()> {
        let dir = self.dir_text();
        let mut command = Command::new(program()?);
        let mut down = process::start(command.args(["down", "--dir", &dir]))?;
        while down.is_running()? {
            // Nodes that this test restarted are its children: reap them, or they stay zombies
            // for `down` to wait for.
            for child in self.restarted.iter_mut().flatten() {
                child.try_wait()?;
            }
            if down.ran() > COMMAND_LIMIT {
                break;
            }
            std::thread::sleep(process::POLL);
        }
        down.wait(COMMAND_LIMIT)?.ok()?;
        for node in 0..self.nodes.len() {
            if let Some(child) = &mut self.restarted[node] {
                child.try_wait()?;
            }
            ensure!(!self.is_running(node), "`down` left {} running", self.nodes[node].name);
            self.restarted[node] = None;
        }
        Ok(())
    }

    /// Ends a test that went well: stops the nodes, looks through their logs for panics, and
    /// removes the folder.
    ///
    /// # Errors
    /// When stopping fails or a log shows a panic.
    pub fn finish(mut self) -> Result<()> {
        if (0..self.nodes.len()).any(|n| self.is_running(n)) {
            self.down()?;
        }
        for log in self.logs() {
            let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
            let panicked = text.lines().find(|l| l.contains("panicked at"));
            ensure!(panicked.is_none(), "{} has: {panicked:?}", log.display());
        }
        self.finished = true;
        std::fs::remove_dir_all(&self.home).context("remove the cluster's folder")
    }

    fn logs(&self) -> Vec<PathBuf> {
        let is_log = |p: &Path| p.extension().is_some_and(|e| e == "log") && !in_database(p);
        let mut logs = files::walk(&self.dir()).unwrap_or_default();
        logs.retain(|p| is_log(p));
        logs
    }
}

fn make_home(base: &Path) -> Result<PathBuf> {
    let home = tempfile::Builder::new()
        .prefix("smt")
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir_in(base)
        .context("make a folder for the cluster")?;
    Ok(home.keep())
}

/// RocksDB calls its write-ahead files `000012.log`.
fn in_database(path: &Path) -> bool {
    path.file_stem().is_some_and(|s| s.to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        for node in 0..self.nodes.len() {
            if self.is_running(node) {
                // A frozen node hears nothing but SIGKILL, which is all it needs here.
                signal(self.pid(node), Signal::KILL).ok();
            }
            if let Some(child) = &mut self.restarted[node] {
                child.wait().ok();
            }
        }
        eprintln!(
            "[{}] FAILED: the cluster's folder is kept: {}",
            self.spec.test,
            self.home.display()
        );
        for log in self.logs() {
            let text = std::fs::read(&log).unwrap_or_default();
            eprintln!("--- end of {}", log.display());
            eprintln!("{}", tail(&String::from_utf8_lossy(&text), 25));
        }
    }
}
