//! Who is alive, as seen from here: every node calls every other one a few times a second.

use crate::fabric::{Fabric, service};
use bytes::Bytes;
use futures::future::BoxFuture;
use smalti_map::view::MapView;
use smalti_net::Service;
use smalti_storage::ids::NodeId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::TaskTracker;

/// Between two calls to a node.
const EVERY: Duration = Duration::from_millis(100);

/// What other nodes answered, and when.
#[derive(Debug)]
pub struct Beats {
    me: NodeId,
    since: Instant,
    heard: Mutex<BTreeMap<NodeId, Instant>>,
}

impl Beats {
    pub(super) fn start(
        me: NodeId,
        fabric: Fabric,
        mut map: watch::Receiver<MapView>,
        suspect_after: Duration,
        tasks: &TaskTracker,
    ) -> Arc<Self> {
        let beats = Arc::new(Self { me, since: Instant::now(), heard: Mutex::default() });
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
                        let beat = shared.follow(node, fabric, suspect_after);
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

    async fn follow(self: Arc<Self>, node: NodeId, fabric: Fabric, timeout: Duration) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            if fabric.call(node, service::BEAT, Bytes::new(), timeout).await.is_ok() {
                self.heard
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(node, Instant::now());
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
        heard.get(&node).unwrap_or(&self.since).elapsed()
    }

    /// Whether the node has answered at all since this one started.
    pub fn ever_heard(&self, node: NodeId) -> bool {
        node == self.me
            || self.heard.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&node)
    }
}

/// Answers heartbeats.
#[derive(Debug)]
pub(super) struct BeatService;

impl Service for BeatService {
    fn call(&self, _from: NodeId, _request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(std::future::ready(Bytes::new()))
    }
}
