//! Records as they lie in a store's files, also those that the store has deleted and not yet taken out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use smalti_storage::geometry::Layout;
use smalti_storage::ids::{ClusterId, GroupNo, KeyEpochNo, RowAddr, Slot, VolumeNo};
use smalti_storage::keys::ShardKey;
use smalti_storage::record::Record;
use smalti_storage::seal::{EpochKeys, Opened, SealIdentity, Sealer, VolumeKeys};

use super::Volume;

/// What RocksDB's blob files begin with: magic number, version, family, flags and times.
const FILE_HEAD: usize = 30;
const FILE_MAGIC: u32 = 2_395_959;
/// What stands before each record: lengths of key and value, a time, and two checksums.
const HEAD: usize = 32;
/// Bytes of the key of a version.
const KEY: usize = 31;

/// What the records of a store gave.
#[derive(Debug, Default)]
pub struct Loot {
    /// How many records of data slots there are, by the key epoch that they name.
    pub seen: BTreeMap<KeyEpochNo, u64>,
    /// How many of those opened.
    pub opened: BTreeMap<KeyEpochNo, u64>,
    /// Blocks, by address, with what was in them.
    pub blocks: Vec<(u64, Vec<u8>)>,
    /// The session keys of those that opened.
    pub sessions: BTreeSet<Session>,
    /// Their nonces.
    pub nonces: Nonces,
}

/// What was sealed with which nonce under which key.
#[derive(Debug, Clone, Default)]
pub struct Nonces(BTreeMap<(Session, [u8; 12]), [u8; 32]>);

impl Nonces {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes others too, and answers how many are of records that are others than those with the same nonce under the
    /// same key.
    pub fn add(&mut self, others: Self) -> usize {
        others
            .0
            .into_iter()
            .filter(|(at, record)| *self.0.entry(*at).or_insert(*record) != *record)
            .count()
    }

    fn note(&mut self, session: Session, nonce: [u8; 12], record: &[u8]) -> Result<()> {
        let one = Self(BTreeMap::from([((session, nonce), Sha256::digest(record).into())]));
        ensure!(self.add(one) == 0, "two records have one nonce: {session:?} {nonce:?}");
        Ok(())
    }
}

/// What a session key belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Session {
    salt: [u8; 16],
    key_epoch: KeyEpochNo,
    volume: VolumeNo,
    group: GroupNo,
    stripe: u64,
    slot: Slot,
}

impl Loot {
    /// How many records were seen in all, and how many opened.
    #[must_use]
    pub fn count(&self) -> (u64, u64) {
        (self.seen.values().sum(), self.opened.values().sum())
    }

    /// The same of one key epoch.
    #[must_use]
    pub fn of(&self, key_epoch: u32) -> (u64, u64) {
        let of = |counts: &BTreeMap<KeyEpochNo, u64>| {
            counts.get(&KeyEpochNo(key_epoch)).copied().unwrap_or(0)
        };
        (of(&self.seen), of(&self.opened))
    }
}

impl Session {
    /// Derives it, as `docs/formats.md` says.
    ///
    /// # Errors
    /// When the volume has no such key.
    pub fn key(&self, volumes: &BTreeMap<VolumeNo, Volume>) -> Result<[u8; 32]> {
        let volume = volumes.get(&self.volume).context("the volume")?;
        let columns = volume.keys.get(&self.key_epoch).context("the key epoch")?;
        let at = usize::from(self.group.0) * usize::from(volume.geometry.data)
            + usize::from(self.slot.0);
        let column: &ShardKey = columns.get(at).context("the column")?;
        let info: [&[u8]; 6] = [
            b"smalti session key v1",
            &[1],
            volume.id.0.as_bytes(),
            &self.key_epoch.0.to_be_bytes(),
            &self.stripe.to_be_bytes(),
            &[self.slot.0],
        ];
        let mut key = [0; 32];
        let hkdf = Hkdf::<Sha256>::new(Some(&self.salt), column.expose());
        hkdf.expand_multi_info(&info, &mut key).ok().context("32 bytes are few")?;
        Ok(key)
    }
}

/// The place of a record, by its key.
struct At {
    volume: VolumeNo,
    row: RowAddr,
    slot: Slot,
}

pub(super) fn open(
    cluster: ClusterId,
    volumes: &BTreeMap<VolumeNo, Volume>,
    store: &Path,
) -> Result<Loot> {
    let mut tools = BTreeMap::new();
    for (no, volume) in volumes {
        tools.insert(*no, Tools::new(cluster, volume)?);
    }
    let mut loot = Loot::default();
    for file in blob_files(store)? {
        let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        for (at, record) in carve(&bytes).with_context(|| format!("{}", file.display()))? {
            let Some(volume) = volumes.get(&at.volume) else { continue };
            // Parity is no record; what is made of it with other nodes' records are those of this one again.
            if at.slot.0 >= volume.geometry.data {
                continue;
            }
            let Ok(Record::Present { header, .. }) = Record::decode(record) else { continue };
            *loot.seen.entry(header.key_epoch).or_default() += 1;
            let Some(tools) = tools.get(&at.volume) else { continue };
            if let Some((block, plaintext)) = tools.open(&at, record) {
                *loot.opened.entry(header.key_epoch).or_default() += 1;
                loot.blocks.push((block, plaintext));
                let RowAddr { group, stripe, .. } = at.row;
                let (salt, key_epoch) = (header.salt, header.key_epoch);
                let (volume, slot) = (at.volume, at.slot);
                let session = Session { salt, key_epoch, volume, group, stripe, slot };
                loot.sessions.insert(session);
                loot.nonces.note(session, header.nonce, record)?;
            }
        }
    }
    Ok(loot)
}

/// What opens records of one volume: with its keys, and with each guess at those that are missing.
struct Tools {
    layout: Option<Layout>,
    sealers: Vec<Sealer>,
}

impl Tools {
    fn new(cluster: ClusterId, volume: &Volume) -> Result<Self> {
        let Some(place) = &volume.place else {
            return Ok(Self { layout: None, sealers: Vec::new() });
        };
        let identity = SealIdentity { cluster, volume: volume.id };
        let mut sealers = Vec::new();
        for keys in std::iter::once(&volume.keys).chain(&volume.guesses) {
            let Some(last) = keys.keys().next_back() else { continue };
            let epoch = |(no, keys): (&KeyEpochNo, &Vec<ShardKey>)| {
                Ok((*no, EpochKeys::new(&volume.geometry, keys.clone())?))
            };
            let epochs = keys.iter().map(epoch).collect::<Result<Vec<_>>>()?;
            let keys = Arc::new(VolumeKeys::new(place.clone(), *last, epochs)?);
            sealers.push(Sealer::new(identity, keys, [0; 16]));
        }
        Ok(Self { layout: Some(Layout::new(volume.geometry, place)), sealers })
    }

    fn open(&self, at: &At, record: &[u8]) -> Option<(u64, Vec<u8>)> {
        let block = self.layout.as_ref()?.block_of(at.row, at.slot)?;
        self.sealers.iter().find_map(|sealer| match sealer.open(block, at.row, at.slot, record) {
            Ok(Opened::Data(plaintext)) => Some((block, plaintext)),
            _ => None,
        })
    }
}

fn blob_files(store: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(store).with_context(|| format!("list {}", store.display()))?;
    let mut files = list.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "blob"));
    files.sort();
    Ok(files)
}

/// All that lies in a blob file, from its beginning to where nothing follows but its foot.
fn carve(file: &[u8]) -> Result<Vec<(At, &[u8])>> {
    let mut found = Vec::new();
    let Some((head, mut rest)) = file.split_at_checked(FILE_HEAD) else { return Ok(found) };
    ensure!(head.starts_with(&FILE_MAGIC.to_le_bytes()), "not a blob file");
    while let Some((head, body)) = rest.split_first_chunk::<HEAD>() {
        let length = |at: usize| {
            let bytes = head.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            usize::try_from(u64::from_le_bytes(bytes.unwrap_or_default())).unwrap_or(usize::MAX)
        };
        if length(0) != KEY {
            break;
        }
        let Some((key, body)) = body.split_at_checked(KEY) else { break };
        let Some((record, after)) = body.split_at_checked(length(8)) else { break };
        found.push((place(key).context("the key of a version")?, record));
        rest = after;
    }
    Ok(found)
}

fn place(key: &[u8]) -> Option<At> {
    let (volume, key) = key.split_first_chunk()?;
    let (group, key) = key.split_first_chunk()?;
    let (stripe, key) = key.split_first_chunk()?;
    let (index, key) = key.split_first_chunk()?;
    let row = RowAddr {
        group: GroupNo(u16::from_be_bytes(*group)),
        stripe: u64::from_be_bytes(*stripe),
        index: u32::from_be_bytes(*index),
    };
    Some(At { volume: VolumeNo(u32::from_be_bytes(*volume)), row, slot: Slot(*key.first()?) })
}
