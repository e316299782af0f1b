//! Disks in the wrong machine: a node refuses a store that belongs to another cluster or to
//! another node, and nothing in it is harmed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::cluster::{COMMAND_LIMIT, smalti};
use smalti_tests::pattern::seed;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn swapped_stores_are_refused() -> Result<()> {
    let test = "swapped_stores_are_refused";
    let mut ours = Cluster::up(Spec::three(test, "256M"))?;
    let mut loaded = loaded(&ours)?;
    ours.down()?;
    let mut theirs = Cluster::up(Spec::three(test, "256M"))?;
    let mut their_data = self::loaded(&theirs)?;
    theirs.down()?;

    let cases = [
        ("of another cluster", data_dir(&ours, 0)?, data_dir(&theirs, 0)?),
        ("of another node", data_dir(&ours, 0)?, data_dir(&ours, 1)?),
    ];
    for (what, right, wrong) in cases {
        swap(&right, &wrong)?;
        let argv = ours.nodes()[0].argv.clone();
        let words: Vec<&str> = argv[1..].iter().map(String::as_str).collect();
        let out = smalti(&words, COMMAND_LIMIT)
            .with_context(|| format!("a node with a store {what} does not end"));
        swap(&right, &wrong)?;
        let out = out?;
        ensure!(out.code() == 1, "store {what}: exit code {}: {}", out.code(), out.stderr);
        let said = out.stderr.lines().rfind(|l| !l.is_empty()).unwrap_or_default();
        ensure!(
            said.contains("cluster") || said.contains("node") || said.contains("belong"),
            "store {what} is not named as the reason: {said}"
        );
        say(test, &format!("store {what}: {said}"));
    }

    for (cluster, data) in [(&mut ours, &mut loaded), (&mut theirs, &mut their_data)] {
        cluster.run_up()?;
        cluster.wait_ok()?;
        for node in 0..3 {
            data.verify(&cluster.target(node))?;
        }
        cluster.down()?;
    }
    ours.finish()?;
    theirs.finish()
}

fn loaded(cluster: &Cluster) -> Result<smalti_tests::load::Loaded> {
    let load = Load::start(LoadConfig::new(cluster.targets(), 0, seed()));
    load.progress(100, LIMIT)?;
    load.finish()
}

/// The `data_dir` of a node's config file, which is relative to the file.
fn data_dir(cluster: &Cluster, node: usize) -> Result<PathBuf> {
    let argv = &cluster.nodes()[node].argv;
    let at = argv.iter().position(|w| w == "--config").context("argv has --config")?;
    let config = Path::new(argv.get(at + 1).context("--config has a value")?);
    let text = std::fs::read_to_string(config)?;
    let line = text.lines().find(|l| l.starts_with("data_dir")).context("config has data_dir")?;
    let value = line.split('"').nth(1).context("data_dir is a string")?;
    let path = config.parent().context("config is in a folder")?.join(value);
    ensure!(path.is_dir(), "{} is no folder", path.display());
    Ok(path)
}

fn swap(a: &Path, b: &Path) -> Result<()> {
    let aside = a.with_extension("aside");
    for (from, to) in [(a, aside.as_path()), (b, a), (aside.as_path(), b)] {
        std::fs::rename(from, to)
            .with_context(|| format!("rename {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}
