//! What is on the disk and what only in the kernel's memory, at one point of a record.

use crate::record::{Event, FileId, Record};
use std::collections::BTreeMap;
use std::ops::Range;

/// The state of the watched folder after some first events of its record.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    at: usize,
    pub(crate) files: BTreeMap<FileId, File>,
    /// The names that are certainly there after a cut.
    pub(crate) durable: Names,
    /// Changes of names since their directory was synced, in order.
    pub(crate) pending: Vec<NameChange>,
}

/// What the names stand for; the folder itself has none.
pub(crate) type Names = BTreeMap<String, Named>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Folder,
    File(FileId),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NameChange {
    Add(String, Named),
    Rename(String, String),
    Remove(String),
}

/// The content of a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    /// As a reader sees it.
    pub(crate) content: Vec<u8>,
    /// As the disk surely has it.
    pub(crate) durable: Vec<u8>,
    /// Written since, and on its way to the disk with the next sync.
    dirty: Vec<Range<usize>>,
    resized: bool,
}

impl NameChange {
    /// The directory that has to be synced.
    fn folder(&self) -> &str {
        let (Self::Add(name, _) | Self::Rename(name, _) | Self::Remove(name)) = self;
        name.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    pub(crate) fn apply(&self, names: &mut Names) {
        match self {
            Self::Add(name, named) => {
                names.insert(name.clone(), *named);
            }
            // A name that is not there was itself undone, and this with it.
            Self::Rename(from, to) => {
                if let Some(named) = names.remove(from) {
                    names.insert(to.clone(), named);
                }
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

impl Disk {
    /// The state after the first `point` events.
    pub fn after(record: &Record, point: usize) -> Self {
        let mut disk = Self::default();
        disk.advance(record, point);
        disk
    }

    /// Goes on to a later point of the same record.
    ///
    /// # Panics
    /// When it is at a later point already, or the record has none such.
    pub fn advance(&mut self, record: &Record, point: usize) {
        for event in &record.events[self.at..point] {
            self.step(event);
        }
        self.at = point;
    }

    /// All names and contents as a reader sees them: what is there if no power is cut.
    pub fn seen(&self) -> BTreeMap<String, Vec<u8>> {
        let mut names = self.durable.clone();
        self.pending.iter().for_each(|change| change.apply(&mut names));
        let files = names.into_iter().filter_map(|(name, named)| match named {
            Named::File(file) => Some((name, self.files[&file].content.clone())),
            Named::Folder => None,
        });
        files.collect()
    }

    fn step(&mut self, event: &Event) {
        match event {
            Event::MakeDir { name } => {
                self.pending.push(NameChange::Add(name.clone(), Named::Folder));
            }
            Event::Create { name, file } => {
                self.files.insert(*file, File::default());
                self.pending.push(NameChange::Add(name.clone(), Named::File(*file)));
            }
            Event::Rename { from, to } => {
                self.pending.push(NameChange::Rename(from.clone(), to.clone()));
            }
            Event::Unlink { name } => self.pending.push(NameChange::Remove(name.clone())),
            Event::SyncDir { name } => {
                let (done, left) =
                    self.pending.drain(..).partition(|change| change.folder() == name);
                self.pending = left;
                let done: Vec<NameChange> = done;
                done.iter().for_each(|change| change.apply(&mut self.durable));
            }
            Event::Write { file, offset, bytes } => {
                let start = usize::try_from(*offset).expect("files of tests fit in memory");
                self.file(*file).write(start, bytes);
            }
            Event::Resize { file, len } => {
                let len = usize::try_from(*len).expect("files of tests fit in memory");
                let file = self.file(*file);
                file.content.resize(len, 0);
                file.resized = true;
            }
            Event::Sync { file } => self.file(*file).sync(),
            Event::SyncFailed { file } => self.file(*file).dirty.clear(),
            Event::Mark(_) => {}
        }
    }

    fn file(&mut self, file: FileId) -> &mut File {
        self.files.get_mut(&file).expect("a record names a file after it was made")
    }
}

impl File {
    fn write(&mut self, start: usize, bytes: &[u8]) {
        let end = start + bytes.len();
        if self.content.len() < end {
            self.content.resize(end, 0);
        }
        self.content[start..end].copy_from_slice(bytes);
        match self.dirty.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => self.dirty.push(start..end),
        }
    }

    fn sync(&mut self) {
        // The length always goes along, so what a failed sync lost is a hole before later bytes.
        let len = self.content.len();
        if self.resized || !self.dirty.is_empty() {
            self.durable.resize(len, 0);
        }
        for range in self.dirty.drain(..) {
            let range = range.start.min(len)..range.end.min(len);
            self.durable[range.clone()].copy_from_slice(&self.content[range]);
        }
        self.resized = false;
    }

    /// Whether a cut now can leave anything but what a reader sees.
    pub(crate) fn is_durable(&self) -> bool {
        self.durable == self.content
    }
}
