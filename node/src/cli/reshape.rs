//! `smalti volume reshape`: a volume's geometry is fixed, and this tells how to copy it to another one.

use super::args::{TargetArgs, volume_name};
use super::output;
use crate::cluster_file::nbd_tcp_uri;
use crate::control::{NodeFacts, StatusReport, VolumeDetail, VolumeFacts};
use crate::volume_spec::Geometry;
use anyhow::{Context, bail, ensure};
use clap::Args;
use smalti_map::ReadMode;
use smalti_storage::geometry::SHARD_SIZE_DEFAULT;
use std::str::FromStr;

/// A name with what is added to it has to be one yet.
const BASE_BYTES_MAX: usize = 56;

/// `smalti volume reshape`.
#[derive(Debug, Args)]
pub struct VolumeReshapeArgs {
    /// Its name
    #[arg(value_parser = volume_name)]
    pub name: String,
    /// Data and parity shards, as in 4+2
    #[arg(value_name = "N+K")]
    pub shards: Shards,
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `N+K`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    data: u8,
    parity: u8,
}

impl FromStr for Shards {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u8>().ok();
        let numbers = text.split_once('+').and_then(|(n, k)| Some((number(n)?, number(k)?)));
        let (data, parity) = numbers.ok_or("data and parity shards, as in 4+2")?;
        Ok(Self { data, parity })
    }
}

pub(super) async fn run(args: VolumeReshapeArgs) -> anyhow::Result<()> {
    let VolumeReshapeArgs { name, shards: Shards { data, parity }, target: which } = args;
    let target = which.resolve()?;
    let path = format!("/v1/volumes/{name}");
    let detail: VolumeDetail = target.read(&path).await.context("reshape volume")?;
    let volume = detail.volume;
    ensure!(
        (volume.data, volume.parity) != (data, parity),
        "reshape volume: {name} has {data}+{parity} shards already"
    );
    let nodes: Vec<NodeFacts> = target.read("/v1/nodes").await.context("reshape volume")?;
    let wanted =
        Geometry::asked(Some(data), Some(parity), nodes.len()).context("reshape volume")?;
    let status: StatusReport = target.read("/v1/status").await.context("reshape volume")?;
    let node = nodes.iter().find(|node| node.name == status.answered_by);
    let node = node.context("reshape volume: the node that answers is not a member")?;
    let uri = |volume: &str| nbd_tcp_uri(node.nbd, volume);
    let attached = status.volumes.iter().any(|of| of.name == volume.name && of.attached);
    let warning = match attached {
        true => {
            "# Clients are attached just now: what they write meanwhile may be missing from the copy.\n"
        }
        false => "",
    };
    let commands = commands(&volume, wanted, &uri, &words(&which));
    output::print(&format!("{warning}{commands}"))?;
    bail!(
        "reshape volume: {name} can not be given {data}+{parity} shards while it is there, that does not work \
         yet; the commands on stdout copy it to a new volume"
    )
}

/// The options that name the cluster, for a shell.
fn words(which: &TargetArgs) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    match (&which.dir, &which.api) {
        (_, Some(api)) => format!("--api {}", quoted(&api.to_string())),
        (Some(dir), None) => format!("--dir {}", quoted(&dir.display().to_string())),
        (None, None) => String::new(),
    }
}

/// What a shell is to do.
fn commands(
    volume: &VolumeFacts,
    wanted: Geometry,
    uri: &dyn Fn(&str) -> String,
    which: &str,
) -> String {
    let (name, Geometry { data, parity }) = (&volume.name, wanted);
    let base: String = name.chars().take(BASE_BYTES_MAX).collect();
    let copy = format!("{base}-{data}-{parity}");
    let mut options = String::new();
    if volume.shard_size != SHARD_SIZE_DEFAULT {
        options.push_str(&format!(" --shard-size {}", volume.shard_size));
    }
    if volume.read_mode != ReadMode::default() {
        options.push_str(&format!(" --read-mode {}", volume.read_mode));
    }
    // Whoever wanted more slots to spare than is usual, or fewer, wants that yet.
    let usual = |parity: u8| u8::from(parity > 1);
    let spare = volume.min_insync.saturating_sub(volume.data);
    if spare != usual(volume.parity) && spare.min(parity) != usual(parity) {
        options.push_str(&format!(" --min-insync {}", data + spare.min(parity)));
    }
    let (from, to, size) = (uri(name), uri(&copy), volume.size);
    format!(
        "# Let nobody write to {name} meanwhile. Its data takes up room twice until it is deleted.\n\
         set -e\n\
         smalti volume create {copy} --size {size} --data {data} --parity {parity}{options} {which}\n\
         nbdcopy --flush --destination-is-zero '{from}' '{to}'\n\
         qemu-img compare -f raw -F raw '{from}' '{to}'\n\
         # Now attach clients to {copy}. When it is no longer needed:\n\
         # smalti volume delete {name} --id {} --yes {which}\n",
        volume.id
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn shards_are_two_numbers() {
        assert_eq!("4+2".parse(), Ok(Shards { data: 4, parity: 2 }));
        for text in ["", "4", "4+", "+2", "4+2+1", "4-2", "256+1", "a+b"] {
            text.parse::<Shards>().unwrap_err();
        }
    }

    #[test]
    fn words_for_a_shell_are_quoted() {
        let which = TargetArgs { dir: Some("a b/it's".into()), api: None };
        assert_eq!(words(&which), r"--dir 'a b/it'\''s'");
    }
}
