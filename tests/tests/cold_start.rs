//! Every node goes at once, and they come back in any order, one of them not at all: a majority serves,
//! and nobody has to do anything.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use smalti_tests::image::Image;
use smalti_tests::pattern::seed;
use smalti_tests::process::until;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(120);
const SIZE: usize = 16 << 20;

#[test]
fn two_of_three_serve_after_a_cold_start_in_any_order() -> Result<()> {
    let test = "two_of_three_serve_after_a_cold_start_in_any_order";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "16M"))?;
    for (round, order) in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]].into_iter().enumerate() {
        let image = Image::write(&cluster, SIZE, order[2], seed + round as u64)?;
        cluster.kill_together(&[0, 1, 2])?;
        let [first, second, missing] = order;
        let began = Instant::now();
        cluster.start(first)?;
        cluster.start(second)?;
        until("two of three serve", LIMIT, || {
            let status = cluster.status().ok();
            Ok(status.filter(|status| status.health == "degraded").map(drop))
        })?;
        let served = began.elapsed();
        image.verify(&cluster, second).context("through the one that came last")?;
        image.verify(&cluster, first).context("through the one that came first")?;
        cluster.start(missing)?;
        cluster.wait_ok()?;
        image.verify(&cluster, missing)?;
        say(test, &format!("{first} and {second} without {missing}: served after {served:?}"));
    }
    cluster.finish()
}
