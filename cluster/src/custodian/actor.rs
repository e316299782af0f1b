//! The custodian's actor: gives its core the map, the time and what is asked, and sends what is to be sent.

use super::core::{Context, Core, Outcome};
use super::wire::{Answer, Ask};
use super::{CustodyClient, CustodyService, Holdings, Vault};
use crate::clock::unix_seconds;
use crate::fabric::Fabric;
use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr};
use smalti_map::view::MapView;
use smalti_storage::ids::NodeId;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::oneshot;
use tokio::sync::watch;

/// Messages of the custodian actor.
#[derive(Debug)]
pub enum CustodianMsg {
    /// A request, in the name of a node whose certificate was verified.
    #[allow(private_interfaces, reason = "requests are made by this crate's services only")]
    Ask {
        /// Who asks.
        from: NodeId,
        /// What.
        ask: Ask,
        /// Where the answer goes.
        reply: oneshot::Sender<Answer>,
    },
    /// The map changed: shares that are not needed any more are destroyed.
    Map(MapView),
}

/// What a custodian needs.
#[derive(Debug)]
pub struct CustodianArgs {
    /// Whose it is.
    pub node: NodeId,
    /// Its shares.
    pub vault: Vault,
    /// The map, to judge who may have what.
    pub map: watch::Receiver<MapView>,
    /// The way to other custodians.
    pub fabric: Fabric,
    /// Told what is known of the shares here.
    pub holdings: watch::Sender<Holdings>,
}

struct Custodian;

struct State {
    core: Arc<Mutex<Core>>,
    map: watch::Receiver<MapView>,
    client: CustodyClient,
    holdings: watch::Sender<Holdings>,
}

/// Starts the custodian of this node.
///
/// # Errors
/// When the actor can not be spawned.
pub async fn start(args: CustodianArgs) -> Result<ActorRef<CustodianMsg>, SpawnErr> {
    let (actor, _) = Actor::spawn(None, Custodian, args).await?;
    Ok(actor)
}

impl Actor for Custodian {
    type Msg = CustodianMsg;
    type State = State;
    type Arguments = CustodianArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: CustodianArgs,
    ) -> Result<State, ActorProcessingErr> {
        let CustodianArgs { node, vault, map, fabric, holdings } = args;
        let opened = tokio::task::spawn_blocking(move || Core::open(node, vault, unix_seconds()));
        let mut core = opened.await?;
        holdings.send_replace(core.first_holdings());
        tracing::debug!(log = %core.audit_path().display(), "custodian");
        let client = CustodyClient::new(node, fabric, CustodyService { actor: myself });
        Ok(State { core: Arc::new(Mutex::new(core)), map, client, holdings })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let core = Arc::clone(&state.core);
        match message {
            CustodianMsg::Ask { from, ask, reply } => {
                let map = Arc::clone(&state.map.borrow());
                let outcome = tokio::task::spawn_blocking(move || {
                    let context =
                        Context { map: &map, from, now: Instant::now(), time: unix_seconds() };
                    lock(&core).ask(&context, ask)
                });
                match outcome.await? {
                    Outcome::Answer(answer) => {
                        // A caller that has gone does not take its answer.
                        let _ = reply.send(answer);
                    }
                    // Others are waited for, this one among them.
                    Outcome::Deal { gifts, commitments } => {
                        let client = state.client.clone();
                        tokio::spawn(async move {
                            let answer = match client.give(gifts).await {
                                Ok(()) => Answer::DealtOn { commitments },
                                Err(why) => Answer::Refused(why),
                            };
                            let _ = reply.send(answer);
                        });
                    }
                }
            }
            CustodianMsg::Map(map) => {
                let look = move || {
                    let mut core = lock(&core);
                    (core.sweep(&map, unix_seconds()), core.holdings(&map, Instant::now()))
                };
                let (swept, holdings) = tokio::task::spawn_blocking(look).await?;
                // With the next map again.
                if let Err(error) = swept {
                    tracing::warn!(%error, "shares that are not needed are still here");
                }
                state.holdings.send_replace(holdings);
            }
        }
        Ok(())
    }
}

fn lock(core: &Mutex<Core>) -> std::sync::MutexGuard<'_, Core> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}
