//! A look at all blocks of a volume, in which those of older key epochs are sealed anew.

use super::RotationError;
use crate::attach::{Local, background_rows};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use smalti_cluster::{CoderHandle, Member};
use smalti_gateway::{GatewayError, Rows};
use smalti_map::Volume;
use smalti_rowcommit::coordinator::{BlockList, Contents, OpError};
use smalti_storage::ids::{GroupNo, KeyEpochNo, RowAddr, Slot, VolumeNo};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Blocks that are sealed anew in one go, in the order in which they lie in the volume.
const CHUNK: usize = 32;

/// How long what the coordinator said of how much may be under way is believed.
const WINDOW_AGE: Duration = Duration::from_millis(20);

/// Between two tries to list a group of which too much is out of reach.
const LIST_PAUSE: Duration = Duration::from_secs(1);
const LIST_TRIES: usize = 30;

/// What a look at all blocks found, and did.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// Blocks with contents under each key epoch, when they were listed.
    counted: BTreeMap<KeyEpochNo, u64>,
    /// Blocks of which nobody could tell.
    unknown: u64,
    /// Older contents that snapshots hold.
    held: u64,
    /// Blocks that were sealed anew.
    sealed: u64,
    /// Blocks that could not be.
    failed: u64,
}

impl Found {
    /// Whether nothing is sealed under older keys, as far as that could be seen.
    pub(super) fn is_clean(&self) -> bool {
        self.counted.len() <= 1 && self.unknown + self.held + self.failed == 0
    }

    /// Whether another look at once may find less.
    pub(super) fn goes_on(&self) -> bool {
        self.sealed > 0
    }
}

pub(super) struct Pass<'a> {
    member: &'a Member,
    no: VolumeNo,
    groups: u16,
    /// Which generation each key epoch began with, the newest first.
    since: Vec<(u32, KeyEpochNo)>,
    current: KeyEpochNo,
    coder: CoderHandle,
    rows: Arc<dyn Rows>,
    gateway: Arc<Local>,
    window: usize,
    asked: Option<Instant>,
    found: Found,
}

type Running = FuturesUnordered<tokio::task::JoinHandle<(usize, Result<usize, GatewayError>)>>;

impl<'a> Pass<'a> {
    pub(super) fn new(
        member: &'a Member,
        volume: &Volume,
        coder: &CoderHandle,
        gateway: Arc<Local>,
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
            current: volume.key_epoch,
            rows: background_rows(coder.clone(), gateway.generation()),
            coder,
            gateway,
            window: 0,
            asked: None,
            found: Found::default(),
        }
    }

    pub(super) async fn run(&mut self) -> Result<Found, RotationError> {
        let mut running = Running::new();
        let mut under_way = 0;
        for group in (0..self.groups).map(GroupNo) {
            let mut after = None;
            loop {
                let list = self.list(group, after).await?;
                after = list.next;
                let old = self.tally(&list);
                for chunk in old.chunks(CHUNK) {
                    self.until_room(&mut running, &mut under_way).await?;
                    let (gateway, rows) = (Arc::clone(&self.gateway), Arc::clone(&self.rows));
                    let (blocks, count) = (chunk.to_vec(), chunk.len());
                    under_way += count;
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
        while let Some(done) = running.next().await {
            self.note(done, &mut under_way)?;
        }
        self.tell();
        Ok(self.found.clone())
    }

    async fn list(
        &self,
        group: GroupNo,
        after: Option<RowAddr>,
    ) -> Result<BlockList, RotationError> {
        let mut tries = 1;
        loop {
            match self.coder.list(group, after).await {
                Ok(list) => return Ok(list),
                Err(OpError::Fenced) => return Err(RotationError::Moved),
                Err(OpError::Unreadable) if tries < LIST_TRIES => tries += 1,
                Err(error) => return Err(RotationError::List(error)),
            }
            tokio::time::sleep(LIST_PAUSE).await;
        }
    }

    /// Counts what is listed; the answer is what is to be sealed anew.
    fn tally(&mut self, list: &BlockList) -> Vec<(RowAddr, Slot)> {
        let mut old = Vec::new();
        for block in &list.blocks {
            let epoch = |generation: u32| {
                let began = self.since.iter().find(|(since, _)| *since <= generation);
                began.map_or(KeyEpochNo(0), |(_, no)| *no)
            };
            let is_old = match block.contents {
                Contents::Absent => false,
                Contents::Unknown => {
                    self.found.unknown += 1;
                    true
                }
                Contents::Since(generation) => {
                    let no = epoch(generation);
                    *self.found.counted.entry(no).or_default() += 1;
                    no < self.current
                }
            };
            let held = block.held.iter().filter(|generation| epoch(**generation) < self.current);
            self.found.held += held.count() as u64;
            if is_old {
                old.push((block.row, block.slot));
            }
        }
        old
    }

    /// Waits until more may be begun: as much as repairs may be under way, for clients' sake.
    async fn until_room(
        &mut self,
        running: &mut Running,
        under_way: &mut usize,
    ) -> Result<(), RotationError> {
        loop {
            if self.asked.is_none_or(|asked| asked.elapsed() > WINDOW_AGE) {
                let status = self.coder.status().await.ok_or(RotationError::Moved)?;
                (self.window, self.asked) = (status.window, Some(Instant::now()));
                self.tell();
            }
            let first = *under_way == 0 && self.window > 0;
            if first || *under_way + CHUNK <= self.window {
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
        done: Result<(usize, Result<usize, GatewayError>), tokio::task::JoinError>,
        under_way: &mut usize,
    ) -> Result<(), RotationError> {
        let (count, result) = done.map_err(|error| {
            tracing::error!(%error, "sealing anew failed");
            GatewayError::Internal
        })?;
        *under_way -= count;
        match result {
            Ok(sealed) => self.found.sealed += sealed as u64,
            // They concern these blocks alone.
            Err(
                error @ (GatewayError::Unreadable
                | GatewayError::Forged { .. }
                | GatewayError::Stale { .. }),
            ) => {
                tracing::warn!(volume = %self.no, %error, "blocks are not sealed anew");
                self.found.failed += count as u64;
            }
            Err(GatewayError::Fenced) => return Err(RotationError::Moved),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn tell(&self) {
        let found = self.found.clone();
        self.member.tell_keys(self.no, |told| {
            told.counted = found.counted.into_iter().collect();
            (told.unknown, told.held) = (found.unknown, found.held);
            (told.sealed, told.failed) = (found.sealed, found.failed);
            told.why = None;
        });
    }
}
