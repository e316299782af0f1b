//! Slows RocksDB's compactions down, and nothing else of it.
//!
//! A compaction writes as fast as it can, and the clients' log has to wait behind that. RocksDB's own rate
//! limiter counts buffers that are written out as well, which clients wait for, and its rate can not be
//! changed through its C interface. So this is one of ours: `limiter.cc` asks [`Pace`] for whatever a
//! compaction wants to write, and lets the rest pass. RocksDB does not tell it that writers wait for a
//! compaction's blob files: whoever sets the pace looks after that.
//!
//! It is the only unsafe code of the product.

mod pace;

pub use pace::Pace;

use rocksdb::{AsRawPtr, Options};
use std::ffi::c_void;
use std::sync::Arc;

unsafe extern "C" {
    /// In limiter.cc. `pass` may be called by any thread until `drop` has been, once.
    fn smalti_limit_compactions(
        options: *mut c_void,
        pass: extern "C" fn(*const c_void, u64),
        drop: extern "C" fn(*const c_void),
        state: *const c_void,
    );
}

/// From now on databases that are opened with these options compact at that pace.
pub fn limit_compactions(options: &mut Options, pace: &Arc<Pace>) {
    let state = Arc::into_raw(Arc::clone(pace)).cast::<c_void>();
    // SAFETY: the pointer to the options is good for the call, which copies a shared pointer to the limiter
    // into them. The state is one count of an `Arc`, given back by `drop` alone; `Pace` is `Sync`.
    unsafe {
        smalti_limit_compactions(options.as_raw_ptr().cast(), pass, drop_state, state);
    }
}

extern "C" fn pass(state: *const c_void, bytes: u64) {
    // SAFETY: it is the `Pace` that `limit_compactions` gave, alive until `drop_state` is called.
    let pace = unsafe { &*state.cast::<Pace>() };
    pace.pass(bytes);
}

extern "C" fn drop_state(state: *const c_void) {
    // SAFETY: it comes from `Arc::into_raw` in `limit_compactions`, and this is called once.
    drop(unsafe { Arc::from_raw(state.cast::<Pace>()) });
}

#[cfg(test)]
mod tests;
