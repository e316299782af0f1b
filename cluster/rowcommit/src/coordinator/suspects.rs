//! In-sync stores that may have forgotten what they acknowledged: those that came up after a run
//! that did not end in order.
//!
//! A suspect counts for what it holds, never for what it lacks. Until the rows of a group have been
//! compared, a row's vector is what all its in-sync slots say together ([`super::evidence`]); the
//! comparison goes through all rows by metadata, beside the clients, and repairs what dissents.
//! Then the store is told that it was vetted, so that it may end in order again.
//!
//! U1. While one of a group's slots is under suspicion no other store of it is taken out for having
//!     restarted: it may be the one that remembers.

use super::walk::{Page, rows_of};
use super::{Alarm, Coordinator, Phase, Purpose, Seat, evidence};
use crate::msg::{Answer, Ask, SCAN_LIMIT};
use crate::snaps;
use crate::time::Time;
use smalti_map::Group;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{GroupNo, Incarnation, RowAddr, Slot, SlotSet, StoreId};
use smalti_storage::store::VersionMeta;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::time::Duration;

/// Repairs that the comparison may run ahead of.
const AHEAD: usize = 1024;

/// Rows that could not be repaired are tried again after this long at first, and twice as long each
/// time, up to 64 times, while none of them can be.
const RETRY: Duration = Duration::from_secs(1);

/// Who is under suspicion, and how far the comparisons are.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspects {
    /// Per store the groups in which it is in sync and not compared yet.
    stores: BTreeMap<StoreId, BTreeSet<GroupNo>>,
    groups: BTreeMap<GroupNo, Vetting>,
    /// Stores that were compared and have not heard of it.
    to_tell: BTreeSet<StoreId>,
    rounds: u64,
}

/// The comparison of one group.
#[derive(Clone, Debug, Default)]
struct Vetting {
    after: Option<RowAddr>,
    round: u64,
    pages: BTreeMap<Slot, Page>,
    due: SlotSet,
    /// All rows were looked at.
    done: bool,
    repairing: BTreeSet<(RowAddr, Seat)>,
    failed: BTreeSet<(RowAddr, Slot)>,
    retry_at: Time,
    /// How often those that failed were tried again since one was repaired.
    tried: u32,
}

impl Vetting {
    /// Rows are still being looked at or put right.
    fn is_at_work(&self) -> bool {
        !self.done || !self.repairing.is_empty()
    }
}

impl Suspects {
    /// Whether a slot of the group may have forgotten something.
    pub(super) fn in_group(&self, group: GroupNo) -> bool {
        self.groups.contains_key(&group) && !lives(Mutant::TrustSuspects)
    }

    /// Whether rows of the group are still being put right. What can not be put right holds nobody
    /// else back.
    pub(super) fn is_vetting(&self, group: GroupNo) -> bool {
        self.groups.get(&group).is_some_and(Vetting::is_at_work)
    }

    /// Whether a comparison goes on.
    pub(super) fn is_at_work(&self) -> bool {
        self.groups.values().any(Vetting::is_at_work)
    }

    /// Whether pages of this round are still waited for.
    pub(super) fn is_round(&self, group: GroupNo, round: u64) -> bool {
        self.groups.get(&group).is_some_and(|vetting| vetting.round == round)
    }

    /// Its part of [`Coordinator::digest`]; rounds are only compared with those of requests.
    pub(super) fn digest(&self, now: Time, hasher: &mut impl Hasher) {
        (&self.stores, &self.to_tell, self.groups.len()).hash(hasher);
        for (group, v) in &self.groups {
            (group, v.after, &v.pages, v.due, v.done).hash(hasher);
            (&v.repairing, &v.failed, v.retry_at.since(now), v.tried.min(6)).hash(hasher);
        }
    }

    /// Whether the store is under suspicion in the group.
    pub(super) fn has(&self, store: StoreId, group: GroupNo) -> bool {
        self.stores.get(&store).is_some_and(|groups| groups.contains(&group))
    }

    /// Stores under suspicion.
    pub(super) fn len(&self) -> usize {
        self.stores.len()
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.stores.is_empty() && self.groups.is_empty() && self.to_tell.is_empty()
    }

    /// A page will not come: whoever was asked is not in sync any more.
    pub(super) fn page_lost(&mut self, group: GroupNo, round: u64) {
        if let Some(vetting) = self.groups.get_mut(&group).filter(|v| v.round == round) {
            vetting.due = SlotSet::EMPTY;
            vetting.pages.clear();
        }
    }

    /// A repair of a row slot has ended.
    pub(super) fn repaired(&mut self, now: Time, row: RowAddr, seat: Seat, good: bool) {
        if let Some(vetting) = self.groups.get_mut(&row.group)
            && vetting.repairing.remove(&(row, seat))
        {
            if good {
                vetting.tried = 0;
                return;
            }
            // Of whoever holds the slot by then: it may have moved.
            vetting.failed.insert((row, seat.0));
            vetting.retry_at = now.after(RETRY * (1 << vetting.tried.min(6)));
        }
    }
}

impl Coordinator {
    /// Puts a store under suspicion in all groups in which it is in sync.
    pub(super) fn suspect(&mut self, store: StoreId) {
        let mut groups = self.groups_in_sync(store);
        for group in &groups {
            // From the first row on: what was compared before may be forgotten now.
            self.suspects.groups.insert(*group, Vetting::default());
        }
        // It stays one until those have been settled, and compared.
        groups.extend(self.groups_offline(store));
        if !groups.is_empty() {
            self.suspects.stores.insert(store, groups);
        }
    }

    /// Whether answers of this start of a store can be taken for those of the store that is in
    /// sync. One that came up again after a crash may have forgotten what it acknowledged, and its
    /// session may be there before the map tells of it. It is heard again when it has been taken
    /// out, or has promised a new epoch.
    pub(super) fn believes(&mut self, store: StoreId, start: Incarnation) -> bool {
        if self.phase != Phase::Active {
            let same = self.takeover.incarnation(store).is_none_or(|promised| promised == start);
            self.takeover.again |= !same;
            return same;
        }
        let Some(known) = self.incarnations.get_mut(&store) else { return true };
        let in_order = || {
            let registered = self.map.stores.get(&store);
            registered.is_some_and(|entry| entry.clean && entry.incarnation == start)
        };
        if *known != start && in_order() {
            *known = start;
        }
        *known == start || lives(Mutant::HearRestarted)
    }

    /// The groups that are served in which it is in sync.
    pub(super) fn groups_in_sync(&self, store: StoreId) -> BTreeSet<GroupNo> {
        self.groups_where(|group| !group.offline && group.has_in_sync(store))
    }

    fn groups_offline(&self, store: StoreId) -> BTreeSet<GroupNo> {
        let told = lives(Mutant::VetOffline);
        self.groups_where(|group| group.offline && group.has_in_sync(store) && !told)
    }

    fn groups_where(&self, is_meant: impl Fn(&Group) -> bool) -> BTreeSet<GroupNo> {
        let groups = self.volume.iter().flat_map(|volume| &volume.groups);
        let numbered = (0u16..).map(GroupNo).zip(groups);
        numbered.filter(|(_, group)| is_meant(group)).map(|(no, _)| no).collect()
    }

    /// The map changed: where a store left the in-sync set it will be compared as a whole when it
    /// comes back. Perhaps that was all that was left to compare.
    pub(super) fn retain_suspects(&mut self) {
        let mut vetted = Vec::new();
        let mut stores = std::mem::take(&mut self.suspects.stores);
        stores.retain(|store, groups| {
            let mut insync = self.groups_in_sync(*store);
            insync.extend(self.groups_offline(*store));
            groups.retain(|group| insync.contains(group));
            if groups.is_empty() && !insync.is_empty() {
                vetted.push(*store);
            }
            !groups.is_empty()
        });
        let needed: BTreeSet<GroupNo> = stores.values().flatten().copied().collect();
        self.suspects.groups.retain(|group, _| needed.contains(group));
        self.suspects.stores = stores;
        vetted.into_iter().for_each(|store| self.tell_vetted(store));
    }

    /// An in-sync store that came back without having ended in order while this coordinator serves:
    /// it is taken out and compared as a whole, where that leaves enough others and all of those
    /// are there and above suspicion. Otherwise the epoch is begun anew: undecided versions that the
    /// store came up with again have to be settled before any watermark passes them.
    pub(super) fn doubt_restarted(&mut self) {
        let came_back = |store: &StoreId| {
            let known = self.incarnations.get(store);
            self.map.stores.get(store).is_some_and(|entry| {
                !entry.clean && known.is_some_and(|known| *known < entry.incarnation)
            })
        };
        let doubtful: Vec<StoreId> = self.insync_stores.iter().copied().filter(came_back).collect();
        if doubtful.is_empty() {
            return;
        }
        let alone = doubtful.len() == 1 && self.suspects.is_quiet();
        let silent =
            |store: &&StoreId| self.links.is_silent(**store, self.now, self.config.suspect_after);
        let silent: Vec<StoreId> = self.insync_stores.iter().filter(silent).copied().collect();
        let beside = |group: &GroupNo| {
            silent.iter().any(|store| self.groups_in_sync(*store).contains(group))
        };
        let leaves = |store: &StoreId| {
            self.may_leave(*store) && !self.groups_in_sync(*store).iter().any(beside)
        };
        if !alone || !doubtful.iter().all(leaves) {
            self.propose_elect();
        } else if self.would_remain(&[&doubtful[..], &silent].concat()) {
            self.shrink(doubtful, false, |store| Alarm::Silent { store });
        }
    }

    /// Whether the store can be taken out of every group in which it is in sync.
    fn may_leave(&self, store: StoreId) -> bool {
        self.volume.as_ref().is_some_and(|volume| {
            let insync = self.groups_in_sync(store);
            let enough = |group: &GroupNo| {
                volume.group(*group).is_some_and(|g| g.insync.len() > u32::from(volume.min_insync))
            };
            insync.iter().all(enough)
        })
    }

    /// A store has grown back: all its rows were compared.
    pub(super) fn vet_grown(&mut self, store: StoreId) {
        let unclean = self.map.stores.get(&store).is_some_and(|entry| !entry.clean);
        if unclean && !self.suspects.stores.contains_key(&store) {
            self.tell_vetted(store);
        }
    }

    fn tell_vetted(&mut self, store: StoreId) {
        self.suspects.to_tell.insert(store);
        self.tell_all_vetted();
    }

    /// Tells, again where a session ended before the answer came: until it hears of it a store takes
    /// nothing for decided.
    fn tell_all_vetted(&mut self) {
        let insync = &self.insync_stores;
        self.suspects.to_tell.retain(|store| insync.binary_search(store).is_ok());
        let asked = |store: StoreId| {
            self.pending.values().any(|p| p.store == store && matches!(p.purpose, Purpose::Vetted))
        };
        let due = self.suspects.to_tell.iter().copied();
        let due: Vec<StoreId> =
            due.filter(|store| self.links.is_up(*store) && !asked(*store)).collect();
        for store in due {
            if let Some(incarnation) = self.incarnations.get(&store).copied() {
                self.ask_store(store, None, Ask::Vetted { incarnation }, Purpose::Vetted);
            }
        }
    }

    /// It has heard that it was compared.
    pub(super) fn on_told_vetted(&mut self, store: StoreId) {
        self.suspects.to_tell.remove(&store);
    }

    /// Moves every comparison on as far as it goes.
    pub(super) fn vet_pump(&mut self) {
        if !self.suspects.to_tell.is_empty() {
            self.tell_all_vetted();
        }
        let groups: Vec<GroupNo> = self.suspects.groups.keys().copied().collect();
        for group in groups {
            self.retry_failed(group);
            let Some(vetting) = self.suspects.groups.get(&group) else { continue };
            let open = vetting.repairing.len();
            if vetting.done && open + vetting.failed.len() == 0 || lives(Mutant::VetUnseen) {
                self.group_is_vetted(group);
            } else if !vetting.done && vetting.due.is_empty() && open < AHEAD {
                self.ask_vet_pages(group);
            }
        }
    }

    fn retry_failed(&mut self, group: GroupNo) {
        let now = self.now;
        let Some(vetting) = self.suspects.groups.get_mut(&group) else { return };
        if vetting.retry_at <= now && !vetting.failed.is_empty() {
            vetting.tried += 1;
            for (row, slot) in std::mem::take(&mut vetting.failed) {
                self.vet_repair(row, slot);
            }
        }
    }

    fn ask_vet_pages(&mut self, group: GroupNo) {
        let insync = self.insync(group);
        self.suspects.rounds += 1;
        let round = self.suspects.rounds;
        let Some(vetting) = self.suspects.groups.get_mut(&group) else { return };
        vetting.round = round;
        vetting.pages.clear();
        vetting.due = insync;
        let after = vetting.after.map(|row| (row, Slot(u8::MAX)));
        let limit = u32::try_from(SCAN_LIMIT).unwrap_or(u32::MAX);
        for of in insync.iter() {
            let purpose = Purpose::Vet { group, of, round };
            self.ask(group, of, Ask::Scan { group, after, limit }, purpose);
        }
    }

    pub(super) fn on_vet_page(&mut self, group: GroupNo, of: Slot, round: u64, answer: Answer) {
        let Some(vetting) = self.suspects.groups.get_mut(&group) else { return };
        if vetting.round != round || !vetting.due.contains(of) {
            return;
        }
        let Answer::Scanned { entries, done } = answer else {
            self.suspects.page_lost(group, round);
            return;
        };
        vetting.pages.insert(of, Page::new(of, entries, done));
        vetting.due = vetting.due.without(of);
        if vetting.due.is_empty() {
            self.compare_vet_pages(group);
            self.vet_pump();
        }
    }

    /// Rows that change meanwhile may look wrong; the repair looks again under the row's lock.
    fn compare_vet_pages(&mut self, group: GroupNo) {
        let (n, data, snaps) = (self.n(), self.data_slots(), self.snaps());
        let Some(vetting) = self.suspects.groups.get_mut(&group) else { return };
        let pages = std::mem::take(&mut vetting.pages);
        let (rows, upto) = rows_of(pages.values());
        vetting.after = upto.or(vetting.after);
        vetting.done = upto.is_none();
        let mut wrong = Vec::new();
        for row in rows {
            let mut versions: BTreeMap<Slot, &[VersionMeta]> = BTreeMap::new();
            for (slot, page) in &pages {
                match page.rows.get(&row) {
                    Some(Some(held)) => drop(versions.insert(*slot, held)),
                    // Damaged.
                    Some(None) => wrong.push((row, *slot)),
                    None => drop(versions.insert(*slot, &[])),
                }
            }
            for state in std::iter::once(None).chain(snaps.iter().map(Some)) {
                let of = |held: &&[VersionMeta]| match state {
                    None => held.first().cloned(),
                    Some(snap) => snaps::held(held, snap).cloned(),
                };
                let metas = versions.iter().map(|(slot, held)| (*slot, of(held)));
                let metas: BTreeMap<Slot, VersionMeta> =
                    metas.map(|(slot, meta)| (slot, meta.unwrap_or_default())).collect();
                let vec = evidence::vector(metas.iter().map(|(slot, meta)| (*slot, meta)), n);
                let dissent = evidence::dissenting(&metas, &vec, data);
                wrong.extend(dissent.iter().map(|slot| (row, slot)));
            }
        }
        wrong.sort_unstable();
        wrong.dedup();
        for (row, slot) in wrong {
            self.vet_repair(row, slot);
        }
    }

    /// An update of the row is undone: what lies beneath it on each slot comes to light again, and may
    /// be what was forgotten. The comparison may have seen the update there.
    pub(super) fn vet_beneath(&mut self, row: RowAddr, slots: SlotSet) {
        if self.suspects.groups.contains_key(&row.group) {
            slots.and(self.insync(row.group)).iter().for_each(|slot| self.vet_repair(row, slot));
        }
    }

    fn vet_repair(&mut self, row: RowAddr, slot: Slot) {
        let Some(store) = self.store_of(row.group, slot) else { return };
        let claimed = self.catchup.claim_repair(row, (slot, store));
        let Some(vetting) = self.suspects.groups.get_mut(&row.group) else { return };
        // Another repair of it may be under way: whichever it is, it puts the row right.
        vetting.repairing.insert((row, (slot, store)));
        if claimed {
            self.add_repair(row, (slot, store), None);
        }
    }

    fn group_is_vetted(&mut self, group: GroupNo) {
        self.suspects.groups.remove(&group);
        let mut vetted = Vec::new();
        for (store, groups) in &mut self.suspects.stores {
            groups.remove(&group);
            if groups.is_empty() {
                vetted.push(*store);
            }
        }
        for store in vetted {
            self.suspects.stores.remove(&store);
            self.tell_vetted(store);
        }
    }
}
