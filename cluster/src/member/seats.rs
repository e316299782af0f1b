//! Who coordinates which volume.
//!
//! Every node runs the coders of the volumes whose seat the map gives it. The Raft leader fills
//! seats that are empty or whose holder it finds dead or restarted itself; a node whose client
//! wants a volume asks the holder to hand it over, which it does when nobody uses it there.

use super::Member;
use super::govern::within;
use super::links::Links;
use super::member_inner::Inner;
use super::outlook::Outlook;
use super::slow::SlowStores;
use crate::clock;
use crate::coder::{self, CoderArgs, CoderHandle, CoderMsg, VolumeRepairs};
use crate::fabric::service;
use crate::shard_store::{SlowDisk, slow_disks};
use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use smalti_map::reach::{HalfHeard, reaches_less};
use smalti_map::view::MapView;
use smalti_map::{Command, Coordinator, Group, Volume};
use smalti_net::Service;
use smalti_rowcommit::CoordinatorConfig;
use smalti_rowcommit::coordinator::Phase;
use smalti_rowcommit::governor::QUIET_EVERY;
use smalti_storage::ids::{Epoch, Incarnation, KeyEpochNo, NodeId, StoreId, VolumeNo};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// How often the leader looks at the seats.
const GOVERN_EVERY: Duration = Duration::from_millis(100);

/// How long a call about a seat may take.
const SEAT_TIMEOUT: Duration = Duration::from_secs(1);

/// Between two looks at the map while a seat is changing.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long a leader that gives way waits for another one: longer than the leases of its voters, but for
/// those with places beyond twenty. If it is in vain, it is tried again later.
pub(super) const GIVE_WAY: Duration = Duration::from_secs(3);

/// How long a proposal of the leader's may take.
const ELECT_PATIENCE: Duration = Duration::from_millis(800);

/// Who serves a volume.
#[derive(Clone, Debug)]
pub enum Seat {
    /// This node; here is the coder.
    Mine(CoderHandle),
    /// Another node, for clients of its own.
    Theirs(NodeId),
}

/// Why nobody does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SeatError {
    /// No such volume.
    #[error("no such volume")]
    NoVolume,
    /// The cluster could not settle who coordinates in time.
    #[error("no coordinator for the volume: {0}")]
    Unsettled(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ask {
    /// To the holder: let this node have the seat.
    Handover { volume: VolumeNo, to: NodeId, incarnation: Incarnation },
    /// To the leader: the holder is dead, I would take the seat.
    Claim { volume: VolumeNo, epoch: Epoch, to: NodeId, incarnation: Incarnation },
    /// To the holder: how does the volume stand?
    Progress { volume: VolumeNo },
    /// To a voter: this leader gives way to one of them.
    Lead { than: NodeId, next: NodeId },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// Proposed; the map will show it.
    Granted,
    /// It stays here: clients of this node use the volume, or fewer of its stores are in reach of the
    /// one that asks.
    Kept,
    /// Not the holder, or the holder is alive, or not the leader.
    No,
    /// How the volume stands.
    Progress(VolumeProgress),
}

/// How a volume stands, as its coordinator knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeProgress {
    /// The coordinator serves.
    pub active: bool,
    /// Rows that some slot that is out of sync has yet to catch up on.
    pub rows_behind: u64,
    /// Rows of which something can not be read, as far as it was met.
    pub rows_lost: u64,
    /// Stores that may have forgotten something in a crash, and were not compared yet.
    pub suspects: u64,
    /// Stores in sync that do not answer just now.
    pub unheard: u64,
    /// Slots that catch up.
    pub learners: u64,
    /// Rows that they lack yet, about.
    pub rows_left: u64,
    /// Rows a second that they get.
    pub rows_per_second: u64,
    /// Rows that slots have got since the coordinator began.
    pub rows_repaired: u64,
    /// Slots that lack nothing but rows that can not be made from the stores that answer.
    pub stuck: u64,
    /// Repairs get less than they could, for the sake of clients.
    pub held_back: bool,
    /// Clients are attached, at whichever node.
    pub in_use: bool,
    /// What was found of older key epochs, while there are some.
    pub keys: KeyProgress,
}

/// How far records of older key epochs are sealed anew, as the last look at all blocks has found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyProgress {
    /// Blocks under each key epoch when they were listed.
    pub counted: Vec<(KeyEpochNo, u64)>,
    /// Blocks of which nobody could tell: their slot is out of sync, say.
    pub unknown: u64,
    /// Older contents that snapshots hold.
    pub held: u64,
    /// Blocks that were sealed anew.
    pub sealed: u64,
    /// Blocks that could not be: too few of their shards can be read.
    pub failed: u64,
    /// Groups that could not be listed: too much of them is out of reach, or has yet to be compared.
    pub unlisted: u64,
    /// What it waits for, if it does not go on.
    pub why: Option<String>,
}

/// Version 1 did not tell of lost rows, version 2 not of suspects, version 3 not how far it is,
/// version 4 could not ask to lead, version 5 did not tell of clients, version 6 not of keys.
const VERSION: u8 = 7;

fn encode(message: &impl Serialize) -> Bytes {
    postcard::to_extend(message, vec![VERSION])
        .expect("a vector grows and every field is serialisable")
        .into()
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Option<T> {
    match bytes.split_first()? {
        (&VERSION, body) => postcard::from_bytes(body).ok(),
        _ => None,
    }
}

/// Answers calls about seats.
#[derive(Debug)]
pub(super) struct SeatService {
    pub(super) member: Weak<Inner>,
}

impl Service for SeatService {
    fn call(&self, _from: NodeId, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(async move {
            let answer = match (self.member.upgrade(), decode(&request)) {
                (Some(inner), Some(ask)) => Member { inner }.answer_seat(ask).await,
                _ => Answer::No,
            };
            encode(&answer)
        })
    }
}

impl Member {
    /// Finds out who serves a volume, and takes its seat over for a client here when it is free.
    ///
    /// # Errors
    /// When it is not settled before `patience` is over.
    pub async fn take_seat(&self, volume: VolumeNo, patience: Duration) -> Result<Seat, SeatError> {
        let deadline = Instant::now() + patience;
        loop {
            let map = self.map();
            let entry = map.volumes.get(&volume).ok_or(SeatError::NoVolume)?;
            let why = match self.seat_now(&map, entry).await {
                Ok(seat) => return Ok(seat),
                Err(why) => why,
            };
            if Instant::now() >= deadline {
                return Err(SeatError::Unsettled(why));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn seat_now(&self, map: &MapView, volume: &Volume) -> Result<Seat, String> {
        let me = self.node();
        let Some(incarnation) = self.incarnation() else {
            return Err("this node has not joined the cluster since it started".into());
        };
        match volume.coordinator {
            Some(seat) if seat == (Coordinator { node: me, incarnation }) => {
                self.coder(volume.no).map(Seat::Mine).ok_or_else(|| "taking the seat".into())
            }
            Some(seat) if seat.node != me && self.holds(map, seat) => {
                let ask = Ask::Handover { volume: volume.no, to: me, incarnation };
                match self.ask_seat(seat.node, &ask).await {
                    Ok(Answer::Kept) => Ok(Seat::Theirs(seat.node)),
                    Ok(_) => Err(format!("waiting for {} to hand over", seat.node)),
                    Err(why) => Err(format!("{} does not answer: {why}", seat.node)),
                }
            }
            _ => {
                let epoch = volume.epoch;
                let ask = Ask::Claim { volume: volume.no, epoch, to: me, incarnation };
                let Some(leader) = self.raft().metrics().leader else {
                    return Err("the cluster has no leader: too few nodes are up".into());
                };
                let answer = if leader == me {
                    Ok(self.answer_seat(ask).await)
                } else {
                    self.ask_seat(leader, &ask).await
                };
                match answer {
                    Ok(_) => Err("electing a coordinator".into()),
                    Err(why) => Err(format!("leader {leader} does not answer: {why}")),
                }
            }
        }
    }

    /// Whether a seat is held by a living process, as far as this node can tell.
    fn holds(&self, map: &MapView, seat: Coordinator) -> bool {
        let registered = map.nodes.get(&seat.node).map(|node| node.incarnation);
        registered == Some(seat.incarnation)
            && self.beats().silent_for(seat.node) < self.inner.seat_suspect_after
            && !self.beats().is_outside(seat.node)
    }

    pub(super) async fn ask_seat(&self, node: NodeId, ask: &Ask) -> Result<Answer, String> {
        let call = self.fabric().call(node, service::SEATS, encode(ask), SEAT_TIMEOUT).await;
        let bytes = call.map_err(|error| error.to_string())?;
        decode(&bytes).ok_or_else(|| "malformed answer".into())
    }

    pub(super) async fn answer_seat(&self, ask: Ask) -> Answer {
        let map = self.map();
        match ask {
            Ask::Handover { volume, to, incarnation } => {
                let Some(entry) = map.volumes.get(&volume) else { return Answer::No };
                let mine = entry.coordinator.map(|seat| seat.node) == Some(self.node());
                if !mine || to == self.node() {
                    return Answer::No;
                }
                // As the leader judges it, or one would undo what the other does.
                let leader = self.raft().metrics().leader.unwrap_or(self.node());
                let views = within(leader, self.beats().views());
                if self.in_use(volume) || reaches_less(&map, entry, &views, to, self.node()) {
                    return Answer::Kept;
                }
                if let Some(coder) = self.coder(volume) {
                    coder.release().await;
                }
                self.elect(volume, entry.epoch, to, incarnation).await
            }
            Ask::Progress { volume } => {
                let Some(coder) = self.coder(volume) else { return Answer::No };
                let Some(status) = coder.status().await else { return Answer::No };
                Answer::Progress(VolumeProgress {
                    active: status.phase == Phase::Active,
                    rows_behind: status.stats.rows_behind,
                    rows_lost: status.stats.rows_lost,
                    suspects: status.stats.suspects,
                    unheard: status.stats.unheard,
                    learners: status.stats.learners,
                    rows_left: status.stats.rows_left,
                    rows_per_second: status.rows_per_second,
                    rows_repaired: status.stats.rows_repaired,
                    stuck: status.stats.stuck,
                    held_back: status.stats.held_back,
                    in_use: self.in_use(volume),
                    keys: self.lock_keys().get(&volume).cloned().unwrap_or_default(),
                })
            }
            Ask::Lead { than, next } => {
                let raft = self.raft().clone();
                raft.favour(next, GIVE_WAY);
                if next == self.node() {
                    self.inner.tasks.spawn(async move {
                        let won = raft.campaign(than, GIVE_WAY).await;
                        tracing::info!(?won, "campaigned, as the leader wanted");
                    });
                }
                Answer::Granted
            }
            Ask::Claim { volume, epoch, to, incarnation } => {
                let leads = self.raft().metrics().leader == Some(self.node());
                match map.volumes.get(&volume) {
                    Some(entry) if leads && entry.epoch == epoch && self.is_vacant(&map, entry) => {
                        self.elect(volume, epoch, to, incarnation).await
                    }
                    _ => Answer::No,
                }
            }
        }
    }

    /// How a volume stands, asked of its coordinator; `None` when that does not answer.
    pub async fn progress(&self, volume: &Volume) -> Option<VolumeProgress> {
        let seat = volume.coordinator?;
        let ask = Ask::Progress { volume: volume.no };
        let answer = if seat.node == self.node() {
            self.answer_seat(ask).await
        } else {
            self.ask_seat(seat.node, &ask).await.ok()?
        };
        match answer {
            Answer::Progress(progress) => Some(progress),
            _ => None,
        }
    }

    /// Elects this node anew, so that a new gateway gets a generation of its own.
    pub async fn renew_seat(&self, volume: &Volume) -> bool {
        let Some(incarnation) = self.incarnation() else { return false };
        let answer = self.elect(volume.no, volume.epoch, self.node(), incarnation).await;
        answer == Answer::Granted
    }

    pub(super) async fn elect(
        &self,
        volume: VolumeNo,
        epoch: Epoch,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Answer {
        let command = Command::Elect { volume, epoch, node, incarnation };
        match self.raft().propose_within(command, ELECT_PATIENCE).await {
            Ok(smalti_map::Applied::Epoch { .. }) => {
                tracing::info!(%volume, %node, "coordinator elected");
                Answer::Granted
            }
            Ok(other) => {
                tracing::debug!(%volume, ?other, "election refused");
                Answer::No
            }
            Err(error) => {
                tracing::warn!(%volume, %error, "election got no answer");
                Answer::No
            }
        }
    }

    /// Whether the leader may fill the seat: empty, of a past process, or of a silent node.
    pub(super) fn is_vacant(&self, map: &MapView, volume: &Volume) -> bool {
        match volume.coordinator {
            None => true,
            Some(seat) => !self.holds(map, seat),
        }
    }

    /// On the leader: fills vacant seats. Beside what follows the map, for each may take a while, and
    /// stores and coders here have to hear of the others meanwhile.
    pub(super) async fn keep_governed(self) {
        let mut every = tokio::time::interval(GOVERN_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.inner.stop.clone();
        let mut outlook = Outlook::default();
        while stop.run_until_cancelled(every.tick()).await.is_some() {
            self.govern(&mut outlook).await;
        }
    }

    /// Runs coders for the seats of this node.
    pub(super) async fn keep_seats(self) {
        let mut map = self.raft().watch();
        let mut every = tokio::time::interval(GOVERN_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.inner.stop.clone();
        let mut slow = SlowStores::default();
        let mut links = Links::default();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = map.changed() => if changed.is_err() { return },
                _ = every.tick() => {
                    self.run_own_seats(&self.map()).await;
                    self.look_for_slow_disks(&mut slow);
                    self.look_for_broken_links(&mut links);
                    continue;
                }
            }
            let now = map.borrow_and_update().clone();
            self.follow_map(&now).await;
        }
    }

    fn look_for_slow_disks(&self, slow: &mut SlowStores) {
        let now = slow.note(&slow_disks(&self.beats().paces()), self.inner.slow_out);
        self.inner.slow.send_if_modified(|known| {
            let changed = !known.keys().eq(now.keys());
            if changed {
                *known = now;
            }
            changed
        });
    }

    /// Disks that are, or were of late, far slower than others, with what was seen of them then.
    pub fn slow_disks(&self) -> Vec<SlowDisk> {
        self.inner.slow.borrow().values().copied().collect()
    }

    fn look_for_broken_links(&self, links: &mut Links) {
        let mut views = self.beats().views();
        // One that has not joined may have heard nobody yet, or say what this one does not understand.
        views.retain(|node, _| self.beats().start_of(*node).is_some());
        let now = links.note(&views);
        self.inner.half_heard.send_if_modified(|known| {
            let changed = *known != now;
            if changed {
                *known = now;
            }
            changed
        });
    }

    /// Nodes that some hear and others do not, and have not for a while: links to them are broken.
    pub fn half_heard(&self) -> BTreeMap<NodeId, HalfHeard> {
        self.inner.half_heard.borrow().clone()
    }

    async fn follow_map(&self, map: &MapView) {
        self.inner.book.adopt(map);
        self.fabric().forget_strangers();
        for store in &self.inner.store_actors {
            // The actor ends only with the process.
            let _ = store.cast(crate::shard_store::ShardStoreMsg::Map(Arc::clone(map)));
        }
        // Likewise.
        let _ = self.inner.custodian.cast(crate::custodian::CustodianMsg::Map(Arc::clone(map)));
        let Some(me) = self.run_own_seats(map).await else { return };
        let mut gone = Vec::new();
        for coder in self.coders() {
            // Told even when the seat is lost: that is how it learns to fail what is in flight.
            let _ = coder.actor().cast(CoderMsg::Map(Arc::clone(map)));
            let seat = map.volumes.get(&coder.volume()).and_then(|volume| volume.coordinator);
            if seat != Some(me) {
                gone.push(coder.volume());
            }
        }
        for no in gone {
            self.drop_coder(no);
        }
    }

    /// Starts the coders of this node's seats that do not run. Looked at again and again and not only
    /// with a new map: the node may be elected before it knows that it has joined, and a coder may
    /// fail to start. None: the node has not joined.
    async fn run_own_seats(&self, map: &MapView) -> Option<Coordinator> {
        let me = Coordinator { node: self.node(), incarnation: self.incarnation()? };
        for (no, volume) in &map.volumes {
            if volume.coordinator == Some(me) && self.coder(*no).is_none() {
                self.start_coder(me, map, *no).await;
            }
        }
        Some(me)
    }

    /// Stores of a volume whose nodes have fallen silent, and for how long. Of one that has not been
    /// heard of since this process began nothing is known: both may have been started together.
    fn unheard(&self, map: &MapView, volume: VolumeNo) -> Vec<(StoreId, Duration)> {
        let groups = map.volumes.get(&volume).into_iter().flat_map(|volume| &volume.groups);
        let stores: BTreeSet<StoreId> = groups.flat_map(Group::members).collect();
        let silent = stores.into_iter().filter_map(|store| {
            let node = map.node_of(store).filter(|node| self.beats().ever_heard(*node))?;
            let silent = self.beats().silent_for(node);
            (silent > self.inner.suspect_after).then_some((store, silent))
        });
        silent.collect()
    }

    async fn start_coder(&self, me: Coordinator, map: &MapView, volume: VolumeNo) {
        let mut config = CoordinatorConfig::new(me, volume);
        config.lease = self.inner.lease;
        config.suspect_after = self.inner.suspect_after;
        config.power_patience = self.inner.power_patience;
        config.phase = clock::phase(QUIET_EVERY);
        let (tell, told) = watch::channel(VolumeRepairs::default());
        let args = CoderArgs {
            config,
            unheard: self.unheard(map, volume),
            transport: self.fabric().clone(),
            local: Arc::clone(&self.inner.stores),
            map: Arc::new(self.raft().clone()),
            stopping: self.inner.stopping.clone(),
            sessions: Arc::clone(&self.inner.sessions),
            tasks: self.inner.tasks.clone(),
            scrub_every: self.inner.scrub_every,
            slow: self.inner.slow.subscribe(),
            told: tell,
        };
        match coder::start(args).await {
            Ok(actor) => self.add_coder(CoderHandle::new(volume, actor, told)),
            Err(error) => tracing::error!(%volume, %error, "coder did not start"),
        }
    }
}
