//! Custodians that deal secrets on to others, with a crash at every step of it.
//!
//! Their cores run here without actors and network: who is asked what, and when whoever asks or is asked dies, is
//! enumerated. Whatever dies, the shares that the map names can be put together, before and after.
#![allow(clippy::unwrap_used, reason = "tests")]

mod locked;
mod recovery;
mod rules;

use super::core::{Context, Core, Outcome};
use super::wire::{Answer, Ask, DealerBytes, ShareBytes};
use super::{AuditEvent, Chain, Vault};
use rand::SeedableRng;
use rand::rngs::StdRng;
use smalti_map::{
    Applied, ClusterMap, Command, Coordinator, Custodians, Custody, FIRST_SHARE_EPOCH, KeyEpoch,
    NewVolume, NodeAddresses, ReadMode, Recovery, ShareHolder, StoreStart,
};
use smalti_storage::ids::{
    ClusterId, Incarnation, KeyEpochNo, NodeId, StoreId, VolumeId, VolumeNo,
};
use smalti_storage::keys::{
    Commitments, Dealing, KeyPart, RestKey, Secret, SecretName, ShareName, combine_commitments,
    get_key_parts, reconstruct_symmetric_key, seal_for_recovery,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;
use uuid::Uuid;

const NODES: u64 = 5;
const VOLUME: VolumeId = VolumeId(Uuid::from_u128(0xf1));
const NO: VolumeNo = VolumeNo(1);
const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(1));

fn wrapping(no: u32) -> SecretName {
    SecretName::Wrapping { volume: VOLUME, key_epoch: KeyEpochNo(no) }
}

/// A cluster of which only the custodians and the map are there.
struct World {
    map: ClusterMap,
    cores: BTreeMap<NodeId, Core>,
    dirs: BTreeMap<NodeId, TempDir>,
    secrets: BTreeMap<SecretName, Secret>,
    /// What people have shares of.
    recovery: (Secret, Commitments),
    rng: StdRng,
    now: Instant,
    /// Messages and proposals so far, and at which one somebody dies.
    steps: usize,
    crash: Option<Crash>,
}

/// Before or after that step whoever is asked dies and comes back; or whoever asks does, and leaves it at that.
#[derive(Clone, Copy, Debug)]
struct Crash {
    at: usize,
    who: Who,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    AskedBefore,
    AskedAfter,
    AskerBefore,
    AskerAfter,
}

/// Whoever asked died.
struct Died;

fn dealt(dealing: &Dealing, holders: &[u64]) -> Custody {
    let holder =
        |(node, part): (&u64, &KeyPart)| ShareHolder { node: NodeId(*node), share: part.index() };
    Custody {
        share_epoch: FIRST_SHARE_EPOCH,
        threshold: dealing.commitments.threshold() as u8,
        holders: holders.iter().zip(&dealing.parts).map(holder).collect(),
        commitments: dealing.commitments.to_bytes(),
        sealed_for_recovery: Vec::new(),
    }
}

impl World {
    /// Nodes 1 to 3 hold the shares of the master secret and of the first key epoch of a volume.
    fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(11);
        let mut world = Self {
            map: ClusterMap::default(),
            cores: BTreeMap::new(),
            dirs: (1..=NODES).map(|no| (NodeId(no), folder())).collect(),
            secrets: BTreeMap::new(),
            recovery: {
                let secret = Secret::random(&mut rng);
                let dealing = get_key_parts(&secret, 3, 5, &mut rng).unwrap();
                (secret, dealing.commitments)
            },
            now: Instant::now(),
            steps: 0,
            crash: None,
            rng: StdRng::seed_from_u64(12),
        };
        for no in 1..=NODES {
            world.restart(NodeId(no));
        }
        let master = Secret::random(&mut rng);
        let dealing = get_key_parts(&master, 2, 3, &mut rng).unwrap();
        let sealed_for_recovery = world.seal(SecretName::Master, &master);
        let custody = Custody { sealed_for_recovery, ..dealt(&dealing, &[1, 2, 3]) };
        world.put(SecretName::Master, &custody, &dealing.parts);
        world.secrets.insert(SecretName::Master, master);
        let at = ([127, 0, 0, 1], 1).into();
        let addresses = NodeAddresses { quic: at, api: at, nbd: at };
        let nodes = (1..=NODES).map(|no| (NodeId(no), format!("n{no}"), addresses.clone()));
        let (cluster, nodes) = (CLUSTER, nodes.collect());
        let commitments = world.recovery.1.to_bytes();
        let recovery = Some(Recovery { threshold: 3, shares: 5, commitments });
        world.must(&Command::InitCluster { cluster, nodes, custody, recovery });
        let store = |no: u64| StoreId(Uuid::from_u128(no.into()));
        for no in 1..=NODES {
            let node = NodeId(no);
            world.must(&Command::RegisterNode { node, addresses: addresses.clone() });
            let start = StoreStart::first(store(no), node, Incarnation(1));
            world.must(&Command::RegisterStore(start));
        }
        let key_epoch = world.new_keys(1);
        world.must(&Command::CreateVolume(Box::new(NewVolume {
            id: VOLUME,
            name: "v".into(),
            size: 1 << 20,
            data: 2,
            parity: 1,
            shard_size: 1 << 20,
            min_insync: 2,
            read_mode: ReadMode::Lease,
            groups: vec![vec![store(1), store(2), store(3)]],
            key_epoch,
        })));
        world.elect(4);
        world
    }

    fn must(&mut self, command: &Command) {
        let applied = self.map.apply(command);
        assert!(!matches!(applied, Applied::Rejected(_)), "{command:?}: {applied:?}");
        assert_eq!(self.map.check(), Ok(()));
    }

    fn elect(&mut self, no: u64) {
        let (node, epoch) = (NodeId(no), self.map.volumes[&NO].epoch);
        let incarnation = Incarnation(1);
        self.must(&Command::Elect { volume: NO, epoch, node, incarnation });
        let epoch = self.map.volumes[&NO].epoch;
        self.must(&Command::Activate { volume: NO, epoch, online: Vec::new() });
        assert_eq!(self.map.volumes[&NO].coordinator, Some(Coordinator { node, incarnation }));
    }

    /// A new secret, dealt as the map says and kept by all who are to hold it.
    fn new_keys(&mut self, no: u32) -> KeyEpoch {
        let plan = self.map.custodians.clone();
        let secret = Secret::random(&mut self.rng);
        let total = plan.holders.len() as u8;
        let dealing = get_key_parts(&secret, plan.threshold, total, &mut self.rng).unwrap();
        for (node, part) in plan.nodes().zip(&dealing.parts) {
            let ask = self.keep(wrapping(no), part, &dealing.commitments);
            assert_eq!(self.ask(4, node, ask).ok(), Some(Answer::Kept));
        }
        let sealed_for_recovery = self.seal(wrapping(no), &secret);
        self.secrets.insert(wrapping(no), secret);
        let holders: Vec<u64> = plan.nodes().map(|node| node.0).collect();
        let custody = Custody {
            share_epoch: plan.share_epoch,
            sealed_for_recovery,
            ..dealt(&dealing, &holders)
        };
        KeyEpoch {
            no: KeyEpochNo(no),
            timestamp: no.into(),
            since: 0,
            sealed: 0,
            shard_keys: vec![vec![1]; 2],
            place_key: vec![1],
            custody,
        }
    }

    fn seal(&mut self, name: SecretName, secret: &Secret) -> Vec<u8> {
        let cluster = ClusterId(Uuid::from_u128(1));
        seal_for_recovery(secret, cluster, name, &self.recovery.1, &mut self.rng)
    }

    fn keep(&self, secret: SecretName, part: &KeyPart, commitments: &Commitments) -> Ask {
        let share_epoch = self.map.custodians.share_epoch;
        let share = ShareBytes(part.to_bytes());
        Ask::Keep { secret, share_epoch, share, commitments: commitments.to_bytes() }
    }

    /// Puts shares where they are without anybody being asked.
    fn put(&self, secret: SecretName, custody: &Custody, parts: &[KeyPart]) {
        for (holder, part) in custody.holders.iter().zip(parts) {
            self.vault(holder.node).keep(&custody.share_name(secret), part).unwrap();
        }
    }

    fn vault(&self, node: NodeId) -> Vault {
        let folder = self.dirs[&node].path().to_owned();
        Vault::new(folder, CLUSTER, node, Arc::new(Self::key(node)))
    }

    fn key(node: NodeId) -> RestKey {
        RestKey::new([node.0 as u8; 32])
    }

    /// What it had in memory is gone.
    fn restart(&mut self, node: NodeId) {
        self.cores.insert(node, Core::open(node, self.vault(node), 5));
    }

    fn once(&mut self, from: u64, to: NodeId, ask: Ask) -> Outcome {
        let context = Context { map: &self.map, from: NodeId(from), now: self.now, time: 9 };
        self.cores.get_mut(&to).unwrap().ask(&context, ask)
    }

    fn step(&mut self) -> Option<Who> {
        self.steps += 1;
        self.crash.filter(|crash| crash.at == self.steps).map(|crash| crash.who)
    }

    /// Asks a custodian; those that it gives something to are asked in its name.
    fn ask(&mut self, from: u64, to: NodeId, ask: Ask) -> Result<Answer, Died> {
        let dies = self.step();
        match dies {
            Some(Who::AskerBefore) => return Err(Died),
            Some(Who::AskedBefore) => self.restart(to),
            _ => {}
        }
        let answer = match self.once(from, to, ask) {
            Outcome::Answer(answer) => answer,
            Outcome::Deal { gifts, commitments } => {
                let mut answer = Answer::DealtOn { commitments };
                for (node, gift) in gifts {
                    // The dealer dies, and is asked no more for now.
                    match self.ask(to.0, node, gift) {
                        Ok(Answer::Kept) => {}
                        Ok(other) => answer = other,
                        Err(Died) => {
                            self.restart(to);
                            answer = Answer::Refused("gone".into());
                            break;
                        }
                    }
                }
                answer
            }
        };
        match dies {
            Some(Who::AskerAfter) => return Err(Died),
            Some(Who::AskedAfter) => {
                self.restart(to);
                return Ok(Answer::Refused("gone".into()));
            }
            _ => {}
        }
        Ok(answer)
    }

    fn propose(&mut self, command: &Command) -> Result<(), Died> {
        let dies = self.step();
        if matches!(dies, Some(Who::AskerBefore | Who::AskedBefore)) {
            return Err(Died);
        }
        // Another change of the map comes just before, and whoever hears of it looks what is not needed.
        self.sweep();
        self.must(command);
        if dies.is_some() { Err(Died) } else { Ok(()) }
    }

    fn sweep(&mut self) {
        for core in self.cores.values_mut() {
            core.sweep(&self.map, 9).unwrap();
        }
    }

    /// What the leader does, once, for every secret.
    fn deal_on(&mut self) -> Result<bool, Died> {
        let plan = self.map.custodians.clone();
        let late: Vec<_> = self
            .map
            .custodies()
            .filter(|(_, custody)| custody.share_epoch < plan.share_epoch)
            .map(|(secret, custody)| (secret, custody.clone()))
            .collect();
        for (secret, custody) in late {
            let dealt = match secret {
                SecretName::Master if plan.new_master => self.replace_master(&custody, &plan)?,
                _ => self.deal_one(secret, &custody, &plan)?,
            };
            if !dealt {
                return Ok(false);
            }
            // Whoever hears of a new map looks what is not needed any more.
            self.sweep();
        }
        Ok(true)
    }

    fn replace_master(&mut self, custody: &Custody, plan: &Custodians) -> Result<bool, Died> {
        let secret = Secret::random(&mut self.rng);
        let total = u8::try_from(plan.holders.len()).unwrap();
        let dealing = get_key_parts(&secret, plan.threshold, total, &mut self.rng).unwrap();
        for (node, part) in plan.nodes().zip(&dealing.parts) {
            let ask = self.keep(SecretName::Master, part, &dealing.commitments);
            if self.ask(1, node, ask)? != Answer::Kept {
                return Ok(false);
            }
        }
        let holders: Vec<u64> = plan.nodes().map(|node| node.0).collect();
        let sealed_for_recovery = self.seal(SecretName::Master, &secret);
        let share_epoch = plan.share_epoch;
        let new = Custody { share_epoch, sealed_for_recovery, ..dealt(&dealing, &holders) };
        let from = custody.commitments.clone();
        // It may be taken though whoever asked for that dies.
        let before = self.secrets.insert(SecretName::Master, secret);
        let done = self.propose(&Command::ReplaceMaster { from, custody: new.clone() });
        if self.map.custody != new {
            self.secrets.extend(before.map(|before| (SecretName::Master, before)));
        }
        done.map(|()| true)
    }

    fn deal_one(
        &mut self,
        secret: SecretName,
        custody: &Custody,
        plan: &Custodians,
    ) -> Result<bool, Died> {
        let (share, share_epoch) = (custody.share_name(secret), plan.share_epoch);
        let mut dealers = Vec::new();
        for holder in &custody.holders {
            if dealers.len() == usize::from(custody.threshold) {
                break;
            }
            let ask = Ask::DealOn { share, share_epoch };
            if let Answer::DealtOn { commitments } = self.ask(1, holder.node, ask)? {
                dealers.push(DealerBytes { index: holder.share, commitments });
            }
        }
        if dealers.len() < usize::from(custody.threshold) {
            return Ok(false);
        }
        let old = Commitments::from_bytes(&custody.commitments).unwrap();
        let read = super::read_dealers(&dealers).unwrap();
        let commitments = combine_commitments(&old, &read).unwrap().to_bytes();
        for node in plan.nodes() {
            let ask = Ask::Combine { from: share, share_epoch, dealers: dealers.clone() };
            if self.ask(1, node, ask)? != Answer::Kept {
                return Ok(false);
            }
        }
        let (threshold, holders) = (plan.threshold, plan.holders.clone());
        let new = Custody {
            share_epoch,
            threshold,
            holders,
            commitments,
            sealed_for_recovery: custody.sealed_for_recovery.clone(),
        };
        let from = custody.commitments.clone();
        self.propose(&Command::Reshare { secret, from, custody: new })?;
        Ok(true)
    }

    /// Every custodian that the map names has its share of every secret, and any so many of them give it.
    fn check(&self, what: &str) {
        for (secret, custody) in self.map.custodies() {
            let commitments = Commitments::from_bytes(&custody.commitments).unwrap();
            let part = |holder: &ShareHolder| {
                let found = self.vault(holder.node).find(&custody.share_name(secret));
                found.unwrap_or_else(|error| panic!("{what}: {} of {secret}: {error}", holder.node))
            };
            let parts: Vec<KeyPart> = custody.holders.iter().map(part).collect();
            let need = usize::from(custody.threshold);
            for first in 0..=parts.len() - need {
                let back = reconstruct_symmetric_key(&parts[first..first + need], &commitments);
                let back = back.unwrap_or_else(|error| panic!("{what}: {secret}: {error}"));
                let known = self.secrets[&secret].wrapping_key();
                assert_eq!(back.wrapping_key().expose(), known.expose(), "{what}: {secret}");
            }
        }
    }

    fn shares(&self) -> usize {
        let files = |dir: &TempDir| std::fs::read_dir(dir.path()).unwrap().count() - 1;
        self.dirs.values().map(files).sum()
    }

    fn set(&mut self, threshold: u8, nodes: &[u64]) {
        self.set_with(threshold, nodes, false);
    }

    fn set_with(&mut self, threshold: u8, nodes: &[u64], new_master: bool) {
        let share_epoch = self.map.custodians.share_epoch;
        let nodes = nodes.iter().copied().map(NodeId).collect();
        self.must(&Command::SetCustodians { share_epoch, threshold, nodes, now: 7, new_master });
    }

    fn events(&self, node: u64) -> Vec<AuditEvent> {
        let text =
            std::fs::read_to_string(self.dirs[&NodeId(node)].path().join("audit.log")).unwrap();
        let mut chain = Chain::anywhere();
        text.lines().map(|line| chain.next(line).unwrap().event).collect()
    }
}

/// In memory where that can be: thousands of syncs would be waited for, and nobody cuts the power here.
fn folder() -> TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let made = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    made.unwrap()
}

/// Every step of dealing three secrets on, every way to die at it, for changes of all kinds.
#[test]
fn whoever_dies_at_whatever_step_all_secrets_can_be_opened() {
    let changes: [(&str, u8, &[u64], bool); 5] = [
        ("the same get new shares", 2, &[1, 2, 3], false),
        ("one joins and more are needed", 3, &[1, 2, 3, 4], false),
        ("one leaves for another", 2, &[1, 5, 3], false),
        ("all others", 2, &[4, 5], false),
        ("the same get another master secret", 2, &[1, 2, 3], true),
    ];
    let mut died = 0;
    for (what, threshold, nodes, new_master) in changes {
        for who in [Who::AskedBefore, Who::AskedAfter, Who::AskerBefore, Who::AskerAfter] {
            for at in 1.. {
                let mut world = World::new();
                let second = Box::new(world.new_keys(2));
                let epoch = world.map.volumes[&NO].epoch;
                world.must(&Command::AddKeyEpoch { volume: NO, epoch, key_epoch: second });
                world.check("in the beginning");
                world.set_with(threshold, nodes, new_master);
                world.steps = 0;
                world.crash = Some(Crash { at, who });
                let what = format!("{what}, {who:?} dies at step {at}");
                // Whoever leads next knows what the map says.
                let mut tries = 0;
                while !matches!(world.deal_on(), Ok(true)) {
                    world.check(&what);
                    world.sweep();
                    world.check(&what);
                    tries += 1;
                    assert!(tries < 4, "{what}: it does not come to an end");
                }
                world.sweep();
                world.check(&what);
                let now = world.map.custodians.share_epoch;
                assert!(world.map.custodies().all(|(_, custody)| custody.share_epoch == now));
                assert!(!world.map.custodians.new_master, "{what}");
                assert_eq!(world.shares(), 3 * nodes.len(), "{what}: none is left of before");
                if world.steps < at {
                    break;
                }
                died += 1;
            }
        }
    }
    assert!(died > 300, "{died} deaths");
}
