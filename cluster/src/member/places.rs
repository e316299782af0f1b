//! Who votes and what lies where: what the Raft leader sees to.
//!
//! Both follow from the map and from who answers, by pure functions ([`smalti_map::voters`],
//! [`smalti_map::plan`]); here they are asked again and again, and what they say is proposed. So nothing
//! has to be handed over to the next leader.

use super::Member;
use smalti_map::plan::{Plan, Policy, Sight, plan};
use smalti_map::view::MapView;
use smalti_map::{Applied, ClusterMap, Command, voters};
use smalti_raft::{GroupMetrics, MemberError, ProposeError};
use smalti_storage::ids::{NodeId, RaftStoreId, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// How often it looks, and how soon after a change of the map: what has moved makes room for the next.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_AFTER: Duration = Duration::from_millis(50);

/// How long a proposal may take. The next look makes it again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whoever waits for the next look for longer has been asleep.
const ASLEEP: Duration = Duration::from_millis(1500);

/// A learner that lacks more entries than this does not become a voter yet.
const LAG_MAX: u64 = 100;

impl Member {
    /// The plan for what lies where, as this node sees it. The leader carries its own out.
    pub fn plan(&self, map: &ClusterMap) -> Plan {
        self.plan_by(map, self.policy())
    }

    /// The plan for a map as it might be, if nothing had to wait for anything: what is not stuck in it
    /// has a place to go.
    pub fn plan_at_once(&self, map: &ClusterMap) -> Plan {
        self.plan_by(map, Policy { at_once: usize::MAX, ..self.policy() })
    }

    fn policy(&self) -> Policy {
        let (down_out, defaults) = (self.inner.down_out, Policy::default());
        Policy { down_out, urgent: defaults.urgent.min(down_out), ..defaults }
    }

    fn plan_by(&self, map: &ClusterMap, policy: Policy) -> Plan {
        let in_vain = self.beats().in_vain(self.inner.told.borrow().in_vain.clone());
        plan(map, &self.sights(map), &in_vain, &policy)
    }

    /// What this node sees of the stores.
    pub fn sights(&self, map: &ClusterMap) -> BTreeMap<StoreId, Sight> {
        self.beats().sights(map, self.inner.seat_suspect_after)
    }

    /// Who should vote, as this node sees it; none while no others than the present ones would do.
    pub fn wanted_voters(
        &self,
        map: &MapView,
        voters: &BTreeSet<NodeId>,
    ) -> Option<BTreeSet<NodeId>> {
        let silent = |node: &NodeId| {
            let silent = self.beats().silent_for(*node);
            // A voter that answers and may not vote helps no majority.
            match voters.contains(node) && !self.knows_its_vote(*node) {
                true => (*node, silent.max(voters::SILENT_AFTER)),
                false => (*node, silent),
            }
        };
        let silent: BTreeMap<NodeId, Duration> = map.nodes.keys().map(silent).collect();
        voters::choose(map, voters, &silent, self.inner.down_out)
    }

    fn knows_its_vote(&self, node: NodeId) -> bool {
        node == self.node() || self.beats().is_voter(node)
    }

    pub(super) async fn keep_places(self) {
        let stop = self.inner.stop.clone();
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut maps = self.raft().watch();
        let mut refused = false;
        loop {
            let waits = Instant::now();
            let changed = async {
                if maps.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(LOOK_AFTER).await;
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = every.tick() => {}
                // What was refused a moment ago would be again.
                () = changed, if !refused => {}
            }
            // One that has been asleep takes itself for the leader yet, and everybody for gone.
            if waits.elapsed() > ASLEEP {
                continue;
            }
            let metrics = self.raft().metrics();
            let map = Arc::clone(&maps.borrow_and_update());
            // Of a cluster that is not founded there is nothing to see to.
            if metrics.leader != Some(self.node()) || !map.nodes.contains_key(&self.node()) {
                continue;
            }
            let members = self.keep_members(&map, &metrics).await;
            if let Err(error) = &members {
                tracing::debug!(%error, "the voters are not as they should be yet");
            }
            let moves = self.propose_moves(&map).await;
            if let Err(error) = &moves {
                tracing::debug!(%error, "a change of places got no answer");
            }
            refused = members.is_err() || !moves.unwrap_or(false);
        }
    }

    /// One step nearer to the right voters.
    async fn keep_members(&self, map: &MapView, now: &GroupMetrics) -> Result<(), MemberError> {
        let raft = self.raft();
        let members: BTreeSet<NodeId> = now.voters.union(&now.learners).copied().collect();
        let missing: BTreeSet<NodeId> =
            map.nodes.keys().filter(|node| !members.contains(node)).copied().collect();
        if !missing.is_empty() {
            return raft.add_learners(&missing).await;
        }
        let mut recruits = map.nodes.iter().filter_map(|(id, node)| Some((*id, node.recruit?)));
        if let Some((node, store)) = recruits.next() {
            return self.admit(node, store, &now.voters).await;
        }
        let wanted = self.wanted_voters(map, &now.voters);
        if let Some(wanted) = wanted.filter(|wanted| *wanted != now.voters || now.joint) {
            let lag = |node: &NodeId| {
                let has = now.matched.get(node).copied().unwrap_or(0);
                *node != self.node() && has + LAG_MAX < now.log_len
            };
            // A voter that lacks half the log can not help a majority, nor can one that does not know yet
            // that it may vote.
            let unfit = |node: &NodeId| lag(node) || !self.knows_its_vote(*node);
            if wanted.difference(&now.voters).any(unfit) {
                return Ok(());
            }
            tracing::info!(from = ?now.voters, to = ?wanted, "the voters change");
            return raft.set_voters(&wanted).await;
        }
        let gone: BTreeSet<NodeId> =
            now.learners.iter().filter(|node| !map.nodes.contains_key(node)).copied().collect();
        if !gone.is_empty() {
            return raft.remove_learners(&gone).await;
        }
        Ok(())
    }

    /// A member came with a new store. First it ceases to vote, then it is known by that one; what it
    /// becomes then, the next looks see to.
    async fn admit(
        &self,
        node: NodeId,
        store: RaftStoreId,
        voters: &BTreeSet<NodeId>,
    ) -> Result<(), MemberError> {
        if voters.contains(&node) {
            let others: BTreeSet<NodeId> =
                voters.iter().filter(|voter| **voter != node).copied().collect();
            if others.is_empty() {
                return Ok(());
            }
            tracing::warn!(%node, "a voter came back without what it had voted for");
            return self.raft().set_voters(&others).await;
        }
        let command = Command::AdmitRecruit { node, store };
        match self.raft().propose_within(command, PATIENCE).await {
            Ok(_) => Ok(()),
            Err(error) => Err(MemberError::Refused(error.to_string())),
        }
    }

    /// Whether all of it was accepted.
    async fn propose_moves(&self, map: &MapView) -> Result<bool, ProposeError> {
        let Plan { moves, forget, .. } = self.plan(map);
        let mut accepted = true;
        for (volume, moves) in moves {
            tracing::info!(%volume, ?moves, "slots begin to move, or stay after all");
            accepted &= self.ask_for(Command::Move { volume, moves }).await?;
        }
        for store in forget {
            tracing::info!(%store, "another store has taken its place: it is forgotten");
            accepted &= self.ask_for(Command::ForgetStore { store }).await?;
        }
        Ok(accepted)
    }

    async fn ask_for(&self, command: Command) -> Result<bool, ProposeError> {
        // The map may have moved on; the next plan is made from what it says then.
        if let Applied::Rejected(why) = self.raft().propose_within(command, PATIENCE).await? {
            tracing::debug!(%why, "a change of places was refused");
            return Ok(false);
        }
        Ok(true)
    }
}
