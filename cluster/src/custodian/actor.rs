//! The custodian's actor.

use super::Vault;
use super::wire::{Answer, Ask, ShareBytes};
use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr};
use smalti_map::view::MapView;
use smalti_storage::ids::NodeId;
use smalti_storage::keys::{Commitments, KeyPart, SecretName, verify_part};
use std::sync::Arc;
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
    /// The map changed: shares of volumes that are gone are destroyed.
    Map(MapView),
}

/// What a custodian needs.
#[derive(Debug)]
pub struct CustodianArgs {
    /// Its shares.
    pub vault: Vault,
    /// The map, to judge who may have what.
    pub map: watch::Receiver<MapView>,
}

struct Custodian;

struct State {
    vault: Arc<Vault>,
    map: watch::Receiver<MapView>,
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
        _myself: ActorRef<Self::Msg>,
        args: CustodianArgs,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State { vault: Arc::new(args.vault), map: args.map })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let vault = Arc::clone(&state.vault);
        match message {
            CustodianMsg::Ask { from, ask, reply } => {
                let map = Arc::clone(&state.map.borrow());
                let answer = tokio::task::spawn_blocking(move || answer(&vault, &map, from, ask));
                let answer = answer.await?;
                if let Answer::Refused(why) = &answer {
                    tracing::warn!(%from, %why, "custodian refused");
                }
                // A caller that has gone does not take its answer.
                let _ = reply.send(answer);
            }
            CustodianMsg::Map(map) => {
                let swept = tokio::task::spawn_blocking(move || sweep(&vault, &map)).await?;
                if let Err(error) = swept {
                    tracing::warn!(%error, "shares of deleted volumes are still here");
                }
            }
        }
        Ok(())
    }
}

fn answer(vault: &Vault, map: &MapView, from: NodeId, ask: Ask) -> Answer {
    match ask {
        Ask::Keep { secret, share, commitments } => {
            // The master secret is dealt once, when the cluster is made, not over the network.
            if secret == SecretName::Master {
                return Answer::Refused("the master secret is not dealt again".into());
            }
            let checked = KeyPart::from_bytes(&share.0).and_then(|part| {
                let commitments = Commitments::from_bytes(&commitments)?;
                verify_part(&part, &commitments)?;
                Ok(part)
            });
            match checked {
                Err(error) => Answer::Refused(error.to_string()),
                Ok(part) => match vault.find(&secret) {
                    // A share that is in use is never replaced by another one.
                    Ok(held) if in_use(map, &secret) && held.to_bytes() != part.to_bytes() => {
                        Answer::Refused("another share of that secret is in use".into())
                    }
                    _ => match vault.keep(&secret, &part) {
                        Ok(()) => Answer::Kept,
                        Err(error) => Answer::Refused(error.to_string()),
                    },
                },
            }
        }
        Ask::Release { secret } => match may_have(map, from, &secret) {
            Err(why) => Answer::Refused(why),
            Ok(()) => match vault.find(&secret) {
                Ok(part) => {
                    tracing::info!(%from, %secret, "share released");
                    Answer::Released(ShareBytes(part.to_bytes()))
                }
                Err(error) => Answer::Refused(error.to_string()),
            },
        },
    }
}

fn in_use(map: &MapView, secret: &SecretName) -> bool {
    match secret {
        SecretName::Master => true,
        SecretName::Wrapping { volume, key_epoch } => {
            map.volumes.values().any(|v| v.id == *volume && v.key_epochs.contains_key(key_epoch))
        }
    }
}

/// Who may have a share: a member may derive keys for a new volume; only the node that
/// coordinates a volume may open it.
fn may_have(map: &MapView, from: NodeId, secret: &SecretName) -> Result<(), String> {
    if !map.nodes.contains_key(&from) {
        return Err(format!("{from} is not a member"));
    }
    match secret {
        SecretName::Master => Ok(()),
        SecretName::Wrapping { volume, .. } => {
            let volume = map.volumes.values().find(|v| v.id == *volume);
            match volume.map(|v| v.coordinator) {
                None => Err("no such volume".into()),
                Some(Some(seat)) if seat.node == from => Ok(()),
                Some(_) => Err(format!("{from} does not coordinate the volume")),
            }
        }
    }
}

/// Destroys wrapping shares whose volume or key epoch is in the map no more. A share that is
/// kept just before its volume is created is younger than the map; the map names volumes only
/// after their shares are kept, so only files of volumes that were once named may go.
fn sweep(vault: &Vault, map: &MapView) -> Result<(), super::VaultError> {
    for (volume, key_epoch) in &map.retired_keys {
        vault.destroy(&SecretName::Wrapping { volume: *volume, key_epoch: *key_epoch })?;
    }
    Ok(())
}
