//! How fast the pure cores are: one coordinator and n + k stores in memory, no network, no disk.
//!
//! `cargo run --release -p smalti-rowcommit --example bench_core [SECONDS] [N] [K]`

use bytes::Bytes;
use smalti_map::{
    Applied, ClusterMap, Command, Coordinator as Coordinating, Custody, KeyEpoch, NewVolume,
    NodeAddresses, ReadMode, ShareHolder, StoreStart,
};
use smalti_rowcommit::coordinator::{BlockWrite, Coordinator};
use smalti_rowcommit::store::read::ReadSide;
use smalti_rowcommit::store::{StoreConfig, StoreCore};
use smalti_rowcommit::{Action, CoordinatorConfig, Event, Time};
use smalti_storage::ids::{
    ClusterId, GroupNo, Incarnation, KeyEpochNo, NodeId, RowAddr, Slot, StoreId, VolumeId,
    VolumeNo, Wid,
};
use smalti_storage::store::ShardStore;
use smalti_storage::store::memory::MemoryStore;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use uuid::Uuid;

const RECORD: usize = 4160;
const GROUPS: u16 = 32;
const ROWS: u64 = 4096;
const DEPTH: usize = 64;

struct Party {
    core: StoreCore,
    reader: ReadSide,
    store: Arc<MemoryStore>,
}

/// Of the only gateway: that of the first election.
const GENERATION: u32 = 2;

struct Bench {
    coordinator: Coordinator,
    parties: BTreeMap<StoreId, Party>,
    now: u64,
    done: u64,
    wid: u64,
    op: u64,
    random: u64,
    in_coordinator: std::time::Duration,
    data: u8,
}

impl Bench {
    fn new(data: u8, parity: u8) -> Self {
        let slots = data + parity;
        let me = NodeId(1);
        let mut map = ClusterMap::default();
        let port = |no: u16| NodeAddresses {
            quic: ([127, 0, 0, 1], no).into(),
            api: ([127, 0, 0, 1], no).into(),
            nbd: ([127, 0, 0, 1], no).into(),
        };
        let custody = Custody {
            share_epoch: 1,
            threshold: 1,
            holders: vec![ShareHolder { node: me, share: 1 }],
            commitments: Vec::new(),
            sealed_for_recovery: Vec::new(),
        };
        let nodes = (1..=u64::from(slots)).map(|n| (NodeId(n), format!("n{n}"), port(1)));
        let mut must = |command: Command| {
            let applied = map.apply(&command);
            assert!(!matches!(applied, Applied::Rejected(_)), "{command:?}: {applied:?}");
        };
        must(Command::InitCluster {
            cluster: ClusterId(Uuid::from_u128(1)),
            nodes: nodes.collect(),
            custody: custody.clone(),
            recovery: None,
        });
        let id = |n: u64| StoreId(Uuid::from_u128(u128::from(n)));
        for n in 1..=u64::from(slots) {
            must(Command::RegisterNode { node: NodeId(n), addresses: port(1) });
            let first = StoreStart::first(id(n), NodeId(n), Incarnation(1));
            must(Command::RegisterStore(first));
        }
        let table: Vec<StoreId> = (1..=u64::from(slots)).map(id).collect();
        let groups = vec![table.clone(); usize::from(GROUPS)];
        must(Command::CreateVolume(Box::new(NewVolume {
            id: VolumeId(Uuid::from_u128(9)),
            name: "bench".into(),
            size: 1 << 30,
            data,
            parity,
            shard_size: 1 << 20,
            min_insync: data,
            read_mode: ReadMode::Lease,
            key_epoch: KeyEpoch {
                no: KeyEpochNo(1),
                timestamp: 1,
                since: 0,
                sealed: 0,
                shard_keys: vec![vec![1]; usize::from(GROUPS) * usize::from(data)],
                place_key: vec![1],
                custody,
            },
            groups,
        })));
        let volume = VolumeNo(1);
        let epoch = map.volumes[&volume].epoch;
        let incarnation = Incarnation(1);
        map.apply(&Command::Elect { volume, epoch, node: me, incarnation });
        let mut config = CoordinatorConfig::new(Coordinating { node: me, incarnation }, volume);
        config.record_len = RECORD;
        let mut parties = BTreeMap::new();
        for store in &table {
            let disk = Arc::new(MemoryStore::new(*store));
            let shared: Arc<dyn ShardStore> = Arc::clone(&disk) as Arc<dyn ShardStore>;
            let config = StoreConfig { cached_rows: 1 << 20, ..StoreConfig::default() };
            let mut core = StoreCore::new(Arc::clone(&shared), config, Time(0));
            core.set_map(&map).expect("memory does not fail");
            let reader = ReadSide::new(shared, core.fence());
            parties.insert(*store, Party { core, reader, store: disk });
        }
        let mut bench = Self {
            coordinator: Coordinator::new(config),
            parties,
            now: 10_000_000,
            done: 0,
            wid: 0,
            op: 0,
            random: 1,
            in_coordinator: std::time::Duration::ZERO,
            data,
        };
        for (session, store) in table.iter().enumerate() {
            bench.feed(Event::LinkUp { store: *store, session: session as u64 + 1 });
        }
        bench.feed(Event::Map(Arc::new(map.clone())));
        while !bench.turn().iter().any(|a| matches!(a, Command::Activate { .. })) {}
        let epoch = map.volumes[&volume].epoch;
        map.apply(&Command::Activate { volume, epoch, online: Vec::new() });
        for party in bench.parties.values_mut() {
            party.core.set_map(&map).expect("memory does not fail");
        }
        bench.feed(Event::Map(Arc::new(map)));
        bench.feed(Event::Tick);
        bench.turn();
        bench.turn();
        bench
    }

    fn feed(&mut self, event: Event) {
        let begun = Instant::now();
        self.coordinator.handle(Time(self.now), event);
        self.in_coordinator += begun.elapsed();
    }

    /// Carries every frame to its store and every reply back.
    fn turn(&mut self) -> Vec<Command> {
        self.now += 100;
        let begun = Instant::now();
        let actions = self.coordinator.drain();
        self.in_coordinator += begun.elapsed();
        let mut proposals = Vec::new();
        let mut replies = Vec::new();
        for action in actions {
            match action {
                Action::Send { store, frame } => {
                    let party = self.parties.get_mut(&store).expect("a known store");
                    if frame.requests.iter().all(|r| r.ask.is_read()) {
                        let reply = party.reader.handle(NodeId(1), &frame);
                        replies.push((store, reply.expect("memory does not fail")));
                    } else {
                        let reply = party.core.handle(Time(self.now), NodeId(1), frame);
                        let reply = reply.expect("memory does not fail");
                        let (batch, _) = party.core.take_batch();
                        party.store.commit(batch).expect("memory does not fail");
                        party.core.committed();
                        replies.extend(reply.map(|reply| (store, reply)));
                    }
                }
                Action::Propose(command) => proposals.push(command),
                Action::SnapshotDone { .. } => unreachable!("no snapshot is asked for"),
                Action::WriteDone { result, .. } => {
                    result.expect("nothing fails here");
                    self.done += 1;
                }
                Action::ReadDone { result, .. } => {
                    result.expect("nothing fails here");
                    self.done += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        for (store, reply) in replies {
            self.feed(Event::Reply { store, reply });
        }
        proposals
    }

    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        self.random >> 33
    }

    fn row(&mut self) -> RowAddr {
        let at = self.draw() % ROWS;
        RowAddr {
            group: GroupNo(u16::try_from(at % u64::from(GROUPS)).unwrap_or(0)),
            stripe: at / 256,
            index: u32::try_from(at % 256).unwrap_or(0),
        }
    }

    fn write(&mut self, row: RowAddr, slot: u8) -> BlockWrite {
        let record = Bytes::from(vec![u8::try_from(self.wid % 251).unwrap_or(0) + 1; RECORD]);
        let wid = Wid { generation: GENERATION, seq: self.wid };
        BlockWrite { row, slot: Slot(slot), wid, record }
    }

    #[expect(clippy::print_stdout, reason = "a benchmark's report")]
    fn measure(
        &mut self,
        what: &str,
        seconds: f64,
        blocks: u64,
        next: impl Fn(&mut Self, u64) -> Event,
    ) {
        self.in_coordinator = std::time::Duration::ZERO;
        let (begun, before) = (Instant::now(), self.done);
        let mut issued = before;
        let mut last_tick = self.now;
        while begun.elapsed().as_secs_f64() < seconds {
            while issued - self.done < DEPTH as u64 {
                self.op += 1;
                issued += 1;
                let event = next(self, self.op);
                self.feed(event);
            }
            self.turn();
            if self.now - last_tick > 20_000 {
                last_tick = self.now;
                self.feed(Event::Tick);
            }
        }
        while issued > self.done {
            self.turn();
        }
        let elapsed = begun.elapsed().as_secs_f64();
        let ops = (self.done - before) as f64;
        println!(
            "{what:<22} {:>9.0} ops/s {:>9.0} blocks/s  {:>8.0} ns per op, of it coordinator {:>7.0} \
             ns ({:.0} ns per block)",
            ops / elapsed,
            ops * blocks as f64 / elapsed,
            elapsed * 1e9 / ops,
            self.in_coordinator.as_secs_f64() * 1e9 / ops,
            self.in_coordinator.as_secs_f64() * 1e9 / ops / blocks as f64,
        );
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let seconds = args.next().and_then(|s| s.parse().ok()).unwrap_or(2.0);
    let data = args.next().and_then(|s| s.parse().ok()).unwrap_or(2u8);
    let parity = args.next().and_then(|s| s.parse().ok()).unwrap_or(1u8);
    let mut bench = Bench::new(data, parity);
    let rows = 128;
    let whole = u64::from(bench.data) * rows;
    bench.measure("full rows, 128 per op", seconds, whole, |bench, op| {
        bench.wid += 1;
        let base = bench.draw() % ROWS / rows * rows;
        let mut blocks = Vec::new();
        for at in base..base + rows {
            let row = RowAddr {
                group: GroupNo(u16::try_from(at % u64::from(GROUPS)).unwrap_or(0)),
                stripe: at / 256,
                index: u32::try_from(at % 256).unwrap_or(0),
            };
            for slot in 0..bench.data {
                blocks.push(bench.write(row, slot));
            }
        }
        Event::Write { op, blocks }
    });
    bench.measure("4k random writes", seconds, 1, |bench, op| {
        bench.wid += 1;
        let row = bench.row();
        let slot = u8::try_from(bench.draw() % u64::from(bench.data)).unwrap_or(0);
        let blocks = vec![bench.write(row, slot)];
        Event::Write { op, blocks }
    });
    bench.measure("4k random reads", seconds, 1, |bench, op| {
        let row = bench.row();
        let slot = u8::try_from(bench.draw() % u64::from(bench.data)).unwrap_or(0);
        Event::Read { op, blocks: vec![(row, Slot(slot))], snap: None, generation: GENERATION }
    });
}
