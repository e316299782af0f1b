//! Putting a node together from its config.

use super::MemberControl;
use crate::api::bind_unix;
use crate::attach::{Attachments, BlockSessions, LocalGateways, VolumeExports};
use crate::config::NodeConfig;
use crate::custody::CustodianKey;
use crate::init::Founding;
use crate::serve::{NodeRuntime, Started};
use anyhow::{Context, anyhow};
use smalti_cluster::fabric::service;
use smalti_cluster::{Member, MemberConfig, member};
use smalti_map::{Custody, NodeAddresses, ShareHolder};
use smalti_nbd::{Limits, Listener, Server};
use smalti_net::NodeCredentials;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// Starts everything a node does. Joining the cluster goes on by itself.
///
/// # Errors
/// A port is taken, the store does not open, a key file is missing: one line each.
pub async fn start(node: NodeRuntime) -> anyhow::Result<Started> {
    let config = Arc::clone(&node.config);
    let nbd = bind_nbd(&config).await?;
    let member = Member::start(member_config(&config, node.stop.clone())?).await?;
    let failing = member.clone();
    let poisoned = node.clone();
    let stop = node.stop.clone();
    node.tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            why = failing.failed() => poisoned.poison(why),
        }
    });
    let local = LocalGateways::new(member.clone());
    let sessions = BlockSessions::new(local.clone(), node.stop.clone(), node.tasks.clone());
    member.fabric().endpoint().accept_sessions(service::BLOCKS, Arc::new(sessions));
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
    let control = Arc::new(MemberControl::new(member.clone(), attachments));
    let shutdown = Box::pin(async move {
        member.shutdown().await;
        Ok(())
    });
    Ok(Started { control, shutdown })
}

async fn bind_nbd(config: &NodeConfig) -> anyhow::Result<Vec<Listener>> {
    let address = config.addresses.nbd;
    let tcp = TcpListener::bind(address).await.with_context(|| format!("bind NBD to {address}"))?;
    // The node's lock makes sure that no living process listens on an old socket there.
    let unix = bind_unix(&config.sockets.nbd).context("bind NBD")?;
    Ok(vec![Listener::Tcp(tcp), Listener::Unix { listener: unix, uids: None }])
}

fn member_config(config: &NodeConfig, stopping: CancellationToken) -> anyhow::Result<MemberConfig> {
    let addresses = NodeAddresses {
        quic: config.addresses.quic,
        api: config.addresses.api,
        nbd: config.addresses.nbd,
    };
    let key = CustodianKey::load(&config.custody.key_file)?;
    let credentials = NodeCredentials::load(&config.credentials.dir)
        .map_err(|error| anyhow!("load credentials: {error}"))?;
    let founding = match &config.founding {
        Some(path) => Some(founding(&Founding::load(path)?)),
        None => None,
    };
    Ok(MemberConfig {
        node: config.node,
        cluster: config.cluster,
        data_dir: config.data_dir.clone(),
        shares_dir: config.custody.shares_dir.clone(),
        custodian_key: Zeroizing::new(*key.expose()),
        addresses,
        peers: config.peers.iter().map(|peer| (peer.id, peer.quic)).collect(),
        credentials,
        founding,
        lease: config.tunables.lease(),
        suspect_after: config.tunables.suspect_timeout(),
        power_patience: config.tunables.power_timeout(),
        down_out: config.tunables.down_out(),
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
            threshold: file.custody.threshold,
            holders: holders.map(|h| ShareHolder { node: h.node, share: h.share }).collect(),
            commitments: file.custody.commitments.clone(),
        },
    }
}
