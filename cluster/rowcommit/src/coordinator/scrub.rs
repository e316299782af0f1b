//! Scrub: every record of a group is read where it lies and held against all the others, beside the
//! clients.
//!
//! Z1. Each store reads and re-hashes every record that it has, and tells its fingerprint.
//! Z2. What one slot has of a row must be what the others say that it has.
//! Z3. The fingerprints of a row's records must be those of a codeword: they are linear in the records
//!     ([`smalti_storage::code::Fingerprint`]), so 16 bytes a record travel instead of all of it.
//! Z4. Pages are read while the row may change. One that looks wrong is looked at once more with its
//!     updates held up, and only that is believed.
//! Z5. What is wrong is made anew from what is not. Where nobody can tell which record it is that is
//!     wrong, none is touched.

use super::rows::{Kind, TaskId};
use super::walk::{Page, rows_of};
use super::{Action, Alarm, Coordinator, Phase, Purpose, Seat, evidence};
use crate::msg::{Answer, Ask, Proven, SCAN_LIMIT};
use crate::snaps;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::code::Fingerprint;
use smalti_storage::ids::{GroupNo, RowAddr, Slot, SlotSet, StoreId, Ver};
use smalti_storage::store::VersionMeta;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

/// Rows to be looked at again, and repairs, that pages may run ahead of.
const AHEAD: usize = 256;

/// Versions of a page, at least and at most.
const PAGE_MIN: usize = 4;
const PAGE_MAX: usize = SCAN_LIMIT / 2;

/// What a scrub of a group has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ScrubReport {
    /// Rows that were looked at.
    pub rows: u64,
    /// Per store, how many of its row slots were wrong.
    pub wrong: BTreeMap<StoreId, u64>,
    /// Rows that can not be put right: too much of them is wrong, or their records are no codeword and
    /// nobody can tell which of them is wrong.
    pub unclear: u64,
    /// Slots that were not in sync all the time, so that not all they have was read.
    pub unread: u64,
}

impl ScrubReport {
    /// Whether nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.wrong.is_empty() && self.unclear == 0
    }
}

/// The scrub of one group.
#[derive(Clone, Debug)]
pub(super) struct Scrub {
    pub(super) group: GroupNo,
    after: Option<RowAddr>,
    round: u64,
    pages: BTreeMap<Slot, Page<Proven>>,
    due: SlotSet,
    /// All rows were read.
    done: bool,
    checking: BTreeSet<RowAddr>,
    repairing: BTreeSet<(RowAddr, Seat)>,
    /// Rows of which too little is right.
    lost: BTreeSet<RowAddr>,
    /// Those of them of which something is not remembered, for too much is: nobody sees it if they are put
    /// right.
    unknown: BTreeSet<RowAddr>,
    unread: SlotSet,
    report: ScrubReport,
}

/// A row that is looked at once more.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Check {
    /// Slots that were asked and have not answered; none before they are asked.
    due: Option<SlotSet>,
    /// `None`: metadata is damaged.
    held: BTreeMap<Slot, Option<Vec<Proven>>>,
}

/// What is wrong with a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// The slots that are, each with those of its versions that verify and have wrong bytes all the
    /// same.
    wrong: BTreeMap<Slot, BTreeSet<Ver>>,
    /// Something is, and nobody can tell which slot.
    unclear: bool,
}

impl Scrub {
    fn new(group: GroupNo) -> Self {
        Self {
            group,
            after: None,
            round: 0,
            pages: BTreeMap::new(),
            due: SlotSet::EMPTY,
            done: false,
            checking: BTreeSet::new(),
            repairing: BTreeSet::new(),
            lost: BTreeSet::new(),
            unknown: BTreeSet::new(),
            unread: SlotSet::EMPTY,
            report: ScrubReport::default(),
        }
    }

    fn open(&self) -> usize {
        self.checking.len() + self.repairing.len()
    }

    /// A page will not come: whoever was asked is not in sync any more. Asked again at the next tick.
    pub(super) fn page_lost(&mut self, round: u64) {
        if self.round == round {
            self.due = SlotSet::EMPTY;
            self.pages.clear();
        }
    }

    pub(super) fn is_round(&self, round: u64) -> bool {
        self.round == round
    }

    /// Its part of [`Coordinator::digest`]; rounds are only compared with those of requests.
    pub(super) fn digest(&self, hasher: &mut impl Hasher) {
        (self.group, self.after, &self.pages, self.due, self.done).hash(hasher);
        (&self.checking, &self.repairing, &self.lost, &self.unknown).hash(hasher);
        (self.unread, &self.report).hash(hasher);
    }
}

impl Coordinator {
    /// Begins the scrub of a group, unless one is under way.
    pub(super) fn start_scrub(&mut self, group: GroupNo) {
        if self.phase == Phase::Active && self.scrub.is_none() && self.is_served(group) {
            self.scrub = Some(Scrub::new(group));
            self.scrub_pump();
        }
    }

    /// The scrub goes on as far as it may.
    pub(super) fn scrub_pump(&mut self) {
        let Some(scrub) = &self.scrub else { return };
        let (group, open) = (scrub.group, scrub.open());
        if scrub.done && open == 0 {
            let Some(Scrub { lost, unknown, unread, mut report, .. }) = self.scrub.take() else {
                return;
            };
            let mut told = self.catchup.unrepaired.tell(&lost);
            told.extend(unknown);
            report.unclear += told.len() as u64;
            report.unread = unread.len().into();
            self.actions.push(Action::Scrubbed { group, report });
            return;
        }
        let window = self.window();
        // Who may have forgotten something is compared with the others first.
        let waits = self.suspects.is_vetting(group) || window == 0;
        if scrub.done || !scrub.due.is_empty() || open >= AHEAD || waits {
            return;
        }
        let (after, due) = (scrub.after.map(|row| (row, Slot(u8::MAX))), self.insync(group));
        self.catchup.rounds += 1;
        let round = self.catchup.rounds;
        let all = self.data_slots().iter().chain(self.parity_slots().iter());
        let out: SlotSet = all.filter(|slot| !due.contains(*slot)).collect();
        let Some(scrub) = &mut self.scrub else { return };
        (scrub.round, scrub.due) = (round, due);
        scrub.unread = scrub.unread.iter().chain(out.iter()).collect();
        scrub.pages.clear();
        let limit = u32::try_from(window.clamp(PAGE_MIN, PAGE_MAX)).unwrap_or(u32::MAX);
        for of in due.iter() {
            let purpose = Purpose::Digest { group, of, round };
            self.ask(group, of, Ask::Digest { group, after, limit }, purpose);
        }
    }

    pub(super) fn on_digested(&mut self, group: GroupNo, of: Slot, round: u64, answer: Answer) {
        let Some(scrub) = &mut self.scrub else { return };
        if (scrub.group, scrub.round) != (group, round) || !scrub.due.contains(of) {
            return;
        }
        let Answer::Digested { entries, done } = answer else {
            scrub.page_lost(round);
            return;
        };
        scrub.pages.insert(of, Page::new(of, entries, done));
        scrub.due = scrub.due.without(of);
        if scrub.due.is_empty() {
            self.judge_pages();
            self.scrub_pump();
        }
    }

    fn judge_pages(&mut self) {
        let Some(scrub) = &mut self.scrub else { return };
        let pages = std::mem::take(&mut scrub.pages);
        let (rows, upto) = rows_of(pages.values());
        scrub.after = upto.or(scrub.after);
        scrub.done = upto.is_none();
        scrub.report.rows += rows.len() as u64;
        let mut strange = Vec::new();
        for row in rows {
            let held = pages.iter().map(|(slot, page)| match page.rows.get(&row) {
                Some(held) => (*slot, held.as_deref()),
                None => (*slot, Some(&[][..])),
            });
            let verdict = self.judge(row, &held.collect());
            if verdict != Verdict::default() {
                strange.push((row, verdict));
            }
        }
        for (row, verdict) in strange {
            if lives(Mutant::ScrubOneLook) {
                self.believe(row, verdict);
            } else if self.scrub.as_mut().is_some_and(|scrub| scrub.checking.insert(row)) {
                self.add_task(row, Kind::Check(Check::default()));
            }
        }
    }

    /// What is wrong with a row of which slots in sync hold this.
    fn judge(&self, row: RowAddr, held: &BTreeMap<Slot, Option<&[Proven]>>) -> Verdict {
        let mut verdict = Verdict::default();
        // Whoever repairs a row that is lost, or has a slot that can not tell, knows already.
        if self.lost_rows.contains(&row) || !self.distrusted(row).is_empty() {
            return verdict;
        }
        for slot in held.iter().filter(|(_, held)| held.is_none()).map(|(slot, _)| *slot) {
            verdict.wrong.entry(slot).or_default();
        }
        let snaps = self.snaps();
        let older = snaps.iter().filter(|_| !lives(Mutant::ScrubNoSnaps));
        for state in std::iter::once(None).chain(older.map(Some)) {
            let of = |held: &[Proven]| {
                let found = held.iter().find(|(meta, _)| match state {
                    None => true,
                    Some(snap) => snaps::is_held(meta, snap),
                });
                // What was never written is all zeroes.
                found.cloned().unwrap_or((VersionMeta::default(), Some(Fingerprint::default())))
            };
            let known = held.iter().filter_map(|(slot, held)| Some((*slot, of((*held)?))));
            self.judge_state(&known.collect(), &mut verdict);
        }
        verdict
    }

    /// The same of one state, of which slots have this.
    fn judge_state(&self, known: &BTreeMap<Slot, Proven>, verdict: &mut Verdict) {
        let data = self.data_slots();
        let metas: BTreeMap<Slot, VersionMeta> =
            known.iter().map(|(slot, (meta, _))| (*slot, meta.clone())).collect();
        let vec = evidence::vector(metas.iter().map(|(slot, meta)| (*slot, meta)), self.n());
        let mut good = BTreeMap::new();
        let dissent = evidence::dissenting(&metas, &vec, data);
        for (slot, (_, print)) in known {
            match print {
                Some(print) if !dissent.contains(*slot) => drop(good.insert(*slot, *print)),
                _ => drop(verdict.wrong.entry(*slot).or_default()),
            }
        }
        if !data.iter().all(|slot| good.contains_key(&slot)) || lives(Mutant::ScrubNoCode) {
            return;
        }
        let Some(code) = &self.code else { return };
        let of_data = good.iter().filter(|(slot, _)| data.contains(**slot));
        let Ok(coded) = code.coded_fingerprints(of_data.map(|(slot, print)| (*slot, *print)))
        else {
            return;
        };
        let parity = self.parity_slots().iter().zip(coded);
        let syndromes: Vec<(Slot, Fingerprint)> =
            parity.filter_map(|(slot, coded)| Some((slot, *good.get(&slot)? ^ coded))).collect();
        if syndromes.iter().all(|(_, of)| *of == Fingerprint::default()) {
            return;
        }
        match code.find_wrong(&syndromes) {
            Some(slot) => {
                let ver = metas.get(&slot).map(|meta| meta.ver).unwrap_or_default();
                verdict.wrong.entry(slot).or_default().insert(ver);
            }
            None => verdict.unclear = true,
        }
    }

    /// Looks at a row once more, with its updates held up.
    pub(super) fn run_check(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let row = task.row;
        let Kind::Check(check) = &mut task.kind else { return };
        match check.due {
            None => {
                let due = self.insync(row.group);
                self.set_check_due(id, due);
                for slot in due.iter() {
                    let purpose = Purpose::Proof { task: id, slot };
                    self.ask(row.group, slot, Ask::Prove { row, slot }, purpose);
                }
                if due.is_empty() {
                    self.end_check(id);
                }
            }
            Some(due) if due.is_empty() => self.end_check(id),
            Some(_) => {}
        }
    }

    fn set_check_due(&mut self, id: TaskId, slots: SlotSet) {
        if let Some(task) = self.tasks.get_mut(&id)
            && let Kind::Check(check) = &mut task.kind
        {
            check.due = Some(slots);
        }
    }

    /// A slot has answered; `None`: it has left, and will not.
    pub(super) fn on_proven(&mut self, id: TaskId, slot: Slot, answer: Option<Answer>) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Kind::Check(Check { due: Some(due), held }) = &mut task.kind else { return };
        *due = due.without(slot);
        if let Some(Answer::Proven(versions)) = answer {
            held.insert(slot, versions);
        }
        self.runnable.push_back(id);
    }

    fn end_check(&mut self, id: TaskId) {
        let Some(task) = self.end_task(id) else { return };
        let (row, Kind::Check(check)) = (task.row, task.kind) else { return };
        let Some(scrub) = &mut self.scrub else { return };
        if !scrub.checking.remove(&row) {
            return;
        }
        let insync = self.insync(row.group);
        let held = check.held.iter().filter(|(slot, _)| insync.contains(**slot));
        let held = held.map(|(slot, versions)| (*slot, versions.as_deref())).collect();
        let verdict = self.judge(row, &held);
        self.believe(row, verdict);
        self.scrub_pump();
    }

    /// Tells what is wrong with a row, and repairs it.
    fn believe(&mut self, row: RowAddr, verdict: Verdict) {
        if !verdict.wrong.is_empty() {
            // It may have been told by a slot that is wrong.
            self.cache.forget(row);
        }
        if verdict.unclear {
            self.actions.push(Action::Alarm(Alarm::Unclear { row }));
            self.scrub.iter_mut().for_each(|scrub| scrub.report.unclear += 1);
        }
        for (slot, miscoded) in verdict.wrong {
            self.scrub_repair(row, slot, miscoded);
        }
    }

    fn scrub_repair(&mut self, row: RowAddr, slot: Slot, miscoded: BTreeSet<Ver>) {
        let Some(store) = self.store_of(row.group, slot) else { return };
        let seat = (slot, store);
        self.stats.corrupt_records += 1;
        self.actions.push(Action::Alarm(Alarm::Corrupt { row, slot }));
        self.actions.push(Action::Fault { store });
        let claimed = self.catchup.claim_repair(row, seat);
        let Some(scrub) = &mut self.scrub else { return };
        *scrub.report.wrong.entry(store).or_default() += 1;
        // Another repair of it may be under way; what that one does not put right is found again.
        scrub.repairing.insert((row, seat));
        if claimed {
            let miscoded = if lives(Mutant::ScrubMiscoded) { BTreeSet::new() } else { miscoded };
            self.add_doubtful_repair(row, seat, miscoded);
        }
    }

    /// What a slot should hold of a row can not be constructed.
    pub(super) fn scrub_lost(&mut self, row: RowAddr, seat: Seat) {
        if let Some(scrub) = &mut self.scrub
            && scrub.repairing.contains(&(row, seat))
        {
            scrub.lost.insert(row);
            if !self.catchup.unrepaired.knows(row, seat) {
                scrub.unknown.insert(row);
            }
        }
    }

    /// A repair of a row slot has ended, well or not.
    pub(super) fn scrub_repaired(&mut self, row: RowAddr, seat: Seat) {
        if let Some(scrub) = &mut self.scrub
            && scrub.repairing.remove(&(row, seat))
        {
            self.scrub_pump();
        }
    }
}
