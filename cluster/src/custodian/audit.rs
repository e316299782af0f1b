//! What a custodian has done with its shares: a log of one line each, in which every entry has the hash of
//! the one before it, so that none can be changed or taken out without all that follow.
//!
//! A1. An entry is durable before what it tells of is done.
//! A2. What was broken off by a crash is cut off: it was not done.
//! A3. A log that does not hold together is put aside, not written on; the new one begins with that.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smalti_storage::ids::NodeId;
use std::fs;
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const LABEL: &[u8] = b"smalti audit v1";
const FILE: &str = "audit.log";

/// What a custodian did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditEvent {
    /// The log begins; `detail` says what was there before.
    Began,
    /// A share of a new secret is kept.
    Kept,
    /// A share was given to a node.
    Released,
    /// A node was refused; `detail` says why.
    Refused,
    /// A share was dealt on to new custodians.
    DealtOn,
    /// A share was made of what others dealt on, and is kept.
    Combined,
    /// A share is destroyed.
    Destroyed,
}

impl std::fmt::Display for AuditEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Began => "began",
            Self::Kept => "kept",
            Self::Released => "released",
            Self::Refused => "refused",
            Self::DealtOn => "dealt-on",
            Self::Combined => "combined",
            Self::Destroyed => "destroyed",
        })
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Its number, from 1, without gaps.
    pub no: u64,
    /// Unix seconds, by this node's clock.
    pub time: u64,
    /// What was done.
    pub event: AuditEvent,
    /// For whom, or by whose dealing.
    pub node: Option<NodeId>,
    /// With a share of what.
    pub share: Option<String>,
    /// More about it.
    pub detail: Option<String>,
    /// The hash of the entry before, in hexadecimal digits; empty for the first one.
    pub before: String,
}

impl AuditEntry {
    /// Its hash: of all of it, the hash of the one before included.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(LABEL);
        hash.update(self.line());
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// As it is written: JSON, without an end of line.
    pub fn line(&self) -> String {
        serde_json::to_string(self).expect("plain fields can be written")
    }
}

/// Reads entries that follow on one another, the first of them on number `after` with `hash`, if that is
/// known.
///
/// # Errors
/// Says at which entry they do not.
pub fn read_chain(
    lines: impl IntoIterator<Item = impl AsRef<str>>,
    after: u64,
    hash: Option<&str>,
) -> Result<Vec<AuditEntry>, String> {
    let mut entries: Vec<AuditEntry> = Vec::new();
    let (mut last, mut hash) = (after, hash.map(ToOwned::to_owned));
    for line in lines {
        let no = last.saturating_add(1);
        let entry: AuditEntry = serde_json::from_str(line.as_ref())
            .map_err(|error| format!("entry {no} can not be read: {error}"))?;
        // What is not as it would be written has been touched.
        if entry.no != no || entry.line() != line.as_ref() {
            return Err(format!("entry {no} is not what was written"));
        }
        let expected = if no == 1 { Some(String::new()) } else { hash };
        if expected.is_some_and(|expected| entry.before != expected) {
            return Err(format!("entry {no} does not follow on the one before"));
        }
        (last, hash) = (no, Some(entry.hash()));
        entries.push(entry);
    }
    Ok(entries)
}

/// What is to be noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) event: AuditEvent,
    pub(crate) node: Option<NodeId>,
    pub(crate) share: Option<String>,
    pub(crate) detail: Option<String>,
}

/// The log of one custodian.
#[derive(Debug)]
pub(crate) struct AuditLog {
    path: PathBuf,
    file: fs::File,
    /// Bytes of it.
    length: u64,
    lines: Vec<String>,
    hash: String,
    /// What is on the disk nobody can tell any more, so nothing is written until the next start.
    failed: bool,
}

impl AuditLog {
    /// Opens the log in a folder, or begins one.
    pub(crate) fn open(folder: &Path, time: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join(FILE);
        let mut began = "the first log of this custodian".to_owned();
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        // A2.
        let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let text = String::from_utf8_lossy(&content[..whole]);
        let lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
        let (lines, hash) = match read_chain(&lines, 0, None) {
            Ok(entries) => (lines, entries.last().map(AuditEntry::hash).unwrap_or_default()),
            Err(error) => {
                let aside = folder.join(format!("audit.broken-{time}"));
                fs::rename(&path, &aside)?;
                tracing::error!(%error, aside = %aside.display(), "the audit log does not hold together");
                began = format!("the log before does not hold together: {error}");
                (Vec::new(), String::new())
            }
        };
        let length = if lines.is_empty() { 0 } else { whole as u64 };
        let mut open = fs::OpenOptions::new();
        let mut file =
            open.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        file.set_len(length)?;
        file.seek(io::SeekFrom::Start(length))?;
        file.sync_all()?;
        fs::File::open(folder)?.sync_all()?;
        let mut log = Self { path, file, length, lines, hash, failed: false };
        if log.lines.is_empty() {
            let event = AuditEvent::Began;
            log.append(Note { event, node: None, share: None, detail: Some(began) }, time)?;
        }
        Ok(log)
    }

    /// Notes something. Durable when this returns.
    pub(crate) fn append(&mut self, note: Note, time: u64) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier entry could not be written"));
        }
        let Note { event, node, share, detail } = note;
        let no = self.lines.len() as u64 + 1;
        let before = self.hash.clone();
        let entry = AuditEntry { no, time, event, node, share, detail, before };
        let line = entry.line();
        let text = format!("{line}\n");
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            // The disk may be full, and have room again later.
            let back = self.file.set_len(self.length);
            self.failed =
                back.and_then(|()| self.file.seek(io::SeekFrom::Start(self.length))).is_err();
            return Err(error);
        }
        if let Err(error) = self.file.sync_data() {
            self.failed = true;
            return Err(error);
        }
        self.length += text.len() as u64;
        self.lines.push(line);
        self.hash = entry.hash();
        Ok(())
    }

    /// Lines after number `after`, so many at most.
    pub(crate) fn after(&self, after: u64, most: usize) -> Vec<String> {
        let from = usize::try_from(after).unwrap_or(usize::MAX).min(self.lines.len());
        self.lines[from..].iter().take(most).cloned().collect()
    }

    /// Whether nothing can be noted any more, and so nothing be done.
    pub(crate) fn is_failed(&self) -> bool {
        self.failed
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn note(detail: &str) -> Note {
        let (event, node) = (AuditEvent::Released, Some(NodeId(3)));
        Note { event, node, share: Some("a".into()), detail: Some(detail.into()) }
    }

    fn log_of(folder: &Path, count: u64) -> AuditLog {
        let mut log = AuditLog::open(folder, 5).unwrap();
        for no in 0..count {
            log.append(note(&no.to_string()), 6 + no).unwrap();
        }
        log
    }

    #[test]
    fn entries_follow_on_one_another_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        log_of(dir.path(), 3);
        let log = log_of(dir.path(), 2);
        let lines = log.after(0, 99);
        let entries = read_chain(&lines, 0, None).unwrap();
        assert_eq!(entries.iter().map(|entry| entry.no).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(entries[0].event, AuditEvent::Began);
        assert_eq!(entries[5].detail.as_deref(), Some("1"));
        // A part of it, by what is known of the one before.
        let rest = log.after(4, 1);
        assert_eq!(rest, lines[4..5]);
        let hash = entries[3].hash();
        assert_eq!(read_chain(&rest, 4, Some(&hash)).unwrap(), entries[4..5]);
        let wrong = read_chain(&rest, 4, Some("00")).unwrap_err();
        assert!(wrong.contains("entry 5 does not follow"), "{wrong}");
        assert!(log.after(6, 9).is_empty() && log.after(u64::MAX, 9).is_empty());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(log.path()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn whatever_is_changed_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let lines = log_of(dir.path(), 4).after(0, 99);
        let without = |at: usize| [&lines[..at], &lines[at + 1..]].concat();
        for at in 0..4 {
            assert!(read_chain(without(at), 0, None).is_err(), "{at}");
        }
        let mut swapped = lines.clone();
        swapped.swap(2, 3);
        assert!(read_chain(&swapped, 0, None).is_err());
        let mut changed = lines.clone();
        changed[2] = changed[2].replace("\"node\":3", "\"node\":4");
        assert_ne!(changed, lines);
        let error = read_chain(&changed, 0, None).unwrap_err();
        assert!(error.contains("entry 4 does not follow"), "{error}");
        let spaced: Vec<String> =
            lines.iter().map(|line| line.replace(",\"time", ", \"time")).collect();
        assert!(read_chain(&spaced, 0, None).is_err());
    }

    #[test]
    fn a_torn_entry_is_cut_off_and_a_broken_log_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = log_of(dir.path(), 2).path().to_owned();
        let whole = fs::read(&path).unwrap();
        for torn in [&b"{\"no\":4,"[..], b"\xff\xfe", b"{"] {
            fs::write(&path, [&whole, torn].concat()).unwrap();
            let log = log_of(dir.path(), 0);
            assert_eq!(log.after(0, 99).len(), 3);
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
        let text = String::from_utf8(whole).unwrap().replace("\"node\":3", "\"node\":7");
        fs::write(&path, &text).unwrap();
        let log = AuditLog::open(dir.path(), 77).unwrap();
        let entries = read_chain(log.after(0, 99), 0, None).unwrap();
        assert_eq!(entries.len(), 1);
        let detail = entries[0].detail.clone().unwrap();
        assert!(detail.contains("does not hold together"), "{detail}");
        assert_eq!(fs::read_to_string(dir.path().join("audit.broken-77")).unwrap(), text);
    }
}
