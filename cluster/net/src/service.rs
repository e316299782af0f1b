//! What answers calls and takes sessions: one of each per service byte.

use crate::session::Session;
use bytes::Bytes;
use futures::future::BoxFuture;
use smalti_storage::ids::NodeId;
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

/// Answers the calls of one service byte.
pub trait Service: Send + Sync + 'static {
    /// Answers `request` of the verified node `from`. Calls run side by side, in no order, and
    /// go on to their end even when the caller stopped waiting. An error of the service's own is
    /// part of the answer's bytes. A panic reaches the caller as [`CallError::Failed`].
    ///
    /// [`CallError::Failed`]: crate::CallError::Failed
    fn call(&self, from: NodeId, request: Bytes) -> BoxFuture<'_, Bytes>;
}

/// Takes the sessions of one service byte.
pub trait SessionHandler: Send + Sync + 'static {
    /// Takes over a session that the verified node `from` opened with `hello`. Called once per
    /// session on a task of the endpoint; must return soon, so it hands the session to an actor
    /// or a task of its own. Dropping the session refuses it.
    fn session(&self, from: NodeId, hello: Bytes, session: Session);
}

/// The services of an endpoint.
#[derive(Default)]
pub(crate) struct Services {
    calls: RwLock<HashMap<u8, Arc<dyn Service>>>,
    sessions: RwLock<HashMap<u8, Arc<dyn SessionHandler>>>,
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}

// A panic while one of these locks is held can not leave a map half changed, so a poisoned lock
// is as good as a whole one.
impl Services {
    pub(crate) fn set_call(&self, service: u8, handler: Arc<dyn Service>) {
        self.calls.write().unwrap_or_else(PoisonError::into_inner).insert(service, handler);
    }

    pub(crate) fn set_session(&self, service: u8, handler: Arc<dyn SessionHandler>) {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner).insert(service, handler);
    }

    pub(crate) fn call(&self, service: u8) -> Option<Arc<dyn Service>> {
        self.calls.read().unwrap_or_else(PoisonError::into_inner).get(&service).cloned()
    }

    pub(crate) fn session(&self, service: u8) -> Option<Arc<dyn SessionHandler>> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner).get(&service).cloned()
    }

    /// Lets go of all handlers, and so of what they hold, perhaps this endpoint.
    pub(crate) fn clear(&self) {
        self.calls.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.sessions.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
