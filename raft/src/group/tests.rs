//! What only a broken store can show.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::transport::TransportError;
use bytes::Bytes;
use futures::future::BoxFuture;
use smalti_map::StoreStart;
use smalti_storage::ids::{Incarnation, StoreId};

/// A group of one has nobody to call.
#[derive(Debug)]
struct Nobody;

impl RaftTransport for Nobody {
    fn call(
        &self,
        node: NodeId,
        _request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        Box::pin(async move { Err(TransportError::Timeout { node, timeout }) })
    }
}

fn command() -> Command {
    Command::RegisterStore(StoreStart::first(StoreId::default(), NodeId(1), Incarnation(0)))
}

#[tokio::test]
async fn a_failed_write_stops_the_member_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        RaftGroupConfig { trusted: true, ..RaftGroupConfig::new(NodeId(1), dir.path(), 0) };
    let group = RaftGroup::start(config.clone(), Arc::new(Nobody)).await.unwrap();
    group.initialize(&[NodeId(1)]).await.unwrap();
    group.propose(command()).await.unwrap();
    let before = group.map();

    let db = group.inner.db.upgrade().unwrap();
    db.broken.store(true, Ordering::Relaxed);
    let failed = group.propose(command()).await.unwrap_err();
    assert!(matches!(failed, ProposeError::Stopped(_)), "{failed}");
    let reason = group.stopped_because().await;
    assert!(reason.contains("a test broke it"), "{reason}");

    // It does not come back by itself, even if the disk does.
    db.broken.store(false, Ordering::Relaxed);
    drop(db);
    assert!(matches!(group.propose(command()).await, Err(ProposeError::Stopped(_))));
    assert!(matches!(group.linearizable().await, Err(ProposeError::Stopped(_))));
    group.shutdown().await.unwrap();

    let group = RaftGroup::start(config, Arc::new(Nobody)).await.unwrap();
    assert_eq!(*group.linearizable().await.unwrap(), *before, "the failed write was applied");
    group.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_member_that_is_dropped_lets_go_of_its_store() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        RaftGroupConfig { trusted: true, ..RaftGroupConfig::new(NodeId(1), dir.path(), 0) };
    let group = RaftGroup::start(config, Arc::new(Nobody)).await.unwrap();
    group.initialize(&[NodeId(1)]).await.unwrap();
    let mut open = group.inner.open.clone();
    drop(group);
    timeout(CLOSE_PATIENCE, open.changed()).await.unwrap().unwrap_err();
}
