//! The log in its folder: the newest entries in `audit.log`, older ones in files that are full.

use super::{AuditEntry, AuditEvent, Chain, Note};
use std::fs;
use std::io::{self, BufRead, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FILE: &str = "audit.log";
const FULL: &str = "audit-";

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Bytes of a file that is full.
    pub(super) file: u64,
    /// Full files.
    pub(super) files: usize,
}

/// Some 400,000 entries. A member that is refused four times a second fills that in a day; what is done in a
/// cluster that is well fills it in years.
const ROOM: Room = Room { file: 16 << 20, files: 7 };

/// The log of one custodian.
#[derive(Debug)]
pub(crate) struct AuditLog {
    folder: PathBuf,
    room: Room,
    /// The numbers of the first entries of full files, ascending.
    full: Vec<u64>,
    /// `None`: what is on the disk nobody can tell, so nothing is written until the next start.
    current: Option<Current>,
    /// The number of the first entry after those of full files.
    first: u64,
}

/// The file that is written.
#[derive(Debug)]
struct Current {
    file: fs::File,
    length: u64,
    last: u64,
    hash: String,
}

impl AuditLog {
    /// Opens the log in a folder, or begins one. If that fails nothing can be noted.
    pub(crate) fn open(folder: &Path, time: u64) -> Self {
        Self::open_with(folder, time, ROOM)
    }

    pub(super) fn open_with(folder: &Path, time: u64, room: Room) -> Self {
        let (folder, full, current, first) = (folder.to_owned(), Vec::new(), None, 1);
        let mut log = Self { folder, room, full, current, first };
        if let Err(error) = log.begin(time) {
            let path = log.path();
            tracing::error!(%error, path = %path.display(), "the audit log can not be opened");
            log.current = None;
        }
        log
    }

    fn begin(&mut self, time: u64) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        self.full = full_files(&self.folder)?;
        let content = match fs::read(self.path()) {
            Ok(content) => Some(content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let bytes = content.as_deref().unwrap_or_default();
        // A2.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = bytes.get(..whole).unwrap_or_default();
        let mut began = match (&content, self.full.is_empty()) {
            (None, true) => Some("the first log of this custodian".to_owned()),
            _ if whole > 0 => None,
            // A crash leaves that where the first entry of a file was being written.
            _ => Some(format!("{FILE} had no whole entry, and {} bytes", bytes.len())),
        };
        let read = self.read(lines);
        let broken = read.as_ref().err().cloned();
        let (first, last, hash) = read.unwrap_or((1, 0, String::new()));
        if let Some(error) = broken {
            self.put_aside(time)?;
            tracing::error!(%error, "the audit log does not hold together, and was put aside");
            began = Some(format!("the log before does not hold together: {error}"));
        }
        self.first = first;
        let length = if last < first { 0 } else { whole as u64 };
        let mut file = self.create()?;
        file.set_len(length)?;
        file.seek(io::SeekFrom::Start(length))?;
        file.sync_all()?;
        sync(&self.folder)?;
        self.current = Some(Current { file, length, last, hash });
        began.map_or(Ok(()), |detail| self.append(Note::about(AuditEvent::Began, detail), time))
    }

    /// The first number that the current file has or will have, and number and hash of the last entry.
    fn read(&self, lines: &[u8]) -> Result<(u64, u64, String), String> {
        let mut chain = match self.full.last() {
            Some(first) => self.end_of(*first)?,
            None => Chain::after(0, String::new()),
        };
        let first = chain.last().map_or(1, |(no, _)| no + 1);
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            chain.next(&String::from_utf8_lossy(line))?;
        }
        let (last, hash) = chain.last().map_or((0, String::new()), |(no, hash)| (no, hash.into()));
        Ok((first, last, hash))
    }

    /// What follows on a full file. Its last entry is believed: whoever reads the log verifies all of it.
    fn end_of(&self, first: u64) -> Result<Chain, String> {
        let path = self.full_path(first);
        let content = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let last = lines.next_back().ok_or_else(|| format!("{} is empty", path.display()))?;
        let mut chain = Chain::anywhere();
        let entry = chain.next(&String::from_utf8_lossy(last))?;
        match first.checked_add(lines.count() as u64) {
            Some(no) if no == entry.no => Ok(chain),
            _ => Err(format!("{} does not end with entry {}", path.display(), entry.no)),
        }
    }

    /// A3.
    fn put_aside(&mut self, time: u64) -> io::Result<()> {
        let aside = |name: &str| self.folder.join(format!("audit.broken-{time}{name}"));
        for first in &self.full {
            fs::rename(self.full_path(*first), aside(&format!("-{first}")))?;
        }
        match fs::rename(self.path(), aside("")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => self.full.clear(),
        }
        Ok(())
    }

    /// Notes something. Durable when this returns.
    pub(crate) fn append(&mut self, note: Note, time: u64) -> io::Result<()> {
        if self.current()?.length >= self.room.file {
            self.turn(time)?;
        }
        self.write(note, time)
    }

    fn current(&mut self) -> io::Result<&mut Current> {
        let failed = || io::Error::other("it could not be opened, or an entry not be written");
        self.current.as_mut().ok_or_else(failed)
    }

    fn write(&mut self, note: Note, time: u64) -> io::Result<()> {
        let current = self.current()?;
        let Note { event, node, share, detail } = note;
        let (no, before) = (current.last + 1, current.hash.clone());
        let entry = AuditEntry { no, time, event, node, share, detail, before };
        let text = format!("{}\n", entry.line());
        if let Err(error) = current.file.write_all(text.as_bytes()) {
            // The disk may be full, and have room again later.
            let back = current.file.set_len(current.length);
            if back.and_then(|()| current.file.seek(io::SeekFrom::Start(current.length))).is_err() {
                self.current = None;
            }
            return Err(error);
        }
        if let Err(error) = current.file.sync_data() {
            self.current = None;
            return Err(error);
        }
        current.length += text.len() as u64;
        current.last = no;
        current.hash = entry.hash();
        Ok(())
    }

    /// Begins another file, and does without the oldest one if there are too many.
    fn turn(&mut self, time: u64) -> io::Result<()> {
        let Current { last, hash, .. } = self.current()?;
        let (last, hash) = (*last, hash.clone());
        fs::rename(self.path(), self.full_path(self.first))?;
        // From here on it is known what to write to only when all has gone well.
        self.current = None;
        self.full.push(self.first);
        self.first = last + 1;
        let file = self.create()?;
        sync(&self.folder)?;
        self.current = Some(Current { file, length: 0, last, hash });
        // A4. Several, if one could not be removed.
        let spare = self.full.len().saturating_sub(self.room.files);
        let Some(kept) = self.full.get(spare).filter(|_| spare > 0) else { return Ok(()) };
        let detail = format!("entries up to {} are not kept any longer", kept - 1);
        self.write(Note::about(AuditEvent::Shortened, detail), time)?;
        for first in self.full.drain(..spare).collect::<Vec<_>>() {
            fs::remove_file(self.full_path(first))?;
        }
        sync(&self.folder)
    }

    /// Lines after number `after`, so many at most; fewer do not mean that these are all. None do.
    pub(crate) fn after(&self, after: u64, most: usize) -> io::Result<Vec<String>> {
        // The file that has the next one, or else the first one there is.
        let next = after.saturating_add(1);
        let holds = self.full.partition_point(|first| *first <= next);
        for at in holds.saturating_sub(1)..=self.full.len() {
            let (path, first) = match self.full.get(at) {
                Some(first) => (self.full_path(*first), *first),
                None => (self.path(), self.first),
            };
            let skipped = usize::try_from(next.saturating_sub(first)).unwrap_or(usize::MAX);
            let lines = io::BufReader::new(fs::File::open(path)?).lines();
            let lines = lines.skip(skipped).take(most).collect::<io::Result<Vec<_>>>()?;
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
        Ok(Vec::new())
    }

    /// Whether nothing can be noted any more, and so nothing be done.
    pub(crate) fn is_failed(&self) -> bool {
        self.current.is_none()
    }

    /// Where the newest entries are.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    fn full_path(&self, first: u64) -> PathBuf {
        self.folder.join(format!("{FULL}{first:012}.log"))
    }

    fn create(&self) -> io::Result<fs::File> {
        let mut open = fs::OpenOptions::new();
        open.read(true).write(true).create(true).truncate(false).mode(0o600).open(self.path())
    }
}

impl Note {
    fn about(event: AuditEvent, detail: String) -> Self {
        Self { event, node: None, share: None, detail: Some(detail) }
    }
}

fn full_files(folder: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let name = name.to_str().and_then(|name| name.strip_prefix(FULL)?.strip_suffix(".log"));
        found.extend(name.and_then(|first| first.parse::<u64>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

fn sync(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
