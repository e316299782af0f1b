//! The programs that the cases run.

use crate::support::FakeControl;
use futures::FutureExt;
use smalti_node::cli::error_line;
use smalti_node::config::NodeConfig;
use smalti_node::local::{self, UpOptions, VolumeWish};
use smalti_node::serve::{Started, run_with};
use smalti_node::{memory, telemetry};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

fn finish(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// `serve --config FILE`. Obeys files in the cluster's folder: `nX.fail` fails the start, `nX.slow`
/// never gets ready, `degraded` or `stalled` is the cluster's health.
pub(crate) fn run(path: &str) -> ExitCode {
    let serve = async {
        telemetry::start_logging("info")?;
        memory::forbid_dumps()?;
        let config = NodeConfig::load(Path::new(path))?;
        let dir = config.local_cluster.clone().unwrap();
        let has = |name: String| dir.join(name).exists();
        let (fail, slow) =
            (has(format!("{}.fail", config.name)), has(format!("{}.slow", config.name)));
        let mut fake =
            FakeControl::new(config.cluster, config.peers.len() + 1, &dir.join("volumes.json"));
        if has("stalled".into()) {
            fake.health = smalti_node::control::Health::Stalled;
        }
        if has("degraded".into()) {
            fake.health = smalti_node::control::Health::Degraded;
        }
        run_with(config, move |node| {
            async move {
                anyhow::ensure!(!fail, "the disk is on fire");
                if slow {
                    node.stop.cancelled().await;
                }
                let shutdown = async { Ok(()) }.boxed();
                Ok(Started { control: Arc::new(fake), shutdown })
            }
            .boxed()
        })
        .await
    };
    let session = local::enter_new_session();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    finish(session.and_then(|()| runtime.block_on(serve)))
}

/// `up DIR WAIT-SECONDS [VOLUME]`: in the foreground.
pub(crate) fn up(words: &[&str]) -> ExitCode {
    let options = UpOptions {
        program: std::env::current_exe().unwrap(),
        nodes: Some(3),
        dir: words[0].into(),
        volume: words.get(2).map(|name| VolumeWish {
            name: (*name).to_owned(),
            size: Some("64M".parse().unwrap()),
            geometry: None,
            min_insync: None,
        }),
        recovery: None,
        detach: false,
        wait: Duration::from_secs(words[1].parse().unwrap()),
    };
    finish(tokio::runtime::Runtime::new().unwrap().block_on(local::up(options)))
}
