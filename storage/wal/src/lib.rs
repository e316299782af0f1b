//! RocksDB's logs, read through before RocksDB reads them.
//!
//! A log is a row of records, each behind a header with its type. Some types are for log files that
//! are used again, which we never do. When RocksDB 11.8 meets one of those in a log that did not
//! begin with one, it looks at it again and again, and the start never ends: it returns
//! `kBadRecord` without having gone on (`db/log_reader.cc`, `ReadPhysicalRecord`). One bit turned
//! over makes such a type of an ordinary one, and so may whatever a power cut leaves behind the end
//! of what was synced.
//!
//! So such a type is replaced by an ordinary one. If it was a bit that turned over in that byte, that
//! mostly mends the record; otherwise its checksum is as wrong as it was, and RocksDB says so.
//! Nothing that RocksDB would have taken is changed. The manifest, which is a log as well, is only
//! looked at: a damaged one is its owner's to refuse.
//!
//! And a record that reaches past the end of a manifest is taken for one that was being written, and
//! passed over without a word with all behind it. One bit turned over in the length of a record
//! makes such a one of it: [`whole`] tells its owner, who knows how long the manifest has to be.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Records begin anew in each block.
const BLOCK: usize = 32 * 1024;
/// Checksum, length, type.
const HEADER: usize = 7;
const LEN_AT: usize = 4;
const TYPE_AT: usize = 6;

/// What was found in a folder of RocksDB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// How many types were replaced in logs.
    pub replaced: usize,
    /// A manifest with such a type: RocksDB must not be let near it.
    pub manifest: Option<String>,
}

/// Looks at all logs and manifests of a folder, and replaces in logs what RocksDB would read for
/// ever. A folder that is not there holds none.
///
/// # Errors
/// When a file can not be read or written.
pub fn check(folder: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    let files = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
        files => files?,
    };
    for file in files {
        let file = file?;
        let name = file.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with("MANIFEST-") {
            if !endless(&File::open(file.path())?)?.is_empty() {
                found.manifest = Some(name.to_owned());
            }
        } else if name.ends_with(".log") {
            let log = File::open(file.path())?;
            let places = endless(&log)?;
            if places.is_empty() {
                continue;
            }
            let log = OpenOptions::new().write(true).open(file.path())?;
            for (place, kind) in &places {
                log.write_all_at(&[ordinary(*kind)], *place)?;
            }
            log.sync_data()?;
            found.replaced += places.len();
        }
    }
    Ok(found)
}

/// Up to where the first `len` bytes of a log are whole records, by their lengths. What they hold is
/// compared with their checksums by RocksDB.
///
/// # Errors
/// When the file can not be read.
pub fn whole(log: &Path, len: u64) -> io::Result<u64> {
    let log = File::open(log)?;
    let mut end = 0;
    for block in blocks(&log, len)? {
        let (start, block) = block?;
        let mut at = 0;
        while let Some(header) = block.get(at..at + HEADER) {
            let next = at + HEADER + length(header);
            // No record is of type 0: space that was made for more.
            if header[TYPE_AT] == 0 || next > block.len() {
                return Ok(end);
            }
            at = next;
            end = start + at as u64;
        }
    }
    Ok(end)
}

/// The blocks of the first `len` bytes of a log, and where they begin.
fn blocks(log: &File, len: u64) -> io::Result<impl Iterator<Item = io::Result<(u64, Vec<u8>)>>> {
    let len = log.metadata()?.len().min(len);
    Ok((0..len).step_by(BLOCK).map(move |start| {
        let size = usize::try_from(len - start).map_or(BLOCK, |left| left.min(BLOCK));
        let mut block = vec![0; size];
        log.read_exact_at(&mut block, start)?;
        Ok((start, block))
    }))
}

fn length(header: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([header[LEN_AT], header[LEN_AT + 1]]))
}

/// The ordinary type that is one bit away, where there is one: 1 to 4 are a whole record, and the
/// first, a middle and the last piece of one.
fn ordinary(kind: u8) -> u8 {
    match kind & 3 {
        0 => 4,
        kind => kind,
    }
}

/// Where in a log types stand that are for logs used again, and which.
fn endless(log: &File) -> io::Result<Vec<(u64, u8)>> {
    let mut places = Vec::new();
    for block in blocks(log, u64::MAX)? {
        let (start, block) = block?;
        places.extend(in_block(&block).into_iter().map(|at| (start + at as u64, block[at])));
    }
    Ok(places)
}

/// Those in one block. After a damaged header this may take bytes of a record for one, which does
/// no harm: RocksDB takes nothing of a block behind the first damage.
fn in_block(block: &[u8]) -> Vec<usize> {
    let mut places = Vec::new();
    let mut at = 0;
    while let Some(header) = block.get(at..at + HEADER) {
        // `kRecyclable...` and `kRecycle...` of `db/log_format.h`.
        if matches!(header[TYPE_AT], 5..=8 | 11 | 131) {
            places.push(at + TYPE_AT);
        }
        at += HEADER + length(header);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn record(kind: u8, len: u16) -> Vec<u8> {
        let mut record = vec![0xcc; HEADER + usize::from(len)];
        record[LEN_AT..TYPE_AT].copy_from_slice(&len.to_le_bytes());
        record[TYPE_AT] = kind;
        // What a record holds is not looked at.
        record[HEADER..].fill(5);
        record
    }

    fn file(folder: &TempDir, name: &str, records: &[Vec<u8>]) -> Vec<u8> {
        let bytes = records.concat();
        fs::write(folder.path().join(name), &bytes).expect("written");
        bytes
    }

    #[test]
    fn whole_logs_stay_as_they_are() {
        let folder = TempDir::new().expect("a folder");
        let mut records: Vec<_> = (1..=4).map(|kind| record(kind, 300)).collect();
        // A block that ends in a trailer shorter than a header, and one after it.
        let used: usize = records.iter().map(Vec::len).sum();
        records.push(record(1, u16::try_from(BLOCK - used - HEADER - 5).expect("fits")));
        records.push(vec![0; 5]);
        records.push(record(2, 9));
        let bytes = file(&folder, "000004.log", &records);
        file(&folder, "MANIFEST-000003", &records);
        assert_eq!(check(folder.path()).expect("checked"), Found::default());
        assert_eq!(fs::read(folder.path().join("000004.log")).expect("read"), bytes);
        let absent = check(&folder.path().join("absent"));
        assert_eq!(absent.expect("none"), Found::default());
    }

    #[test]
    fn types_that_are_read_for_ever_are_replaced() {
        for (kind, ordinary) in [(5, 1), (6, 2), (7, 3), (8, 4), (11, 3), (131, 3)] {
            let folder = TempDir::new().expect("a folder");
            let good = [record(1, 20), record(ordinary, 30), record(ordinary, 40)].concat();
            file(&folder, "000004.log", &[record(1, 20), record(kind, 30), record(kind, 40)]);
            let found = check(folder.path()).expect("checked");
            assert_eq!(found, Found { replaced: 2, manifest: None });
            assert_eq!(fs::read(folder.path().join("000004.log")).expect("read"), good);
            assert_eq!(check(folder.path()).expect("checked"), Found::default());
        }
    }

    #[test]
    fn a_manifest_is_only_looked_at() {
        let folder = TempDir::new().expect("a folder");
        let bytes = file(&folder, "MANIFEST-000003", &[record(1, 20), record(5, 30)]);
        let found = check(folder.path()).expect("checked");
        assert_eq!(found, Found { replaced: 0, manifest: Some("MANIFEST-000003".to_owned()) });
        assert_eq!(fs::read(folder.path().join("MANIFEST-000003")).expect("read"), bytes);
    }

    #[test]
    fn a_log_is_whole_up_to_the_first_record_that_is_not() {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("MANIFEST-000003");
        let mut records = vec![record(1, 20), record(2, 30)];
        records.push(record(3, u16::try_from(BLOCK - 27 - 37 - HEADER - 5).expect("fits")));
        // The end of a block that has no room for a header, and another block.
        records.push(vec![0; 5]);
        records.push(record(4, 40));
        let good = file(&folder, "MANIFEST-000003", &records);
        let len = good.len() as u64;
        assert_eq!(whole(&path, len).expect("read"), len);
        assert_eq!(whole(&path, u64::MAX).expect("read"), len);
        assert_eq!(whole(&path, len - 1).expect("read"), (BLOCK - 5) as u64);
        assert_eq!(whole(&path, 26).expect("read"), 0);
        assert_eq!(whole(&path, 27).expect("read"), 27);
        // Lengths that reach past the end of their block.
        for (at, end) in [(0, 0), (27, 27), (BLOCK, BLOCK - 5)] {
            let mut bad = good.clone();
            bad[at + LEN_AT + 1] ^= 0x80;
            fs::write(&path, bad).expect("written");
            assert_eq!(whole(&path, len).expect("read"), end as u64, "at {at}");
        }
        fs::write(&path, [good, vec![0; 100]].concat()).expect("written");
        assert_eq!(whole(&path, u64::MAX).expect("read"), len);
    }
}
