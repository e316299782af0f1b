//! Sessions with stores: what is outstanding, who is silent, who granted a lease.

use super::{Action, Coordinator, Pending, Phase, Place, Purpose, Seat};
use crate::invariant::invariant;
use crate::msg::{Ask, Frame, Request};
use crate::time::Time;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{GroupNo, Incarnation, Slot, SlotSet, StoreId, Ver};
use std::collections::BTreeMap;
use std::time::Duration;

/// A frame is closed when its records pass this many bytes, so that one large request does not
/// become one huge message.
const FRAME_BYTES_MAX: usize = 2 << 20;

/// The watermark travels with every frame; after this long without one it travels alone.
pub(super) const IDLE_WATERMARK: Duration = Duration::from_millis(50);

/// A request that one side's map was too old for is sent again after this long.
pub(super) const HELD_AGAIN: Duration = Duration::from_millis(20);

/// A store may go on answering reads and leases while its disk hangs: an update that is overdue
/// by this many times the patience counts as silence too.
pub(super) const OVERDUE: u32 = 4;

/// An update is given its time anew in so many sessions. It may be what ends them.
const SESSIONS: u8 = 3;

#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    pub(super) session: Option<u64>,
    /// Since when answers are owed without any having come.
    pub(super) waiting_since: Option<Time>,
    /// Since when this process has not heard of its node, as it knew before there was a session. None
    /// once an answer has come.
    pub(super) unheard_since: Option<Time>,
    /// Its last session was counted as if an answer had come, and none has come since. Whoever takes
    /// sessions only to drop them is silent.
    pub(super) forgiven: bool,
    /// When an answer came last in this session.
    pub(super) heard_at: Option<Time>,
    /// The last request to which an answer was believed.
    pub(super) heard_of: u64,
    /// When the store last served a request, in whatever session and epoch; later by as long as this
    /// side has been asleep since.
    pub(super) silent_from: Time,
    /// The start of the store that promised with a disk that may have gone back, and when it first
    /// did; likewise.
    pub(super) went_back: Option<(Incarnation, Time)>,
    /// Requests without an answer.
    pub(super) owed: u64,
    pub(super) lease_until: Time,
    pub(super) lease_asked: Option<Time>,
    pub(super) told: Ver,
    pub(super) told_at: Time,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Links {
    pub(super) links: BTreeMap<StoreId, Link>,
}

impl Links {
    pub(super) fn stores(&self) -> Vec<StoreId> {
        self.links.keys().copied().collect()
    }

    pub(super) fn is_up(&self, store: StoreId) -> bool {
        self.links.get(&store).is_some_and(|link| link.session.is_some())
    }

    /// Whether anything was heard in the present session.
    pub(super) fn has_answered(&self, store: StoreId) -> bool {
        self.links.get(&store).is_some_and(|link| link.session.is_some() && !link.forgiven)
    }

    /// Whether something was in this session that was believed.
    pub(super) fn is_believed(&self, store: StoreId) -> bool {
        self.links.get(&store).is_some_and(|link| link.heard_at.is_some())
    }

    /// Whether anything was, so lately.
    pub(super) fn heard_within(&self, store: StoreId, now: Time, lately: Duration) -> bool {
        let heard = self.links.get(&store).and_then(|link| link.heard_at);
        heard.is_some_and(|at| now.since(at) <= lately)
    }

    /// Whether nothing was, and nothing was asked either.
    pub(super) fn is_uncalled(&self, store: StoreId) -> bool {
        let silent = |link: &Link| link.session.is_some() && link.forgiven && link.owed == 0;
        self.links.get(&store).is_some_and(silent)
    }

    /// Whether answers have been owed for longer than `patience` and none came.
    pub(super) fn is_silent(&self, store: StoreId, now: Time, patience: Duration) -> bool {
        self.links
            .get(&store)
            .and_then(|link| link.waiting_since)
            .is_some_and(|since| now.since(since) > patience)
    }

    /// Notes an answer; false when it belongs to an older session.
    pub(super) fn heard(&mut self, store: StoreId, session: u64, now: Time) -> bool {
        match self.links.get_mut(&store) {
            Some(link) if link.session == Some(session) => {
                link.waiting_since = (link.owed > 0).then_some(now);
                link.unheard_since = None;
                link.forgiven = false;
                link.heard_at = Some(now);
                true
            }
            _ => false,
        }
    }

    /// What it answered was not believed: that it is there says nothing of the one that is in sync.
    pub(super) fn not_believed(&mut self, store: StoreId) {
        if let Some(link) = self.links.get_mut(&store) {
            link.heard_at = None;
        }
    }

    /// An answer that is believed to this request; `served`: and that is none to put us off, which a
    /// store that starts again and again may give for ever.
    pub(super) fn believed(&mut self, store: StoreId, request: u64, served: bool, now: Time) {
        if let Some(link) = self.links.get_mut(&store) {
            link.silent_from = if served { now } else { link.silent_from };
            link.heard_of = link.heard_of.max(request);
        }
    }

    /// When the store last served a request; the beginning of time if never.
    /// Whether this process has ever had an answer of the store.
    pub(super) fn has_served(&self, store: StoreId) -> bool {
        self.silent_from(store) > Time(0)
    }

    pub(super) fn silent_from(&self, store: StoreId) -> Time {
        self.links.get(&store).map_or(Time(0), |link| link.silent_from)
    }

    /// A store has promised.
    pub(super) fn note_start(&mut self, store: StoreId, start: Incarnation, back: bool, now: Time) {
        let link = self.links.entry(store).or_default();
        let since = link.went_back.filter(|(known, _)| *known == start);
        link.went_back = back.then(|| since.unwrap_or((start, now)));
    }

    /// Since when it is known that the store's disk may have gone back, if it may.
    pub(super) fn went_back_at(&self, store: StoreId) -> Option<Time> {
        self.links.get(&store).and_then(|link| link.went_back).map(|(_, at)| at)
    }

    /// Whether the store has answered this request or a later one, and anything not longer ago than
    /// that.
    pub(super) fn answered(&self, store: StoreId, of: u64, now: Time, lately: Duration) -> bool {
        self.links.get(&store).is_some_and(|link| {
            link.heard_of >= of && link.heard_at.is_some_and(|at| now.since(at) <= lately)
        })
    }

    fn owe(&mut self, store: StoreId, now: Time) {
        let link = self.links.entry(store).or_default();
        link.owed += 1;
        link.waiting_since.get_or_insert(link.unheard_since.unwrap_or(now));
    }

    fn paid(&mut self, store: StoreId) {
        if let Some(link) = self.links.get_mut(&store) {
            link.owed = link.owed.saturating_sub(1);
            if link.owed == 0 && link.session.is_some() {
                link.waiting_since = None;
            }
        }
    }

    pub(super) fn leased(&mut self, store: StoreId, until: Time) {
        let link = self.links.entry(store).or_default();
        link.lease_until = link.lease_until.max(until);
    }

    pub(super) fn has_lease(&self, store: StoreId, now: Time) -> bool {
        self.links.get(&store).is_some_and(|link| link.lease_until > now)
    }

    /// The watermark is to be told anew.
    pub(super) fn tell_again(&mut self, store: StoreId) {
        if let Some(link) = self.links.get_mut(&store) {
            link.told = Ver::NONE;
        }
    }

    pub(super) fn forget_epoch(&mut self) {
        for link in self.links.values_mut() {
            let Link { session, forgiven, heard_at, heard_of, .. } = *link;
            let Link { unheard_since, silent_from, went_back, .. } = *link;
            let kept = Link { session, forgiven, heard_at, heard_of, ..Link::default() };
            *link = Link { unheard_since, silent_from, went_back, ..kept };
        }
    }

    /// This side has been asleep: what it missed is nobody's silence.
    fn forgive(&mut self, now: Time, asleep: Duration) {
        for link in self.links.values_mut() {
            link.waiting_since = link.waiting_since.map(|_| now);
            link.unheard_since = None;
            link.silent_from = link.silent_from.after(asleep).min(now);
            link.went_back = link.went_back.map(|(start, at)| (start, at.after(asleep).min(now)));
        }
    }
}

impl Coordinator {
    /// Whoever is silent has been so for longer than this coordinator has asked.
    pub(super) fn on_unheard(&mut self, store: StoreId, since: Time) {
        let since = since.min(self.now);
        let link = self.links.links.entry(store).or_default();
        if link.heard_at.is_none() {
            link.unheard_since = Some(since);
            link.waiting_since = link.waiting_since.map(|waiting| waiting.min(since));
        }
    }

    pub(super) fn on_link_up(&mut self, store: StoreId, session: u64) {
        let now = self.now;
        let is_insync = self.insync_stores.binary_search(&store).is_ok();
        let link = self.links.links.entry(store).or_default();
        // Else one of whom nothing is wanted could take sessions for ever and drop them.
        let is_called = link.owed == 0 && is_insync && self.phase == Phase::Active;
        link.session = Some(session);
        link.lease_asked = None;
        // A start of the store may have forgotten what it need not remember.
        link.told = Ver::NONE;
        let goes_on = link.forgiven || link.unheard_since.is_some();
        let since = link.waiting_since.filter(|_| goes_on).unwrap_or(now);
        link.waiting_since = (link.owed > 0 || is_called).then_some(since);
        link.forgiven = true;
        link.heard_at = None;
        self.outbox.remove(&store);
        // Everything unanswered goes again, in order: every request may be repeated.
        let again: Vec<u64> =
            self.pending.iter().filter(|(_, p)| p.store == store).map(|(id, _)| *id).collect();
        for id in again {
            let Some(pending) = self.pending.get_mut(&id) else { continue };
            pending.sessions = pending.sessions.saturating_add(1);
            let overdue_since = (pending.sessions > SESSIONS).then_some(pending.sent_at);
            self.send_again(id);
            if let Some(pending) = self.pending.get_mut(&id) {
                pending.sent_at = overdue_since.unwrap_or(pending.sent_at);
            }
        }
        if is_called {
            self.ask_store(store, None, Ask::Nop, Purpose::Forget);
        }
        if self.phase == Phase::Active {
            self.confirm_again();
            self.catchup_on_map();
        }
    }

    pub(super) fn on_link_down(&mut self, store: StoreId) {
        let now = self.now;
        let link = self.links.links.entry(store).or_default();
        link.session = None;
        link.heard_at = None;
        link.waiting_since.get_or_insert(now);
        self.outbox.remove(&store);
        self.catchup_lost(store);
        self.drop_lost(Some(store));
    }

    /// Gives up requests to slots that are neither in sync nor catching up; of one store, also
    /// those that a new session makes anew.
    pub(super) fn drop_lost(&mut self, only: Option<StoreId>) {
        let lost = |p: &Pending| match p.place {
            Some((group, slot)) => !self.is_addressed(group, (slot, p.store)),
            None => only.is_some() && !matches!(p.purpose, Purpose::Promise),
        };
        let lost: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, p)| only.is_none_or(|store| p.store == store) && lost(p))
            .map(|(id, _)| *id)
            .collect();
        self.give_up(&lost);
    }

    pub(super) fn give_up(&mut self, ids: &[u64]) {
        for id in ids {
            if let Some(pending) = self.take_pending(*id) {
                self.outbox_remove(pending.store, *id);
                self.lose_answer(&pending);
            }
        }
    }

    /// Forgets requests as if they had never been made; what follows them undoes what they did.
    pub(super) fn withdraw(&mut self, ids: &[u64]) {
        for id in ids {
            if let Some(pending) = self.take_pending(*id) {
                self.outbox_remove(pending.store, *id);
            }
        }
    }

    pub(super) fn take_pending(&mut self, id: u64) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        self.links.paid(pending.store);
        if let Some(place) = pending.place {
            self.catchup.settled(place, pending.store, &pending.ask);
        }
        Some(pending)
    }

    fn send_again(&mut self, id: u64) {
        if let Some(pending) = self.pending.get_mut(&id) {
            pending.held = false;
            pending.sent_at = self.now;
            let request = Request { id, ask: pending.ask.clone() };
            if self.links.is_up(pending.store) {
                self.outbox.entry(pending.store).or_default().push(request);
            }
        }
    }

    /// Sends again what was refused because one side's map was behind.
    pub(super) fn release_held(&mut self) {
        let mut held = std::mem::take(&mut self.held);
        held.sort_unstable();
        held.dedup();
        for id in held {
            if self.pending.get(&id).is_some_and(|pending| pending.held) {
                self.send_again(id);
            }
        }
    }

    /// Whether what the store says of the slot matters: it is in sync, or learns.
    fn is_addressed(&self, group: GroupNo, (slot, store): Seat) -> bool {
        (self.is_insync((group, slot)) && self.store_of(group, slot) == Some(store))
            || self.catchup.is_learner((group, slot), store)
    }

    /// Asks a store for a slot.
    pub(super) fn ask_at(&mut self, group: GroupNo, seat: Seat, ask: Ask, purpose: Purpose) {
        let (slot, store) = seat;
        self.ask_store(store, Some((group, slot)), ask, purpose);
    }

    /// Asks the store that holds a slot.
    pub(super) fn ask(&mut self, group: GroupNo, slot: Slot, ask: Ask, purpose: Purpose) {
        if let Some(store) = self.store_of(group, slot) {
            self.ask_store(store, Some((group, slot)), ask, purpose);
        }
    }

    pub(super) fn ask_store(
        &mut self,
        store: StoreId,
        place: Option<Place>,
        ask: Ask,
        purpose: Purpose,
    ) {
        let id = self.next_request;
        self.next_request += 1;
        let now = self.now;
        self.links.owe(store, now);
        if let Some(place) = place {
            self.catchup.asked(place, store, &ask);
        }
        if self.links.is_up(store) {
            self.outbox.entry(store).or_default().push(Request { id, ask: ask.clone() });
        }
        let pending =
            Pending { store, place, ask, purpose, sent_at: now, sessions: 0, held: false };
        self.pending.insert(id, pending);
    }

    fn outbox_remove(&mut self, store: StoreId, id: u64) {
        if let Some(requests) = self.outbox.get_mut(&store) {
            requests.retain(|request| request.id != id);
        }
    }

    /// Every version at or below it is decided and committed.
    pub(super) fn watermark(&self) -> Ver {
        if self.phase != Phase::Active {
            return Ver::NONE;
        }
        match self.inflight.keys().next() {
            Some(oldest) if !lives(Mutant::WatermarkAhead) => {
                Ver { seq: oldest.seq.saturating_sub(1), ..*oldest }
            }
            _ => self.last_issued,
        }
    }

    /// Turns what waits for each store into frames.
    pub(super) fn flush(&mut self) {
        let watermark = self.watermark();
        for (store, requests) in std::mem::take(&mut self.outbox) {
            let Some(link) = self.links.links.get_mut(&store) else { continue };
            let Some(session) = link.session else { continue };
            let (reads, ordered): (Vec<_>, Vec<_>) =
                requests.into_iter().partition(|request| request.ask.is_read());
            if !ordered.is_empty() {
                invariant!(
                    "I2",
                    watermark >= link.told,
                    "the watermark goes back from {} to {watermark}",
                    link.told
                );
                link.told = watermark;
                link.told_at = self.now;
            }
            for requests in split(ordered).into_iter().chain(split(reads)) {
                let frame = Frame {
                    volume: self.config.volume,
                    epoch: self.epoch,
                    incarnation: self.config.me.incarnation,
                    session,
                    watermark,
                    requests,
                };
                self.actions.push(Action::Send { store, frame });
            }
        }
    }

    pub(super) fn on_tick(&mut self) {
        let asleep = self.last_tick.map_or(Duration::ZERO, |last| self.now.since(last));
        self.last_tick = Some(self.now);
        if self.phase == Phase::Idle {
            self.idle_tick();
            return;
        }
        if asleep > self.config.suspect_after / 2 {
            self.links.forgive(self.now, asleep);
            self.leaving.values_mut().for_each(|(_, wanted_at)| *wanted_at = self.now);
        }
        let aged =
            |id: &u64| self.pending.get(id).is_some_and(|p| self.now.since(p.sent_at) > HELD_AGAIN);
        if self.held.iter().any(aged) {
            self.release_held();
        }
        self.give_up_slow_reads();
        self.suspect_silent();
        match self.phase {
            Phase::TakingOver => self.takeover_tick(),
            Phase::Activating => self.propose_activate(),
            Phase::Active => {
                self.renew_leases();
                self.catchup_tick();
                self.check_leases();
                self.give_up_early_reads();
                self.do_without_groups();
                self.tell_watermark();
            }
            Phase::Idle => {}
        }
    }

    fn tell_watermark(&mut self) {
        let (watermark, now) = (self.watermark(), self.now);
        let behind = |link: &Link| {
            link.session.is_some()
                && link.told < watermark
                && now.since(link.told_at) >= IDLE_WATERMARK
        };
        let idle: Vec<StoreId> =
            self.links.links.iter().filter(|(_, l)| behind(l)).map(|(store, _)| *store).collect();
        for store in idle {
            if self.is_member(store) {
                self.ask_store(store, None, Ask::Nop, Purpose::Forget);
            }
        }
    }

    fn is_member(&self, store: StoreId) -> bool {
        self.volume.iter().flat_map(|v| &v.groups).any(|group| group.slots.contains(&store))
    }

    fn renew_leases(&mut self) {
        if self.confirms_reads() {
            return;
        }
        let every = self.config.lease / 4;
        let mut stores = self.insync_stores.clone();
        stores.extend(self.catchup.growing_stores());
        stores.sort_unstable();
        stores.dedup();
        for store in stores {
            let now = self.now;
            let Some(link) = self.links.links.get_mut(&store) else { continue };
            let due = link.lease_asked.is_none_or(|asked| now.since(asked) >= every);
            if link.session.is_some() && due {
                link.lease_asked = Some(now);
                let duration_us = u64::try_from(self.config.lease.as_micros()).unwrap_or(u64::MAX);
                self.ask_store(store, None, Ask::Lease { duration_us }, Purpose::Lease);
            }
        }
    }

    pub(super) fn patience(&self) -> Duration {
        match self.phase {
            Phase::Active => self.config.suspect_after,
            _ => self.config.takeover_patience,
        }
    }

    /// Slots that are out of sync may be read in need, but nothing waits for them for long.
    fn give_up_slow_reads(&mut self) {
        let slow = |p: &Pending| {
            p.ask.is_read()
                && self.now.since(p.sent_at) > self.config.suspect_after
                && p.place.is_some_and(|(group, slot)| {
                    !self.is_insync((group, slot)) || self.store_of(group, slot) != Some(p.store)
                })
        };
        let slow: Vec<u64> =
            self.pending.iter().filter(|(_, p)| slow(p)).map(|(id, _)| *id).collect();
        self.give_up(&slow);
    }

    /// Whether enough stores of the group granted a lease that is valid now: k + 1 of n + k when
    /// all are in sync, and any set of that size meets every later in-sync set. A slot whose
    /// growth is proposed may be in the next one already, so it counts as if it had grown.
    pub(super) fn lease_ok(&self, group: GroupNo) -> bool {
        self.enough(group, |store| self.links.has_lease(store, self.now))
    }

    /// Whether so many stores of the group that they meet every later in-sync set are such.
    pub(super) fn enough(&self, group: GroupNo, such: impl Fn(StoreId) -> bool) -> bool {
        let seats = self.counted(group);
        let slots: SlotSet = seats.iter().map(|(slot, _)| *slot).collect();
        // Where a slot moves, the next in-sync set may have either store: both must be such.
        let wanting = seats.iter().filter(|(_, store)| !such(*store)).map(|(slot, _)| *slot);
        let fewer = u32::from(self.n()) + u32::from(lives(Mutant::LeaseQuorumShort));
        let needed = (slots.len() + 1).saturating_sub(fewer);
        slots.minus(wanting.collect()).len() >= needed
    }
}

/// Splits requests into frames of bounded size.
fn split(requests: Vec<Request>) -> Vec<Vec<Request>> {
    let mut frames = Vec::new();
    let mut frame = Vec::new();
    let mut bytes = 0;
    for request in requests {
        bytes += request.ask.payload_len() + 64;
        frame.push(request);
        if bytes > FRAME_BYTES_MAX {
            frames.push(std::mem::take(&mut frame));
            bytes = 0;
        }
    }
    if !frame.is_empty() {
        frames.push(frame);
    }
    frames
}
