//! The state machine: the map in memory, rebuilt at start from the last snapshot and the log.

use crate::codec;
use crate::db::{Batch, Db, DbError, blocking, key};
use crate::log_store::any;
use crate::types::{
    Entry, LogId, MapRaft, Proposal, ProposalId, SnapshotMeta, StorageError, StorageIOError,
    StoredMembership,
};
use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot};
use serde::{Deserialize, Serialize};
use smalti_map::view::MapView;
use smalti_map::{Applied, ClusterMap};
use std::collections::VecDeque;
use std::io::Cursor;
use std::sync::Arc;
use tokio::sync::watch;

/// How many answers are remembered, to give a retried proposal the answer it had instead of
/// applying it again. Retries end within seconds; commands are changes of configuration.
pub const REMEMBERED_ANSWERS: usize = 256;

/// What a snapshot carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotBody {
    pub(crate) map: MapView,
    pub(crate) answers: VecDeque<(ProposalId, Applied)>,
}

/// Where the state machine publishes what it has applied.
#[derive(Clone, Default)]
pub(crate) struct Published {
    pub(crate) map: watch::Sender<MapView>,
    /// The first index not applied yet. Sent after the map of the same entries.
    pub(crate) next_index: watch::Sender<u64>,
}

/// The state machine half of the store.
pub(crate) struct StateMachine {
    db: Arc<Db>,
    published: Published,
    body: SnapshotBody,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl StateMachine {
    /// The state as of the last snapshot; openraft applies the log after it.
    pub(crate) async fn load(db: Arc<Db>, published: Published) -> Result<Self, DbError> {
        let stored = blocking(&db, read_snapshot).await?;
        let mut machine = Self {
            db,
            published,
            body: SnapshotBody::default(),
            applied: None,
            membership: StoredMembership::default(),
        };
        if let Some((meta, data)) = stored {
            let body = decode_body(&data)?;
            machine.replace(&meta, body);
        }
        Ok(machine)
    }

    fn replace(&mut self, meta: &SnapshotMeta, body: SnapshotBody) {
        self.body = body;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.publish();
    }

    fn publish(&self) {
        let map = Arc::clone(&self.body.map);
        self.published.map.send_if_modified(|published| {
            let is_new = !Arc::ptr_eq(published, &map);
            *published = map;
            is_new
        });
        self.published.next_index.send_replace(self.applied.map_or(0, |id| id.index + 1));
    }
}

impl SnapshotBody {
    /// Applies a proposal, or answers again what it was answered.
    pub(crate) fn apply(&mut self, proposal: &Proposal) -> Applied {
        let known = self.answers.iter().rev().find(|(id, _)| *id == proposal.id);
        if let Some((_, answer)) = known {
            return answer.clone();
        }
        // Readers hold the old map; this copies it at most once per round of `apply`.
        let answer = Arc::make_mut(&mut self.map).apply(&proposal.command);
        if self.answers.len() >= REMEMBERED_ANSWERS {
            self.answers.pop_front();
        }
        self.answers.push_back((proposal.id, answer.clone()));
        answer
    }
}

impl RaftStateMachine<MapRaft> for StateMachine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut answers = Vec::new();
        for entry in entries {
            self.applied = Some(entry.log_id);
            answers.push(match entry.payload {
                EntryPayload::Blank => Applied::Done,
                EntryPayload::Normal(proposal) => self.body.apply(&proposal),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Applied::Done
                }
            });
        }
        self.publish();
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            db: Arc::clone(&self.db),
            body: self.body.clone(),
            meta: SnapshotMeta {
                last_log_id: self.applied,
                last_membership: self.membership.clone(),
                // Names the state and not the act: two snapshots at one log id are the same.
                snapshot_id: self.applied.map_or_else(
                    || "empty".into(),
                    |id| format!("{}-{}-{}", id.leader_id.term, id.leader_id.node_id, id.index),
                ),
            },
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let signature = || Some(meta.signature());
        let data = snapshot.into_inner();
        let body = decode_body(&data)
            .map_err(|error| StorageIOError::read_snapshot(signature(), any(&error)))?;
        let stored = meta.clone();
        blocking(&self.db, move |db| write_snapshot(db, &stored, &data))
            .await
            .map_err(|error| StorageIOError::write_snapshot(signature(), any(&error)))?;
        self.replace(meta, body);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<MapRaft>>, StorageError> {
        let stored = blocking(&self.db, read_snapshot)
            .await
            .map_err(|error| StorageIOError::read_snapshot(None, any(&error)))?;
        let snapshot = |(meta, data)| Snapshot { meta, snapshot: Box::new(Cursor::new(data)) };
        Ok(stored.map(snapshot))
    }
}

/// A frozen state on its way to disk.
pub(crate) struct SnapshotBuilder {
    db: Arc<Db>,
    body: SnapshotBody,
    meta: SnapshotMeta,
}

impl RaftSnapshotBuilder<MapRaft> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<MapRaft>, StorageError> {
        let body = self.body.clone();
        let meta = self.meta.clone();
        let build = move |db: &Db| {
            let data = codec::encode(&body).map_err(snapshot_codec)?;
            write_snapshot(db, &meta, &data)?;
            Ok(data)
        };
        let data = blocking(&self.db, build).await.map_err(|error| {
            StorageIOError::write_snapshot(Some(self.meta.signature()), any(&error))
        })?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: Box::new(Cursor::new(data)) })
    }
}

/// Stores a snapshot, unless a newer one is there: one is built in the background while another
/// may be installed, and going back would lose purged entries.
fn write_snapshot(db: &Db, meta: &SnapshotMeta, data: &[u8]) -> Result<(), DbError> {
    let _one_at_a_time = db.snapshots();
    let stored: Option<SnapshotMeta> = db.meta(key::SNAPSHOT_META)?;
    if stored.is_some_and(|stored| stored.last_log_id > meta.last_log_id) {
        return Ok(());
    }
    let mut batch = Batch::new(db);
    batch.put_meta(key::SNAPSHOT_META, meta)?;
    batch.put_raw_meta(key::SNAPSHOT_DATA, data);
    batch.commit_synced()
}

fn read_snapshot(db: &Db) -> Result<Option<(SnapshotMeta, Vec<u8>)>, DbError> {
    let _one_at_a_time = db.snapshots();
    let Some(meta) = db.meta(key::SNAPSHOT_META)? else { return Ok(None) };
    let data = db.raw_meta(key::SNAPSHOT_DATA)?;
    let data = data.ok_or_else(|| DbError::Inconsistent("a snapshot has no content".into()))?;
    Ok(Some((meta, data)))
}

/// A snapshot replaces the whole map, so it is believed only if the result is a possible one.
pub(crate) fn decode_body(data: &[u8]) -> Result<SnapshotBody, DbError> {
    let body: SnapshotBody = codec::decode(data).map_err(snapshot_codec)?;
    let broken = |text| DbError::Inconsistent(format!("a snapshot is inconsistent: {text}"));
    ClusterMap::check(&body.map).map_err(broken)?;
    Ok(body)
}

fn snapshot_codec(source: codec::CodecError) -> DbError {
    DbError::Codec { what: "snapshot".into(), source }
}
