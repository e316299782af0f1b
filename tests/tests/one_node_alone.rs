//! A node by itself opens nothing: too few custodians, too few pieces, no majority.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use smalti_tests::nbd::{Client, Error};
use smalti_tests::pattern::seed;
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);
/// A client that is told nothing for longer than this would call it hung.
const ANSWER: Duration = Duration::from_secs(40);

#[test]
fn one_node_alone() -> Result<()> {
    let test = "one_node_alone";
    let mut cluster = Cluster::up(Spec::three(test, "256M"))?;
    let load = Load::start(LoadConfig::new(cluster.targets(), 0, seed()));
    load.progress(200, LIMIT)?;
    let mut loaded = load.finish()?;

    for lonely in 0..3 {
        cluster.kill_together(&[0, 1, 2])?;
        cluster.start(lonely)?;
        let target = cluster.target(lonely);
        // A while of being alone: it must not give in.
        let alone = Instant::now();
        let mut said = String::new();
        let mut asked = 0;
        while alone.elapsed() < Duration::from_secs(10) {
            let started = Instant::now();
            let outcome = Client::connect(&target, ANSWER).and_then(|mut client| {
                let mut buf = vec![0; 4096];
                client.read(0, &mut buf)
            });
            ensure!(started.elapsed() < ANSWER, "no answer within {ANSWER:?}: {outcome:?}");
            match outcome {
                Ok(()) => anyhow::bail!("node {lonely} alone served a read"),
                Err(Error::Protocol(text)) => anyhow::bail!("protocol broken: {text}"),
                Err(Error::Lost(_)) => {}
                Err(error @ (Error::Refused(_) | Error::Server(_))) => {
                    asked += 1;
                    said = error.to_string();
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        ensure!(asked > 0, "node {lonely} never told a client why");
        ensure!(cluster.is_running(lonely), "node {lonely} ended");
        say(test, &format!("node {lonely} alone, asked {asked} times: {said}"));

        let second = (lonely + 1) % 3;
        cluster.start(second)?;
        until("two nodes serve the volume", LIMIT, || {
            Ok(Client::connect(&target, ANSWER).ok().map(drop))
        })?;
        loaded.verify(&target)?;
        cluster.wait_degraded()?;
        cluster.start((lonely + 2) % 3)?;
        cluster.wait_ok()?;
        loaded.verify(&cluster.target(second))?;
    }
    cluster.finish()
}
