//! The command line: what is asked, by whom it is answered, how it is shown.

mod args;
mod custody;
mod export;
mod init;
mod join;
mod key;
mod node;
mod output;
mod passphrase;
mod provider;
mod recover;
mod replace;
mod reshape;
mod scrub;
mod show;
mod table;
mod target;
mod volume;

pub use args::{Cli, Command};
pub use output::{error_line, print};
pub use table::Table;
pub use target::Target;

use crate::control::{StatusReport, WhyReport};
use crate::{local, serve};
use anyhow::Context;

/// Does what the command line asks. Done is `Ok`.
///
/// # Errors
/// What was not done, as `what: why`.
pub async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Up(args) => local::up(args.into_options()?).await.context("bring the cluster up"),
        Command::Down(args) => local::down(&args.dir).await.context("take the cluster down"),
        Command::Serve(args) => serve::serve(&args.config).await,
        Command::Status(args) => {
            let report: StatusReport =
                args.target.resolve()?.read("/v1/status").await.context("get status")?;
            output::facts(args.json, &report, show::status)
        }
        Command::Why(args) => {
            let report: WhyReport =
                args.target.resolve()?.read("/v1/why").await.context("get reasons")?;
            output::facts(args.json, &report, show::why)
        }
        Command::Volume { command } => volume::run(command).await,
        Command::Node { command } => node::run(command).await,
        Command::Scrub(args) => scrub::run(args).await,
        Command::Token { command } => join::token(command).await,
        Command::Init(args) => init::run(args).await,
        Command::Join(args) => join::join(args).await,
        Command::Moves { command } => node::moves(command).await,
        Command::WhatIf { command } => node::what_if(command).await,
        Command::Key { command } => key::run(command).await,
    }
}
