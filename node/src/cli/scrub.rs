//! `smalti scrub`.

use super::args::ScrubArgs;
use super::{output, show, target::Target};
use crate::control::{ScrubStatus, VolumeDetail, VolumeFacts};
use anyhow::Context;
use std::collections::BTreeMap;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Has volumes scrubbed, and waits until they are, unless it is not to.
pub(super) async fn run(args: ScrubArgs) -> anyhow::Result<()> {
    let target = args.show.target.resolve()?;
    let names = match args.name {
        Some(name) => vec![name],
        None => {
            let all: Vec<VolumeFacts> = target.read("/v1/volumes").await.context("scrub")?;
            all.into_iter().map(|volume| volume.name).collect()
        }
    };
    let mut scrubs = BTreeMap::new();
    for name in names {
        let path = format!("/v1/volumes/{name}/scrub");
        let scrub: ScrubStatus =
            target.post(&path, &()).await.with_context(|| format!("scrub {name}"))?;
        scrubs.insert(name, scrub);
    }
    if !args.no_wait {
        for (name, scrub) in &mut scrubs {
            *scrub = wait(&target, name).await.with_context(|| format!("scrub {name}"))?;
        }
    }
    output::facts(args.show.json, &scrubs, |scrubs| match scrubs.is_empty() {
        true => "no volumes\n".into(),
        false => scrubs.iter().map(|(name, s)| format!("{name}: {}\n", show::scrub(s))).collect(),
    })?;
    let unread: u64 = scrubs.values().map(|scrub| scrub.unread).sum();
    anyhow::ensure!(
        args.no_wait || unread == 0,
        "{unread} slots of groups were not read, for their stores were out of sync: `smalti why` tells which nodes to \
         start; scrub again then"
    );
    Ok(())
}

async fn wait(target: &Target, name: &str) -> anyhow::Result<ScrubStatus> {
    let bar = output::bar(format!("groups of {name}"));
    loop {
        let detail: VolumeDetail = target.read(&format!("/v1/volumes/{name}")).await?;
        let scrub = detail.scrub;
        bar.set_length(scrub.groups.into());
        bar.set_position((scrub.groups - scrub.due.min(scrub.groups)).into());
        if scrub.due == 0 {
            bar.finish_and_clear();
            return Ok(scrub);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
