//! `smalti volume ...`.

use super::args::{VolumeCommand, VolumeCreateArgs, VolumeDeleteArgs};
use super::{output, show, target};
use crate::control::{CreateVolume, VolumeDetail, VolumeFacts};
use anyhow::{Context, bail, ensure};
use std::io::IsTerminal;

pub(super) async fn run(command: VolumeCommand) -> anyhow::Result<()> {
    match command {
        VolumeCommand::Create(args) => create(args).await,
        VolumeCommand::List(args) => {
            let volumes: Vec<VolumeFacts> =
                args.target.resolve()?.read("/v1/volumes").await.context("list volumes")?;
            output::facts(args.json, &volumes, |volumes| show::volumes(volumes))
        }
        VolumeCommand::Show(args) => {
            let path = format!("/v1/volumes/{}", args.name);
            let detail: VolumeDetail =
                args.show.target.resolve()?.read(&path).await.context("show volume")?;
            output::facts(args.show.json, &detail, show::volume)
        }
        VolumeCommand::Delete(args) => delete(args).await,
        VolumeCommand::Export(args) => super::export::run(args).await,
        VolumeCommand::Reshape(args) => super::reshape::run(args).await,
    }
}

async fn create(args: VolumeCreateArgs) -> anyhow::Result<()> {
    let request = CreateVolume {
        name: args.name,
        size: args.size.bytes(),
        data: args.data,
        parity: args.parity,
        shard_size: args.shard_size,
        min_insync: args.min_insync,
        read_mode: args.read_mode,
    };
    let target = args.show.target.resolve()?;
    let detail: VolumeDetail =
        target.post("/v1/volumes", &request).await.context("create volume")?;
    output::facts(args.show.json, &detail, show::created)
}

/// Deletes the volume that was looked at: if the name passes to another one in between, nothing
/// is deleted.
async fn delete(args: VolumeDeleteArgs) -> anyhow::Result<()> {
    let target = args.target.resolve()?;
    let path = format!("/v1/volumes/{}", args.name);
    let detail: VolumeDetail = target.read(&path).await.context("delete volume")?;
    let id = detail.volume.id;
    if let Some(wanted) = args.id {
        ensure!(wanted == id.0, "delete volume: {} now has the identity {id}", args.name);
    }
    if !args.yes {
        ensure!(
            std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
            "delete volume: there is no terminal to ask for its name on; `--yes` deletes it unasked"
        );
        let question = format!(
            "Delete {} of {} with all its data? Type its name to confirm:",
            args.name,
            crate::size::human(detail.volume.size)
        );
        if !target::confirm(&question, &args.name)? {
            bail!("delete volume: not confirmed");
        }
    }
    let force = args.force;
    target.delete(&format!("{path}?id={id}&force={force}")).await.context("delete volume")?;
    let name = args.name;
    output::print(&format!("{name} is deleted with its keys; its room comes back by itself\n"))
}
