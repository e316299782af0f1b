#![allow(clippy::unwrap_used, reason = "tests")]
use super::super::Beginning;
use super::*;
use smalti_storage::ids::NodeId;
use std::os::unix::fs::PermissionsExt;

const SMALL: Room = Room { file: 1500, files: 3 };

fn note(detail: &str) -> Note {
    let (event, node) = (AuditEvent::Released, Some(NodeId(3)));
    Note { event, node, share: Some("a".into()), detail: Some(detail.into()) }
}

fn log_of(folder: &Path, count: u64, room: Room) -> AuditLog {
    let mut log = AuditLog::open_with(folder, 5, room);
    for no in 0..count {
        log.append(note(&no.to_string()), 6 + no).unwrap();
    }
    log
}

/// All entries that a log has, asked for piece by piece, as whoever verifies it does.
fn read_all(log: &AuditLog, most: usize) -> Result<Vec<AuditEntry>, String> {
    let (mut chain, mut entries) = (Chain::anywhere(), Vec::new());
    loop {
        let after = chain.last().map_or(0, |(no, _)| no);
        let lines = log.after(after, most).unwrap();
        if lines.is_empty() {
            return Ok(entries);
        }
        for line in lines {
            entries.push(chain.next(&line)?);
        }
    }
}

fn read_lines(lines: &[String]) -> Result<(), String> {
    let mut chain = Chain::anywhere();
    lines.iter().try_for_each(|line| chain.next(line).map(drop))
}

#[test]
fn entries_follow_on_one_another_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    log_of(dir.path(), 3, ROOM);
    let log = log_of(dir.path(), 2, ROOM);
    let entries = read_all(&log, 4).unwrap();
    assert_eq!(entries.iter().map(|entry| entry.no).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(entries[0].event, AuditEvent::Began);
    assert_eq!(entries[5].detail.as_deref(), Some("1"));
    // A part of it, by what is known of the one before.
    let rest = log.after(4, 1).unwrap();
    let mut chain = Chain::after(4, entries[3].hash());
    assert_eq!(chain.next(&rest[0]).unwrap(), entries[4]);
    let wrong = Chain::after(4, "00".into()).next(&rest[0]).unwrap_err();
    assert!(wrong.contains("entry 5 does not follow"), "{wrong}");
    assert!(log.after(6, 9).unwrap().is_empty() && log.after(u64::MAX, 9).unwrap().is_empty());
    assert_eq!(fs::metadata(log.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn whatever_is_changed_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let lines = log_of(dir.path(), 4, ROOM).after(0, 99).unwrap();
    read_lines(&lines).unwrap();
    let without = |at: usize| [&lines[..at], &lines[at + 1..]].concat();
    for at in 1..4 {
        assert!(read_lines(&without(at)).is_err(), "{at}");
    }
    // Without the first one it is one whose beginning is not kept, and begins with another number.
    assert_eq!(Chain::anywhere().next(&lines[1]).unwrap().no, 2);
    let mut swapped = lines.clone();
    swapped.swap(2, 3);
    assert!(read_lines(&swapped).is_err());
    let mut changed = lines.clone();
    changed[2] = changed[2].replace("\"node\":3", "\"node\":4");
    assert_ne!(changed, lines);
    let error = read_lines(&changed).unwrap_err();
    assert!(error.contains("entry 4 does not follow"), "{error}");
    let spaced: Vec<String> =
        lines.iter().map(|line| line.replace(",\"time", ", \"time")).collect();
    assert!(read_lines(&spaced).is_err());
    let begun_anew = lines[1].replace("\"no\":2", "\"no\":1");
    assert!(Chain::anywhere().next(&begun_anew).is_err());
}

#[test]
fn a_torn_entry_is_cut_off_and_a_broken_log_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = log_of(dir.path(), 2, ROOM).path();
    let whole = fs::read(&path).unwrap();
    for torn in [&b"{\"no\":4,"[..], b"\xff\xfe", b"{"] {
        fs::write(&path, [&whole, torn].concat()).unwrap();
        let log = log_of(dir.path(), 0, ROOM);
        assert_eq!(read_all(&log, 99).unwrap().len(), 3);
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    let text = String::from_utf8(whole).unwrap().replace("\"node\":3", "\"node\":7");
    fs::write(&path, &text).unwrap();
    let log = AuditLog::open(dir.path(), 77);
    let entries = read_all(&log, 99).unwrap();
    assert_eq!(entries.len(), 1);
    let detail = entries[0].detail.clone().unwrap();
    assert!(detail.contains("does not hold together"), "{detail}");
    assert_eq!(fs::read_to_string(dir.path().join("audit.broken-77")).unwrap(), text);
}

#[test]
fn that_there_was_no_whole_entry_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    let path = log_of(dir.path(), 2, ROOM).path();
    for (left, said) in [(&b""[..], "and 0 bytes"), (b"{\"no\":1,\"ti", "and 11 bytes")] {
        fs::write(&path, left).unwrap();
        let entries = read_all(&log_of(dir.path(), 1, ROOM), 99).unwrap();
        assert_eq!(entries.len(), 2);
        let detail = entries[0].detail.clone().unwrap();
        assert!(detail.contains("no whole entry") && detail.contains(said), "{detail}");
    }
}

#[test]
fn it_takes_a_bounded_place_and_says_what_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = log_of(dir.path(), 4, SMALL);
    let mut last = 5;
    for no in 0..200 {
        if no % 17 == 0 {
            log = AuditLog::open_with(dir.path(), 9, SMALL);
        }
        log.append(note("again"), 8).unwrap();
        let entries = read_all(&log, 7).unwrap();
        assert!(entries.last().unwrap().no > last);
        last = entries.last().unwrap().no;
        assert_eq!(entries.len() as u64, last - entries[0].no + 1);
        let bytes: u64 = fs::read_dir(dir.path())
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        // Each file has one entry too much, and the new one the note about the oldest.
        assert!(bytes < 4 * (SMALL.file + 400), "{bytes} bytes");
    }
    let entries = read_all(&log, 1000).unwrap();
    let first = entries[0].no;
    assert!(first > 100, "{first}");
    let shortened = entries.iter().rfind(|entry| entry.event == AuditEvent::Shortened).unwrap();
    let detail = shortened.detail.clone().unwrap();
    assert_eq!(detail, format!("entries before {first} are not kept any longer"));
    beginning(&entries).check().unwrap();
    let rest = beginning(&entries[1..]).check().unwrap_err();
    assert!(rest.contains("none tells of that"), "{rest}");
    // What was asked for is gone: what follows it.
    assert_eq!(read_first(&log.after(3, 2).unwrap()), first);
    // One of the files is changed, and one is not there.
    let file = log.full_path(log.full[1]);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("again", "never")).unwrap();
    assert!(read_all(&log, 7).unwrap_err().contains("does not follow"));
    fs::remove_file(&file).unwrap();
    let log = AuditLog::open_with(dir.path(), 9, SMALL);
    assert!(read_all(&log, 7).unwrap_err().contains("is not what was written"));
}

fn beginning(entries: &[AuditEntry]) -> Beginning {
    let mut beginning = Beginning::default();
    entries.iter().for_each(|entry| beginning.next(entry));
    beginning
}

fn read_first(lines: &[String]) -> u64 {
    Chain::anywhere().next(&lines[0]).unwrap().no
}

#[test]
fn a_crash_at_any_step_of_beginning_another_file_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = log_of(dir.path(), 12, SMALL);
    let before = read_all(&log, 99).unwrap();
    assert!(!log.full.is_empty(), "no file is full");
    // Renamed, and not begun; begun, and not written; written in part.
    fs::rename(log.path(), log.full_path(log.first)).unwrap();
    for left in [None, Some(&b""[..]), Some(b"{\"no\":")] {
        if let Some(left) = left {
            fs::write(log.path(), left).unwrap();
        }
        let log = log_of(dir.path(), 1, SMALL);
        let entries = read_all(&log, 3).unwrap();
        assert_eq!(entries[..before.len()], before);
        assert_eq!(entries[before.len()].event, AuditEvent::Began);
        assert_eq!(entries.len(), before.len() + 2);
        fs::remove_file(log.path()).unwrap();
    }
    // The file before ends in the middle of an entry: whatever that is, it is kept.
    let last = log.full_path(log.first);
    let text = fs::read(&last).unwrap();
    fs::write(&last, &text[..text.len() - 9]).unwrap();
    let log = log_of(dir.path(), 0, SMALL);
    assert_eq!(read_all(&log, 9).unwrap().len(), 1);
    let aside = dir.path().join(format!("audit.broken-5-{}", before[0].no));
    assert!(aside.is_file(), "{}", aside.display());
}

#[test]
fn what_can_not_be_opened_can_not_be_written() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(FILE)).unwrap();
    let mut log = AuditLog::open(dir.path(), 5);
    assert!(log.is_failed());
    assert!(log.append(note("one"), 6).is_err());
    // Once that has passed it goes on by itself.
    fs::remove_dir(dir.path().join(FILE)).unwrap();
    log.append(note("one"), 6).unwrap();
    assert!(!log.is_failed());
    assert_eq!(read_all(&log, 9).unwrap().len(), 2);
}
