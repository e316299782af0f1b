//! A network in memory: sessions with delays, bounded windows, cuts and holes, all from a seed.
//!
//! It keeps the promises of QUIC and none beyond them. Frames of a direction arrive in order;
//! what is under way is bounded by a window, and a sender waits beyond it; a session that breaks
//! loses a part from the end, and the other side may learn of it late, after frames that were on
//! their way; a direction may swallow everything without anybody being told.

use super::rng::Rng;
use crate::shard_store::StoreSessions;
use crate::transport::{ReceiveFrames, SendFrames, Transport};
use bytes::Bytes;
use smalti_net::FRAME_BYTES_MAX;
use smalti_storage::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

/// How long an attempt to open a session takes when nobody answers.
const OPEN_TIMEOUT: Duration = Duration::from_millis(500);

/// How a network behaves while nothing special happens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// The longest way of a frame, usually.
    pub(super) delay: Duration,
    /// What may be under way in one direction of a session, in bytes.
    pub(super) window: usize,
    /// Of 100 attempts to open a session, how many fail.
    pub(super) refused: u64,
}

/// The network of a world; clones are the same, seen from another node.
#[derive(Clone)]
pub(super) struct MemoryNet {
    me: NodeId,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    rng: Rng,
    weather: Weather,
    servers: BTreeMap<NodeId, Arc<StoreSessions>>,
    /// Directions in which nothing gets through.
    holes: BTreeSet<(NodeId, NodeId)>,
    wires: Vec<Wire>,
}

/// One open session.
struct Wire {
    from: NodeId,
    to: NodeId,
    there: Weak<Pipe>,
    back: Weak<Pipe>,
}

/// One direction of a session.
pub(super) struct Pipe {
    state: Mutex<Flow>,
    changed: Notify,
}

struct Flow {
    rng: Rng,
    weather: Weather,
    queue: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    hole: bool,
    /// From when on the sender knows that nothing more is taken.
    shut: Option<Instant>,
    /// Nothing more comes for the receiver once the queue is empty.
    over: bool,
}

pub(super) struct MemoryTx(Arc<Pipe>);
pub(super) struct MemoryRx(Arc<Pipe>);

impl MemoryNet {
    pub(super) fn new(rng: Rng, weather: Weather) -> Self {
        let shared = Shared {
            rng,
            weather,
            servers: BTreeMap::new(),
            holes: BTreeSet::new(),
            wires: Vec::new(),
        };
        Self { me: NodeId(0), shared: Arc::new(Mutex::new(shared)) }
    }

    pub(super) fn of(&self, node: NodeId) -> Self {
        Self { me: node, shared: Arc::clone(&self.shared) }
    }

    pub(super) fn serve(&self, node: NodeId, sessions: StoreSessions) {
        self.lock().servers.insert(node, Arc::new(sessions));
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets nothing through from one node to another one, or everything again, what had been
    /// swallowed included: it is sent again below.
    pub(super) fn set_hole(&self, from: NodeId, to: NodeId, hole: bool) {
        let mut shared = self.lock();
        if hole {
            shared.holes.insert((from, to))
        } else {
            shared.holes.remove(&(from, to))
        };
        for wire in shared.live() {
            for (pipe, way) in wire.pipes() {
                if way == (from, to) {
                    pipe.change(|flow| flow.hole = hole);
                }
            }
        }
    }

    /// Breaks the sessions between two nodes, in both roles.
    pub(super) fn cut(&self, a: NodeId, b: NodeId) {
        let mut shared = self.lock();
        let mut rng = shared.rng.fork();
        for wire in shared.live() {
            let between = (wire.from, wire.to);
            if between == (a, b) || between == (b, a) {
                for (pipe, _) in wire.pipes() {
                    pipe.lose(&mut rng);
                }
            }
        }
    }

    /// All faults end.
    pub(super) fn heal(&self) {
        let holes = self.lock().holes.clone();
        for (from, to) in holes {
            self.set_hole(from, to, false);
        }
        self.lock().weather.refused = 0;
    }

    /// Sessions that are still open at either end.
    pub(super) fn open_count(&self) -> usize {
        self.lock().live().len()
    }
}

impl Shared {
    fn live(&mut self) -> &[Wire] {
        self.wires.retain(|wire| wire.there.strong_count() + wire.back.strong_count() > 0);
        &self.wires
    }

    fn pipe(&mut self, from: NodeId, to: NodeId) -> Arc<Pipe> {
        let flow = Flow {
            rng: self.rng.fork(),
            weather: self.weather,
            queue: VecDeque::new(),
            bytes: 0,
            hole: self.holes.contains(&(from, to)),
            shut: None,
            over: false,
        };
        Arc::new(Pipe { state: Mutex::new(flow), changed: Notify::new() })
    }
}

impl Wire {
    fn pipes(&self) -> Vec<(Arc<Pipe>, (NodeId, NodeId))> {
        let there = self.there.upgrade().map(|pipe| (pipe, (self.from, self.to)));
        let back = self.back.upgrade().map(|pipe| (pipe, (self.to, self.from)));
        there.into_iter().chain(back).collect()
    }
}

impl Transport for MemoryNet {
    type Tx = MemoryTx;
    type Rx = MemoryRx;

    async fn open(&self, node: NodeId, hello: Bytes) -> Option<(MemoryTx, MemoryRx)> {
        let (way, refused, unheard) = {
            let mut shared = self.lock();
            let delay = micros(shared.weather.delay);
            let way = shared.rng.below(2 * delay + 1);
            let refused = shared.weather.refused;
            let unheard = shared.rng.percent(refused / 4);
            (Duration::from_micros(way), shared.rng.percent(refused), unheard)
        };
        sleep(way).await;
        let (server, blocked) = {
            let shared = self.lock();
            let to = shared.holes.contains(&(self.me, node));
            let back = shared.holes.contains(&(node, self.me));
            (shared.servers.get(&node).cloned()?, to || back)
        };
        if blocked {
            sleep(OPEN_TIMEOUT).await;
            return None;
        }
        if refused && !unheard {
            return None;
        }
        let (there, back) = {
            let mut shared = self.lock();
            let there = shared.pipe(self.me, node);
            let back = shared.pipe(node, self.me);
            shared.wires.push(Wire {
                from: self.me,
                to: node,
                there: Arc::downgrade(&there),
                back: Arc::downgrade(&back),
            });
            (there, back)
        };
        let halves = (MemoryTx(Arc::clone(&there)), MemoryRx(Arc::clone(&back)));
        server.accept(self.me, &hello, MemoryTx(back), MemoryRx(there));
        if unheard {
            // The answer is lost: the store has a session that nobody uses.
            sleep(OPEN_TIMEOUT).await;
            return None;
        }
        Some(halves)
    }
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, Flow> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut Flow) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.notify_waiters();
        result
    }

    /// Breaks it: a part is lost from the end, and the rest may come late.
    fn lose(&self, rng: &mut Rng) {
        let told = Instant::now()
            + Duration::from_micros(if rng.percent(40) { rng.below(1_500_000) } else { 0 });
        let late = if rng.percent(40) { rng.below(1_500_000) } else { 0 };
        self.change(|flow| {
            let keep = rng.index(flow.queue.len() + 1);
            flow.queue.truncate(keep);
            flow.bytes = flow.queue.iter().map(|(_, frame)| frame.len()).sum();
            for (at, _) in &mut flow.queue {
                *at += Duration::from_micros(late);
            }
            // Whatever is left is in the receiver's hands.
            flow.hole = false;
            flow.over = true;
            flow.shut.get_or_insert(told);
        });
    }

    /// Waits until `look` finds something, and looks again at every change.
    async fn until<R>(&self, mut look: impl FnMut(&mut Flow) -> Look<R>) -> R {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let look = look(&mut self.lock());
            match look {
                Look::Done(result) => {
                    self.changed.notify_waiters();
                    return result;
                }
                Look::Wait => changed.await,
                Look::WaitUntil(at) => {
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = sleep_until(at) => {}
                    }
                }
            }
        }
    }
}

enum Look<R> {
    Done(R),
    Wait,
    WaitUntil(Instant),
}

impl SendFrames for MemoryTx {
    async fn send(&self, frame: Bytes) -> Option<()> {
        if frame.len() > FRAME_BYTES_MAX {
            return None;
        }
        let pushed = |flow: &mut Flow| {
            if flow.shut.is_some_and(|at| at <= Instant::now()) {
                return Look::Done(None);
            }
            if flow.over {
                // Lost, and the sender does not know yet.
                return Look::Done(Some(()));
            }
            if !flow.queue.is_empty() && flow.bytes + frame.len() > flow.weather.window {
                return Look::Wait;
            }
            let delay = micros(flow.weather.delay);
            let rare = if flow.rng.percent(1) { 20 * delay } else { 0 };
            let way = Duration::from_micros(flow.rng.below(2 * delay + 1) + rare);
            let at = Instant::now() + way;
            let at = flow.queue.back().map_or(at, |(last, _)| at.max(*last));
            flow.bytes += frame.len();
            flow.queue.push_back((at, frame.clone()));
            Look::Done(Some(()))
        };
        self.0.until(pushed).await
    }

    async fn closed(&self) {
        let told = |flow: &mut Flow| match flow.shut {
            Some(at) if at <= Instant::now() => Look::Done(()),
            Some(at) => Look::WaitUntil(at),
            None => Look::Wait,
        };
        self.0.until(told).await;
    }
}

impl ReceiveFrames for MemoryRx {
    async fn recv(&mut self) -> Option<Bytes> {
        let taken = |flow: &mut Flow| match flow.queue.front() {
            Some(_) if flow.hole => Look::Wait,
            Some((at, _)) if *at > Instant::now() => Look::WaitUntil(*at),
            Some(_) => {
                let frame = flow.queue.pop_front().map(|(_, frame)| frame);
                flow.bytes -= frame.as_ref().map_or(0, Bytes::len);
                Look::Done(frame)
            }
            None if flow.over => Look::Done(None),
            None => Look::Wait,
        };
        self.0.until(taken).await
    }
}

impl Drop for MemoryTx {
    fn drop(&mut self) {
        self.0.change(|flow| flow.over = true);
    }
}

impl Drop for MemoryRx {
    fn drop(&mut self) {
        self.0.change(|flow| {
            // The news travel like a frame.
            flow.shut.get_or_insert(Instant::now() + flow.weather.delay);
            flow.over = true;
            flow.queue.clear();
            flow.bytes = 0;
        });
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
