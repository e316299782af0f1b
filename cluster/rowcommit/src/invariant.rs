//! Invariants of the protocol that cost next to nothing to look at are looked at in every build.
//!
//! A broken one panics with its name (docs/protocol.md lists them), and the node stops: whatever
//! was acknowledged is on disk, and nothing that follows from a broken invariant may be added.

/// How the message of every such panic begins.
pub const BROKEN: &str = "invariant ";

/// Panics unless the invariant of this name holds.
macro_rules! invariant {
    ($name:literal, $holds:expr, $($why:tt)+) => {
        if !$holds {
            $crate::invariant::broken($name, format_args!($($why)+));
        }
    };
}

pub(crate) use invariant;

#[cold]
#[inline(never)]
pub(crate) fn broken(name: &str, why: std::fmt::Arguments<'_>) -> ! {
    panic!("{BROKEN}{name} is broken: {why}")
}

#[cfg(test)]
mod tests {
    #[test]
    #[should_panic(expected = "invariant I9 is broken: 2 is not 3")]
    fn a_broken_one_says_its_name() {
        let (two, three) = (2, 3);
        invariant!("I9", two == three, "{two} is not {three}");
    }
}
