//! The label of a store directory: which store it is, and how its last run ended.
//!
//! A small text file, replaced as a whole, so that a directory can be judged, by us and by people,
//! before RocksDB is let near it:
//!
//! ```text
//! smalti store
//! format 8
//! store 5f0c8a5e-...
//! cluster 0b6f3c1d-...
//! incarnation 7
//! run 9d2b7a10-...
//! announced 00000000-... 00000000-... 00000000-... 00000000-...
//! boot 7c1e4f02-...
//! state clean MANIFEST-000031 1744 blobs 54e1c7d90a6b32f8
//!    (or: state open MANIFEST-000031 1298; or: state opening MANIFEST-000031 1298)
//! check 8d1f20a9c03b5e77
//! ```
//!
//! RocksDB compares its tables with what its manifest says of them, but looks at a blob file only
//! when a record is read. So the label of a clean end names the blob files with their lengths, by a
//! hash. While the store is open, and after a crash, it says how long the manifest was when it was opened. All
//! of that was synced: if its end is missing, the disk lost where the tables are that were made of the log at
//! that start, and the log is deleted. Format 1 had no hash of blobs; up to format 3 nothing was said of deleted snapshots, up to format 4
//! nothing of runs, up to format 5 nothing of starts that were broken off, up to format 6 nothing
//! of the machine's, and up to format 7 nothing of the manifest of an open store. They are still read.

use crate::blobs;
use crate::options::Expect;
use rustix::fs::{FlockOperation, flock};
use smalti_storage::ids::{ClusterId, Incarnation, RunId, StoreId};
use smalti_storage::store::{Announced, StoreError};
use std::cmp::Ordering;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tracing::warn;
use twox_hash::XxHash3_128;
use uuid::Uuid;

const FILE: &str = "STORE";
const TEMPORARY: &str = "STORE.new";
/// Another name after each start of the machine.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// Where RocksDB lives inside the directory.
const DATABASE: &str = "db";
/// How the name of its manifest begins.
const MANIFEST: &str = "MANIFEST-";
const TITLE: &str = "smalti store";
const FORMAT: u32 = 8;
/// From which on a label names the last run.
const FORMAT_RUN: u32 = 5;
/// From which on it names the runs that were announced since.
const FORMAT_ANNOUNCED: u32 = 6;
/// From which on it names the start of the machine.
const FORMAT_BOOT: u32 = 7;
/// The oldest format that is still read.
const FORMAT_MIN: u32 = 1;
/// No label is nearly as long; nothing longer is read.
const LEN_MAX: u64 = 4096;

/// A store directory, locked for this process as long as it lives.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// Holds the lock.
    handle: File,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) store: StoreId,
    pub(crate) cluster: ClusterId,
    /// 0 until the store served for the first time.
    pub(crate) incarnation: Incarnation,
    /// The last run that the cluster admitted; nil before the first.
    pub(crate) run: RunId,
    /// Names announced since.
    pub(crate) announced: Announced,
    /// The start of the machine since which nothing can have been lost; nil where something may.
    pub(crate) boot: Uuid,
    /// The files as the last run left them, if it ended cleanly.
    pub(crate) clean: Option<Ending>,
    /// If not: the manifest when the store was opened, at least.
    pub(crate) begun: Option<Manifest>,
    /// The database is being opened: if this is found, that was broken off.
    pub(crate) opening: bool,
}

/// Why a file is no label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoLabel {
    /// It does not begin as one.
    #[error("is not a store")]
    Foreign,
    /// A later program wrote it.
    #[error("has the newer format {0}")]
    Newer(u32),
    /// It was one.
    #[error("has a damaged label")]
    Damaged,
}

/// What tells whether anything was changed or cut since a clean end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) manifest: Manifest,
    /// A hash over names and lengths of all blob files; format 1 had none.
    blobs: Option<String>,
}

/// RocksDB's manifest: its name and length tell whether anything was changed or cut since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    name: String,
    len: u64,
}

impl Manifest {
    /// A newer one has a greater number.
    fn number(&self) -> u64 {
        self.name.strip_prefix(MANIFEST).and_then(|no| no.parse().ok()).unwrap_or(0)
    }

    /// Whether this may be what has become of another one, of which so much is whole.
    fn follows(&self, begun: &Self, whole: u64) -> bool {
        match self.number().cmp(&begun.number()) {
            Ordering::Less => false,
            Ordering::Equal => whole >= begun.len,
            Ordering::Greater => true,
        }
    }
}

impl Directory {
    /// Locks a store directory and reads its label. Makes the directory and a new label when it is
    /// absent or empty and `create` allows it; writes nothing otherwise.
    pub(crate) fn open(
        path: &Path,
        expect: Expect,
        create: bool,
    ) -> Result<(Self, Label), StoreError> {
        let handle = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound && create => {
                fs::create_dir_all(path).map_err(|error| failed(path, &error))?;
                if let Some(parent) = path.canonicalize().ok().as_deref().and_then(Path::parent) {
                    sync(parent)?;
                }
                File::open(path)
            }
            other => other,
        };
        let handle = handle.map_err(|error| failed(path, &error))?;
        let directory = Self { path: path.to_owned(), handle };
        if !directory.handle.metadata().map_err(|error| failed(path, &error))?.is_dir() {
            return Err(directory.refuse("is not a directory"));
        }
        match flock(&directory.handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(directory.refuse("is in use")),
            Err(error) => return Err(failed(path, &error.into())),
        }
        let label = match directory.read_label()? {
            Some(label) => label,
            None => directory.label_new(expect, create)?,
        };
        if label.cluster != expect.cluster {
            let other = label.cluster;
            return Err(directory.refuse(format_args!("belongs to another cluster ({other})")));
        }
        directory.check_manifest(&label)?;
        Ok((directory, label))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// An error that names this directory, on one line.
    pub(crate) fn refuse(&self, what: impl fmt::Display) -> StoreError {
        StoreError::Refused(format!("store directory {} {what}", self.path.display()))
    }

    /// An error that tells what is wrong with what lies in this directory, on one line.
    pub(crate) fn damaged(&self, what: impl fmt::Display) -> StoreError {
        StoreError::Damaged(format!("{}: {what}", self.path.display()))
    }

    /// Replaces the label durably.
    pub(crate) fn write(&self, label: &Label) -> Result<(), StoreError> {
        let temporary = self.path.join(TEMPORARY);
        let result = (|| {
            let mut file = File::create(&temporary)?;
            file.write_all(label.to_string().as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, self.path.join(FILE))?;
            self.handle.sync_all()
        })();
        result.map_err(|error| failed(&temporary, &error))
    }

    /// The files as they are now, for the label of a clean end.
    pub(crate) fn ending(&self) -> Result<Ending, StoreError> {
        // Or else files that were removed come back if the power goes, and count.
        sync(&self.database())?;
        let manifest = self.manifest()?;
        let blobs = self.blobs().map_err(|error| failed(&self.database(), &error))?;
        Ok(Ending { manifest, blobs: Some(blobs) })
    }

    /// What there is of the manifest of an open store, up to a whole entry, once that is on the disk.
    pub(crate) fn beginning(&self) -> Result<Manifest, StoreError> {
        let found = self.manifest()?;
        let path = self.database().join(&found.name);
        let len = smalti_wal::whole(&path, found.len).map_err(|error| failed(&path, &error))?;
        sync(&path)?;
        Ok(Manifest { len, ..found })
    }

    /// Whether a start was broken off after the database had been opened.
    pub(crate) fn was_replayed(&self, label: &Label) -> Result<bool, StoreError> {
        let found = self.manifest()?;
        Ok(label.opening && label.begun.as_ref().is_some_and(|begun| begun.name != found.name))
    }

    /// Whether the blob files are those of a clean end, or at least nothing says otherwise. If not,
    /// records are missing that the metadata promises.
    pub(crate) fn has_blobs_of(&self, ending: &Ending) -> Result<bool, StoreError> {
        let found = self.blobs().map_err(|error| failed(&self.database(), &error))?;
        Ok(ending.blobs.as_ref().is_none_or(|left| *left == found))
    }

    fn blobs(&self) -> io::Result<String> {
        let folder = self.database();
        let mut files = Vec::new();
        for name in blobs::names(&folder)? {
            let len = fs::metadata(folder.join(&name))?.len();
            files.push(format!("{name} {len}\n"));
        }
        files.sort_unstable();
        Ok(check(&files.concat()))
    }

    /// The manifest as it is now; the error says what is wrong with it.
    fn manifest(&self) -> Result<Manifest, StoreError> {
        let database = self.database();
        // That it is not allowed to be read, or that the disk fails, is no damage.
        let unreadable = |name: &str, error: &io::Error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::InvalidData => {
                self.damaged(format_args!("{name} can not be read: {error}"))
            }
            _ => failed(&database.join(name), error),
        };
        let current = fs::read_to_string(database.join("CURRENT"))
            .map_err(|error| unreadable("CURRENT", &error))?;
        let name = current.strip_suffix('\n').filter(|name| {
            let number = name.strip_prefix(MANIFEST).unwrap_or_default();
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        });
        let name = name.ok_or_else(|| self.damaged("CURRENT is damaged"))?;
        match fs::metadata(database.join(name)) {
            Ok(found) if found.len() == 0 => Err(self.damaged(format_args!("{name} is empty"))),
            Ok(found) => Ok(Manifest { name: name.to_owned(), len: found.len() }),
            Err(error) => Err(unreadable(name, &error)),
        }
    }

    fn read_label(&self) -> Result<Option<Label>, StoreError> {
        let path = self.path.join(FILE);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return match self.database().join("CURRENT").exists() {
                    true => Err(self.damaged("its label is gone")),
                    false => Ok(None),
                };
            }
            Err(error) => return Err(failed(&path, &error)),
        };
        let mut bytes = Vec::new();
        file.take(LEN_MAX).read_to_end(&mut bytes).map_err(|error| failed(&path, &error))?;
        // What has a database beside it was a label.
        let was = self.database().join("CURRENT").exists();
        let text = String::from_utf8(bytes).map_err(|_| NoLabel::Foreign);
        text.and_then(|text| text.parse()).map(Some).map_err(|why| match why {
            NoLabel::Damaged => self.damaged("its label does not verify"),
            NoLabel::Foreign if was => self.damaged("its label does not verify"),
            other => self.refuse(other),
        })
    }

    fn label_new(&self, expect: Expect, create: bool) -> Result<Label, StoreError> {
        for entry in fs::read_dir(&self.path).map_err(|error| failed(&self.path, &error))? {
            let name = entry.map_err(|error| failed(&self.path, &error))?.file_name();
            // A label that was never finished, and what a new file system begins with.
            if name != TEMPORARY && name != "lost+found" {
                return Err(self.refuse("is not a store, and not empty"));
            }
        }
        if !create {
            return Err(self.refuse("is empty: is the disk mounted?"));
        }
        let label = Label {
            store: StoreId(Uuid::new_v4()),
            cluster: expect.cluster,
            incarnation: Incarnation(0),
            run: RunId::default(),
            announced: Announced::default(),
            boot: boot(),
            clean: None,
            begun: None,
            opening: false,
        };
        self.write(&label)?;
        Ok(label)
    }

    fn check_manifest(&self, label: &Label) -> Result<(), StoreError> {
        if label.incarnation == Incarnation(0) {
            return Ok(());
        }
        let found = self.manifest()?;
        let path = self.database().join(&found.name);
        let whole = || smalti_wal::whole(&path, found.len).map_err(|error| failed(&path, &error));
        let Some(Ending { manifest: left, .. }) = &label.clean else {
            let Some(begun) = &label.begun else { return Ok(()) };
            let whole = whole()?;
            return match found.follows(begun, whole) {
                true => Ok(()),
                false => Err(self.damaged(format_args!(
                    "{} of {} bytes was there, and of {} {whole} bytes can be read",
                    begun.name, begun.len, found.name
                ))),
            };
        };
        if *left != found {
            return Err(self.damaged(format_args!(
                "{} of {} bytes was left behind, {} of {} is there",
                left.name, left.len, found.name, found.len
            )));
        }
        // RocksDB passes over a record that seems to reach past the end, and all behind it.
        let whole = whole()?;
        if whole < found.len {
            return Err(self.damaged(format_args!(
                "of {} only {whole} of {} bytes can be read",
                found.name, found.len
            )));
        }
        Ok(())
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, cluster, incarnation, run, announced: [a, b, c, d], .. } = self;
        let Self { boot, clean, begun, opening, .. } = self;
        let open = if *opening { "opening" } else { "open" };
        let state = match clean {
            Some(Ending { manifest: Manifest { name, len }, blobs }) => {
                let blobs = blobs.as_ref().map(|blobs| format!(" blobs {blobs}"));
                format!("clean {name} {len}{}", blobs.unwrap_or_default())
            }
            None => match begun {
                Some(Manifest { name, len }) => format!("{open} {name} {len}"),
                None => open.to_owned(),
            },
        };
        let text = format!(
            "{TITLE}\nformat {FORMAT}\nstore {store}\ncluster {cluster}\n\
             incarnation {}\nrun {run}\nannounced {a} {b} {c} {d}\nboot {boot}\n\
             state {state}\n",
            incarnation.0
        );
        writeln!(f, "{text}check {}", check(&text))
    }
}

impl FromStr for Label {
    type Err = NoLabel;

    fn from_str(text: &str) -> Result<Self, NoLabel> {
        let mut lines = text.lines();
        if lines.next() != Some(TITLE) {
            return Err(NoLabel::Foreign);
        }
        // Another format may end otherwise; one that ends as this one has to verify like it.
        let format = lines.next().and_then(|line| line.strip_prefix("format ")?.parse().ok());
        match format {
            Some(FORMAT_MIN..=FORMAT) => {}
            Some(newer) if newer > FORMAT => {
                return Err(match checked(text) {
                    Some(None) => NoLabel::Damaged,
                    _ => NoLabel::Newer(newer),
                });
            }
            _ => return Err(NoLabel::Damaged),
        }
        Self::parse(text).ok_or(NoLabel::Damaged)
    }
}

/// What the last line is the check of: none where there is no such line, and nothing where it is that of
/// something else.
fn checked(text: &str) -> Option<Option<&str>> {
    let (content, sum) = text.split_at(text.rfind("check ")?);
    Some((sum == format!("check {}\n", check(content))).then_some(content))
}

impl Label {
    fn parse(text: &str) -> Option<Self> {
        let content = checked(text)??;
        let mut lines = content.lines().skip(1);
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let format: u32 = field("format")?.parse().ok()?;
        let mut label = Self {
            store: StoreId(field("store")?.parse().ok()?),
            cluster: ClusterId(field("cluster")?.parse().ok()?),
            incarnation: Incarnation(field("incarnation")?.parse().ok()?),
            run: match format {
                FORMAT_RUN.. => RunId(field("run")?.parse().ok()?),
                _ => RunId::default(),
            },
            announced: match format {
                FORMAT_ANNOUNCED.. => {
                    let names = field("announced")?.split(' ').map(|name| name.parse().map(RunId));
                    names.collect::<Result<Vec<_>, _>>().ok()?.try_into().ok()?
                }
                _ => Announced::default(),
            },
            boot: match format {
                FORMAT_BOOT.. => field("boot")?.parse().ok()?,
                _ => Uuid::nil(),
            },
            clean: None,
            begun: None,
            opening: false,
        };
        let manifest = |name: &str, len: &str| {
            Some(Manifest { name: name.to_owned(), len: len.parse().ok()? })
        };
        let state = field("state")?;
        if let Some(state) = state.strip_prefix("clean ") {
            let (name, rest) = state.split_once(' ')?;
            let (len, blobs) = match rest.split_once(" blobs ") {
                Some((len, blobs)) => (len, Some(blobs.to_owned())),
                None => (rest, None),
            };
            label.clean = Some(Ending { manifest: manifest(name, len)?, blobs });
        } else {
            let (word, begun) = state.split_once(' ').unzip();
            label.opening = match word.unwrap_or(state) {
                "open" => false,
                "opening" => true,
                _ => return None,
            };
            if let Some((name, len)) = begun.and_then(|begun| begun.split_once(' ')) {
                label.begun = Some(manifest(name, len)?);
            } else if begun.is_some() {
                return None;
            }
        }
        lines.next().is_none().then_some(label)
    }
}

/// Names the start of the machine, by the kernel; nil where it does not.
pub(crate) fn boot() -> Uuid {
    let read = fs::read_to_string(BOOT).map_err(|error| error.to_string());
    let read = read.and_then(|name| name.trim().parse::<Uuid>().map_err(|error| error.to_string()));
    read.unwrap_or_else(|error| {
        warn!(%error, "{BOOT} does not tell when the machine was started");
        Uuid::nil()
    })
}

fn check(text: &str) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "64 bits are enough against accidents")]
    let sum = XxHash3_128::oneshot(text.as_bytes()) as u64;
    format!("{sum:016x}")
}

/// Has a file, or the names in a directory, on the disk.
pub(crate) fn sync(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Io(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
