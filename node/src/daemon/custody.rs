//! What the operator wants of custodians, and what they can prove.

use super::control::MemberControl;
use super::places::node_named;
use crate::control::{
    AuditFacts, AuditReport, ControlError, ErrorKind, KeyReport, SetCustodians, Unlock, Unlocked,
    VerifiedCustodian, VerifiedSecret, VerifyReport,
};
use crate::custody::UnlockError;
use futures::future::join_all;
use smalti_cluster::clock;
use smalti_cluster::custodian::{AuditEntry, Beginning, Chain, Claim};
use smalti_map::view::MapView;
use smalti_map::{ClusterMap, Command, Custody};
use smalti_storage::ids::NodeId;
use smalti_storage::keys::{Commitments, KeyProvider, SecretName};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Problems of one custodian that are told.
const PROBLEMS_MAX: usize = 3;

/// Entries of one custodian's log that are told; all are verified.
const ENTRIES_TOLD: usize = 10_000;

type Proofs = BTreeMap<NodeId, Result<Vec<Result<(), String>>, String>>;

impl MemberControl {
    pub(super) async fn set_custody(&self, wish: SetCustodians) -> Result<KeyReport, ControlError> {
        let map = self.current_map().await?;
        let now = &map.custodians;
        let share_epoch = wish.share_epoch.unwrap_or(now.share_epoch);
        let nodes = match &wish.nodes {
            None => now.nodes().collect(),
            Some(names) => names
                .iter()
                .map(|name| node_named(&map, name))
                .collect::<Result<Vec<NodeId>, ControlError>>()?,
        };
        // That a secret is not to be trusted any more is noted whoever is there; it is made when all are.
        let checked = if wish.new_master && wish.nodes.is_none() { &[][..] } else { &nodes[..] };
        if let Some(absent) = checked.iter().find(|node| !self.answers(**node)) {
            let name = map.nodes.get(absent).map_or("a node", |node| &node.name);
            let text = format!("{name} does not answer, and every custodian has to take its share");
            return Err(ControlError::invalid(text));
        }
        let barred = self.member().barred_custodians();
        if let Some((node, why)) = checked.iter().find_map(|node| barred.get_key_value(node)) {
            let name = map.nodes.get(node).map_or("a node", |node| &node.name);
            let text =
                format!("the custodian of {name} is {why}; every custodian has to take its share");
            return Err(ControlError::invalid(text));
        }
        let threshold = wish.threshold.unwrap_or(now.threshold);
        let now = clock::unix_seconds();
        let new_master = wish.new_master;
        let command = Command::SetCustodians { share_epoch, threshold, nodes, now, new_master };
        self.propose(command).await?;
        Ok(self.report().await?.keys())
    }

    /// Gives the key provider of this node its passphrase. The rest goes on by itself.
    pub(super) async fn unlock_shares(&self, wish: Unlock) -> Result<Unlocked, ControlError> {
        let lock = self.lock().cloned().ok_or_else(|| {
            ControlError::invalid("the shares of this node are not sealed under a passphrase")
        })?;
        let was_locked = lock.ready().is_err();
        let tried = tokio::task::spawn_blocking(move || lock.unlock(&wish.passphrase)).await;
        let tried = tried.map_err(|error| ControlError::new(ErrorKind::Internal, error))?;
        if let Err(error) = tried {
            tracing::warn!(%error, "a passphrase was given, and the custodian is not unlocked");
            let kind = match error {
                UnlockError::Wrong => ErrorKind::Invalid,
                UnlockError::Busy => ErrorKind::Unavailable,
                UnlockError::Failed(_) => ErrorKind::Internal,
            };
            return Err(ControlError::new(kind, error));
        }
        self.member().look_at_shares();
        Ok(Unlocked { was_locked })
    }

    pub(super) fn answers(&self, node: NodeId) -> bool {
        self.member().beats().silent_for(node) < super::report::DOWN_AFTER
    }

    pub(super) async fn verify(&self, without: Vec<String>) -> Result<VerifyReport, ControlError> {
        let map = self.current_map().await?;
        let away: BTreeSet<NodeId> =
            without.iter().map(|name| node_named(&map, name)).collect::<Result<_, _>>()?;
        let claims = claims(&map)?;
        let prove = |(node, claims): (&NodeId, &Vec<Claim>)| {
            let (member, node, claims) = (self.member().clone(), *node, claims.clone());
            async move { (node, member.custodians().prove(node, &claims).await) }
        };
        let proofs: Proofs = join_all(claims.iter().map(prove)).await.into_iter().collect();
        Ok(verified(&map, &claims, &proofs, &away, without))
    }

    pub(super) async fn audit(
        &self,
        name: Option<String>,
    ) -> Result<Vec<AuditReport>, ControlError> {
        let map = self.member().map();
        let nodes: BTreeSet<NodeId> = match name {
            Some(name) => [node_named(&map, &name)?].into(),
            None => {
                let held = map.custodies().flat_map(|(_, custody)| &custody.holders);
                held.map(|holder| holder.node).chain(map.custodians.nodes()).collect()
            }
        };
        let reports = nodes.into_iter().map(|node| self.audit_of(&map, node));
        Ok(join_all(reports).await)
    }

    /// All of a custodian's log, piece by piece. The last entries of it are told.
    async fn audit_of(&self, map: &MapView, node: NodeId) -> AuditReport {
        let (mut chain, mut entries) = (Chain::anywhere(), VecDeque::new());
        let mut beginning = Beginning::default();
        let problem = loop {
            let after = chain.last().map_or(0, |(no, _)| no);
            let lines = match self.member().custodians().audit(node, after).await {
                Ok(lines) if lines.is_empty() => break beginning.check().err(),
                Ok(lines) => lines,
                Err(why) => break Some(why),
            };
            let mut more = lines.iter().map(|line| chain.next(line));
            let read = more.try_for_each(|entry| {
                if entries.len() >= ENTRIES_TOLD {
                    entries.pop_front();
                }
                let entry: AuditEntry = entry?;
                beginning.next(&entry);
                entries.push_back(entry);
                Ok(())
            });
            if let Err(why) = read {
                break Some(why);
            }
        };
        let name = |node: NodeId| {
            map.nodes.get(&node).map_or_else(|| node.to_string(), |entry| entry.name.clone())
        };
        let head = chain.last().map(|(_, hash)| hash.to_owned());
        let facts = |entry: AuditEntry| AuditFacts {
            no: entry.no,
            time: entry.time,
            event: entry.event.to_string(),
            node: entry.node.map(name),
            share: entry.share,
            detail: entry.detail,
        };
        AuditReport {
            node: name(node),
            problem,
            entries: entries.into_iter().map(facts).collect(),
            head,
        }
    }
}

/// What every custodian should have.
fn claims(map: &ClusterMap) -> Result<BTreeMap<NodeId, Vec<Claim>>, ControlError> {
    let mut claims: BTreeMap<NodeId, Vec<Claim>> = BTreeMap::new();
    for (secret, custody) in map.custodies() {
        let commitments = Commitments::from_bytes(&custody.commitments)
            .map_err(|error| ControlError::invalid(format!("the {secret}: {error}")))?;
        let share = custody.share_name(secret);
        for holder in &custody.holders {
            let claim = Claim { share, index: holder.share, commitments: commitments.clone() };
            claims.entry(holder.node).or_default().push(claim);
        }
    }
    Ok(claims)
}

fn verified(
    map: &ClusterMap,
    claims: &BTreeMap<NodeId, Vec<Claim>>,
    proofs: &Proofs,
    away: &BTreeSet<NodeId>,
    without: Vec<String>,
) -> VerifyReport {
    let mut proven = BTreeSet::new();
    let mut custodians = Vec::new();
    for (node, claims) in claims {
        let mut problems = Vec::new();
        let mut good = 0;
        match proofs.get(node) {
            Some(Ok(results)) => {
                for (claim, result) in claims.iter().zip(results) {
                    match result {
                        Ok(()) => {
                            good += 1;
                            proven.insert((*node, claim.share));
                        }
                        Err(why) => problems.push(format!("{}: {why}", claim.share.secret)),
                    }
                }
            }
            Some(Err(why)) => problems.push(why.clone()),
            None => problems.push("it was not asked".into()),
        }
        problems.truncate(PROBLEMS_MAX);
        custodians.push(VerifiedCustodian {
            node: map.nodes.get(node).map_or_else(|| node.to_string(), |entry| entry.name.clone()),
            proven: good,
            total: u32::try_from(claims.len()).unwrap_or(u32::MAX),
            problems,
        });
    }
    let secret = |(name, custody): (SecretName, &Custody)| {
        let share = custody.share_name(name);
        let holders = custody.holders.iter().map(|holder| holder.node);
        let counts =
            holders.filter(|node| !away.contains(node) && proven.contains(&(*node, share)));
        let (volume, key_epoch) = match name {
            SecretName::Master => (None, None),
            SecretName::Wrapping { volume, key_epoch } => {
                let found = map.volumes.values().find(|known| known.id == volume);
                (found.map(|volume| volume.name.clone()), Some(key_epoch))
            }
        };
        VerifiedSecret {
            volume,
            key_epoch,
            needed: custody.threshold,
            proven: u8::try_from(counts.count()).unwrap_or(u8::MAX),
            total: u8::try_from(custody.holders.len()).unwrap_or(u8::MAX),
        }
    };
    let secrets: Vec<VerifiedSecret> = map.custodies().map(secret).collect();
    let good = secrets.iter().all(|secret| secret.proven >= secret.needed);
    VerifyReport { good, without, custodians, secrets }
}
