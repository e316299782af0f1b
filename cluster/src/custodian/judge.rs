//! Who may have what of a custodian, by the map alone.

use smalti_map::{ClusterMap, Custodians, Custody};
use smalti_storage::ids::NodeId;
use smalti_storage::keys::{Commitments, KeyPart, SecretName, ShareName};

/// Why not, in words.
type Judgement<T> = Result<T, String>;

/// The custody that a share belongs to, if that is the one that counts.
fn custody<'a>(map: &'a ClusterMap, share: &ShareName) -> Judgement<&'a Custody> {
    let custody = map.custody_of(&share.secret).ok_or_else(|| match share.secret {
        SecretName::Master => "there is no master secret".to_owned(),
        SecretName::Wrapping { .. } => "the volume has no such key epoch".to_owned(),
    })?;
    if custody.share_name(share.secret) != *share {
        let now = custody.share_epoch;
        return Err(format!(
            "a share of share epoch {} is asked for, it is {now}",
            share.share_epoch
        ));
    }
    Ok(custody)
}

fn member(map: &ClusterMap, node: NodeId) -> Judgement<()> {
    if map.nodes.contains_key(&node) { Ok(()) } else { Err(format!("{node} is not a member")) }
}

/// Whether a node may have a share: a member may derive keys for a new volume; only the node that coordinates a
/// volume may open it.
pub(super) fn release(map: &ClusterMap, from: NodeId, share: &ShareName) -> Judgement<()> {
    member(map, from)?;
    if let SecretName::Wrapping { volume, .. } = share.secret {
        let volume = map.volumes.values().find(|v| v.id == volume).ok_or("no such volume")?;
        if volume.coordinator.map(|seat| seat.node) != Some(from) {
            return Err(format!("{from} does not coordinate the volume"));
        }
    }
    custody(map, share).map(drop)
}

/// The plan by which a share may be dealt on, and the commitments of the dealing that it is of. Nobody but the
/// map says to whom.
pub(super) fn deal_on<'a>(
    map: &'a ClusterMap,
    from: NodeId,
    share: &ShareName,
    share_epoch: u32,
) -> Judgement<(&'a Custodians, Commitments)> {
    member(map, from)?;
    let custody = custody(map, share)?;
    let plan = &map.custodians;
    if plan.share_epoch != share_epoch || custody.share_epoch >= share_epoch {
        let (now, of) = (plan.share_epoch, custody.share_epoch);
        return Err(format!(
            "to be dealt on for share epoch {share_epoch}; it is {now}, and the share's {of}"
        ));
    }
    let commitments = Commitments::from_bytes(&custody.commitments);
    Ok((plan, commitments.map_err(|error| error.to_string())?))
}

/// Whether a node may deal another master secret, and the share of it is what the custodian is to have.
pub(super) fn new_master(
    map: &ClusterMap,
    from: NodeId,
    (me, index): (NodeId, u8),
    share_epoch: u32,
) -> Judgement<()> {
    member(map, from)?;
    let plan = &map.custodians;
    if !plan.new_master || plan.share_epoch != share_epoch {
        return Err("no other master secret is wanted".into());
    }
    let own = own_share(plan, me)?;
    if own == index { Ok(()) } else { Err(format!("share {index} is given, {own} is to be here")) }
}

/// Whether a share is of the dealing that counts.
pub(super) fn is_of_use(map: &ClusterMap, share: &ShareName) -> bool {
    let custody = map.custody_of(&share.secret);
    custody.is_some_and(|custody| custody.share_name(share.secret) == *share)
}

/// What a share that somebody brings is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brought {
    /// A secret that the map does not know yet, or the dealing that it names.
    New,
    /// A secret that the map knows by another dealing, which cannot be dealt on: somebody had it whole again.
    Anew,
    /// Another master secret than that of the map.
    Other,
}

/// Whether a share may be kept that `from` brings. One of a secret that is in use, only while the map wants that
/// dealt to those who are to hold it, and only as it wants; that it is of the same secret tell its commitments.
/// It may yet come from somebody who does not know the secret, for one share alone can be made to match: so
/// nothing follows from it but that it is there.
pub(super) fn keep(
    map: &ClusterMap,
    from: NodeId,
    me: NodeId,
    share: &ShareName,
    (part, commitments): (&KeyPart, &Commitments),
) -> Judgement<Brought> {
    let used = map.custody_of(&share.secret);
    let is_master = share.secret == SecretName::Master;
    let is_same = |used: &Custody| {
        let old = Commitments::from_bytes(&used.commitments).map_err(|error| error.to_string())?;
        Ok::<bool, String>(commitments.is_of_same_secret(&old))
    };
    if let Some(used) = used
        && is_master
        && !is_same(used)?
    {
        let needed = map.custodians.threshold;
        if commitments.threshold() != usize::from(needed) {
            let dealt = commitments.threshold();
            return Err(format!("dealt for a threshold of {dealt}, {needed} are to be needed"));
        }
        return new_master(map, from, (me, part.index()), share.share_epoch)
            .map(|()| Brought::Other);
    }
    // The master secret is dealt when the cluster is made, not over the network.
    let used = match used {
        None if !is_master => return Ok(Brought::New),
        Some(used) if !is_master && used.share_name(share.secret) == *share => {
            return Ok(Brought::New);
        }
        None => return Err("there is no master secret".into()),
        Some(used) => used,
    };
    if map.recovery.is_none() {
        return Err(match is_master {
            true => "the master secret is not dealt again".into(),
            false => "another share of that secret is in use".into(),
        });
    }
    member(map, from)?;
    let plan = &map.custodians;
    if share.share_epoch != plan.share_epoch || used.share_epoch >= share.share_epoch {
        let (now, of) = (plan.share_epoch, used.share_epoch);
        return Err(format!(
            "another share of that secret is in use, of share epoch {of}; one of {} is brought, it is {now}",
            share.share_epoch
        ));
    }
    let own = own_share(plan, me)?;
    if part.index() != own {
        return Err(format!("share {} is brought, {own} is to be here", part.index()));
    }
    if commitments.threshold() != usize::from(plan.threshold) {
        return Err(format!("dealt for a threshold of {}", commitments.threshold()));
    }
    if !is_same(used)? {
        return Err("it is a share of another secret".into());
    }
    Ok(Brought::Anew)
}

/// The number of the share that this node is to have.
pub(super) fn own_share(plan: &Custodians, me: NodeId) -> Judgement<u8> {
    plan.share_of(me).ok_or_else(|| format!("{me} is to have no share"))
}

/// Whether that node is the dealer it says it is.
pub(super) fn dealer(
    map: &ClusterMap,
    from: NodeId,
    share: &ShareName,
    index: u8,
) -> Judgement<()> {
    let custody = custody(map, share)?;
    let is = custody.share_of(from) == Some(index);
    if is { Ok(()) } else { Err(format!("{from} does not hold share {index}")) }
}

/// What of a custodian's shares is still of use. What the map says nothing of yet is: shares are kept before it
/// names what they are of, and before it takes the dealing that they are of. It takes none of a secret that it
/// knows for a share epoch that is over.
pub(super) fn is_wanted(map: &ClusterMap, share: &ShareName) -> bool {
    if let Some(custody) = map.custody_of(&share.secret) {
        return *share == custody.share_name(share.secret)
            || share.share_epoch > custody.share_epoch
                && share.share_epoch >= map.custodians.share_epoch;
    }
    let SecretName::Wrapping { volume, key_epoch } = share.secret else { return true };
    let lives = map.volumes.values().any(|known| known.id == volume);
    // Of a volume that is gone nothing is needed, whichever key epoch it was for.
    let mut ended = map.retired_keys.iter().filter(|(of, _)| *of == volume);
    !ended.any(|(_, no)| *no == key_epoch || !lives)
}

/// What tells whether there may be shares to destroy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names(usize, u32, Vec<ShareName>);

pub(super) fn names(map: &ClusterMap) -> Names {
    let shares = map.custodies().map(|(secret, custody)| custody.share_name(secret));
    Names(map.retired_keys.len(), map.custodians.share_epoch, shares.collect())
}
