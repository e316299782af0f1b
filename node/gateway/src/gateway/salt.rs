//! Randomness of one gateway: nonces, and when the session salt changes.

use super::GatewayLimits;
use crate::error::GatewayError;
use rand::CryptoRng;
use smalti_rowcommit::Time;
use smalti_storage::seal::Sealer;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(super) struct Salter {
    state: Mutex<State>,
    blocks_max: u64,
    age_max: Duration,
    resalted: AtomicU64,
}

struct State {
    random: Box<dyn CryptoRng + Send>,
    /// Blocks counted under the salt in use.
    blocks: u64,
    since: Time,
    now: Time,
}

impl Salter {
    /// With the first salt.
    pub(super) fn new(
        mut random: Box<dyn CryptoRng + Send>,
        now: Time,
        limits: &GatewayLimits,
    ) -> (Self, [u8; 16]) {
        let mut salt = [0; 16];
        random.fill_bytes(&mut salt);
        let this = Self {
            state: Mutex::new(State { random, blocks: 0, since: now, now }),
            blocks_max: limits.blocks_per_salt,
            age_max: limits.salt_age,
            resalted: AtomicU64::new(0),
        };
        (this, salt)
    }

    /// Random parts for the nonces of blocks about to be sealed, after a change of salt if these
    /// blocks are too many for the one in use.
    pub(super) fn draw(&self, sealer: &Sealer, nonces: &mut [[u8; 4]]) -> Result<(), GatewayError> {
        let mut state = self.lock();
        let blocks = nonces.len() as u64;
        if state.blocks + blocks > self.blocks_max {
            self.change(&mut state, sealer)?;
        }
        state.blocks += blocks;
        state.random.fill_bytes(nonces.as_flattened_mut());
        Ok(())
    }

    pub(super) fn tick(&self, sealer: &Sealer, now: Time) -> Result<(), GatewayError> {
        let mut state = self.lock();
        state.now = state.now.max(now);
        if state.now.since(state.since) < self.age_max {
            return Ok(());
        }
        self.change(&mut state, sealer)
    }

    pub(super) fn resalted(&self) -> u64 {
        self.resalted.load(Ordering::Relaxed)
    }

    fn change(&self, state: &mut State, sealer: &Sealer) -> Result<(), GatewayError> {
        let mut salt = [0; 16];
        state.random.fill_bytes(&mut salt);
        sealer.resalt(salt).map_err(|error| {
            tracing::error!(%error, "the random source repeats itself");
            GatewayError::Internal
        })?;
        state.blocks = 0;
        state.since = state.now;
        self.resalted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // At worst some random bytes were drawn and not used.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
