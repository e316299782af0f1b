//! fio with its NBD engine: verified loads and figures.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::process::{self, until};

/// The verified job: mixed sizes down to one sector, flushes in between, fatal on any mismatch.
const VERIFIED: [&str; 11] = [
    "--name=v",
    "--ioengine=nbd",
    "--rw=randrw",
    "--bsrange=512-128k",
    "--blockalign=512",
    "--iodepth=16",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_state_save=0",
    "--fsync=32",
    "--output-format=json",
];

/// Figures of one direction of a job.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Operations a second.
    pub iops: f64,
    /// MiB a second.
    pub mib_s: f64,
    /// Median completion time in microseconds.
    pub p50_us: f64,
    /// 99th percentile of it.
    pub p99_us: f64,
    /// The longest one.
    pub max_us: f64,
    /// Operations done.
    pub total: u64,
}

/// The result of one fio run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Reads.
    pub read: Figures,
    /// Writes.
    pub write: Figures,
}

fn figures(side: &Value) -> Figures {
    let number = |v: &Value| v.as_f64().unwrap_or(0.0);
    let clat = &side["clat_ns"];
    Figures {
        iops: number(&side["iops"]),
        mib_s: number(&side["bw_bytes"]) / f64::from(1 << 20),
        p50_us: number(&clat["percentile"]["50.000000"]) / 1e3,
        p99_us: number(&clat["percentile"]["99.000000"]) / 1e3,
        max_us: number(&clat["max"]) / 1e3,
        total: side["total_ios"].as_u64().unwrap_or(0),
    }
}

/// Reads fio's JSON output.
///
/// # Errors
/// When it is none, or the job reports an error or did nothing.
pub fn parse(text: &str) -> Result<Outcome> {
    // fio puts its notes on standard output before the JSON.
    let start = text.find('{').with_context(|| format!("no JSON from fio: {text}"))?;
    let all: Value = serde_json::from_str(&text[start..]).context("parse fio's JSON")?;
    let job = &all["jobs"][0];
    let error = job["error"].as_i64().context("fio's JSON has no job")?;
    ensure!(error == 0, "fio's job ended with error {error}");
    let outcome = Outcome { read: figures(&job["read"]), write: figures(&job["write"]) };
    ensure!(outcome.read.total + outcome.write.total > 0, "fio did no input or output");
    Ok(outcome)
}

/// Runs one job with these options.
///
/// # Errors
/// When fio fails; with a verifying job that includes any byte that came back wrong.
pub fn run(uri: &str, options: &[&str], limit: Duration) -> Result<Outcome> {
    let mut command = Command::new("fio");
    command.args(options).arg(format!("--uri={uri}"));
    let out = process::run(&mut command, limit)?;
    if !out.status.success() {
        bail!("`{}`: {} {} {}", out.line, out.status, out.stdout, out.stderr);
    }
    parse(&out.stdout)
}

/// One pass of the verified job over `size` bytes from `offset`.
///
/// # Errors
/// When fio fails or a byte came back wrong.
pub fn verified(uri: &str, size: &str, offset: &str, limit: Duration) -> Result<Outcome> {
    let (size, offset) = (format!("--size={size}"), format!("--offset={offset}"));
    let mut options = VERIFIED.to_vec();
    options.extend([size.as_str(), offset.as_str()]);
    run(uri, &options, limit)
}

/// Verified passes one after another until stopped.
#[derive(Debug)]
pub struct VerifiedLoop {
    stop: Arc<AtomicBool>,
    passes: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl VerifiedLoop {
    /// Starts the loop.
    #[must_use]
    pub fn start(uri: String, size: &'static str, offset: &'static str, limit: Duration) -> Self {
        let (stop, passes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, passed) = (Arc::clone(&stop), Arc::clone(&passes));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let pass = passed.load(Ordering::Relaxed);
                let ended = verified(&uri, size, offset, limit);
                // Said at once: whoever waits for progress only learns that there is none.
                let ended = ended.inspect_err(|error| eprintln!("fio, pass {pass}: {error:#}"));
                ended.with_context(|| format!("pass {pass}"))?;
                passed.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { stop, passes, thread }
    }

    /// Waits until `more` passes have ended since this call.
    ///
    /// # Errors
    /// When a pass failed, or `limit` has passed.
    pub fn progress(&self, more: u64, limit: Duration) -> Result<()> {
        let goal = self.passes.load(Ordering::Relaxed) + more;
        until("fio has made its passes", limit, || {
            let done = self.passes.load(Ordering::Relaxed) >= goal;
            Ok((done || self.thread.is_finished()).then_some(()))
        })?;
        ensure!(!self.thread.is_finished(), "fio ended early");
        Ok(())
    }

    /// Ends the loop after the running pass.
    ///
    /// # Errors
    /// When any pass failed.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the fio thread panicked"))??;
        Ok(self.passes.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_figures_past_notes() {
        let text = r#"note: something
{"jobs":[{"error":0,"write":{"iops":10.5,"bw_bytes":2097152,"total_ios":3,
 "clat_ns":{"max":9000,"percentile":{"50.000000":1000,"99.000000":5000}}},"read":{"total_ios":0}}]}"#;
        let w = parse(text).expect("parses").write;
        assert_eq!((w.iops, w.mib_s, w.p50_us, w.p99_us, w.total), (10.5, 2.0, 1.0, 5.0, 3));
    }

    #[test]
    fn errors_do_not_pass() {
        assert!(parse("").is_err());
        assert!(parse(r#"{"jobs":[]}"#).is_err());
        assert!(parse(r#"{"jobs":[{"error":84,"write":{"total_ios":3}}]}"#).is_err());
        assert!(parse(r#"{"jobs":[{"error":0,"write":{"total_ios":0}}]}"#).is_err());
    }
}
