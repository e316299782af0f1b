//! One session of a client at a time: the newest, once all requests of the others have ended.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::{OwnedMutexGuard, watch};
use uuid::Uuid;

/// Who asks: drawn anew for every attach of a client and kept by it when it reconnects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientId(pub Uuid);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The gates of all clients with a session.
pub(super) struct Gates {
    clients_max: usize,
    gates: Mutex<HashMap<ClientId, Weak<Gate>>>,
}

struct Gate {
    /// Held by the session that is served, and by each of its requests.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// The number of the newest session.
    newest: watch::Sender<u64>,
}

/// A session's place before the gate.
pub(super) struct Ticket {
    gate: Arc<Gate>,
    number: u64,
    newest: watch::Receiver<u64>,
}

/// That no other session of this client is served, and no request of one runs. Shared by the
/// session and its requests: the gate opens for the next when the last of them has ended.
pub(super) struct Turn {
    _turn: OwnedMutexGuard<()>,
    // Keeps the gate in the table, so that the next session finds this one.
    _gate: Arc<Gate>,
}

impl Gates {
    pub(super) fn new(clients_max: usize) -> Self {
        Self { clients_max, gates: Mutex::default() }
    }

    /// A place for a new session of a client; its older ones are told to stop. `None` when there
    /// are too many clients.
    pub(super) fn arrive(&self, client: ClientId) -> Option<Ticket> {
        let mut gates = self.lock();
        let gate = match gates.get(&client).and_then(Weak::upgrade) {
            Some(gate) => gate,
            None => {
                if gates.len() >= self.clients_max {
                    gates.retain(|_, gate| gate.strong_count() > 0);
                }
                if gates.len() >= self.clients_max {
                    return None;
                }
                let gate = Arc::new(Gate { turn: Arc::default(), newest: watch::Sender::new(0) });
                gates.insert(client, Arc::downgrade(&gate));
                gate
            }
        };
        drop(gates);
        let mut number = 0;
        gate.newest.send_modify(|newest| {
            *newest += 1;
            number = *newest;
        });
        let newest = gate.newest.subscribe();
        Some(Ticket { gate, number, newest })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClientId, Weak<Gate>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Waits until everything of the older sessions has ended. `None` when there is a newer one.
    pub(super) async fn turn(&mut self) -> Option<Arc<Turn>> {
        let gate = Arc::clone(&self.gate);
        let turn = tokio::select! {
            biased;
            () = self.superseded() => return None,
            turn = Arc::clone(&gate.turn).lock_owned() => turn,
        };
        Some(Arc::new(Turn { _turn: turn, _gate: gate }))
    }

    /// Waits until there is a newer session.
    pub(super) async fn superseded(&mut self) {
        let number = self.number;
        // The sender lives in the gate, which this ticket holds.
        let _ = self.newest.wait_for(|newest| *newest > number).await;
    }
}
