//! `smalti up`.

use super::dir_lock::DirLock;
use super::layout::{Layout, half_made};
use super::ready::{self, Outcome, Waited};
use super::spawn::Processes;
use super::stop;
use crate::cli::print;
use crate::cluster_file::{ClusterFile, nbd_tcp_uri, nbd_unix_uri};
use crate::control::Health;
use crate::init::{self, DirState, RecoveryShares, RecoveryWish};
use crate::serve::StopSignals;
use crate::size::VolumeSize;
use crate::volume_spec::{Geometry, NODES_MIN};
use anyhow::{Context, bail, ensure};
use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;

/// A process may take 20 s from its start until it holds its lock.
const BEGIN_LOOKS: usize = 1000;
const BEGIN_PAUSE: Duration = Duration::from_millis(20);

/// Between two looks whether nodes that others started have ended too.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What `smalti up` is asked.
#[derive(Clone, Debug)]
pub struct UpOptions {
    /// The program whose `serve --config FILE` runs a node.
    pub program: PathBuf,
    /// How many nodes; none for what the folder has, or 3.
    pub nodes: Option<usize>,
    /// The cluster's folder.
    pub dir: PathBuf,
    /// The volume that is to be there.
    pub volume: Option<VolumeWish>,
    /// The recovery shares that people are to get of a new cluster.
    pub recovery: Option<RecoveryWish>,
    /// Whether to return once healthy.
    pub detach: bool,
    /// How long to wait until healthy.
    pub wait: Duration,
}

/// A volume that is to be there.
#[derive(Clone, Debug)]
pub struct VolumeWish {
    /// Its name.
    pub name: String,
    /// Its size; needed when it is to be made.
    pub size: Option<VolumeSize>,
    /// Data and parity shards; none for whatever it has, or the default.
    pub geometry: Option<(u8, u8)>,
    /// Slots of a group that have to be in sync for writes; none for whatever it has, or the
    /// default.
    pub min_insync: Option<u8>,
}

/// Runs a local cluster: until a signal in the foreground, or until healthy with `detach`.
///
/// # Errors
/// What can not be as asked, or did not come up; the nodes that were started are stopped again,
/// but for a detached cluster that is degraded, or is an older one and only lacks what may be elsewhere.
pub async fn up(options: UpOptions) -> anyhow::Result<()> {
    let mut signals = StopSignals::listen()?;
    let dir = std::path::absolute(&options.dir).context("find the folder")?;
    let (_lock, layout, is_new) = prepare(&dir, &options)?;
    ensure_stopped(&layout)?;
    // Whoever waits for the file waits for a cluster that is up, not for an earlier one.
    ClusterFile::remove(layout.dir())?;
    stop::unmark_down(&layout)?;
    let (mut processes, started) = Processes::start(&layout, &options.program, options.detach);
    let result = match started {
        Ok(()) => {
            tokio::select! {
                result = bring_up(&layout, &options, &mut processes, is_new) => result,
                name = signals.next() => Err(anyhow::anyhow!("{name} came before it was healthy")),
            }
        }
        Err(error) => Err(error),
    };
    match result {
        Err(error) => {
            stop_again(&layout, &mut processes, &mut signals).await?;
            Err(error)
        }
        Ok(None) if options.detach => Ok(()),
        Ok(Some(lack)) if options.detach => {
            bail!("{lack}: see `smalti why --dir {}`", dir.display())
        }
        Ok(lack) => {
            if let Some(lack) = lack {
                say(&lack);
            }
            foreground(&layout, processes, signals).await
        }
    }
}

/// Checks everything that can be checked before a process is started, and makes a new cluster's
/// folder; says whether it did.
fn prepare(dir: &Path, options: &UpOptions) -> anyhow::Result<(DirLock, Layout, bool)> {
    // An existing folder is locked before it is looked at: another `up` may be making it.
    let lock = if dir.is_dir() { Some(DirLock::take(dir, "smalti up")?) } else { None };
    let state = init::inspect(dir)?;
    let nodes = match &state {
        DirState::Made(marker) => {
            let have = marker.nodes.len();
            if let Some(asked) = options.nodes {
                ensure!(asked == have, "{} has {have} nodes, not {asked}", dir.display());
            }
            have
        }
        DirState::Free => options.nodes.unwrap_or(NODES_MIN),
        DirState::HalfMade => bail!(half_made(dir)),
        DirState::Foreign => {
            bail!("{} is not empty and holds no cluster: choose another folder", dir.display())
        }
    };
    init::check_nodes(nodes)?;
    ensure!(
        options.recovery.is_none() || state == DirState::Free,
        "{} has a cluster: recovery shares are made with a new one only",
        dir.display()
    );
    if let Some(wish) = &options.volume {
        let (data, parity) = wish.geometry.unzip();
        let geometry = Geometry::asked(data, parity, nodes).context("volume")?;
        geometry.check_min_insync(wish.min_insync).context("volume")?;
        ensure!(
            wish.size.is_some() || state != DirState::Free,
            "volume {} is to be made and needs a --size",
            wish.name
        );
    }
    let lock = match lock {
        Some(lock) => lock,
        None => {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.with_context(|| format!("make {}", dir.display()))?;
            DirLock::take(dir, "smalti up")?
        }
    };
    // The folder has one name in command lines and sockets, whatever way led to it.
    let dir = dir.canonicalize().with_context(|| format!("find {}", dir.display()))?;
    let is_new = state == DirState::Free;
    if is_new {
        init::make_with(&dir, nodes, options.recovery, hand_out)?;
    }
    Ok((lock, Layout::load(&dir)?, is_new))
}

/// Prints recovery shares: they are shown once, and the cluster is not made if they can not be.
fn hand_out(shares: Option<RecoveryShares>) -> anyhow::Result<()> {
    shares.map_or(Ok(()), |shares| print(&shares.text()).context("hand out the recovery shares"))
}

fn ensure_stopped(layout: &Layout) -> anyhow::Result<()> {
    let running = stop::running(layout)?;
    if running.is_empty() {
        return Ok(());
    }
    let list: Vec<_> = running.iter().map(|node| format!("{} ({})", node.name, node.pid)).collect();
    bail!(
        "its nodes run already: {}; start others with the `argv` of `cluster.json`, or stop all with \
         `smalti down --dir {}`",
        list.join(", "),
        layout.dir().display()
    )
}

/// Waits until healthy and tells the world. Says what is lacking if it serves without being so, and
/// waiting on might mend it, or starting again.
async fn bring_up(
    layout: &Layout,
    options: &UpOptions,
    processes: &mut Processes,
    is_new: bool,
) -> anyhow::Result<Option<String>> {
    let (gone, without) = watch::channel(BTreeSet::new());
    let mut ends = Vec::new();
    let waited = {
        let wait = ready::wait(layout, options.volume.as_ref(), options.wait, without);
        tokio::pin!(wait);
        loop {
            tokio::select! {
                waited = &mut wait => break waited?,
                ended = processes.ended() => {
                    let end = processes.describe(&ended);
                    ends.push(format!("{end} while starting; {}", processes.log_tail(&ended)));
                    // A majority serves without the others; a new cluster has nothing to serve yet.
                    if is_new || 2 * ends.len() >= layout.nodes().len() {
                        bail!("{}", ends.join("; "));
                    }
                    gone.send_modify(|gone| {
                        gone.insert(ended.index);
                    });
                }
            }
        }
    };
    let Waited { outcome: waited, removed } = waited;
    for (_, node) in layout.nodes().enumerate().filter(|(place, _)| removed.contains(place)) {
        let stopped = match stop::ask_to_end(node) {
            Ok(()) => "it is stopped".to_owned(),
            Err(error) => format!("it can not be stopped ({error:#})"),
        };
        say(&format!(
            "{} was removed from the cluster: {stopped}, and nothing needs {} any more",
            node.name(),
            node.folder.display()
        ));
    }
    let seconds = options.wait.as_secs();
    let (health, lack, volumes) = match waited {
        Outcome::Healthy(volumes) => (Health::Ok, None, volumes),
        Outcome::Lasting(health, volumes) => (health, None, volumes),
        Outcome::Degraded(volumes) if ends.is_empty() => {
            let lack = format!("the nodes run, but are still degraded after {seconds} s");
            (Health::Degraded, Some(lack), volumes)
        }
        Outcome::Degraded(volumes) => {
            let lack = format!("{}; the other nodes run", ends.join("; "));
            (Health::Degraded, Some(lack), volumes)
        }
        // What it misses may come: a new cluster has nothing to wait for.
        Outcome::Stalled(missing, volumes) if !is_new => {
            ends.push(format!("not healthy after {seconds} s: {missing}; the nodes run"));
            (Health::Stalled, Some(ends.join("; ")), volumes)
        }
        Outcome::Stalled(missing, _) | Outcome::NotReady(missing) => {
            ends.push(format!("not healthy after {seconds} s: {missing}"));
            bail!("{}", ends.join("; "));
        }
    };
    let entries = layout.nodes().zip(processes.pids()).enumerate();
    let members = entries.filter(|(place, _)| !removed.contains(place));
    let nodes = members
        .map(|(_, (node, pid))| node.entry(&options.program, pid))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let file = ClusterFile { nodes, volumes };
    file.write(layout.dir())?;
    let up = file.nodes.len() - gone.borrow().difference(&removed).count();
    print(&announcement(&file, up, health)?)?;
    Ok(lack)
}

fn announcement(file: &ClusterFile, up: usize, health: Health) -> anyhow::Result<String> {
    let health = match health {
        Health::Ok => "healthy",
        Health::Degraded => "DEGRADED: see `smalti why`",
        Health::Stalled => "STALLED: see `smalti why`",
    };
    let mut text = format!("{up} nodes up, {health}\n");
    for volume in &file.volumes {
        text.push_str(&format!("volume {volume}\n"));
        for node in &file.nodes {
            let unix = nbd_unix_uri(&node.nbd.unix, volume)?;
            let tcp = nbd_tcp_uri(node.nbd.tcp, volume);
            text.push_str(&format!("  {}  {unix}\n  {}  {tcp}\n", node.name, node.name));
        }
    }
    Ok(text)
}

/// Nodes may be killed on purpose: that is said once each and nothing else is done about it.
async fn foreground(
    layout: &Layout,
    mut processes: Processes,
    mut signals: StopSignals,
) -> anyhow::Result<()> {
    say("Ctrl-C stops the nodes");
    let mut told = String::new();
    loop {
        // Others may have started nodes again, and stopped them all, as by `smalti down`.
        let all_ended = processes.running() == 0;
        match all_ended.then(|| stop::is_stopped(layout)) {
            Some(Ok(true)) => return Ok(()),
            // What keeps them from being looked at may pass.
            Some(Err(error)) if told != format!("{error:#}") => {
                told = format!("{error:#}");
                say(&told);
            }
            _ => {}
        }
        tokio::select! {
            _ = signals.next() => break,
            ended = processes.ended() => say(&processes.describe(&ended)),
            () = tokio::time::sleep(LOOK_EVERY), if all_ended => {}
        }
    }
    say("stopping");
    let stopped = stop::stop_all(layout, async {
        signals.next().await;
    })
    .await?;
    say(&stopped.describe());
    Ok(())
}

/// Nodes must not be left alone because nobody reads this any more.
fn say(text: &str) {
    if let Err(error) = print(&format!("{text}\n")) {
        tracing::warn!(error = format!("{error:#}"), text, "can not print");
    }
}

/// Stops what a failed start has left, and does not hide why it failed. A process that has only just
/// begun holds no lock yet, and is not to be found before it does: so until all have ended, again.
async fn stop_again(
    layout: &Layout,
    processes: &mut Processes,
    signals: &mut StopSignals,
) -> anyhow::Result<()> {
    for _ in 0..BEGIN_LOOKS {
        let stopped = stop::stop_all(layout, async {
            signals.next().await;
        });
        stopped.await.context("stop the nodes after a failed start")?;
        if processes.all_ended() {
            return Ok(());
        }
        tokio::time::sleep(BEGIN_PAUSE).await;
    }
    bail!("a node that was started neither runs nor ends")
}
