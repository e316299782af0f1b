//! Messages, changes and values in a few words.

use super::super::client::value_of;
use super::super::history::ABSENT;
use smalti_rowcommit::coordinator::Phase;
use smalti_rowcommit::msg::{Answer, Ask, Changed, Reject, ScannedSlot, Want};
use smalti_storage::ids::{Epoch, RowAddr, Slot, Wid};
use smalti_storage::store::{Batch, Change, VecEntry, VersionMeta};
use std::fmt::Display;

/// The row slot a request is about, if it is about one.
pub(super) fn place(ask: &Ask) -> Option<(RowAddr, Slot)> {
    match ask {
        Ask::Fetch { row, slot, .. } | Ask::Versions { row, slot } | Ask::Prove { row, slot } => {
            Some((*row, *slot))
        }
        _ => ask.changes(),
    }
}

/// Whether a request, or its answer, may tell of the row.
pub(super) fn concerns(ask: &Ask, row: RowAddr) -> bool {
    match ask {
        Ask::Promise | Ask::Vetted { .. } => true,
        Ask::Scan { group, .. }
        | Ask::Digest { group, .. }
        | Ask::Changed { group, .. }
        | Ask::Undecided { group } => *group == row.group,
        _ => place(ask).is_some_and(|(of, _)| of == row),
    }
}

/// A request, sent in that phase. None for what only its answer shows to be of interest.
pub(super) fn asked(ask: &Ask, phase: Phase) -> Option<String> {
    let takeover = phase == Phase::TakingOver;
    let what = match ask {
        Ask::Vetted { incarnation } => return Some(format!("{incarnation} was compared")),
        Ask::Fetch { want: Want::HeadMeta, .. } => "newest version?".into(),
        Ask::Fetch { want: Want::Head, .. } => "newest record?".into(),
        Ask::Fetch { want: Want::Version(ver), .. } => format!("record of {ver}?"),
        Ask::Fetch { want: Want::HeldMeta(snap), .. } => format!("version in snapshot {snap}?"),
        Ask::Fetch { want: Want::Held(snap), .. } => format!("record in snapshot {snap}?"),
        Ask::Versions { .. } if takeover => "versions? (takeover)".into(),
        Ask::Versions { .. } => "versions? (repair)".into(),
        Ask::PrepData { update, base, wid: by, record, .. } => {
            format!("prepare {} onto {base}: {} as {}", update.ver, value(record), wid(*by))
        }
        Ask::PrepDelta { update, changed, .. } => {
            let of = |c: &Changed| format!("{} onto {}", c.slot, c.base);
            format!(
                "prepare {} by difference of {}",
                update.ver,
                list(changed.iter().map(of), ", ")
            )
        }
        Ask::PrepFull { update, wid: by, vec, record, .. } if vec.is_empty() => {
            format!("prepare {} whole: {} as {}", update.ver, value(record), wid(*by))
        }
        Ask::PrepFull { update, .. } => format!("prepare {} whole", update.ver),
        Ask::Abort { ver, .. } if takeover => format!("abort {ver} (takeover undoes it)"),
        Ask::Abort { ver, .. } => format!("abort {ver}"),
        Ask::AbortNewer { than, .. } => {
            format!("abort what is newer than {than} (takeover, unreadable)")
        }
        Ask::Freeze { frozen: true, .. } => "freeze (takeover, lost)".into(),
        Ask::Freeze { .. } => "freeze no more (takeover)".into(),
        Ask::Install { meta, expect, .. } => {
            format!("install {} if at {expect}, undecided (takeover completes it)", version(meta))
        }
        Ask::Restore { versions, keep, expect, .. } if versions.is_empty() && keep.is_empty() => {
            format!("forget if at {expect} (repair)")
        }
        Ask::Restore { versions, keep, expect, .. } => {
            let put = list(versions.iter().map(|(meta, _)| version(meta)), ", ");
            let keep = list(keep.iter(), ", ");
            format!("put [{put}], keep [{keep}] if at {expect} (repair)")
        }
        _ => return None,
    };
    let slot = place(ask).map(|(_, slot)| format!("{slot} ")).unwrap_or_default();
    Some(slot + &what)
}

/// An answer that leaves or has come; none if it does not tell of the row. What was changed or
/// promised shows in the store's batch when it leaves.
pub(super) fn answered(ask: &Ask, answer: &Answer, row: RowAddr, has_come: bool) -> Option<String> {
    let slot = place(ask).map(|(_, slot)| slot);
    let in_batch = matches!(answer, Answer::Ok | Answer::Promised { .. } | Answer::PromiseLater(_));
    if in_batch && !has_come {
        return None;
    }
    let what = match (ask, answer) {
        (_, Answer::Promised { incarnation, suspect, went_back, watermark, prepared }) => {
            let suspect = match (suspect, went_back) {
                (_, true) => ", suspect of a power cut",
                (true, false) => ", suspect",
                (false, false) => "",
            };
            let slots = prepared.iter().filter(|(of, _)| *of == row).map(|(_, slot)| *slot);
            let slots = list(slots, " ");
            let undecided = if slots.is_empty() { "nothing" } else { &slots };
            return Some(format!(
                "promised as {incarnation}{suspect}, committed to {watermark}, undecided {undecided}"
            ));
        }
        (_, Answer::PromiseLater(us)) => {
            return Some(format!("promise in {:.3} ms", *us as f64 / 1000.0));
        }
        (Ask::Scan { after, .. }, Answer::Scanned { entries, done }) => {
            let of = |(_, slot, versions): &ScannedSlot| {
                let all = |held: &Vec<VersionMeta>| list(held.iter().map(version), " over ");
                format!("{slot} {}", versions.as_ref().map_or("unreadable".into(), all))
            };
            let found = list(entries.iter().filter(|(of, ..)| *of == row).map(of), ", ");
            let last = entries.last().map(|(of, ..)| *of);
            let passed = passes(after.map(|(of, _)| of), last, *done, row);
            return match (found.is_empty(), passed) {
                (false, _) => Some(format!("scanned {found}")),
                (true, true) => Some("scanned, and the row is not there".into()),
                (true, false) => None,
            };
        }
        (Ask::Changed { slot, after, .. }, Answer::Changed { rows, done }) => {
            let noted = rows.contains(&row);
            let passed = passes(*after, rows.last().copied(), *done, row);
            let not = if noted { "" } else { "not " };
            return (noted || passed).then(|| format!("{not}noted as changed for {slot}"));
        }
        (Ask::Undecided { .. }, Answer::Undecided { right, rows }) => {
            let not = if rows.contains(&row) { "" } else { "not " };
            let right = if *right { ", lacks what is noted at most" } else { "" };
            return Some(format!("{not}undecided there{right}"));
        }
        (Ask::Vetted { .. }, Answer::Ok) => return None,
        (_, Answer::Ok) => format!("ok {}", of_which(ask)),
        (_, Answer::Rejected(why)) => {
            // Group by group and store by store there is no row to speak of.
            slot?;
            format!("refuses {}: {}", of_which(ask), reason(*why))
        }
        (_, Answer::Version { meta, record }) => match value_of(record) {
            Some(value) if !record.is_empty() => format!("{} {}", version(meta), shown(value)),
            _ => version(meta),
        },
        (_, Answer::Missing) => "not there".into(),
        (_, Answer::Corrupt) => "does not verify".into(),
        (_, Answer::Versions { versions, prepared }) => {
            let of = |(meta, good): &(VersionMeta, bool)| {
                held(version(meta), *prepared == Some(meta.ver), *good)
            };
            let all = list(versions.iter().map(of), ", ");
            if all.is_empty() { "holds nothing".into() } else { format!("holds {all}") }
        }
        _ => return None,
    };
    Some(named(slot) + &what)
}

/// Whether a page after `after` that ends with `last`, or is the last one, would have had the row.
fn passes(after: Option<RowAddr>, last: Option<RowAddr>, done: bool, row: RowAddr) -> bool {
    after.is_none_or(|after| after < row) && (done || last.is_some_and(|last| last > row))
}

fn named(slot: Option<Slot>) -> String {
    slot.map(|slot| format!("{slot} ")).unwrap_or_default()
}

/// Which change an answer is to.
fn of_which(ask: &Ask) -> String {
    match ask {
        Ask::PrepData { update, .. }
        | Ask::PrepDelta { update, .. }
        | Ask::PrepFull { update, .. } => update.ver.to_string(),
        Ask::Abort { ver, .. } => format!("abort {ver}"),
        Ask::Install { meta, .. } => format!("install {}", meta.ver),
        Ask::AbortNewer { .. } => "abort newer".into(),
        Ask::Freeze { .. } => "freeze".into(),
        Ask::Restore { .. } => "repair".into(),
        Ask::Versions { .. } => "versions".into(),
        _ => "record".into(),
    }
}

fn reason(why: Reject) -> String {
    match why {
        Reject::StaleEpoch { known } => format!("another epoch, knows {known}"),
        Reject::Base { have } => format!("is at {have}"),
        Reject::Corrupt => "what it builds on does not verify".into(),
        Reject::NoSpace => "no space".into(),
        Reject::OldWid => "holds a newer write".into(),
        Reject::Invalid => "makes no sense".into(),
        Reject::Fingerprint => "would have another fingerprint".into(),
    }
}

/// What a batch does to the row, and what it promises if more than `promised`.
pub(super) fn batch(batch: &Batch, row: RowAddr, promised: Option<u32>) -> String {
    let change = |change: &Change| {
        let (at, what) = match change {
            Change::PutVersion { at, meta, record: bytes, .. } => {
                let value = value_of(bytes).filter(|_| meta.vec.is_empty());
                let value = value.map(|value| format!(" {}", shown(value))).unwrap_or_default();
                (at, format!("put {}{value}", version(meta)))
            }
            Change::DeleteVersion { at, ver } => (at, format!("delete {ver}")),
            Change::SetPrepared { at, ver } => (at, format!("mark {ver}")),
            Change::ClearPrepared { at } => (at, "clear".into()),
            Change::DropSlot { at } => (at, "drop".into()),
            Change::NoteChanged { row: of, .. } => {
                return (*of == row).then(|| "note as changed".into());
            }
            Change::SetVolume { state, .. } => {
                let more = promised.is_some_and(|promised| state.promised > Epoch(promised));
                return more.then(|| format!("promise {}", state.promised));
            }
            Change::SetIndex { group, .. } => {
                return (*group == row.group).then(|| format!("index of {group}"));
            }
            Change::DropIndex { group, .. } => {
                return (*group == row.group).then(|| format!("drop index of {group}"));
            }
            Change::DropGroup { group, .. } => {
                return (*group == row.group).then(|| format!("drop {group}"));
            }
            Change::DropVolume { .. } => return Some("drop the volume".into()),
        };
        (at.row == row).then(|| format!("{} {what}", at.slot))
    };
    list(batch.changes.iter().filter_map(change), ", ")
}

/// A version, and on parity slots the versions it covers.
pub(super) fn version(meta: &VersionMeta) -> String {
    if meta.vec.is_empty() {
        return meta.ver.to_string();
    }
    let vec = list(meta.vec.iter().map(|entry: &VecEntry| entry.ver), " ");
    format!("{}[{vec}]", meta.ver)
}

/// A stored version with what is to be said against it.
pub(super) fn held(ver: String, undecided: bool, good: bool) -> String {
    let undecided = if undecided { " undecided" } else { "" };
    let rotten = if good { "" } else { " rotten" };
    ver + undecided + rotten
}

pub(super) fn wid(wid: Wid) -> String {
    format!("wid {}:{}", wid.generation, wid.seq)
}

/// A block, and its value where that is known.
pub(super) fn block(slot: Slot, value: Option<u64>) -> String {
    value.map_or(slot.to_string(), |value| format!("{slot}={}", shown(value)))
}

/// A slot's record, if it is a client's.
pub(super) fn record(slot: Slot, bytes: &[u8]) -> String {
    block(slot, value_of(bytes))
}

fn value(bytes: &[u8]) -> String {
    value_of(bytes).map_or("other bytes".into(), shown)
}

/// Values as the checks print them.
fn shown(value: u64) -> String {
    if value == ABSENT { "absent".into() } else { value.to_string() }
}

pub(super) fn list(items: impl Iterator<Item = impl Display>, between: &str) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(between)
}
