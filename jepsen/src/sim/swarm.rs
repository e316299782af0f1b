//! What one seed decides before the run begins: the cluster, the load, the faults.

use super::rng::Rng;
use smalti_map::ReadMode;

/// Milliseconds in the simulator's unit of time.
pub(crate) const MS: u64 = 1000;

/// How much the faults of a run may destroy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// What the code has to bear: nothing that was acknowledged may be lost, and when the faults end
    /// everything is whole again.
    #[default]
    Within,
    /// More than that: bytes rot on any number of slots of a row, on top of everything else. Then
    /// what can not be read any more ends in an error or waits, and no read is ever wrong.
    Beyond,
}

/// A class of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A process dies and starts again; unsynced changes are lost.
    Crash,
    /// A process ends in order and starts again.
    Restart,
    /// All processes die at once.
    Blackout,
    /// A process is stopped for a while; its clock goes on.
    Pause,
    /// Messages from one node to another one are held.
    Cut,
    /// Two halves, or one node, apart from the rest.
    Partition,
    /// The coordinator is out of touch, and another one is elected while it goes on.
    Depose,
    /// A node does not hear of the map and can not propose.
    MapCut,
    /// Sessions break.
    Break,
    /// The network is slow for a while.
    Slow,
    /// A coordinator is elected though the old one lives.
    Elect,
    /// The coordinator releases the volume, and another one is elected.
    Handover,
    /// A store is out of space for a while.
    Full,
    /// A slot is to be held by another store.
    Move,
    /// A node is to be emptied.
    Drain,
    /// A byte turns over in memory between a coordinator's coding and a store's disk.
    Flip,
    /// Stored bytes change.
    Rot,
    /// A process dies, or all of them, and its disk has forgotten what it acknowledged of late.
    Amnesia,
    /// One disk is slow for a while.
    SlowDisk,
    /// A process dies, and its disk is replaced by a new one.
    Wipe,
    /// More processes than there are parity slots die at about the same time and stay away, while others go
    /// on: some groups can not be served.
    Away,
}

impl Fault {
    /// Whether it only comes with a mix made for it: what disks do that the code has to bear, and more
    /// than parity away for long.
    fn is_apart(self) -> bool {
        matches!(self, Self::Rot | Self::Amnesia | Self::Wipe | Self::Away)
    }

    /// All classes.
    pub const ALL: [Self; 21] = [
        Self::Crash,
        Self::Restart,
        Self::Blackout,
        Self::Pause,
        Self::Cut,
        Self::Partition,
        Self::Depose,
        Self::MapCut,
        Self::Break,
        Self::Slow,
        Self::Elect,
        Self::Handover,
        Self::Full,
        Self::Move,
        Self::Drain,
        Self::Flip,
        Self::Rot,
        Self::Amnesia,
        Self::SlowDisk,
        Self::Wipe,
        Self::Away,
    ];
}

/// The parameters of one run.
#[derive(Clone, Debug)]
pub(crate) struct Swarm {
    pub(crate) mode: Mode,
    pub(crate) data: u8,
    pub(crate) parity: u8,
    pub(crate) min_insync: u8,
    pub(crate) read_mode: ReadMode,
    pub(crate) nodes: u64,
    pub(crate) groups: u16,
    pub(crate) rows: u32,
    pub(crate) clients: usize,
    /// Mean pause between two operations of a client.
    pub(crate) think: u64,
    pub(crate) faults: Vec<Fault>,
    /// Mean time between two faults.
    pub(crate) fault_every: u64,
    /// Longest a fault lasts.
    pub(crate) fault_long: u64,
    /// Length of the phase with faults.
    pub(crate) length: u64,
    pub(crate) net_delay: u64,
    pub(crate) disk_delay: u64,
    pub(crate) map_delay: u64,
    pub(crate) link_timeout: u64,
    /// Greatest error of a clock's rate, in millionths.
    pub(crate) drift: u64,
    pub(crate) cached_rows: usize,
    /// How long a client waits for an answer.
    pub(crate) patience: u64,
    /// Client writes of which a second copy comes later.
    pub(crate) late_percent: u64,
    pub(crate) writes_percent: u64,
    pub(crate) whole_rows_percent: u64,
    /// Mean time between two snapshots, made or deleted; 0: there are none.
    pub(crate) snapshot_every: u64,
    /// Mean time between two scrubs of a group; 0: there are none before the end.
    pub(crate) scrub_every: u64,
    /// Whether blocks are listed as well then.
    pub(crate) lists: bool,
    /// Reads that are of a snapshot, if there is one.
    pub(crate) snapshot_reads_percent: u64,
    /// Operations that go to any node that believes to serve, be it rightly or not.
    pub(crate) stray_percent: u64,
    /// Those only read: a write would stand before the reads of its row, at one who can end it no
    /// more, and nobody would see what he answers.
    pub(crate) stray_reads: bool,
    /// The protocol's times; in whatever order, it must be right.
    pub(crate) lease: u64,
    pub(crate) suspect_after: u64,
    pub(crate) takeover_patience: u64,
    pub(crate) power_patience: u64,
    pub(crate) stall_patience: u64,
    /// Whether slots of stores that are away, and of nodes to be emptied, go elsewhere by a plan.
    pub(crate) plans: bool,
    /// That plan's policy.
    pub(crate) down_out: u64,
    pub(crate) urgent: u64,
    pub(crate) at_once: usize,
}

impl Swarm {
    pub(crate) fn draw(rng: &mut Rng, mode: Mode) -> Self {
        let geometries = [(2, 1), (2, 1), (2, 2), (3, 2), (1, 1), (4, 2), (1, 2)];
        let (data, parity) = rng.pick(&geometries).unwrap_or((2, 1));
        let strict = if parity >= 2 { data + 1 } else { data };
        let mut min_insync = if rng.percent(25) { data } else { strict };
        let mut faults: Vec<Fault> =
            Fault::ALL.into_iter().filter(|f| !f.is_apart() && rng.percent(45)).collect();
        if faults.is_empty() {
            faults.push(Fault::Crash);
        }
        // Few classes leave time for what takes long; many make what is strange.
        if rng.percent(40) {
            rng.shuffle(&mut faults);
            faults.truncate(usize::try_from(rng.range(1, 3)).unwrap_or(1));
        }
        // Rotten bytes on top of stores that are out would be more than the code can bear.
        let beyond = mode == Mode::Beyond;
        let rot = !beyond && rng.percent(12);
        if rot {
            faults = vec![Fault::Rot];
            min_insync = strict;
            // With one parity slot even a store that is only slow is one loss too many.
            let few = [Fault::Elect, Fault::Handover, Fault::Move];
            let more = [Fault::Elect, Fault::Handover, Fault::Break, Fault::Slow, Fault::Move];
            for fault in if parity >= 2 { &more[..] } else { &few[..] }.iter().copied() {
                if rng.percent(40) {
                    faults.push(fault);
                }
            }
        }
        // So would be a disk that forgets, where one slot is all that may be missing.
        let amnesia = !beyond && !rot && rng.percent(18);
        if amnesia {
            min_insync = strict;
            if parity < 2 {
                let few = [Fault::Elect, Fault::Handover, Fault::Move];
                faults.retain(|fault| few.contains(fault));
            }
            faults.extend([Fault::Amnesia, Fault::Amnesia]);
        }
        // And a disk that is gone: a store that is taken out before it, for whatever reason, may leave
        // too few to take it out.
        let wipe = !beyond && !rot && !amnesia && rng.percent(12);
        if beyond {
            faults.extend([Fault::Rot, Fault::Rot]);
        }
        if wipe {
            min_insync = strict;
            let few = [Fault::Elect, Fault::Handover, Fault::Move];
            faults.retain(|fault| few.contains(fault));
            faults.push(Fault::Wipe);
        }
        let mut swarm = Self {
            mode,
            data,
            parity,
            min_insync,
            read_mode: if rng.percent(20) { ReadMode::Confirm } else { ReadMode::Lease },
            nodes: u64::from(data + parity) + rng.below(3),
            groups: 1 + u16::try_from(rng.below(3)).unwrap_or(0),
            rows: 1 + u32::try_from(rng.below(4)).unwrap_or(0),
            clients: 2 + usize::try_from(rng.below(5)).unwrap_or(0),
            think: rng.pick(&[2, 5, 15, 40]).unwrap_or(5) * MS,
            faults,
            fault_every: rng.pick(&[60, 150, 400, 1200]).unwrap_or(400) * MS,
            fault_long: rng.pick(&[100, 600, 2500, 6000]).unwrap_or(600) * MS,
            length: rng.range(4, 14) * 1000 * MS,
            net_delay: rng.pick(&[200, 1000, 5000]).unwrap_or(200),
            disk_delay: rng.pick(&[100, 1500, 8000]).unwrap_or(100),
            map_delay: rng.pick(&[2, 20, 200]).unwrap_or(2) * MS,
            link_timeout: rng.pick(&[150, 400, 1500, 5000]).unwrap_or(400) * MS,
            drift: rng.pick(&[0, 200, 9_900]).unwrap_or(0),
            cached_rows: rng.pick(&[1, 2, 1000, 1000]).unwrap_or(1000),
            patience: rng.pick(&[100, 300, 1500, 8000]).unwrap_or(1500) * MS,
            late_percent: rng.pick(&[0, 0, 10]).unwrap_or(0),
            writes_percent: rng.pick(&[30, 60, 85]).unwrap_or(60),
            whole_rows_percent: rng.pick(&[0, 10, 40]).unwrap_or(10),
            snapshot_every: rng.pick(&[0, 0, 150, 600, 2000]).unwrap_or(0) * MS,
            snapshot_reads_percent: rng.pick(&[10, 50]).unwrap_or(10),
            stray_percent: rng.pick(&[5, 40, 80]).unwrap_or(40),
            stray_reads: rng.percent(60),
            lease: rng.pick(&[300, 1500, 1500, 4000]).unwrap_or(1500) * MS,
            suspect_after: rng.pick(&[150, 500, 500]).unwrap_or(500) * MS,
            takeover_patience: rng.pick(&[200, 1500]).unwrap_or(1500) * MS,
            power_patience: 0,
            plans: false,
            down_out: rng.pick(&[500, 2000, 8000]).unwrap_or(8000) * MS,
            urgent: rng.pick(&[100, 500]).unwrap_or(500) * MS,
            at_once: usize::try_from(rng.range(1, 8)).unwrap_or(1),
            stall_patience: rng.pick(&[0, 300, 1500, 5000]).unwrap_or(5000) * MS,
            scrub_every: rng.pick(&[0, 0, 100, 700]).unwrap_or(0) * MS,
            lists: false,
        };
        // Where disks forget the last ones must come within it.
        let long = if amnesia { 5000 * MS } else { u64::from(swarm.rows) * 1000 * MS };
        swarm.power_patience = long;
        if (amnesia && parity < 2) || wipe {
            swarm.link_timeout = swarm.link_timeout.min(400 * MS);
        }
        // What takes slots elsewhere on its own takes them out of what the code has to bear as well.
        swarm.plans = !beyond && !rot && !amnesia && !wipe && rng.percent(35);
        if swarm.plans {
            swarm.nodes += rng.below(2);
            swarm.faults.push(Fault::Drain);
        } else {
            swarm.faults.retain(|fault| *fault != Fault::Drain);
        }
        if swarm.faults.is_empty() {
            swarm.faults.push(Fault::Crash);
        }
        if rot || wipe {
            // Nor may those that are merely away be done without, down to the last.
            swarm.stall_patience = 60_000 * MS;
        }
        if rot || amnesia || wipe {
            // Impatience takes slots out as well: a store whose map is late would be called silent.
            swarm.suspect_after = 500 * MS;
            swarm.takeover_patience = 1500 * MS;
        }
        // Its own numbers, so that all other mixes are as they were without it.
        let mut own = rng.clone();
        let partly = swarm.groups > 1 && swarm.nodes > u64::from(data + parity);
        if partly && !beyond && !rot && !amnesia && !wipe && own.percent(40) {
            swarm.faults.extend([Fault::Away, Fault::Away]);
            swarm.stall_patience = own.pick(&[0, 300, 1500]).unwrap_or(0) * MS;
            swarm.takeover_patience = own.pick(&[200, 600, 1500]).unwrap_or(600) * MS;
        }
        swarm
    }

    /// How long a takeover waits before it goes on without a group.
    pub(crate) fn offline_patience(&self) -> u64 {
        2 * self.stall_patience.max(self.takeover_patience)
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }
}
