//! `smalti key recover`.

use super::args::ShowArgs;
use super::{output, target::Target};
use crate::control::{KeyReport, RecoverKeys, RecoveryFacts, RecoveryReport, ShareLine};
use anyhow::{Context, bail, ensure};
use clap::Args;
use smalti_storage::keys::RecoveryShare;
use std::io::{BufRead, IsTerminal, Read, Write};
use zeroize::Zeroizing;

/// Longer than any line with a share, whatever stands between its characters.
const LINE_BYTES_MAX: u64 = 1024;

/// `smalti key recover`.
#[derive(Debug, Args)]
#[command(after_help = "Reads recovery shares from standard input, one a line.")]
pub struct KeyRecoverArgs {
    /// Only tell what the shares open, and change nothing
    #[arg(long)]
    pub check: bool,
    /// Nodes that are to be custodians [default: the present ones]
    #[arg(long, value_name = "NODE", value_delimiter = ',', conflicts_with = "check")]
    pub custodians: Vec<String>,
    /// Shares of custodians that are to be needed [default: as many as now]
    #[arg(long, value_name = "T", conflicts_with = "check")]
    pub threshold: Option<u8>,
    /// Whom to ask, and how to show it.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// Has a node open everything with the shares that people bring; an error if it could not open all.
pub(super) async fn run(args: KeyRecoverArgs) -> anyhow::Result<()> {
    let target = args.show.target.resolve()?;
    ensure!(
        target.is_local(),
        "recover keys: recovery shares are given over a node's Unix socket only: use --dir or --api unix:PATH"
    );
    let shares = read_shares(&target).await.context("recover keys")?;
    let nodes = Some(args.custodians).filter(|nodes| !nodes.is_empty());
    let wish = RecoverKeys { shares, check: args.check, nodes, threshold: args.threshold };
    let report: RecoveryReport =
        target.post("/v1/keys/recover", &wish).await.context("recover keys")?;
    output::facts(args.show.json, &report, show)?;
    if !report.problems.is_empty() {
        bail!("{} secrets can not be opened with these shares", report.problems.len());
    }
    Ok(())
}

fn show(report: &RecoveryReport) -> String {
    let RecoveryReport { opened, dealt, share_epoch, .. } = *report;
    let mut text = match report.check {
        true => format!("{opened} secrets can be opened with these shares; nothing was changed\n"),
        false => format!(
            "{opened} secrets were opened with these shares, and {dealt} dealt anew to {}; share epoch {share_epoch}\n",
            report.custodians.join(", ")
        ),
    };
    for problem in &report.problems {
        text.push_str(&format!("NOT OPENED: {problem}\n"));
    }
    text
}

async fn read_shares(target: &Target) -> anyhow::Result<Vec<ShareLine>> {
    let report: KeyReport = target.read("/v1/keys").await?;
    let recovery = report.recovery.context("the cluster was made without recovery shares")?;
    let read = move || match std::io::stdin().is_terminal() {
        true => prompt(recovery),
        false => read_lines(&mut std::io::stdin().lock()),
    };
    let shares = tokio::task::spawn_blocking(read).await?.context("read recovery shares")?;
    ensure!(!shares.is_empty(), "no recovery shares were given on standard input, one a line");
    Ok(shares)
}

fn read_lines(from: &mut dyn BufRead) -> anyhow::Result<Vec<ShareLine>> {
    let mut shares = Vec::new();
    while let Some(line) = read_line(from)? {
        if !line.trim().is_empty() {
            shares.push(ShareLine::new(line));
        }
    }
    Ok(shares)
}

/// Asks for as many as are needed. What is typed is shown: nobody types seventy characters blindly.
fn prompt(recovery: RecoveryFacts) -> anyhow::Result<Vec<ShareLine>> {
    let (mut input, mut stderr) = (std::io::stdin().lock(), std::io::stderr());
    let mut shares = Vec::new();
    while shares.len() < usize::from(recovery.needed) {
        let (no, need) = (shares.len() + 1, recovery.needed);
        write!(stderr, "recovery share {no} of {need} that are needed: ").context("ask")?;
        stderr.flush().context("ask")?;
        let Some(line) = read_line(&mut input)? else { break };
        match RecoveryShare::parse(&line, no) {
            Ok(_) => shares.push(ShareLine::new(line)),
            Err(problem) => writeln!(stderr, "{problem}").context("ask")?,
        }
    }
    Ok(shares)
}

fn read_line(from: &mut dyn BufRead) -> anyhow::Result<Option<Zeroizing<String>>> {
    let mut line = Zeroizing::new(String::with_capacity(LINE_BYTES_MAX as usize));
    let mut bounded = from.take(LINE_BYTES_MAX);
    let length = bounded.read_line(&mut line).context("read a line")?;
    ensure!((length as u64) < LINE_BYTES_MAX, "a line is longer than any recovery share");
    Ok((length > 0).then_some(line))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn lines_are_read_one_by_one_and_bounded() {
        let lines = |text: &str| read_lines(&mut text.as_bytes());
        let given = lines("one\n\n  \ntwo \r\nthree").unwrap();
        let given: Vec<&str> = given.iter().map(|line| line.as_ref().trim()).collect();
        assert_eq!(given, ["one", "two", "three"]);
        assert!(lines("").unwrap().is_empty());
        let error = lines(&"x".repeat(2000)).unwrap_err().to_string();
        assert!(error.contains("longer than any") && !error.contains("xx"), "{error}");
        assert_eq!(format!("{:?}", lines("secret").unwrap()), "[ShareLine(redacted)]");
    }
}
