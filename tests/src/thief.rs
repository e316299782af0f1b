//! Somebody who has stolen folders of nodes, knows all formats, and makes of them what can be made: maps, shares,
//! secrets, keys, plaintext.
//!
//! He keeps to no rule of the product: he looks at every map that a Raft store tells of, committed or not, and at
//! every record that lies in a file, and tries old keys and derived ones. What he lacks are shares.

mod records;

pub use records::{Loot, Nonces, Session};

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use k256::Scalar;
use k256::elliptic_curve::PrimeField;
use serde::Deserialize;
use smalti_cluster::custodian::Vault;
use smalti_map::KeyEpoch;
use smalti_map::view::MapView;
use smalti_storage::geometry::{Geometry, PlaceKey};
use smalti_storage::ids::{ClusterId, GroupNo, KeyEpochNo, NodeId, Slot, VolumeId, VolumeNo};
use smalti_storage::keys::{
    Commitments, KeyBinding, KeyPart, MasterKey, RestKey, Secret, SecretName, ShardId, ShardKey,
    ShareName, WrappedKey, decrypt_place_key, decrypt_shard_key, derive_place_key,
    derive_shard_key, reconstruct_symmetric_key,
};

/// Bytes of a key part before its scalar: format, threshold and index.
const PART_HEAD: usize = 3;
/// Bytes of a wrapped key: format, nonce, sealed key, tag.
const WRAPPED: usize = 1 + 12 + 32 + 16;

/// What was stolen so far.
#[derive(Debug, Default)]
pub struct Thief {
    cluster: ClusterId,
    maps: Vec<MapView>,
    parts: BTreeMap<ShareName, BTreeMap<u8, KeyPart>>,
}

/// A secret that he has put together.
#[derive(Debug)]
pub struct Opened {
    /// As the product uses it.
    pub secret: Secret,
    /// Its bytes, the first one the most significant.
    pub bytes: [u8; 32],
}

/// What he knows of a volume.
#[derive(Debug)]
pub struct Volume {
    /// Its identity.
    pub id: VolumeId,
    /// How it is cut.
    pub geometry: Geometry,
    /// Where its blocks are, if he knows.
    pub place: Option<PlaceKey>,
    /// Its shard keys, by key epoch, in the order of group and slot.
    pub keys: BTreeMap<KeyEpochNo, Vec<ShardKey>>,
    /// Keys that he makes up for key epochs that he can not open.
    guesses: Vec<BTreeMap<KeyEpochNo, Vec<ShardKey>>>,
}

/// The part of a node's config that he reads.
#[derive(Debug, Deserialize)]
struct Config {
    cluster: ClusterId,
    node: NodeId,
    data_dir: PathBuf,
    custody: CustodyFiles,
}

#[derive(Debug, Deserialize)]
struct CustodyFiles {
    shares_dir: PathBuf,
    key_file: PathBuf,
}

/// All that was ever said of a volume.
struct Said {
    id: VolumeId,
    geometry: Geometry,
    /// Of one number there may be several, of which the group has taken one.
    epochs: BTreeMap<(KeyEpochNo, Vec<u8>), KeyEpoch>,
}

impl Thief {
    /// Takes everything in a node's folder.
    ///
    /// # Errors
    /// When it is no folder of a node, or of another cluster.
    pub fn take(&mut self, folder: &Path) -> Result<()> {
        self.take_maps(folder)?;
        self.take_shares(folder)
    }

    /// Takes all maps that its Raft store tells of. The node must not run.
    ///
    /// # Errors
    /// When they can not be read.
    pub fn take_maps(&mut self, folder: &Path) -> Result<()> {
        let raft = self.config(folder)?.data_dir.join("raft");
        let before = self.maps.len();
        smalti_raft::read_stopped(&raft, |map| self.maps.push(Arc::clone(map)))
            .with_context(|| format!("read {}", raft.display()))?;
        ensure!(self.maps.len() > before, "{} has no map", raft.display());
        Ok(())
    }

    /// Takes its key shares, with the key that they are sealed under.
    ///
    /// # Errors
    /// When one does not open.
    pub fn take_shares(&mut self, folder: &Path) -> Result<()> {
        let vault = self.vault(folder)?;
        for name in vault.names()? {
            let part = vault.find(&name).with_context(|| format!("open {name}"))?;
            self.parts.entry(name).or_default().insert(part.index(), part);
        }
        Ok(())
    }

    /// Where a node's shares are, with what opens and seals them.
    ///
    /// # Errors
    /// When it has no key file.
    pub fn vault(&mut self, folder: &Path) -> Result<Vault> {
        let config = self.config(folder)?;
        let key = fs::read(&config.custody.key_file).context("read the custodian's key")?;
        let key: [u8; 32] = key.as_slice().try_into().context("a key has 32 bytes")?;
        let sealer = Arc::new(RestKey::new(key));
        Ok(Vault::new(config.custody.shares_dir, config.cluster, config.node, sealer))
    }

    /// Every share that he has, with its name.
    #[must_use]
    pub fn shares(&self) -> Vec<(String, [u8; 32])> {
        let all = self
            .parts
            .iter()
            .flat_map(|(name, parts)| parts.values().map(move |part| (name, part)));
        all.filter_map(|(name, part)| {
            let value = part.to_bytes().get(PART_HEAD..)?.try_into().ok()?;
            Some((format!("share {} of {name}", part.index()), value))
        })
        .collect()
    }

    fn config(&mut self, folder: &Path) -> Result<Config> {
        let file = folder.join("node.toml");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let mut config: Config = toml::from_str(&text)?;
        let Config { data_dir, custody, .. } = &mut config;
        for path in [data_dir, &mut custody.shares_dir, &mut custody.key_file] {
            *path = folder.join(&*path);
        }
        ensure!(
            self.cluster == ClusterId::default() || self.cluster == config.cluster,
            "a node of another cluster"
        );
        self.cluster = config.cluster;
        Ok(config)
    }

    /// The secrets that his shares are enough for, in any dealing that he has heard of.
    ///
    /// # Errors
    /// When shares that are enough give none.
    pub fn secrets(&self) -> Result<BTreeMap<SecretName, Opened>> {
        let mut secrets = BTreeMap::new();
        for (name, commitments) in self.dealings() {
            let commitments = Commitments::from_bytes(&commitments)?;
            let parts = self.parts.get(&name).into_iter().flat_map(BTreeMap::values);
            let parts: Vec<KeyPart> = parts.take(commitments.threshold()).cloned().collect();
            if parts.len() < commitments.threshold() {
                // Whatever the product would say to so few.
                let few = reconstruct_symmetric_key(&parts, &commitments);
                ensure!(few.is_err(), "{name} opens with {} parts", parts.len());
                continue;
            }
            let secret = reconstruct_symmetric_key(&parts, &commitments)
                .with_context(|| format!("combine {name}"))?;
            let bytes = combine(&parts)?;
            secrets.insert(name.secret, Opened { secret, bytes });
        }
        Ok(secrets)
    }

    fn dealings(&self) -> BTreeMap<ShareName, Vec<u8>> {
        let custodies = self.maps.iter().flat_map(|map| map.custodies());
        // The first map has none yet.
        let dealt = custodies.filter(|(_, custody)| !custody.commitments.is_empty());
        dealt
            .map(|(name, custody)| (custody.share_name(name), custody.commitments.clone()))
            .collect()
    }

    /// What he knows of every volume that there is or was.
    ///
    /// # Errors
    /// When a secret does not open the keys that it belongs to.
    pub fn volumes(&self) -> Result<BTreeMap<VolumeNo, Volume>> {
        let secrets = self.secrets()?;
        let master = secrets.get(&SecretName::Master);
        let mut volumes = BTreeMap::new();
        for (no, said) in self.said()? {
            let Said { id, geometry, epochs } = said;
            let place = master.map(|it| derive_place_key(&it.secret.master_key(), id));
            let (keys, guesses) = (BTreeMap::new(), Vec::new());
            let mut volume = Volume { id, geometry, place, keys, guesses };
            let mut wrapping = Vec::new();
            for epoch in epochs.values() {
                let name = SecretName::Wrapping { volume: id, key_epoch: epoch.no };
                if let Some(opened) = secrets.get(&name) {
                    volume.unwrap(epoch, &opened.secret)?;
                    wrapping.push(&opened.secret);
                }
            }
            let closed = epochs.values().filter(|epoch| !volume.keys.contains_key(&epoch.no));
            let closed: Vec<(KeyEpochNo, u64)> = closed.map(|it| (it.no, it.timestamp)).collect();
            if let Some(master) = master {
                let master = &master.secret;
                let derived = wrapping.iter().map(|wrapping| master.epoch_master_key(wrapping));
                for master in derived.chain([master.master_key()]) {
                    volume.guess(&closed, |volume, at| volume.derive(&master, at));
                }
            }
            for keys in volume.keys.values().cloned().collect::<Vec<_>>() {
                volume.guess(&closed, |_, _| keys.clone());
            }
            volumes.insert(no, volume);
        }
        Ok(volumes)
    }

    fn said(&self) -> Result<BTreeMap<VolumeNo, Said>> {
        let mut all: BTreeMap<VolumeNo, Said> = BTreeMap::new();
        for volume in self.maps.iter().flat_map(|map| map.volumes.values()) {
            let groups = u16::try_from(volume.groups.len())?;
            let geometry = Geometry::new(volume.data, volume.parity, volume.shard_size, groups)?;
            let new = || Said { id: volume.id, geometry, epochs: BTreeMap::new() };
            let said = all.entry(volume.no).or_insert_with(new);
            for (no, epoch) in &volume.key_epochs {
                let key = (*no, epoch.place_key.clone());
                said.epochs.entry(key).or_insert_with(|| epoch.clone());
            }
        }
        Ok(all)
    }

    /// Opens what records lie in a node's folder with whatever he has.
    ///
    /// # Errors
    /// When its files are not as they should be.
    pub fn open_records(&mut self, folder: &Path) -> Result<Loot> {
        let store = self.config(folder)?.data_dir.join("store").join("db");
        records::open(self.cluster, &self.volumes()?, &store)
    }

    /// Every secret and every key that he has, each with its name.
    ///
    /// # Errors
    /// As [`Self::volumes`].
    pub fn keys(&self) -> Result<Vec<(String, [u8; 32])>> {
        let mut keys = Vec::new();
        let secrets = self.secrets()?;
        let master = secrets.get(&SecretName::Master);
        for (name, Opened { secret, bytes }) in &secrets {
            let mut reversed = *bytes;
            reversed.reverse();
            keys.push((format!("{name}"), *bytes));
            // As its limbs lie in memory.
            keys.push((format!("{name}, reversed"), reversed));
            match name {
                SecretName::Master => {
                    keys.push(("master key".into(), *secret.master_key().expose()));
                }
                SecretName::Wrapping { .. } => {
                    let wrapping = *secret.wrapping_key().expose();
                    keys.push((format!("wrapping key of the {name}"), wrapping));
                    let epoch = master.map(|it| it.secret.epoch_master_key(secret));
                    keys.extend(
                        epoch.map(|key| (format!("master key of the {name}"), *key.expose())),
                    );
                }
            }
        }
        for (no, volume) in self.volumes()? {
            let place = volume.place.iter();
            keys.extend(place.map(|key| (format!("place key of {no}"), *key.expose())));
            for (epoch, column) in &volume.keys {
                keys.extend(column.iter().enumerate().map(|(at, key)| {
                    (format!("shard key {at} of {no}, key epoch {epoch}"), *key.expose())
                }));
            }
        }
        Ok(keys)
    }
}

impl Volume {
    fn unwrap(&mut self, epoch: &KeyEpoch, secret: &Secret) -> Result<()> {
        let (wrapping, key_epoch) = (secret.wrapping_key(), epoch.no);
        let place = wrapped(&epoch.place_key)?;
        self.place = Some(decrypt_place_key(&wrapping, &place, self.id, key_epoch)?);
        let unwrap = |(shard, bytes): (ShardId, &Vec<u8>)| {
            let binding = KeyBinding { shard, key_epoch };
            Ok(decrypt_shard_key(&wrapping, &wrapped(bytes)?, &binding)?)
        };
        let keys = self.columns().zip(&epoch.shard_keys).map(unwrap).collect::<Result<_>>()?;
        self.keys.insert(key_epoch, keys);
        Ok(())
    }

    fn columns(&self) -> impl Iterator<Item = ShardId> + use<> {
        let (volume, geometry) = (self.id, self.geometry);
        let slots = move |group| {
            (0..geometry.data).map(Slot).map(move |slot| ShardId { volume, group, slot })
        };
        (0..geometry.groups).map(GroupNo).flat_map(slots)
    }

    fn derive(&self, master: &MasterKey, timestamp: u64) -> Vec<ShardKey> {
        self.columns().map(|shard| derive_shard_key(master, &shard, timestamp)).collect()
    }

    fn guess(&mut self, closed: &[(KeyEpochNo, u64)], keys: impl Fn(&Self, u64) -> Vec<ShardKey>) {
        let guessed = closed.iter().map(|(no, timestamp)| (*no, keys(self, *timestamp))).collect();
        self.guesses.push(guessed);
    }
}

/// A key as it is in the map, which is postcard's: fields of fixed length, one after the other.
fn wrapped(bytes: &[u8]) -> Result<WrappedKey> {
    ensure!(bytes.len() == WRAPPED, "a wrapped key has {WRAPPED} bytes, not {}", bytes.len());
    Ok(postcard::from_bytes(bytes)?)
}

/// The secret of so many parts: Lagrange's polynomial at zero.
fn combine(parts: &[KeyPart]) -> Result<[u8; 32]> {
    let mut points = Vec::new();
    for part in parts {
        let bytes = part.to_bytes();
        let value: [u8; 32] = bytes.get(PART_HEAD..).unwrap_or_default().try_into()?;
        let value = Option::<Scalar>::from(Scalar::from_repr(value.into()));
        points.push((Scalar::from(u64::from(part.index())), value.context("a scalar")?));
    }
    let indices: BTreeSet<u8> = parts.iter().map(KeyPart::index).collect();
    ensure!(indices.len() == parts.len(), "a part is there twice");
    let mut secret = Scalar::ZERO;
    for (x, value) in &points {
        let others = points.iter().filter(|(other, _)| other != x);
        let factor = |(other, _): &(Scalar, Scalar)| {
            let difference = Option::<Scalar>::from((*other - *x).invert());
            difference.map(|inverse| *other * inverse)
        };
        let weight = others.map(factor).try_fold(Scalar::ONE, |product, it| Some(product * it?));
        secret += *value * weight.context("two parts have one index")?;
    }
    Ok(secret.to_repr().into())
}
