//! `smalti key`.

use super::args::{KeyCommand, KeyRotateArgs};
use super::{output, show, target::Target};
use crate::control::{KeyReport, VolumeKeys};
use anyhow::Context;
use smalti_storage::ids::KeyEpochNo;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long new keys may take while all custodians answer.
const BEGIN_PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn run(command: KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::Status(args) => {
            let report = report(&args.target.resolve()?).await.context("get key status")?;
            output::facts(args.json, &report, show::keys)
        }
        KeyCommand::Rotate(args) => rotate(args).await,
    }
}

async fn report(target: &Target) -> anyhow::Result<KeyReport> {
    target.read("/v1/keys").await
}

/// Asks for new keys, waits until they are in use, and if it is to, until they are the only ones.
async fn rotate(args: KeyRotateArgs) -> anyhow::Result<()> {
    let target = args.show.target.resolve()?;
    let names = match args.name {
        Some(name) => vec![name],
        None => {
            let all = report(&target).await.context("rotate keys")?.volumes;
            all.into_iter().map(|volume| volume.volume).collect()
        }
    };
    let (mut asked, mut rotated) = (BTreeMap::new(), Vec::new());
    for name in names {
        let path = format!("/v1/volumes/{name}/keys");
        let keys: VolumeKeys =
            target.post(&path, &()).await.with_context(|| format!("rotate keys of {name}"))?;
        // One that was made meanwhile is the one that was wanted.
        let before = if keys.wanted { keys.current } else { KeyEpochNo(keys.current.0 - 1) };
        if args.no_wait {
            rotated.push(keys);
        } else {
            asked.insert(name, before);
        }
    }
    for (name, before) in &asked {
        let what = || format!("rotate keys of {name}");
        let mut keys = until_begun(&target, name, *before).await.with_context(what)?;
        if args.wait {
            keys = until_alone(&target, name, keys.current).await.with_context(what)?;
        }
        rotated.push(keys);
    }
    output::facts(args.show.json, &rotated, |rotated| match rotated.is_empty() {
        true => "no volumes\n".into(),
        false => rotated.iter().map(|keys| format!("{}\n", show::rotated(keys))).collect(),
    })
}

async fn keys_of(target: &Target, name: &str) -> anyhow::Result<VolumeKeys> {
    let volumes = report(target).await?.volumes;
    let found = volumes.into_iter().find(|volume| volume.volume == name);
    found.context("the volume was deleted")
}

async fn until_begun(
    target: &Target,
    name: &str,
    before: KeyEpochNo,
) -> anyhow::Result<VolumeKeys> {
    let began = Instant::now();
    loop {
        let keys = keys_of(target, name).await?;
        if keys.current > before {
            return Ok(keys);
        }
        if began.elapsed() > BEGIN_PATIENCE {
            let why = keys.resealing.and_then(|status| status.why);
            let why = why.unwrap_or_else(|| "`smalti why` may tell what is missing".into());
            anyhow::bail!("new keys are wanted, and made as soon as that can be: {why}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn until_alone(
    target: &Target,
    name: &str,
    current: KeyEpochNo,
) -> anyhow::Result<VolumeKeys> {
    let bar = output::bar(format!("blocks of {name}"));
    loop {
        let keys = keys_of(target, name).await?;
        if keys.epochs.iter().all(|epoch| epoch.no >= current) {
            bar.finish_and_clear();
            return Ok(keys);
        }
        let counted = || keys.epochs.iter().filter_map(|epoch| Some((epoch.no, epoch.blocks?)));
        let older: u64 =
            counted().filter(|(no, _)| *no < keys.current).map(|(_, blocks)| blocks).sum();
        bar.set_length(counted().map(|(_, blocks)| blocks).sum());
        let sealed = keys.resealing.as_ref().map_or(0, |status| status.sealed);
        bar.set_position(bar.length().unwrap_or(0).saturating_sub(older.saturating_sub(sealed)));
        if let Some(why) = keys.resealing.and_then(|status| status.why) {
            bar.set_message(format!("blocks of {name}; it waits: {why}"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
