//! Random faults and changes on a local cluster under a verified load, until the rounds are done or
//! something is wrong.
//!
//! Environment: `ROUNDS` (20), `NODES` (5), `SIZE` (128M), `SMALTI_SEED` for a run that is to draw the same
//! again.

use anyhow::Result;
use smalti_tests::Spec;
use smalti_tests::chaos::Chaos;
use smalti_tests::pattern::seed;
use smalti_tests::report::say;
use smalti_tests::settings::number;

const NAME: &str = "chaos";

fn main() -> Result<()> {
    let (rounds, nodes) = (number("ROUNDS", 20)?, number("NODES", 5)?);
    let size: &'static str = std::env::var("SIZE").unwrap_or_else(|_| "128M".to_owned()).leak();
    let seed = seed();
    say(NAME, &format!("seed {seed}, {rounds} rounds, {nodes} nodes, {size}"));
    let spec =
        Spec { nodes: usize::try_from(nodes)?, geometry: Some((2, 1)), ..Spec::three(NAME, size) };
    Chaos::begin(spec, seed)?.run(rounds)?;
    say(NAME, "nothing was lost");
    Ok(())
}
