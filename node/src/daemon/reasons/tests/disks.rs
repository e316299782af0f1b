//! What is told of disks and of keys.

use super::cases::Case;
use super::*;

/// Disks.
pub(super) const DISKS: &[Case] = &[
    (
        |r| faulty(r, 1000),
        Degraded,
        "node n2",
        &["00000002 had 1000 wrong records, and lately again"],
        &["replace its disk", "drain"],
        true,
    ),
    (
        |r| {
            let (takes, others) = (Duration::from_millis(300), Duration::from_micros(80));
            r.slow_disks = vec![SlowDisk { store: store(2), takes, others }];
        },
        Degraded,
        "node n2",
        &["the disk of its store", "300 ms for what others do in 1 ms"],
        &["what else uses the disk", "`smalti node drain`"],
        true,
    ),
    (
        |r| fullness(r, Fullness::NearFull),
        Degraded,
        "node n2",
        &["nearly full, 5 MiB are free"],
        &["delete or trim", "add nodes"],
        true,
    ),
    (
        |r| fullness(r, Fullness::Full),
        Stalled,
        "node n2",
        &["is full, 5 MiB are free", "ENOSPC"],
        &["delete or trim", "add nodes"],
        true,
    ),
    (
        |r| fullness(r, Fullness::Exhausted),
        Stalled,
        "node n2",
        &["is full, 5 MiB are free", "and so are trims"],
        &["delete a volume"],
        true,
    ),
];

/// Keys.
pub(super) const KEYS: &[Case] = &[
    (
        |r| revoke(r, None),
        Degraded,
        "volume v",
        &["key epochs up to 1 were revoked", "records are under them"],
        &["sealed anew before anything else", "`smalti key status`"],
        false,
    ),
    (
        |r| revoke(r, Some(7)),
        Degraded,
        "volume v",
        &["7 blocks are under them"],
        &["sealed anew before anything else"],
        false,
    ),
    (
        |r| Arc::make_mut(&mut r.map).custodians.new_master = true,
        Degraded,
        "custody",
        &["the master secret was revoked"],
        &["as soon as all custodians answer"],
        false,
    ),
];

/// Revokes the keys under which so many blocks are, if somebody counts.
fn revoke(report: &mut Report, blocks: Option<u64>) {
    let volume = volume(report);
    let old = volume.key_epoch;
    volume.revoked = Some(Revoked { through: old, since: 5 });
    let mut next = volume.key_epochs[&old].clone();
    next.no = KeyEpochNo(old.0 + 1);
    volume.key_epoch = next.no;
    volume.key_epochs.insert(next.no, next);
    let counted = blocks.map(|blocks| (old, blocks));
    progress(report).keys.counted = counted.into_iter().collect();
}
