//! Who is alive, as seen from here: every node calls every other one a few times a second, and hears
//! which stores it runs.

use crate::fabric::{Fabric, service};
use crate::shard_store::{LocalStores, StoreHandle, StoreSpace};
use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use smalti_map::plan::{InVain, Sight};
use smalti_map::reach::Views;
use smalti_map::view::MapView;
use smalti_map::{ClusterMap, Store};
use smalti_net::Service;
use smalti_raft::RaftGroup;
use smalti_rowcommit::governor::Burden;
use smalti_storage::ids::{Incarnation, NodeId, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::TaskTracker;

/// Between two calls to a node.
const EVERY: Duration = Duration::from_millis(100);

/// Before an answer. A node of before there were any answers with nothing; version 1 had no space,
/// version 2 no start, version 3 neither whom the node hears nor the pace of its disks, version 4 no burden, version 5
/// no disk that is too full even for trims, version 6 no moves that do not get on, version 7 no shares, version 8 no
/// custodians that are locked.
const VERSION: u8 = 9;

/// What a node answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    /// Under which start it has joined the cluster; none before it has.
    start: Option<Incarnation>,
    /// It may vote in the metadata group, as far as its store goes.
    votes: bool,
    /// The stores that may serve.
    stores: Vec<(StoreId, StoreSpace)>,
    /// What a batch takes on the disks of those that have had something to do.
    paces: Vec<(StoreId, Duration)>,
    /// Other nodes that it hears.
    hears: BTreeSet<NodeId>,
    told: NodeRepairs,
}

/// What a node tells of the volumes that it coordinates, and of the shares it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeRepairs {
    /// What is repaired there, and how its clients bear that.
    pub(super) burden: Burden,
    /// Slots that are on their way to another store and do not get on.
    pub(super) in_vain: InVain,
    /// Shares that its custodian should have and has not.
    pub(super) lacking: u32,
    /// Why its custodian can not use its shares just now, as in "it is ..."; empty: it can.
    pub(super) shares_problem: String,
    /// Of the leader: why secrets are not dealt on to those who are to hold them.
    pub(super) custody_problem: String,
}

/// What other nodes answered, and when.
#[derive(Debug)]
pub struct Beats {
    me: NodeId,
    own: LocalStores,
    start: watch::Receiver<Option<Incarnation>>,
    since: Instant,
    suspect_after: Duration,
    heard: Mutex<BTreeMap<NodeId, Heard>>,
}

#[derive(Debug)]
struct Heard {
    at: Instant,
    /// It answered something that is understood here; else the rest says nothing.
    understood: bool,
    start: Option<Incarnation>,
    votes: bool,
    stores: Vec<(StoreId, StoreSpace)>,
    paces: Vec<(StoreId, Duration)>,
    hears: BTreeSet<NodeId>,
    told: NodeRepairs,
    /// Since when it has told of just these stores.
    since: Instant,
}

impl Heard {
    /// The stores that a start of the node runs, and since when just these. What an earlier start told says
    /// nothing of it: those stores may be gone, and another one there that is not known to run yet.
    fn of_start(&self, start: Incarnation) -> (Instant, &[(StoreId, StoreSpace)]) {
        match self.start < Some(start) {
            true => (self.at, &[]),
            false => (self.since, &self.stores),
        }
    }

    fn ids(stores: &[(StoreId, StoreSpace)]) -> impl Iterator<Item = StoreId> {
        stores.iter().map(|(store, _)| *store)
    }
}

impl Beats {
    pub(super) fn start(
        me: NodeId,
        fabric: Fabric,
        mut map: watch::Receiver<MapView>,
        suspect_after: Duration,
        (own, start): (LocalStores, watch::Receiver<Option<Incarnation>>),
        tasks: &TaskTracker,
    ) -> Arc<Self> {
        let (since, heard) = (Instant::now(), Mutex::default());
        let beats = Arc::new(Self { me, own, start, since, suspect_after, heard });
        let shared = Arc::clone(&beats);
        let spawner = tasks.clone();
        tasks.spawn(async move {
            let mut known: BTreeMap<NodeId, tokio::task::AbortHandle> = BTreeMap::new();
            loop {
                let nodes: Vec<NodeId> =
                    map.borrow_and_update().nodes.keys().copied().filter(|n| *n != me).collect();
                known.retain(|node, task| {
                    let keep = nodes.contains(node);
                    if !keep {
                        task.abort();
                    }
                    keep
                });
                for node in nodes {
                    known.entry(node).or_insert_with(|| {
                        let shared = Arc::clone(&shared);
                        let fabric = fabric.clone();
                        let beat = shared.follow(node, fabric);
                        spawner.spawn(beat).abort_handle()
                    });
                }
                if map.changed().await.is_err() {
                    return;
                }
            }
        });
        beats
    }

    async fn follow(self: Arc<Self>, node: NodeId, fabric: Fabric) {
        let timeout = self.suspect_after;
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            if let Ok(answer) = fabric.call(node, service::BEAT, Bytes::new(), timeout).await {
                let (now, answer) = (Instant::now(), decode(&answer));
                let understood = answer.is_some();
                let answer = answer.unwrap_or_default();
                let Answer { start, votes, stores, paces, hears, told } = answer;
                let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
                let before = heard.get(&node);
                let same = before.filter(|b| Heard::ids(&b.stores).eq(Heard::ids(&stores)));
                let since = same.map_or(now, |before| before.since);
                let heard_now =
                    Heard { at: now, understood, start, votes, stores, paces, hears, told, since };
                heard.insert(node, heard_now);
            }
        }
    }

    /// How long a node has not answered; zero for this one. One that never answered counts from
    /// this node's own start.
    pub fn silent_for(&self, node: NodeId) -> Duration {
        if node == self.me {
            return Duration::ZERO;
        }
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&node).map_or(self.since, |heard| heard.at).elapsed()
    }

    /// Other nodes that answered a moment ago.
    fn hears(&self) -> BTreeSet<NodeId> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = heard.iter().filter(|(_, heard)| heard.at.elapsed() < self.suspect_after);
        fresh.map(|(node, _)| *node).collect()
    }

    /// Whom this node hears, and whom those hear, as they say.
    pub(super) fn views(&self) -> Views {
        let hears = self.hears();
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = hears.iter().filter_map(|node| Some((*node, heard.get(node)?.hears.clone())));
        let mut views: Views = theirs.collect();
        views.insert(self.me, hears);
        for (node, hears) in &mut views {
            hears.insert(*node);
        }
        views
    }

    /// Whether another node says that it may vote.
    pub(super) fn is_voter(&self, node: NodeId) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&node).is_some_and(|heard| heard.votes)
    }

    /// Under which start a node has joined the cluster, by what it answered last.
    pub fn start_of(&self, node: NodeId) -> Option<Incarnation> {
        if node == self.me {
            return *self.start.borrow();
        }
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&node).and_then(|heard| heard.start)
    }

    /// Whether a node says that it has not joined the cluster since it started: what it held before is not
    /// its any more.
    pub(super) fn is_outside(&self, node: NodeId) -> bool {
        if node == self.me {
            return self.start.borrow().is_none();
        }
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&node).is_some_and(|heard| heard.understood && heard.start.is_none())
    }

    /// The stores that a node runs and that may serve, by what it answered last.
    pub fn stores_of(&self, node: NodeId) -> Vec<(StoreId, StoreSpace)> {
        if node == self.me {
            return serving(&self.own);
        }
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&node).map(|heard| heard.stores.clone()).unwrap_or_default()
    }

    /// What is seen of every store of the map, for plans. A node that has been silent for less than
    /// `patience` counts as there.
    pub fn sights(&self, map: &ClusterMap, patience: Duration) -> BTreeMap<StoreId, Sight> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let sight = |(id, store): (&StoreId, &Store)| {
            let start = map.nodes.get(&store.node).map_or(Incarnation(0), |node| node.incarnation);
            let (silent, since, stores) = match heard.get(&store.node) {
                _ if store.node == self.me => (Duration::ZERO, self.since, serving(&self.own)),
                Some(heard) => {
                    let (since, stores) = heard.of_start(start);
                    (heard.at.elapsed(), since, stores.to_vec())
                }
                None => (self.since.elapsed(), self.since, Vec::new()),
            };
            let space = stores.iter().find(|(found, _)| found == id).map(|(_, space)| *space);
            let away = match space {
                _ if silent >= patience => Some(silent),
                Some(_) => None,
                None => Some(since.elapsed()),
            };
            let room = space.map(|space| space.room);
            let used = space.map_or(0, |space| space.used);
            (*id, Sight { away, room, used })
        };
        map.stores.iter().map(sight).collect()
    }

    /// What a batch takes on the disks of all nodes that are heard, where that is known.
    pub fn paces(&self) -> BTreeMap<StoreId, Duration> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = heard.values().filter(|heard| heard.at.elapsed() < self.suspect_after);
        let theirs = fresh.flat_map(|heard| heard.paces.iter().copied());
        theirs.chain(paces(&self.own)).collect()
    }

    /// What the other nodes that are heard repair, and how their clients bear it.
    pub(super) fn burden(&self) -> Burden {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = heard.values().filter(|heard| heard.at.elapsed() < self.suspect_after);
        fresh.map(|heard| heard.told.burden).fold(Burden::default(), Burden::and)
    }

    /// Slots that are on their way to another store and do not get on, by what all say that are heard.
    pub(super) fn in_vain(&self, here: InVain) -> InVain {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = heard.values().filter(|heard| heard.at.elapsed() < self.suspect_after);
        let mut all = here;
        for (volume, places) in fresh.flat_map(|heard| &heard.told.in_vain) {
            all.entry(*volume).or_default().extend(places);
        }
        all
    }

    /// How many shares another node says that it lacks.
    pub(super) fn lacking(&self, node: NodeId) -> u32 {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&node).map_or(0, |heard| heard.told.lacking)
    }

    /// Why the custodian of another node can not use its shares, as that says; empty: it can.
    pub(super) fn shares_problem(&self, node: NodeId) -> String {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&node).map(|heard| heard.told.shares_problem.clone()).unwrap_or_default()
    }

    /// What another node, the leader, says of custody; empty: nothing.
    pub(super) fn custody_problem(&self, leader: NodeId) -> String {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&leader).map(|heard| heard.told.custody_problem.clone()).unwrap_or_default()
    }

    /// Whether the node has answered at all since this one started.
    pub fn ever_heard(&self, node: NodeId) -> bool {
        node == self.me
            || self.heard.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&node)
    }
}

fn serving(stores: &LocalStores) -> Vec<(StoreId, StoreSpace)> {
    let serving = stores.iter().filter(|store| store.may_serve());
    serving.map(|store: &StoreHandle| (store.id(), store.space())).collect()
}

fn paces(stores: &LocalStores) -> Vec<(StoreId, Duration)> {
    stores.iter().filter_map(|store| Some((store.id(), store.pace()?))).collect()
}

fn encode(answer: &Answer) -> Bytes {
    postcard::to_extend(answer, vec![VERSION]).expect("a vector grows").into()
}

/// `None`: another program's.
fn decode(answer: &[u8]) -> Option<Answer> {
    match answer.split_first() {
        Some((&VERSION, answer)) => postcard::from_bytes(answer).ok(),
        _ => None,
    }
}

/// Answers heartbeats.
pub(super) struct BeatService {
    pub(super) stores: LocalStores,
    pub(super) start: watch::Receiver<Option<Incarnation>>,
    pub(super) raft: RaftGroup,
    pub(super) beats: Arc<Beats>,
    pub(super) told: watch::Receiver<NodeRepairs>,
}

impl Service for BeatService {
    fn call(&self, _from: NodeId, _request: Bytes) -> BoxFuture<'_, Bytes> {
        let (start, stores) = (*self.start.borrow(), serving(&self.stores));
        let hears = self.beats.hears();
        let (votes, paces) = (!self.raft.is_recruit(), paces(&self.stores));
        let told = self.told.borrow().clone();
        let answer = Answer { start, votes, stores, paces, hears, told };
        Box::pin(std::future::ready(encode(&answer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_storage::ids::{GroupNo, Slot, VolumeNo};

    #[test]
    fn what_an_earlier_start_ran_is_not_what_the_present_one_runs() {
        let since = Instant::now();
        let at = since + Duration::from_secs(9);
        let stores = vec![(StoreId::default(), StoreSpace::default())];
        let mut heard = Heard {
            at,
            understood: true,
            start: Some(Incarnation(1)),
            votes: true,
            stores: stores.clone(),
            paces: Vec::new(),
            hears: BTreeSet::new(),
            told: NodeRepairs::default(),
            since,
        };
        assert_eq!(heard.of_start(Incarnation(1)), (since, &stores[..]));
        // Known of no sooner than it was last heard: so it is away for a moment, and not for nine seconds.
        assert_eq!(heard.of_start(Incarnation(2)), (at, &[][..]));
        heard.start = None;
        assert_eq!(heard.of_start(Incarnation(1)), (at, &[][..]));
    }

    #[test]
    fn answers_tell_the_stores() {
        let space = StoreSpace { total: 9, free: 8, room: 7, ..StoreSpace::default() };
        let stores = [
            (StoreId::default(), StoreSpace::default()),
            (StoreId(uuid::Uuid::from_u128(7)), space),
        ];
        for some in 0..=stores.len() {
            let start = (some > 0).then_some(Incarnation(some as u64));
            let hears = (0..some as u64).map(NodeId).collect();
            let stores = stores[..some].to_vec();
            let paces = vec![(StoreId::default(), Duration::from_millis(3)); some];
            let burden = Burden { at_work: some > 0, busy: some > 1, waits: false };
            let places = |no: u16| (0..no).map(|no| (GroupNo(no), Slot(1))).collect();
            let in_vain = (0..some).map(|no| (VolumeNo(no as u32), places(no as u16))).collect();
            let (shares_problem, custody_problem) = ("locked".into(), "n1 is away".into());
            let told = NodeRepairs { burden, in_vain, lacking: 3, shares_problem, custody_problem };
            let answer = Answer { start, votes: some > 1, stores, paces, hears, told };
            assert_eq!(decode(&encode(&answer)), Some(answer));
        }
        // One of which nothing is known has not said that it has not joined.
        for other in [&[][..], &[VERSION + 1, 0], &[VERSION - 1, 0], &[VERSION]] {
            assert_eq!(decode(other), None);
        }
    }
}
