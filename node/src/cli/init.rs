//! `smalti init`.

use super::output;
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
}

pub(super) async fn run(args: InitArgs) -> anyhow::Result<()> {
    let InitArgs { dir, nodes, api_port, nbd_port } = args;
    let options = InitOptions { dir, nodes, api_port, nbd_port };
    let dealt = tokio::task::spawn_blocking(move || init::deal(&options)).await?;
    output::print(&dealt.context("make the first nodes")?.next_steps())
}
