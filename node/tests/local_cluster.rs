//! `smalti up` and `smalti down` with real processes. This test's own program is also the node:
//! run as `... serve --config FILE`, it is `smalti serve` around a stand-in for the cluster.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "it reports as tests do")]

#[path = "local_cluster/cases.rs"]
mod cases;
#[path = "local_cluster/node.rs"]
mod node;
mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", "--config", path] => node::run(path),
        ["up", ref rest @ ..] => node::up(rest),
        _ => run_cases(&words),
    }
}

/// As much of the usual test program as `cargo test` and its relatives need.
fn run_cases(words: &[String]) -> ExitCode {
    let has = |word: &str| words.iter().any(|w| w == word);
    let filters: Vec<_> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|f| if has("--exact") { name == *f } else { name.contains(*f) })
    };
    if has("--list") {
        if !has("--ignored") {
            cases::ALL.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for (name, case) in cases::ALL.iter().filter(|(name, _)| wanted(name) && !has("--ignored")) {
        let passed = std::panic::catch_unwind(case).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    ExitCode::from(u8::from(failed > 0))
}
