//! Putting a node together from its config.

use super::MemberControl;
use super::authority::{Admission, Authority};
use super::renewal::{self, Renewals};
use crate::api::bind_unix;
use crate::attach::{Attachments, BlockSessions, LocalGateways, VolumeExports};
use crate::config::NodeConfig;
use crate::custody::{self, Provider};
use crate::init::Founding;
use crate::rotation;
use crate::serve::{NodeRuntime, Started};
use anyhow::{Context, anyhow};
use smalti_cluster::fabric::service;
use smalti_cluster::shard_store::Fatal;
use smalti_cluster::{Member, MemberConfig, member};
use smalti_map::{Custody, FIRST_SHARE_EPOCH, NodeAddresses, Recovery, ShareHolder};
use smalti_nbd::{Limits, Listener, Server};
use smalti_net::NodeCredentials;
use smalti_storage::keys::KeyProvider;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between two looks whether the node has joined.
const JOINED_EVERY: Duration = Duration::from_millis(100);

/// Starts everything a node does. Joining the cluster goes on by itself.
///
/// # Errors
/// A port is taken, the store does not open, a key file is missing: one line each.
pub async fn start(node: NodeRuntime) -> anyhow::Result<Started> {
    let config = Arc::clone(&node.config);
    let nbd = bind_nbd(&config).await?;
    if let Err(error) = custody::settle(&config.custody) {
        // Nobody's shares are in danger for what is left over.
        tracing::warn!(error = format!("{error:#}"), "a change of key providers is not at its end");
    }
    let Provider { key, lock } = custody::open(&config.custody)?;
    let member = Member::start(member_config(&config, key, node.stop.clone())?).await?;
    let failing = member.clone();
    let poisoned = node.clone();
    let stop = node.stop.clone();
    node.tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            why = failing.failed() => end(&failing, &poisoned, why).await,
        }
    });
    if let Some(path) = config.founding.clone().filter(|path| path.exists()) {
        node.tasks.spawn(put_aside(path, member.clone(), node.stop.clone()));
    }
    let local = LocalGateways::new(member.clone());
    let sessions = BlockSessions::new(local.clone(), node.stop.clone(), node.tasks.clone());
    member.fabric().endpoint().accept_sessions(service::BLOCKS, Arc::new(sessions));
    let keys = rotation::keep(member.clone(), local.clone(), node.tasks.clone(), node.stop.clone());
    node.tasks.spawn(keys);
    let policy = rotation::Policy::of(&config.tunables);
    node.tasks.spawn(policy.keep(member.clone(), local.clone(), node.stop.clone()));
    let attachments = Attachments::new(member.clone(), local);
    let exports = Arc::new(VolumeExports::new(member.clone(), attachments.clone()));
    let server = Server::new(exports, Limits::default())?;
    for listener in nbd {
        let (server, stop) = (server.clone(), node.stop.clone());
        node.spawn_critical("nbd", async move {
            server.serve(listener, stop).await;
            Ok(())
        });
    }
    let authority = Authority::of(&config);
    let admission = Admission { member: member.clone(), authority: authority.clone() };
    member.fabric().endpoint().accept_joins(Arc::new(admission));
    let renewals = || Renewals { member: member.clone(), authority: authority.clone() };
    member.fabric().endpoint().accept_renewals(Arc::new(renewals()));
    let (standing, certificate) = watch::channel(None);
    node.tasks.spawn(renewal::keep(node.clone(), renewals(), standing));
    let control =
        Arc::new(MemberControl::new(member.clone(), attachments, authority, certificate, lock));
    let shutdown = Box::pin(async move {
        member.shutdown().await;
        Ok(())
    });
    Ok(Started { control, shutdown })
}

/// This process can not go on. With a store made anew another one can.
async fn end(member: &Member, node: &NodeRuntime, why: Fatal) {
    match why {
        Fatal::Failed(why) => node.poison(why),
        Fatal::Damaged(why) => {
            tracing::error!(why, "the store is to be made anew, once the others do without it");
            match member.set_store_aside().await {
                Ok(aside) => {
                    let aside = aside.display();
                    let next = "an empty store takes its place";
                    node.start_anew(format!("{why}: it is kept as {aside}, and {next}"));
                }
                Err(but) => node.poison(format!("{why}; it is not made anew: {but}")),
            }
        }
    }
}

/// Where the proposal that founded the cluster is kept when that has been done.
fn founded(path: &Path) -> PathBuf {
    path.with_extension("done.json")
}

/// Once this node has joined the cluster, it is not to be founded again, whatever this node forgets.
async fn put_aside(path: PathBuf, member: Member, stop: CancellationToken) {
    while member.incarnation().is_none() {
        if stop.run_until_cancelled(tokio::time::sleep(JOINED_EVERY)).await.is_none() {
            return;
        }
    }
    let done = founded(&path);
    let moved = std::fs::rename(&path, &done)
        .and_then(|()| path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all()));
    if let Err(error) = moved {
        tracing::warn!(%error, path = %path.display(), "can not be put aside");
    }
}

async fn bind_nbd(config: &NodeConfig) -> anyhow::Result<Vec<Listener>> {
    let address = config.addresses.nbd;
    let tcp = TcpListener::bind(address).await.with_context(|| format!("bind NBD to {address}"))?;
    // The node's lock makes sure that no living process listens on an old socket there.
    let unix = bind_unix(&config.sockets.nbd).context("bind NBD")?;
    Ok(vec![Listener::Tcp(tcp), Listener::Unix { listener: unix, uids: None }])
}

fn member_config(
    config: &NodeConfig,
    key_provider: Arc<dyn KeyProvider>,
    stopping: CancellationToken,
) -> anyhow::Result<MemberConfig> {
    let addresses = NodeAddresses {
        quic: config.addresses.quic,
        api: config.addresses.api,
        nbd: config.addresses.nbd,
    };
    let credentials = NodeCredentials::load(&config.credentials.dir)
        .map_err(|error| anyhow!("load credentials: {error}"))?;
    let founding = match &config.founding {
        // It is put aside once the cluster is founded. With an emptied data folder this node would
        // found another one else.
        Some(path) if !path.exists() && founded(path).exists() => None,
        Some(path) => Some(founding(&Founding::load(path)?)),
        None => None,
    };
    Ok(MemberConfig {
        node: config.node,
        cluster: config.cluster,
        data_dir: config.data_dir.clone(),
        shares_dir: config.custody.shares_dir.clone(),
        key_provider,
        addresses,
        peers: config.peers.iter().map(|peer| (peer.id, peer.quic)).collect(),
        credentials,
        founding,
        lease: config.tunables.lease(),
        suspect_after: config.tunables.suspect_timeout(),
        power_patience: config.tunables.power_timeout(),
        down_out: config.tunables.down_out(),
        slow_out: config.tunables.slow_out(),
        scrub_every: Duration::from_secs(config.tunables.scrub_interval_s),
        refresh_every: Duration::from_secs(config.tunables.share_interval_s),
        stopping,
    })
}

fn founding(file: &Founding) -> member::Founding {
    let nodes = file.nodes.iter().map(|node| {
        let addresses = NodeAddresses { quic: node.quic, api: node.api, nbd: node.nbd };
        (node.id, node.name.clone(), addresses)
    });
    let holders = file.custody.holders.iter();
    member::Founding {
        nodes: nodes.collect(),
        custody: Custody {
            share_epoch: FIRST_SHARE_EPOCH,
            threshold: file.custody.threshold,
            holders: holders.map(|h| ShareHolder { node: h.node, share: h.share }).collect(),
            commitments: file.custody.commitments.clone(),
            sealed_for_recovery: file.custody.sealed_for_recovery.clone(),
        },
        recovery: file.recovery.as_ref().map(|recovery| Recovery {
            threshold: recovery.threshold,
            shares: recovery.shares,
            commitments: recovery.commitments.clone(),
        }),
    }
}
