//! Waiting until a started cluster is healthy, and making its volume on the way.

use super::LayoutNode;
use super::layout::Layout;
use super::up::VolumeWish;
use crate::client::{Client, ClientError};
use crate::control::{CreateVolume, ErrorKind, Health, NodeState, StatusReport, VolumeDetail};
use crate::size::human;
use anyhow::{Context, bail, ensure};
use futures::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};
use smalti_storage::ids::NodeId;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

const POLL: Duration = Duration::from_millis(50);
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
const CHANGE_TIMEOUT: Duration = Duration::from_secs(70);

/// How far a cluster came in the time it was given.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Healthy; the names of its volumes.
    Healthy(Vec<String>),
    /// Every node that has not ended answers and the volume is served, but not with full redundancy.
    Degraded(Vec<String>),
    /// Every node and slot is there, and waiting would change nothing: rows are lost, or a disk is
    /// full or nearly so.
    Lasting(Health, Vec<String>),
    /// Every node that has not ended answers, and something is not in service: what is missing, and
    /// the volumes. It may be elsewhere: others may have joined from other machines.
    Stalled(String, Vec<String>),
    /// Nodes are not up: what is missing.
    NotReady(String),
}

/// What the nodes say at one moment.
struct Look {
    reports: Vec<Option<StatusReport>>,
    missing: Vec<String>,
}

impl Look {
    fn answering(&self) -> usize {
        self.reports.iter().flatten().count()
    }

    fn all_answer(&self) -> bool {
        !self.reports.is_empty() && self.reports.iter().all(Option::is_some)
    }

    /// The cluster's members, as a node says that hears of a leader. None while it is being founded.
    fn members(&self) -> Option<BTreeSet<NodeId>> {
        let led = self.reports.iter().flatten().filter(|report| report.raft.leader.is_some());
        let newest = led.max_by_key(|report| report.map_version)?;
        let members: BTreeSet<NodeId> = newest.nodes.iter().map(|node| node.id).collect();
        (!members.is_empty()).then_some(members)
    }

    fn is_formed(&self) -> bool {
        self.missing.is_empty()
    }

    fn worst(&self) -> Health {
        self.reports.iter().flatten().map(|report| report.health).max().unwrap_or(Health::Stalled)
    }

    /// Whether all that is wrong stays until an operator does something about it.
    fn is_lasting(&self) -> bool {
        let lasts = |report: &StatusReport| {
            // Those that are away may come; those that are locked wait for somebody.
            usize::from(report.custody.reachable) + report.barred.len()
                >= usize::from(report.custody.total)
                && (report.health == Health::Ok || report.lasting)
        };
        self.worst() != Health::Ok && self.reports.iter().flatten().all(lasts)
    }

    fn volumes(&self) -> Vec<String> {
        let report = self.reports.iter().flatten().next();
        let names = report.map(|report| report.volumes.iter().map(|v| v.name.clone()).collect());
        let mut names: Vec<String> = names.unwrap_or_default();
        names.sort();
        names
    }

    /// Whether every node knows the volume: one that is behind would not serve it yet.
    fn all_know(&self, wish: Option<&VolumeWish>) -> bool {
        wish.is_none_or(|wish| {
            let knows = |report: &StatusReport| report.volumes.iter().any(|v| v.name == wish.name);
            self.reports.iter().flatten().all(knows)
        })
    }
}

/// How far it came, and the places of nodes that are no members any more.
pub(super) struct Waited {
    pub(super) outcome: Outcome,
    pub(super) removed: BTreeSet<usize>,
}

/// `without` are the places of those nodes that have ended: they are not waited for, nor are those that the
/// others have removed from the cluster.
pub(super) async fn wait(
    layout: &Layout,
    wish: Option<&VolumeWish>,
    limit: Duration,
    without: watch::Receiver<BTreeSet<usize>>,
) -> anyhow::Result<Waited> {
    let mut removed = BTreeSet::new();
    let outcome = wait_for_rest(layout, wish, limit, without, &mut removed).await?;
    Ok(Waited { outcome, removed })
}

async fn wait_for_rest(
    layout: &Layout,
    wish: Option<&VolumeWish>,
    limit: Duration,
    without: watch::Receiver<BTreeSet<usize>>,
    removed: &mut BTreeSet<usize>,
) -> anyhow::Result<Outcome> {
    let all: Vec<_> = layout.nodes().map(|node| (node, Client::new(node.api_address()))).collect();
    let progress = Progress::new(all.len());
    let deadline = Instant::now() + limit;
    let mut volume_is_there = wish.is_none();
    let mut held_up = String::new();
    loop {
        let without = without.borrow().clone();
        let is_left = |place: &usize| without.contains(place) || removed.contains(place);
        let there = all.iter().enumerate().filter(|(place, _)| !is_left(place));
        let asked: Vec<_> = there.map(|(_, (node, client))| (*node, client)).collect();
        ensure!(
            removed.is_empty() || !asked.is_empty(),
            "no node of this folder that runs is a member of the cluster any more"
        );
        let look = ask_all(&asked).await;
        let members = look.members();
        let is_none = |id: NodeId| members.as_ref().is_some_and(|members| !members.contains(&id));
        let places = layout.nodes().enumerate();
        let out = places.filter(|(_, node)| is_none(node.config.node)).map(|(place, _)| place);
        let known = removed.len();
        removed.extend(out);
        if removed.len() > known {
            continue;
        }
        progress.show(&look, volume_is_there);
        let formed = look.is_formed();
        if formed && let (false, Some(wish)) = (volume_is_there, wish) {
            // Bounded here as well, so that one long answer does not outlast the limit by much.
            let (_, client) = asked.first().context("there is no node")?;
            match ensure_volume(client, wish).await? {
                Progressed::Done => {
                    volume_is_there = true;
                    continue;
                }
                Progressed::NotYet(why) => held_up = why,
            }
        }
        let served = formed && volume_is_there && look.all_know(wish);
        if served && look.worst() == Health::Ok {
            return Ok(Outcome::Healthy(look.volumes()));
        }
        if served && look.is_lasting() {
            return Ok(Outcome::Lasting(look.worst(), look.volumes()));
        }
        let is_over = Instant::now() >= deadline;
        // With a node that has ended it gets no better.
        if served
            && look.worst() == Health::Degraded
            && (is_over || without.difference(removed).next().is_some())
        {
            return Ok(Outcome::Degraded(look.volumes()));
        }
        if is_over {
            let missing = if !formed {
                look.missing.join("; ")
            } else if volume_is_there {
                format!("health is {}", look.worst())
            } else {
                format!("the volume could not be made: {held_up}")
            };
            if look.all_answer() && look.worst() == Health::Stalled {
                return Ok(Outcome::Stalled(missing, look.volumes()));
            }
            return Ok(Outcome::NotReady(missing));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn ask_all(asked: &[(&LayoutNode, &Client)]) -> Look {
    let asks = asked.iter().map(|(_, c)| c.get::<StatusReport>("/v1/status", ASK_TIMEOUT));
    let answers = join_all(asks).await;
    let mut missing = Vec::new();
    let mut reports = Vec::new();
    for ((node, _), answer) in asked.iter().zip(answers) {
        let name = node.name();
        match &answer {
            Err(ClientError::Refused(error)) => missing.push(format!("{name}: {error}")),
            Err(_) => missing.push(format!("{name} does not answer")),
            Ok(report) if report.cluster != node.config.cluster => {
                missing.push(format!("{name} is of another cluster"));
                reports.push(None);
                continue;
            }
            Ok(report) if report.raft.leader.is_none() => {
                missing.push(format!("{name} knows no leader"));
            }
            Ok(report) => missing.extend(
                asked
                    .iter()
                    .filter(|(other, _)| {
                        let seen = report.nodes.iter().find(|n| n.id == other.config.node);
                        seen.is_none_or(|seen| seen.state == NodeState::Down)
                    })
                    .map(|(other, _)| format!("{name} does not reach {}", other.name())),
            ),
        }
        reports.push(answer.ok());
    }
    Look { reports, missing }
}

enum Progressed {
    Done,
    NotYet(String),
}

/// Makes the volume, or checks the one that is there.
async fn ensure_volume(client: &Client, wish: &VolumeWish) -> anyhow::Result<Progressed> {
    let path = format!("/v1/volumes/{}", wish.name);
    match client.get::<VolumeDetail>(&path, ASK_TIMEOUT).await {
        Ok(detail) => return compare(wish, &detail).map(|()| Progressed::Done),
        Err(error) if error.kind() == Some(ErrorKind::NotFound) => {}
        Err(error) => return Ok(Progressed::NotYet(error.to_string())),
    }
    let Some(size) = wish.size else {
        bail!("volume {} is missing and needs a --size to be made", wish.name);
    };
    let request = CreateVolume {
        name: wish.name.clone(),
        size: size.bytes(),
        data: wish.geometry.map(|(data, _)| data),
        parity: wish.geometry.map(|(_, parity)| parity),
        shard_size: None,
        min_insync: wish.min_insync,
        read_mode: None,
    };
    match client.post::<_, VolumeDetail>("/v1/volumes", &request, CHANGE_TIMEOUT).await {
        Ok(_) => Ok(Progressed::Done),
        // Invalid stays invalid; all else may pass, and whether it was made is looked at again.
        Err(error) if error.kind() == Some(ErrorKind::Invalid) => {
            Err(anyhow::Error::from(error).context(format!("make volume {}", wish.name)))
        }
        Err(error) => Ok(Progressed::NotYet(error.to_string())),
    }
}

fn compare(wish: &VolumeWish, detail: &VolumeDetail) -> anyhow::Result<()> {
    let volume = &detail.volume;
    if let Some(size) = wish.size {
        ensure!(
            size.bytes() == volume.size,
            "volume {} has {} ({} bytes), not {size} ({} bytes) as asked",
            wish.name,
            human(volume.size),
            volume.size,
            size.bytes()
        );
    }
    if let Some((data, parity)) = wish.geometry {
        ensure!(
            (data, parity) == (volume.data, volume.parity),
            "volume {} has {}+{} shards, not {data}+{parity} as asked",
            wish.name,
            volume.data,
            volume.parity
        );
    }
    if let Some(asked) = wish.min_insync {
        ensure!(
            asked == volume.min_insync,
            "volume {} needs {} slots in sync, not {asked} as asked",
            wish.name,
            volume.min_insync
        );
    }
    Ok(())
}

/// A line on the terminal while it takes; nothing elsewhere.
struct Progress(Option<ProgressBar>);

impl Progress {
    fn new(nodes: usize) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new(nodes as u64);
        if let Ok(style) = ProgressStyle::with_template("{spinner} [{bar:20}] {msg}  {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(Some(bar))
    }

    fn show(&self, look: &Look, volume_is_there: bool) {
        let Some(bar) = &self.0 else { return };
        bar.set_position(look.answering() as u64);
        bar.set_message(match (look.missing.first(), volume_is_there) {
            (Some(missing), _) => missing.clone(),
            (None, false) => "making the volume".into(),
            (None, true) => format!("health {}", look.worst()),
        });
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
