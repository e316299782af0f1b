//! Taking over a volume: promises from every in-sync store, then every undecided row settled,
//! then `Activate`. Nothing is served before that, so a decision may differ between two attempts:
//! nobody has seen the first.

use super::decide::{Decision, Facts, decide};
use super::rows::Kind;
use super::settle::Forward;
use super::{Action, Alarm, Coordinator, Phase, Purpose};
use crate::msg::{Answer, Ask, FROZEN, UNREADABLE};
use crate::time::Time;
use smalti_map::Command;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{GroupNo, Incarnation, RowAddr, Slot, StoreId, Ver};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Rows that were found lost are decided again after this long, twice as long the next time, up to 64
/// times: clients wait meanwhile.
const DECIDE_AGAIN: Duration = Duration::from_secs(60);
const LONGEST: u32 = 64;

/// What a takeover knows so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Takeover {
    pub(super) promised: BTreeMap<StoreId, Promised>,
    pub(super) ask_again: BTreeMap<StoreId, Time>,
    pub(super) looking: bool,
    pub(super) since: Time,
    /// Offline groups that are not settled.
    pub(super) left_out: BTreeSet<GroupNo>,
    pub(super) facts: BTreeMap<RowAddr, BTreeMap<Slot, Facts>>,
    pub(super) answers_due: usize,
    /// Slots of rows that could not tell what they hold.
    pub(super) unreadable: Vec<(RowAddr, Slot)>,
    /// Aborts, installs and forward tasks that have not ended.
    pub(super) open: usize,
    /// Something did not go as decided: begin again.
    pub(super) again: bool,
}

#[derive(Clone, Debug, Hash)]
pub(super) struct Promised {
    incarnation: Incarnation,
    suspect: bool,
    watermark: Ver,
    rows: Vec<(RowAddr, Slot)>,
}

impl Takeover {
    /// The start of a store that promised this epoch.
    pub(super) fn incarnation(&self, store: StoreId) -> Option<Incarnation> {
        self.promised.get(&store).map(|promised| promised.incarnation)
    }

    /// Stores that may have forgotten what they acknowledged.
    pub(super) fn suspects(&self) -> Vec<StoreId> {
        let suspect = self.promised.iter().filter(|(_, promised)| promised.suspect);
        suspect.map(|(store, _)| *store).collect()
    }
}

impl Coordinator {
    pub(super) fn start_promises(&mut self) {
        for store in self.insync_stores.clone() {
            self.ask_store(store, None, Ask::Promise, Purpose::Promise);
        }
    }

    pub(super) fn on_promised(&mut self, store: StoreId, answer: Answer) {
        if self.phase != Phase::TakingOver {
            return;
        }
        match answer {
            // Too late for this takeover: what is undecided there was not looked at. There is another one.
            Answer::Promised { .. }
                if self.takeover.looking && self.takeover.incarnation(store).is_none() => {}
            Answer::Promised { incarnation, suspect, went_back, watermark, prepared } => {
                let promised = Promised { incarnation, suspect, watermark, rows: prepared };
                self.links.note_start(store, incarnation, went_back, self.now);
                self.takeover.promised.insert(store, promised);
            }
            Answer::PromiseLater(micros) => {
                let at = self.now.after(Duration::from_micros(micros));
                self.takeover.ask_again.insert(store, at);
            }
            _ => {
                let at = self.now.after(Duration::from_millis(50));
                self.takeover.ask_again.insert(store, at);
            }
        }
        self.look_at_rows();
    }

    pub(super) fn takeover_tick(&mut self) {
        let due: Vec<StoreId> = self
            .takeover
            .ask_again
            .iter()
            .filter(|(_, at)| **at <= self.now)
            .map(|(store, _)| *store)
            .collect();
        for store in due {
            self.takeover.ask_again.remove(&store);
            self.ask_store(store, None, Ask::Promise, Purpose::Promise);
        }
        if self.takeover.again {
            self.begin_takeover();
        }
        self.do_without_groups();
        if self.stops_settling() {
            self.begin_takeover();
        }
        self.look_at_rows();
    }

    /// Once everybody has promised: asks for all versions of every undecided row.
    fn look_at_rows(&mut self) {
        if self.takeover.looking {
            return;
        }
        let early = || lives(Mutant::DecideEarly) && !self.takeover.promised.is_empty();
        let Some(left_out) = self.left_out().or_else(|| early().then(BTreeSet::new)) else {
            return;
        };
        self.takeover.looking = true;
        self.takeover.left_out = left_out;
        let rows: BTreeSet<RowAddr> = self
            .takeover
            .promised
            .iter()
            .flat_map(|(store, promised)| promised.rows.iter().map(move |at| (*store, *at)))
            .filter(|(store, (row, slot))| {
                !self.takeover.left_out.contains(&row.group)
                    && self.insync(row.group).contains(*slot)
                    && self.store_of(row.group, *slot) == Some(*store)
            })
            .map(|(_, (row, _))| row)
            .filter(|_| !lives(Mutant::LeaveUndecided))
            .collect();
        for row in rows {
            for slot in self.insync(row.group).iter() {
                self.takeover.answers_due += 1;
                self.ask(
                    row.group,
                    slot,
                    Ask::Versions { row, slot },
                    Purpose::Settle { row, slot },
                );
            }
        }
        if self.takeover.answers_due == 0 {
            self.settled();
        }
    }

    pub(super) fn on_versions(&mut self, row: RowAddr, slot: Slot, answer: Answer) {
        if self.phase != Phase::TakingOver {
            return;
        }
        let store = self.store_of(row.group, slot);
        let promised = store.and_then(|store| self.takeover.promised.get(&store));
        let suspect = promised.is_some_and(|promised| promised.suspect);
        let group = self.volume.as_ref().and_then(|volume| volume.group(row.group));
        // While a group is offline watermarks pass what is undecided of it. What came before is not.
        let offline = group.filter(|group| group.offline && !lives(Mutant::SettleByOffline));
        let settled = offline.map(|group| Ver { epoch: group.settled, seq: 0 });
        let told = promised.map_or(Ver::NONE, |promised| promised.watermark);
        let watermark = settled.map_or(told, |settled| told.min(settled));
        let since = group.and_then(|group| group.insync_since.get(&slot).copied());
        let insync_since = since.unwrap_or_default();
        let facts = match answer {
            Answer::Versions { versions, prepared } => {
                let (unreadable, frozen) = (prepared == Some(UNREADABLE), prepared == Some(FROZEN));
                let newest = || versions.first().map(|(meta, _)| meta.ver);
                let prepared = if frozen { newest() } else { prepared };
                Facts {
                    versions,
                    prepared,
                    watermark,
                    suspect,
                    insync_since,
                    unreadable,
                    frozen,
                    ..Facts::default()
                }
            }
            _ => Facts { watermark, suspect, insync_since, unreadable: true, ..Facts::default() },
        };
        self.takeover.facts.entry(row).or_default().insert(slot, facts);
        self.takeover.answers_due = self.takeover.answers_due.saturating_sub(1);
        if self.takeover.answers_due == 0 {
            self.settle_rows();
        }
    }

    fn settle_rows(&mut self) {
        let n = self.n();
        for (row, mut facts) in std::mem::take(&mut self.takeover.facts) {
            if facts.values().any(|f| f.frozen) {
                // Watermarks have passed what was left undecided.
                facts.values_mut().for_each(|f| f.watermark = Ver::NONE);
            }
            let decision = decide(&facts, n);
            self.cache.forget(row);
            self.freeze(row, &facts, decision.lost);
            let unreadable = facts.iter().filter(|(_, f)| f.unreadable);
            self.takeover.unreadable.extend(unreadable.map(|(slot, _)| (row, *slot)));
            if !decision.lost && !lives(Mutant::TrustUnreadable) {
                self.undo_unreadable(row, &facts, &decision);
            }
            for (slot, ver) in decision.aborts {
                self.takeover.open += 1;
                self.ask(row.group, slot, Ask::Abort { row, slot, ver }, Purpose::SettleDone);
            }
            if decision.lost {
                self.lost_rows.insert(row);
                self.actions.push(Action::Alarm(Alarm::RowLost { row }));
            }
            if let Some(chosen) = decision.chosen {
                self.takeover.open += 1;
                self.add_task(row, Kind::Forward(Forward { chosen }));
            }
        }
        self.check_settled();
    }

    /// Lost rows were found in a takeover, and only one can decide them. There is another one when a
    /// group of theirs has got a slot back, and now and then, for what could not be read may be
    /// readable again. It is not begun while a store that it needs is away, for then nothing would be
    /// served until that one is back; and not while others catch up or are compared, for they would
    /// have to begin anew, unless that takes very long.
    pub(super) fn decide_lost_again(&mut self, grown: Option<GroupNo>) {
        let in_group = |group| self.lost_rows.iter().any(|row| row.group == group);
        if grown.is_some_and(in_group) {
            self.decide_again = Some((self.now, 0));
        }
        let due = self.decide_again.filter(|(at, _)| *at <= self.now);
        let Some((at, _)) = due.filter(|_| self.phase == Phase::Active) else { return };
        let waited = self.now.since(at);
        let busy = || self.catchup.is_at_work() || self.suspects.is_at_work();
        let away = |store: &StoreId| {
            !self.links.is_up(*store)
                || self.links.is_silent(*store, self.now, self.config.suspect_after)
        };
        if self.insync_stores.iter().any(away) || busy() && waited < DECIDE_AGAIN * LONGEST {
            return;
        }
        self.propose_elect();
    }

    /// After a takeover: when there is to be another one for the rows that were lost.
    pub(super) fn plan_next_decision(&mut self) {
        let tried = self.decide_again.map_or(0, |(_, tried)| tried + 1);
        let pause = DECIDE_AGAIN * LONGEST.min(1 << tried.min(6));
        let at = self.now.after(pause);
        self.decide_again = (!self.lost_rows.is_empty()).then_some((at, tried));
    }

    /// Nothing of a lost row is decided, by no watermark either, until a takeover can.
    fn freeze(&mut self, row: RowAddr, facts: &BTreeMap<Slot, Facts>, lost: bool) {
        let lost_now = lost && !lives(Mutant::ThawLost);
        for (slot, _) in facts.iter().filter(|(_, f)| lost_now || f.frozen) {
            self.takeover.open += 1;
            let ask = Ask::Freeze { row, slot: *slot, frozen: lost };
            self.ask(row.group, *slot, ask, Purpose::SettleDone);
        }
    }

    /// A slot that can not tell what it holds may hold something undecided that was undone on all
    /// others: its store, which knows that much, must not take it for committed once the watermark
    /// passes. It is repaired when the volume is served, by whoever serves it then: a mark stays.
    fn undo_unreadable(
        &mut self,
        row: RowAddr,
        facts: &BTreeMap<Slot, Facts>,
        decision: &Decision,
    ) {
        for (slot, _) in facts.iter().filter(|(_, f)| f.unreadable) {
            self.takeover.open += 1;
            let ask = Ask::AbortNewer { row, slot: *slot, than: decision.stands };
            self.ask(row.group, *slot, ask, Purpose::SettleDone);
        }
    }

    pub(super) fn on_settled(&mut self, answer: &Answer) {
        self.takeover.open = self.takeover.open.saturating_sub(1);
        if *answer != Answer::Ok {
            self.takeover.again = true;
        }
        self.check_settled();
    }

    pub(super) fn check_settled(&mut self) {
        let done = self.phase == Phase::TakingOver
            && self.takeover.looking
            && self.takeover.answers_due == 0
            && (self.takeover.open == 0 || lives(Mutant::ServeUnsettled))
            && !self.takeover.again;
        if done {
            self.settled();
        }
    }

    /// Every in-sync store promised and no row is undecided any more.
    fn settled(&mut self) {
        self.phase = Phase::Activating;
        let activated = self.volume.as_ref().is_some_and(|volume| volume.activated);
        if activated || lives(Mutant::ServeUnactivated) {
            // By an earlier attempt of ours in this epoch, which had come this far too.
            self.become_active();
        } else {
            self.propose_activate();
        }
    }

    pub(super) fn propose_activate(&mut self) {
        let (volume, epoch) = (self.config.volume, self.epoch);
        let offline = self.volume.iter().flat_map(smalti_map::Volume::offline);
        let online = offline.filter(|no| !self.takeover.left_out.contains(no)).collect();
        self.propose("activate", Command::Activate { volume, epoch, online });
    }
}
