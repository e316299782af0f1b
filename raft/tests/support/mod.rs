//! A group of members in one process, on a network that can be cut.
#![allow(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use futures::future::BoxFuture;
use smalti_map::{Applied, Command, Custody, NodeAddresses, ShareHolder, StoreStart};
use smalti_raft::{GroupMetrics, RaftGroup, RaftGroupConfig, RaftTransport, TransportError};
use smalti_storage::ids::{ClusterId, Incarnation, NodeId, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use uuid::Uuid;

/// Everything has to happen by then, on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Wires {
    members: BTreeMap<NodeId, RaftGroup>,
    cut: BTreeSet<NodeId>,
    /// Answers to proposals that are still to be lost.
    lose_answers: usize,
    calls: usize,
}

/// The wires between all members.
#[derive(Clone, Default)]
pub(crate) struct Network(Arc<Mutex<Wires>>);

/// One member's end of them.
struct End {
    from: NodeId,
    network: Network,
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "End({})", self.from)
    }
}

impl RaftTransport for End {
    fn call(
        &self,
        to: NodeId,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (from, network) = (self.from, self.network.clone());
        Box::pin(async move {
            let silence = TransportError::Timeout { node: to, timeout };
            let Some(target) = network.reach(from, to) else {
                // As over UDP: nobody says that nobody is there.
                tokio::time::sleep(timeout).await;
                return Err(silence);
            };
            // The target works on, whether the caller still waits or not.
            let proposal = request.get(1) == Some(&3);
            let task = tokio::spawn(async move { target.handle(from, request).await });
            let answer = tokio::time::timeout(timeout, task).await;
            let lost = proposal && network.lose_answer();
            match answer {
                Ok(Ok(bytes)) if !lost && network.reach(from, to).is_some() => Ok(bytes),
                _ => Err(silence),
            }
        })
    }
}

impl Network {
    fn reach(&self, from: NodeId, to: NodeId) -> Option<RaftGroup> {
        let mut wires = self.0.lock().unwrap();
        wires.calls += 1;
        let cut = wires.cut.contains(&from) || wires.cut.contains(&to);
        wires.members.get(&to).filter(|_| !cut).cloned()
    }

    fn lose_answer(&self) -> bool {
        let mut wires = self.0.lock().unwrap();
        let lose = wires.lose_answers > 0;
        wires.lose_answers -= usize::from(lose);
        lose
    }

    pub(crate) fn lose_answers(&self, count: usize) {
        self.0.lock().unwrap().lose_answers = count;
    }

    pub(crate) fn answers_to_lose(&self) -> usize {
        self.0.lock().unwrap().lose_answers
    }

    pub(crate) fn cut(&self, node: NodeId) {
        self.0.lock().unwrap().cut.insert(node);
    }

    pub(crate) fn mend(&self, node: NodeId) {
        self.0.lock().unwrap().cut.remove(&node);
    }
}

/// A group with its directories.
pub(crate) struct Cluster {
    pub(crate) network: Network,
    pub(crate) members: BTreeMap<NodeId, RaftGroup>,
    dir: TempDir,
    snapshot_every: u64,
    size: u64,
    /// Members vote whatever store they have.
    trusted: bool,
}

impl Cluster {
    /// Starts `size` members and founds the group.
    pub(crate) async fn found(size: u64, snapshot_every: u64) -> Self {
        Self::founded(size, snapshot_every, true).await
    }

    /// Of members that vote only with the store that the map names.
    pub(crate) async fn found_wary(size: u64) -> Self {
        Self::founded(size, 20, false).await
    }

    async fn founded(size: u64, snapshot_every: u64, trusted: bool) -> Self {
        let mut cluster = Self {
            network: Network::default(),
            members: BTreeMap::new(),
            dir: tempfile::tempdir().unwrap(),
            snapshot_every,
            size,
            trusted,
        };
        let nodes = cluster.nodes();
        for node in &nodes {
            cluster.start(*node).await;
        }
        cluster.member(1).initialize(&nodes).await.unwrap();
        cluster
    }

    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        (1..=self.size).map(NodeId).collect()
    }

    pub(crate) fn member(&self, no: u64) -> &RaftGroup {
        &self.members[&NodeId(no)]
    }

    pub(crate) async fn start(&mut self, node: NodeId) {
        let dir = self.dir.path().join(node.to_string());
        let mut config = RaftGroupConfig::new(node, dir, node.0 as u8 - 1);
        config.snapshot_every = self.snapshot_every;
        config.trusted = self.trusted;
        let end = End { from: node, network: self.network.clone() };
        let group = RaftGroup::start(config, Arc::new(end)).await.unwrap();
        self.network.0.lock().unwrap().members.insert(node, group.clone());
        self.network.mend(node);
        self.members.insert(node, group);
    }

    /// Takes a member away as a crash would: nothing it does after this reaches anyone. That
    /// synced writes survive a real kill is for black-box tests to show.
    pub(crate) async fn kill(&mut self, node: NodeId) {
        self.network.cut(node);
        self.network.0.lock().unwrap().members.remove(&node);
        let group = self.members.remove(&node).unwrap();
        group.shutdown().await.unwrap();
    }

    /// Loses all that a member that does not run has on its disk.
    pub(crate) fn wipe(&self, node: NodeId) {
        std::fs::remove_dir_all(self.dir.path().join(node.to_string())).unwrap();
    }

    /// The leader that these members agree on.
    pub(crate) async fn leader_of(&self, nodes: &[u64]) -> NodeId {
        eventually("a leader they agree on", || {
            let leaders: BTreeSet<_> =
                nodes.iter().map(|node| self.member(*node).metrics().leader).collect();
            if leaders.len() == 1 { leaders.into_iter().next()? } else { None }
        })
        .await
    }

    /// The leader that all running members name, when they all do.
    pub(crate) fn agreed_leader(&self) -> Option<NodeId> {
        let leaders: BTreeSet<_> =
            self.members.values().map(|member| member.metrics().leader).collect();
        let only = if leaders.len() == 1 { leaders.into_iter().next()? } else { None };
        only.filter(|leader| self.members.contains_key(leader))
    }

    pub(crate) async fn leader(&self) -> NodeId {
        eventually("a leader all agree on", || self.agreed_leader()).await
    }

    /// Waits until every running member has applied the same map, and returns its version.
    pub(crate) async fn converge(&self) -> u64 {
        let current = self.members.values().next().unwrap().linearizable().await.unwrap();
        eventually("equal maps", || {
            let same = self.members.values().all(|member| *member.map() == *current);
            same.then_some(())
        })
        .await;
        current.version
    }

    pub(crate) async fn metrics_of(
        &self,
        node: NodeId,
        what: &str,
        holds: impl Fn(&GroupMetrics) -> bool,
    ) {
        eventually(what, || holds(&self.members[&node].metrics()).then_some(())).await;
    }
}

pub(crate) async fn eventually<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn addresses() -> NodeAddresses {
    let at = |port: u16| ([127, 0, 0, 1], port).into();
    NodeAddresses { quic: at(1), api: at(2), nbd: at(3) }
}

pub(crate) fn init(size: u64) -> Command {
    let share = |no: u64| ShareHolder { node: NodeId(no), share: no as u8 };
    Command::InitCluster {
        cluster: ClusterId(Uuid::from_u128(0xc1)),
        nodes: (1..=size).map(|no| (NodeId(no), format!("node-{no}"), addresses())).collect(),
        custody: Custody {
            share_epoch: 1,
            threshold: 2,
            holders: (1..=size).map(share).collect(),
            commitments: vec![1],
            sealed_for_recovery: Vec::new(),
        },
        recovery: None,
    }
}

/// A command that can be recognised in the map by its number.
pub(crate) fn numbered(no: u64) -> Command {
    Command::RegisterStore(StoreStart::first(numbered_store(no), NodeId(1), Incarnation(0)))
}

pub(crate) fn numbered_store(no: u64) -> StoreId {
    StoreId(Uuid::from_u128(0x1000 + u128::from(no)))
}

/// A command that counts how often it was applied.
pub(crate) fn counting() -> Command {
    Command::RegisterNode { node: NodeId(1), addresses: addresses() }
}

pub(crate) async fn accepted(member: &RaftGroup, command: Command) -> Applied {
    let applied = member.propose_within(command, PATIENCE).await.unwrap();
    assert!(!matches!(applied, Applied::Rejected(_)), "{applied:?}");
    applied
}
