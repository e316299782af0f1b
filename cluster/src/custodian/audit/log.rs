//! The log in its folder: the newest entries in `audit.log`, older ones in files that are full.

use super::{AuditEntry, AuditEvent, Chain, Note, shortened};
use std::fs;
use std::io::{self, BufRead, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FILE: &str = "audit.log";
const FULL: &str = "audit-";
const ASIDE: &str = "audit.broken-";

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
    /// `None`: it could not be opened, or an entry not be written.
    current: Option<Current>,
    /// Whether opening it may be tried again: not where what is on the disk nobody can tell until the next start.
    may_begin: bool,
    /// The last entry could not be written.
    refuses: bool,
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
        let (may_begin, refuses) = (true, false);
        let mut log = Self { folder, room, full, current, may_begin, refuses, first };
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
            (None, true) => Some(self.nothing_here()?),
            _ if whole > 0 => None,
            // A crash leaves that where the first entry of a file was being written.
            _ => Some(format!("{FILE} had no whole entry, and {} bytes", bytes.len())),
        };
        let read = self.read(lines)?;
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
        began.map_or(Ok(()), |detail| self.write(Note::about(AuditEvent::Began, detail), time))
    }

    /// The first number that the current file has or will have, and number and hash of the last entry.
    fn read(&self, lines: &[u8]) -> io::Result<Result<(u64, u64, String), String>> {
        let end = match self.full.last() {
            Some(first) => end_of(&fs::read(self.full_path(*first))?, *first),
            None => Ok(Chain::after(0, String::new())),
        };
        Ok(end.and_then(|mut chain| {
            let first = chain.last().map_or(1, |(no, _)| no + 1);
            for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                chain.next(&String::from_utf8_lossy(line))?;
            }
            let (last, hash) = chain.last().map_or((0, ""), |(no, hash)| (no, hash));
            Ok((first, last, hash.to_owned()))
        }))
    }

    /// Why there is no log: what was put aside may be all there is of the one before.
    fn nothing_here(&self) -> io::Result<String> {
        let mut aside = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            aside.extend(name.to_str().filter(|name| name.starts_with(ASIDE)).map(str::to_owned));
        }
        Ok(match aside.into_iter().max() {
            Some(name) => format!("the log before was put aside, as {name}"),
            None => "the first log of this custodian".to_owned(),
        })
    }

    /// A3.
    fn put_aside(&mut self, time: u64) -> io::Result<()> {
        // A clock may begin at the same time with each start.
        let free = |time: &u64| !self.folder.join(format!("{ASIDE}{time}")).exists();
        let time = (time..).find(free).unwrap_or(time);
        let aside = |name: &str| self.folder.join(format!("{ASIDE}{time}{name}"));
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
        let noted = self.try_append(note, time);
        self.refuses = noted.is_err();
        noted
    }

    fn try_append(&mut self, note: Note, time: u64) -> io::Result<()> {
        if self.current.is_none() && self.may_begin {
            // The disk may have been full, and have room again.
            self.begin(time).inspect_err(|_| self.current = None)?;
        }
        if self.current()?.length >= self.room.file {
            self.turn()?;
        }
        if self.full.len() > self.room.files {
            self.shorten(time)?;
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
                (self.current, self.may_begin) = (None, false);
            }
            return Err(error);
        }
        if let Err(error) = current.file.sync_data() {
            (self.current, self.may_begin) = (None, false);
            return Err(error);
        }
        current.length += text.len() as u64;
        current.last = no;
        current.hash = entry.hash();
        Ok(())
    }

    /// Begins another file.
    fn turn(&mut self) -> io::Result<()> {
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
        Ok(())
    }

    /// A4. Several files, if one could not be removed.
    fn shorten(&mut self, time: u64) -> io::Result<()> {
        let spare = self.full.len().saturating_sub(self.room.files);
        let first_kept = self.full.get(spare).copied().unwrap_or(self.first);
        self.write(Note::about(AuditEvent::Shortened, shortened(first_kept)), time)?;
        for first in self.full.drain(..spare).collect::<Vec<_>>() {
            // Or with the next start.
            let removed = fs::remove_file(self.full_path(first)).and_then(|()| sync(&self.folder));
            if let Err(error) = removed {
                tracing::warn!(%error, first, "old entries of the audit log can not be removed");
            }
        }
        Ok(())
    }

    /// Lines after number `after`, so many at most; fewer do not mean that these are all. None do.
    pub(crate) fn after(&self, after: u64, most: usize) -> io::Result<Vec<String>> {
        // The file that has the next one, or else the first one there is.
        let next = after.saturating_add(1);
        if self.current.as_ref().is_some_and(|current| next > current.last) {
            return Ok(Vec::new());
        }
        let holds = self.full.partition_point(|first| *first <= next);
        let at = if next >= self.first { self.full.len() } else { holds.saturating_sub(1) };
        for at in at..=self.full.len() {
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

    /// Whether nothing can be noted just now, and so nothing be done.
    pub(crate) fn is_failed(&self) -> bool {
        self.refuses || self.current.is_none()
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

/// What follows on a full file, whose first entry has that number. Its last entry is believed: whoever reads the log
/// verifies all of it.
fn end_of(content: &[u8], first: u64) -> Result<Chain, String> {
    let mut lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let last = lines.next_back().ok_or("a full file has nothing in it")?;
    let mut chain = Chain::anywhere();
    let entry = chain.next(&String::from_utf8_lossy(last))?;
    match first.checked_add(lines.count() as u64) {
        Some(no) if no == entry.no => Ok(chain),
        _ => Err(format!("the file of entry {first} does not end with entry {}", entry.no)),
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
