//! Custodians, as the Raft leader sees to them: who is to hold shares instead of those that leave or are lost,
//! new shares for those that lack theirs and after some time for all, and every secret dealt on to those who
//! are to hold it.
//!
//! Nothing has to be handed over to the next leader: what is to be done follows from the map, and what was
//! begun and not taken by the map counts for nothing.

use super::Member;
use crate::clock::unix_seconds;
use crate::custodian::{CustodianMsg, DealerBytes, read_dealers};
use futures::future::join_all;
use smalti_map::view::MapView;
use smalti_map::voters::SILENT_AFTER;
use smalti_map::{Applied, ClusterMap, Command, Custodians, Custody, Recovery, custodians};
use smalti_storage::ids::{ClusterId, NodeId};
use smalti_storage::keys::{
    Commitments, Dealing, Secret, SecretName, combine_commitments, get_key_parts,
    seal_for_recovery, system_rng, verify_dealer,
};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// How often the leader looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Whoever waits for the next look for longer has been asleep, and takes itself for the leader yet.
const ASLEEP: Duration = Duration::from_millis(1500);

/// Between two tries to deal on what could not be, at first and at most.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// For so long custodians may lack shares before they get new ones: they may be taking them just now.
const LACK_PATIENCE: Duration = Duration::from_secs(5);

/// Between two times that all get new shares because some lack theirs.
const MEND_EVERY: Duration = Duration::from_secs(60);

/// How often a custodian looks whether its shares are there, without a new map.
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// Problems that are told at once.
const PROBLEMS_MAX: usize = 3;

/// How long a proposal may take. The next look makes it again.
const PATIENCE: Duration = Duration::from_secs(5);

/// In seconds.
const DAY: u64 = 24 * 60 * 60;

/// What the leader keeps in mind between looks.
struct Mind {
    failures: u32,
    not_before: Instant,
    /// Since when custodians have lacked shares.
    lacking: Option<Instant>,
    /// When they got new ones for that.
    mended: Option<Instant>,
    /// Another master secret, and the share epoch that it was dealt for, until the map has taken it.
    master: Option<NewMaster>,
}

/// Another master secret that was dealt.
struct NewMaster {
    share_epoch: u32,
    dealing: Dealing,
    sealed_for_recovery: Vec<u8>,
}

impl Mind {
    fn new() -> Self {
        Self { failures: 0, not_before: Instant::now(), lacking: None, mended: None, master: None }
    }
}

impl Member {
    /// Custodians that say they lack shares which the map says they hold, and how many.
    pub fn lacking_shares(&self) -> BTreeMap<NodeId, u32> {
        let map = self.map();
        let lacking = |node: NodeId| {
            let count = if node == self.node() {
                self.inner.holdings.borrow().lacking
            } else {
                self.beats().lacking(node)
            };
            (node, count)
        };
        map.custodians.nodes().map(lacking).filter(|(_, count)| *count > 0).collect()
    }

    /// Nodes whose custodians say that they can not use their shares just now, and why, as in "it is
    /// ...". Shares are not lost for that.
    pub fn barred_custodians(&self) -> BTreeMap<NodeId, String> {
        let map = self.map();
        let problem = |node: NodeId| {
            let problem = match node == self.node() {
                true => self.inner.holdings.borrow().problem.clone(),
                false => self.beats().shares_problem(node),
            };
            (node, problem)
        };
        map.nodes.keys().copied().map(problem).filter(|(_, why)| !why.is_empty()).collect()
    }

    /// Has the custodian of this node look at its shares again now, as when its key has come.
    pub fn look_at_shares(&self) {
        // The actor ends only with the process.
        let _ = self.inner.custodian.cast(CustodianMsg::Map(self.map()));
    }

    /// Why secrets are not dealt on to those who are to hold them, as the leader says.
    pub fn custody_problem(&self) -> Option<String> {
        let leader = self.raft().metrics().leader?;
        let problem = if leader == self.node() {
            self.inner.custody_problem.borrow().clone()
        } else {
            self.beats().custody_problem(leader)
        };
        Some(problem).filter(|problem| !problem.is_empty())
    }

    pub(super) async fn keep_custody(self) {
        let stop = self.inner.stop.clone();
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut mind = Mind::new();
        let mut reminded = Instant::now();
        let mut looked = Instant::now();
        while stop.run_until_cancelled(every.tick()).await.is_some() {
            let map = self.map();
            if reminded.elapsed() >= REMIND_EVERY {
                reminded = Instant::now();
                self.look_at_shares();
            }
            let asleep = std::mem::replace(&mut looked, Instant::now()).elapsed() > ASLEEP;
            let leads = self.raft().metrics().leader == Some(self.node());
            if asleep || !leads || self.incarnation().is_none() {
                mind = Mind::new();
                self.tell_problem(String::new());
                continue;
            }
            if Instant::now() < mind.not_before {
                continue;
            }
            let looked_at = self.look_at_custody(&map, &mut mind);
            match stop.run_until_cancelled(looked_at).await {
                None => return,
                Some(Ok(())) => {
                    mind.failures = 0;
                    self.tell_problem(String::new());
                }
                Some(Err(problem)) => {
                    tracing::warn!(
                        problem,
                        "the shares of secrets are not where they should be yet"
                    );
                    self.tell_problem(problem);
                    let pause = PAUSE.saturating_mul(1 << mind.failures.min(16)).min(PAUSE_MAX);
                    mind.failures += 1;
                    mind.not_before = Instant::now() + pause;
                }
            }
            looked = Instant::now();
        }
    }

    fn tell_problem(&self, problem: String) {
        self.inner.custody_problem.send_if_modified(|told| {
            let changed = *told != problem;
            *told = problem;
            changed
        });
    }

    async fn look_at_custody(&self, map: &MapView, mind: &mut Mind) -> Result<(), String> {
        if let Some(nodes) = self.wanted_custodians(map) {
            tracing::info!(?nodes, "the custodians change");
            return self.set_custodians(&map.custodians, nodes).await;
        }
        if !map.custodians.new_master {
            // Taken, though nobody said so.
            mind.master = None;
        }
        let late: Vec<_> = behind(map).map(|(secret, custody)| (secret, custody.clone())).collect();
        let mut problems = Vec::new();
        for (secret, custody) in late {
            // One that can not be dealt on keeps no other one.
            let dealt = match secret {
                SecretName::Master if map.custodians.new_master => {
                    let recovery = map.recovery.as_ref();
                    self.replace_master(&custody, &map.custodians, recovery, &mut mind.master).await
                }
                _ => self.reshare(secret, &custody, &map.custodians, mind.failures).await,
            };
            problems.extend(dealt.err());
        }
        if !problems.is_empty() {
            let more = problems.len().saturating_sub(PROBLEMS_MAX);
            problems.truncate(PROBLEMS_MAX);
            if more > 0 {
                problems.push(format!("and {more} more"));
            }
            return Err(problems.join("; "));
        }
        let lacking = self.lacking_shares();
        if lacking.is_empty() {
            mind.lacking = None;
        }
        let since = (!lacking.is_empty()).then(|| *mind.lacking.get_or_insert_with(Instant::now));
        // Shares that do not stay would be made again and again.
        let again = mind.mended.is_none_or(|mended| mended.elapsed() >= MEND_EVERY);
        let lack = again && since.is_some_and(|since| since.elapsed() >= LACK_PATIENCE);
        let old = is_old(map, unix_seconds(), self.inner.refresh_every);
        if (lack || old) && behind(map).next().is_none() && self.all_take(&map.custodians) {
            (mind.lacking, mind.mended) = (None, Some(Instant::now()));
            tracing::info!(?lacking, old, "all custodians get new shares");
            return self.set_custodians(&map.custodians, map.custodians.nodes().collect()).await;
        }
        Ok(())
    }

    fn wanted_custodians(&self, map: &ClusterMap) -> Option<Vec<NodeId>> {
        let (barred, lost) = (self.barred_custodians(), self.inner.down_out);
        let silent_for = |node: &NodeId| {
            let silent = self.beats().silent_for(*node);
            let usable = silent >= lost || !barred.contains_key(node);
            (*node, if usable { silent } else { as_if_silent(silent, lost) })
        };
        let silent = map.nodes.keys().map(silent_for).collect();
        custodians::choose(map, &silent, lost)
    }

    /// Whether every custodian could take a new share.
    fn all_take(&self, plan: &Custodians) -> bool {
        let barred = self.barred_custodians();
        plan.nodes().all(|node| {
            self.beats().silent_for(node) < self.inner.suspect_after && !barred.contains_key(&node)
        })
    }

    async fn set_custodians(&self, now: &Custodians, nodes: Vec<NodeId>) -> Result<(), String> {
        let (share_epoch, threshold) = (now.share_epoch, now.threshold);
        let (now, new_master) = (unix_seconds(), false);
        let command = Command::SetCustodians { share_epoch, threshold, nodes, now, new_master };
        self.propose_custody(command).await
    }

    async fn propose_custody(&self, command: Command) -> Result<(), String> {
        match self.raft().propose_within(command, PATIENCE).await {
            Ok(Applied::Rejected(why)) => Err(format!("the map refuses: {why}")),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("the cluster does not answer: {error}")),
        }
    }

    /// Has one secret dealt on to those who are to hold it: by as many of its custodians as are needed,
    /// combined by all new ones, and then taken by the map.
    async fn reshare(
        &self,
        secret: SecretName,
        custody: &Custody,
        plan: &Custodians,
        failures: u32,
    ) -> Result<(), String> {
        let failed = |problems: &[String]| format!("the {secret}: {}", problems.join("; "));
        let old = Commitments::from_bytes(&custody.commitments);
        let old = old.map_err(|error| failed(&[error.to_string()]))?;
        let share = custody.share_name(secret);
        let (share_epoch, client) = (plan.share_epoch, self.custodians());
        let mut problems = Vec::new();
        let mut dealers = Vec::new();
        // Those that answer first: whoever is away takes as long as may be waited.
        let mut holders = custody.holders.clone();
        // Nor always the same ones: what one dealt may be taken by nobody.
        let turn = failures as usize % holders.len().max(1);
        holders.rotate_left(turn);
        holders
            .sort_by_key(|holder| self.beats().silent_for(holder.node) > self.inner.suspect_after);
        for holder in holders {
            if dealers.len() == usize::from(custody.threshold) {
                break;
            }
            match client.deal_on(holder.node, share, share_epoch).await {
                Ok(commitments) => {
                    let dealer = DealerBytes { index: holder.share, commitments };
                    match verify_dealt(&old, &dealer) {
                        Ok(()) => dealers.push(dealer),
                        Err(why) => problems.push(format!("{}: {why}", holder.node)),
                    }
                }
                Err(why) => problems.push(format!("{}: {why}", holder.node)),
            }
        }
        if dealers.len() < usize::from(custody.threshold) {
            return Err(failed(&problems));
        }
        let combined = read_dealers(&dealers).and_then(|dealers| {
            combine_commitments(&old, &dealers).map_err(|error| error.to_string())
        });
        let commitments = combined.map_err(|why| failed(&[why]))?.to_bytes();
        let combine = |node: NodeId| {
            let dealers = dealers.clone();
            async move {
                let combined = client.combine(node, share, share_epoch, dealers).await;
                combined.err().map(|why| format!("{node}: {why}"))
            }
        };
        let problems: Vec<String> =
            join_all(plan.nodes().map(combine)).await.into_iter().flatten().collect();
        if !problems.is_empty() {
            return Err(failed(&problems));
        }
        let (threshold, holders) = (plan.threshold, plan.holders.clone());
        let from = custody.commitments.clone();
        let sealed_for_recovery = custody.sealed_for_recovery.clone();
        let custody = Custody { share_epoch, threshold, holders, commitments, sealed_for_recovery };
        self.propose_custody(Command::Reshare { secret, from, custody }).await?;
        tracing::info!(%secret, share_epoch, "dealt on");
        Ok(())
    }

    /// Deals another master secret, which is forgotten here, and has the map take it. Until then what was dealt is
    /// kept, to be given again: else every try would leave shares of another one.
    async fn replace_master(
        &self,
        custody: &Custody,
        plan: &Custodians,
        recovery: Option<&Recovery>,
        dealt: &mut Option<NewMaster>,
    ) -> Result<(), String> {
        let failed = |why: String| format!("another master secret: {why}");
        let share_epoch = plan.share_epoch;
        let new = match dealt.take().filter(|dealt| dealt.share_epoch == share_epoch) {
            Some(before) => dealt.insert(before),
            None => dealt.insert(new_master(self.map().cluster, plan, recovery).map_err(failed)?),
        };
        let (client, name) = (self.custodians(), (SecretName::Master, share_epoch));
        for (holder, part) in plan.holders.iter().zip(&new.dealing.parts) {
            let kept = client.keep(holder.node, name, part, &new.dealing.commitments).await;
            kept.map_err(|why| failed(format!("{}: {why}", holder.node)))?;
        }
        let (threshold, holders) = (plan.threshold, plan.holders.clone());
        let commitments = new.dealing.commitments.to_bytes();
        let sealed_for_recovery = new.sealed_for_recovery.clone();
        let new = Custody { share_epoch, threshold, holders, commitments, sealed_for_recovery };
        let from = custody.commitments.clone();
        self.propose_custody(Command::ReplaceMaster { from, custody: new }).await?;
        *dealt = None;
        tracing::info!(share_epoch, "there is another master secret");
        Ok(())
    }
}

fn new_master(
    cluster: ClusterId,
    plan: &Custodians,
    recovery: Option<&Recovery>,
) -> Result<NewMaster, String> {
    let total = u8::try_from(plan.holders.len()).map_err(|_| "too many custodians".to_owned())?;
    let mut rng = system_rng().map_err(|error| error.to_string())?;
    let secret = Secret::random(&mut rng);
    let words = |error: smalti_storage::keys::PartError| error.to_string();
    let to = recovery.map(|recovery| Commitments::from_bytes(&recovery.commitments));
    let mut seal =
        |to: &Commitments| seal_for_recovery(&secret, cluster, SecretName::Master, to, &mut rng);
    let sealed_for_recovery = to.transpose().map_err(words)?.as_ref().map(&mut seal);
    let sealed_for_recovery = sealed_for_recovery.unwrap_or_default();
    let dealing = get_key_parts(&secret, plan.threshold, total, &mut rng).map_err(words)?;
    Ok(NewMaster { share_epoch: plan.share_epoch, dealing, sealed_for_recovery })
}

fn verify_dealt(old: &Commitments, dealer: &DealerBytes) -> Result<(), String> {
    let read = read_dealers(std::slice::from_ref(dealer))?;
    read.iter().try_for_each(|dealer| verify_dealer(old, dealer)).map_err(|error| error.to_string())
}

/// Whoever can not use its shares neither deals them on nor takes new ones: for that it is as good as silent, and
/// not for so long that it would be taken for lost.
fn as_if_silent(silent: Duration, lost: Duration) -> Duration {
    silent.max(SILENT_AFTER).min(lost.saturating_sub(Duration::from_millis(1)))
}

/// Secrets that are not with those who are to hold them.
fn behind(map: &ClusterMap) -> impl Iterator<Item = (SecretName, &Custody)> {
    let now = map.custodians.share_epoch;
    map.custodies().filter(move |(_, custody)| custody.share_epoch < now)
}

/// Whether all shares are to be new ones because of their age; zero: never. Of the first ones no map knows when
/// they were dealt; the first keys were made soon after.
fn is_old(map: &ClusterMap, now: u64, refresh_every: Duration) -> bool {
    let made = map.volumes.values().flat_map(|volume| volume.key_epochs.values());
    let first = || made.map(|epoch| epoch.timestamp).min();
    let since = Some(map.custodians.since).filter(|since| *since > 0).or_else(first);
    let every = refresh_every.as_secs();
    // A time to come was told by a clock that was wrong: it would keep the shares old for as long.
    let ahead = |since: u64| since.saturating_sub(now) > DAY;
    every > 0 && since.is_some_and(|since| now.saturating_sub(since) >= every || ahead(since))
}
