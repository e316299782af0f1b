//! Certificates are renewed at two thirds of their life, by a node with the authority's key, which gives
//! one to members whose own has expired as well: `cluster/net/src/join/renew.rs`.
//!
//! The key stays the node's own and the same: only `node.crt` is replaced, which a crash leaves as it
//! was or as it is to be.

use super::authority::Authority;
use crate::serve::NodeRuntime;
use anyhow::{Context, anyhow, bail};
use futures::future::BoxFuture;
use smalti_cluster::Member;
use smalti_net::{JoinerKey, NodeCredentials, RenewalHost, Validity};
use smalti_storage::ids::NodeId;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;

/// How long one node may take to sign.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The clock may be set: nothing is waited for longer than this at once.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// While the certificate holds, however far away its end is.
const RETRY_RARELY: Duration = Duration::from_secs(3600);
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Between two words in the log about the same trouble.
const TELL_EVERY: Duration = Duration::from_secs(3600);

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

/// How it stands with this node's certificate.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) validity: Validity,
    /// Why it was not renewed at last.
    pub(super) failure: Option<String>,
}

impl Standing {
    pub(super) fn is_expired(&self, now: SystemTime) -> bool {
        now > self.validity.not_after
    }

    /// Whether it holds only later, as what was signed while a clock was ahead.
    pub(super) fn is_early(&self, now: SystemTime) -> bool {
        now < self.validity.not_before
    }

    /// Whether it should have been renewed by now: it has been tried some times.
    pub(super) fn is_late(&self, now: SystemTime) -> bool {
        let (renewal, end) = (self.validity.renewal(), self.validity.not_after);
        let slack = end.duration_since(renewal).unwrap_or_default() / 4;
        now > renewal + slack
    }
}

/// Keeps this node's certificate from expiring, until the node stops: wherever that meets it, the file
/// and the certificate that is shown are whole.
pub(super) async fn keep(
    node: NodeRuntime,
    renewals: Renewals,
    standing: watch::Sender<Option<Standing>>,
) {
    let folder = node.config.credentials.dir.clone();
    node.stop.run_until_cancelled(renew_in_time(&folder, &renewals, &standing)).await;
}

async fn renew_in_time(
    folder: &Path,
    renewals: &Renewals,
    standing: &watch::Sender<Option<Standing>>,
) {
    let mut pause = Duration::ZERO;
    let mut tries = 0;
    let mut told = Told::default();
    loop {
        tokio::time::sleep(pause).await;
        let (credentials, validity) = match load(folder).await {
            Ok(loaded) => loaded,
            Err(error) => {
                let failure = format!("the certificate can not be looked at: {error:#}");
                told.warn(&failure);
                // What was shown before goes on, for as long as that holds.
                standing.send_modify(|standing| {
                    if let Some(standing) = standing {
                        standing.failure = Some(failure);
                    }
                });
                tries += 1;
                pause = backoff(tries);
                continue;
            }
        };
        if let Some(left) = left(validity) {
            standing.send_replace(Some(Standing { validity, failure: None }));
            (tries, told) = (0, Told::default());
            pause = left.min(LOOK_EVERY);
            continue;
        }
        let failure = renew(folder, credentials, renewals).await.err();
        let failure = failure.map(|error| format!("{error:#}"));
        let remaining = holds_for(validity, SystemTime::now());
        if let Some(failure) = &failure {
            let seconds = remaining.as_secs();
            told.warn(&format!(
                "the certificate, which holds {seconds} s more, was not renewed: {failure}"
            ));
        }
        pause = match &failure {
            Some(_) if !remaining.is_zero() => (remaining / 10).clamp(RETRY_MIN, RETRY_RARELY),
            _ => {
                tries += 1;
                backoff(tries)
            }
        };
        standing.send_replace(Some(Standing { validity, failure }));
    }
}

/// Between tries that are not hurried by an end to come: from a second, doubling, to a minute.
fn backoff(tries: u32) -> Duration {
    RETRY_MIN.saturating_mul(1 << tries.saturating_sub(1).min(10)).min(RETRY_MAX)
}

/// What the log was told last.
#[derive(Default)]
struct Told(Option<Instant>);

impl Told {
    /// The first time, and then now and then.
    fn warn(&mut self, text: &str) {
        match self.0 {
            Some(at) if at.elapsed() < TELL_EVERY => tracing::debug!("{text}"),
            _ => {
                tracing::warn!("{text}");
                self.0 = Some(Instant::now());
            }
        }
    }
}

/// How long until it is to be renewed; none when it is time. One that holds only later was signed while a
/// clock was ahead: no other node takes it.
fn left(validity: Validity) -> Option<Duration> {
    let now = SystemTime::now();
    let left = validity.renewal().duration_since(now).ok().filter(|left| !left.is_zero());
    left.filter(|_| now >= validity.not_before)
}

/// How long it goes on to hold; zero when it does not.
fn holds_for(validity: Validity, now: SystemTime) -> Duration {
    match now < validity.not_before {
        true => Duration::ZERO,
        false => validity.not_after.duration_since(now).unwrap_or_default(),
    }
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
    // Refused, nothing has changed: others would not accept it, as when the clock of who signed is ahead.
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

    #[test]
    fn what_holds_only_later_is_renewed_now() {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        // As signed while the clock was two days ahead: a day of that is allowed for.
        let validity = Validity::starting(now + hour * 48, hour * 9000);
        assert_eq!(left(validity), None);
        assert_eq!(holds_for(validity, now), Duration::ZERO);
        let standing = |validity| Standing { validity, failure: None };
        assert!(standing(validity).is_early(now));
        let fresh = Validity::starting(now, hour);
        assert!(left(fresh).is_some() && !standing(fresh).is_early(now));
        assert_eq!(holds_for(fresh, now), hour);
        assert_eq!(holds_for(fresh, now + hour * 2), Duration::ZERO);
    }

    #[test]
    fn tries_get_rarer_and_do_not_end() {
        let pauses: Vec<u64> = (1..=8).map(|tries| backoff(tries).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff(u32::MAX), RETRY_MAX);
    }

    #[test]
    fn it_is_late_some_time_after_it_was_time() {
        let now = SystemTime::now();
        let standing = |ago: u64| Standing {
            validity: Validity::starting(now - Duration::from_secs(ago), Duration::from_secs(300)),
            failure: None,
        };
        for (ago, late, expired) in
            [(0, false, false), (210, false, false), (230, true, false), (310, true, true)]
        {
            let standing = standing(ago);
            assert_eq!((standing.is_late(now), standing.is_expired(now)), (late, expired), "{ago}");
        }
    }
}
