//! What happened below a watched folder, in order.

/// A file as the file system sees it: it keeps its number when it is renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub(crate) u32);

/// One change, or one thing that makes changes durable. Names are relative to the watched folder;
/// the folder itself is the empty name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub enum Event {
    /// A directory was made.
    MakeDir { name: String },
    /// A file was made.
    Create { name: String, file: FileId },
    /// Bytes were written.
    Write { file: FileId, offset: u64, bytes: Vec<u8> },
    /// The file was cut, or extended with zeroes.
    Resize { file: FileId, len: u64 },
    /// Everything written to the file so far is durable.
    Sync { file: FileId },
    /// A sync failed: what it was for is lost, however often the file is synced again.
    SyncFailed { file: FileId },
    /// The names in a directory are durable.
    SyncDir { name: String },
    /// A file got another name, perhaps in place of another file.
    Rename { from: String, to: String },
    /// A name was removed.
    Unlink { name: String },
    /// What the test wanted to be noted between the others: an acknowledgement, say.
    Mark(u64),
}

/// The record of one watched folder, which was empty when it began.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// All events in order.
    pub events: Vec<Event>,
}

impl Record {
    /// The marks among the first `point` events, in order.
    pub fn marks(&self, point: usize) -> impl Iterator<Item = u64> {
        self.events[..point].iter().filter_map(|event| match event {
            Event::Mark(mark) => Some(*mark),
            _ => None,
        })
    }
}
