//! `smalti key`.

use super::args::{KeyCommand, ShowArgs};
use super::{custody, output, provider, recover, show, target::Target};
use crate::control::{KeyReport, RevokeKeys, SetCustodians, VolumeKeys};
use anyhow::Context;
use clap::Args;
use serde::Serialize;
use smalti_storage::ids::{KeyEpochNo, VolumeId};
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long new keys may take while all custodians answer.
const BEGIN_PATIENCE: Duration = Duration::from_secs(60);

/// Nothing was sealed anew for so long, and something is in the way: it is not waited for any longer.
const STUCK_PATIENCE: Duration = Duration::from_secs(60);

/// How long a cluster may be out of reach meanwhile.
const REACH_PATIENCE: Duration = Duration::from_secs(30);

/// `smalti key rotate`.
#[derive(Debug, Args)]
#[group(id = "which", required = true, args = ["name", "all"])]
pub struct KeyRotateArgs {
    /// Name of the volume
    pub name: Option<String>,
    /// All volumes
    #[arg(long)]
    pub all: bool,
    /// Wait until no record is under older keys, and those are destroyed
    #[arg(long)]
    pub wait: bool,
    /// Only say that new keys are wanted
    #[arg(long, conflicts_with = "wait")]
    pub no_wait: bool,
    /// Whom to ask, and how to show it.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// `smalti key revoke`.
#[derive(Debug, Args)]
#[group(id = "what", required = true, multiple = true, args = ["name", "all", "master"])]
pub struct KeyRevokeArgs {
    /// Name of the volume
    #[arg(conflicts_with = "all")]
    pub name: Option<String>,
    /// All volumes
    #[arg(long)]
    pub all: bool,
    /// Only this key epoch and older ones [default: up to the present one]
    #[arg(long, value_name = "EPOCH", conflicts_with_all = ["all", "master"])]
    pub epoch: Option<u32>,
    /// The secret that new keys are derived from
    #[arg(long, conflicts_with = "name")]
    pub master: bool,
    /// Wait until nothing is under revoked keys, and those are destroyed
    #[arg(long)]
    pub wait: bool,
    /// Only say that they are not to be trusted
    #[arg(long, conflicts_with = "wait")]
    pub no_wait: bool,
    /// Whom to ask, and how to show it.
    #[command(flatten)]
    pub show: ShowArgs,
}

pub(super) async fn run(command: KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::Status(args) => {
            let report = report(&args.target.resolve()?).await.context("get key status")?;
            output::facts(args.json, &report, show::keys)
        }
        KeyCommand::Rotate(args) => rotate(args).await,
        KeyCommand::Revoke(args) => revoke(args).await,
        KeyCommand::Custodians(args) => custody::set(args).await,
        KeyCommand::Verify(args) => custody::verify(args).await,
        KeyCommand::Audit(args) => custody::audit(args).await,
        KeyCommand::Unlock(args) => provider::unlock(args).await,
        KeyCommand::Provider(args) => provider::change(args).await,
        KeyCommand::Recover(args) => recover::run(args).await,
    }
}

async fn report(target: &Target) -> anyhow::Result<KeyReport> {
    target.read("/v1/keys").await
}

async fn rotate(args: KeyRotateArgs) -> anyhow::Result<()> {
    let target = args.show.target.resolve()?;
    let names = named(&target, args.name).await.context("rotate keys")?;
    let until = Until::of(args.wait, args.no_wait);
    let path = |name: &str| format!("/v1/volumes/{name}/keys");
    renew(&target, ("rotate keys", args.show.json), names, until, &(), &path).await
}

/// The secret of the cluster comes first: keys that are made of the one before would have to be revoked again.
async fn revoke(args: KeyRevokeArgs) -> anyhow::Result<()> {
    let target = args.show.target.resolve()?;
    if args.master {
        let wish = SetCustodians { new_master: true, ..SetCustodians::default() };
        let asked = target.post("/v1/custodians", &wish).await;
        let report: KeyReport = asked.context("revoke the master secret")?;
        if !args.all {
            let wait = !args.no_wait;
            let report = if wait { custody::until_dealt(&target, report).await? } else { report };
            return output::facts(args.show.json, &report, show::custodians);
        }
        // Volumes wait for it by themselves, and are not to go on unmarked until then.
    }
    let names = named(&target, args.name).await.context("revoke keys")?;
    let wish = RevokeKeys { key_epoch: args.epoch.map(KeyEpochNo) };
    let until = Until::of(args.wait, args.no_wait);
    let path = |name: &str| format!("/v1/volumes/{name}/keys/revoke");
    renew(&target, ("revoke keys", args.show.json), names, until, &wish, &path).await
}

/// The volume, or all.
async fn named(target: &Target, name: Option<String>) -> anyhow::Result<Vec<String>> {
    let Some(name) = name else {
        let all = report(target).await?.volumes;
        return Ok(all.into_iter().map(|volume| volume.volume).collect());
    };
    Ok(vec![name])
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Agreed,
    Begun,
    Alone,
}

impl Until {
    fn of(wait: bool, no_wait: bool) -> Self {
        match (wait, no_wait) {
            (true, _) => Self::Alone,
            (false, false) => Self::Begun,
            (false, true) => Self::Agreed,
        }
    }
}

/// Asks for new keys, waits until they are in use, and if it is to, until they are the only ones. Of several
/// volumes each is seen to, whatever becomes of the others.
async fn renew<W: Serialize + Sync>(
    target: &Target,
    (what, json): (&str, bool),
    names: Vec<String>,
    until: Until,
    wish: &W,
    path: &(dyn Fn(&str) -> String + Sync),
) -> anyhow::Result<()> {
    let (mut renewed, mut waits, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for name in names {
        match target.post::<W, VolumeKeys>(&path(&name), wish).await {
            Ok(keys) if until == Until::Agreed => renewed.push(keys),
            Ok(keys) => waits.push(Wait::new(target, keys)),
            Err(error) => failed.push(error.context(format!("{what} of {name}"))),
        }
    }
    for wait in &waits {
        match wait.run(until == Until::Alone).await {
            Ok(keys) => renewed.push(keys),
            Err(error) => failed.push(error.context(format!("{what} of {}", wait.name))),
        }
    }
    let nothing = renewed.is_empty() && failed.is_empty();
    output::facts(json, &renewed, |renewed| match nothing {
        true => "no volumes\n".into(),
        false => renewed.iter().map(|keys| format!("{}\n", show::rotated(keys))).collect(),
    })?;
    match failed.len() {
        0 => Ok(()),
        1 => Err(failed.remove(0)),
        count => {
            let all: Vec<String> = failed.iter().map(|error| format!("{error:#}")).collect();
            anyhow::bail!("{count} volumes: {}", all.join("; "))
        }
    }
}

/// Waits for the new keys of a volume.
struct Wait<'a> {
    target: &'a Target,
    name: String,
    id: VolumeId,
    before: KeyEpochNo,
}

impl<'a> Wait<'a> {
    fn new(target: &'a Target, keys: VolumeKeys) -> Self {
        // Those that were made meanwhile are those that were wanted.
        let made = u32::from(!keys.wanted);
        let before = KeyEpochNo(keys.current.0.saturating_sub(made));
        Self { target, name: keys.volume, id: keys.id, before }
    }

    async fn run(&self, until_alone: bool) -> anyhow::Result<VolumeKeys> {
        let keys = self.until_begun().await?;
        if until_alone { self.until_alone(keys.current).await } else { Ok(keys) }
    }

    /// What is known now. The node that is asked may be gone for a while.
    async fn keys(&self) -> anyhow::Result<VolumeKeys> {
        let began = Instant::now();
        let report = loop {
            match report(self.target).await {
                Ok(report) => break report,
                Err(error) if began.elapsed() > REACH_PATIENCE => {
                    return Err(
                        error.context("it goes on all the same, and nobody tells how far it is")
                    );
                }
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        };
        let found = report.volumes.into_iter().find(|volume| volume.id == self.id);
        found.context("the volume was deleted")
    }

    async fn until_begun(&self) -> anyhow::Result<VolumeKeys> {
        let began = Instant::now();
        loop {
            let keys = self.keys().await?;
            if keys.current > self.before {
                return Ok(keys);
            }
            if began.elapsed() > BEGIN_PATIENCE {
                let why = keys.resealing.and_then(|status| status.why);
                let why = why.unwrap_or_else(|| "`smalti key status` tells what is missing".into());
                anyhow::bail!("new keys are wanted, and made as soon as that can be: {why}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn until_alone(&self, current: KeyEpochNo) -> anyhow::Result<VolumeKeys> {
        let bar = output::bar(format!("blocks of {}", self.name));
        let (mut last, mut since) = (None, Instant::now());
        loop {
            let keys = self.keys().await?;
            if keys.epochs.iter().all(|epoch| epoch.no >= current) {
                bar.finish_and_clear();
                return Ok(keys);
            }
            let counted = || keys.epochs.iter().filter_map(|epoch| Some((epoch.no, epoch.blocks?)));
            let of = |older: bool| -> u64 {
                let blocks = counted().filter(|(no, _)| (*no < keys.current) == older);
                blocks.map(|(_, blocks)| blocks).sum()
            };
            let status = keys.resealing.clone().unwrap_or_default();
            bar.set_length(of(true) + of(false));
            bar.set_position(of(false) + status.sealed.min(of(true)));
            let notes = show::resealing(&status);
            bar.set_message(match notes.is_empty() {
                true => format!("blocks of {}", self.name),
                false => format!("blocks of {}: {}", self.name, notes.join("; ")),
            });
            let now = (status.sealed, of(true), of(false));
            if last.replace(now) != Some(now) {
                since = Instant::now();
            }
            if since.elapsed() > STUCK_PATIENCE {
                bar.finish_and_clear();
                let notes = notes.join("; ");
                anyhow::bail!(
                    "new records are under key epoch {}, and older ones are not sealed anew just now: {notes}; it goes \
                     on by itself",
                    keys.current.0
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
