//! A leader that is not well placed gives way to another member.
//!
//! openraft can not hand the lead over. A leader that sends nothing is taken for gone by the voters once
//! their leases are over, and one that campaigns then is elected. So there is no leader for a second or
//! two. Meanwhile voters that were told who is to lead give nobody else a vote: one that has not heard the
//! leader for long has been campaigning all the time, and would win. To refuse a vote is always safe.
//! Should the one that campaigns not be elected, its term is higher all the same and deposes the leader
//! when that goes on; the usual election follows.

use super::{ProposeError, RaftGroup};
use smalti_storage::ids::NodeId;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// From the last heartbeat to the end of the leases of the first voters, about.
const LEASE: Duration = Duration::from_millis(600);

/// How long an election may take: a vote is synced on both sides. Another one begun meanwhile would
/// make its answers worth nothing.
const ELECTION: Duration = Duration::from_millis(1000);

/// The leader is heard again when it is dropped.
struct Silence<'a>(&'a RaftGroup);

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        self.0.inner.gives_way.store(false, Ordering::Release);
        self.0.inner.raft.runtime_config().heartbeat(true);
    }
}

impl RaftGroup {
    /// Sends nothing as a leader until this term is over, for `patience` at most. Says whether it is.
    pub async fn give_way(&self, patience: Duration) -> bool {
        let (mut metrics, me) = (self.watch_metrics(), self.inner.node);
        let term = metrics.borrow().term;
        self.inner.gives_way.store(true, Ordering::Release);
        self.inner.raft.runtime_config().heartbeat(false);
        let _silence = Silence(self);
        let over = metrics.wait_for(|now| now.term != term || now.leader != Some(me));
        timeout(patience, over).await.is_ok_and(|waited| waited.is_ok())
    }

    /// Whether it sends nothing as a leader: what it proposed or confirmed would be heard as well as a
    /// heartbeat.
    pub(super) fn is_giving_way(&self) -> bool {
        self.inner.gives_way.load(Ordering::Acquire)
    }

    /// For `patience` at most, or until it leads, no other member gets this one's vote.
    pub fn favour(&self, node: NodeId, patience: Duration) {
        self.inner.favoured.send_replace(Some((node, Instant::now() + patience)));
    }

    /// Whether a candidate may have a vote.
    pub(super) fn may_favour(&self, candidate: NodeId) -> bool {
        let favoured = *self.inner.favoured.borrow();
        favoured.is_none_or(|(node, until)| {
            candidate == node
                || Instant::now() >= until
                || self.inner.metrics.borrow().leader == Some(node)
        })
    }

    /// Campaigns until somebody else than `than` leads, for `patience` at most. Says whether it is this
    /// member.
    ///
    /// # Errors
    /// [`ProposeError::Stopped`] when this member has stopped.
    pub async fn campaign(&self, than: NodeId, patience: Duration) -> Result<bool, ProposeError> {
        let deadline = Instant::now() + patience;
        let mut metrics = self.watch_metrics();
        let mut wait = LEASE;
        loop {
            let other = metrics.wait_for(|now| now.leader.is_some_and(|leader| leader != than));
            if let Ok(Ok(now)) = timeout(wait, other).await {
                return Ok(now.leader == Some(self.inner.node));
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            let asked = self.inner.raft.trigger().elect().await;
            asked.map_err(|error| ProposeError::stopped(&error))?;
            wait = ELECTION;
        }
    }
}
