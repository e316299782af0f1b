//! Starting the node processes, and hearing of their ends.

use super::layout::Layout;
use super::logs::NodeLog;
use anyhow::Context;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

/// Asks a node to begin a session of its own. Not an argument, because the arguments are what
/// others start the node again with.
const NEW_SESSION: &str = "SMALTI_NEW_SESSION";

/// The started processes.
#[derive(Debug)]
pub(super) struct Processes {
    started: Vec<Started>,
    ends: JoinSet<Ended>,
}

#[derive(Debug)]
struct Started {
    name: String,
    pid: u32,
    log: NodeLog,
}

/// A process that ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Which of the nodes.
    pub(super) index: usize,
    /// How; none when the system did not tell.
    pub(super) status: Option<ExitStatus>,
}

impl Processes {
    /// Starts every node of a cluster; on an error, those that were started stay and are in the
    /// second part of the result.
    pub(super) fn start(
        layout: &Layout,
        program: &Path,
        own_session: bool,
    ) -> (Self, anyhow::Result<()>) {
        let mut processes = Self { started: Vec::new(), ends: JoinSet::new() };
        for (index, node) in layout.nodes().enumerate() {
            let started = spawn(node, program, own_session)
                .with_context(|| format!("start node {}", node.name()));
            match started {
                Ok((log, mut child, pid)) => {
                    processes.started.push(Started { name: node.name().to_owned(), pid, log });
                    processes
                        .ends
                        .spawn(async move { Ended { index, status: child.wait().await.ok() } });
                }
                Err(error) => return (processes, Err(error)),
            }
        }
        (processes, Ok(()))
    }

    /// The process ids, in the order of the nodes.
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.started.iter().map(|started| started.pid)
    }

    /// The next end of a process. Pending for ever when all have ended. Cancel safe.
    pub(super) async fn ended(&mut self) -> Ended {
        loop {
            match self.ends.join_next().await {
                Some(Ok(ended)) => return ended,
                // The waiting tasks do not panic and nobody aborts them.
                Some(Err(error)) => tracing::warn!(%error, "lost track of a node process"),
                None => return std::future::pending().await,
            }
        }
    }

    /// How many have not ended, as far as their ends were asked for.
    pub(super) fn running(&self) -> usize {
        self.ends.len()
    }

    /// Whether every process that was started has ended.
    pub(super) fn all_ended(&mut self) -> bool {
        while self.ends.try_join_next().is_some() {}
        self.ends.is_empty()
    }

    /// What to say of an end.
    pub(super) fn describe(&self, ended: &Ended) -> String {
        let name = self.started.get(ended.index).map_or("a node", |started| &started.name);
        match ended.status {
            Some(status) => format!("node {name} ended ({status})"),
            None => format!("node {name} ended"),
        }
    }

    /// The end of the log of the node that ended.
    pub(super) fn log_tail(&self, ended: &Ended) -> String {
        self.started.get(ended.index).map(|started| started.log.tail()).unwrap_or_default()
    }
}

fn spawn(
    node: &super::LayoutNode,
    program: &Path,
    own_session: bool,
) -> anyhow::Result<(NodeLog, Child, u32)> {
    let (log, output) = NodeLog::open(node.log_path())?;
    let argv = node.argv(program)?;
    let mut command = Command::new(program);
    command
        .args(&argv[1..])
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("open the log twice")?)
        .stderr(output);
    if own_session {
        command.env(NEW_SESSION, "1");
    } else {
        // Ctrl-C goes to the terminal's process group. The nodes are to be stopped by `up`, in
        // order, so they stand in groups of their own.
        command.env_remove(NEW_SESSION).process_group(0);
    }
    let child = command.spawn().with_context(|| format!("run {}", program.display()))?;
    let pid = child.id().context("the process has no id")?;
    Ok((log, child, pid))
}

/// Begins a session of its own, if whoever started this process asks for it; so a closing
/// terminal does not reach it.
///
/// # Errors
/// The system refuses.
pub fn enter_new_session() -> anyhow::Result<()> {
    // A node that starts itself anew has one.
    let leads = rustix::process::getsid(None).is_ok_and(|id| id == rustix::process::getpid());
    if std::env::var_os(NEW_SESSION).is_some() && !leads {
        rustix::process::setsid().context("begin a session of its own")?;
    }
    Ok(())
}
