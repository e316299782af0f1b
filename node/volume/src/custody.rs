//! Keys of volumes: made when a volume is cut, opened when it is attached, both with the help of
//! enough custodians.

use crate::cluster::Cluster;
use crate::error::KeysError;
use crate::metadata::ShardMetadata;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rand::CryptoRng;
use smalti_map::{Custodians, Custody, KeyEpoch, Recovery, ShareHolder};
use smalti_storage::geometry::{Geometry, PlaceKey};
use smalti_storage::ids::{GroupNo, KeyEpochNo, Slot, VolumeId};
use smalti_storage::keys::{
    Commitments, KeyBinding, KeyPart, MasterKey, Secret, SecretName, ShardId, WrappedKey,
    WrappingKey, decrypt_place_key, decrypt_shard_key, derive_place_key, derive_shard_key,
    encrypt_place_key, encrypt_shard_key, get_key_parts, reconstruct_symmetric_key,
    seal_for_recovery, system_rng, verify_part,
};
use smalti_storage::seal::{EpochKeys, VolumeKeys};
use std::collections::BTreeMap;

/// Makes the first key epoch of a volume. Every custodian has its share of the new wrapping
/// secret, durably, when this returns.
pub(crate) async fn make_keys(
    cluster: &dyn Cluster,
    volume: VolumeId,
    geometry: &Geometry,
) -> Result<KeyEpoch, KeysError> {
    make_epoch(cluster, volume, geometry, (KeyEpochNo(1), cluster.unix_seconds()), None).await
}

/// Makes the key epoch that follows on the current one. Nothing uses it before the map has it; every
/// custodian has its share, durably, when this returns.
pub(crate) async fn make_next_keys(
    cluster: &dyn Cluster,
    metadata: &ShardMetadata,
) -> Result<KeyEpoch, KeysError> {
    let (volume, key_epoch) = (metadata.volume, metadata.key_epoch);
    let damaged = |reason: String| KeysError::Damaged { key_epoch, reason };
    let current = metadata.key_epochs.get(&key_epoch).ok_or_else(|| damaged("missing".into()))?;
    let next = key_epoch.0.checked_add(1).map(KeyEpochNo);
    let next = next.ok_or_else(|| damaged("key epochs are used up".into()))?;
    let place = open_place(cluster, volume, current).await?;
    // Clocks differ, and may have been set back.
    let timestamp = cluster.unix_seconds().max(current.timestamp.saturating_add(1));
    make_epoch(cluster, volume, &metadata.geometry, (next, timestamp), Some(place)).await
}

/// A volume's placement key is the same in all of its key epochs; the first one derives it.
async fn make_epoch(
    cluster: &dyn Cluster,
    volume: VolumeId,
    geometry: &Geometry,
    (no, timestamp): (KeyEpochNo, u64),
    place: Option<PlaceKey>,
) -> Result<KeyEpoch, KeysError> {
    let custody = cluster.custody();
    let custodians = cluster.custodians();
    let mut rng = system_rng()?;
    let secret = Secret::random(&mut rng);
    let (shard_keys, place_key) = {
        let master = assemble(cluster, SecretName::Master, &custody).await?;
        let place = place.unwrap_or_else(|| derive_place_key(&master.master_key(), volume));
        let keys = Deriving { master: master.epoch_master_key(&secret), volume, no, timestamp };
        keys.wrap_all(&secret.wrapping_key(), geometry, &place, &mut rng)
    };
    let name = SecretName::Wrapping { volume, key_epoch: no };
    let sealed = seal(cluster, &secret, name, &mut rng)?;
    let custody = deal(cluster, &secret, &custodians, name, sealed, &mut rng).await?;
    // The map knows since when, once it has it.
    Ok(KeyEpoch { no, timestamp, since: 0, sealed: 0, shard_keys, place_key, custody })
}

async fn open_place(
    cluster: &dyn Cluster,
    volume: VolumeId,
    epoch: &KeyEpoch,
) -> Result<PlaceKey, KeysError> {
    let key_epoch = epoch.no;
    let damaged = |reason: String| KeysError::Damaged { key_epoch, reason };
    let name = SecretName::Wrapping { volume, key_epoch };
    let wrapping = assemble(cluster, name, &epoch.custody).await?.wrapping_key();
    let wrapped = read_wrapped(&epoch.place_key).map_err(damaged)?;
    decrypt_place_key(&wrapping, &wrapped, volume, key_epoch)
        .map_err(|error| damaged(error.to_string()))
}

/// Opens all key epochs of a volume.
pub(crate) async fn open_keys(
    cluster: &dyn Cluster,
    metadata: &ShardMetadata,
) -> Result<VolumeKeys, KeysError> {
    let volume = metadata.volume;
    let mut epochs = BTreeMap::new();
    let mut place = None;
    for (no, epoch) in &metadata.key_epochs {
        let name = SecretName::Wrapping { volume, key_epoch: *no };
        let wrapping = assemble(cluster, name, &epoch.custody).await?.wrapping_key();
        let damaged = |reason: String| KeysError::Damaged { key_epoch: *no, reason };
        epochs.insert(
            *no,
            unwrap_epoch(&wrapping, volume, epoch, &metadata.geometry).map_err(damaged)?,
        );
        let wrapped = read_wrapped(&epoch.place_key).map_err(damaged)?;
        let key = decrypt_place_key(&wrapping, &wrapped, volume, *no)
            .map_err(|error| damaged(error.to_string()))?;
        place = Some(key);
    }
    let key_epoch = metadata.key_epoch;
    let damaged = |reason: String| KeysError::Damaged { key_epoch, reason };
    let place = place.ok_or_else(|| damaged("missing".into()))?;
    VolumeKeys::new(place, key_epoch, epochs).map_err(|error| damaged(error.to_string()))
}

/// Collects enough good shares of a secret and puts it together.
async fn assemble(
    cluster: &dyn Cluster,
    name: SecretName,
    custody: &Custody,
) -> Result<Secret, KeysError> {
    let need = usize::from(custody.threshold);
    let sealed = |have, problems| KeysError::Sealed { have, need, problems };
    let commitments = Commitments::from_bytes(&custody.commitments)
        .map_err(|error| sealed(0, vec![error.to_string()]))?;
    if commitments.threshold() != need {
        let text =
            format!("the commitments are those of a threshold of {}", commitments.threshold());
        return Err(sealed(0, vec![text]));
    }
    let share = custody.share_name(name);
    // All are asked at once, so that one that is down costs no time while enough answer.
    let mut answers: FuturesUnordered<_> = custody
        .holders
        .iter()
        .map(|holder| async move { (*holder, cluster.release(holder.node, share).await) })
        .collect();
    let mut parts: Vec<KeyPart> = Vec::new();
    let mut problems = Vec::new();
    while parts.len() < need {
        let Some((holder, answer)) = answers.next().await else {
            break;
        };
        match answer.and_then(|part| good_part(holder, part, &commitments)) {
            Ok(part) => parts.push(part),
            Err(problem) => {
                tracing::warn!(node = %holder.node, %problem, "no share");
                problems.push(format!("{}: {problem}", holder.node));
            }
        }
    }
    if parts.len() < need {
        return Err(sealed(parts.len(), problems));
    }
    reconstruct_symmetric_key(&parts, &commitments)
        .map_err(|error| sealed(parts.len(), vec![error.to_string()]))
}

fn good_part(
    holder: ShareHolder,
    part: KeyPart,
    commitments: &Commitments,
) -> Result<KeyPart, String> {
    if part.index() != holder.share {
        return Err(format!("gave share {} for share {}", part.index(), holder.share));
    }
    verify_part(&part, commitments).map_err(|error| error.to_string())?;
    Ok(part)
}

/// Seals a new secret to the cluster's recovery secret, if it has one.
fn seal(
    cluster: &dyn Cluster,
    secret: &Secret,
    name: SecretName,
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, KeysError> {
    let Some(Recovery { commitments, .. }) = cluster.recovery() else { return Ok(Vec::new()) };
    let to = Commitments::from_bytes(&commitments).map_err(KeysError::Recovery)?;
    Ok(seal_for_recovery(secret, cluster.id(), name, &to, rng))
}

/// Splits a secret over those who are to hold shares. Each must keep its own.
pub(crate) async fn deal(
    cluster: &dyn Cluster,
    secret: &Secret,
    like: &Custodians,
    name: SecretName,
    sealed_for_recovery: Vec<u8>,
    rng: &mut impl CryptoRng,
) -> Result<Custody, KeysError> {
    let total = u8::try_from(like.holders.len()).unwrap_or(u8::MAX);
    let dealing = get_key_parts(secret, like.threshold, total, rng).map_err(KeysError::Split)?;
    let mut holders = Vec::new();
    for (holder, part) in like.holders.iter().zip(&dealing.parts) {
        cluster
            .keep(holder.node, name, like.share_epoch, part, &dealing.commitments)
            .await
            .map_err(|reason| KeysError::NotKept { node: holder.node, reason })?;
        holders.push(ShareHolder { node: holder.node, share: part.index() });
    }
    let commitments = dealing.commitments.to_bytes();
    let Custodians { share_epoch, threshold, .. } = *like;
    Ok(Custody { share_epoch, threshold, holders, commitments, sealed_for_recovery })
}

fn columns(geometry: &Geometry) -> impl Iterator<Item = (GroupNo, Slot)> {
    let data = geometry.data;
    (0..geometry.groups).flat_map(move |g| (0..data).map(move |s| (GroupNo(g), Slot(s))))
}

/// The keys of a key epoch that is being made.
struct Deriving {
    master: MasterKey,
    volume: VolumeId,
    no: KeyEpochNo,
    timestamp: u64,
}

impl Deriving {
    /// Every shard key, and the placement key, wrapped.
    fn wrap_all(
        &self,
        wrapping: &WrappingKey,
        geometry: &Geometry,
        place: &PlaceKey,
        rng: &mut impl CryptoRng,
    ) -> (Vec<Vec<u8>>, Vec<u8>) {
        let (volume, key_epoch) = (self.volume, self.no);
        let mut nonce = || {
            let mut nonce = [0u8; 12];
            rng.fill_bytes(&mut nonce);
            nonce
        };
        let shard_keys = columns(geometry)
            .map(|(group, slot)| {
                let shard = ShardId { volume, group, slot };
                let key = derive_shard_key(&self.master, &shard, self.timestamp);
                let binding = KeyBinding { shard, key_epoch };
                write_wrapped(&encrypt_shard_key(wrapping, &key, &binding, nonce()))
            })
            .collect();
        let place = encrypt_place_key(wrapping, place, volume, key_epoch, nonce());
        (shard_keys, write_wrapped(&place))
    }
}

fn unwrap_epoch(
    wrapping: &WrappingKey,
    volume: VolumeId,
    epoch: &KeyEpoch,
    geometry: &Geometry,
) -> Result<EpochKeys, String> {
    let keys = columns(geometry)
        .zip(&epoch.shard_keys)
        .map(|((group, slot), bytes)| {
            let shard = ShardId { volume, group, slot };
            let binding = KeyBinding { shard, key_epoch: epoch.no };
            let wrapped = read_wrapped(bytes)?;
            decrypt_shard_key(wrapping, &wrapped, &binding).map_err(|error| error.to_string())
        })
        .collect::<Result<Vec<_>, _>>()?;
    EpochKeys::new(geometry, keys).map_err(|error| error.to_string())
}

fn write_wrapped(key: &WrappedKey) -> Vec<u8> {
    postcard::to_stdvec(key).expect("a vector grows and every field is serialisable")
}

fn read_wrapped(bytes: &[u8]) -> Result<WrappedKey, String> {
    postcard::from_bytes(bytes).map_err(|_| "not a wrapped key".to_owned())
}
