//! Recovery: people bring their shares, every secret is had whole for a moment, and custodians get new shares.
//!
//! What this node has in memory meanwhile are the recovery secret and every secret that is split; nothing of them
//! is written or logged. What is dealt counts once the map has taken it, one secret after the other; whatever ends
//! this in between leaves each secret with the shares that it had or with new ones, and it can be done again.

use super::control::MemberControl;
use super::places::node_named;
use crate::attach::MemberCluster;
use crate::control::{ControlError, ErrorKind, RecoverKeys, RecoveryReport, ShareLine};
use smalti_cluster::clock;
use smalti_map::view::MapView;
use smalti_map::{Command, Custodians};
use smalti_storage::ids::NodeId;
use smalti_storage::keys::{Commitments, Secret, SecretName, combine_recovery_shares};
use smalti_volume::{Opened, deal_anew, open_sealed};

impl MemberControl {
    pub(super) async fn recover(&self, wish: RecoverKeys) -> Result<RecoveryReport, ControlError> {
        let map = self.current_map().await?;
        let RecoverKeys { shares, check, nodes, threshold } = wish;
        let secrets = open(&map, shares).await?;
        let (mut opened, mut problems) = (Vec::new(), Vec::new());
        for Opened { name, secret } in secrets {
            match secret {
                Ok(secret) => opened.push((name, secret)),
                Err(why) => problems.push(format!("the {name}: {why}")),
            }
        }
        let count = u32::try_from(opened.len()).unwrap_or(u32::MAX);
        let bad = problems.len();
        tracing::warn!(check, opened = count, bad, "recovery shares open the cluster's secrets");
        let mut report = RecoveryReport {
            check,
            opened: count,
            problems,
            dealt: 0,
            share_epoch: map.custodians.share_epoch,
            custodians: Vec::new(),
        };
        if check {
            return Ok(report);
        }
        let plan = self.want_anew(&map, nodes, threshold).await?;
        for (name, secret) in opened {
            report.dealt += u32::from(self.deal_one(name, &secret, &plan).await?);
        }
        tracing::warn!(dealt = report.dealt, share_epoch = plan.share_epoch, "keys recovered");
        let named = |node: NodeId| {
            map.nodes.get(&node).map_or_else(|| node.to_string(), |entry| entry.name.clone())
        };
        report.share_epoch = plan.share_epoch;
        report.custodians = plan.nodes().map(named).collect();
        Ok(report)
    }

    /// Has the map want every secret dealt to those who are to hold shares, in a share epoch that none is dealt
    /// in yet.
    async fn want_anew(
        &self,
        map: &MapView,
        names: Option<Vec<String>>,
        threshold: Option<u8>,
    ) -> Result<Custodians, ControlError> {
        let now = &map.custodians;
        let nodes: Vec<NodeId> = match names {
            None => now.nodes().collect(),
            Some(names) => names
                .iter()
                .map(|name| node_named(map, name))
                .collect::<Result<Vec<NodeId>, ControlError>>()?,
        };
        if let Some(absent) = nodes.iter().find(|node| !self.answers(**node)) {
            let name = map.nodes.get(absent).map_or("a node", |node| &node.name);
            return Err(ControlError::invalid(format!(
                "{name} does not answer, and every custodian has to take its share: name others with \
                 `--custodians`"
            )));
        }
        let barred = self.member().barred_custodians();
        if let Some((node, why)) = nodes.iter().find_map(|node| barred.get_key_value(node)) {
            let name = map.nodes.get(node).map_or("a node", |node| &node.name);
            return Err(ControlError::invalid(format!(
                "the custodian of {name} is {why}; every custodian has to take its share: name others with \
                 `--custodians`"
            )));
        }
        // Each try has a share epoch of its own: what an earlier one left is in nobody's way.
        let (share_epoch, threshold) = (now.share_epoch, threshold.unwrap_or(now.threshold));
        let (now, new_master) = (clock::unix_seconds(), false);
        self.propose(Command::SetCustodians { share_epoch, threshold, nodes, now, new_master })
            .await?;
        Ok(self.member().map().custodians.clone())
    }

    /// Deals one secret anew; says whether it had to. Custodians that have enough shares of it may have dealt it on
    /// meanwhile, and it may be gone.
    async fn deal_one(
        &self,
        name: SecretName,
        secret: &Secret,
        plan: &Custodians,
    ) -> Result<bool, ControlError> {
        let map = self.member().map();
        let is_done = |map: &MapView| {
            // The leader makes another master secret, for which nothing of this one is needed.
            let replaced = name == SecretName::Master && map.custodians.new_master;
            replaced
                || map
                    .custody_of(&name)
                    .is_none_or(|custody| custody.share_epoch >= plan.share_epoch)
        };
        let Some(before) = map.custody_of(&name).filter(|_| !is_done(&map)) else {
            return Ok(false);
        };
        if map.custodians.share_epoch != plan.share_epoch {
            let text = "the custodians have changed meanwhile: try again";
            return Err(ControlError::new(ErrorKind::Conflict, text));
        }
        let cluster = MemberCluster::new(self.member().clone(), MapView::clone(&map)).persistent();
        let custody = match deal_anew(&cluster, secret, name, before).await {
            Ok(custody) => custody,
            Err(_) if is_done(&self.member().map()) => return Ok(false),
            Err(error) => return Err(ControlError::new(ErrorKind::Unavailable, error)),
        };
        let from = before.commitments.clone();
        match self.propose(Command::Reshare { secret: name, from, custody }).await {
            Err(_) if is_done(&self.member().map()) => Ok(false),
            taken => taken.map(|()| true),
        }
    }
}

/// Every secret of the map, opened or not.
async fn open(map: &MapView, shares: Vec<ShareLine>) -> Result<Vec<Opened>, ControlError> {
    let Some(recovery) = &map.recovery else {
        let text = "the cluster was made without recovery shares";
        return Err(ControlError::invalid(text));
    };
    let commitments =
        Commitments::from_bytes(&recovery.commitments).map_err(ControlError::invalid)?;
    let map = MapView::clone(map);
    // A cluster may have thousands of secrets, at half a millisecond each.
    let opening = tokio::task::spawn_blocking(move || {
        let recovery = combine_recovery_shares(&shares, map.cluster, &commitments);
        recovery.map(|recovery| open_sealed(&map, &recovery))
    });
    let opened = opening.await.map_err(|error| ControlError::new(ErrorKind::Internal, error))?;
    opened.map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        ControlError::invalid(problems.join("; "))
    })
}
