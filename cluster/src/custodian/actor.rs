//! The custodian's actor.

use super::wire::{Answer, Ask, ShareBytes};
use super::{Vault, VaultError};
use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr};
use smalti_map::Volume;
use smalti_map::view::MapView;
use smalti_storage::ids::{KeyEpochNo, NodeId, VolumeId};
use smalti_storage::keys::{Commitments, Dealt, KeyPart, SecretName, verify_part};
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
    /// The keys of the map after which nothing was left to destroy.
    swept: Option<Keys>,
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
        Ok(State { vault: Arc::new(args.vault), map: args.map, swept: None })
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
                if matches!(ask, Ask::Keep { .. }) {
                    // It may come late, for a key epoch that has other shares by now.
                    state.swept = None;
                }
                let answer = tokio::task::spawn_blocking(move || answer(&vault, &map, from, ask));
                let answer = answer.await?;
                if let Answer::Refused(why) = &answer {
                    tracing::warn!(%from, %why, "custodian refused");
                }
                // A caller that has gone does not take its answer.
                let _ = reply.send(answer);
            }
            CustodianMsg::Map(map) => {
                let keys = keys_of(&map);
                if state.swept.as_ref() == Some(&keys) {
                    return Ok(());
                }
                let swept = tokio::task::spawn_blocking(move || sweep(&vault, &map)).await?;
                match swept {
                    Ok(()) => state.swept = Some(keys),
                    // With the next map again.
                    Err(error) => {
                        tracing::warn!(%error, "shares that are not needed are still here")
                    }
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
                // Beside any other dealing of that secret, until the map says which one counts. Of one dealing the
                // first share stays, or whoever has another one could put his in its place.
                Ok(part) => {
                    let dealing = Dealt::of(&commitments);
                    let in_use = map.custody_of(&secret).map(|used| Dealt::of(&used.commitments));
                    if in_use.is_some_and(|used| used != dealing) {
                        return Answer::Refused("another share of that secret is in use".into());
                    }
                    match vault.find(&secret, &dealing) {
                        Ok(held) if held.to_bytes() == part.to_bytes() => Answer::Kept,
                        Ok(_) => Answer::Refused("another share of that dealing is kept".into()),
                        Err(VaultError::Absent) => match vault.keep(&secret, &dealing, &part) {
                            Ok(()) => Answer::Kept,
                            Err(error) => Answer::Refused(error.to_string()),
                        },
                        Err(error) => Answer::Refused(error.to_string()),
                    }
                }
            }
        }
        Ask::Release { secret } => match may_have(map, from, &secret) {
            Err(why) => Answer::Refused(why),
            Ok(dealing) => match vault.find(&secret, &dealing) {
                Ok(part) => {
                    tracing::info!(%from, %secret, "share released");
                    Answer::Released(ShareBytes(part.to_bytes()))
                }
                Err(error) => Answer::Refused(error.to_string()),
            },
        },
    }
}

/// Who may have a share, and of which dealing it is: a member may derive keys for a new volume; only the
/// node that coordinates a volume may open it.
fn may_have(map: &MapView, from: NodeId, secret: &SecretName) -> Result<Dealt, String> {
    if !map.nodes.contains_key(&from) {
        return Err(format!("{from} is not a member"));
    }
    if let SecretName::Wrapping { volume, .. } = secret {
        let volume = map.volumes.values().find(|v| v.id == *volume).ok_or("no such volume")?;
        if volume.coordinator.map(|seat| seat.node) != Some(from) {
            return Err(format!("{from} does not coordinate the volume"));
        }
    }
    let custody = map.custody_of(secret).ok_or("the volume has no such key epoch")?;
    Ok(Dealt::of(&custody.commitments))
}

/// Destroys shares of key epochs that have ended, and of dealings that the map took another one instead
/// of. What it says nothing of yet stays: shares are kept before it names what they are of.
fn sweep(vault: &Vault, map: &MapView) -> Result<(), VaultError> {
    let lives = |volume| map.volumes.values().any(|known| known.id == volume);
    let wanted = |volume: VolumeId, key_epoch: KeyEpochNo, dealing: &Dealt| {
        if let Some(custody) = map.custody_of(&SecretName::Wrapping { volume, key_epoch }) {
            return *dealing == Dealt::of(&custody.commitments);
        }
        // Of a volume that is gone nothing is needed, whichever key epoch it was for.
        let mut ended = map.retired_keys.iter().filter(|(of, _)| *of == volume);
        !ended.any(|(_, no)| *no == key_epoch || !lives(volume))
    };
    for (volume, key_epoch) in vault.retain(wanted)? {
        tracing::info!(%volume, %key_epoch, "share destroyed");
    }
    Ok(())
}

/// What tells whether there may be shares to destroy: how many key epochs have ended, and those that have
/// not.
type Keys = (usize, Vec<(VolumeId, Vec<KeyEpochNo>)>);

fn keys_of(map: &MapView) -> Keys {
    let epochs = |volume: &Volume| (volume.id, volume.key_epochs.keys().copied().collect());
    (map.retired_keys.len(), map.volumes.values().map(epochs).collect())
}
