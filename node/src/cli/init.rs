//! `smalti init`.

use super::{output, passphrase};
use crate::init::{self, API_PORT, Dealt, InitOptions, NBD_PORT, NamedAddress, RecoveryWish};
use anyhow::Context;
use clap::Args;
use serde::Serialize;
use smalti_storage::ids::ClusterId;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// `smalti init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where the folders are made, one for each node and one for the authority; missing or empty
    #[arg(long)]
    pub dir: PathBuf,
    /// A node, and where the others will reach it, over UDP; at least three of them
    #[arg(long = "node", value_name = "NAME=IP:PORT", required = true)]
    pub nodes: Vec<NamedAddress>,
    /// Port of the control APIs, on loopback; further nodes of one machine take those that follow
    #[arg(long, value_name = "PORT", default_value_t = API_PORT)]
    pub api_port: u16,
    /// Port of NBD, likewise
    #[arg(long, value_name = "PORT", default_value_t = NBD_PORT)]
    pub nbd_port: u16,
    /// Seal the key shares of all nodes under a passphrase, which each has to be given after each start
    #[arg(long)]
    pub passphrase: bool,
    /// File with it, readable by its owner only [default: asked on the terminal, or the first line of stdin]
    #[arg(long, value_name = "FILE", requires = "passphrase")]
    pub passphrase_file: Option<PathBuf>,
    /// Recovery shares.
    #[command(flatten)]
    pub recovery: RecoveryArgs,
    /// Print JSON, recovery shares included
    #[arg(long)]
    pub json: bool,
}

/// Recovery shares of a new cluster.
#[derive(Debug, Args)]
pub struct RecoveryArgs {
    /// Print so many recovery shares, this once, for people to keep: enough of them open every volume when
    /// custodians can not
    #[arg(long, value_name = "N", requires = "recovery_threshold")]
    pub recovery_shares: Option<u8>,
    /// How many of them are needed
    #[arg(long, value_name = "T", requires = "recovery_shares")]
    pub recovery_threshold: Option<u8>,
}

impl RecoveryArgs {
    /// What is wished.
    ///
    /// # Errors
    /// There can be no such shares.
    pub fn wish(&self) -> anyhow::Result<Option<RecoveryWish>> {
        let both = self.recovery_shares.zip(self.recovery_threshold);
        both.map(|(shares, threshold)| RecoveryWish::new(shares, threshold)).transpose()
    }
}

/// `smalti init --json`.
#[derive(Serialize)]
struct Facts<'a> {
    cluster: ClusterId,
    nodes: &'a [PathBuf],
    authority: &'a Path,
    recovery: Option<RecoveryFacts<'a>>,
}

#[derive(Serialize)]
struct RecoveryFacts<'a> {
    threshold: u8,
    shares: Vec<&'a str>,
}

pub(super) async fn run(args: InitArgs) -> anyhow::Result<()> {
    let recovery = args.recovery.wish().context("make the first nodes")?;
    let InitArgs { dir, nodes, api_port, nbd_port, json, passphrase, passphrase_file, .. } = args;
    let hand_out = move |dealt: &Dealt| match (json, &dealt.recovery) {
        (true, _) => print_json(dealt),
        (false, Some(shares)) => output::print(&shares.text()),
        (false, None) => Ok(()),
    };
    let deal = move || {
        let ask = || passphrase::read_new(passphrase_file.as_deref(), "New passphrase:");
        let passphrase = passphrase.then(ask).transpose().context("the passphrase")?;
        let options = InitOptions { dir, nodes, api_port, nbd_port, passphrase, recovery };
        init::deal(&options, hand_out)
    };
    let dealt = tokio::task::spawn_blocking(deal).await?;
    let dealt = dealt.context("make the first nodes")?;
    if json { Ok(()) } else { output::print(&dealt.next_steps()) }
}

fn print_json(dealt: &Dealt) -> anyhow::Result<()> {
    let recovery = dealt.recovery.as_ref().map(|shares| RecoveryFacts {
        threshold: shares.threshold,
        shares: shares.lines.iter().map(|line| line.as_str()).collect(),
    });
    let (nodes, authority) = (&dealt.nodes[..], dealt.authority.as_path());
    let facts = Facts { cluster: dealt.cluster, nodes, authority, recovery };
    let text = Zeroizing::new(serde_json::to_string_pretty(&facts).context("print JSON")?);
    output::print(&Zeroizing::new(format!("{}\n", *text)))
}
