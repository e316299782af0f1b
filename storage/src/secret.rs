//! Secret bytes: wiped when dropped, silent in `Debug`, and read only through `expose`.
//!
//! A value that moves leaves its old bytes where it was, and on a thread's stack they stay until something else
//! comes to lie there. So a thread that had secrets writes over the part of its stack that it does not use:
//! [`wipe_stack_after_use`] when it has nothing to do.

use std::cell::Cell;
use std::hint::black_box;

/// Bytes of stack that are written over. Deeper than any call that has secrets goes from where a thread
/// waits for work.
const STACK: usize = 128 << 10;
/// The same right behind a call that goes a few frames deep.
const SHALLOW: usize = 8 << 10;

thread_local! {
    /// Whether this thread has had secrets since its stack was wiped last.
    static USED: Cell<bool> = const { Cell::new(false) };
}

/// Whoever had a secret in hand on this thread says so.
pub(crate) fn note_use() {
    // Fails only while the thread ends, which takes its stack along.
    let _ = USED.try_with(|used| used.set(true));
}

/// Writes over what secrets may have left on the unused part of this thread's stack, if it had any since the
/// last time. For a thread that is about to wait; what is in use is not touched.
pub fn wipe_stack_after_use() {
    if USED.try_with(|used| used.replace(false)).unwrap_or(false) {
        wipe::<STACK>();
    }
}

/// Writes over what the calls before have left right below whoever calls this.
pub(crate) fn wipe_shallow() {
    wipe::<SHALLOW>();
}

#[inline(never)]
fn wipe<const BYTES: usize>() {
    let mut below = [0_u8; BYTES];
    // The compiler has to believe that somebody looks at it.
    black_box(&mut below);
}

/// Defines a newtype over 32 secret bytes. It has no `Serialize`, so that a secret enters a
/// message or a log only where somebody wrote `expose` for all to see.
macro_rules! secret_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        // Not in place: what is moved would leave copies on the stacks of threads that never drop it.
        pub struct $name(Box<[u8; 32]>);

        impl zeroize::Zeroize for $name {
            fn zeroize(&mut self) {
                zeroize::Zeroize::zeroize(&mut self.0[..]);
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                zeroize::Zeroize::zeroize(self);
                $crate::secret::note_use();
            }
        }

        impl zeroize::ZeroizeOnDrop for $name {}

        impl $name {
            /// Takes 32 secret bytes. The caller wipes its own copy.
            pub fn new(bytes: [u8; 32]) -> Self {
                $crate::secret::note_use();
                Self(Box::new(bytes))
            }

            /// The secret bytes. Every use of this is a place to review.
            pub fn expose(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

pub(crate) use secret_bytes;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_had_secrets_wipes_and_only_once() {
        let used = || USED.with(Cell::get);
        std::thread::spawn(move || {
            assert!(!used());
            drop(crate::keys::ShardKey::new([7; 32]));
            assert!(used());
            wipe_stack_after_use();
            assert!(!used());
        })
        .join()
        .expect("a thread of its own has a flag of its own");
    }
}
