//! `smalti key custodians`, `verify` and `audit`.

use super::args::ShowArgs;
use super::{output, show, target::Target};
use crate::control::{AuditReport, KeyReport, SetCustodians, VerifyReport};
use anyhow::{Context, bail};
use clap::Args;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long secrets may take to be dealt on while all custodians answer.
const DEAL_PATIENCE: Duration = Duration::from_secs(60);

/// `smalti key custodians`.
#[derive(Debug, Args)]
pub struct KeyCustodiansArgs {
    /// Names of the nodes that are to be custodians [default: the present ones]
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
    /// Shares that are to be needed [default: as many as now]
    #[arg(long, value_name = "T")]
    pub threshold: Option<u8>,
    /// Give the present custodians new shares
    #[arg(long, conflicts_with = "nodes")]
    pub refresh: bool,
    /// Only say that it is wanted
    #[arg(long)]
    pub no_wait: bool,
    /// Whom to ask, and how to show it.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// `smalti key verify`.
#[derive(Debug, Args)]
pub struct KeyVerifyArgs {
    /// Nodes to think away
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    pub without: Vec<String>,
    /// Whom to ask, and how to show it.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// `smalti key audit`.
#[derive(Debug, Args)]
pub struct KeyAuditArgs {
    /// Whose log [default: those of all custodians]
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// Whom to ask, and how to show it.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// Names new custodians, or the same ones again, and waits until every secret is with them.
pub(super) async fn set(args: KeyCustodiansArgs) -> anyhow::Result<()> {
    let target = args.show.target.resolve()?;
    let nodes = Some(args.nodes).filter(|nodes| !nodes.is_empty());
    if nodes.is_none() && args.threshold.is_none() && !args.refresh {
        let report: KeyReport = target.read("/v1/keys").await.context("get custodians")?;
        return output::facts(args.show.json, &report, show::custodians);
    }
    let wish = SetCustodians { nodes, threshold: args.threshold, ..SetCustodians::default() };
    let mut report: KeyReport =
        target.post("/v1/custodians", &wish).await.context("set the custodians")?;
    if !args.no_wait {
        report = until_dealt(&target, report).await?;
    }
    output::facts(args.show.json, &report, show::custodians)
}

/// Waits until every secret is with those who are to hold it.
pub(super) async fn until_dealt(
    target: &Target,
    mut report: KeyReport,
) -> anyhow::Result<KeyReport> {
    let (wanted, began) = (report.resharing.share_epoch, Instant::now());
    let mut all = report.resharing.left;
    let bar = output::bar("secrets to deal on".into());
    // The one that agreed may know it before the one that is asked now.
    while !report.is_dealt() || report.resharing.share_epoch < wanted {
        let resharing = &report.resharing;
        all = all.max(resharing.left);
        bar.set_length(all.into());
        bar.set_position(all.saturating_sub(resharing.left).into());
        if began.elapsed() > DEAL_PATIENCE {
            bar.finish_and_clear();
            let why = resharing.why.clone();
            let why = why.unwrap_or_else(|| "`smalti key custodians` tells how far it is".into());
            bail!(
                "{} secrets are with the custodians of before yet, and stay open to them: {why}; it goes on by itself",
                resharing.left
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
        if let Ok(now) = target.read("/v1/keys").await {
            report = now;
        }
    }
    bar.finish_and_clear();
    Ok(report)
}

/// Has every custodian prove its shares; an error if not everything could be opened.
pub(super) async fn verify(args: KeyVerifyArgs) -> anyhow::Result<()> {
    let target = args.show.target.resolve()?;
    let path = match args.without.as_slice() {
        [] => "/v1/keys/verify".to_owned(),
        names => format!("/v1/keys/verify?without={}", names.join(",")),
    };
    let report: VerifyReport = target.read(&path).await.context("verify keys")?;
    output::facts(args.show.json, &report, show::verified)?;
    if !report.good {
        bail!("not everything could be opened");
    }
    Ok(())
}

/// Shows what custodians have done with shares; an error if a log does not hold together.
pub(super) async fn audit(args: KeyAuditArgs) -> anyhow::Result<()> {
    let target = args.show.target.resolve()?;
    let path = match &args.node {
        None => "/v1/keys/audit".to_owned(),
        Some(name) => format!("/v1/keys/audit?node={name}"),
    };
    let reports: Vec<AuditReport> = target.read(&path).await.context("get audit logs")?;
    output::facts(args.show.json, &reports, |reports| show::audit(reports))?;
    let bad: Vec<String> = reports
        .iter()
        .filter_map(|report| Some(format!("{}: {}", report.node, report.problem.as_ref()?)))
        .collect();
    if !bad.is_empty() {
        bail!("not every log is whole: {}", bad.join("; "));
    }
    Ok(())
}
