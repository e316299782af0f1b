//! `smalti init`.

use super::{output, passphrase};
use crate::init::{self, API_PORT, InitOptions, NBD_PORT, NamedAddress};
use anyhow::Context;
use clap::Args;
use std::path::PathBuf;

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
}

pub(super) async fn run(args: InitArgs) -> anyhow::Result<()> {
    let InitArgs { dir, nodes, api_port, nbd_port, passphrase, passphrase_file } = args;
    let deal = move || {
        let ask = || passphrase::read_new(passphrase_file.as_deref(), "New passphrase:");
        let passphrase = passphrase.then(ask).transpose().context("the passphrase")?;
        init::deal(&InitOptions { dir, nodes, api_port, nbd_port, passphrase })
    };
    let dealt = tokio::task::spawn_blocking(deal).await?;
    output::print(&dealt.context("make the first nodes")?.next_steps())
}
