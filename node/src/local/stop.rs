//! Stopping nodes: those that run, whoever started them with their command line, and nobody else.

use super::layout::{Layout, LayoutNode};
use super::pid_file::{PidFile, is_ending, is_node};
use anyhow::{Context, bail};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

/// A node has this long to end in order. More than it gives itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// A process that was killed has to close its files yet: with all that it has in memory, on a busy
/// machine, that takes a while.
const END_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A running node process, held by a file handle, so that its number can not pass to another.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) name: String,
    pub(super) pid: u32,
    config_path: PathBuf,
    handle: OwnedFd,
}

/// The running nodes of a cluster.
///
/// # Errors
/// A node is run by a process that is not `smalti serve --config` with its very config file.
pub(super) fn running(layout: &Layout) -> anyhow::Result<Vec<Running>> {
    let mut found = Vec::new();
    for node in layout.nodes() {
        found.extend(look(node).with_context(|| format!("look for node {}", node.name()))?);
    }
    Ok(found)
}

/// Left in the cluster's folder by `smalti down`, until it is started again.
const DOWN_MARK: &str = ".down";

/// Tells a `smalti up` in the foreground, whoever's nodes they are, that they are to stay down.
pub(super) fn mark_down(layout: &Layout) {
    let path = layout.dir().join(DOWN_MARK);
    if let Err(error) = std::fs::File::create(&path) {
        // Stopping the nodes is what counts.
        tracing::warn!(%error, path = %path.display(), "can not leave a mark");
    }
}

/// The nodes are to run from now on.
///
/// # Errors
/// The mark can not be removed.
pub(super) fn unmark_down(layout: &Layout) -> anyhow::Result<()> {
    let path = layout.dir().join(DOWN_MARK);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Whether the cluster has been stopped: no node runs, and `smalti down` was asked for or all have
/// ended in order.
///
/// # Errors
/// As [`running`].
pub(super) fn is_stopped(layout: &Layout) -> anyhow::Result<bool> {
    let down = || layout.dir().join(DOWN_MARK).exists();
    let left = || layout.nodes().all(|node| PidFile::was_left(&node.config.data_dir));
    Ok((down() || left()) && running(layout)?.is_empty())
}

fn look(node: &LayoutNode) -> anyhow::Result<Option<Running>> {
    let Some(pid) = holder(node)? else { return Ok(None) };
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no such process id")?;
    let handle = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(handle) => handle,
        // It ended after its lock was looked at.
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error).context("get hold of its process"),
    };
    if is_node(pid, &node.config_path) {
        let (name, config_path) = (node.name().to_owned(), node.config_path.clone());
        return Ok(Some(Running { name, pid, config_path, handle }));
    }
    if PidFile::holder(&node.config.data_dir)?.is_none() {
        return Ok(None);
    }
    bail!(
        "process {pid} holds its data folder and is not `smalti serve --config {}`; \
         if it should stop, stop it yourself",
        node.config_path.display()
    )
}

/// The process that holds a node's lock, and is not just ending.
fn holder(node: &LayoutNode) -> anyhow::Result<Option<u32>> {
    let deadline = Instant::now() + END_TIMEOUT;
    loop {
        let pid = PidFile::holder(&node.config.data_dir)?;
        if !pid.is_some_and(is_ending) || Instant::now() >= deadline {
            return Ok(pid);
        }
        std::thread::sleep(POLL);
    }
}

impl Running {
    fn is_gone(&self) -> bool {
        !is_node(self.pid, &self.config_path)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("signal node {}", self.name)),
        }
    }
}

/// Asks a node to end in order, if it runs.
pub(super) fn ask_to_end(node: &LayoutNode) -> anyhow::Result<()> {
    let Some(running) = look(node)? else { return Ok(()) };
    running.signal(Signal::TERM)?;
    running.signal(Signal::CONT)
}

/// Stops every running node in order; one that has not ended in time is killed. Gives the names of
/// the stopped and of the killed ones.
///
/// `hurry` ends the waiting early, as a second Ctrl-C asks.
pub(super) async fn stop_all(
    layout: &Layout,
    hurry: impl Future<Output = ()>,
) -> anyhow::Result<Stopped> {
    let nodes = running(layout)?;
    for node in &nodes {
        node.signal(Signal::TERM)?;
        // A frozen process hears nothing until it is woken.
        node.signal(Signal::CONT)?;
    }
    tokio::select! {
        () = gone(&nodes, STOP_TIMEOUT) => {}
        () = hurry => {}
    }
    let (ended, late): (Vec<_>, Vec<_>) = nodes.iter().partition(|node| node.is_gone());
    for node in &late {
        node.signal(Signal::KILL)?;
    }
    gone(&nodes, KILL_TIMEOUT).await;
    if let Some(node) = nodes.iter().find(|node| !node.is_gone()) {
        bail!("node {} (process {}) does not end", node.name, node.pid);
    }
    let names = |nodes: Vec<&Running>| nodes.iter().map(|node| node.name.clone()).collect();
    Ok(Stopped { in_order: names(ended), killed: names(late) })
}

/// What [`stop_all`] did.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) in_order: Vec<String>,
    pub(super) killed: Vec<String>,
}

impl Stopped {
    /// One line for people.
    pub(super) fn describe(&self) -> String {
        let mut text = match self.in_order.len() {
            0 => String::from("no node was running"),
            _ => format!("stopped {}", self.in_order.join(", ")),
        };
        if !self.killed.is_empty() {
            let killed = self.killed.join(", ");
            text = match self.in_order.len() {
                0 => format!("killed {killed}, which did not end in time"),
                _ => format!("{text}; killed {killed}, which did not end in time"),
            };
        }
        text
    }
}

async fn gone(nodes: &[Running], limit: Duration) {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline && !nodes.iter().all(Running::is_gone) {
        tokio::time::sleep(POLL).await;
    }
}
