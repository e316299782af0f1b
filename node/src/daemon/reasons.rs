//! Why the health is not `ok`: what is the matter, and what to do about it, one sentence each. And what goes
//! on meanwhile, which is no reason.

mod keys;
#[cfg(test)]
pub(super) mod tests;

use super::links;
use super::renewal::Standing;
use super::report::Report;
use crate::control::{Health, Reason};
use smalti_cluster::clock;
use smalti_cluster::shard_store::Fullness;
use smalti_map::plan::{Cause, Plan, Stuck};
use smalti_map::{Group, Volume};
use smalti_storage::ids::{Incarnation, NodeId, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

#[derive(Default)]
struct Reasons(Vec<Reason>);

impl Reasons {
    /// Something that ends by itself, or when what is away comes back.
    fn add(&mut self, health: Health, subject: String, problem: String, remedy: &str) {
        self.push(health, subject, problem, remedy, false);
    }

    /// Something that only an operator can end.
    fn add_lasting(&mut self, health: Health, subject: String, problem: String, remedy: &str) {
        self.push(health, subject, problem, remedy, true);
    }

    fn push(
        &mut self,
        health: Health,
        subject: String,
        problem: String,
        remedy: &str,
        lasting: bool,
    ) {
        let remedy = (!remedy.is_empty()).then(|| remedy.to_owned());
        self.0.push(Reason { health, subject, problem, remedy, lasting });
    }

    fn worst_first(mut self) -> Vec<Reason> {
        self.0.sort_by_key(|reason| std::cmp::Reverse(reason.health));
        self.0
    }
}

const CERTIFICATE_REMEDY: &str = "bring up a node whose `node.toml` names `authority`, with the key in that \
    folder: it is renewed by itself then; never empty this node's folder for it";

/// What is wrong with this node's certificate, once it should have been renewed.
fn certificate_problem(standing: &Standing, now: SystemTime) -> Option<String> {
    let why = standing.failure.as_deref().unwrap_or("it is being tried");
    if standing.is_expired(now) {
        return Some(format!(
            "its certificate has expired: the others take no connection of it until it is renewed, \
             which failed at last: {why}"
        ));
    }
    if standing.is_early(now) {
        return Some(format!(
            "its certificate holds only later, for it was signed while a clock was ahead: the others take no \
             connection of it until it is renewed, which failed at last: {why}"
        ));
    }
    let left = standing.validity.not_after.duration_since(now).unwrap_or_default();
    standing.is_late(now).then(|| {
        let seconds = left.as_secs();
        format!("its certificate expires in {seconds} s and was not renewed: {why}")
    })
}

impl Report {
    /// Nobody takes this node's connections once its certificate has expired: that others do not answer is
    /// not for them to mend then.
    fn or_first<'a>(&self, remedy: &'a str) -> &'a str {
        let now = SystemTime::now();
        let is_out = |standing: &Standing| standing.is_expired(now) || standing.is_early(now);
        match self.certificate.as_ref().is_some_and(is_out) {
            true => "renew this node's certificate first",
            false => remedy,
        }
    }

    pub(super) fn reasons(&self) -> Vec<Reason> {
        let mut reasons = Reasons::default();
        let now = SystemTime::now();
        if let Some(standing) = &self.certificate
            && let Some(problem) = certificate_problem(standing, now)
        {
            let subject = format!("node {}", self.node_name(self.me));
            reasons.add_lasting(Health::Degraded, subject, problem, CERTIFICATE_REMEDY);
        }
        if self.leader().is_none() {
            let (up, all) = self.voters();
            let (problem, remedy) = if self.has_majority() {
                ("no leader: an election is under way".to_owned(), "it ends by itself".to_owned())
            } else {
                let away = self.raft.voters.difference(&self.up).copied();
                let needed = all / 2 + 1;
                let problem =
                    format!("no leader: {up} of {all} voters answer, {needed} are needed");
                (problem, self.bring_back(away))
            };
            reasons.add(Health::Stalled, "raft".into(), problem, self.or_first(&remedy));
        }
        if !self.caught_up {
            let problem = "this node has not caught up with the cluster since it started";
            let remedy = self.or_first("it does as soon as more than half of the nodes are up");
            let subject = format!("node {}", self.node_name(self.me));
            reasons.add(Health::Stalled, subject, problem.into(), remedy);
        }
        let custody = self.custody_status();
        if custody.reachable < custody.needed {
            let holders = self.map.custody.holders.iter().map(|holder| holder.node);
            let (start, lasting) = self.give_again(holders);
            let problem = format!(
                "sealed: {} of {} custodians reachable, of {} in all: no volume can be attached anew",
                custody.reachable, custody.needed, custody.total
            );
            let remedy = self.or_first(&start);
            reasons.push(Health::Degraded, "custody".into(), problem, remedy, lasting);
        } else if custody.reachable == custody.needed && custody.reachable < custody.total {
            let problem = format!(
                "{} of {} custodians reachable, and as many are needed: without one more of them no volume \
                 could be attached anew",
                custody.reachable, custody.total
            );
            let holders = self.map.custodians.nodes();
            let (start, lasting) = self.give_again(holders);
            let remedy = self.or_first(&start);
            reasons.push(Health::Degraded, "custody".into(), problem, remedy, lasting);
        }
        for (node, problem) in self.barred_custodians() {
            let subject = format!("node {}", self.node_name(node));
            let remedy = "its shares are not lost, and count again by themselves once that is done";
            reasons.add_lasting(Health::Degraded, subject, problem, self.or_first(remedy));
        }
        for (node, count) in &self.lacking {
            let problem = format!("{count} of its key shares are missing or do not open");
            let remedy = "all custodians get new ones by themselves, as soon as all of them answer";
            let subject = format!("node {}", self.node_name(*node));
            reasons.add(Health::Degraded, subject, problem, self.or_first(remedy));
        }
        if let Some(why) = &self.custody_problem {
            let left = self.resharing().left;
            let problem = format!("{left} secrets are yet to be dealt on to the custodians: {why}");
            let remedy =
                "it is tried again by itself; `smalti key custodians` names others if one is lost";
            reasons.add(Health::Degraded, "custody".into(), problem, self.or_first(remedy));
        }
        self.revoked_reasons(&mut reasons);
        for (id, node) in &self.map.nodes {
            // Of itself this node tells whether it has caught up.
            if *id != self.me && !self.up.contains(id) && !self.is_cut_off(*id) {
                let (problem, remedy) = match node.incarnation {
                    _ if self.joining.contains(id) => (
                        "it answers, and has not joined the cluster since it started",
                        "it does as soon as more than half of the nodes are in its reach, and nothing counts \
                         on its store any more if that is damaged; if not, see its log",
                    ),
                    Incarnation(0) => ("it has never started", "start it, or remove it"),
                    _ if node.draining && self.slots_on(*id) == 0 => (
                        "it was emptied and does not run",
                        "`smalti node remove` takes it out of the cluster, or start it again",
                    ),
                    _ => ("it does not answer", "start it again; it catches up by itself"),
                };
                let subject = format!("node {}", node.name);
                reasons.add(Health::Degraded, subject, problem.into(), self.or_first(remedy));
            }
        }
        for (id, seen) in links::once_each(&self.half_heard) {
            let name = |node| self.node_name(node);
            let (problem, remedy) = links::problem(id, &seen, self.me, name);
            let subject = format!("node {}", self.node_name(id));
            reasons.add(Health::Degraded, subject, problem, self.or_first(&remedy));
        }
        for (id, node) in &self.map.nodes {
            if node.recruit.is_some() && self.up.contains(id) {
                let problem = "it came back without its metadata log: it does not vote until the \
                    others have admitted it anew";
                let subject = format!("node {}", node.name);
                reasons.add(Health::Degraded, subject, problem.into(), "it ends by itself");
            }
        }
        if self.wanted_voters != self.raft.voters || self.raft.joint {
            let (problem, remedy) = (
                "other nodes are to vote than do: until then fewer failures may be borne"
                    .to_owned(),
                "it ends by itself; until then keep the nodes up",
            );
            reasons.add(Health::Degraded, "raft".into(), problem, remedy);
        }
        for (store, node) in self.missing() {
            let subject = format!("node {}", self.node_name(node));
            let problem = format!(
                "it runs without store {store}, which holds slots: it is starting, or its disk was \
                 replaced or emptied"
            );
            let remedy = "what the store held is rebuilt on the one that runs; put it back if it is not lost";
            reasons.add(Health::Degraded, subject, problem, remedy);
        }
        for volume in self.map.volumes.values() {
            let subject = format!("volume {}", volume.name);
            match self.volume_health(volume) {
                Health::Ok => {}
                Health::Stalled => {
                    let (problem, remedy) = self.why_stalled(volume);
                    reasons.add(Health::Stalled, subject, problem, self.or_first(&remedy));
                }
                Health::Degraded => self.why_degraded(volume, &mut reasons),
            }
            if self.serves_in_part(volume) {
                self.why_degraded(volume, &mut reasons);
            }
        }
        self.fault_reasons(&mut reasons);
        self.moves_reasons(&mut reasons);
        self.disk_reasons(&mut reasons);
        reasons.worst_first()
    }

    /// Whether some groups of a volume are offline, and the others go on.
    fn serves_in_part(&self, volume: &Volume) -> bool {
        volume.offline().count() > 0 && self.caught_up && self.is_served(volume)
    }

    /// What a volume that is served lacks.
    fn why_degraded(&self, volume: &Volume, reasons: &mut Reasons) {
        let subject = format!("volume {}", volume.name);
        let lost = self.lost(volume);
        if lost > 0 {
            let problem = format!(
                "{lost} rows are lost or rotten in more slots than it has parity for: \
                 their blocks give errors"
            );
            let remedy = "bring back what is out; else see docs/trouble.md";
            reasons.add_lasting(Health::Degraded, subject.clone(), problem, remedy);
        }
        let stuck = self.stuck(volume);
        if stuck > 0 {
            let problem = format!(
                "{stuck} slots lack rows that can not be made from the stores that answer: a record that is needed \
                 for them is rotten or gone"
            );
            let remedy = "start what is away, which may have it; else see docs/trouble.md";
            reasons.add(Health::Degraded, subject.clone(), problem, remedy);
        }
        let suspects = self.suspects(volume);
        if suspects > 0 {
            let problem = format!(
                "{suspects} stores may have forgotten something in a crash, and are \
                 compared with the others"
            );
            let remedy = "it ends by itself; until then keep the other nodes up";
            reasons.add(Health::Degraded, subject.clone(), problem, remedy);
        }
        let unheard = self.unheard(volume);
        if unheard > 0 {
            let problem = format!(
                "{unheard} stores in sync do not answer its coordinator: they are \
                 starting, or are taken out of sync in a moment"
            );
            let remedy = "it ends by itself; until then keep the other nodes up";
            reasons.add(Health::Degraded, subject.clone(), problem, remedy);
        }
        // Those that are offline are told of by themselves.
        let all = volume.all_slots();
        let out = volume.groups.iter().filter(|group| group.insync != all).count();
        let behind = match self.behind(volume) {
            Some(0) | None if out == 0 => return,
            None => "how many rows are behind shows when it is back".to_owned(),
            Some(rows) => format!("{rows} rows are behind"),
        };
        let groups = volume.groups.len();
        let problem = match out {
            0 => behind,
            _ => format!("{out} of {groups} groups miss a slot, {behind}"),
        };
        let away = self.away_out_of_sync(volume);
        let remedy = match away.is_empty() {
            true if self.map.moves_paused => {
                "stores that are up catch up by themselves; what has to be rebuilt \
                elsewhere waits for `smalti moves resume`"
                    .to_owned()
            }
            true => "stores that are up catch up by themselves".to_owned(),
            false => {
                format!("{}: stores catch up by themselves once they are up", self.bring_back(away))
            }
        };
        reasons.add(Health::Degraded, subject, problem, self.or_first(&remedy));
    }

    /// Why nothing goes on, and what would help.
    fn why_stalled(&self, volume: &Volume) -> (String, String) {
        let live = self.fewest_live(volume);
        let few = self.caught_up && volume.coordinator.is_some() && live < volume.min_insync;
        let offline = volume.offline().count();
        if self.serves_in_part(volume) {
            let problem = format!(
                "{offline} of {} groups are offline: more of their stores in sync are away than they can do \
                 without; reads and writes of them wait, the others are served and healed",
                volume.groups.len()
            );
            return (problem, self.what_brings_online(volume));
        }
        let problem = match (&volume.coordinator, volume.activated) {
            _ if !self.caught_up => "how it is, is not known here yet".to_owned(),
            (None, _) => "it has no coordinator".to_owned(),
            (Some(_), active) if few => {
                let wait = match (live < volume.data, active) {
                    (true, _) => "both wait",
                    (false, true) => "writes wait until another one is up to date",
                    (false, false) => {
                        "both wait for the others, for a moment, or after a power cut until enough are \
                         back that one of them remembers everything"
                    }
                };
                format!(
                    "{live} of {} slots of a group are in sync on nodes that answer; reads need {} and \
                     writes {}: {wait}",
                    volume.slots(),
                    volume.data,
                    volume.min_insync
                )
            }
            (Some(_), false) if self.all_in_sync(volume) => "its coordinator is taking over".to_owned(),
            (Some(_), false) => "its coordinator is taking over and waits for stores in sync that do not \
                answer: for a moment, or after a power cut, when one of them may be the only one that \
                remembers, for as long as power_timeout_ms says"
                .to_owned(),
            (Some(_), true) => "its coordinator does not answer".to_owned(),
        };
        let have_it = self.down_in_sync(volume);
        let seat = volume.coordinator.map(|seat| seat.node);
        let remedy = match seat.filter(|seat| self.is_cut_off(*seat)) {
            _ if few && !have_it.is_empty() => {
                format!(
                    "{}: they were in sync; it goes on by itself then",
                    self.bring_back(have_it)
                )
            }
            Some(seat) => {
                format!("{}, or ask another node: it may go on there", self.bring_back([seat]))
            }
            None => "it goes on by itself once enough nodes are up and up to date".to_owned(),
        };
        (problem, remedy)
    }

    /// Whose stores offline groups need, as far as they do not run.
    fn what_brings_online(&self, volume: &Volume) -> String {
        let offline = volume.groups.iter().filter(|group| group.offline);
        let stores = offline.flat_map(Group::insync_stores);
        let away: BTreeSet<StoreId> =
            stores.filter(|store| !self.running.contains(store)).collect();
        let nodes: BTreeSet<NodeId> =
            away.iter().filter_map(|store| self.map.node_of(*store)).collect();
        // A node that runs without it has another disk, or an empty one.
        let (without, down): (BTreeSet<NodeId>, BTreeSet<NodeId>) =
            nodes.into_iter().partition(|node| self.up.contains(node));
        let mut steps = Vec::new();
        if !down.is_empty() {
            steps.push(self.bring_back(down));
        }
        if !without.is_empty() {
            steps.push(format!("put the disk back that {} had", self.names_of(without)));
        }
        match steps.is_empty() {
            true => "it goes on by itself: what was missing is back".to_owned(),
            false => format!(
                "{}: it goes on by itself then; if the disks are lost, see docs/trouble.md",
                steps.join(", and ")
            ),
        }
    }

    /// Nodes that do not answer and whose slots are in sync in a group that has too few.
    fn down_in_sync(&self, volume: &Volume) -> BTreeSet<NodeId> {
        let short = |group: &&Group| self.live_in(group) < volume.min_insync;
        let stores = volume.groups.iter().filter(short).flat_map(Group::insync_stores);
        let nodes = stores.filter_map(|store| self.map.node_of(store));
        nodes.filter(|node| !self.up.contains(node)).collect()
    }

    /// Nodes that do not answer and have slots that are out of sync, and that no other node is to have.
    fn away_out_of_sync(&self, volume: &Volume) -> BTreeSet<NodeId> {
        let out = volume.groups.iter().flat_map(|group| {
            let slots = volume.all_slots().minus(group.insync);
            let stay = slots.iter().filter(|slot| !group.targets.contains_key(slot));
            stay.filter_map(|slot| group.slots.get(slot.index())).collect::<Vec<_>>()
        });
        let nodes = out.filter_map(|store| self.map.node_of(*store));
        nodes.filter(|node| !self.up.contains(node)).collect()
    }

    /// What to do about nodes that are not up.
    fn bring_back(&self, nodes: impl IntoIterator<Item = NodeId>) -> String {
        let away = nodes.into_iter().filter(|node| !self.joining.contains(node));
        let (cut, down): (Vec<_>, Vec<_>) = away.partition(|node| self.is_cut_off(*node));
        let start = |down| format!("start {}", self.names_of(down));
        let mend = |cut| format!("check the network to {}", self.names_of(cut));
        match (down.is_empty(), cut.is_empty()) {
            (true, true) => "wait: those that are away run, and join by themselves".to_owned(),
            (false, true) => start(down),
            (true, false) => mend(cut),
            (false, false) => format!("{}, and {}", start(down), mend(cut)),
        }
    }

    /// What has custodians give shares again that do not, and whether only an operator can do that.
    fn give_again(&self, holders: impl Iterator<Item = NodeId>) -> (String, bool) {
        let not = holders.filter(|node| !self.gives(*node));
        let (barred, others): (Vec<_>, Vec<_>) =
            not.partition(|node| self.barred.contains_key(node));
        let away = || others.iter().copied().filter(|node| !self.up.contains(node));
        let keys = format!("give the custodians of {} their keys", self.names_of(barred.clone()));
        match (barred.is_empty(), others.is_empty()) {
            (true, _) => (self.bring_back(away()), false),
            (false, true) => (keys, true),
            (false, false) => (format!("{}, or {keys}", self.bring_back(away())), false),
        }
    }

    fn names_of(&self, nodes: impl IntoIterator<Item = NodeId>) -> String {
        let names: Vec<String> = nodes.into_iter().map(|node| self.node_name(node)).collect();
        names.join(", ")
    }

    /// Slots that move, or should and can not.
    fn moves_reasons(&self, reasons: &mut Reasons) {
        let Plan { moving, waiting, kept, .. } = self.plan;
        let all_up = self.map.nodes.keys().all(|node| self.up.contains(node));
        let told = match (moving, waiting, kept) {
            (0, 0, 0) if self.map.moves_paused => Some((
                (Health::Ok, false),
                "moves are paused: what a store has is not rebuilt elsewhere when it is lost"
                    .to_owned(),
                "`smalti moves resume` ends that",
            )),
            (0, 0, 0) => None,
            (moving, waiting, _) if self.map.moves_paused && moving + waiting > 0 => Some((
                (Health::Degraded, true),
                format!(
                    "{} slots wait to move to other stores, for moves are paused",
                    moving + waiting
                ),
                "`smalti moves resume` lets them",
            )),
            (0, 1.., _) => Some((
                (Health::Degraded, all_up),
                format!("{waiting} slots are to move, and too little of their groups is there"),
                match all_up {
                    true => "the stores that had the rest are needed: see docs/trouble.md",
                    false => "start the nodes that are down; it goes on by itself then",
                },
            )),
            // A slot that moves is in sync where it was; what a group lacks is told of the volume.
            (1.., ..) => Some((
                (Health::Ok, false),
                format!("{} slots move to other stores", moving + waiting),
                "it ends by itself; `smalti status` tells how far it is",
            )),
            (0, 0, _) => Some((
                (Health::Ok, false),
                format!(
                    "{kept} slots have moved, and their old stores keep them as well until the others of \
                     their groups are in sync"
                ),
                "it ends by itself once the nodes that are down are back, or what they had is rebuilt",
            )),
        };
        if let Some(((health, lasting), problem, remedy)) = told {
            reasons.push(health, "moves".into(), problem, remedy, lasting);
        }
        let mut stuck: BTreeMap<(Cause, bool), usize> = BTreeMap::new();
        for Stuck { cause, full, .. } in &self.plan.stuck {
            *stuck.entry((*cause, *full)).or_default() += 1;
        }
        for ((cause, full), slots) in stuck {
            let what = match cause {
                Cause::Lost => "are out of sync, for their store does not answer",
                Cause::Drain => "are to leave their node",
                Cause::Balance => "are not spread as they should be",
            };
            let (why, remedy) = match full {
                true => ("no other store has room", "free space, or add a disk or a node"),
                false => (
                    "every other node has a slot of their groups, or is down or draining",
                    "start the nodes that are down, or add one; a store that comes back takes its \
                     slots up again",
                ),
            };
            let problem = format!("{slots} slots {what}, and {why}");
            reasons.push(Health::Degraded, "moves".into(), problem, remedy, full);
        }
    }

    /// Disks that had something wrong too often, and rows that do not fit together.
    fn fault_reasons(&self, reasons: &mut Reasons) {
        let now = clock::unix_seconds();
        for (id, store) in &self.map.stores {
            if store.faults.are_repeated(now) {
                let subject = format!("node {}", self.node_name(store.node));
                let total = store.faults.total;
                let problem = format!("its store {id} had {total} wrong records, and lately again");
                let remedy = "replace its disk: drain the node first, or, while all others are up and in \
                    sync, stop it, empty its `data` and start it";
                reasons.add_lasting(Health::Degraded, subject, problem, remedy);
            }
        }
        for slow in &self.slow_disks {
            let node = self.map.node_of(slow.store);
            let subject = format!("node {}", node.map_or("-".into(), |node| self.node_name(node)));
            let problem = format!(
                "the disk of its store {} took {} ms for what others do in {} ms: where a group has a slot \
                 to spare it is done without, and tried again in a while; elsewhere it holds every write up",
                slow.store,
                slow.takes.as_millis(),
                slow.others.as_millis().max(1)
            );
            let remedy = "see what else uses the disk, or whether it fails; `smalti node drain` takes its \
                data elsewhere";
            reasons.add_lasting(Health::Degraded, subject, problem, remedy);
        }
        for volume in self.map.volumes.values() {
            let rows: u64 = volume.scrubs.groups.values().map(|scrub| scrub.unclear).sum();
            if rows > 0 {
                let subject = format!("volume {}", volume.name);
                let problem = format!(
                    "{rows} rows do not fit together: each of their shards is as it was written, and \
                     nobody can tell which one was wrong even then, or too many of them are wrong"
                );
                let remedy = "copy the volume to a new one before a disk is lost; blocks that give errors \
                    are right again once they are written again and scrubbed";
                reasons.add_lasting(Health::Degraded, subject, problem, remedy);
            }
        }
    }

    fn disk_reasons(&self, reasons: &mut Reasons) {
        for (store, space) in &self.disks {
            let Some(node) = self.map.node_of(*store) else { continue };
            let subject = format!("node {}", self.node_name(node));
            let mib = space.free >> 20;
            let remedy =
                "delete or trim what is not needed, or add nodes: room comes back by itself";
            match space.fullness {
                Fullness::Ok => {}
                Fullness::NearFull => {
                    let problem = format!(
                        "its disk is nearly full, {mib} MiB are free: nothing is \
                        moved there any more"
                    );
                    reasons.add_lasting(Health::Degraded, subject, problem, remedy);
                }
                Fullness::Full => {
                    let problem = format!(
                        "its disk is full, {mib} MiB are free: new data is refused \
                        with ENOSPC, all else goes on"
                    );
                    reasons.add_lasting(Health::Stalled, subject, problem, remedy);
                }
                Fullness::Exhausted => {
                    let problem = format!(
                        "its disk is full, {mib} MiB are free: new data is refused with ENOSPC, and so are \
                         trims, for they write before they free anything"
                    );
                    let remedy = "delete a volume, give the disk more room, or add nodes; trims are taken \
                        again once a little is free";
                    reasons.add_lasting(Health::Stalled, subject, problem, remedy);
                }
            }
        }
    }
}
