//! Custodians, as the Raft leader sees to them: who is to hold shares instead of those that leave or are lost,
//! new shares for those that lack theirs and after some time for all, and every secret dealt on to those who
//! are to hold it.
//!
//! Nothing has to be handed over to the next leader: what is to be done follows from the map, and what was
//! begun and not taken by the map counts for nothing.

use super::Member;
use crate::clock::unix_seconds;
use crate::custodian::{DealerBytes, read_dealers};
use futures::future::join_all;
use smalti_map::view::MapView;
use smalti_map::{Applied, ClusterMap, Command, Custodians, Custody, custodians};
use smalti_storage::ids::NodeId;
use smalti_storage::keys::{Commitments, SecretName, combine_commitments};
use std::collections::BTreeMap;
use std::sync::Arc;
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

/// How long a proposal may take. The next look makes it again.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the leader keeps in mind between looks.
struct Mind {
    failures: u32,
    not_before: Instant,
    /// Since when custodians have lacked shares.
    lacking: Option<Instant>,
    /// When they got new ones for that.
    mended: Option<Instant>,
}

impl Mind {
    fn new() -> Self {
        Self { failures: 0, not_before: Instant::now(), lacking: None, mended: None }
    }
}

impl Member {
    /// Custodians that say they lack shares which the map says they hold, and how many.
    pub fn lacking_shares(&self) -> BTreeMap<NodeId, u32> {
        let map = self.map();
        let lacking = |node: NodeId| {
            let count = if node == self.node() {
                *self.inner.lacking.borrow()
            } else {
                self.beats().lacking(node)
            };
            (node, count)
        };
        map.custodians.nodes().map(lacking).filter(|(_, count)| *count > 0).collect()
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
                // The actor ends only with the process.
                let remind = crate::custodian::CustodianMsg::Map(Arc::clone(&map));
                let _ = self.inner.custodian.cast(remind);
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
        let late: Vec<_> = behind(map).map(|(secret, custody)| (secret, custody.clone())).collect();
        for (secret, custody) in late {
            self.reshare(secret, &custody, &map.custodians).await?;
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
        if (lack || old) && behind(map).next().is_none() && self.all_answer(&map.custodians) {
            (mind.lacking, mind.mended) = (None, Some(Instant::now()));
            tracing::info!(?lacking, old, "all custodians get new shares");
            return self.set_custodians(&map.custodians, map.custodians.nodes().collect()).await;
        }
        Ok(())
    }

    fn wanted_custodians(&self, map: &ClusterMap) -> Option<Vec<NodeId>> {
        let silent = map.nodes.keys().map(|node| (*node, self.beats().silent_for(*node))).collect();
        custodians::choose(map, &silent, self.inner.down_out)
    }

    fn all_answer(&self, plan: &Custodians) -> bool {
        plan.nodes().all(|node| self.beats().silent_for(node) < self.inner.suspect_after)
    }

    async fn set_custodians(&self, now: &Custodians, nodes: Vec<NodeId>) -> Result<(), String> {
        let (share_epoch, threshold) = (now.share_epoch, now.threshold);
        let command = Command::SetCustodians { share_epoch, threshold, nodes, now: unix_seconds() };
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
    ) -> Result<(), String> {
        let share = custody.share_name(secret);
        let (share_epoch, client) = (plan.share_epoch, self.custodians());
        let mut problems = Vec::new();
        let mut dealers = Vec::new();
        // Those that answer first: whoever is away takes as long as may be waited.
        let mut holders = custody.holders.clone();
        holders
            .sort_by_key(|holder| self.beats().silent_for(holder.node) > self.inner.suspect_after);
        for holder in holders {
            if dealers.len() == usize::from(custody.threshold) {
                break;
            }
            match client.deal_on(holder.node, share, share_epoch).await {
                Ok(commitments) => dealers.push(DealerBytes { index: holder.share, commitments }),
                Err(why) => problems.push(format!("{}: {why}", holder.node)),
            }
        }
        let failed = |problems: &[String]| format!("the {secret}: {}", problems.join("; "));
        if dealers.len() < usize::from(custody.threshold) {
            return Err(failed(&problems));
        }
        let old = Commitments::from_bytes(&custody.commitments);
        let combined = old.map_err(|error| error.to_string()).and_then(|old| {
            combine_commitments(&old, &read_dealers(&dealers)?).map_err(|error| error.to_string())
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
    every > 0 && since.is_some_and(|since| now.saturating_sub(since) >= every)
}
