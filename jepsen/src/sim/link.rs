//! The network: sessions of coordinators with stores. First-in first-out while they last; when one
//! breaks, a part of what was under way is lost from the end, and the rest may still come, late.

use super::event::{At, Ev, Life};
use super::swarm::MS;
use super::world::World;
use smalti_rowcommit::Event;
use smalti_rowcommit::msg::{Frame, Reply};
use smalti_storage::ids::StoreId;
use std::collections::VecDeque;

/// The index of a session.
pub(crate) type SessionId = usize;

/// How long a frame of an epoch the store has not heard of is held back. Longer than a store may
/// be silent would have it suspected for nothing but a late map.
const MAP_PATIENCE: u64 = 100 * MS;

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) from: Life,
    pub(crate) to: Life,
    pub(crate) store: StoreId,
    /// What the coordinator calls it.
    pub(crate) number: u64,
    pub(crate) broken: bool,
    frames: VecDeque<(u64, Frame)>,
    replies: VecDeque<(u64, Reply)>,
    /// Since when its first frame waits for the map.
    waiting: Option<u64>,
}

impl World {
    /// Time for a message from one node to another one.
    fn travel(&mut self, from: At, to: At) -> u64 {
        let base = if from == to { 20 } else { self.swarm.net_delay * self.slow };
        let rare = if self.stormy && self.rng.percent(2) { base * 20 } else { 0 };
        1 + self.rng.below(base * 2) + rare
    }

    pub(crate) fn is_cut(&self, from: At, to: At) -> bool {
        from != to && self.cuts.get(&(from, to)).is_some_and(|count| *count > 0)
    }

    pub(crate) fn connect(&mut self, from: Life, store: StoreId) {
        let to = self.node_of(store);
        if self.nodes[from.at].links.contains_key(&store) {
            return;
        }
        let reachable = self.nodes[to].up
            && !self.nodes[to].paused
            && !self.is_cut(from.at, to)
            && !self.is_cut(to, from.at);
        if !reachable {
            let later = self.now + self.rng.range(20, 120) * MS;
            self.queue.push(later, Ev::Connect { from, store });
            return;
        }
        let node = &mut self.nodes[from.at];
        node.sessions += 1;
        let number = node.sessions;
        if self.gone.contains_key(&store) {
            // Its node takes the session, finds that it has no such store, and drops it.
            self.coordinate(from.at, Event::LinkUp { store, session: number });
            self.coordinate(from.at, Event::LinkDown { store });
            let later = self.now + self.rng.range(20, 200) * MS;
            self.queue.push(later, Ev::Connect { from, store });
            return;
        }
        let session = self.sessions.len();
        node.links.insert(store, session);
        let to = self.nodes[to].life();
        self.sessions.push(Session {
            from,
            to,
            store,
            number,
            broken: false,
            frames: VecDeque::new(),
            replies: VecDeque::new(),
            waiting: None,
        });
        self.coordinate(from.at, Event::LinkUp { store, session: number });
    }

    pub(crate) fn send_frame(&mut self, from: At, store: StoreId, frame: Frame) {
        let Some(id) = self.nodes[from].links.get(&store).copied() else { return };
        if self.sessions[id].number != frame.session {
            return;
        }
        let to = self.sessions[id].to.at;
        let at = self.now + self.travel(from, to);
        let frames = &mut self.sessions[id].frames;
        let at = frames.back().map_or(at, |(last, _)| at.max(*last));
        frames.push_back((at, frame));
        if frames.len() == 1 {
            self.queue.push(at, Ev::Frame(id));
        }
    }

    pub(crate) fn send_reply(&mut self, id: SessionId, reply: Reply) {
        let (from, to) = (self.sessions[id].to.at, self.sessions[id].from.at);
        let at = self.now + self.travel(from, to);
        let replies = &mut self.sessions[id].replies;
        let at = replies.back().map_or(at, |(last, _)| at.max(*last));
        replies.push_back((at, reply));
        if replies.len() == 1 {
            self.queue.push(at, Ev::Reply(id));
        }
    }

    /// The first frame arrives, if nothing stops it.
    pub(crate) fn frame_arrives(&mut self, id: SessionId) {
        let Session { from, to, waiting, .. } = self.sessions[id];
        if !self.is_alive(to) {
            self.sessions[id].frames.clear();
            return;
        }
        if self.nodes[to.at].paused {
            self.nodes[to.at].stash.push_back(Ev::Frame(id));
            return;
        }
        if self.is_cut(from.at, to.at) {
            let later = self.now + self.rng.range(5, 25) * MS;
            self.queue.push(later, Ev::Frame(id));
            return;
        }
        let Some((_, frame)) = self.sessions[id].frames.front() else { return };
        let known = self.nodes[to.at].process().reader.epoch_of(frame.volume);
        if known.is_none_or(|known| known < frame.epoch) {
            let since = waiting.unwrap_or(self.now);
            if self.now < since + MAP_PATIENCE {
                self.sessions[id].waiting = Some(since);
                self.queue.push(self.now + 5 * MS, Ev::Frame(id));
                return;
            }
        }
        self.sessions[id].waiting = None;
        let Some((_, frame)) = self.sessions[id].frames.pop_front() else { return };
        if let Some((at, _)) = self.sessions[id].frames.front() {
            let at = (*at).max(self.now);
            self.queue.push(at, Ev::Frame(id));
        }
        if !frame.requests.is_empty() && frame.requests.iter().all(|r| r.ask.is_read()) {
            let delay = self.swarm.disk_delay * self.nodes[to.at].disk_slow;
            let later = self.now + self.rng.below(delay);
            self.queue.push(later, Ev::Read { to, session: id, frame: Box::new(frame) });
        } else {
            self.queue_frame(to.at, id, frame);
        }
    }

    /// The first reply arrives, if nothing stops it.
    pub(crate) fn reply_arrives(&mut self, id: SessionId) {
        let Session { from, to, store, .. } = self.sessions[id];
        if !self.is_alive(from) {
            self.sessions[id].replies.clear();
            return;
        }
        if self.nodes[from.at].paused {
            self.nodes[from.at].stash.push_back(Ev::Reply(id));
            return;
        }
        if self.is_cut(to.at, from.at) {
            let later = self.now + self.rng.range(5, 25) * MS;
            self.queue.push(later, Ev::Reply(id));
            return;
        }
        let Some((_, reply)) = self.sessions[id].replies.pop_front() else { return };
        if let Some((at, _)) = self.sessions[id].replies.front() {
            let at = (*at).max(self.now);
            self.queue.push(at, Ev::Reply(id));
        }
        self.tell_heard(id, &reply);
        self.coordinate(from.at, Event::Reply { store, reply });
    }

    /// Breaks a session: of what is under way in either direction, a part is lost from the end.
    pub(crate) fn break_session(&mut self, id: SessionId) {
        if std::mem::replace(&mut self.sessions[id].broken, true) {
            return;
        }
        let keep = self.rng.below(self.sessions[id].frames.len() as u64 + 1);
        self.sessions[id].frames.truncate(usize::try_from(keep).unwrap_or(0));
        let late = if self.rng.percent(30) { self.rng.below(1500 * MS) } else { 0 };
        for (at, _) in &mut self.sessions[id].frames {
            *at += late;
        }
        let keep = self.rng.below(self.sessions[id].replies.len() as u64 + 1);
        self.sessions[id].replies.truncate(usize::try_from(keep).unwrap_or(0));
        let Session { from, store, .. } = self.sessions[id];
        if !self.is_alive(from) {
            return;
        }
        if self.nodes[from.at].paused {
            self.nodes[from.at].stash.push_back(Ev::Broken(id));
            return;
        }
        self.session_is_down(id, from, store);
    }

    /// The coordinator's side learns of it.
    pub(crate) fn session_is_down(&mut self, id: SessionId, from: Life, store: StoreId) {
        if self.nodes[from.at].links.get(&store) != Some(&id) {
            return;
        }
        self.nodes[from.at].links.remove(&store);
        self.coordinate(from.at, Event::LinkDown { store });
        let later = self.now + self.rng.range(1, 150) * MS;
        self.queue.push(later, Ev::Connect { from, store });
    }

    /// A session whose way is still blocked after the time-out breaks.
    pub(crate) fn timeout(&mut self, id: SessionId) {
        let Session { from, to, broken, .. } = self.sessions[id];
        let blocked = self.is_cut(from.at, to.at)
            || self.is_cut(to.at, from.at)
            || self.nodes[to.at].paused
            || !self.is_alive(to);
        if !broken && blocked {
            self.break_session(id);
        }
    }

    /// Lets the sessions between two nodes time out.
    pub(crate) fn time_out(&mut self, matching: impl Fn(At, At) -> bool) {
        let later = self.now + self.swarm.link_timeout;
        for id in self.open_sessions() {
            let (from, to) = (self.sessions[id].from.at, self.sessions[id].to.at);
            if matching(from, to) {
                self.queue.push(later, Ev::Timeout(id));
            }
        }
    }

    pub(crate) fn open_sessions(&self) -> Vec<SessionId> {
        self.nodes.iter().flat_map(|node| node.links.values().copied()).collect()
    }
}
