//! What the store must still have when it is opened, noted beside it after every synced write.
//!
//! After a power cut the log may end in bytes that were never synced, whole, torn or garbage, and
//! has to be taken up to them: nothing of that was reported to anybody. But a log that is damaged
//! *before*, or a manifest that lost its end, looks just the same to RocksDB. So a small file says
//! up to where all was synced; a store that comes up with less has forgotten a vote or an entry it
//! acknowledged, and is not opened: a voter that forgets can make the group lose data.
//!
//! W1. It is written after what it speaks of was synced, and synced before that is reported.
//! W2. So an honest disk never has less than it says.
//!
//! A disk that loses this file's last words together with those of the log is not noticed, nor is
//! an old copy of the whole folder: then only the other voters know better.
//!
//! ```text
//! version u8 = 1 | sequence u64 | manifest u64 | manifest length u64 | checksum 8 bytes
//! ```
//! Written over in place; it is far smaller than what a disk writes at once.

use crate::db::DbError;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_128;

const NAME: &str = "WITNESS";
const VERSION: u8 = 1;
const CONTENT: usize = 25;
const LEN: usize = CONTENT + 8;

/// What was there once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Writes are numbered; all up to this one were synced.
    sequence: u64,
    /// The number in the manifest's name, and up to where it was whole.
    manifest: u64,
    len: u64,
}

/// What the file says before the store is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Nothing,
    /// The file is not whole: it was just being made, or is damaged.
    Unreadable,
    This(Seen),
}

/// The file of an open store.
#[derive(Debug)]
pub(crate) struct Witness {
    file: File,
    manifest: PathBuf,
    /// How long that was when it was last looked at.
    manifest_len: u64,
    seen: Seen,
}

impl Said {
    /// Reads the file of the store in `dir`, and compares the manifest with it: RocksDB would make
    /// a new one of the one it finds, and an empty store where it finds none.
    pub(crate) fn before(dir: &Path) -> Result<Self, DbError> {
        let bytes = match fs::read(dir.join(NAME)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::Nothing),
            Err(source) => return Err(failed(dir, source)),
        };
        let Some(seen) = Seen::decode(&bytes) else { return Ok(Self::Unreadable) };
        // Not its length alone: RocksDB passes over a record that seems to reach past the end.
        let found = manifest(dir)
            .and_then(|(number, path)| Ok((number, smalti_wal::whole(&path, u64::MAX)?)));
        match found {
            Ok((number, len)) if (number, len) >= (seen.manifest, seen.len) => Ok(Self::This(seen)),
            Ok((number, len)) => Err(DbError::Forgotten(format!(
                "manifest {} was whole up to {}, manifest {number} is up to {len}",
                seen.manifest, seen.len
            ))),
            Err(error) => Err(DbError::Forgotten(format!("its manifest can not be read: {error}"))),
        }
    }

    /// Compares an open store with it. `known`: the store remembers that it has such a file.
    pub(crate) fn check(self, sequence: u64, known: bool) -> Result<(), DbError> {
        match self {
            Self::This(seen) if sequence < seen.sequence => Err(DbError::Forgotten(format!(
                "{} writes were synced, {sequence} are there",
                seen.sequence
            ))),
            Self::This(_) => Ok(()),
            Self::Nothing if known => Err(DbError::Forgotten(format!("its {NAME} is gone"))),
            Self::Unreadable if known => Err(DbError::Forgotten(format!("its {NAME} is damaged"))),
            Self::Nothing | Self::Unreadable => Ok(()),
        }
    }
}

impl Witness {
    /// Begins to note what the open store in `dir` has.
    pub(crate) fn begin(dir: &Path, sequence: u64) -> Result<Self, DbError> {
        let begin = || {
            let path = dir.join(NAME);
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            let (number, manifest) = manifest(dir)?;
            let seen = Seen { sequence: 0, manifest: number, len: 0 };
            let mut witness = Self { file, manifest, manifest_len: 0, seen };
            witness.write(sequence)?;
            File::open(dir)?.sync_all()?;
            Ok(witness)
        };
        begin().map_err(|error| failed(dir, error))
    }

    /// Notes that all writes up to this one are synced.
    pub(crate) fn note(&mut self, sequence: u64) -> Result<(), DbError> {
        self.write(sequence).map_err(|error| failed(&self.manifest, error))
    }

    fn write(&mut self, sequence: u64) -> io::Result<()> {
        let len = fs::metadata(&self.manifest)?.len();
        let mut seen = Seen { sequence, ..self.seen };
        if len != self.manifest_len {
            // RocksDB may be about to sync what it has just appended, or to append the rest of it.
            File::open(&self.manifest)?.sync_data()?;
            seen.len = smalti_wal::whole(&self.manifest, len)?;
        }
        self.file.write_all_at(&seen.encode(), 0)?;
        self.file.sync_data()?;
        self.seen = seen;
        self.manifest_len = len;
        Ok(())
    }
}

impl Seen {
    fn encode(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0] = VERSION;
        bytes[1..9].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.manifest.to_be_bytes());
        bytes[17..CONTENT].copy_from_slice(&self.len.to_be_bytes());
        let sum = checksum(&bytes[..CONTENT]);
        bytes[CONTENT..].copy_from_slice(&sum);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (content, sum) = bytes.split_first_chunk::<CONTENT>()?;
        if *sum != checksum(content) {
            return None;
        }
        let (&VERSION, rest) = content.split_first()? else { return None };
        let (sequence, rest) = rest.split_first_chunk()?;
        let (manifest, rest) = rest.split_first_chunk()?;
        Some(Self {
            sequence: u64::from_be_bytes(*sequence),
            manifest: u64::from_be_bytes(*manifest),
            len: u64::from_be_bytes(rest.try_into().ok()?),
        })
    }
}

fn checksum(content: &[u8]) -> [u8; 8] {
    #[expect(clippy::cast_possible_truncation, reason = "64 bits are enough against accidents")]
    let sum = XxHash3_128::oneshot(content) as u64;
    sum.to_be_bytes()
}

/// The manifest RocksDB uses: its number and its path.
fn manifest(dir: &Path) -> io::Result<(u64, PathBuf)> {
    let current = fs::read_to_string(dir.join("CURRENT"))?;
    let name = current.trim_end();
    let number = name.strip_prefix("MANIFEST-").and_then(|number| number.parse().ok());
    let number = number.ok_or_else(|| io::Error::other("CURRENT is damaged"))?;
    Ok((number, dir.join(name)))
}

fn failed(path: &Path, source: io::Error) -> DbError {
    DbError::Folder { folder: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As version 1 wrote it. Never change it: stores hold such bytes.
    const FIXTURE: [u8; LEN] = [
        1, 0, 0, 0, 0, 0, 0, 1, 44, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 1, 231, 236, 59, 87,
        118, 188, 29, 226, 249,
    ];

    #[test]
    fn version_1_stays_as_it_is() {
        let seen = Seen { sequence: 300, manifest: 11, len: 487 };
        assert_eq!(seen.encode(), FIXTURE);
        assert_eq!(Seen::decode(&FIXTURE), Some(seen));
    }

    #[test]
    fn no_turned_bit_or_cut_is_taken() {
        let good = Seen { sequence: 300, manifest: 11, len: 487 }.encode();
        for bit in 0..LEN * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Seen::decode(&bad), None, "bit {bit}");
        }
        for len in 0..LEN {
            assert_eq!(Seen::decode(&good[..len]), None, "cut to {len}");
        }
    }
}
