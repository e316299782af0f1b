//! Randomness for secrets.

use rand::SeedableRng;
use rand::rngs::SysRng;
use rand_chacha::ChaCha20Rng;

/// The system has no randomness to give.
#[derive(Debug, thiserror::Error)]
#[error("no randomness from the system: {0}")]
pub struct NoRandomness(String);

/// A generator for keys, shares and salts, seeded by the system.
///
/// # Errors
/// When the system has no randomness to give.
pub fn system_rng() -> Result<ChaCha20Rng, NoRandomness> {
    ChaCha20Rng::try_from_rng(&mut SysRng).map_err(|error| NoRandomness(error.to_string()))
}
