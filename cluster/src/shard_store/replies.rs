//! Replies on their way to one session: bounded in bytes.
//!
//! Who reads from the disk for a session takes room for the answer first, and waits for it: a peer
//! that takes no replies is read no further. The writer serves all sessions and waits for none. An
//! answer of its that finds no room breaks the session, for a gap would go unnoticed: the
//! coordinator asks again what is not answered only in a new session.

use smalti_rowcommit::msg::{Answer, Ask, Frame, Reply, SCAN_LIMIT, Want};
use smalti_storage::record::RECORD_LEN;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Bytes of replies that may wait for one session.
const BYTES: usize = 16 << 20;

/// What a reply counts at least, and so how many there may be.
const COST_MIN: usize = 1 << 10;

/// What an answer costs beside its record.
const ANSWER_COST: usize = 64;

/// What the metadata of a version takes, roughly.
const META_COST: usize = 256;

/// The same with the fingerprint of its record.
const PROOF_COST: usize = META_COST + 32;

/// Room that is taken, and given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Room(OwnedSemaphorePermit);

/// Gives replies to one session.
#[derive(Clone, Debug)]
pub(crate) struct ReplySender {
    queue: mpsc::Sender<(Reply, Room)>,
    room: Arc<Semaphore>,
    broken: CancellationToken,
}

/// Takes them.
#[derive(Debug)]
pub(crate) struct ReplyReceiver {
    queue: mpsc::Receiver<(Reply, Room)>,
    room: Arc<Semaphore>,
    broken: CancellationToken,
}

pub(super) fn channel() -> (ReplySender, ReplyReceiver) {
    // Whoever has room has a place in the queue too.
    let (sender, receiver) = mpsc::channel(BYTES / COST_MIN);
    let room = Arc::new(Semaphore::new(BYTES));
    let broken = CancellationToken::new();
    let sender = ReplySender { queue: sender, room: Arc::clone(&room), broken: broken.clone() };
    (sender, ReplyReceiver { queue: receiver, room, broken })
}

impl ReplySender {
    /// Waits for room for the answers to reading requests. `None`: the session has ended.
    pub(super) async fn reserve(&self, frame: &Frame) -> Option<Room> {
        let bytes = frame.requests.iter().map(|request| expected(&request.ask)).sum();
        Arc::clone(&self.room).acquire_many_owned(clamped(bytes)).await.ok().map(Room)
    }

    /// Hands a reply over that room was taken for. `None`: the session has ended.
    ///
    /// A row slot may hold many versions for snapshots, and the answer be larger than was expected.
    /// It takes the rest of its room if that is free. To wait for it would keep the writer's answers
    /// from theirs, which break the session when they find none; so one reply for each that reads at
    /// a time may go over the bound.
    pub(super) fn put(&self, reply: Reply, mut room: Room) -> Option<()> {
        let more = size(&reply).min(BYTES).saturating_sub(room.0.num_permits());
        let more = u32::try_from(more).expect("the bound fits");
        if let Ok(rest) = Arc::clone(&self.room).try_acquire_many_owned(more) {
            room.0.merge(rest);
        }
        self.queue.try_send((reply, room)).ok()
    }

    /// Hands a reply over, or breaks the session.
    pub(super) fn offer(&self, reply: Reply) {
        let taken = Arc::clone(&self.room)
            .try_acquire_many_owned(clamped(size(&reply)))
            .ok()
            .and_then(|room| self.queue.try_send((reply, Room(room))).ok());
        if taken.is_none() && !self.queue.is_closed() {
            tracing::debug!("a session does not take its answers: it ends");
            self.broken.cancel();
        }
    }

    /// Waits until an answer found no room.
    pub(super) async fn broken(&self) {
        self.broken.cancelled().await;
    }
}

impl ReplyReceiver {
    /// The next reply, and the room it takes until it is handed on. `None`: the session is broken,
    /// or nobody can answer any more.
    pub(crate) async fn recv(&mut self) -> Option<(Reply, Room)> {
        tokio::select! {
            biased;
            () = self.broken.cancelled() => None,
            reply = self.queue.recv() => reply,
        }
    }
}

impl Drop for ReplyReceiver {
    fn drop(&mut self) {
        // Readers that wait for room must not wait for ever.
        self.room.close();
    }
}

fn clamped(bytes: usize) -> u32 {
    u32::try_from(bytes.clamp(COST_MIN, BYTES)).expect("the bound fits")
}

/// What the answer to a reading request takes at most, or nearly so.
fn expected(ask: &Ask) -> usize {
    ANSWER_COST
        + match ask {
            Ask::Fetch { want: Want::HeadMeta | Want::HeldMeta(_), .. } => META_COST,
            Ask::Fetch { .. } => META_COST + RECORD_LEN,
            // Rarely more than an undecided version and the one below.
            Ask::Versions { .. } => 4 * META_COST,
            Ask::Prove { .. } => 4 * PROOF_COST,
            Ask::Digest { limit, .. } => {
                PROOF_COST * usize::try_from(*limit).unwrap_or(SCAN_LIMIT).min(SCAN_LIMIT)
            }
            Ask::Scan { limit, .. } => {
                META_COST * usize::try_from(*limit).unwrap_or(SCAN_LIMIT).min(SCAN_LIMIT)
            }
            _ => 0,
        }
}

/// Versions of a row slot; one that can not be read takes as much as one.
fn count<V>(held: &Option<Vec<V>>) -> usize {
    held.as_ref().map_or(1, Vec::len)
}

fn size(reply: &Reply) -> usize {
    let answer = |(_, answer): &(u64, Answer)| {
        ANSWER_COST
            + match answer {
                Answer::Version { record, .. } => META_COST + record.len(),
                Answer::Versions { versions, .. } => versions.len() * META_COST,
                Answer::Scanned { entries, .. } => {
                    entries.iter().map(|(.., held)| count(held) * META_COST).sum()
                }
                Answer::Digested { entries, .. } => {
                    entries.iter().map(|(.., held)| count(held) * PROOF_COST).sum()
                }
                Answer::Proven(held) => count(held) * PROOF_COST,
                Answer::Promised { prepared, .. } => prepared.len() * ANSWER_COST,
                _ => 0,
            }
    };
    reply.answers.iter().map(answer).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_storage::ids::{Incarnation, VolumeNo};
    use smalti_storage::store::VersionMeta;

    fn reply(versions: usize) -> Reply {
        let versions = vec![(VersionMeta::default(), true); versions];
        let answers = vec![(1, Answer::Versions { versions, prepared: None })];
        Reply { volume: VolumeNo(1), session: 1, incarnation: Incarnation(1), answers }
    }

    #[tokio::test]
    async fn a_reply_larger_than_expected_takes_all_its_room_if_that_is_free() {
        let (sender, mut receiver) = channel();
        let room = || Room(Arc::clone(&sender.room).try_acquire_many_owned(1024).expect("free"));
        assert_eq!(sender.put(reply(100), room()), Some(()));
        let left = BYTES - (100 * META_COST + ANSWER_COST);
        assert_eq!(sender.room.available_permits(), left);
        // Nothing waits for what is not free, and what is expected of the next one is still bounded.
        let others = Arc::clone(&sender.room);
        let others = others.try_acquire_many_owned(clamped(left - 2048)).expect("free");
        assert_eq!(sender.put(reply(100), room()), Some(()));
        assert_eq!(sender.room.available_permits(), 1024);
        drop(others);
        for _ in 0..2 {
            drop(receiver.recv().await.expect("the session goes on"));
        }
        assert_eq!(sender.room.available_permits(), BYTES);
    }
}
