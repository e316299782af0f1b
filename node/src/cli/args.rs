//! The words and options of the command line.

use super::custody::{KeyAuditArgs, KeyCustodiansArgs, KeyVerifyArgs};
use super::init::{InitArgs, RecoveryArgs};
use super::join::{JoinArgs, TokenCommand};
use super::key::{KeyRevokeArgs, KeyRotateArgs};
use super::provider::{KeyProviderArgs, KeyUnlockArgs};
use super::recover::KeyRecoverArgs;
use super::replace::NodeReplaceArgs;
use super::reshape::VolumeReshapeArgs;
use super::target::Target;
use crate::client::ApiAddress;
use crate::local::UpOptions;
use crate::local::VolumeWish;
use crate::size::{VolumeSize, parse_bytes};
use crate::volume_spec;
use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use smalti_map::ReadMode;
use std::path::PathBuf;
use std::time::Duration;

/// An encrypted, erasure-coded block store
#[derive(Debug, Parser)]
#[command(name = "smalti", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a cluster on this machine until Ctrl-C, or in the background with --detach
    Up(UpArgs),
    /// Stop the nodes of a folder that `up` made; not those that joined, which have folders of their own
    Down(DownArgs),
    /// Run one node in the foreground
    Serve(ServeArgs),
    /// Show the health of the cluster
    Status(ShowArgs),
    /// Tell why the health is not ok
    Why(ShowArgs),
    /// Make, list, show, export, copy to other shards, and delete volumes
    Volume {
        /// What to do.
        #[command(subcommand)]
        command: VolumeCommand,
    },
    /// List, empty, replace and remove nodes, and set what they are to hold
    Node {
        /// What to do.
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Read every record of a volume and compare it with the others; repair what is wrong
    Scrub(ScrubArgs),
    /// Make the folders of the first nodes of a cluster over several machines
    Init(InitArgs),
    /// Make tokens with which machines can join the cluster
    Token {
        /// What to do.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Make this machine a node of a cluster, by a token
    Join(JoinArgs),
    /// Hold back or let go on what moves between stores: rebuilds, drains, balance
    Moves {
        /// What to do.
        #[command(subcommand)]
        command: MovesCommand,
    },
    /// Tell what would be if something happened
    WhatIf {
        /// What.
        #[command(subcommand)]
        command: WhatIfCommand,
    },
    /// Look at keys and their custody, and give volumes new ones
    Key {
        /// What to do.
        #[command(subcommand)]
        command: KeyCommand,
    },
}

/// `smalti up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// Number of nodes [default: 3, or as many as DIR has]
    #[arg(long, value_name = "N")]
    pub nodes: Option<usize>,
    /// Folder of the cluster; made when it is missing, resumed when it is there
    #[arg(long)]
    pub dir: PathBuf,
    /// Volume to make if it is missing
    #[arg(long, value_name = "NAME", value_parser = volume_name)]
    pub volume: Option<String>,
    /// Its size, as in 512M or 1.5T; needed when it is missing
    #[arg(long, requires = "volume", allow_negative_numbers = true)]
    pub size: Option<VolumeSize>,
    /// Its data shards [default: 2+1 on three nodes, 2+2 on four, 3+2 on five, 4+2 on more]
    #[arg(long, value_name = "N", requires = "volume", requires = "parity")]
    pub data: Option<u8>,
    /// Its parity shards [default: as for --data]
    #[arg(long, value_name = "K", requires = "volume", requires = "data")]
    pub parity: Option<u8>,
    /// Its slots that have to be in sync for writes [default: data, or one more where parity is
    /// more than 1]
    #[arg(long, value_name = "M", requires = "volume")]
    pub min_insync: Option<u8>,
    /// Return once the cluster is healthy, leaving its nodes running
    #[arg(long)]
    pub detach: bool,
    /// How long to wait until the cluster is healthy
    #[arg(long, value_name = "SECONDS", default_value = "110", value_parser = seconds)]
    pub wait: Duration,
    /// Recovery shares of a new cluster.
    #[command(flatten)]
    pub recovery: RecoveryArgs,
}

/// `smalti down`.
#[derive(Debug, Args)]
pub struct DownArgs {
    /// Folder of the cluster
    #[arg(long)]
    pub dir: PathBuf,
}

/// `smalti serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Config file of the node, TOML or JSON
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Which cluster is meant.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct TargetArgs {
    /// Folder of a local cluster made by `up`
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Control API of a node: host:port or unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    pub api: Option<ApiAddress>,
}

/// A command that prints facts.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `smalti volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume
    Create(VolumeCreateArgs),
    /// List the volumes
    List(ShowArgs),
    /// Show a volume and its placement
    Show(VolumeShowArgs),
    /// Delete a volume and its keys, for good
    Delete(VolumeDeleteArgs),
    /// Write the contents of a volume to a file
    Export(VolumeExportArgs),
    /// Tell how to copy a volume to one of other shards; in place it can not be done yet
    Reshape(VolumeReshapeArgs),
}

/// `smalti volume create`.
#[derive(Debug, Args)]
pub struct VolumeCreateArgs {
    /// Its name, also the name of its NBD export
    #[arg(value_parser = volume_name)]
    pub name: String,
    /// Its size, as in 512M or 1.5T
    #[arg(long, allow_negative_numbers = true)]
    pub size: VolumeSize,
    /// Data shards [default: 2+1 on three nodes, 2+2 on four, 3+2 on five, 4+2 on more]
    #[arg(long, value_name = "N", requires = "parity")]
    pub data: Option<u8>,
    /// Parity shards [default: as for --data]
    #[arg(long, value_name = "K", requires = "data")]
    pub parity: Option<u8>,
    /// Slots that have to be in sync for writes [default: data, or one more where parity is more
    /// than 1]
    #[arg(long, value_name = "M")]
    pub min_insync: Option<u8>,
    /// How reads are made sure of: by `lease`, without a message but with clocks that run at the same
    /// rate, or by `confirm`, with a round trip and no clock [default: lease]
    #[arg(long, value_name = "MODE")]
    pub read_mode: Option<ReadMode>,
    /// Mean size of a shard, a power of two from 64K to 64M [default: 1M]
    #[arg(long, value_name = "SIZE", value_parser = shard_size)]
    pub shard_size: Option<u32>,
    /// Where and how.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// `smalti volume show`.
#[derive(Debug, Args)]
pub struct VolumeShowArgs {
    /// Its name
    #[arg(value_parser = volume_name)]
    pub name: String,
    /// Where and how.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// `smalti volume delete`.
#[derive(Debug, Args)]
pub struct VolumeDeleteArgs {
    /// Its name
    #[arg(value_parser = volume_name)]
    pub name: String,
    /// Delete only if the volume still has this identity
    #[arg(long, value_name = "UUID")]
    pub id: Option<uuid::Uuid>,
    /// Do not ask for the name first; needed where there is no terminal to ask on
    #[arg(long)]
    pub yes: bool,
    /// Delete it though clients are attached; they get errors from then on
    #[arg(long)]
    pub force: bool,
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `smalti volume export`.
#[derive(Debug, Args)]
pub struct VolumeExportArgs {
    /// Its name
    #[arg(value_parser = volume_name)]
    pub name: String,
    /// The file to make; - for stdout
    pub file: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `smalti node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes
    List(ShowArgs),
    /// Set what share of the slots a node gets, and its failure domain
    Set(NodeSetArgs),
    /// Have all that a node holds move to others, while clients go on
    Drain(NodeDrainArgs),
    /// Have a node take the place of another one, which is emptied and removed
    Replace(NodeReplaceArgs),
    /// Remove a node that was drained and stopped, or that is gone for good
    Remove(NodeArgs),
}

/// A command about one node.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Its name
    pub name: String,
    /// Which cluster.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `smalti node set`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("setting").required(true).multiple(true))]
pub struct NodeSetArgs {
    /// Its share of the slots relative to the other nodes, 0 to 10000; 100 unless set, 0 empties it
    #[arg(long, value_name = "N", group = "setting", allow_negative_numbers = true)]
    pub weight: Option<u32>,
    /// Its failure domain, as a rack; '' for one of its own
    #[arg(long, value_name = "NAME", group = "setting")]
    pub domain: Option<String>,
    /// Which node, and which cluster.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `smalti node drain`.
#[derive(Debug, Args)]
pub struct NodeDrainArgs {
    /// Let the node hold slots again
    #[arg(long)]
    pub undo: bool,
    /// Return when it is agreed, not when the node is empty
    #[arg(long)]
    pub no_wait: bool,
    /// Which node, and which cluster.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `smalti scrub`.
#[derive(Debug, Args)]
pub struct ScrubArgs {
    /// Name of the volume [default: all of them]
    #[arg(value_name = "VOLUME")]
    pub name: Option<String>,
    /// Return at once; `smalti volume show` tells how far it is
    #[arg(long)]
    pub no_wait: bool,
    /// Which cluster, and how to print.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// `smalti moves`.
#[derive(Debug, Subcommand)]
pub enum MovesCommand {
    /// Let no slot move until `resume`: what has begun stands still too, but for moves that writes wait for
    Pause(ShowArgs),
    /// Let them again
    Resume(ShowArgs),
}

/// `smalti what-if`.
#[derive(Debug, Subcommand)]
pub enum WhatIfCommand {
    /// Nodes were stopped, or died
    Stop(WhatIfStopArgs),
}

/// `smalti what-if stop`.
#[derive(Debug, Args)]
pub struct WhatIfStopArgs {
    /// Their names
    #[arg(required = true, value_name = "NODE")]
    pub names: Vec<String>,
    /// Where and how.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// `smalti key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Show custodians and key epochs
    Status(ShowArgs),
    /// Give volumes new keys: new records are sealed under them at once, older ones in the background
    Rotate(KeyRotateArgs),
    /// Give volumes new keys because theirs may have leaked: what is under them is sealed anew before anything else
    Revoke(KeyRevokeArgs),
    /// Show who holds the shares of all secrets, or name others: all shares become new ones
    Custodians(KeyCustodiansArgs),
    /// Have every custodian prove its shares: could everything be opened, without some nodes too?
    Verify(KeyVerifyArgs),
    /// Show what custodians have done with shares, and whether their logs are whole
    Audit(KeyAuditArgs),
    /// Give custodians the passphrase under which their shares are sealed
    Unlock(KeyUnlockArgs),
    /// Have a stopped node's shares sealed by another key provider
    Provider(KeyProviderArgs),
    /// Open everything with recovery shares and give custodians new shares; or try whether that could be done
    Recover(KeyRecoverArgs),
}

impl TargetArgs {
    /// Finds out whom to ask.
    ///
    /// # Errors
    /// The folder holds no cluster.
    pub fn resolve(&self) -> anyhow::Result<Target> {
        match (&self.dir, &self.api) {
            (_, Some(address)) => Ok(Target::one(address.clone())),
            (Some(dir), None) => Target::in_dir(dir),
            (None, None) => anyhow::bail!("find the cluster: neither --dir nor --api is given"),
        }
    }
}

impl UpArgs {
    /// The options of [`crate::local::up`].
    ///
    /// # Errors
    /// This program's own file is not known, or there can be no such recovery shares.
    pub fn into_options(self) -> anyhow::Result<UpOptions> {
        let volume = self.volume.map(|name| VolumeWish {
            name,
            size: self.size,
            geometry: self.data.zip(self.parity),
            min_insync: self.min_insync,
        });
        let program = std::env::current_exe().context("find this program's own file")?;
        let (nodes, dir, detach, wait) = (self.nodes, self.dir, self.detach, self.wait);
        let recovery = self.recovery.wish()?;
        Ok(UpOptions { program, nodes, dir, volume, recovery, detach, wait })
    }
}

pub(super) fn volume_name(text: &str) -> Result<String, String> {
    volume_spec::check_name(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn shard_size(text: &str) -> Result<u32, String> {
    let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    volume_spec::check_shard_size(bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds.into())),
        _ => Err("a whole number of seconds, at least 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;

    fn parse(words: &str) -> Result<Cli, ErrorKind> {
        let words = std::iter::once("smalti").chain(words.split_whitespace());
        Cli::try_parse_from(words).map_err(|error| {
            assert_eq!(error.exit_code(), 2, "{error}");
            error.kind()
        })
    }

    #[test]
    fn the_definition_holds_together() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn documented_commands_parse() {
        for words in [
            "up --nodes 3 --dir d",
            "up --nodes 3 --dir d --volume v --size 2G --data 2 --parity 1 --detach",
            "down --dir d",
            "serve --config f",
            "status --dir d --json",
            "status --api 127.0.0.1:1",
            "why --api unix:/a",
            "volume create v --size 64M --dir d",
            "volume create v --size 64M --data 2 --parity 1 --shard-size 64K --dir d --json",
            "volume create v --size 64M --data 3 --parity 2 --min-insync 3 --dir d",
            "up --dir d --volume v --size 1G --min-insync 2",
            "volume list --dir d",
            "volume show v --dir d --json",
            "volume delete v --yes --dir d",
            "volume export v v.img --dir d",
            "volume export v - --force --dir d",
            "node list --dir d",
            "node set n1 --weight 200 --domain rack1 --dir d",
            "node drain n1 --dir d",
            "node drain n1 --undo --dir d",
            "node remove n1 --dir d",
            "node replace n1 --with n4 --dir d",
            "node replace n1 --with n4 --no-wait --api unix:/a",
            "volume reshape v 4+2 --dir d",
            "init --dir d --node a=192.0.2.1:9000 --node b=192.0.2.2:9000 --node c=[2001:db8::1]:9",
            "init --dir d --node a=192.0.2.1:9000 --api-port 1 --nbd-port 2",
            "init --dir d --node a=192.0.2.1:9000 --passphrase --passphrase-file f",
            "token create --dir d",
            "token create --ttl 90s --name n4 --api unix:/a",
            "join smalti1abc --dir d --listen 192.0.2.1:9000",
            "join - --dir d --listen [::1]:9 --name x --api 127.0.0.1:1 --nbd 127.0.0.1:2",
            "moves pause --dir d",
            "scrub --dir d",
            "key rotate v --dir d --wait",
            "key rotate --all --dir d --json",
            "key rotate v --dir d --no-wait",
            "key revoke v --dir d --wait",
            "key revoke v --epoch 3 --dir d",
            "key revoke --all --master --dir d --no-wait",
            "key revoke --master --dir d --json",
            "scrub v --dir d --json --no-wait",
            "moves resume --dir d --json",
            "what-if stop n1 n2 --dir d",
            "key status --dir d",
            "key unlock --dir d",
            "key unlock --dir d --node n2 --passphrase-file f",
            "key unlock --api unix:/a --json",
            "key provider --passphrase --dir d",
            "key provider --passphrase --passphrase-file f --dir d",
            "key provider --key-file --dir d --old-passphrase-file f",
            "key provider --credential smalti --dir d",
        ] {
            assert!(parse(words).is_ok(), "{words}");
        }
    }

    #[test]
    fn wrong_arguments_are_usage_errors() {
        let cases = [
            ("status", ErrorKind::MissingRequiredArgument),
            ("key revoke --dir d", ErrorKind::MissingRequiredArgument),
            ("key revoke --all --epoch 1 --dir d", ErrorKind::ArgumentConflict),
            ("key revoke v --all --dir d", ErrorKind::ArgumentConflict),
            ("key revoke v --master --dir d", ErrorKind::ArgumentConflict),
            ("status --dir d --api 127.0.0.1:1", ErrorKind::ArgumentConflict),
            ("status --api nonsense", ErrorKind::ValueValidation),
            ("serve", ErrorKind::MissingRequiredArgument),
            ("up --nodes x --dir d", ErrorKind::ValueValidation),
            ("up --dir d --size 1G", ErrorKind::MissingRequiredArgument),
            ("up --dir d --volume v --size 0", ErrorKind::ValueValidation),
            ("up --dir d --volume v --size -1", ErrorKind::ValueValidation),
            ("volume create v --size -1 --dir d", ErrorKind::ValueValidation),
            ("node set n1 --weight -1 --dir d", ErrorKind::ValueValidation),
            ("up --dir d --volume v --size 513", ErrorKind::ValueValidation),
            ("up --dir d --volume v --size 1G --data 2", ErrorKind::MissingRequiredArgument),
            ("up --dir d --volume a/b --size 1G", ErrorKind::ValueValidation),
            ("up --dir d --wait 0", ErrorKind::ValueValidation),
            ("volume create v --dir d", ErrorKind::MissingRequiredArgument),
            ("volume create v --size 1G --shard-size 1K --dir d", ErrorKind::ValueValidation),
            ("volume delete v --id 5 --dir d", ErrorKind::ValueValidation),
            ("node set n1 --dir d", ErrorKind::MissingRequiredArgument),
            ("node replace n1 --dir d", ErrorKind::MissingRequiredArgument),
            ("volume reshape v --dir d", ErrorKind::MissingRequiredArgument),
            ("volume reshape v 4 --dir d", ErrorKind::ValueValidation),
            ("token create", ErrorKind::MissingRequiredArgument),
            ("token create --ttl 1 --dir d", ErrorKind::ValueValidation),
            ("token create --ttl 0h --dir d", ErrorKind::ValueValidation),
            ("token create --ttl 99999999999999999d --dir d", ErrorKind::ValueValidation),
            ("init --dir d", ErrorKind::MissingRequiredArgument),
            ("init --node a=192.0.2.1:9", ErrorKind::MissingRequiredArgument),
            ("init --dir d --node a", ErrorKind::ValueValidation),
            ("init --dir d --node a=host:9", ErrorKind::ValueValidation),
            ("init --dir d --node a=192.0.2.1", ErrorKind::ValueValidation),
            ("join t --dir d", ErrorKind::MissingRequiredArgument),
            ("join t --dir d --listen 9000", ErrorKind::ValueValidation),
            ("what-if stop --dir d", ErrorKind::MissingRequiredArgument),
            ("key unlock", ErrorKind::MissingRequiredArgument),
            ("key unlock secret --dir d", ErrorKind::UnknownArgument),
            ("key provider --dir d", ErrorKind::MissingRequiredArgument),
            ("key provider --key-file --passphrase --dir d", ErrorKind::ArgumentConflict),
            ("key provider --key-file --passphrase-file f --dir d", ErrorKind::ArgumentConflict),
            ("key provider --credential a/b --dir d", ErrorKind::ValueValidation),
            ("frobnicate", ErrorKind::InvalidSubcommand),
        ];
        for (words, kind) in cases {
            assert_eq!(parse(words).err(), Some(kind), "{words}");
        }
    }
}
