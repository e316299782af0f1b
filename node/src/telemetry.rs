//! Logging, panics, and what the operating system may keep of this process.

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use smalti_rowcommit::invariant::BROKEN;
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use tracing_subscriber::EnvFilter;

/// What to log, as in `info,smalti_node=debug`.
const FILTER_VARIABLE: &str = "SMALTI_LOG";

/// Logs to stderr: what `SMALTI_LOG` says, or `default`.
///
/// # Errors
/// `SMALTI_LOG` is not a filter, or there is a logger already.
pub fn start_logging(default: &str) -> anyhow::Result<()> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) => EnvFilter::try_new(&text).with_context(|| format!("read {FILTER_VARIABLE}"))?,
        Err(std::env::VarError::NotPresent) => EnvFilter::try_new(default)?,
        Err(error) => return Err(error).with_context(|| format!("read {FILTER_VARIABLE}")),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|error| anyhow::anyhow!("start logging: {error}"))
}

/// Makes every panic a line of the log. Whether the node lives on is for the owner of the task
/// that panicked; see [`crate::serve::NodeRuntime::spawn_critical`]. Only after a broken invariant of
/// the data path nobody is asked: no other task may go on with it either.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let text = info.payload_as_str().unwrap_or("no message");
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        tracing::error!(thread, place, "thread panicked at {place}: {text}");
        if text.starts_with(BROKEN) {
            std::process::abort();
        }
    }));
}

/// Every connection and every database file takes a file handle; takes as many as the system
/// gives.
///
/// # Errors
/// The system refuses.
pub fn raise_file_limit() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).context("raise the limit of open files")
}
