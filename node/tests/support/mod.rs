//! A stand-in for a running node, for tests of what is around it. Its cluster is a file: every
//! node of a test cluster that is given the same file agrees with the others.

#![allow(dead_code, reason = "not every test uses all of it")]
#![allow(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use futures::FutureExt;
use futures::future::ready;
use smalti_node::control::{
    Answer, AuditReport, ChangeNode, Control, ControlError, CreateToken, CreateVolume,
    CustodyStatus, ErrorKind, Export, GroupFacts, Health, HolderFacts, KeyEpochFacts, KeyReport,
    MovesStatus, NewToken, NodeFacts, NodeState, NodeStatus, Output, PauseMoves, RaftStatus,
    Reason, RecoverKeys, RecoveryFacts, RecoveryReport, ReplaceNode, ResharingStatus, RevokeKeys,
    RevokedKeys, ScrubStatus, SetCustodians, SlotFacts, SlotState, StatusReport, StoreFacts,
    StoreStatus, Unlock, Unlocked, VerifyReport, VolumeDetail, VolumeFacts, VolumeKeys,
    VolumeStatus, WhatIfReport, WhyReport,
};
use smalti_node::custody::Passphrase;
use smalti_node::volume_spec::Geometry;
use smalti_storage::ids::{
    ClusterId, Epoch, GroupNo, Incarnation, KeyEpochNo, NodeId, Slot, StoreId, TokenId, VolumeId,
    VolumeNo,
};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

/// A node of a cluster of `nodes` nodes that are always up.
pub(crate) struct FakeControl {
    pub(crate) cluster: ClusterId,
    pub(crate) nodes: usize,
    pub(crate) health: Health,
    file: PathBuf,
    lock: Mutex<()>,
}

impl FakeControl {
    pub(crate) fn new(cluster: ClusterId, nodes: usize, file: &Path) -> Self {
        let file = file.to_owned();
        Self { cluster, nodes, health: Health::Ok, file, lock: Mutex::new(()) }
    }

    fn load(&self) -> Vec<VolumeFacts> {
        std::fs::read(&self.file).map_or_else(|_| vec![], |b| serde_json::from_slice(&b).unwrap())
    }

    fn save(&self, volumes: &[VolumeFacts]) {
        let text = serde_json::to_vec(volumes).unwrap();
        smalti_node::files::write_atomic(&self.file, &text, 0o644).unwrap();
    }

    fn names(&self) -> impl Iterator<Item = (NodeId, String)> {
        (1..=self.nodes as u64).map(|id| (NodeId(id), format!("n{id}")))
    }

    fn custody(&self) -> CustodyStatus {
        CustodyStatus { needed: 2, reachable: 3, total: 3 }
    }

    fn detail(&self, volume: VolumeFacts) -> VolumeDetail {
        let slots = volume.data + volume.parity;
        let slot = |slot: u8| SlotFacts {
            slot: Slot(slot),
            store: StoreId(Uuid::from_u128(u128::from(slot) + 1)),
            node: format!("n{}", slot + 1),
            state: SlotState::Insync,
            moves_to: None,
        };
        let groups = vec![GroupFacts {
            group: GroupNo(0),
            offline: false,
            slots: (0..slots).map(slot).collect(),
        }];
        VolumeDetail { volume, groups, scrub: ScrubStatus::default() }
    }

    fn create(&self, request: CreateVolume) -> Result<VolumeDetail, ControlError> {
        let _lock = self.lock.lock().unwrap();
        let geometry = Geometry::asked(request.data, request.parity, self.nodes)
            .map_err(ControlError::invalid)?;
        let mut volumes = self.load();
        if volumes.iter().any(|volume| volume.name == request.name) {
            let message = format!("there is a volume {} already", request.name);
            return Err(ControlError::new(ErrorKind::Exists, message));
        }
        let volume = VolumeFacts {
            name: request.name,
            id: VolumeId(Uuid::new_v4()),
            no: VolumeNo(volumes.len() as u32 + 1),
            size: request.size,
            data: geometry.data,
            parity: geometry.parity,
            shard_size: request.shard_size.unwrap_or(1 << 20),
            min_insync: request.min_insync.unwrap_or(geometry.data),
            read_mode: request.read_mode.unwrap_or_default(),
            health: self.health,
            epoch: Epoch(1),
            coordinator: None,
            key_epoch: KeyEpochNo(1),
        };
        volumes.push(volume.clone());
        self.save(&volumes);
        Ok(self.detail(volume))
    }

    fn delete(&self, name: &str, id: VolumeId) -> Result<(), ControlError> {
        let _lock = self.lock.lock().unwrap();
        let mut volumes = self.load();
        let found = volumes.iter().position(|volume| volume.name == name);
        let index = found.ok_or_else(|| ControlError::no_volume(name))?;
        if volumes[index].id != id {
            return Err(ControlError::new(ErrorKind::Conflict, "the name is another volume's now"));
        }
        volumes.remove(index);
        self.save(&volumes);
        Ok(())
    }
}

impl Control for FakeControl {
    fn status(&self) -> Answer<'_, StatusReport> {
        let volume = |volume: VolumeFacts| VolumeStatus {
            name: volume.name,
            health: volume.health,
            epoch: volume.epoch,
            coordinator: volume.coordinator,
            rows_behind: Some(0),
            rows_lost: 0,
            suspects: 0,
            slots_catching_up: 0,
            rows_left: 0,
            bytes_left: 0,
            rows_per_second: 0,
            rows_repaired: 0,
            seconds_left: None,
            held_back: false,
            attached: false,
            data: volume.data,
            parity: volume.parity,
            id: volume.id,
            size: volume.size,
            groups: 1,
            groups_full: 1,
            groups_offline: 0,
            scrub: ScrubStatus::default(),
            key_epochs: 1,
            keys_made: 0,
            keys_revoked: false,
        };
        // The one of n3 had something wrong.
        let store = |node: NodeId| {
            let faults = if node == NodeId(3) { 4 } else { 0 };
            vec![StoreStatus { id: StoreId(Uuid::from_u128(node.0.into())), faults }]
        };
        let report = StatusReport {
            health: self.health,
            lasting: false,
            nodes: self
                .names()
                .map(|(id, name)| NodeStatus { name, id, state: NodeState::Up, stores: store(id) })
                .collect(),
            volumes: self.load().into_iter().map(volume).collect(),
            raft: RaftStatus { leader: Some("n1".into()), term: 3 },
            custody: self.custody(),
            barred: Vec::new(),
            moves: MovesStatus::default(),
            cluster: self.cluster,
            map_version: 9,
            answered_by: "n1".into(),
        };
        ready(Ok(report)).boxed()
    }

    fn why(&self) -> Answer<'_, WhyReport> {
        let reason = Reason {
            health: self.health,
            subject: "volume v".into(),
            problem: "a slot is behind".into(),
            remedy: Some("it catches up by itself".into()),
            lasting: false,
        };
        let reasons = if self.health == Health::Ok { vec![] } else { vec![reason] };
        ready(Ok(WhyReport { health: self.health, reasons })).boxed()
    }

    fn volumes(&self) -> Answer<'_, Vec<VolumeFacts>> {
        ready(Ok(self.load())).boxed()
    }

    fn volume(&self, name: String) -> Answer<'_, VolumeDetail> {
        let found = self.load().into_iter().find(|volume| volume.name == name);
        let detail = found.map(|volume| self.detail(volume));
        ready(detail.ok_or_else(|| ControlError::no_volume(&name))).boxed()
    }

    fn create_volume(&self, request: CreateVolume) -> Answer<'_, VolumeDetail> {
        ready(self.create(request)).boxed()
    }

    fn delete_volume(&self, name: String, id: VolumeId, _force: bool) -> Answer<'_, ()> {
        ready(self.delete(&name, id)).boxed()
    }

    fn change_node(&self, name: String, change: ChangeNode) -> Answer<'_, NodeFacts> {
        async move {
            let mut nodes = self.nodes().await?;
            let lost = || ControlError::new(ErrorKind::NotFound, "there is no such node");
            let at = nodes.iter().position(|node| node.name == name).ok_or_else(lost)?;
            let mut node = nodes.swap_remove(at);
            node.weight = change.weight.unwrap_or(node.weight);
            node.domain = change.domain.unwrap_or(node.domain);
            node.slots = if change.draining == Some(true) { 0 } else { node.slots };
            Ok(node)
        }
        .boxed()
    }

    fn replace_node(&self, name: String, wish: ReplaceNode) -> Answer<'_, NodeFacts> {
        match name == wish.with {
            true => ready(Err(ControlError::invalid("itself"))).boxed(),
            false => self.change_node(name, ChangeNode::default()),
        }
    }

    fn remove_node(&self, name: String) -> Answer<'_, ()> {
        ready(Err(ControlError::invalid(format!("{name} runs")))).boxed()
    }

    fn scrub_volume(&self, name: String) -> Answer<'_, ScrubStatus> {
        let known = self.load().iter().any(|volume| volume.name == name);
        let due = ScrubStatus { groups: 1, due: 1, ..ScrubStatus::default() };
        ready(if known { Ok(due) } else { Err(ControlError::no_volume(&name)) }).boxed()
    }

    fn create_token(&self, request: CreateToken) -> Answer<'_, NewToken> {
        let token = zeroize::Zeroizing::new(format!("smalti1{}", request.name.unwrap_or_default()));
        let new = NewToken { token, id: TokenId::default(), expires: 9 };
        ready(Ok(new)).boxed()
    }

    fn pause_moves(&self, wish: PauseMoves) -> Answer<'_, MovesStatus> {
        ready(Ok(MovesStatus { paused: wish.paused, ..MovesStatus::default() })).boxed()
    }

    fn what_if(&self, stop: Vec<String>) -> Answer<'_, WhatIfReport> {
        let safe = stop.len() < 2;
        let report = WhatIfReport { stop, safe, quorum: safe, custody: safe, volumes: Vec::new() };
        ready(Ok(report)).boxed()
    }

    fn read_volume(&self, name: String, offset: u64, size: u64) -> Answer<'_, Bytes> {
        let size_of = |volume: VolumeFacts| (volume.name == name).then_some(volume.size);
        let answer = match self.load().into_iter().find_map(size_of) {
            None => Err(ControlError::no_volume(&name)),
            Some(all) if offset.checked_add(size).is_none_or(|end| end > all) => {
                Err(ControlError::invalid("beyond the volume"))
            }
            Some(_) => Ok((offset..offset + size).map(|at| at as u8).collect()),
        };
        ready(answer).boxed()
    }

    fn export_volume(&self, name: String) -> Answer<'_, Export> {
        async move {
            let size = self.volume(name.clone()).await?.volume.size;
            // A volume of that name breaks off half way.
            let given = if name == "broken" { size / 2 } else { size };
            let all = self.read_volume(name, 0, given).await?;
            let run = move |mut out: Output| {
                async move {
                    let written = out.write_all(&all).await;
                    written.map_err(|error| ControlError::new(ErrorKind::Internal, error))?;
                    Ok(given)
                }
                .boxed()
            };
            Ok(Export { size, run: Box::new(run) })
        }
        .boxed()
    }

    fn nodes(&self) -> Answer<'_, Vec<NodeFacts>> {
        let node = |(id, name): (NodeId, String)| NodeFacts {
            name,
            id,
            state: NodeState::Up,
            incarnation: Incarnation(1),
            quic: ([127, 0, 0, 1], 1).into(),
            api: ([127, 0, 0, 1], 2).into(),
            nbd: ([127, 0, 0, 1], 3).into(),
            custodian: id.0 <= 3,
            voter: true,
            weight: 100,
            domain: String::new(),
            slots: 7,
            stores: vec![StoreFacts {
                id: StoreId(Uuid::from_u128(id.0.into())),
                incarnation: Incarnation(1),
                clean: true,
                disk: None,
                faults: 0,
            }],
        };
        ready(Ok(self.names().map(node).collect())).boxed()
    }

    fn rotate_keys(&self, name: String) -> Answer<'_, VolumeKeys> {
        let found = self.load().into_iter().find(|volume| volume.name == name);
        let wanted = |volume| VolumeKeys { wanted: true, ..keys_of(volume) };
        ready(found.map(wanted).ok_or_else(|| ControlError::no_volume(&name))).boxed()
    }

    fn revoke_keys(&self, name: String, wish: RevokeKeys) -> Answer<'_, VolumeKeys> {
        let found = self.load().into_iter().find(|volume| volume.name == name);
        let through = wish.key_epoch.unwrap_or(KeyEpochNo(1));
        let revoked = Some(RevokedKeys { through, since: 1, blocks: None });
        let keys = |volume| VolumeKeys { wanted: true, revoked, ..keys_of(volume) };
        ready(found.map(keys).ok_or_else(|| ControlError::no_volume(&name))).boxed()
    }

    fn set_custodians(&self, wish: SetCustodians) -> Answer<'_, KeyReport> {
        match wish.threshold {
            Some(0 | 1) => {
                let text = "a threshold of less than 2 is none";
                ready(Err(ControlError::invalid(text.to_owned()))).boxed()
            }
            _ => self.keys(),
        }
    }

    fn verify_keys(&self, without: Vec<String>) -> Answer<'_, VerifyReport> {
        let (custodians, secrets) = (Vec::new(), Vec::new());
        let good = without.len() < 2;
        ready(Ok(VerifyReport { good, without, custodians, secrets })).boxed()
    }

    fn audit_keys(&self, node: Option<String>) -> Answer<'_, Vec<AuditReport>> {
        let report = |node| AuditReport { node, problem: None, entries: Vec::new(), head: None };
        ready(Ok(node.into_iter().map(report).collect())).boxed()
    }

    fn unlock(&self, wish: Unlock) -> Answer<'_, Unlocked> {
        let right: Passphrase = serde_json::from_str("\"six random words\"").unwrap();
        let answer = match wish.passphrase == right {
            true => Ok(Unlocked { was_locked: true }),
            false => Err(ControlError::invalid("the passphrase is wrong")),
        };
        ready(answer).boxed()
    }

    fn keys(&self) -> Answer<'_, KeyReport> {
        let node = |share: u8| format!("n{share}");
        let holder = |share| HolderFacts {
            node: node(share),
            share,
            reachable: true,
            lacking: 0,
            barred: None,
        };
        let report = KeyReport {
            custody: self.custody(),
            holders: (1..=3).map(holder).collect(),
            resharing: ResharingStatus { share_epoch: 1, ..ResharingStatus::default() },
            recovery: Some(RecoveryFacts { needed: 3, total: 5 }),
            volumes: self.load().into_iter().map(keys_of).collect(),
        };
        ready(Ok(report)).boxed()
    }

    fn recover_keys(&self, wish: RecoverKeys) -> Answer<'_, RecoveryReport> {
        let shares = wish.shares.len();
        if shares < 3 {
            let text = format!("{shares} recovery shares are too few: 3 are needed");
            return ready(Err(ControlError::invalid(text))).boxed();
        }
        let report = RecoveryReport {
            check: wish.check,
            opened: 1,
            problems: Vec::new(),
            dealt: u32::from(!wish.check),
            share_epoch: 2,
            custodians: wish.nodes.unwrap_or_default(),
        };
        ready(Ok(report)).boxed()
    }
}

fn keys_of(volume: VolumeFacts) -> VolumeKeys {
    let no = KeyEpochNo(1);
    let epoch = KeyEpochFacts {
        no,
        timestamp: 1_700_000_000,
        sealed: 0,
        needed: 2,
        total: 3,
        blocks: None,
    };
    VolumeKeys {
        volume: volume.name,
        id: volume.id,
        current: volume.key_epoch,
        wanted: false,
        revoked: None,
        epochs: vec![epoch],
        resealing: None,
    }
}
