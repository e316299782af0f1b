//! The handle of a group on one member.

mod config;
mod errors;
mod lead;
mod members;
mod metrics;
mod serve;
#[cfg(test)]
mod tests;

pub use config::{POSITIONS, RaftGroupConfig};
pub use errors::{InitializeError, ProposeError, StartError};
pub use members::MemberError;
pub use metrics::{GroupMetrics, Role};

use crate::codec;
use crate::db::{Db, DbError};
use crate::log_store::LogStore;
use crate::network::Network;
use crate::recruit::Recruit;
use crate::rpc::{Request, Response};
use crate::state_machine::{Published, StateMachine};
use crate::transport::RaftTransport;
use crate::types::{MAX_COMMAND_BYTES, Proposal, ProposalId, Raft};
use openraft::EmptyNode;
use smalti_map::view::MapView;
use smalti_map::{Applied, Command};
use smalti_storage::ids::{NodeId, RaftStoreId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

/// How long [`RaftGroup::propose`] and [`RaftGroup::linearizable`] go on trying. Elections take
/// about a second; this outlasts several.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);

/// The longest one attempt waits for an answer, at either end. A leader without a majority never
/// answers, and does not know that it should not be asked.
const ATTEMPT: Duration = Duration::from_secs(2);

/// Between two attempts, so that a quick refusal does not make a busy loop.
const PAUSE: Duration = Duration::from_millis(20);

/// How long [`RaftGroup::shutdown`] waits for the store to be let go.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// One member of the group that keeps the cluster map. Cheap to clone; all clones are the same
/// member. Ends with [`RaftGroup::shutdown`].
#[derive(Clone)]
pub struct RaftGroup {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    raft: Raft,
    network: Network,
    map: watch::Receiver<MapView>,
    next_index: watch::Receiver<u64>,
    metrics: watch::Receiver<GroupMetrics>,
    recruit: Arc<Recruit>,
    /// It leads, and is to send nothing.
    gives_way: AtomicBool,
    /// Who is to lead next, and until when nobody else gets a vote.
    favoured: watch::Sender<Option<(NodeId, Instant)>>,
    /// Who would lead this member, were it no recruit.
    leads: watch::Sender<Option<NodeId>>,
    session: u64,
    proposals: AtomicU64,
    /// Ends with the store.
    open: watch::Receiver<()>,
    #[cfg(test)]
    db: std::sync::Weak<Db>,
}

impl RaftGroup {
    /// Opens the store in `config.dir`, or makes it, and takes up the group's work. The map as of
    /// the last known commit is there when this returns; it may be behind the group.
    ///
    /// # Errors
    /// [`StartError`] when the store can not be opened, is damaged, of a newer program or of
    /// another node, or when the configuration makes no sense.
    pub async fn start(
        config: RaftGroupConfig,
        transport: Arc<dyn RaftTransport>,
    ) -> Result<Self, StartError> {
        let options = Arc::new(config.openraft()?);
        let node = config.node;
        let dir = config.dir;
        let trusted = config.trusted;
        let opened = tokio::task::spawn_blocking(move || {
            let db = Db::open(&dir, node.0)?;
            let recruit = Recruit::load(&db, trusted)?;
            Ok::<_, DbError>((db, recruit))
        });
        let (db, recruit) = opened.await.map_err(StartError::store)?.map_err(StartError::store)?;
        let (db, recruit) = (Arc::new(db), Arc::new(recruit));
        let open = db.open_until();
        #[cfg(test)]
        let weak = Arc::downgrade(&db);

        let published = Published::default();
        let map = published.map.subscribe();
        let next_index = published.next_index.subscribe();
        let machine = StateMachine::load(Arc::clone(&db), published).await;
        let machine = machine.map_err(StartError::store)?;
        let seen = Arc::new(OnceLock::new());
        let network = Network {
            transport,
            recruit: Arc::clone(&recruit),
            map: map.clone(),
            metrics: Arc::clone(&seen),
        };
        let log = LogStore::new(Arc::clone(&db));
        let raft = Raft::new(node.0, options, network.clone(), log, machine).await;
        let raft = raft.map_err(StartError::store)?;
        let metrics = metrics::translate(node, raft.metrics());
        // Nobody else sets it.
        let _ = seen.set(metrics.clone());
        if !recruit.is_admitted() {
            let elections = raft.clone();
            let elect = move |may| elections.runtime_config().elect(may);
            tokio::spawn(admit(
                db,
                Arc::clone(&recruit),
                (node, map.clone()),
                metrics.clone(),
                elect,
            ));
        }
        let inner = Inner {
            node,
            raft,
            network,
            map,
            next_index,
            metrics,
            recruit,
            gives_way: AtomicBool::new(false),
            favoured: watch::Sender::new(None),
            leads: watch::Sender::new(None),
            session: rand::random(),
            proposals: AtomicU64::new(0),
            open,
            #[cfg(test)]
            db: weak,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// This member.
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// The identity of this member's store. While the map names another one, it does not vote: see
    /// [`crate::RaftGroup::is_recruit`].
    pub fn store(&self) -> RaftStoreId {
        self.inner.recruit.id()
    }

    /// Whether this member's store is not the one that the group knows it by.
    pub fn is_recruit(&self) -> bool {
        !self.inner.recruit.is_admitted()
    }

    /// Founds the group with these voters. To be called once in the life of a group, on one of
    /// its members or on several with the same list.
    ///
    /// # Errors
    /// [`InitializeError::Already`] when this member has been in a group before.
    pub async fn initialize(&self, voters: &[NodeId]) -> Result<(), InitializeError> {
        if !voters.contains(&self.inner.node) {
            return Err(InitializeError::NotAMember(self.inner.node));
        }
        let members: BTreeMap<u64, EmptyNode> =
            voters.iter().map(|node| (node.0, EmptyNode {})).collect();
        self.inner.raft.initialize(members).await.map_err(InitializeError::from)
    }

    /// Proposes a command and returns what it did, on whichever member this is: it is passed on
    /// to the leader and tried again while there is none, for ten seconds.
    ///
    /// Attempts carry one identity, so an answered command was applied once even if attempts
    /// were doubled on the way. After an error nothing is known: the command may have been applied, or
    /// may still be. And the memory of the group for identities is finite
    /// ([`REMEMBERED_ANSWERS`](crate::REMEMBERED_ANSWERS)). Every command is therefore a
    /// compare-and-set or idempotent by itself; look at the map before proposing again.
    ///
    /// # Errors
    /// [`ProposeError`]; a refusal of the command by the map is no error but
    /// [`Applied::Rejected`].
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        self.propose_within(command, DEFAULT_PATIENCE).await
    }

    /// As [`Self::propose`], with another patience.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn propose_within(
        &self,
        command: Command,
        patience: Duration,
    ) -> Result<Applied, ProposeError> {
        let deadline = Instant::now() + patience;
        let size = codec::encode(&command).map_err(|error| ProposeError::encoding(&error))?.len();
        if size > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLarge(size));
        }
        let id = ProposalId {
            node: self.inner.node.0,
            session: self.inner.session,
            seq: self.inner.proposals.fetch_add(1, Ordering::Relaxed),
        };
        let request = Request::Propose(Proposal { id, command });
        match self.ask_leader(&request, deadline).await? {
            Response::Propose(applied) => Ok(applied),
            other => Err(ProposeError::Unexpected(format!("{other:?}"))),
        }
    }

    /// A map that contains every command answered before this call, anywhere. Needs a majority
    /// and a round of messages; tried again while there is no leader, for ten seconds.
    ///
    /// # Errors
    /// [`ProposeError`] when no majority confirmed in time.
    pub async fn linearizable(&self) -> Result<MapView, ProposeError> {
        self.linearizable_within(DEFAULT_PATIENCE).await
    }

    /// As [`Self::linearizable`], with another patience.
    ///
    /// # Errors
    /// As [`Self::linearizable`].
    pub async fn linearizable_within(&self, patience: Duration) -> Result<MapView, ProposeError> {
        let deadline = Instant::now() + patience;
        let index = match self.ask_leader(&Request::ReadIndex, deadline).await? {
            Response::ReadIndex(index) => index,
            other => return Err(ProposeError::Unexpected(format!("{other:?}"))),
        };
        let mut next_index = self.inner.next_index.clone();
        let applied = timeout_at(deadline, next_index.wait_for(|next| *next >= index)).await;
        match applied {
            // The map is published before the index.
            Ok(Ok(_)) => Ok(self.map()),
            Ok(Err(_closed)) => Err(self.stopped()),
            Err(_elapsed) => Err(ProposeError::Timeout { last: "applying the log".into() }),
        }
    }

    /// The newest map applied here: consistent, perhaps behind. Never waits.
    pub fn map(&self) -> MapView {
        Arc::clone(&self.inner.map.borrow())
    }

    /// The newest map applied here, and notice of newer ones. A slow reader skips versions.
    pub fn watch(&self) -> watch::Receiver<MapView> {
        self.inner.map.clone()
    }

    /// Leader, term and role as known here.
    pub fn metrics(&self) -> GroupMetrics {
        self.inner.metrics.borrow().clone()
    }

    /// As [`Self::metrics`], with notice of changes.
    pub fn watch_metrics(&self) -> watch::Receiver<GroupMetrics> {
        self.inner.metrics.clone()
    }

    /// Waits until this member has stopped by itself or by [`Self::shutdown`], and says why.
    /// After a storage error the owner must stop the process, and not start the group again in
    /// it: what a failed sync left behind is not known.
    pub async fn stopped_because(&self) -> String {
        let mut metrics = self.inner.metrics.clone();
        match metrics.wait_for(|metrics| metrics.stopped.is_some()).await {
            Ok(metrics) => metrics.stopped.clone().unwrap_or_default(),
            Err(_closed) => "raft stopped".into(),
        }
    }

    /// Makes the leader take a snapshot of the map now and drop the log before it.
    ///
    /// # Errors
    /// [`ProposeError::Stopped`] when this member has stopped.
    pub async fn snapshot(&self) -> Result<(), ProposeError> {
        self.inner.raft.trigger().snapshot().await.map_err(|error| ProposeError::stopped(&error))
    }

    /// Stops this member and lets go of its store.
    ///
    /// # Errors
    /// [`ProposeError::Timeout`] when the store is still in use after ten seconds.
    pub async fn shutdown(&self) -> Result<(), ProposeError> {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(%error, "the raft task of the cluster map panicked");
        }
        // Tasks of openraft may outlive its shutdown by a moment, and hold the store.
        let mut open = self.inner.open.clone();
        match timeout(CLOSE_PATIENCE, open.changed()).await {
            Ok(_closed) => Ok(()),
            Err(_elapsed) => Err(ProposeError::Timeout { last: "closing the raft store".into() }),
        }
    }

    /// Asks whoever leads until there is an answer.
    async fn ask_leader(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, ProposeError> {
        let mut last = "there is no leader".to_owned();
        loop {
            let mut metrics = self.inner.metrics.clone();
            let mut leads = self.inner.leads.subscribe();
            let known = async {
                let known = metrics.wait_for(|m| m.leader.is_some() || m.stopped.is_some());
                tokio::select! {
                    biased;
                    known = known => match known {
                        Ok(metrics) if metrics.stopped.is_none() => Some(metrics.leader),
                        _ => None,
                    },
                    // A recruit that follows nobody asks whoever would lead it.
                    Ok(leads) = leads.wait_for(Option::is_some) => Some(*leads),
                }
            };
            let leader = match timeout_at(deadline, known).await {
                Ok(Some(leader)) => leader,
                Ok(None) => return Err(self.stopped()),
                Err(_elapsed) => return Err(ProposeError::Timeout { last }),
            };
            let Some(leader) = leader else { continue };
            let follows = self.inner.metrics.borrow().leader == Some(leader);
            let limit = deadline.min(Instant::now() + ATTEMPT);
            // A dead leader does not answer that it is dead: a new one ends the wait for it.
            let other = metrics
                .wait_for(|m| m.leader.is_some() != follows || follows && m.leader != Some(leader));
            let outcome = tokio::select! {
                outcome = self.attempt(leader, request, limit) => outcome,
                _ = other => Err(format!("{leader} does not lead any more")),
            };
            match outcome {
                Ok(Response::NotLeader) => last = format!("{leader} does not lead a majority"),
                Ok(Response::Stopped) if leader == self.inner.node => return Err(self.stopped()),
                Ok(Response::Stopped) => last = format!("{leader} has stopped"),
                Ok(Response::Refused(reason)) => return Err(ProposeError::Unexpected(reason)),
                Ok(response) => return Ok(response),
                Err(reason) => last = reason,
            }
            if !follows {
                self.inner.leads.send_replace(None);
            }
            let next = Instant::now() + PAUSE;
            if next >= deadline {
                return Err(ProposeError::Timeout { last });
            }
            sleep_until(next).await;
        }
    }

    async fn attempt(
        &self,
        leader: NodeId,
        request: &Request,
        limit: Instant,
    ) -> Result<Response, String> {
        let left = limit.saturating_duration_since(Instant::now());
        let answer = async {
            if leader == self.inner.node {
                return Ok(match request {
                    Request::Propose(proposal) => self.lead_proposal(proposal.clone()).await,
                    _ => self.lead_read().await,
                });
            }
            self.inner.network.call(leader.0, request, left).await.map_err(|e| e.to_string())
        };
        let answer = timeout_at(limit, answer).await;
        answer.unwrap_or_else(|_| Err(format!("{leader} did not answer in {left:?}")))
    }

    fn stopped(&self) -> ProposeError {
        let reason = self.inner.metrics.borrow().stopped.clone();
        ProposeError::Stopped(reason.unwrap_or_else(|| "raft stopped".into()))
    }
}

impl std::fmt::Debug for RaftGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftGroup").field("node", &self.inner.node).finish_non_exhaustive()
    }
}

/// Follows the map until it names this store. Until then the member does not campaign once it has
/// entries: whoever lacks nothing of a group need not fear to have forgotten anything.
async fn admit(
    db: Arc<Db>,
    recruit: Arc<Recruit>,
    (node, mut map): (NodeId, watch::Receiver<MapView>),
    mut metrics: watch::Receiver<GroupMetrics>,
    elect: impl Fn(bool),
) {
    loop {
        let now = map.borrow_and_update().clone();
        match recruit.look(&db, node, &now).await {
            Ok(true) => return elect(true),
            Ok(false) => {}
            // The next write of the member meets it too, and ends the process.
            Err(error) => {
                tracing::error!(%error, "can not note that the store is known to the group");
                return;
            }
        }
        elect(metrics.borrow_and_update().log_len <= 1);
        let changed = tokio::select! {
            changed = map.changed() => changed,
            changed = metrics.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}
