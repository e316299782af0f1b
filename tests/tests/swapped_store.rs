//! Disks in the wrong machine: a node refuses a store that belongs to another cluster or to
//! another node, and nothing in it is harmed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
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
        ("of another cluster", ours.data_dir(0)?, theirs.data_dir(0)?),
        ("of another node", ours.data_dir(0)?, ours.data_dir(1)?),
    ];
    for (what, right, wrong) in cases {
        swap(&right, &wrong)?;
        let said = ours.refusal(0).with_context(|| format!("store {what}"));
        swap(&right, &wrong)?;
        let said = said?;
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

fn swap(a: &Path, b: &Path) -> Result<()> {
    let aside = a.with_extension("aside");
    for (from, to) in [(a, aside.as_path()), (b, a), (aside.as_path(), b)] {
        std::fs::rename(from, to)
            .with_context(|| format!("rename {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}
