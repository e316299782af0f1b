//! Certificates are renewed at two thirds of their life, by a node with the authority's key, which gives
//! one to members whose own has expired as well: `cluster/net/src/join/renew.rs`.
//!
//! The key stays the node's own and the same: only `node.crt` is replaced, which a crash leaves as it
//! was or as it is to be.

use super::authority::{Authority, unix_now};
use crate::serve::NodeRuntime;
use anyhow::{Context, anyhow, bail};
use futures::future::BoxFuture;
use smalti_cluster::Member;
use smalti_net::{JoinerKey, NodeCredentials, RenewalHost, Validity};
use smalti_storage::ids::NodeId;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// How long one node may take to sign.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The clock may be set: nothing is waited for longer than this at once.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
const RETRY_MIN: Duration = Duration::from_secs(1);

/// Signs for members that ask.
#[derive(Debug)]
pub(super) struct Renewals {
    pub(super) member: Member,
    pub(super) authority: Authority,
}

impl RenewalHost for Renewals {
    fn renew(&self, node: NodeId, key: JoinerKey) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(async move { self.sign(node, &key).await })
    }
}

impl Renewals {
    /// A certificate for a member, whose name is as the map has it.
    async fn sign(&self, node: NodeId, key: &JoinerKey) -> Result<String, String> {
        let map = self.member.map();
        let name = map.nodes.get(&node).map(|node| node.name.clone());
        let name = name.ok_or_else(|| format!("{node} is not a member"))?;
        let ca = self.authority.load(self.member.cluster()).await?;
        let validity = Validity::starting(SystemTime::now(), self.authority.life());
        let certificate = ca.sign(node, &name, key, validity).map_err(|error| error.to_string())?;
        tracing::info!(%node, name, "a certificate was renewed");
        Ok(certificate)
    }

    /// Asks every other node, unless this one signs itself.
    async fn ask(&self, key: &JoinerKey) -> anyhow::Result<String> {
        let me = self.member.node();
        let mut last = match self.sign(me, key).await {
            Ok(certificate) => return Ok(certificate),
            Err(why) => why,
        };
        let fabric = self.member.fabric();
        for node in fabric.nodes().into_iter().filter(|node| *node != me) {
            match fabric.ask_certificate(node, CALL_TIMEOUT).await {
                Ok(certificate) => return Ok(certificate),
                Err(error) => last = error.to_string(),
            }
        }
        bail!("no node signs; the last one asked said: {last}")
    }
}

/// Keeps this node's certificate from expiring, until the node stops: wherever that meets it, the file
/// and the certificate that is shown are whole.
pub(super) async fn keep(node: NodeRuntime, renewals: Renewals) {
    let folder = node.config.credentials.dir.clone();
    node.stop.run_until_cancelled(renew_in_time(&folder, &renewals)).await;
}

async fn renew_in_time(folder: &Path, renewals: &Renewals) {
    let mut pause = Duration::ZERO;
    loop {
        tokio::time::sleep(pause).await;
        pause = match load(folder).await {
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the certificate can not be looked at"
                );
                LOOK_EVERY
            }
            Ok((credentials, validity)) => match left(validity) {
                Some(left) => left.min(LOOK_EVERY),
                None => match renew(folder, credentials, renewals).await {
                    Ok(()) => RETRY_MIN,
                    Err(error) => {
                        let expires = validity.not_after.duration_since(SystemTime::UNIX_EPOCH);
                        let seconds = expires.map_or(0, |passed| passed.as_secs());
                        tracing::warn!(
                            error = format!("{error:#}"),
                            expires = seconds,
                            "the certificate was not renewed"
                        );
                        // Ten tries and more until it expires, and not one a moment after that.
                        Duration::from_secs(seconds.saturating_sub(unix_now()) / 10)
                            .clamp(RETRY_MIN, LOOK_EVERY)
                    }
                },
            },
        };
    }
}

/// How long until it is to be renewed; none when it is time.
fn left(validity: Validity) -> Option<Duration> {
    validity.renewal().duration_since(SystemTime::now()).ok().filter(|left| !left.is_zero())
}

async fn load(folder: &Path) -> anyhow::Result<(NodeCredentials, Validity)> {
    let folder = folder.to_owned();
    let load = move || -> anyhow::Result<_> {
        let credentials = NodeCredentials::load(&folder)?;
        let validity = credentials.validity()?;
        Ok((credentials, validity))
    };
    tokio::task::spawn_blocking(load).await?
}

async fn renew(
    folder: &Path,
    credentials: NodeCredentials,
    renewals: &Renewals,
) -> anyhow::Result<()> {
    let certificate = renewals.ask(&credentials.public_key()?).await?;
    let renewed = credentials.with_certificate(certificate).context("what was signed")?;
    let endpoint = renewals.member.fabric().endpoint();
    // Refused, nothing has changed: others would not accept it.
    endpoint.renew(&renewed).map_err(|error| anyhow!("what was signed: {error}"))?;
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || renewed.save_certificate(&folder)).await??;
    tracing::info!("this node shows a renewed certificate");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_time_at_two_thirds() {
        let now = SystemTime::now();
        let life = Duration::from_secs(300);
        let validity = |ago: u64| Validity::starting(now - Duration::from_secs(ago), life);
        assert!(left(validity(0)).is_some_and(|left| left <= Duration::from_secs(200)));
        assert!(left(validity(190)).is_some_and(|left| left <= Duration::from_secs(10)));
        assert_eq!(left(validity(201)), None);
        assert_eq!(left(validity(9999)), None);
    }
}
