//! Starting a member: the store is opened, the services answer, the Raft group runs; then, as
//! soon as a majority is there, node and store register.

use super::Member;
use super::beats::{BeatService, Beats, NodeRepairs};
use super::damage;
use super::member_inner::Inner;
use super::seats::SeatService;
use crate::custodian::{self, CustodianArgs, CustodyClient, CustodyService, Holdings, Vault};
use crate::fabric::{AddressBook, Fabric, service};
use crate::introduction::{Introductions, be_introduced};
use crate::shard_store::{self, Fatal, ShardStoreArgs, ShardStoreMsg, StoreSessions};
use bytes::Bytes;
use futures::future::BoxFuture;
use smalti_map::view::MapView;
use smalti_map::voters;
use smalti_map::{Applied, Command, Custody, NodeAddresses, Recovery, Rejection, StoreStart};
use smalti_net::{Endpoint, NetConfig, NodeCredentials, Service};
use smalti_raft::{POSITIONS, RaftGroup, RaftGroupConfig};
use smalti_rocks::{Expect, RocksOptions, RocksStore};
use smalti_rowcommit::store::StoreConfig;
use smalti_storage::ids::{ClusterId, Incarnation, NodeId, RunId};
use smalti_storage::keys::KeyProvider;
use smalti_storage::store::{Admission, Opened, ShardStore, StoreError};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// Between two attempts to register while no majority is up.
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// Everything a member needs to start.
#[derive(Debug)]
pub struct MemberConfig {
    /// This node.
    pub node: NodeId,
    /// The cluster.
    pub cluster: ClusterId,
    /// Where the store and the Raft log are kept.
    pub data_dir: PathBuf,
    /// Where shares of secrets are kept.
    pub shares_dir: PathBuf,
    /// What seals them.
    pub key_provider: Arc<dyn KeyProvider>,
    /// Where this node listens.
    pub addresses: NodeAddresses,
    /// The other nodes as configured; the map knows newer ones.
    pub peers: Vec<(NodeId, std::net::SocketAddr)>,
    /// What it proves itself with.
    pub credentials: NodeCredentials,
    /// On the founding node: what to found.
    pub founding: Option<Founding>,
    /// How long a read lease lasts.
    pub lease: Duration,
    /// How long a store may owe an answer.
    pub suspect_after: Duration,
    /// How long it may while another one came up after a power cut and has not been compared.
    pub power_patience: Duration,
    /// For how long a store may be away before its slots are rebuilt elsewhere.
    pub down_out: Duration,
    /// For how long a disk that was far slower than others is done without, at first.
    pub slow_out: Duration,
    /// Each group is scrubbed again after so long; zero: only when asked.
    pub scrub_every: Duration,
    /// All shares become new ones after so long; zero: never by themselves.
    pub refresh_every: Duration,
    /// Cancelled when the process is to end, before the member is shut down.
    pub stopping: CancellationToken,
}

/// A new cluster.
#[derive(Clone, Debug)]
pub struct Founding {
    /// Its first members.
    pub nodes: Vec<(NodeId, String, NodeAddresses)>,
    /// Custody of its master secret, already dealt.
    pub custody: Custody,
    /// What every secret is to be sealed to besides.
    pub recovery: Option<Recovery>,
}

/// Why a member did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The store can not be opened.
    #[error("shard store: {0}")]
    Store(String),
    /// The QUIC endpoint can not be bound.
    #[error("QUIC endpoint: {0}")]
    Endpoint(String),
    /// The Raft log can not be opened.
    #[error("raft: {0}")]
    Raft(String),
    /// An actor did not start.
    #[error("actor: {0}")]
    Actor(String),
}

/// Why a node is not registered.
enum NotIn {
    /// It is to stop.
    Stopping,
    /// The map does not take it, and will not.
    Refused(String),
    /// Nor what this node is to found the cluster with.
    Unfounded(String),
}

impl NotIn {
    fn unexpected(answer: &Applied) -> Self {
        Self::Refused(format!("it answered {answer:?}"))
    }
}

struct RaftService {
    group: RaftGroup,
}

impl Service for RaftService {
    fn call(&self, from: NodeId, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(self.group.handle(from, request))
    }
}

impl Member {
    /// Starts. Returns when everything local runs; joining the cluster goes on by itself.
    ///
    /// # Errors
    /// [`StartError`], one line each.
    pub async fn start(config: MemberConfig) -> Result<Self, StartError> {
        let store = open_store(&config).await?;
        if let Err(why) = &store {
            tracing::error!(why, "this node starts without its store");
        }
        let book = Arc::new(AddressBook::new(
            config.peers.iter().copied().chain([(config.node, config.addresses.quic)]),
        ));
        let endpoint = Endpoint::bind(
            config.addresses.quic,
            &config.credentials,
            Arc::clone(&book) as _,
            NetConfig::default(),
        )
        .map_err(|error| StartError::Endpoint(error.to_string()))?;
        let fabric = Fabric::new(endpoint.clone(), Arc::clone(&book));
        let raft = start_raft(&config, &fabric).await?;
        let tasks = TaskTracker::new();
        let (fatal_tx, fatal) = mpsc::channel(1);
        let (ended_tx, ended) = oneshot::channel();
        let actor_failed = |error: ractor::SpawnErr| StartError::Actor(error.to_string());
        let (mut store_actors, mut stores) = (Vec::new(), Vec::new());
        if let Ok(store) = &store {
            let args = ShardStoreArgs {
                store: Arc::clone(store),
                config: StoreConfig { lease_max: config.lease, ..StoreConfig::default() },
                fatal: fatal_tx.clone(),
                ended: ended_tx,
            };
            let (actor, handle) = shard_store::start(args).await.map_err(actor_failed)?;
            store_actors.push(actor);
            stores.push(handle);
        }
        let stores = Arc::new(stores);
        let vault = Vault::new(
            config.shares_dir.clone(),
            config.cluster,
            config.node,
            Arc::clone(&config.key_provider),
        );
        let (tell_holdings, holdings) = watch::channel(Holdings::default());
        let (node, fabric_of) = (config.node, fabric.clone());
        let args = CustodianArgs {
            node,
            vault,
            map: raft.watch(),
            fabric: fabric_of,
            holdings: tell_holdings,
        };
        let custodian = custodian::start(args).await.map_err(actor_failed)?;
        let custody = CustodyService { actor: custodian.clone() };
        let custodians = CustodyClient::new(config.node, fabric.clone(), custody.clone());
        let incarnation = watch::Sender::new(None);
        let start = incarnation.subscribe();
        let beats = Beats::start(
            config.node,
            fabric.clone(),
            raft.watch(),
            config.suspect_after,
            (Arc::clone(&stores), incarnation.subscribe()),
            &tasks,
        );
        let heard = Arc::clone(&beats);
        let (tell, told) = watch::channel(NodeRepairs::default());
        let inner = Arc::new(Inner {
            node: config.node,
            cluster: config.cluster,
            incarnation,
            raft: raft.clone(),
            fabric,
            book,
            beats,
            custodians,
            stores: Arc::clone(&stores),
            store_actors,
            store_ended: tokio::sync::Mutex::new(Some(ended)),
            custodian,
            holdings,
            custody_problem: watch::Sender::default(),
            refresh_every: config.refresh_every,
            coders: std::sync::Mutex::default(),
            uses: std::sync::Mutex::default(),
            keys: std::sync::Mutex::default(),
            sessions: Arc::new(AtomicU64::new(1)),
            tasks: tasks.clone(),
            stop: CancellationToken::new(),
            stopping: config.stopping.clone(),
            fatal: tokio::sync::Mutex::new(fatal),
            data_dir: config.data_dir.clone(),
            lease: config.lease,
            suspect_after: config.suspect_after,
            power_patience: config.power_patience,
            down_out: config.down_out,
            slow_out: config.slow_out,
            slow: watch::Sender::default(),
            told: tell,
            half_heard: watch::Sender::default(),
            scrub_every: config.scrub_every,
            seat_suspect_after: config.suspect_after * 2,
        });
        let member_map = raft.watch();
        endpoint.serve(service::RAFT, Arc::new(RaftService { group: raft.clone() }));
        endpoint.serve(
            service::BEAT,
            Arc::new(BeatService { stores: Arc::clone(&stores), start, raft, beats: heard, told }),
        );
        endpoint.serve(service::CUSTODY, Arc::new(custody));
        let introductions = Introductions { map: member_map.clone() };
        endpoint.serve(service::MEMBERS, Arc::new(introductions));
        let seats = SeatService { member: Arc::downgrade(&inner) };
        endpoint.serve(service::SEATS, Arc::new(seats));
        let sessions = StoreSessions { stores: stores.to_vec(), tasks: tasks.clone() };
        endpoint.accept_sessions(service::ROWS, Arc::new(sessions));
        let member = Self { inner };
        match store {
            Ok(store) => {
                tasks.spawn(member.clone().join(config, store, fatal_tx));
            }
            Err(why) => {
                // The queue is empty yet.
                let _ = fatal_tx.try_send(Fatal::Damaged(why));
                // With a new Raft store it hears of nothing before the others know of that.
                let (follower, node) = (member.clone(), config.node);
                tasks.spawn(async move {
                    let store = follower.raft().store();
                    let known = Command::RegisterRaftStore { node, store };
                    if let Err(NotIn::Refused(why)) = follower.until_applied(known).await {
                        tracing::error!(why, "the cluster refuses this node");
                    }
                });
            }
        }
        tasks.spawn(member.clone().meet_members(member_map));
        tasks.spawn(member.clone().keep_seats());
        tasks.spawn(member.clone().keep_governed());
        tasks.spawn(member.clone().keep_places());
        tasks.spawn(member.clone().keep_told());
        tasks.spawn(member.clone().keep_custody());
        Ok(member)
    }

    /// Finds out whom to let in while this node has no map.
    async fn meet_members(self, map: watch::Receiver<MapView>) {
        let met = be_introduced(self.fabric().clone(), &self.inner.book, map);
        self.inner.stop.run_until_cancelled(met).await;
    }

    /// Founds the cluster where that is this node's part, then registers, for as long as it takes.
    async fn join(
        self,
        config: MemberConfig,
        store: Arc<dyn ShardStore>,
        fatal: mpsc::Sender<Fatal>,
    ) {
        let (opened, run) = (store.opened(), RunId(Uuid::new_v4()));
        let announced = tokio::task::spawn_blocking(move || store.announce(run)).await;
        if !self.inner.stop.is_cancelled()
            && let Err(error) = announced.map_err(|error| error.to_string()).and_then(|announced| {
                announced.map_err(|error| format!("shard store can not be registered: {error}"))
            })
        {
            tracing::error!(%error, "shard store failed");
            // The queue holds one message and the first failure is the one that counts.
            let _ = fatal.try_send(Fatal::Failed(error));
            return;
        }
        let registered = async {
            if let Some(founding) = &config.founding {
                self.found(&config, founding).await?;
            }
            self.register(&config, opened, run).await
        };
        let (of, admission) = match registered.await {
            Ok(registered) => registered,
            Err(NotIn::Stopping) => return,
            Err(NotIn::Refused(why)) => {
                let _ =
                    fatal.try_send(Fatal::Failed(format!("the cluster refused this node: {why}")));
                return;
            }
            Err(NotIn::Unfounded(why)) => {
                let _ =
                    fatal.try_send(Fatal::Failed(format!("the cluster can not be founded: {why}")));
                return;
            }
        };
        if opened.clean && !admission.clean {
            tracing::warn!(store = %opened.id, "the store's disk is not what its last run left \
                behind: what it has forgotten since is found out from the others");
        }
        for (actor, handle) in self.inner.store_actors.iter().zip(self.inner.stores.iter()) {
            let told = actor.cast(ShardStoreMsg::Admitted(admission));
            if told.is_err() || !handle.is_admitted().await {
                tracing::debug!("the shard store has ended");
                return;
            }
        }
        tracing::info!(node = %config.node, incarnation = %of, store = %opened.id,
            "joined the cluster");
        self.inner.incarnation.send_replace(Some(of));
    }

    /// Registers this start of the node, and that of its store with it.
    async fn register(
        &self,
        config: &MemberConfig,
        opened: Opened,
        run: RunId,
    ) -> Result<(Incarnation, Admission), NotIn> {
        let (node, store) = (config.node, opened.id);
        loop {
            let raft_store = self.raft().store();
            self.until_applied(Command::RegisterRaftStore { node, store: raft_store }).await?;
            let addresses = config.addresses.clone();
            let command = Command::RegisterNode { node, addresses };
            let of = match self.until_applied(command).await? {
                Applied::Registered(of) => of,
                other => return Err(NotIn::unexpected(&other)),
            };
            let Opened { incarnation, clean, run: last, announced, .. } = opened;
            let start = StoreStart { store, node, of, incarnation, run, last, clean, announced };
            match self.until_applied(Command::RegisterStore(start)).await? {
                Applied::RegisteredStore { incarnation, clean } => {
                    return Ok((of, Admission { run, incarnation, clean }));
                }
                // An earlier attempt to register this start came late and counted as a newer one.
                Applied::Rejected(Rejection::Incarnation) => {
                    tokio::time::sleep(RETRY_EVERY).await;
                }
                other => return Err(NotIn::unexpected(&other)),
            }
        }
    }

    async fn found(&self, config: &MemberConfig, founding: &Founding) -> Result<(), NotIn> {
        if self.map().cluster == config.cluster {
            return Ok(());
        }
        let nodes = founding.nodes.iter().map(|(id, ..)| *id);
        let voters: Vec<NodeId> = nodes.take(voters::wanted(founding.nodes.len())).collect();
        if let Err(error) = self.raft().initialize(&voters).await {
            tracing::debug!(%error, "raft group is there already");
        }
        let command = Command::InitCluster {
            cluster: config.cluster,
            nodes: founding.nodes.clone(),
            custody: founding.custody.clone(),
            recovery: founding.recovery.clone(),
        };
        let why = match self.until_applied(command).await {
            Ok(_) => return Ok(()),
            Err(NotIn::Refused(why)) => why,
            Err(stopping) => return Err(stopping),
        };
        // That it is founded may not have come here yet.
        while !self.inner.stop.is_cancelled() {
            match self.raft().linearizable().await {
                Ok(map) if map.cluster == config.cluster => return Ok(()),
                Ok(_) => return Err(NotIn::Unfounded(why)),
                Err(error) => tracing::info!(%error, "waiting for a majority"),
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
        Err(NotIn::Stopping)
    }

    /// Proposes until the map has taken it.
    async fn until_applied(&self, command: Command) -> Result<Applied, NotIn> {
        loop {
            if self.inner.stop.is_cancelled() {
                return Err(NotIn::Stopping);
            }
            // As of before: it may be founded by the time that the answer is here.
            let founds = matches!(command, Command::InitCluster { .. });
            let unfounded = !founds && self.map().cluster == ClusterId::default();
            match self.raft().propose(command.clone()).await {
                // A cluster that is not founded yet knows no nodes: its founder is on its way.
                Ok(Applied::Rejected(Rejection::Invalid(why))) if unfounded => {
                    tracing::debug!(%why, "the cluster is not founded yet");
                }
                Ok(rejected @ Applied::Rejected(Rejection::Incarnation)) => return Ok(rejected),
                Ok(Applied::Rejected(why)) => {
                    tracing::info!(?command, %why, "the cluster refuses this node");
                    return Err(NotIn::Refused(why.to_string()));
                }
                Ok(applied) => return Ok(applied),
                Err(error) => tracing::info!(%error, "waiting for a majority"),
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }
}

/// Opens this node's store; the inner error says how it is damaged.
async fn open_store(
    config: &MemberConfig,
) -> Result<Result<Arc<dyn ShardStore>, String>, StartError> {
    let path = damage::store_of(&config.data_dir);
    let expect = Expect { cluster: config.cluster };
    let open = move || RocksStore::open(path, &RocksOptions::default(), expect);
    match tokio::task::spawn_blocking(open).await {
        Ok(Ok(store)) => Ok(Ok(Arc::new(store))),
        Ok(Err(error @ StoreError::Damaged(_))) => Ok(Err(error.to_string())),
        Ok(Err(error)) => Err(StartError::Store(error.to_string())),
        Err(error) => Err(StartError::Store(error.to_string())),
    }
}

async fn start_raft(config: &MemberConfig, fabric: &Fabric) -> Result<RaftGroup, StartError> {
    let mut order: Vec<NodeId> = config.peers.iter().map(|(id, _)| *id).collect();
    order.push(config.node);
    order.sort_unstable();
    let place = order.iter().position(|id| *id == config.node).unwrap_or(0);
    // Only beyond 32 members can two have one place. Then they draw different times within one window, but
    // for one case in eighty; and of five voters the others have places of their own.
    let place = (place % usize::from(POSITIONS)) as u8;
    let folder = config.data_dir.join("raft");
    let settings = RaftGroupConfig::new(config.node, folder, place);
    let started = RaftGroup::start(settings, Arc::new(fabric.clone())).await;
    started.map_err(|error| StartError::Raft(with_causes(&error)))
}

/// What went wrong, and why.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
