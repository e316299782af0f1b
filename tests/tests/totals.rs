//! The closing line of a test run is computed from the real results.

use std::time::Duration;

use anyhow::{Result, ensure};
use smalti_tests::clients::script;
use smalti_tests::process::{Output, run};

fn totals(log: &str, skips: &str, status: &str) -> Result<Output> {
    let folder = tempfile::tempdir()?;
    let (a, b) = (folder.path().join("log"), folder.path().join("skips"));
    std::fs::write(&a, log)?;
    std::fs::write(&b, skips)?;
    let mut command = std::process::Command::new(script("totals"));
    run(command.arg(&a).arg(&b).arg(status), Duration::from_secs(10))
}

const TWO: &str = "\
test a ... ok
test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s
noise: test result: FAILED. 99 passed
test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.0s
";

#[test]
fn sums_results_and_counts_skips() -> Result<()> {
    let out = totals(TWO, "filesystem: no fuse\n", "0")?;
    ensure!(out.stdout == "14 passed, 0 failed, 2 skipped\n", "{}", out.stdout);
    ensure!(out.code() == 0);
    Ok(())
}

#[test]
fn a_failure_fails() -> Result<()> {
    let failing = format!("{TWO}test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured\n");
    let out = totals(&failing, "", "1")?;
    ensure!(out.stdout == "16 passed, 2 failed, 1 skipped\n", "{}", out.stdout);
    ensure!(out.code() == 1);
    Ok(())
}

#[test]
fn what_did_not_build_or_died_is_a_failure() -> Result<()> {
    let out = totals(TWO, "", "1")?;
    ensure!(out.stdout == "15 passed, 1 failed, 1 skipped\n", "{}", out.stdout);
    ensure!(out.code() == 1);
    Ok(())
}

#[test]
fn no_test_at_all_is_not_a_success() -> Result<()> {
    ensure!(totals("", "", "0")?.code() == 1);
    Ok(())
}
