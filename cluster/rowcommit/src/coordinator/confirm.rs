//! Reads without clocks: instead of leases, a round of questions after the read has come.
//!
//! A store that answers has not promised another coordinator until then. So many of them that they
//! meet every later in-sync set therefore prove that nobody else served at the moment of the first
//! of their answers, and that moment lies within the read: it may return what was current then.
//!
//! Reads that come before the next [`Coordinator::drain`] share a round. Rounds are numbered, and an
//! answer to a later one is as good.

use super::{Coordinator, Purpose};
use crate::msg::Ask;
use smalti_map::ReadMode;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{GroupNo, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

/// The rounds of an epoch.
#[derive(Clone, Debug, Default)]
pub(super) struct Confirms {
    /// The newest round that was begun.
    round: u64,
    /// Groups of the reads that wait for the next one.
    wanted: BTreeSet<GroupNo>,
    /// The newest round that each store has answered.
    answered: BTreeMap<StoreId, u64>,
}

impl Confirms {
    /// Asks for a round, the number of which is the answer.
    pub(super) fn want(&mut self, groups: &BTreeSet<GroupNo>) -> u64 {
        self.wanted.extend(groups);
        if lives(Mutant::ConfirmBefore) {
            return self.round.max(1);
        }
        self.round + 1
    }

    pub(super) fn answered(&mut self, store: StoreId, round: u64) {
        let newest = self.answered.entry(store).or_default();
        *newest = round.max(*newest);
    }

    pub(super) fn clear(&mut self) {
        // Numbers go on: an answer to a round of an earlier epoch must not be one to a new one.
        *self = Self { round: self.round, ..Self::default() };
    }

    /// How far the newest round is ahead of this one.
    pub(super) fn ahead(&self, round: u64) -> u64 {
        (self.round + 1).saturating_sub(round)
    }

    /// Its part of [`Coordinator::digest`]. Nobody waits for a round that all have answered.
    pub(super) fn digest(&self, hasher: &mut impl Hasher) {
        self.wanted.hash(hasher);
        let behind = self.answered.iter().map(|(store, round)| (store, self.ahead(*round).min(64)));
        behind.collect::<Vec<_>>().hash(hasher);
    }
}

impl Coordinator {
    /// Whether reads are made sure of by asking.
    pub(super) fn confirms_reads(&self) -> bool {
        self.volume.as_ref().is_some_and(|volume| volume.read_mode == ReadMode::Confirm)
    }

    /// Begins the round that reads wait for.
    pub(super) fn ask_confirms(&mut self) {
        let groups = std::mem::take(&mut self.confirms.wanted);
        if groups.is_empty() {
            return;
        }
        self.confirms.round += 1;
        let round = self.confirms.round;
        let seats = groups.iter().flat_map(|group| self.counted(*group));
        let stores: BTreeSet<StoreId> = seats.map(|(_, store)| store).collect();
        for store in stores {
            self.ask_store(store, None, Ask::Confirm, Purpose::Confirm { round });
        }
    }

    /// Somebody whose answer counts was not asked, or the question is lost: asks anew for all reads
    /// that wait.
    pub(super) fn confirm_again(&mut self) {
        let waiting = self.reads.values().filter(|read| read.round > 0);
        let groups: Vec<GroupNo> = waiting.flat_map(|read| read.groups.iter().copied()).collect();
        self.confirms.wanted.extend(groups);
    }

    /// Whether enough stores of the group have answered that round or a later one.
    pub(super) fn confirmed(&self, group: GroupNo, round: u64) -> bool {
        let answered = |store| self.confirms.answered.get(&store).is_some_and(|at| *at >= round);
        self.enough(group, answered)
    }
}
