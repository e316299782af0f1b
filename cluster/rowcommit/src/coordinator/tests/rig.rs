//! The coordinator on node 1 and a real store core on every node, joined by hand.

use super::*;

pub(super) const ME: Coordinating = Coordinating { node: NodeId(1), incarnation: Incarnation(1) };

pub(super) struct Party {
    pub(super) disk: Arc<MemoryStore>,
    pub(super) core: StoreCore,
    pub(super) reader: ReadSide,
    /// Frames to it are lost.
    pub(super) deaf: bool,
    /// Its disk hangs: it serves reads, and nothing else.
    pub(super) hangs: bool,
}

/// The coordinator on node 1, and a store on every node.
pub(super) struct Rig {
    pub(super) map: ClusterMap,
    pub(super) coordinator: Coordinator,
    pub(super) parties: BTreeMap<StoreId, Party>,
    pub(super) now: Time,
    pub(super) sessions: u64,
    pub(super) done: Vec<Action>,
}

impl Rig {
    /// Elected in epoch 2, nothing sent yet.
    pub(super) fn new(data: u8, parity: u8) -> Self {
        Self::of(support::map(data, parity))
    }

    pub(super) fn of(mut map: ClusterMap) -> Self {
        support::elect(&mut map, 1);
        let mut config = CoordinatorConfig::new(ME, VOLUME);
        config.record_len = RECORD_LEN;
        let mut rig = Self {
            coordinator: Coordinator::new(config),
            parties: BTreeMap::new(),
            map,
            now: Time(10_000_000),
            sessions: 0,
            done: Vec::new(),
        };
        for no in 1..=rig.map.stores.len() as u64 {
            let disk = Arc::new(MemoryStore::new(store(no)));
            rig.start_store(no, disk);
            rig.link_up(no);
        }
        rig.adopt();
        rig
    }

    /// Activated, with leases.
    pub(super) fn active(data: u8, parity: u8) -> Self {
        Self::new(data, parity).activated()
    }

    pub(super) fn activated(mut self) -> Self {
        let rig = &mut self;
        rig.settle();
        support::activate(&mut rig.map);
        rig.adopt();
        rig.tick(20);
        rig.settle();
        assert_eq!(rig.coordinator.phase(), Phase::Active);
        self
    }

    pub(super) fn start_store(&mut self, no: u64, disk: Arc<MemoryStore>) {
        let core = StoreCore::new(Arc::clone(&disk) as _, StoreConfig::default(), Time(0));
        let reader = ReadSide::new(Arc::clone(&disk) as _, core.fence());
        self.parties.insert(store(no), Party { disk, core, reader, deaf: false, hangs: false });
    }

    pub(super) fn link_up(&mut self, no: u64) {
        self.sessions += 1;
        let event = Event::LinkUp { store: store(no), session: self.sessions };
        self.coordinator.handle(self.now, event);
    }

    pub(super) fn link_down(&mut self, no: u64) {
        self.coordinator.handle(self.now, Event::LinkDown { store: store(no) });
    }

    pub(super) fn feed(&mut self, event: Event) {
        self.coordinator.handle(self.now, event);
    }

    pub(super) fn tick(&mut self, millis: u64) {
        self.now = self.now.after(Duration::from_millis(millis));
        self.feed(Event::Tick);
    }

    /// Lets time pass; every proposal is accepted.
    pub(super) fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds * 10 {
            self.tick(100);
            let commands = self.settle();
            self.accept(commands);
        }
    }

    /// Frames to the store are lost from now on, or no more.
    pub(super) fn deafen(&mut self, no: u64, deaf: bool) {
        self.parties.get_mut(&store(no)).expect("a known store").deaf = deaf;
    }

    /// Elected anew, with nothing in memory, when all leases have run out.
    pub(super) fn elect_later(&mut self) {
        support::elect(&mut self.map, 1);
        self.coordinator.cache.clear();
        self.now = self.now.after(Duration::from_secs(10));
        self.adopt();
    }

    pub(super) fn adopt(&mut self) {
        for party in self.parties.values_mut() {
            party.core.set_map(&self.map).expect("memory does not fail");
            let (batch, _) = party.core.take_batch();
            party.disk.commit(batch).expect("memory does not fail");
            party.core.committed();
        }
        let map = Arc::new(self.map.clone());
        self.feed(Event::Map(map));
    }

    pub(super) fn deliver(&mut self, to: StoreId, frame: Frame) -> Option<Reply> {
        let party = self.parties.get_mut(&to).expect("a known store");
        if party.deaf {
            return None;
        }
        if frame.requests.iter().all(|r| r.ask.is_read()) {
            return Some(party.reader.handle(ME.node, &frame).expect("memory does not fail"));
        }
        if party.hangs {
            return None;
        }
        let reply = party.core.handle(self.now, ME.node, frame).expect("memory does not fail");
        let (batch, _) = party.core.take_batch();
        party.disk.commit(batch).expect("memory does not fail");
        party.core.committed();
        reply
    }

    /// Carries frames and replies until nothing moves; answers what was proposed.
    pub(super) fn settle(&mut self) -> Vec<Command> {
        let mut proposals = Vec::new();
        loop {
            let actions = self.coordinator.drain();
            if actions.is_empty() {
                return proposals;
            }
            for action in actions {
                match action {
                    Action::Send { store, frame } => {
                        if let Some(reply) = self.deliver(store, frame) {
                            self.feed(Event::Reply { store, reply });
                        }
                    }
                    Action::Propose(command) => proposals.push(command),
                    other => self.done.push(other),
                }
            }
        }
    }

    pub(super) fn accept(&mut self, commands: Vec<Command>) {
        for command in commands {
            support::accept(&mut self.map, &command);
        }
        self.adopt();
    }

    pub(super) fn write(&mut self, op: u64, slot: u8, seq: u64) {
        let blocks = vec![block(slot, seq)];
        self.feed(Event::Write { op, blocks });
    }

    pub(super) fn read(&mut self, op: u64, slot: u8) {
        self.read_at(op, (row(0), Slot(slot)), None);
    }

    /// Reads one block, perhaps of a snapshot, for the newest gateway.
    pub(super) fn read_at(&mut self, op: u64, block: (RowAddr, Slot), snap: Option<u32>) {
        let generation = self.map.volumes[&VOLUME].writer_gen;
        self.feed(Event::Read { op, blocks: vec![block], snap, generation });
    }

    pub(super) fn head(&self, no: u64) -> VersionMeta {
        let at = RowSlot { volume: VOLUME, row: row(0), slot: support::slot(no) };
        let disk = &self.parties[&store(no)].disk;
        disk.head(at).expect("memory does not fail").unwrap_or_default()
    }
}

pub(super) fn bytes(seq: u64) -> Bytes {
    vec![seq as u8; RECORD_LEN].into()
}

pub(super) fn wid(seq: u64) -> Wid {
    Wid { generation: 2, seq }
}

pub(super) fn block(slot: u8, seq: u64) -> BlockWrite {
    BlockWrite { row: row(0), slot: Slot(slot), wid: wid(seq), record: bytes(seq) }
}

pub(super) fn ver(seq: u64) -> Ver {
    Ver { epoch: Epoch(2), seq }
}

/// The frames among the actions, as store number and requests.
pub(super) fn sent(actions: &[Action]) -> Vec<(u64, Vec<Ask>)> {
    let number = |of: &StoreId| (1..=9).find(|no| store(*no) == *of).unwrap_or(0);
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Send { store, frame } => Some((
                number(store),
                frame.requests.iter().map(|request| request.ask.clone()).collect(),
            )),
            _ => None,
        })
        .collect()
}

pub(super) fn written(op: u64) -> Action {
    Action::WriteDone { op, result: Ok(()) }
}

/// A slot of the first row.
pub(super) fn at(no: u8) -> RowSlot {
    RowSlot { volume: VOLUME, row: row(0), slot: Slot(no) }
}

pub(super) fn disk(rig: &Rig, no: u64) -> Arc<MemoryStore> {
    Arc::clone(&rig.parties[&store(no)].disk)
}
