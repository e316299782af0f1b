//! `smalti key unlock` and `smalti key provider`.

use super::args::ShowArgs;
use super::{output, passphrase};
use crate::client::{ApiAddress, Client, ClientError};
use crate::config::{NodeConfig, ProviderConfig, credential_name};
use crate::control::{ErrorKind, Unlock, Unlocked};
use crate::custody::{Change, NewProvider};
use crate::init::CONFIG_FILE;
use crate::local::Layout;
use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Longer than a passphrase is tried, the pause after a wrong one included.
const UNLOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a node that has only just been started is waited for.
const START_PATIENCE: Duration = Duration::from_secs(30);
const START_PAUSE: Duration = Duration::from_millis(100);

/// `smalti key unlock`.
#[derive(Debug, Args)]
pub struct KeyUnlockArgs {
    /// Only this node of the folder [default: all that are sealed under a passphrase]
    #[arg(long, value_name = "NODE", conflicts_with = "api")]
    pub node: Option<String>,
    /// File with the passphrase, readable by its owner only [default: asked on the terminal, or the first line of stdin]
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Which nodes: the folder of a local cluster or of one node, or the Unix socket of a node.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// `smalti key provider`.
#[derive(Debug, Args)]
pub struct KeyProviderArgs {
    /// What is to seal the shares.
    #[command(flatten)]
    pub new: NewProviderArgs,
    /// File with the new passphrase, readable by its owner only [default: asked on the terminal, or a line of stdin]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key_file", "credential"])]
    pub passphrase_file: Option<PathBuf>,
    /// The same with the present one, if the shares are sealed under one
    #[arg(long, value_name = "FILE")]
    pub old_passphrase_file: Option<PathBuf>,
    /// Folder of the node, which does not run
    #[arg(long)]
    pub dir: PathBuf,
}

/// One of the providers that there are.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct NewProviderArgs {
    /// A new key in a file of the node's folder
    #[arg(long)]
    pub key_file: bool,
    /// A passphrase, which has to be given after each start: `smalti key unlock`
    #[arg(long)]
    pub passphrase: bool,
    /// A key of 32 bytes that systemd gives to the service as a credential of this name
    #[arg(long, value_name = "NAME", value_parser = name_of_credential)]
    pub credential: Option<String>,
}

fn name_of_credential(text: &str) -> Result<String, String> {
    credential_name(text.to_owned())
}

/// What became of a node.
#[derive(Serialize)]
struct Outcome {
    node: String,
    was_locked: bool,
}

/// Gives custodians their passphrase; those that are of one folder have the same one, or are named one by one.
pub(super) async fn unlock(args: KeyUnlockArgs) -> anyhow::Result<()> {
    let nodes = locked_nodes(&args).context("find the node")?;
    let passphrase = passphrase::read(args.passphrase_file.as_deref(), "Passphrase:")?;
    let wish = Unlock { passphrase };
    let (mut unlocked, mut failed) = (Vec::new(), Vec::new());
    for (node, address) in nodes {
        match ask(&Client::new(address), &wish).await {
            Ok(Unlocked { was_locked }) => unlocked.push(Outcome { node, was_locked }),
            Err(error) => {
                failed.push(anyhow::Error::from(error).context(format!("unlock {node}")));
            }
        }
    }
    output::facts(args.show.json, &unlocked, |unlocked| {
        let line = |outcome: &Outcome| match outcome.was_locked {
            true => format!("{} is unlocked\n", outcome.node),
            false => format!("{} was not locked\n", outcome.node),
        };
        unlocked.iter().map(line).collect()
    })?;
    match failed.len() {
        0 => Ok(()),
        1 => Err(failed.remove(0)),
        count => {
            let all: Vec<String> = failed.iter().map(|error| format!("{error:#}")).collect();
            bail!("{count} nodes: {}", all.join("; "))
        }
    }
}

async fn ask(client: &Client, wish: &Unlock) -> Result<Unlocked, ClientError> {
    let began = Instant::now();
    loop {
        let asked = client.post("/v1/keys/unlock", wish, UNLOCK_TIMEOUT).await;
        let starts = |error: &ClientError| matches!(error.kind(), Some(ErrorKind::Starting));
        match asked {
            Err(error) if starts(&error) && began.elapsed() < START_PATIENCE => {
                tokio::time::sleep(START_PAUSE).await;
            }
            asked => return asked,
        }
    }
}

/// The nodes to unlock, by name, and their Unix sockets: nothing else is given a passphrase.
fn locked_nodes(args: &KeyUnlockArgs) -> anyhow::Result<Vec<(String, ApiAddress)>> {
    let dir = match (&args.show.target.api, &args.show.target.dir) {
        (Some(socket @ ApiAddress::Unix(_)), _) => {
            return Ok(vec![("the custodian".to_owned(), socket.clone())]);
        }
        (Some(ApiAddress::Tcp(host)), _) => bail!(
            "{host} is a TCP port, on which anybody may listen: give `--api unix:PATH` of the node's \
             `api.sock`, or `--dir` of its folder"
        ),
        (None, Some(dir)) => dir,
        (None, None) => bail!("neither --dir nor --api is given"),
    };
    let configs = match dir.join(CONFIG_FILE).exists() {
        true => vec![NodeConfig::load(&dir.join(CONFIG_FILE))?],
        false => {
            let (layout, _) = Layout::load_usable(dir)?;
            layout.nodes().map(|node| node.config.clone()).collect()
        }
    };
    let wanted = |config: &NodeConfig| match &args.node {
        Some(name) => config.name == *name,
        None => matches!(config.custody.provider, ProviderConfig::Passphrase(_)),
    };
    let nodes: Vec<_> = configs
        .into_iter()
        .filter(wanted)
        .map(|config| (config.name, ApiAddress::Unix(config.sockets.api)))
        .collect();
    match (&args.node, nodes.is_empty()) {
        (_, false) => Ok(nodes),
        (Some(name), true) => bail!("{} has no node {name}", dir.display()),
        (None, true) => bail!("no node of {} is sealed under a passphrase", dir.display()),
    }
}

/// Has a stopped node's shares sealed by another provider.
pub(super) async fn change(args: KeyProviderArgs) -> anyhow::Result<()> {
    let changed = tokio::task::spawn_blocking(move || change_now(&args)).await?;
    output::print(&changed.context("change the key provider")?)
}

fn change_now(args: &KeyProviderArgs) -> anyhow::Result<String> {
    let config = args.dir.join(CONFIG_FILE);
    let mut old = None;
    if let ProviderConfig::Passphrase(_) = NodeConfig::load(&config)?.custody.provider {
        let file = args.old_passphrase_file.as_deref();
        old =
            Some(passphrase::read(file, "Present passphrase:").context("the present passphrase")?);
    }
    let new = match (&args.new.credential, args.new.passphrase) {
        (Some(name), _) => NewProvider::Credential(name.clone()),
        (None, true) => {
            let file = args.passphrase_file.as_deref();
            let new =
                passphrase::read_new(file, "New passphrase:").context("the new passphrase")?;
            NewProvider::Passphrase(new)
        }
        (None, false) => NewProvider::KeyFile,
    };
    let made = Change::make(&config, &new, || old.context("the config has changed meanwhile"))?;
    Ok(told(&made, &args.dir))
}

fn told(made: &Change, dir: &Path) -> String {
    let by = match &made.custody.provider {
        ProviderConfig::KeyFile(path) => format!("a key in {}", path.display()),
        ProviderConfig::Passphrase(_) => {
            let dir = dir.display();
            format!("a passphrase: after each start, `smalti key unlock --dir {dir}`")
        }
        ProviderConfig::Credential(name) => format!("the credential {name} of its service"),
    };
    let mut text = format!("{} shares are sealed anew, under {by}\n", made.shares);
    if let Some(left) = &made.left {
        text.push_str(&format!("nothing needs {left} any more: destroy it\n"));
    }
    text
}
