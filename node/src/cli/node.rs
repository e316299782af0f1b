//! `smalti node ...`, `smalti moves ...` and `smalti what-if ...`.

use super::args::{MovesCommand, NodeCommand, NodeDrainArgs, NodeSetArgs, ShowArgs, WhatIfCommand};
use super::target::Target;
use super::{output, replace, show};
use crate::control::{
    ChangeNode, MovesStatus, NodeFacts, NodeState, PauseMoves, StatusReport, WhatIfReport,
};
use anyhow::{Context, bail};
use std::time::Duration;

/// Between two looks whether a node is empty.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What can not move in so many looks will not.
const STUCK_LOOKS: u32 = 10;

/// What is held back by a pause for so many looks is not about to end.
const PAUSED_LOOKS: u32 = 4;

/// Where nothing has moved in so many looks, somebody should see why.
const IDLE_LOOKS: u32 = 60;

/// A plan is made twice a second at least: so long after a change there is one that knows of it.
const PLAN_PAUSE: Duration = Duration::from_secs(1);

/// Another node may need so many looks to vote in its stead.
const VOTE_LOOKS: u32 = 40;

pub(super) async fn run(command: NodeCommand) -> anyhow::Result<()> {
    match command {
        NodeCommand::List(args) => {
            let nodes: Vec<NodeFacts> =
                args.target.resolve()?.read("/v1/nodes").await.context("list nodes")?;
            output::facts(args.json, &nodes, |nodes| show::nodes(nodes))
        }
        NodeCommand::Set(args) => set(args).await,
        NodeCommand::Drain(args) => drain(args).await,
        NodeCommand::Replace(args) => replace::run(args).await,
        NodeCommand::Remove(args) => {
            let path = format!("/v1/nodes/{}", args.name);
            args.target.resolve()?.delete(&path).await.context("remove node")?;
            output::print(&format!("{} is no member any more\n", args.name))
        }
    }
}

async fn set(args: NodeSetArgs) -> anyhow::Result<()> {
    let change = ChangeNode { weight: args.weight, domain: args.domain, draining: None };
    let path = format!("/v1/nodes/{}", args.node.name);
    let target = args.node.target.resolve()?;
    let node: NodeFacts = target.post(&path, &change).await.context("set node")?;
    output::print(&format!("{} is set; slots move as it asks\n", node.name))
}

/// Has a node emptied, and waits until it is.
async fn drain(args: NodeDrainArgs) -> anyhow::Result<()> {
    let name = args.node.name;
    let change = ChangeNode { draining: Some(!args.undo), ..ChangeNode::default() };
    let target = args.node.target.resolve()?;
    let path = format!("/v1/nodes/{name}");
    let _: NodeFacts = target.post(&path, &change).await.context("drain node")?;
    if args.undo {
        return output::print(&format!("{name} may hold slots again\n"));
    }
    if args.no_wait {
        tokio::time::sleep(PLAN_PAUSE).await;
        let status: StatusReport = target.read("/v1/status").await.context("look at what moves")?;
        let moves = show::moves(&status.moves);
        return output::print(&format!("{name} is to be emptied; slots of the cluster: {moves}\n"));
    }
    let emptied = until_empty(&target, &name, "`--undo` lets it have them again")
        .await
        .context("drain node")?;
    let votes = match (emptied.voter, emptied.state) {
        (true, _) => ", but votes, for no other node can instead",
        (false, NodeState::Down) => " and does not run",
        (false, _) => " and can be stopped",
    };
    let shares = match emptied.custodian {
        true => {
            "; it holds key shares yet, for no other node can take them or not all answer: see `smalti why`"
        }
        false => "",
    };
    output::print(&format!("{name} is empty{votes}{shares}\n"))
}

/// Waits until a node that is drained has no slots, and no vote and no key shares if another one can have them. `way_out` is
/// told when it stays as it is.
pub(super) async fn until_empty(
    target: &Target,
    name: &str,
    way_out: &str,
) -> anyhow::Result<NodeFacts> {
    let bar = output::bar(format!("slots of {name}"));
    let (mut most, mut looks, mut stuck, mut idle, mut paused) = (0, 0, 0, 0, 0);
    loop {
        let nodes: Vec<NodeFacts> = target.read("/v1/nodes").await?;
        let Some(node) = nodes.into_iter().find(|node| node.name == name) else {
            bail!("{name} was removed");
        };
        let status: StatusReport = target.read("/v1/status").await?;
        most = node.slots.max(most);
        bar.set_length(most.into());
        bar.set_position((most - node.slots).into());
        if node.slots == 0 {
            looks += 1;
            if !(node.voter || node.custodian) || looks == VOTE_LOOKS {
                bar.finish_and_clear();
                return Ok(node);
            }
        }
        let moves = status.moves;
        let held = moves.paused && moves.moving + moves.waiting > 0 && node.slots > 0;
        paused = if held { paused + 1 } else { 0 };
        if paused >= PAUSED_LOOKS {
            bar.finish_and_clear();
            bail!("nothing moves, for moves are paused: see `smalti moves resume`");
        }
        // A plan is made anew twice a second: what it says once may be of a moment.
        let rests = moves.moving + moves.waiting + moves.kept == 0;
        let stays = node.slots > 0 && rests && moves.stuck > 0;
        stuck = if stays { stuck + 1 } else { 0 };
        if stuck >= STUCK_LOOKS {
            bar.finish_and_clear();
            bail!(
                "{} slots stay, for no other node can take them: see `smalti why`; {way_out}",
                node.slots
            );
        }
        idle = if node.slots > 0 && moves.moving == 0 { idle + 1 } else { 0 };
        if idle >= IDLE_LOOKS {
            bar.finish_and_clear();
            let moves = show::moves(&moves);
            bail!(
                "nothing has moved for {} s, and {} slots are here yet ({moves}): see `smalti why`. It goes \
                 on when that ends; {way_out}",
                (LOOK_EVERY * IDLE_LOOKS).as_secs(),
                node.slots
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

pub(super) async fn moves(command: MovesCommand) -> anyhow::Result<()> {
    let (paused, args): (bool, ShowArgs) = match command {
        MovesCommand::Pause(args) => (true, args),
        MovesCommand::Resume(args) => (false, args),
    };
    let target = args.target.resolve()?;
    let moves: MovesStatus =
        target.post("/v1/moves", &PauseMoves { paused }).await.context("change moves")?;
    output::facts(args.json, &moves, |moves| format!("moves     {}\n", show::moves(moves)))
}

pub(super) async fn what_if(command: WhatIfCommand) -> anyhow::Result<()> {
    let WhatIfCommand::Stop(args) = command;
    let path = format!("/v1/what-if?stop={}", args.names.join(","));
    let report: WhatIfReport =
        args.show.target.resolve()?.read(&path).await.context("look ahead")?;
    output::facts(args.show.json, &report, show::what_if)
}
