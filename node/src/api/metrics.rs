//! The status as metrics in the text format of Prometheus.

use crate::control::{Health, NodeState, StatusReport};
use std::fmt::Write;

/// One sample per line; names and labels are from the status, so their characters are harmless
/// but for what a node's or volume's name may hold, which is checked where names are given.
pub(super) fn text(report: &StatusReport) -> String {
    let mut out = String::new();
    let mut family = |name: &str, help: &str, samples: &[(String, u64)]| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in samples {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    };
    let nodes: Vec<_> = report
        .nodes
        .iter()
        .map(|node| (label("node", &node.name), u64::from(node.state != NodeState::Down)))
        .collect();
    let volumes = |value: fn(&crate::control::VolumeStatus) -> u64| -> Vec<(String, u64)> {
        let sample = |v: &crate::control::VolumeStatus| (label("volume", &v.name), value(v));
        report.volumes.iter().map(sample).collect()
    };
    let single = |value: u64| [(String::new(), value)];
    family("smalti_health", "0 ok, 1 degraded, 2 stalled.", &single(level(report.health)));
    family("smalti_node_up", "Whether a node answers.", &nodes);
    family(
        "smalti_volume_health",
        "0 ok, 1 degraded, 2 stalled.",
        &volumes(|volume| level(volume.health)),
    );
    family("smalti_volume_bytes", "Size of a volume.", &volumes(|volume| volume.size));
    family(
        "smalti_volume_epoch",
        "Configuration of a volume.",
        &volumes(|volume| u64::from(volume.epoch.0)),
    );
    let behind = report
        .volumes
        .iter()
        .filter_map(|volume| volume.rows_behind.map(|rows| (label("volume", &volume.name), rows)));
    family(
        "smalti_volume_rows_behind",
        "Rows that some slot that is out of sync has yet to catch up on; no sample while nobody knows.",
        &behind.collect::<Vec<_>>(),
    );
    family(
        "smalti_volume_rows_lost",
        "Rows of which something can not be read, as far as it was met.",
        &volumes(|volume| volume.rows_lost),
    );
    family(
        "smalti_volume_suspects",
        "Stores that may have forgotten something in a crash and are being compared.",
        &volumes(|volume| volume.suspects),
    );
    family(
        "smalti_volume_slots_catching_up",
        "Slots that are brought up to date or moved.",
        &volumes(|volume| volume.slots_catching_up),
    );
    family(
        "smalti_volume_rows_left",
        "Rows that slots lack yet, about, those that are moved included.",
        &volumes(|volume| volume.rows_left),
    );
    family(
        "smalti_volume_rows_per_second",
        "Rows a second that slots are given.",
        &volumes(|volume| volume.rows_per_second),
    );
    family(
        "smalti_volume_groups_not_full",
        "Placement groups without all their slots in sync.",
        &volumes(|volume| u64::from(volume.groups.saturating_sub(volume.groups_full))),
    );
    family(
        "smalti_volume_groups_offline",
        "Placement groups that are not served, for more of their stores are away than they can do without.",
        &volumes(|volume| volume.groups_offline.into()),
    );
    family(
        "smalti_volume_key_epochs",
        "Key epochs in use; more than one while older records are sealed anew.",
        &volumes(|volume| u64::from(volume.key_epochs)),
    );
    family(
        "smalti_volume_keys_made_seconds",
        "Unix time when the keys of new records were made.",
        &volumes(|volume| volume.keys_made),
    );
    family(
        "smalti_volume_keys_revoked",
        "Whether keys that were revoked are in use yet.",
        &volumes(|volume| volume.keys_revoked.into()),
    );
    let moves = report.moves;
    family(
        "smalti_moves_paused",
        "Whether moves of slots are paused.",
        &single(moves.paused.into()),
    );
    let of = |state: &str, slots: u64| (label("state", state), slots);
    family(
        "smalti_moves_slots",
        "Slots that move, wait to, are kept twice until their groups are whole, or can not move.",
        &[
            of("moving", moves.moving.into()),
            of("waiting", moves.waiting.into()),
            of("kept", moves.kept.into()),
            of("stuck", moves.stuck.into()),
        ],
    );
    let faults: Vec<_> = report
        .nodes
        .iter()
        .map(|node| {
            let faults = node.stores.iter().map(|store| store.faults).sum();
            (label("node", &node.name), faults)
        })
        .collect();
    family("smalti_node_faults", "Wrong records that a node's stores had, ever.", &faults);
    family("smalti_raft_term", "Term of the metadata group.", &single(report.raft.term));
    let has_leader = u64::from(report.raft.leader.is_some());
    family("smalti_raft_has_leader", "Whether a leader is known.", &single(has_leader));
    let custody = report.custody;
    family("smalti_custodians_needed", "Shares needed.", &single(custody.needed.into()));
    let reachable = single(custody.reachable.into());
    family("smalti_custodians_reachable", "Custodians that answer.", &reachable);
    out
}

fn label(name: &str, value: &str) -> String {
    let escaped = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    format!("{{{name}=\"{escaped}\"}}")
}

const fn level(health: Health) -> u64 {
    match health {
        Health::Ok => 0,
        Health::Degraded => 1,
        Health::Stalled => 2,
    }
}
