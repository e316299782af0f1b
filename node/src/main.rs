//! The `smalti` program: reads its command line, does what it says, tells in one line what failed.

use clap::Parser;
use smalti_node::cli::{self, Cli, Command};
use smalti_node::{local, telemetry};
use smalti_storage::secret::wipe_stack_after_use;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;
use tikv_jemallocator::Jemalloc;
use zeroizing_alloc::ZeroAlloc;

/// For RocksDB's C++ too, which takes it through malloc. Records come and go by the thousand, on one
/// thread and another, which the C library's allocator answers with locks and scattered memory.
/// What Rust code frees is wiped first: keys, plaintext and whatever was made of them, wherever it was copied to.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<Jemalloc> = ZeroAlloc(Jemalloc);

/// What still blocks after the work is done and answered for is not waited for any longer.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If stderr takes nothing, the exit code still tells.
            let _ = writeln!(std::io::stderr(), "{}", cli::error_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let is_daemon = matches!(cli.command, Command::Serve(_));
    if is_daemon {
        local::enter_new_session()?;
    }
    // While a node is away openraft writes several lines for each message to it, ten times a second.
    telemetry::start_logging(if is_daemon { "info,openraft=off" } else { "warn" })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // What keys were moved through is not left for as long as nobody comes.
        .on_thread_park(wipe_stack_after_use)
        .build()?;
    let done = runtime.block_on(cli::run(cli));
    runtime.shutdown_timeout(LEFTOVER_TIMEOUT);
    done
}
