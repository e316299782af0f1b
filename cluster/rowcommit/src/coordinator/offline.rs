//! Groups that the volume is served without.
//!
//! Where more stores in sync of a group are away than it can do without, nothing of it can be settled,
//! and a takeover would wait for them for ever. It goes on without the group: the map calls it offline,
//! and operations of it wait.
//!
//! O1. Nothing of an offline group is read or written for a client, repaired, compared or decided, and its
//!     in-sync set stays as it is but for what a takeover takes out of it.
//! O2. No watermark speaks of an offline group: not to its stores, whose map says so before they take
//!     anything in an epoch in which it is, and to the takeover that settles it only of what was settled
//!     before.
//! O3. It is online again by the `Activate` of a takeover that settled it, with promises of all that are
//!     in sync in it. Nobody else who comes back is compared before he has promised, or told that he was.

use super::{Coordinator, Pending, Phase, Purpose};
use crate::msg::Ask;
use smalti_map::{Command, Group};
use smalti_storage::ids::{GroupNo, StoreId};
use std::collections::BTreeSet;
use std::time::Duration;

impl Coordinator {
    /// Whether operations of the group are carried out.
    pub(super) fn is_served(&self, no: GroupNo) -> bool {
        self.volume.as_ref().and_then(|v| v.group(no)).is_some_and(|group| !group.offline)
    }

    /// Whether any group is offline.
    pub(super) fn has_offline(&self) -> bool {
        self.volume.iter().flat_map(|volume| &volume.groups).any(|group| group.offline)
    }

    /// How long a store is waited for without which a group can not be served.
    fn offline_patience(&self) -> Duration {
        2 * self.config.stall_patience.max(self.config.takeover_patience)
    }

    /// By then whoever may be done without has been.
    fn longest_for_offline(&self) -> Duration {
        self.offline_patience().max(2 * self.config.power_patience)
    }

    /// Whether one without which an offline group can not be settled after all is gone again, and has not
    /// told what it holds.
    pub(super) fn stops_settling(&self) -> bool {
        let long = self.offline_patience();
        let groups = self.volume.iter().flat_map(|volume| &volume.groups);
        let numbered = (0u16..).map(GroupNo).zip(groups);
        let settles = |(no, group): &(GroupNo, &Group)| {
            group.offline && self.takeover.looking && !self.takeover.left_out.contains(no)
        };
        numbered.filter(settles).any(|(_, group)| {
            group.insync_stores().any(|store| self.links.is_silent(store, self.now, long))
        })
    }

    /// Stores in sync in the group that the takeover has no promise of.
    fn unpromised(&self, group: &Group) -> Vec<StoreId> {
        let stores = group.insync_stores();
        stores.filter(|store| self.takeover.incarnation(*store).is_none()).collect()
    }

    /// Groups that would keep the others waiting for ever: too few would remain without those that have
    /// been silent for long, or nobody who remains may be believed without them. Empty where no group
    /// would be left to serve.
    fn beyond_help(&self) -> Vec<GroupNo> {
        let Some(volume) = &self.volume else { return Vec::new() };
        let long = self.offline_patience();
        let longest = self.longest_for_offline();
        let silent = |store: &StoreId, patience| {
            self.links.is_silent(*store, self.now, patience)
                // One that was heard of before this takeover began need not be waited for anew.
                || self.links.is_silent(*store, self.now, self.config.takeover_patience)
                    && self.links.has_served(*store)
                    && self.now.since(self.links.silent_from(*store)) > patience
        };
        let is_beyond = |group: &Group| {
            // One that has promised may be gone as well before it has told what it holds.
            let away: Vec<StoreId> =
                group.insync_stores().filter(|store| silent(store, long)).collect();
            let few = group.insync.len() < u32::from(volume.data) + away.len() as u32;
            !away.is_empty() && (few || away.iter().all(|store| silent(store, longest)))
        };
        let groups = || (0u16..).map(GroupNo).zip(&volume.groups);
        let beyond: Vec<GroupNo> =
            groups().filter(|(_, g)| !g.offline && is_beyond(g)).map(|(no, _)| no).collect();
        let left = groups().any(|(no, group)| !group.offline && !beyond.contains(&no));
        if left { beyond } else { Vec::new() }
    }

    /// Goes on without groups that can not be settled. One who serves has himself elected first, for only
    /// a takeover may.
    pub(super) fn do_without_groups(&mut self) {
        let groups = self.beyond_help();
        if groups.is_empty() {
            return;
        }
        let activated = self.volume.as_ref().is_some_and(|volume| volume.activated);
        if self.phase == Phase::TakingOver && !activated {
            let (volume, epoch) = (self.config.volume, self.epoch);
            self.propose("offline", Command::SetOffline { volume, epoch, groups });
        } else {
            self.propose_elect();
        }
    }

    /// The offline groups that this takeover can not settle; none while it has to wait for promises.
    pub(super) fn left_out(&self) -> Option<BTreeSet<GroupNo>> {
        let volume = self.volume.as_ref()?;
        let mut left_out = BTreeSet::new();
        for (no, group) in (0u16..).map(GroupNo).zip(&volume.groups) {
            let missing = self.unpromised(group);
            if missing.is_empty() {
                continue;
            }
            // One that is there promises in a moment. Those that can be done without are taken out, if not
            // at once.
            let few = group.insync.len() < u32::from(volume.data) + missing.len() as u32;
            let waited = self.now.since(self.takeover.since);
            let patience = self.config.takeover_patience;
            let gone = |store: &StoreId| self.links.is_silent(*store, self.now, patience);
            let given_up = few || waited > self.longest_for_offline();
            if !group.offline || !missing.iter().all(gone) || !given_up {
                return None;
            }
            left_out.insert(no);
        }
        Some(left_out)
    }

    /// Whether the store is in sync in an offline group and has come back, or up, since the takeover.
    pub(super) fn is_unsettled(&self, store: StoreId) -> bool {
        let registered = self.map.stores.get(&store).map(|entry| entry.incarnation);
        let groups = self.volume.iter().flat_map(|volume| &volume.groups);
        groups.filter(|group| group.offline).flat_map(Group::insync_stores).any(|at| at == store)
            && self.takeover.incarnation(store) != registered
    }

    /// Whether a takeover could not settle the group now: too few of those in sync are there. Else one that
    /// starts again and again would have all others wait for a takeover each time.
    fn would_be_left_out(&self, group: &Group) -> bool {
        let patience = self.config.takeover_patience;
        let gone = |store: &StoreId| {
            !self.links.is_up(*store) || self.links.is_silent(*store, self.now, patience)
        };
        let away = group.insync_stores().filter(gone).count();
        group.insync.len() < u32::from(self.n()) + away as u32
    }

    /// A store is back without which a group could not be settled, and serves: there is another takeover.
    /// Not at once after the last one, for clients wait for each.
    pub(super) fn settle_offline(&mut self) {
        if self.now.since(self.active_since) < self.config.stall_patience {
            return;
        }
        let groups = self.volume.iter().flat_map(|volume| &volume.groups);
        let mut back = BTreeSet::new();
        let mut is_due = false;
        for group in groups.filter(|group| group.offline && !self.would_be_left_out(group)) {
            let missed: Vec<StoreId> =
                group.insync_stores().filter(|store| self.is_unsettled(*store)).collect();
            // Nobody is, where one was taken out that had forgotten all.
            is_due |= missed.is_empty();
            back.extend(missed.into_iter().filter(|store| self.is_reached(*store)));
        }
        // One that answers and gets no maps can not promise either.
        let serves = |store: &StoreId| self.links.silent_from(*store) >= self.takeover.since;
        is_due |= back.iter().any(serves);
        if is_due {
            self.propose_elect();
            return;
        }
        for store in back {
            let asked = |p: &Pending| p.store == store && matches!(p.ask, Ask::Nop);
            if !self.pending.values().any(asked) {
                self.ask_store(store, None, Ask::Nop, Purpose::Forget);
            }
        }
    }
}
