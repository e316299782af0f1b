//! What the programs that measure take from the environment.

use anyhow::{Context, Result};

/// The number that an environment variable holds, or the default where there is none.
///
/// # Errors
/// When it holds something else.
pub fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    }
}
