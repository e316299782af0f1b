//! What a test tells besides passing: facts worth a line, and what this machine could not do.

use std::fs::OpenOptions;
use std::io::Write;

use anyhow::{Context, Result};

/// Prints one fact of a test.
pub fn say(test: &str, fact: &str) {
    eprintln!("[{test}] {fact}");
}

/// Says loudly that a test could not run here. The runner counts it as skipped, not as passed,
/// through the file that `SMALTI_SKIPS` names.
///
/// # Errors
/// When that file cannot be written: a skip must not pass for a success.
pub fn skip(test: &str, reason: &str) -> Result<()> {
    eprintln!("[{test}] SKIPPED: {reason}");
    if let Some(path) = std::env::var_os("SMALTI_SKIPS") {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .context("open the list of skipped tests")?;
        writeln!(file, "{test}: {reason}")?;
    }
    Ok(())
}
