//! Keys of volumes: made at creation, opened at attach, both with the help of enough custodians.
//!
//! The master secret is assembled only to derive a volume's shard keys, and wiped at once; the
//! wrapping secret of a key epoch only to open them. Every share is verified before it is used,
//! and a bad one is named.

use crate::custodian::{Answer, Ask, CustodyService, SecretName};
use crate::fabric::{Fabric, service};
use rand::rngs::SysRng;
use rand::{CryptoRng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use smalti_map::{Custody, KeyEpoch, ShareHolder, Volume};
use smalti_storage::geometry::{Geometry, PlaceKey};
use smalti_storage::ids::{GroupNo, KeyEpochNo, NodeId, Slot, VolumeId};
use smalti_storage::keys::{
    Commitments, KeyBinding, KeyPart, MasterKey, Secret, ShardId, WrappedKey, WrappingKey,
    decrypt_place_key, decrypt_shard_key, derive_place_key, derive_shard_key, encrypt_place_key,
    encrypt_shard_key, get_key_parts, reconstruct_symmetric_key, verify_part,
};
use smalti_storage::seal::{EpochKeys, VolumeKeys};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a custodian has to answer.
const CUSTODIAN_TIMEOUT: Duration = Duration::from_secs(2);

/// Why keys are not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// Too few custodians gave a good share.
    #[error("sealed: {have} of {need} custodians gave their share{}", list(.problems))]
    Sealed {
        /// Good shares.
        have: usize,
        /// Shares needed.
        need: usize,
        /// Who did not, and why.
        problems: Vec<String>,
    },
    /// A custodian did not take its share of a new secret.
    #[error("custodian {node} did not take its share: {reason}")]
    NotKept {
        /// Who.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// What the map holds is not what was wrapped.
    #[error("key epoch {key_epoch} does not open: {reason}")]
    Damaged {
        /// Which.
        key_epoch: KeyEpochNo,
        /// Why.
        reason: String,
    },
    /// The system has no randomness to give.
    #[error("no randomness from the system: {0}")]
    Random(String),
}

fn list(problems: &[String]) -> String {
    if problems.is_empty() { String::new() } else { format!(" ({})", problems.join("; ")) }
}

/// Makes and opens the keys of volumes.
#[derive(Clone, Debug)]
pub struct KeyService {
    me: NodeId,
    fabric: Fabric,
    own: CustodyService,
}

impl KeyService {
    pub(crate) fn new(me: NodeId, fabric: Fabric, own: CustodyService) -> Self {
        Self { me, fabric, own }
    }

    /// Makes the first key epoch of a volume. Every custodian has its share of the new wrapping
    /// secret, durably, when this returns.
    ///
    /// # Errors
    /// See [`KeysError`].
    pub async fn create(
        &self,
        master: &Custody,
        volume: VolumeId,
        geometry: &Geometry,
        timestamp: u64,
    ) -> Result<KeyEpoch, KeysError> {
        let key = self.assemble(SecretName::Master, master).await?.master_key();
        let mut rng = system_rng()?;
        let no = KeyEpochNo(1);
        let secret = Secret::random(&mut rng);
        let wrapping = secret.wrapping_key();
        let (shard_keys, place_key) =
            wrap_all(&key, &wrapping, volume, no, geometry, timestamp, &mut rng);
        drop(key);
        let custody = self.deal(&secret, master, volume, no, &mut rng).await?;
        Ok(KeyEpoch { no, timestamp, shard_keys, place_key, custody })
    }

    /// Opens all key epochs of a volume that this node coordinates.
    ///
    /// # Errors
    /// See [`KeysError`].
    pub async fn open(
        &self,
        volume: &Volume,
        geometry: &Geometry,
    ) -> Result<VolumeKeys, KeysError> {
        let mut epochs = BTreeMap::new();
        let mut place = None;
        for (no, epoch) in &volume.key_epochs {
            let name = SecretName::Wrapping { volume: volume.id, key_epoch: *no };
            let wrapping = self.assemble(name, &epoch.custody).await?.wrapping_key();
            let damaged = |reason: String| KeysError::Damaged { key_epoch: *no, reason };
            epochs.insert(*no, unwrap_epoch(&wrapping, volume.id, epoch, geometry, &damaged)?);
            let wrapped = read_wrapped(&epoch.place_key).map_err(&damaged)?;
            let key = decrypt_place_key(&wrapping, &wrapped, volume.id, *no)
                .map_err(|error| damaged(error.to_string()))?;
            place = Some(key);
        }
        let none = || KeysError::Damaged { key_epoch: volume.key_epoch, reason: "missing".into() };
        let place: PlaceKey = place.ok_or_else(none)?;
        VolumeKeys::new(place, volume.key_epoch, epochs).map_err(|error| KeysError::Damaged {
            key_epoch: volume.key_epoch,
            reason: error.to_string(),
        })
    }

    async fn ask(&self, node: NodeId, ask: Ask) -> Answer {
        if node == self.me {
            return self.own.ask(node, ask).await;
        }
        let request = ask.encode();
        match self.fabric.call(node, service::CUSTODY, request, CUSTODIAN_TIMEOUT).await {
            Ok(bytes) => {
                Answer::decode(&bytes).unwrap_or_else(|| Answer::Refused("malformed answer".into()))
            }
            Err(error) => Answer::Refused(error.to_string()),
        }
    }

    /// Collects enough good shares of a secret and puts it together.
    async fn assemble(&self, name: SecretName, custody: &Custody) -> Result<Secret, KeysError> {
        let need = usize::from(custody.threshold);
        let sealed = |have, problems| KeysError::Sealed { have, need, problems };
        let commitments = Commitments::from_bytes(&custody.commitments)
            .map_err(|error| sealed(0, vec![error.to_string()]))?;
        // All are asked at once, so that one that is down costs no time while enough answer.
        let mut answers: futures::stream::FuturesUnordered<_> = custody
            .holders
            .iter()
            .map(|holder| async move {
                (*holder, self.ask(holder.node, Ask::Release { secret: name }).await)
            })
            .collect();
        let mut parts: Vec<KeyPart> = Vec::new();
        let mut problems = Vec::new();
        while parts.len() < need {
            let Some((holder, answer)) = futures::StreamExt::next(&mut answers).await else {
                break;
            };
            match good_part(holder, answer, &commitments) {
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

    /// Splits a new secret over the custodians of the master secret. Each must keep its share.
    async fn deal(
        &self,
        secret: &Secret,
        like: &Custody,
        volume: VolumeId,
        key_epoch: KeyEpochNo,
        rng: &mut impl CryptoRng,
    ) -> Result<Custody, KeysError> {
        let total = u8::try_from(like.holders.len()).unwrap_or(u8::MAX);
        let dealing = get_key_parts(secret, like.threshold, total, rng)
            .map_err(|error| KeysError::Damaged { key_epoch, reason: error.to_string() })?;
        let commitments = dealing.commitments.to_bytes();
        let name = SecretName::Wrapping { volume, key_epoch };
        let mut holders = Vec::new();
        for (holder, part) in like.holders.iter().zip(&dealing.parts) {
            let share = crate::custodian::ShareBytes(part.to_bytes());
            let ask = Ask::Keep { secret: name, share, commitments: commitments.clone() };
            match self.ask(holder.node, ask).await {
                Answer::Kept => {}
                Answer::Refused(reason) => {
                    return Err(KeysError::NotKept { node: holder.node, reason });
                }
                Answer::Released(_) => {
                    let reason = "answered out of turn".into();
                    return Err(KeysError::NotKept { node: holder.node, reason });
                }
            }
            holders.push(ShareHolder { node: holder.node, share: part.index() });
        }
        Ok(Custody { threshold: like.threshold, holders, commitments })
    }
}

fn good_part(
    holder: ShareHolder,
    answer: Answer,
    commitments: &Commitments,
) -> Result<KeyPart, String> {
    let share = match answer {
        Answer::Released(share) => share,
        Answer::Refused(why) => return Err(why),
        Answer::Kept => return Err("answered out of turn".into()),
    };
    let part = KeyPart::from_bytes(&share.0).map_err(|error| error.to_string())?;
    if part.index() != holder.share {
        return Err(format!("gave share {} for share {}", part.index(), holder.share));
    }
    verify_part(&part, commitments).map_err(|error| error.to_string())?;
    Ok(part)
}

/// A generator for keys and salts, seeded by the system.
///
/// # Errors
/// When the system has no randomness to give.
pub fn system_rng() -> Result<ChaCha20Rng, KeysError> {
    ChaCha20Rng::try_from_rng(&mut SysRng).map_err(|error| KeysError::Random(error.to_string()))
}

fn columns(geometry: &Geometry) -> impl Iterator<Item = (GroupNo, Slot)> {
    let data = geometry.data;
    (0..geometry.groups).flat_map(move |g| (0..data).map(move |s| (GroupNo(g), Slot(s))))
}

fn wrap_all(
    master: &MasterKey,
    wrapping: &WrappingKey,
    volume: VolumeId,
    key_epoch: KeyEpochNo,
    geometry: &Geometry,
    timestamp: u64,
    rng: &mut impl CryptoRng,
) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut nonce = || {
        let mut nonce = [0u8; 12];
        rng.fill_bytes(&mut nonce);
        nonce
    };
    let shard_keys = columns(geometry)
        .map(|(group, slot)| {
            let shard = ShardId { volume, group, slot };
            let key = derive_shard_key(master, &shard, timestamp);
            let binding = KeyBinding { shard, key_epoch };
            write_wrapped(&encrypt_shard_key(wrapping, &key, &binding, nonce()))
        })
        .collect();
    let place = derive_place_key(master, volume);
    let place = encrypt_place_key(wrapping, &place, volume, key_epoch, nonce());
    (shard_keys, write_wrapped(&place))
}

fn unwrap_epoch(
    wrapping: &WrappingKey,
    volume: VolumeId,
    epoch: &KeyEpoch,
    geometry: &Geometry,
    damaged: &impl Fn(String) -> KeysError,
) -> Result<EpochKeys, KeysError> {
    let mut wrapped = columns(geometry).zip(&epoch.shard_keys);
    let keys = wrapped
        .by_ref()
        .map(|((group, slot), bytes)| {
            let shard = ShardId { volume, group, slot };
            let binding = KeyBinding { shard, key_epoch: epoch.no };
            let wrapped = read_wrapped(bytes).map_err(damaged)?;
            decrypt_shard_key(wrapping, &wrapped, &binding)
                .map_err(|error| damaged(error.to_string()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    EpochKeys::new(geometry, keys).map_err(|error| damaged(error.to_string()))
}

fn write_wrapped(key: &WrappedKey) -> Vec<u8> {
    postcard::to_stdvec(key).expect("a vector grows and every field is serialisable")
}

fn read_wrapped(bytes: &[u8]) -> Result<WrappedKey, String> {
    postcard::from_bytes(bytes).map_err(|_| "not a wrapped key".to_owned())
}

/// The keys of a volume, shared by whoever seals and opens for it.
pub type SharedKeys = Arc<VolumeKeys>;
