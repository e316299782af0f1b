//! A volume keeps its geometry: who wants another one is told why not, and how to copy it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::cluster::{program, smalti};
use smalti_tests::nbd::Target;
use smalti_tests::pattern::seed;
use smalti_tests::process::{Output, run};
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn the_commands_that_reshape_tells_copy_the_volume() -> Result<()> {
    let test = "the_commands_that_reshape_tells_copy_the_volume";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let geometry = Some((2, 1));
    let cluster = Cluster::up(Spec { nodes: 4, geometry, ..Spec::three(test, "64M") })?;
    let dir = cluster.dir().display().to_string();
    let reshape = |volume: &str, shards: &str| -> Result<Output> {
        smalti(&["volume", "reshape", volume, shards, "--dir", &dir], LIMIT)
    };
    for (volume, shards, reason) in [
        ("w", "2+2", "no volume w"),
        ("v", "2+1", "has 2+1 shards already"),
        ("v", "4+2", "need 6 nodes, there are 4"),
        ("v", "3+0", "at least 1 data and 1 parity shard"),
        ("v", "200+200", "more than 32"),
    ] {
        let output = reshape(volume, shards)?;
        let told = output.stderr.trim_end();
        ensure!(output.code() == 1 && output.stdout.is_empty(), "{shards}: {}", output.stdout);
        ensure!(told.lines().count() == 1 && told.contains(reason), "{told}, not {reason:?}");
    }
    ensure!(reshape("v", "4")?.code() == 2, "that is no geometry");

    let load = Load::start(LoadConfig::new(cluster.targets(), 0, seed));
    load.progress(300, LIMIT)?;
    let mut loaded = load.finish()?;
    let output = reshape("v", "2+2")?;
    let told = output.stderr.trim_end();
    ensure!(output.code() == 1 && told.lines().count() == 1, "{told}");
    ensure!(told.contains("can not be given 2+2 shards while it is there"), "{told}");

    // As somebody who copies them into a shell.
    let home = program()?.parent().context("a folder")?.to_owned();
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", home.display());
    run(Command::new("sh").args(["-c", &output.stdout]).env("PATH", &path), LIMIT)?.ok()?;
    let copy = Target::unix(&cluster.nodes()[1].nbd.unix, "v-2-2");
    loaded.verify(&copy).context("the copy")?;
    let last = output.stdout.lines().last().context("a last line")?;
    let delete = last.strip_prefix("# ").context("a command that is to be thought about")?;
    run(Command::new("sh").args(["-c", delete]).env("PATH", &path), LIMIT)?.ok()?;
    loaded.verify(&copy).context("the copy alone")?;
    let output = reshape("v", "2+2")?;
    ensure!(output.stderr.contains("no volume v"), "{}", output.stderr);
    cluster.finish()
}
