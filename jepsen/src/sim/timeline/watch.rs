//! What frames a row's events: found by comparing the world with what it was before the event, so
//! that nobody has to tell, and nothing that happens to a disk goes unseen.

use super::super::event::At;
use super::super::world::World;
use super::words::{self, list};
use smalti_map::{Group, Volume};
use smalti_rowcommit::coordinator::Phase;
use smalti_rowcommit::msg::Ask;
use smalti_storage::ids::{Epoch, RowAddr, RowSlot, Slot, StoreId};
use smalti_storage::store::{ShardStore, VersionMeta};
use std::collections::{BTreeMap, BTreeSet};

/// The world as it was.
#[derive(Default)]
pub(super) struct Seen {
    nodes: Vec<NodeSeen>,
    config: String,
    cuts: BTreeSet<(At, At)>,
    takeovers: BTreeMap<At, Takeover>,
}

#[derive(Clone, PartialEq, Eq)]
struct NodeSeen {
    /// The number of its process, and whether that runs.
    life: u64,
    up: bool,
    paused: bool,
    mapless: bool,
    forgot: bool,
    phase: Phase,
    epoch: Epoch,
    /// Stores of the row in touch.
    links: BTreeSet<StoreId>,
    /// What its disk holds of the row.
    slots: BTreeMap<Slot, String>,
}

/// What a takeover did about the row so far.
#[derive(Default)]
struct Takeover {
    looked: bool,
    acted: bool,
}

impl Seen {
    /// A coordinator that is taking over sends a request about the row.
    pub(super) fn takeover_asked(&mut self, at: At, ask: &Ask) {
        let takeover = self.takeovers.entry(at).or_default();
        match ask {
            Ask::Versions { .. } => *takeover = Takeover { looked: true, acted: false },
            Ask::Abort { .. } | Ask::AbortNewer { .. } | Ask::Install { .. } => {
                takeover.acted = true
            }
            _ => {}
        }
    }
}

impl World {
    /// Tells what the last event changed; the next one is at `next`.
    pub(crate) fn watch(&mut self, next: u64) {
        let Some(row) = self.told_row() else { return };
        self.watch_config(row);
        if next > self.now {
            // A partition begins or ends way by way.
            self.watch_cuts();
        }
        for at in 0..self.nodes.len() {
            let is = self.look(at, row);
            let Some(seen) = self.timeline.as_mut().map(|timeline| &mut timeline.seen) else {
                return;
            };
            let Some(place) = seen.nodes.get_mut(at) else {
                seen.nodes.push(is);
                continue;
            };
            if *place != is {
                let was = std::mem::replace(place, is.clone());
                self.compare(at, &was, &is);
            }
        }
    }

    /// What a batch did to a node's disk has been told.
    pub(crate) fn tell_committed(&mut self, at: At) {
        let Some(row) = self.told_row() else { return };
        let slots = self.disk_of(at, row);
        let seen = self.timeline.as_mut().map(|timeline| &mut timeline.seen);
        if let Some(node) = seen.and_then(|seen| seen.nodes.get_mut(at)) {
            node.slots = slots;
        }
    }

    /// Whether the node's store has to do with the row's group.
    pub(super) fn holds_row(&self, at: At) -> bool {
        let Some(timeline) = &self.timeline else { return false };
        let store = self.nodes[at].store;
        self.volume().and_then(|volume| volume.group(timeline.row.group)).is_some_and(|group| {
            group.slot_of(store).is_some()
                || group.learners.values().any(|learner| learner.store == store)
                || group.targets.values().any(|target| *target == store)
                || group.old_holders.contains(&store)
        })
    }

    fn look(&self, at: At, row: RowAddr) -> NodeSeen {
        let node = &self.nodes[at];
        let core = node.process.as_ref().map(|process| &process.coordinator);
        NodeSeen {
            life: node.life,
            up: node.up,
            paused: node.paused,
            mapless: node.map_cut > 0 || self.map_away,
            forgot: self.forgot.contains(&at),
            phase: core.map_or(Phase::Idle, |core| core.phase()),
            epoch: core.map_or(Epoch(0), |core| core.epoch()),
            links: node.links.keys().copied().collect(),
            slots: self.disk_of(at, row),
        }
    }

    fn disk_of(&self, at: At, row: RowAddr) -> BTreeMap<Slot, String> {
        let disk = &self.nodes[at].disk;
        let held = |slot: Slot| {
            let at = RowSlot { volume: self.volume, row, slot };
            let Ok(versions) = disk.versions(at) else { return Some("unreadable".into()) };
            let mark = disk.prepared_at(at).ok().flatten();
            let of = |meta: &VersionMeta| {
                let record = disk.record(at, meta.ver).ok().flatten().unwrap_or_default();
                let good = meta.verifies(at, &record);
                words::held(words::version(meta), mark == Some(meta.ver), good)
            };
            let all = list(versions.iter().map(of), ", ");
            (!all.is_empty()).then_some(all)
        };
        let slots = (0..self.swarm.data + self.swarm.parity).map(Slot);
        slots.filter_map(|slot| Some((slot, held(slot)?))).collect()
    }

    fn watch_config(&mut self, row: RowAddr) {
        let Some(volume) = self.volume() else { return };
        let Some(group) = volume.group(row.group) else { return };
        let config = self.config_words(volume, group);
        if let Some(timeline) = &mut self.timeline
            && timeline.seen.config != config
        {
            timeline.seen.config.clone_from(&config);
            self.say("map", config);
        }
    }

    fn config_words(&self, volume: &Volume, group: &Group) -> String {
        let node = |store: &StoreId| format!("n{}", self.node_of(*store));
        let seat = |(slot, store): (Slot, &StoreId)| format!("{slot}@{}", node(store));
        let coordinator = match volume.coordinator {
            Some(c) => format!("n{} ({})", c.node.0.saturating_sub(1), c.incarnation),
            None => "none".into(),
        };
        let serves = if volume.activated { "active" } else { "not active" };
        let seats = list((0u8..).map(Slot).zip(&group.slots).map(seat), " ");
        let learners = list(group.learners.iter().map(|(slot, l)| seat((*slot, &l.store))), " ");
        let targets = list(group.targets.iter().map(|(slot, store)| seat((*slot, store))), " ");
        let old = list(group.old_holders.iter().map(node), " ");
        let named = |what: &str, who: String| {
            if who.is_empty() { String::new() } else { format!(", {what} {who}") }
        };
        format!(
            "epoch {}: coordinator {coordinator}, {serves}; in sync {} of {seats}{}{}{}",
            volume.epoch,
            group.insync,
            named("learners", learners),
            named("to move", targets),
            named("old holders", old),
        )
    }

    fn watch_cuts(&mut self) {
        let cuts: BTreeSet<(At, At)> =
            self.cuts.iter().filter(|(_, count)| **count > 0).map(|(way, _)| *way).collect();
        let Some(timeline) = &mut self.timeline else { return };
        if timeline.seen.cuts == cuts {
            return;
        }
        let was = std::mem::replace(&mut timeline.seen.cuts, cuts.clone());
        let (begun, over) = (ways(&(&cuts - &was)), ways(&(&was - &cuts)));
        if !begun.is_empty() {
            self.say("net", format!("cut {begun}"));
        }
        if !over.is_empty() {
            self.say("net", format!("open again {over}"));
        }
    }

    fn compare(&mut self, at: At, was: &NodeSeen, is: &NodeSeen) {
        let leads = was.phase != Phase::Idle || is.phase != Phase::Idle;
        if self.holds_row(at) || leads || !is.slots.is_empty() {
            self.compare_process(at, was, is);
        }
        if was.slots != is.slots {
            let all: BTreeSet<Slot> = was.slots.keys().chain(is.slots.keys()).copied().collect();
            let held =
                |of: &NodeSeen, slot| of.slots.get(&slot).map_or("nothing".into(), Clone::clone);
            let changed = all.into_iter().filter(|slot| was.slots.get(slot) != is.slots.get(slot));
            let told = |slot| format!("{slot} had {}, has {}", held(was, slot), held(is, slot));
            self.say_at(at, format!("disk, by itself: {}", list(changed.map(told), "; ")));
        }
        if (was.phase, was.epoch) != (is.phase, is.epoch) {
            self.tell_phase(at, was, is);
        }
        if leads && was.life == is.life && was.up && is.up {
            self.tell_links(at, "is out of touch with", was.links.difference(&is.links));
            self.tell_links(at, "is in touch with", is.links.difference(&was.links));
        }
    }

    fn compare_process(&mut self, at: At, was: &NodeSeen, is: &NodeSeen) {
        let marked = if self.nodes[at].disk.opened().clean { "clean" } else { "not clean" };
        if was.up && (!is.up || was.life != is.life) {
            self.say_at(at, format!("process ends, disk marked {marked}"));
        }
        if is.up && (!was.up || was.life != is.life) {
            let incarnation = self.nodes[at].process().incarnation;
            let disk = self.nodes[at].disk.opened().incarnation;
            self.say_at(at, format!("process starts as {incarnation}, disk as {disk}, {marked}"));
        }
        if is.forgot && !was.forgot {
            self.say_at(at, "disk goes back to an earlier state");
        }
        if was.forgot && !is.forgot {
            self.say_at(at, "disk has got back what it forgot");
        }
        let turned = |before: bool, now: bool| (before != now && was.up && is.up).then_some(now);
        if let Some(paused) = turned(was.paused, is.paused) {
            self.say_at(at, if paused { "is stopped" } else { "goes on" });
        }
        if let Some(mapless) = turned(was.mapless, is.mapless) {
            self.say_at(at, if mapless { "is cut off from the map" } else { "hears of the map" });
        }
    }

    fn tell_phase(&mut self, at: At, was: &NodeSeen, is: &NodeSeen) {
        let takeover =
            self.timeline.as_mut().and_then(|timeline| timeline.seen.takeovers.remove(&at));
        let left = takeover.is_some_and(|takeover| takeover.looked && !takeover.acted);
        let left = if left { ", and leaves the row as it is" } else { "" };
        let what = match is.phase {
            Phase::Idle => format!("coordinates {} no more", was.epoch),
            Phase::TakingOver => format!("takes over {}", is.epoch),
            Phase::Activating => format!("has taken over {}{left}", is.epoch),
            Phase::Active => format!("serves {}{left}", is.epoch),
        };
        self.say_at(at, what);
    }

    fn tell_links<'a>(&mut self, at: At, word: &str, with: impl Iterator<Item = &'a StoreId>) {
        let nodes = with.map(|store| self.node_of(*store)).filter(|at| self.holds_row(*at));
        let nodes = list(nodes.map(|at| format!("n{at}")), " ");
        if !nodes.is_empty() {
            self.say_at(at, format!("{word} {nodes}"));
        }
    }
}

/// Ways from node to node; both ways between two nodes are one word.
fn ways(of: &BTreeSet<(At, At)>) -> String {
    let back = |(a, b): (At, At)| of.contains(&(b, a));
    let ways = of.iter().copied().filter(|(a, b)| a < b || !back((*a, *b)));
    let word = |(a, b)| if back((a, b)) { format!("n{a}-n{b}") } else { format!("n{a}>n{b}") };
    list(ways.map(word), " ")
}
