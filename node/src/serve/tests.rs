#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::client::{ApiAddress, Client};
use crate::control::{ErrorKind, StatusReport};
use crate::init;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);

fn config() -> (TempDir, NodeConfig) {
    let home = tempfile::tempdir().unwrap();
    init::make(&home.path().join("c"), 3).unwrap();
    let config = NodeConfig::load(&home.path().join("c/n1/node.toml")).unwrap();
    (home, config)
}

fn started(shutdown: BoxFuture<'static, anyhow::Result<()>>) -> anyhow::Result<Started> {
    Ok(Started { control: Arc::new(ControlSlot::default()), shutdown })
}

async fn ends<F>(config: NodeConfig, start: F) -> String
where
    F: FnOnce(NodeRuntime) -> BoxFuture<'static, anyhow::Result<Started>>,
{
    let ended = tokio::time::timeout(LIMIT, run_with(config, start)).await.unwrap();
    format!("{:#}", ended.unwrap_err())
}

#[tokio::test]
async fn the_api_answers_before_the_node_has_started() {
    let (_home, config) = config();
    let client = Client::new(ApiAddress::Unix(config.sockets.api.clone()));
    let start = |_node| {
        async move {
            let error = client.get::<StatusReport>("/v1/status", LIMIT).await.unwrap_err();
            assert_eq!(error.kind(), Some(ErrorKind::Starting));
            Err(anyhow!("asked enough"))
        }
        .boxed()
    };
    assert_eq!(ends(config, start).await, "start the node: asked enough");
}

#[tokio::test]
async fn a_critical_part_that_fails_ends_the_node() {
    let (_home, config) = config();
    let text = ends(config, |node| {
        node.spawn_critical("store writer", async { Err(anyhow!("fsync failed")) });
        async { started(async { Ok(()) }.boxed()) }.boxed()
    });
    assert_eq!(text.await, "store writer: fsync failed");
    let (_home, config) = self::config();
    let text = ends(config, |node| {
        node.spawn_critical("store writer", async { panic!("a bug") });
        async { started(async { Ok(()) }.boxed()) }.boxed()
    });
    assert_eq!(text.await, "store writer panicked");
}

#[tokio::test]
async fn a_critical_part_that_ends_in_order_is_no_failure() {
    let (_home, config) = config();
    let text = ends(config, |node| {
        node.spawn_critical("short one", async { Ok(()) });
        async move {
            tokio::task::yield_now().await;
            Err(anyhow!("still alive"))
        }
        .boxed()
    });
    assert_eq!(text.await, "start the node: still alive");
}

#[tokio::test]
async fn a_shutdown_that_hangs_is_given_up() {
    let (_home, mut config) = config();
    config.tunables.shutdown_timeout_ms = 50;
    let node = NodeRuntime {
        config: Arc::new(config),
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
        poison: Poison::default(),
    };
    let error = finish(&node, std::future::pending().boxed()).await.unwrap_err();
    assert_eq!(error.to_string(), "stop the node: it takes longer than 50 ms");
    assert!(node.stop.is_cancelled());
}
