//! Faults: when they begin, how long they last, and how all of them end.

use super::event::{At, Ev};
use super::swarm::{Fault, MS};
use super::world::World;
use smalti_map::{Applied, Command, MoveSlot};
use smalti_rowcommit::Event;
use smalti_rowcommit::msg::{Ask, Frame};
use smalti_rowcommit::store::Room;
use smalti_storage::ids::{GroupNo, Slot};
use std::collections::BTreeSet;

impl World {
    fn any_node(&mut self) -> At {
        usize::try_from(self.rng.below(self.nodes.len() as u64)).unwrap_or(0)
    }

    pub(super) fn lasts(&mut self) -> u64 {
        self.now + self.rng.range(5 * MS, self.swarm.fault_long)
    }

    /// One fault begins, and the next one is planned.
    pub(crate) fn fault(&mut self) {
        if !self.stormy {
            return;
        }
        let next = self.now + self.rng.range(1, self.swarm.fault_every * 2);
        self.queue.push(next, Ev::Fault);
        let faults = self.swarm.faults.clone();
        let Some(fault) = self.rng.pick(&faults) else { return };
        let at = self.any_node();
        let until = self.lasts();
        self.trace(|| format!("fault {fault:?} at n{at} until {}", until / MS));
        match fault {
            Fault::Crash | Fault::Restart => {
                if self.nodes[at].up && !(self.nodes[at].paused && fault == Fault::Restart) {
                    self.count(fault, true);
                    self.stop(at, fault == Fault::Restart);
                    self.queue.push(until, Ev::Start(at));
                }
            }
            Fault::Blackout => {
                if self.rng.percent(30) {
                    self.count(fault, true);
                    for at in 0..self.nodes.len() {
                        self.stop(at, false);
                        let until = self.lasts();
                        self.queue.push(until, Ev::Start(at));
                    }
                }
            }
            Fault::Pause => {
                if self.nodes[at].up && !self.nodes[at].paused {
                    self.count(fault, true);
                    self.pause(at);
                    self.queue.push(until, Ev::Resume(at));
                }
            }
            Fault::Cut => {
                let to = self.any_node();
                self.cut(at, to, true);
                self.count(fault, true);
                self.queue.push(until, Ev::Over(fault, at, to));
            }
            Fault::Partition => self.partition(until),
            Fault::Depose => self.depose(),
            Fault::MapCut => {
                self.count(fault, true);
                if self.rng.percent(20) {
                    self.map_away = true;
                    self.queue.push(until, Ev::Over(fault, usize::MAX, 0));
                } else {
                    self.nodes[at].map_cut += 1;
                    self.queue.push(until, Ev::Over(fault, at, 0));
                }
            }
            Fault::Break => {
                self.count(fault, true);
                let share = self.rng.pick(&[5, 30, 100]).unwrap_or(30);
                for id in self.open_sessions() {
                    if self.rng.percent(share) {
                        self.break_session(id);
                    }
                }
            }
            Fault::Slow => {
                self.count(fault, true);
                self.slow = self.rng.pick(&[5, 50, 300]).unwrap_or(5);
                self.queue.push(until, Ev::Over(fault, 0, 0));
            }
            Fault::Elect => {
                if !self.map_away {
                    self.count(fault, true);
                    self.elect_any();
                }
            }
            Fault::Handover => self.hand_over(),
            Fault::Full => {
                if self.nodes[at].up {
                    self.set_full(at, true);
                    self.queue.push(until, Ev::Over(fault, at, 0));
                }
            }
            Fault::Move => self.move_slot(),
            Fault::Drain => self.drain(at, until),
            // In what is sent, all the time.
            Fault::Flip => {}
            Fault::Rot => self.rot(),
            Fault::Amnesia => self.amnesia(at, until),
            Fault::SlowDisk => {
                self.count(fault, true);
                self.nodes[at].disk_slow = self.rng.pick(&[5, 30, 200]).unwrap_or(5);
                if self.rng.percent(50) {
                    self.tell_slow(Some(at));
                }
                self.queue.push(until, Ev::Over(fault, at, 0));
            }
            Fault::Wipe => self.wipe(at, until),
            Fault::Away => self.away(),
        }
    }

    /// One more than there are parity slots die, or some more; some of them for longer than a takeover
    /// waits.
    fn away(&mut self) {
        let parity = self.volume().map_or(1, |volume| u64::from(volume.parity));
        let most = (self.nodes.len() as u64).saturating_sub(2).max(parity + 1);
        let many = self.rng.range(parity + 1, most);
        let mut nodes: Vec<At> = (0..self.nodes.len()).collect();
        self.rng.shuffle(&mut nodes);
        // Two of these at a time leave nobody.
        if nodes.iter().any(|at| !self.nodes[*at].up) {
            return;
        }
        self.count(Fault::Away, true);
        let patience = self.swarm.offline_patience();
        for at in nodes.into_iter().take(usize::try_from(many).unwrap_or(1)) {
            let clean = self.rng.percent(20);
            self.stop(at, clean);
            let until = self.now + self.rng.range(patience / 2, 3 * patience);
            self.queue.push(until, Ev::Start(at));
        }
    }

    /// The node that the map names.
    pub(crate) fn serving(&self) -> Option<At> {
        let coordinator = self.volume()?.coordinator?;
        (0..self.nodes.len()).find(|at| super::world::node_id(*at) == coordinator.node)
    }

    fn cut(&mut self, from: At, to: At, begins: bool) {
        let count = self.cuts.entry((from, to)).or_default();
        *count = if begins { *count + 1 } else { count.saturating_sub(1) };
        if begins {
            if *count == 1 {
                self.cut_since.insert((from, to), self.now);
            }
            self.time_out(|a, b| (a, b) == (from, to) || (b, a) == (from, to));
        }
    }

    fn partition(&mut self, until: u64) {
        self.count(Fault::Partition, true);
        let lone = self.rng.percent(50);
        let alone = self.any_node();
        let apart: Vec<bool> = (0..self.nodes.len())
            .map(|at| if lone { at == alone } else { self.rng.percent(50) })
            .collect();
        self.split(&apart, until);
    }

    /// Takes the coordinator out of touch, alone or with somebody, and has the others move on at
    /// once: for about as long as their takeover, with all its waiting, may need, and then some.
    pub(crate) fn depose(&mut self) {
        let Some(at) = self.serving().filter(|at| self.nodes[*at].up) else { return };
        // One who does not serve yet has no past to answer from.
        let serves = self.volume().is_some_and(|volume| volume.activated);
        if self.map_away || !self.stormy || !serves {
            return;
        }
        self.count(Fault::Depose, true);
        let waits = self.swarm.lease + self.swarm.takeover_patience + 500 * MS;
        let long = self.rng.range(waits / 2, waits * 3);
        let until = self.now + long;
        let with = if self.rng.percent(30) { self.any_node() } else { at };
        let apart: Vec<bool> =
            (0..self.nodes.len()).map(|other| other == at || other == with).collect();
        match self.rng.below(4) {
            0 | 1 => self.split(&apart, until),
            // What it asks for arrives; what it is answered does not, until later.
            2 => {
                for other in (0..apart.len()).filter(|other| !apart[*other]) {
                    self.cut(other, at, true);
                    self.queue.push(until, Ev::Over(Fault::Cut, other, at));
                }
                self.cut_map(at, until);
            }
            _ => {
                self.pause(at);
                self.queue.push(until, Ev::Resume(at));
            }
        }
        let later = self.now + self.rng.below(300 * MS);
        self.queue.push(later, Ev::Elect);
        if self.rng.percent(30) {
            let later = self.now + self.rng.below(long / 2);
            self.queue.push(later, Ev::RestartOthers(at));
        }
    }

    /// All but one node die and come back at once.
    pub(crate) fn restart_others(&mut self, but: At) {
        if !self.stormy {
            return;
        }
        for at in (0..self.nodes.len()).filter(|at| *at != but) {
            self.stop(at, false);
            let later = self.now + self.rng.range(1, 100) * MS;
            self.queue.push(later, Ev::Start(at));
        }
    }

    fn cut_map(&mut self, at: At, until: u64) {
        self.nodes[at].map_cut += 1;
        self.queue.push(until, Ev::Over(Fault::MapCut, at, 0));
    }

    fn split(&mut self, apart: &[bool], until: u64) {
        for a in 0..apart.len() {
            for b in 0..apart.len() {
                if apart[a] != apart[b] {
                    self.cut(a, b, true);
                    self.queue.push(until, Ev::Over(Fault::Cut, a, b));
                }
            }
        }
        // The smaller side has no majority.
        let small = apart.iter().filter(|side| **side).count() * 2 <= apart.len();
        for at in (0..apart.len()).filter(|at| apart[*at] == small) {
            self.cut_map(at, until);
        }
    }

    /// Some slot is to be held by some store that holds none of its group, or by the one that does.
    fn move_slot(&mut self) {
        let Some(volume) = self.volume().filter(|_| !self.map_away) else { return };
        let (groups, slots) = (volume.groups.clone(), u64::from(volume.slots()));
        let no = self.rng.below(groups.len() as u64);
        let slot = Slot(u8::try_from(self.rng.below(slots)).unwrap_or(0));
        let (Ok(no), Ok(index)) = (u16::try_from(no), usize::try_from(no)) else { return };
        let (group, members) = (GroupNo(no), &groups[index]);
        let stores = self.nodes.iter().map(|node| node.store);
        let spare: Vec<_> = stores.filter(|store| members.slot_of(*store).is_none()).collect();
        let back = self.rng.percent(20).then(|| members.slots.get(slot.index()).copied());
        let Some(store) = back.flatten().or_else(|| self.rng.pick(&spare)) else { return };
        let moves = vec![MoveSlot { group, slot, store }];
        let applied = self.apply(&Command::Move { volume: self.volume, moves });
        // Another slot may be on its way to the store's node.
        self.count(Fault::Move, !matches!(applied, Applied::Rejected(_)));
    }

    /// Turns a byte of a coded difference over, now and then.
    pub(crate) fn flip(&mut self, frame: &mut Frame) {
        if !self.stormy || !self.swarm.has(Fault::Flip) || !self.rng.percent(2) {
            return;
        }
        let deltas = frame.requests.iter_mut().filter_map(|request| match &mut request.ask {
            Ask::PrepDelta { delta, .. } if !delta.is_empty() => Some(delta),
            _ => None,
        });
        let Some(delta) = deltas.into_iter().next() else { return };
        let mut bytes = delta.to_vec();
        let place = usize::try_from(self.rng.below(bytes.len() as u64)).unwrap_or(0);
        bytes[place] ^= 1 << self.rng.below(8);
        *delta = bytes.into();
        self.count(Fault::Flip, true);
    }

    /// A fault's time is over.
    pub(crate) fn over(&mut self, fault: Fault, a: At, b: At) {
        match fault {
            Fault::Cut => self.cut(a, b, false),
            Fault::MapCut if a == usize::MAX => self.map_away = false,
            Fault::MapCut => {
                self.nodes[a].map_cut = self.nodes[a].map_cut.saturating_sub(1);
                if self.rng.percent(15) {
                    self.queue.push(self.now, Ev::Attach(a));
                }
            }
            Fault::Slow => self.slow = 1,
            Fault::SlowDisk => {
                self.nodes[a].disk_slow = 1;
                self.tell_slow(None);
            }
            Fault::Full => self.set_full(a, false),
            Fault::Drain => self.set_draining(a, false),
            _ => {}
        }
    }

    /// All faults end; who is down starts.
    pub(crate) fn heal(&mut self) {
        self.trace(|| "all faults end".into());
        self.stormy = false;
        self.cuts.clear();
        self.slow = 1;
        self.map_away = false;
        for at in 0..self.nodes.len() {
            self.nodes[at].map_cut = 0;
            self.nodes[at].disk_slow = 1;
            self.resume(at);
            if self.nodes[at].up {
                if let Some(process) = &mut self.nodes[at].process {
                    process.core.set_room(Room::All);
                }
            } else {
                self.start(at);
            }
        }
        self.tell_slow(None);
    }

    /// Every coordinator hears which disk is far slower than others.
    fn tell_slow(&mut self, slow: Option<At>) {
        let stores: BTreeSet<_> = slow.map(|at| self.nodes[at].store).into_iter().collect();
        for at in 0..self.nodes.len() {
            if self.nodes[at].up && !self.nodes[at].paused {
                self.coordinate(at, Event::Slow(stores.clone()));
            }
        }
    }
}
