//! The actor around the writer.

use super::writer::{Waiting, Writer};
use super::{Fatal, Job, QUEUE_BYTES, QUEUE_FRAMES, StoreHandle, StoreSpace};
use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr};
use smalti_map::view::MapView;
use smalti_rowcommit::governor::Burden;
use smalti_rowcommit::store::StoreConfig;
use smalti_rowcommit::store::read::{Fence, ReadSide};
use smalti_storage::store::{Admission, ShardStore};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Large reads at once.
const LARGE_READS: usize = 8;

/// Pages of rows at once.
const PAGES: usize = 4;

/// How often the disk's space is looked at.
const SPACE_EVERY: Duration = Duration::from_millis(500);

/// Messages of the shard-store actor.
#[derive(Debug)]
pub enum ShardStoreMsg {
    /// The cluster admits the store: it may serve.
    Admitted(Admission),
    /// A newer map.
    Map(MapView),
    /// Time to look at the disk's space.
    LookAtSpace,
    /// What is repaired in the cluster, and how its clients bear it.
    Around(Burden),
    /// Finish what is queued, leave the clean marker, end.
    Stop,
}

/// What the actor needs.
pub struct ShardStoreArgs {
    /// The disk.
    pub store: Arc<dyn ShardStore>,
    /// Its part of the protocol's settings.
    pub config: StoreConfig,
    /// Told when the disk fails; the process must stop then.
    pub fatal: mpsc::Sender<Fatal>,
    /// Told when the writer has ended in order.
    pub ended: oneshot::Sender<()>,
}

impl std::fmt::Debug for ShardStoreArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardStoreArgs").field("config", &self.config).finish_non_exhaustive()
    }
}

struct ShardStoreActor;

struct State {
    jobs: mpsc::Sender<Job>,
}

/// Starts the actor and its writer. Sessions wait until the store is admitted.
///
/// # Errors
/// When the actor can not be spawned.
pub async fn start(
    args: ShardStoreArgs,
) -> Result<(ActorRef<ShardStoreMsg>, StoreHandle), SpawnErr> {
    let (jobs, queue) = mpsc::channel(QUEUE_FRAMES);
    let adopted = Arc::new(Notify::new());
    let fence = Arc::new(Fence::default());
    let reader = ReadSide::new(Arc::clone(&args.store), Arc::clone(&fence));
    let id = args.store.opened().id;
    let (admitted, watched) = watch::channel(false);
    let (seen, space) = watch::channel(StoreSpace::default());
    let (took, pace) = watch::channel(None);
    let (rewrites, rewriting) = watch::channel(false);
    let adopted_by = Arc::clone(&adopted);
    let waiting = Waiting { admitted, adopted: adopted_by, space: seen, pace: took, rewrites };
    let writer = Writer::new(args.store, args.config, fence, queue, waiting);
    let ended = args.ended;
    let large_reads = Arc::new(Semaphore::new(LARGE_READS));
    let pages = Arc::new(Semaphore::new(PAGES));
    let job_bytes = Arc::new(Semaphore::new(QUEUE_BYTES));
    let handle = StoreHandle {
        id,
        admitted: watched,
        space,
        pace,
        rewriting,
        jobs: jobs.clone(),
        job_bytes,
        reader,
        large_reads,
        pages,
        adopted,
        fatal: args.fatal,
        failed: CancellationToken::new(),
    };
    let failing = handle.clone();
    let run = async move {
        match writer.run().await {
            Ok(()) => {
                // Nobody waits when the process is ending anyway.
                let _ = ended.send(());
            }
            Err(error) => failing.fail("shard store failed", &error),
        }
    };
    on_its_own(run);
    let state = State { jobs };
    let (actor, _) =
        Actor::spawn(Some(format!("shard-store-{id}")), ShardStoreActor, state).await?;
    actor.send_interval(SPACE_EVERY, || ShardStoreMsg::LookAtSpace);
    Ok((actor, handle))
}

/// Gives the writer a thread; in simulations, which have but one, a task.
fn on_its_own(writer: impl Future<Output = ()> + Send + 'static) {
    #[cfg(test)]
    if crate::clock::simulated::is_on() {
        tokio::spawn(writer);
        return;
    }
    tokio::task::spawn_blocking(move || futures::executor::block_on(writer));
}

impl Actor for ShardStoreActor {
    type Msg = ShardStoreMsg;
    type State = State;
    type Arguments = State;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        state: State,
    ) -> Result<State, ActorProcessingErr> {
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let job = match message {
            ShardStoreMsg::Admitted(admission) => Job::Admitted(admission),
            ShardStoreMsg::Map(map) => Job::Map(map),
            ShardStoreMsg::LookAtSpace => {
                // A writer that is that busy looks by itself, and one whose disk hangs must not
                // find a look for every half second that it hung.
                let _ = state.jobs.try_send(Job::LookAtSpace);
                return Ok(());
            }
            ShardStoreMsg::Around(burden) => {
                // Nor must it find a heap of these.
                let _ = state.jobs.try_send(Job::Around(burden));
                return Ok(());
            }
            ShardStoreMsg::Stop => {
                state.jobs.send(Job::Stop).await?;
                myself.stop(None);
                return Ok(());
            }
        };
        state.jobs.send(job).await?;
        Ok(())
    }
}
