//! Facts as people read them.

use super::table::Table;
use crate::control::{
    AuditReport, CustodyStatus, DiskState, Health, KeyReport, MovesStatus, NodeFacts, ResealStatus,
    RevokedKeys, ScrubStatus, SlotState, StatusReport, StoreStatus, VerifyReport, VolumeDetail,
    VolumeFacts, VolumeKeys, VolumeStatus, WhatIfReport, WhyReport,
};
use crate::size::human;

fn or_dash(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "-".into())
}

pub(super) fn status(report: &StatusReport) -> String {
    let mut nodes = Table::new(["NODE", "ID>", "STATE"]);
    for node in &report.nodes {
        nodes.row([node.name.clone(), node.id.0.to_string(), node.state.to_string()]);
    }
    let mut volumes = Table::new([
        "VOLUME",
        "SIZE>",
        "SHARDS",
        "HEALTH",
        "EPOCH>",
        "COORDINATOR",
        "BEHIND>",
        "GROUPS FULL>",
    ]);
    for volume in &report.volumes {
        volumes.row([
            volume.name.clone(),
            human(volume.size),
            format!("{}+{}", volume.data, volume.parity),
            volume.health.to_string(),
            volume.epoch.0.to_string(),
            or_dash(volume.coordinator.as_ref()),
            volume.rows_behind.map_or_else(|| "unknown".to_owned(), |rows| format!("{rows} rows")),
            format!("{}/{}", volume.groups_full, volume.groups),
        ]);
    }
    let leader = report.raft.leader.as_deref().unwrap_or("none");
    let mut text = format!(
        "health    {}\nleader    {leader}, term {}\ncustody   {}\nmoves     {}\n\n{}",
        report.health,
        report.raft.term,
        custody_line(report.custody),
        moves(&report.moves),
        nodes.text(),
    );
    for barred in &report.barred {
        text.push_str(&format!("{barred}\n"));
    }
    text.push('\n');
    text.push_str(&if report.volumes.is_empty() { "no volumes\n".into() } else { volumes.text() });
    for volume in report.volumes.iter().filter(|volume| volume.slots_catching_up > 0) {
        text.push_str(&catching_up(volume));
    }
    for volume in report.volumes.iter().filter(|volume| volume.scrub.rows > 0) {
        text.push_str(&format!("{}: scrubbed {}\n", volume.name, scrub(&volume.scrub)));
    }
    for node in &report.nodes {
        for StoreStatus { id, faults } in node.stores.iter().filter(|store| store.faults > 0) {
            text.push_str(&format!("{}: store {id} had {faults} wrong records\n", node.name));
        }
    }
    text
}

/// One line about a volume some of whose slots are being brought up to date.
fn catching_up(volume: &VolumeStatus) -> String {
    let left = match volume.seconds_left {
        Some(seconds) => format!(", {seconds} s left"),
        None => String::new(),
    };
    let held_back = if volume.held_back { "; clients come first" } else { "" };
    format!(
        "{}: {} slots catch up, about {} rows ({}) to go, {} rows/s ({}/s){left}{held_back}\n",
        volume.name,
        volume.slots_catching_up,
        volume.rows_left,
        human(volume.bytes_left),
        volume.rows_per_second,
        human(volume.rows_per_second * (volume.bytes_left / volume.rows_left.max(1))),
    )
}

pub(super) fn why(report: &WhyReport) -> String {
    let mut text = format!("health    {}\n", report.health);
    if report.health == Health::Ok {
        text.push_str("nothing is wrong\n");
    }
    for reason in &report.reasons {
        text.push_str(&format!("{}: {}: {}\n", reason.health, reason.subject, reason.problem));
        if let Some(remedy) = &reason.remedy {
            text.push_str(&format!("    {remedy}\n"));
        }
    }
    text
}

pub(super) fn volumes(volumes: &[VolumeFacts]) -> String {
    if volumes.is_empty() {
        return "no volumes\n".into();
    }
    let mut table = Table::new(["VOLUME", "SIZE>", "SHARDS", "HEALTH", "COORDINATOR", "ID"]);
    for volume in volumes {
        table.row([
            volume.name.clone(),
            human(volume.size),
            format!("{}+{}", volume.data, volume.parity),
            volume.health.to_string(),
            or_dash(volume.coordinator.as_ref()),
            volume.id.to_string(),
        ]);
    }
    table.text()
}

/// One line per fact; what `volume create` says, the least in-sync slots included.
fn facts(volume: &VolumeFacts) -> String {
    format!(
        "volume       {}\nid           {}\nsize         {} ({} bytes)\n\
         shards       {} data + {} parity, {} each\n\
         writes need  {} of {} slots in sync\nreads        by {}\nhealth       {}\n\
         epoch        {}\ncoordinator  {}\nkey epoch    {}\n",
        volume.name,
        volume.id,
        human(volume.size),
        volume.size,
        volume.data,
        volume.parity,
        human(volume.shard_size.into()),
        volume.min_insync,
        u16::from(volume.data) + u16::from(volume.parity),
        volume.read_mode,
        volume.health,
        volume.epoch.0,
        or_dash(volume.coordinator.as_ref()),
        volume.key_epoch.0,
    )
}

pub(super) fn created(detail: &VolumeDetail) -> String {
    facts(&detail.volume)
}

pub(super) fn volume(detail: &VolumeDetail) -> String {
    let mut table = Table::new(["GROUP>", "SLOTS"]);
    for group in &detail.groups {
        let slots = group.slots.iter().map(|slot| {
            let moves = slot.moves_to.as_ref().map(|to| format!(" -> {to}")).unwrap_or_default();
            match slot.state {
                SlotState::Insync => format!("{}{moves}", slot.node),
                state => format!("{}{moves} ({state})", slot.node),
            }
        });
        let offline = if group.offline { "  offline" } else { "" };
        table.row([
            group.group.0.to_string(),
            format!("{}{offline}", slots.collect::<Vec<_>>().join("  ")),
        ]);
    }
    format!("{}scrub         {}\n\n{}", facts(&detail.volume), scrub(&detail.scrub), table.text())
}

pub(super) fn scrub(scrub: &ScrubStatus) -> String {
    let due = match scrub.due {
        0 => String::new(),
        due => format!("; {due} groups are to be scrubbed"),
    };
    let unclear = match scrub.unclear {
        0 => String::new(),
        rows => format!(", {rows} rows do not fit together"),
    };
    let wrong = format!("{} records of them were wrong", scrub.wrong);
    let unread = match scrub.unread {
        0 => String::new(),
        slots => {
            format!("; {slots} slots of groups were not read, for their stores were out of sync")
        }
    };
    format!("{} groups, {} rows, {wrong}{unclear}{unread}{due}", scrub.groups, scrub.rows)
}

pub(super) fn nodes(nodes: &[NodeFacts]) -> String {
    let mut table = Table::new([
        "NODE",
        "ID>",
        "STATE",
        "START>",
        "VOTES",
        "CUSTODIAN",
        "WEIGHT>",
        "DOMAIN",
        "SLOTS>",
        "FREE>",
        "DISK",
        "FAULTS>",
        "QUIC",
        "API",
        "NBD",
    ]);
    let yes = |yes| if yes { "yes" } else { "no" }.to_owned();
    for node in nodes {
        let disk = node.stores.iter().find_map(|store| store.disk);
        table.row([
            node.name.clone(),
            node.id.0.to_string(),
            node.state.to_string(),
            node.incarnation.0.to_string(),
            yes(node.voter),
            yes(node.custodian),
            node.weight.to_string(),
            if node.domain.is_empty() { "-".into() } else { node.domain.clone() },
            node.slots.to_string(),
            disk.map_or_else(|| "-".into(), |disk| human(disk.free)),
            disk.map_or("-", |disk| match disk.state {
                DiskState::Ok => "ok",
                DiskState::NearFull => "nearly full",
                DiskState::Full => "full",
            })
            .into(),
            node.stores.iter().map(|store| store.faults).sum::<u64>().to_string(),
            node.quic.to_string(),
            node.api.to_string(),
            node.nbd.to_string(),
        ]);
    }
    table.text()
}

/// One line about what moves; nothing where nothing does.
pub(super) fn moves(moves: &MovesStatus) -> String {
    let MovesStatus { paused, moving, waiting, kept, stuck } = *moves;
    let mut parts = Vec::new();
    let all = [(moving, "move"), (waiting, "wait"), (kept, "kept twice"), (stuck, "can not move")];
    for (slots, what) in all {
        if slots > 0 {
            parts.push(format!("{slots} {what}"));
        }
    }
    if parts.is_empty() {
        parts.push("none".into());
    }
    format!("{}{}", parts.join(", "), if paused { " (paused)" } else { "" })
}

pub(super) fn what_if(report: &WhatIfReport) -> String {
    let stop = report.stop.join(", ");
    let all_go_on = report.quorum
        && report.custody
        && report.volumes.iter().all(|volume| volume.reads && volume.writes);
    let mut text = match (report.safe, all_go_on) {
        (true, _) => format!("without {stop} everything goes on\n"),
        (false, true) => format!("whether everything goes on without {stop} is not sure yet\n"),
        (false, false) => format!("without {stop} not everything goes on\n"),
    };
    if !report.quorum {
        text.push_str("too few voters would be left: nothing could be changed or taken over\n");
    }
    if !report.custody {
        text.push_str("too few custodians would be left: no volume could be attached anew\n");
    }
    for volume in report.volumes.iter().filter(|volume| !volume.sure) {
        text.push_str(&format!(
            "stores of {} do not all answer, or are compared after a crash: wait until `smalti status` \
             says ok\n",
            volume.name
        ));
    }
    let mut table = Table::new(["VOLUME", "READS", "WRITES", "COULD LOSE THEN>", "CLIENTS"]);
    for volume in &report.volumes {
        let goes = |goes| if goes { "go on" } else { "wait" }.to_owned();
        let clients = match (volume.reads && volume.writes, volume.takeover) {
            (false, _) => "wait",
            (true, true) => "pause for a moment",
            (true, false) => "notice little",
        };
        table.row([
            volume.name.clone(),
            goes(volume.reads),
            goes(volume.writes),
            match volume.reads {
                true => format!("{} more of a group", volume.spare),
                false => "-".into(),
            },
            clients.into(),
        ]);
    }
    text.push('\n');
    text.push_str(&if report.volumes.is_empty() { "no volumes\n".into() } else { table.text() });
    text
}

/// What there is to say of the keys of a volume that a table does not show.
fn key_notes(volume: &VolumeKeys) -> Option<String> {
    let name = &volume.volume;
    let mut notes = Vec::new();
    if volume.wanted {
        notes.push("new keys are wanted and not there yet".to_owned());
    }
    notes.extend(volume.revoked.iter().map(revoked));
    notes.extend(volume.resealing.iter().flat_map(resealing));
    (!notes.is_empty()).then(|| format!("{name}: {}\n", notes.join("; ")))
}

fn revoked(revoked: &RevokedKeys) -> String {
    let RevokedKeys { through, since, blocks } = revoked;
    let blocks = blocks.map_or_else(|| "records".into(), |blocks| format!("{blocks} blocks"));
    format!("key epochs up to {} were revoked at {since}, and {blocks} are under them", through.0)
}

/// How far records are sealed anew, and what is in the way.
pub(super) fn resealing(status: &ResealStatus) -> Vec<String> {
    let mut notes = Vec::new();
    {
        let mut tell = |blocks: u64, what: &str| {
            if blocks > 0 {
                notes.push(format!("{blocks} {what}"));
            }
        };
        tell(status.sealed, "blocks are sealed anew by the present look");
        tell(status.unknown, "blocks may be older, and nobody can tell just now");
        tell(status.held, "older contents are held by snapshots, and keep their keys");
        tell(status.failed, "blocks can not be read, and keep their keys");
        tell(
            status.unlisted,
            "groups can not be listed: stores are away, or are yet to be compared",
        );
    }
    notes.extend(status.why.as_ref().map(|why| format!("it waits: {why}")));
    notes
}

/// One line about new keys.
pub(super) fn rotated(keys: &VolumeKeys) -> String {
    let older = keys.epochs.iter().filter(|epoch| epoch.no < keys.current).count();
    if keys.wanted {
        return format!("{}: new keys are wanted, and made as soon as that can be", keys.volume);
    }
    let rest = match older {
        0 => "it is the only one".to_owned(),
        _ => "older records are sealed anew in the background".to_owned(),
    };
    format!("{}: new records are under key epoch {}; {rest}", keys.volume, keys.current.0)
}

pub(super) fn keys(report: &KeyReport) -> String {
    let mut epochs =
        Table::new(["VOLUME", "KEY EPOCH>", "USE", "BLOCKS>", "BEGAN (UNIX)>", "SHARES NEEDED>"]);
    for volume in &report.volumes {
        for epoch in &volume.epochs {
            let only = volume.epochs.len() == 1;
            let counted = epoch.blocks.map(|blocks| blocks.to_string());
            epochs.row([
                volume.volume.clone(),
                epoch.no.0.to_string(),
                if epoch.no == volume.current { "new records" } else { "old records" }.into(),
                counted.unwrap_or_else(|| if only { "all" } else { "not counted" }.into()),
                epoch.timestamp.to_string(),
                format!("{} of {}", epoch.needed, epoch.total),
            ]);
        }
    }
    let notes: String = report.volumes.iter().filter_map(key_notes).collect();
    format!(
        "{}\n{}{notes}",
        custodians(report),
        if report.volumes.is_empty() { "no volumes\n".into() } else { epochs.text() },
    )
}

/// Who holds shares, and whether all secrets are with them.
pub(super) fn custodians(report: &KeyReport) -> String {
    let mut holders = Table::new(["CUSTODIAN", "SHARE>", "STATE"]);
    for holder in &report.holders {
        let state = match (holder.reachable, &holder.barred, holder.lacking) {
            (false, ..) => "not reachable".to_owned(),
            (true, Some(why), _) => why.clone(),
            (true, None, 0) => "reachable".to_owned(),
            (true, None, lacking) => format!("lacks {lacking} shares"),
        };
        holders.row([holder.node.clone(), holder.share.to_string(), state]);
    }
    let (custody, resharing) = (report.custody, &report.resharing);
    let mut dealt = String::new();
    if custody.needed == custody.total {
        let text =
            "every custodian is needed: without any one of them no volume can be attached anew\n";
        dealt.push_str(text);
    }
    if resharing.new_master {
        dealt.push_str("another master secret is wanted, and not there yet\n");
    }
    if resharing.left > 0 {
        let why = resharing.why.as_ref().map(|why| format!(": {why}"));
        let why = why.unwrap_or_default();
        dealt
            .push_str(&format!("{} secrets are yet to be dealt on to them{why}\n", resharing.left));
    }
    let recovery = report.recovery.map(|recovery| {
        format!("recovery  {} shares are with people, {} needed\n", recovery.total, recovery.needed)
    });
    format!(
        "custody   {}; share epoch {}\n{}\n{}{dealt}",
        custody_line(custody),
        resharing.share_epoch,
        recovery.unwrap_or_default(),
        holders.text()
    )
}

/// How many custodians could be asked.
fn custody_line(custody: CustodyStatus) -> String {
    let CustodyStatus { needed, reachable, total } = custody;
    if reachable < needed {
        return format!("sealed: {reachable} of {needed} custodians reachable");
    }
    format!("{reachable} of {total} custodians answer, {needed} needed")
}

pub(super) fn verified(report: &VerifyReport) -> String {
    let mut custodians = Table::new(["CUSTODIAN", "SHARES PROVEN>", "PROBLEM"]);
    for custodian in &report.custodians {
        custodians.row([
            custodian.node.clone(),
            format!("{} of {}", custodian.proven, custodian.total),
            custodian.problems.join("; "),
        ]);
    }
    let mut secrets =
        Table::new(["SECRET OF", "KEY EPOCH>", "NEEDED>", "PROVEN>", "CUSTODIANS>", "OPENS"]);
    for secret in &report.secrets {
        secrets.row([
            secret.volume.clone().unwrap_or_else(|| "the cluster".into()),
            secret.key_epoch.map(|no| no.0.to_string()).unwrap_or_default(),
            secret.needed.to_string(),
            secret.proven.to_string(),
            secret.total.to_string(),
            if secret.proven >= secret.needed { "yes" } else { "no" }.into(),
        ]);
    }
    let without = match report.without.as_slice() {
        [] => String::new(),
        names => format!(" without {}", names.join(", ")),
    };
    let good =
        if report.good { "everything can be opened" } else { "not everything can be opened" };
    format!("{}\n{}\n{good}{without}\n", custodians.text(), secrets.text())
}

pub(super) fn audit(reports: &[AuditReport]) -> String {
    let mut text = String::new();
    for report in reports {
        let mut table = Table::new(["NO>", "TIME (UNIX)>", "EVENT", "NODE", "SHARE OF", "DETAIL"]);
        for entry in &report.entries {
            let cell = |text: &Option<String>| text.clone().unwrap_or_default();
            table.row([
                entry.no.to_string(),
                entry.time.to_string(),
                entry.event.clone(),
                cell(&entry.node),
                cell(&entry.share),
                cell(&entry.detail),
            ]);
        }
        let state = match (&report.problem, &report.head) {
            (Some(problem), _) => format!("NOT WHOLE: {problem}"),
            (None, Some(head)) => format!("whole, to {head}"),
            (None, None) => "empty".into(),
        };
        text.push_str(&format!("{}  {state}\n{}\n", report.node, table.text()));
    }
    text
}
