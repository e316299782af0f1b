//! `smalti serve`: one node, from its config file to its last breath.
//!
//! ```text
//! config -> lock -> API answers "starting" -> the node starts -> API answers -> signal -> stop
//! ```

use crate::api::{ApiServer, ApiState};
use crate::cluster_file::ClusterFile;
use crate::config::{Addresses, NodeConfig};
use crate::control::{Control, ControlSlot};
use crate::daemon;
use crate::local::PidFile;
use crate::{memory, telemetry};
use anyhow::{Context, anyhow, bail};
use futures::FutureExt;
use futures::future::BoxFuture;
use smalti_storage::seal;
use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Starts a program that was built to [copy](seal::COPIES) instead of sealing.
const COPIES_ARE_WANTED: &str = "SMALTI_BENCH_COPY";

/// How long a killed process may hold its ports after it gave up its lock.
const PORTS_TIMEOUT: Duration = Duration::from_secs(2);
const PORTS_PAUSE: Duration = Duration::from_millis(20);

/// At the end, requests that were begun have this long before the node stops serving them.
const TASKS_PATIENCE: Duration = Duration::from_secs(3);

/// Runs the node of a config file until SIGTERM or SIGINT.
///
/// # Errors
/// It could not start, a part that it can not go on without failed, or it did not stop in time.
pub async fn serve(config_path: &Path) -> anyhow::Result<()> {
    telemetry::log_panics();
    if seal::COPIES {
        // Nobody's data.
        let known = std::env::var_os(COPIES_ARE_WANTED).is_some();
        anyhow::ensure!(
            known,
            "this program encrypts nothing: it was built to measure what that costs; {COPIES_ARE_WANTED}=1 starts it"
        );
        tracing::warn!("this program encrypts nothing");
    }
    memory::forbid_dumps()?;
    telemetry::raise_file_limit()?;
    let config = NodeConfig::load(config_path)?;
    if config.tunables.lock_memory {
        memory::keep_out_of_swap();
    }
    match run_node(config).await {
        Err(error) if error.is::<StartAnew>() => {
            tracing::warn!(reason = %error, "the node starts anew");
            // With all that this process has open closed, and under its id.
            let program = std::env::current_exe().context("find this program")?;
            let failed = Command::new(program).args(std::env::args_os().skip(1)).exec();
            Err(error.context(failed).context("start anew"))
        }
        ended => ended,
    }
}

/// The process is to be started anew at once, for the reason given.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct StartAnew(String);

/// Runs a node with everything it has.
///
/// # Errors
/// As [`serve`].
pub async fn run_node(config: NodeConfig) -> anyhow::Result<()> {
    run_with(config, |node| daemon::start(node).boxed()).await
}

/// What a part of a running node works with.
#[derive(Clone, Debug)]
pub struct NodeRuntime {
    /// The node's config.
    pub config: Arc<NodeConfig>,
    /// Cancelled when the node is to stop.
    pub stop: CancellationToken,
    /// Tasks that end by themselves soon after `stop`; they are waited for.
    pub tasks: TaskTracker,
    poison: Poison,
}

/// A node that has started.
pub struct Started {
    /// What the control API answers from.
    pub control: Arc<dyn Control>,
    /// Ends the node in order, after `stop` was cancelled and the API has given its last answers.
    pub shutdown: BoxFuture<'static, anyhow::Result<()>>,
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Started")
    }
}

#[derive(Clone, Debug, Default)]
struct Poison {
    reason: Arc<OnceLock<Ending>>,
    token: CancellationToken,
}

#[derive(Debug)]
struct Ending {
    reason: String,
    anew: bool,
}

impl NodeRuntime {
    /// Says that the node can not go on: its run ends at once with an error, without a shutdown in
    /// order. The first reason counts.
    pub fn poison(&self, reason: impl fmt::Display) {
        let reason = reason.to_string();
        tracing::error!(reason, "the node can not go on");
        self.end(Ending { reason, anew: false });
    }

    /// The same where another process of it can, and is to be started.
    pub fn start_anew(&self, reason: impl fmt::Display) {
        self.end(Ending { reason: reason.to_string(), anew: true });
    }

    fn end(&self, ending: Ending) {
        // A later reason is a consequence of the first.
        let _ = self.poison.reason.set(ending);
        self.poison.token.cancel();
    }

    /// Runs a task whose failure or panic poisons the node.
    pub fn spawn_critical(
        &self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let node = self.clone();
        self.tasks.spawn(async move {
            match AssertUnwindSafe(task).catch_unwind().await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => node.poison(format_args!("{name}: {error:#}")),
                Err(_panic) => node.poison(format_args!("{name} panicked")),
            }
        });
    }
}

/// Runs a node: lock, API and signals here, the rest by `start`.
///
/// # Errors
/// As [`serve`].
pub async fn run_with(
    config: NodeConfig,
    start: impl FnOnce(NodeRuntime) -> BoxFuture<'static, anyhow::Result<Started>>,
) -> anyhow::Result<()> {
    let mut signals = StopSignals::listen()?;
    let data_dir = &config.data_dir;
    crate::data_disk::check(data_dir, &config.credentials.dir)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .with_context(|| format!("make {}", data_dir.display()))?;
    let pid_file = PidFile::acquire(data_dir)?;
    run_locked(config, &mut signals, start).await?;
    pid_file.leave()
}

async fn run_locked(
    config: NodeConfig,
    signals: &mut StopSignals,
    start: impl FnOnce(NodeRuntime) -> BoxFuture<'static, anyhow::Result<Started>>,
) -> anyhow::Result<()> {
    if let Some(dir) = &config.local_cluster {
        ClusterFile::note_pid(dir, config.node, std::process::id())?;
    }

    await_ports(&config.addresses).await;
    let api = ApiServer::bind(config.addresses.api, &config.sockets.api).await?;
    let node = NodeRuntime {
        config: Arc::new(config),
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
        poison: Poison::default(),
    };
    // However this ends, tasks that still run in this process are told.
    let _stop = node.stop.clone().drop_guard();
    let slot = ControlSlot::default();
    let local_cluster = node.config.local_cluster.clone();
    let state = ApiState::new(Arc::new(slot.clone()), local_cluster, node.tasks.clone());
    api.start(state, &node.tasks, &node.stop);
    tracing::info!(node = node.config.name, api = %node.config.addresses.api, "node starts");

    let started = tokio::select! {
        started = start(node.clone()) => started.context("start the node")?,
        name = signals.next() => {
            tracing::info!(signal = name, "node stops before it has started");
            return finish(&node, async { Ok(()) }.boxed()).await;
        }
        () = node.poison.token.cancelled() => return Err(reason(&node)),
    };
    if slot.put(started.control).is_err() {
        bail!("the node was started twice");
    }
    tracing::info!(node = node.config.name, "node is up");
    tokio::select! {
        name = signals.next() => tracing::info!(signal = name, "node stops"),
        () = node.poison.token.cancelled() => return Err(reason(&node)),
    }
    finish(&node, started.shutdown).await
}

/// A process that was killed a moment ago gives up its lock and its ports one after the other. Waits
/// for the ports to be free too, for a while: who then holds one is somebody else, and binding
/// says so.
async fn await_ports(addresses: &Addresses) {
    let busy = || {
        let in_use = |bound: io::Result<()>| {
            bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        };
        in_use(TcpListener::bind(addresses.api).map(drop))
            || in_use(TcpListener::bind(addresses.nbd).map(drop))
            || in_use(UdpSocket::bind(addresses.quic).map(drop))
    };
    let deadline = Instant::now() + PORTS_TIMEOUT;
    while busy() && Instant::now() < deadline {
        tokio::time::sleep(PORTS_PAUSE).await;
    }
}

fn reason(node: &NodeRuntime) -> anyhow::Error {
    match node.poison.reason.get() {
        Some(Ending { reason, anew: true }) => StartAnew(reason.clone()).into(),
        Some(Ending { reason, .. }) => anyhow!("{reason}"),
        None => anyhow!("the node can not go on"),
    }
}

async fn finish(
    node: &NodeRuntime,
    shutdown: BoxFuture<'static, anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let limit: Duration = node.config.tunables.shutdown_timeout();
    node.stop.cancel();
    node.tasks.close();
    let ended = tokio::time::timeout(limit, async {
        // What waits for stores that are gone as well does not end by itself: the shutdown fails it, for
        // others to serve.
        if tokio::time::timeout(TASKS_PATIENCE, node.tasks.wait()).await.is_err() {
            tracing::info!("requests are still waiting: they are for other nodes to serve");
        }
        shutdown.await?;
        node.tasks.wait().await;
        anyhow::Ok(())
    });
    match ended.await {
        // Whoever was asked to stop does not start anew, whatever happens meanwhile.
        Ok(Ok(())) if node.poison.token.is_cancelled() => Err(anyhow!("{}", reason(node))),
        Ok(ended) => {
            ended.context("stop the node")?;
            tracing::info!("node has stopped");
            Ok(())
        }
        Err(_) => bail!("stop the node: it takes longer than {} ms", limit.as_millis()),
    }
}

/// The signals that ask a process to stop.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl StopSignals {
    /// Listens for them from now on, in place of ending at once.
    ///
    /// # Errors
    /// The system refuses.
    pub fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The name of the next one. Cancel safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

#[cfg(test)]
mod tests;
