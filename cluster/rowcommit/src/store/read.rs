//! Requests that only read: served from durable state, beside the order of updates.

use super::prove;
use crate::msg::{Answer, Ask, Frame, Reject, Reply, SCAN_LIMIT, ScannedSlot, Want};
use crate::snaps;
use bytes::Bytes;
use smalti_map::Coordinator as Coordinating;
use smalti_map::mutant::{Mutant, lives};
use smalti_storage::ids::{Epoch, GroupNo, NodeId, RowAddr, RowSlot, Slot, StoreId, VolumeNo};
use smalti_storage::store::{ShardStore, StoreError, VersionMeta};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Row slots to look ahead for the end of a row.
const SLOTS_OF_A_ROW: usize = 4;

pub(super) type Entries = BTreeMap<VolumeNo, (Epoch, Option<Coordinating>)>;

/// Whom readers obey: per volume the epoch of the store's map and its coordinator; nobody while
/// the store has promised a newer epoch than that.
#[derive(Debug, Default)]
pub struct Fence {
    pub(super) entries: RwLock<Entries>,
}

impl Fence {
    pub(super) fn replace(&self, entries: Entries) {
        *self.entries.write().unwrap_or_else(PoisonError::into_inner) = entries;
    }

    pub(super) fn snapshot(&self) -> Entries {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refuses(&self, from: NodeId, frame: &Frame) -> Option<Epoch> {
        let sender = Coordinating { node: from, incarnation: frame.incarnation };
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let (epoch, coordinator) = entries.get(&frame.volume)?;
        let wrong = *coordinator != Some(sender) || *epoch != frame.epoch;
        (wrong && !lives(Mutant::ObeyAnyone)).then_some(*epoch)
    }

    /// The newest epoch of a volume that readers know.
    pub fn epoch_of(&self, volume: VolumeNo) -> Option<Epoch> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(&volume).map(|(epoch, _)| *epoch)
    }
}

/// Serves reading requests concurrently with the core.
#[derive(Clone)]
pub struct ReadSide {
    store: Arc<dyn ShardStore>,
    fence: Arc<Fence>,
}

impl std::fmt::Debug for ReadSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadSide").field("fence", &self.fence).finish_non_exhaustive()
    }
}

impl ReadSide {
    /// Readers of `store` that obey `fence`.
    pub fn new(store: Arc<dyn ShardStore>, fence: Arc<Fence>) -> Self {
        Self { store, fence }
    }

    /// The newest epoch of a volume that readers know.
    pub fn epoch_of(&self, volume: VolumeNo) -> Option<Epoch> {
        self.fence.epoch_of(volume)
    }

    /// Answers a frame of nothing but reads.
    ///
    /// # Errors
    /// When the disk fails: the process must stop.
    pub fn handle(&self, from: NodeId, frame: &Frame) -> Result<Reply, StoreError> {
        let refused = match self.fence.epoch_of(frame.volume) {
            None => Some(Epoch(0)),
            Some(_) => self.fence.refuses(from, frame),
        };
        let stale = |known| Answer::Rejected(Reject::StaleEpoch { known });
        let answers = match refused {
            None => Some(self.serve_all(frame)?),
            Some(_) => None,
        };
        // A map that came meanwhile may have let the store delete what was about to be read.
        let refused = refused.or_else(|| self.fence.refuses(from, frame));
        let answers = match (refused, answers) {
            (None, Some(answers)) => answers,
            (known, _) => {
                let known = known.unwrap_or_default();
                frame.requests.iter().map(|r| (r.id, stale(known))).collect()
            }
        };
        let incarnation = self.store.opened().incarnation;
        Ok(Reply { volume: frame.volume, session: frame.session, incarnation, answers })
    }

    /// Answers all requests; the fetches among them with as few looks at the disk as there can be.
    fn serve_all(&self, frame: &Frame) -> Result<Vec<(u64, Answer)>, StoreError> {
        let (store, volume) = (self.store.as_ref(), frame.volume);
        let fetches: Vec<(RowSlot, Want)> = frame
            .requests
            .iter()
            .filter_map(|request| match &request.ask {
                Ask::Fetch { row, slot, want } => {
                    Some((RowSlot { volume, row: *row, slot: *slot }, *want))
                }
                _ => None,
            })
            .collect();
        let mut fetched = fetch_all(store, &fetches)?.into_iter();
        let mut answers = Vec::with_capacity(frame.requests.len());
        for request in &frame.requests {
            let answer = match &request.ask {
                Ask::Fetch { .. } => fetched.next().expect("one for each"),
                other => serve(store, volume, other)?,
            };
            answers.push((request.id, answer));
        }
        Ok(answers)
    }
}

/// Answers fetches: metadata of all of them first, then the records of those that want them.
fn fetch_all(
    store: &dyn ShardStore,
    fetches: &[(RowSlot, Want)],
) -> Result<Vec<Answer>, StoreError> {
    let named = |(at, want): &(RowSlot, Want)| match want {
        Want::Version(ver) => Some((*at, *ver)),
        _ => None,
    };
    let snap = |(_, want): &(RowSlot, Want)| match want {
        Want::HeldMeta(snap) | Want::Held(snap) => Some(*snap),
        _ => None,
    };
    let newest = |fetch: &&(RowSlot, Want)| named(fetch).is_none() && snap(fetch).is_none();
    let versions: Vec<_> = fetches.iter().filter_map(named).collect();
    let heads: Vec<_> = fetches.iter().filter(newest).map(|(at, _)| *at).collect();
    let held: Vec<_> = fetches.iter().filter(|f| snap(f).is_some()).map(|(at, _)| *at).collect();
    let mut versions = store.metas(&versions).into_iter();
    let mut heads = store.newest(&heads, 1).into_iter();
    let mut held = store.newest(&held, usize::MAX).into_iter();
    let mut answers = Vec::with_capacity(fetches.len());
    let mut wanted = Vec::new();
    for fetch @ (at, want) in fetches {
        let found = match (named(fetch), snap(fetch)) {
            (Some(_), _) => versions.next().expect("one for each"),
            (None, Some(snap)) => {
                let all = held.next().expect("one for each");
                all.map(|versions| snaps::held(&versions, snap).cloned())
            }
            (None, None) => heads.next().expect("one for each").map(|mut head| head.pop()),
        };
        answers.push(match found {
            Ok(Some(meta)) => {
                if !want.is_meta() && meta.present {
                    wanted.push((answers.len(), *at, meta.ver));
                }
                Answer::Version { meta, record: Bytes::new() }
            }
            Ok(None) => Answer::Missing,
            Err(StoreError::Corrupt { .. }) => Answer::Corrupt,
            Err(error) => return Err(error),
        });
    }
    let places: Vec<_> = wanted.iter().map(|(_, at, ver)| (*at, *ver)).collect();
    for ((index, ..), found) in wanted.iter().zip(store.records(&places)) {
        let Answer::Version { record, .. } = &mut answers[*index] else { continue };
        match found {
            Ok(Some(bytes)) => *record = bytes,
            // Stays without the bytes that its metadata speak of, and does not verify.
            Ok(None) | Err(StoreError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    for ((at, want), answer) in fetches.iter().zip(&mut answers) {
        if let Answer::Version { meta, record } = answer
            && !want.is_meta()
            && !(meta.verifies(*at, record) || lives(Mutant::ReadUnverified))
        {
            *answer = Answer::Corrupt;
        }
    }
    Ok(answers)
}

/// Answers one reading request.
pub(super) fn serve(
    store: &dyn ShardStore,
    volume: VolumeNo,
    ask: &Ask,
) -> Result<Answer, StoreError> {
    let answer = match ask {
        Ask::Fetch { row, slot, want } => {
            let fetch = (RowSlot { volume, row: *row, slot: *slot }, *want);
            Ok(fetch_all(store, &[fetch])?.pop().unwrap_or(Answer::Missing))
        }
        // The fence let it through, and it is moved before a promise is answered.
        Ask::Confirm => Ok(Answer::Ok),
        Ask::Versions { row, slot } => versions(store, RowSlot { volume, row: *row, slot: *slot }),
        Ask::Scan { group, after, limit } => {
            let after = after.map(|(row, slot)| RowSlot { volume, row, slot });
            let limit = usize::try_from(*limit).unwrap_or(SCAN_LIMIT).clamp(1, SCAN_LIMIT);
            let (entries, done) = scan(store, volume, *group, after, limit)?;
            Ok(Answer::Scanned { entries, done })
        }
        Ask::Digest { group, after, limit } => {
            let after = after.map(|(row, slot)| RowSlot { volume, row, slot });
            let limit = usize::try_from(*limit).unwrap_or(SCAN_LIMIT).clamp(1, SCAN_LIMIT);
            prove::digest(store, volume, *group, after, limit)
        }
        Ask::Prove { row, slot } => prove::prove(store, RowSlot { volume, row: *row, slot: *slot }),
        Ask::Changed { group, slot, of, after, limit } => {
            let limit = usize::try_from(*limit).unwrap_or(SCAN_LIMIT).clamp(1, SCAN_LIMIT);
            changed(store, volume, *group, (*slot, *of), *after, limit)
        }
        _ => Ok(Answer::Rejected(Reject::Invalid)),
    };
    match answer {
        Err(StoreError::Corrupt { .. }) => Ok(Answer::Corrupt),
        other => other,
    }
}

/// A page of a group: whole rows, and about `limit` versions. A row slot with damaged metadata
/// stands in it as such, so that one bad sector does not end the walk over all others.
pub(super) fn scan(
    store: &dyn ShardStore,
    volume: VolumeNo,
    group: GroupNo,
    mut after: Option<RowSlot>,
    limit: usize,
) -> Result<(Vec<ScannedSlot>, bool), StoreError> {
    let mut entries: Vec<ScannedSlot> = Vec::new();
    let mut count = 0;
    loop {
        let more = limit.saturating_sub(count).max(SLOTS_OF_A_ROW);
        let page = match store.scan(volume, group, after, more) {
            Ok(page) => page.into_iter().map(|(at, versions)| (at, Some(versions))).collect(),
            Err(StoreError::Corrupt { at, .. }) => vec![(at, None)],
            Err(error) => return Err(error),
        };
        let last = page.last().map(|(at, _)| *at);
        for (at, versions) in page {
            let begins = entries.last().is_none_or(|(row, ..)| *row != at.row);
            if count >= limit && begins {
                return Ok((entries, false));
            }
            if versions.as_ref().is_none_or(|versions| !versions.is_empty()) {
                count += versions.as_ref().map_or(1, Vec::len);
                entries.push((at.row, at.slot, versions));
            }
        }
        if last.is_none() || last <= after {
            return Ok((entries, true));
        }
        after = last;
    }
}

/// A page of a group's index, if it tells what a store lacks of a slot.
fn changed(
    store: &dyn ShardStore,
    volume: VolumeNo,
    group: GroupNo,
    of: (Slot, StoreId),
    after: Option<RowAddr>,
    limit: usize,
) -> Result<Answer, StoreError> {
    let index = store.index(volume, group)?;
    let names = index.is_some_and(|index| index.seats.contains(&of));
    if !names && !lives(Mutant::IndexOfAnybody) {
        return Ok(Answer::Missing);
    }
    let rows = store.changed(volume, group, after, limit)?;
    let done = rows.len() < limit;
    Ok(Answer::Changed { rows, done })
}

fn versions(store: &dyn ShardStore, at: RowSlot) -> Result<Answer, StoreError> {
    let mut versions = Vec::new();
    for meta in store.versions(at)? {
        let good = verified(store, at, &meta)?.is_some();
        versions.push((meta, good));
    }
    let prepared = store.prepared_at(at)?;
    Ok(Answer::Versions { versions, prepared })
}

fn verified(
    store: &dyn ShardStore,
    at: RowSlot,
    meta: &VersionMeta,
) -> Result<Option<Bytes>, StoreError> {
    let record = if meta.present {
        match store.record(at, meta.ver) {
            Ok(Some(record)) => record,
            Ok(None) | Err(StoreError::Corrupt { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
    } else {
        Bytes::new()
    };
    Ok(meta.verifies(at, &record).then_some(record))
}
