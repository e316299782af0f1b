//! `smalti node replace`.

use super::args::NodeArgs;
use super::target::Target;
use super::{node, output};
use crate::control::{NodeFacts, NodeState, ReplaceNode};
use anyhow::{Context, bail};
use clap::Args;
use std::time::Duration;

/// Between two looks at a node that is to be stopped.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Whoever has just stopped may be thought to coordinate a volume for so many looks.
const REMOVE_LOOKS: u32 = 40;

/// `smalti node replace`.
#[derive(Debug, Args)]
pub struct NodeReplaceArgs {
    /// Which node leaves, and which cluster.
    #[command(flatten)]
    pub node: NodeArgs,
    /// The node that takes its place; it has joined and runs
    #[arg(long, value_name = "NEW")]
    pub with: String,
    /// Return when it is agreed; the same command removes the old node when that is empty
    #[arg(long)]
    pub no_wait: bool,
}

pub(super) async fn run(args: NodeReplaceArgs) -> anyhow::Result<()> {
    let (old, new) = (args.node.name, args.with);
    let target = args.node.target.resolve()?;
    let wish = ReplaceNode { with: new.clone() };
    let path = format!("/v1/nodes/{old}/replace");
    let facts: NodeFacts = target.post(&path, &wish).await.context("replace node")?;
    let domain = match facts.domain.as_str() {
        "" => "a failure domain of its own".to_owned(),
        domain => format!("failure domain {domain}"),
    };
    output::print(&format!(
        "{new} has weight {} and {domain}, as {old} had; what {old} holds moves\n",
        facts.weight
    ))?;
    if args.no_wait {
        return output::print(&format!("the same command removes {old} when it is empty\n"));
    }
    let way_out = format!("the same command goes on, `smalti node drain {old} --undo` gives up");
    let emptied = node::until_empty(&target, &old, &way_out).await.context("replace node")?;
    if emptied.voter {
        bail!(
            "replace node: {old} is empty, but votes, for no other node can instead: see `smalti why`"
        );
    }
    let replaced = finish(&target, &old).await.context("replace node")?;
    if !replaced {
        return output::print(&format!("{old} was removed elsewhere\n"));
    }
    output::print(&format!("{old} is no member any more; {new} has its place\n"))
}

/// Waits until the old node does not run, and removes it; says whether it was there to remove.
async fn finish(target: &Target, old: &str) -> anyhow::Result<bool> {
    let (mut told, mut tries) = (false, 0);
    loop {
        let nodes: Vec<NodeFacts> = target.read("/v1/nodes").await?;
        let Some(node) = nodes.into_iter().find(|node| node.name == old) else { return Ok(false) };
        if node.state == NodeState::Down {
            tries += 1;
            match target.delete(&format!("/v1/nodes/{old}")).await {
                Ok(()) => return Ok(true),
                Err(error) if tries >= REMOVE_LOOKS => return Err(error),
                Err(_) => {}
            }
        } else if !told {
            told = true;
            output::print(&format!(
                "{old} is empty: stop it on its machine, and it is removed as soon as it does not run\n"
            ))?;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
