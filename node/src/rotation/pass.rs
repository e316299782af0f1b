//! A look at all blocks of a volume, in which those of older key epochs are sealed anew.

use super::{RotationError, Urgency, Urgent, can_begin};
use crate::attach::{Local, background_rows};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use smalti_cluster::{CoderHandle, Member};
use smalti_gateway::{GatewayError, Resealed, Rows};
use smalti_map::Volume;
use smalti_rowcommit::coordinator::{BlockList, Contents, OpError};
use smalti_storage::ids::{GroupNo, KeyEpochNo, RowAddr, Slot, VolumeNo};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

/// Blocks that are sealed anew in one go, in the order in which they lie in the volume.
const CHUNK: usize = 32;

/// How long what the coordinator said of how much may be under way is believed.
const WINDOW_AGE: Duration = Duration::from_millis(20);

/// Between two tries to list a group of which too much is out of reach.
const LIST_PAUSE: Duration = Duration::from_millis(500);
const LIST_TRIES: usize = 4;

/// What a look at all blocks found, and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The key epoch of new records.
    pub(super) current: KeyEpochNo,
    /// Blocks with contents under each key epoch, when they were listed.
    pub(super) counted: BTreeMap<KeyEpochNo, u64>,
    /// Blocks of which nobody could tell.
    pub(super) unknown: u64,
    /// Older contents that snapshots hold.
    pub(super) held: u64,
    /// Blocks that were sealed anew.
    pub(super) sealed: u64,
    /// Blocks that could not be.
    pub(super) failed: u64,
    /// Groups that could not be listed.
    pub(super) unlisted: u64,
    /// It was broken off, for new keys are wanted.
    pub(super) stopped: bool,
}

impl Found {
    /// Whether it saw every block, and none that may be sealed under older keys. One that was sealed anew was
    /// not: what else may have been made of it meanwhile the next look sees.
    pub(super) fn is_clean(&self) -> bool {
        let older = self.counted.keys().any(|no| *no < self.current);
        let left = self.unknown + self.held + self.sealed + self.failed + self.unlisted;
        !older && left == 0 && !self.stopped
    }

    /// Whether another look at once may find less.
    pub(super) fn goes_on(&self) -> bool {
        self.sealed > 0 || self.stopped
    }

    /// Counts what is listed; `since` says with which generations key epochs began, the newest first. The
    /// answer is what is to be sealed anew.
    pub(super) fn tally(
        &mut self,
        list: &BlockList,
        since: &[(u32, KeyEpochNo)],
    ) -> Vec<(RowAddr, Slot)> {
        let epoch = |generation: u32| {
            let began = since.iter().find(|(since, _)| *since <= generation);
            began.map_or(KeyEpochNo(0), |(_, no)| *no)
        };
        let mut old = Vec::new();
        for block in &list.blocks {
            let is_old = match block.contents {
                Contents::Absent => false,
                Contents::Unknown => {
                    self.unknown += 1;
                    true
                }
                Contents::Since(generation) => {
                    let no = epoch(generation);
                    *self.counted.entry(no).or_default() += 1;
                    no < self.current
                }
            };
            let held = block.held.iter().filter(|generation| epoch(**generation) < self.current);
            self.held += held.count() as u64;
            if is_old {
                old.push((block.row, block.slot));
            }
        }
        old
    }
}

/// Blocks that are sealed anew at once under revoked keys, whatever clients notice of it.
const URGENT_WINDOW: usize = 128;

pub(super) struct Pass<'a> {
    member: &'a Member,
    no: VolumeNo,
    groups: u16,
    /// Which generation each key epoch began with, the newest first.
    since: Vec<(u32, KeyEpochNo)>,
    /// New keys are wanted already, and could not be made: when they are tried again at the earliest.
    pub(super) again: Option<Instant>,
    coder: CoderHandle,
    rows: Arc<dyn Rows>,
    gateway: Arc<Local>,
    /// Which looks there are for the sake of revoked keys; this one, while it has that.
    urgent: Urgent,
    urgency: Option<Urgency>,
    window: usize,
    asked: Option<Instant>,
    found: Found,
}

/// A chunk, and what became of it.
type Done = (usize, Result<Resealed, GatewayError>);
type Running = FuturesUnordered<JoinHandle<Done>>;

impl<'a> Pass<'a> {
    pub(super) fn new(
        member: &'a Member,
        volume: &Volume,
        coder: &CoderHandle,
        gateway: Arc<Local>,
        urgent: Urgent,
    ) -> Self {
        let mut since: Vec<_> =
            volume.key_epochs.values().map(|epoch| (epoch.since, epoch.no)).collect();
        since.sort_unstable_by(|a, b| b.cmp(a));
        let coder = coder.in_background();
        Self {
            member,
            no: volume.no,
            groups: u16::try_from(volume.groups.len()).unwrap_or(u16::MAX),
            since,
            again: None,
            rows: background_rows(coder.clone(), gateway.generation()),
            coder,
            gateway,
            urgent,
            urgency: None,
            window: 0,
            asked: None,
            found: Found { current: volume.key_epoch, ..Found::default() },
        }
    }

    pub(super) async fn run(&mut self) -> Result<Found, RotationError> {
        let (mut running, mut under_way) = (Running::new(), 0);
        let mut result = self.look(&mut running, &mut under_way).await;
        // However it ended, what was begun is waited for: it would go on beside the next look.
        while let Some(done) = running.next().await {
            result = result.and(self.note(done, &mut under_way));
        }
        self.tell();
        result.map(|()| self.found.clone())
    }

    async fn look(
        &mut self,
        running: &mut Running,
        under_way: &mut usize,
    ) -> Result<(), RotationError> {
        for group in (0..self.groups).map(GroupNo) {
            let mut after = None;
            loop {
                // Metadata is not read in moments that are to be quiet either.
                self.until_room(0, running, under_way).await?;
                if self.is_wanted_anew() {
                    self.found.stopped = true;
                    return Ok(());
                }
                let Some(list) = self.list(group, after).await? else { break };
                after = list.next;
                let old = self.found.tally(&list, &self.since);
                for chunk in old.chunks(CHUNK) {
                    self.until_room(chunk.len(), running, under_way).await?;
                    if self.is_wanted_anew() {
                        self.found.stopped = true;
                        return Ok(());
                    }
                    let (gateway, rows) = (Arc::clone(&self.gateway), Arc::clone(&self.rows));
                    let (blocks, count) = (chunk.to_vec(), chunk.len());
                    *under_way += count;
                    running.push(tokio::spawn(async move {
                        (count, gateway.reseal(&blocks, &rows).await)
                    }));
                }
                if after.is_none() {
                    break;
                }
            }
            self.tell();
        }
        Ok(())
    }

    /// Whether somebody wants other keys than those that records are sealed under here.
    fn is_wanted_anew(&self) -> bool {
        let map = self.member.map();
        let Some(volume) = map.volumes.get(&self.no).filter(|volume| volume.rotate) else {
            return false;
        };
        // What failed a moment ago is not tried again before it may succeed.
        self.again.is_none_or(|again| {
            Instant::now() >= again && can_begin(self.member, &map, volume).is_ok()
        })
    }

    fn is_revoked(&self) -> bool {
        let map = self.member.map();
        map.volumes.get(&self.no).is_some_and(|volume| volume.revoked.is_some())
    }

    /// `None`: too much of the group is out of reach.
    async fn list(
        &mut self,
        group: GroupNo,
        after: Option<RowAddr>,
    ) -> Result<Option<BlockList>, RotationError> {
        for _ in 0..LIST_TRIES {
            match self.coder.list(group, after).await {
                Ok(list) => return Ok(Some(list)),
                Err(OpError::Fenced) => return Err(RotationError::Moved),
                Err(OpError::Unreadable) => {}
                Err(error) => return Err(RotationError::List(error)),
            }
            tokio::time::sleep(LIST_PAUSE).await;
        }
        self.found.unlisted += 1;
        Ok(None)
    }

    /// Waits until so much more may be begun: as much as repairs may be under way, for clients' sake. Not if new keys
    /// are wanted meanwhile.
    async fn until_room(
        &mut self,
        more: usize,
        running: &mut Running,
        under_way: &mut usize,
    ) -> Result<(), RotationError> {
        loop {
            if self.asked.is_none_or(|asked| asked.elapsed() > WINDOW_AGE) {
                if self.is_wanted_anew() {
                    return Ok(());
                }
                let status = self.coder.status().await.ok_or(RotationError::Moved)?;
                let revoked = self.is_revoked();
                if !revoked {
                    self.urgency = None;
                } else if self.urgency.is_none() {
                    self.urgency = Some(self.urgent.begin());
                }
                // It takes some room at any rate, and waits for nobody.
                let window = match revoked {
                    true => status.window.max(URGENT_WINDOW),
                    false if self.urgent.is_under_way() => 0,
                    false => status.window,
                };
                (self.window, self.asked) = (window, Some(Instant::now()));
                self.tell();
            }
            let first = more == 0 || *under_way == 0;
            if self.window > 0 && (first || *under_way + more <= self.window) {
                return Ok(());
            }
            tokio::select! {
                Some(done) = running.next() => self.note(done, under_way)?,
                () = tokio::time::sleep(WINDOW_AGE) => {}
            }
        }
    }

    fn note(
        &mut self,
        done: Result<Done, JoinError>,
        under_way: &mut usize,
    ) -> Result<(), RotationError> {
        let (count, result) = done.map_err(|error| {
            tracing::error!(%error, "sealing anew failed");
            GatewayError::Internal
        })?;
        *under_way -= count;
        match result {
            Ok(Resealed { sealed, failed }) => {
                self.found.sealed += sealed;
                self.found.failed += failed;
                Ok(())
            }
            Err(GatewayError::Fenced) => Err(RotationError::Moved),
            Err(error) => Err(error.into()),
        }
    }

    fn tell(&self) {
        let found = self.found.clone();
        self.member.tell_keys(self.no, |told| {
            told.counted = found.counted.into_iter().collect();
            (told.unknown, told.held) = (found.unknown, found.held);
            (told.sealed, told.failed) = (found.sealed, found.failed);
            told.unlisted = found.unlisted;
        });
    }
}
