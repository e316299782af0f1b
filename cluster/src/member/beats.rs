//! Who is alive, as seen from here: every node calls every other one a few times a second, and hears
//! which stores it runs.

use crate::fabric::{Fabric, service};
use crate::shard_store::{LocalStores, StoreHandle};
use bytes::Bytes;
use futures::future::BoxFuture;
use smalti_map::view::MapView;
use smalti_net::Service;
use smalti_storage::ids::{NodeId, StoreId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::TaskTracker;

/// Between two calls to a node.
const EVERY: Duration = Duration::from_millis(100);

/// Before the stores in an answer. A node of before there were any answers with nothing.
const VERSION: u8 = 1;

/// What other nodes answered, and when.
#[derive(Debug)]
pub struct Beats {
    me: NodeId,
    own: LocalStores,
    since: Instant,
    heard: Mutex<BTreeMap<NodeId, Heard>>,
}

#[derive(Debug)]
struct Heard {
    at: Instant,
    stores: Vec<StoreId>,
}

impl Beats {
    pub(super) fn start(
        me: NodeId,
        fabric: Fabric,
        mut map: watch::Receiver<MapView>,
        suspect_after: Duration,
        own: LocalStores,
        tasks: &TaskTracker,
    ) -> Arc<Self> {
        let beats = Arc::new(Self { me, own, since: Instant::now(), heard: Mutex::default() });
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
            if let Ok(answer) = fabric.call(node, service::BEAT, Bytes::new(), timeout).await {
                let heard = Heard { at: Instant::now(), stores: decode(&answer) };
                self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(node, heard);
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

    /// The stores that a node runs and that may serve, by what it answered last.
    pub fn stores_of(&self, node: NodeId) -> Vec<StoreId> {
        if node == self.me {
            return serving(&self.own);
        }
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&node).map(|heard| heard.stores.clone()).unwrap_or_default()
    }

    /// Whether the node has answered at all since this one started.
    pub fn ever_heard(&self, node: NodeId) -> bool {
        node == self.me
            || self.heard.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&node)
    }
}

fn serving(stores: &LocalStores) -> Vec<StoreId> {
    stores.iter().filter(|store| store.may_serve()).map(StoreHandle::id).collect()
}

fn encode(stores: &[StoreId]) -> Bytes {
    postcard::to_extend(stores, vec![VERSION]).expect("a vector grows").into()
}

fn decode(answer: &[u8]) -> Vec<StoreId> {
    match answer.split_first() {
        Some((&VERSION, stores)) => postcard::from_bytes(stores).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Answers heartbeats.
#[derive(Debug)]
pub(super) struct BeatService {
    pub(super) stores: LocalStores,
}

impl Service for BeatService {
    fn call(&self, _from: NodeId, _request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(std::future::ready(encode(&serving(&self.stores))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_tell_the_stores() {
        let stores = [StoreId::default(), StoreId(uuid::Uuid::from_u128(7))];
        for some in 0..=stores.len() {
            assert_eq!(decode(&encode(&stores[..some])), stores[..some]);
        }
        assert_eq!(decode(&[]), []);
        assert_eq!(decode(&[VERSION + 1, 0]), []);
    }
}
