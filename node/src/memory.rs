//! Keys and plaintext stay in this process's memory: not in core dumps, not before debuggers, not in swap.
//!
//! What is freed is wiped by the allocator of the program (`main.rs`), so that nothing outlives whoever had it.

use anyhow::Context;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use std::fs;

/// `CAP_IPC_LOCK`: no limit holds.
const IPC_LOCK: u64 = 1 << 14;

/// Keeps keys out of core dumps and away from debuggers of the same user.
///
/// # Errors
/// The system refuses.
pub fn forbid_dumps() -> anyhow::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).context("forbid core dumps")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("forbid memory access")
}

/// Keeps all of this process's memory out of swap, as it is taken into use. Only where that has no limit: with
/// one, memory that is asked for later would be refused.
pub fn keep_out_of_swap() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let unlimited = getrlimit(Resource::Memlock).maximum.is_none();
    if !unlimited && !may_lock(&status) {
        tracing::warn!(
            "memory is not locked, and keys could come into swap: give the service \
             `LimitMEMLOCK=infinity`, or have no swap"
        );
        return;
    }
    let none = Rlimit { current: None, maximum: None };
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let locked = if unlimited { setrlimit(Resource::Memlock, none) } else { Ok(()) };
    match locked.and_then(|()| mlockall(flags)) {
        Ok(()) => tracing::debug!("memory is locked"),
        Err(error) => tracing::warn!(%error, "memory is not locked, and keys could come into swap"),
    }
}

/// Whether a process with this `/proc/PID/status` may lock as much as it wants.
fn may_lock(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|set| set & IPC_LOCK != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_lock_memory_is_read_from_its_status() {
        assert!(may_lock("Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\n"));
        assert!(may_lock("CapEff:\t0000000000004000"));
        for status in
            ["CapEff:\t0000000000000000\n", "CapEff:\t00000000a80425fb\n", "CapEff:\t?", ""]
        {
            assert!(!may_lock(status), "{status}");
        }
    }
}
