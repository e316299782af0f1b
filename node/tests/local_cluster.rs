//! `smalti up` and `smalti down` with real processes. This test's own program is also the node:
//! run as `... serve --config FILE`, it is `smalti serve` around a stand-in for the cluster.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "local_cluster/cases.rs"]
mod cases;
#[path = "local_cluster/node.rs"]
mod node;
mod support;

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", "--config", path] => node::run(path),
        ["up", ref rest @ ..] => node::up(rest),
        _ => run_cases(),
    }
}

/// One after the other, as each starts a cluster.
fn run_cases() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trial = |(name, case): &cases::Case| {
        let case = *case;
        Trial::test(*name, move || {
            case();
            Ok(())
        })
    };
    libtest_mimic::run(&arguments, cases::ALL.iter().map(trial).collect()).exit_code()
}
