//! The files with the records, and those of them that nobody finished.
//!
//! A write-out or a compaction that the end of a run or of the process breaks off leaves the blob
//! file it was writing. RocksDB 11.8 removes what no table needs, but no blob file without a
//! footer: it could be one that clients write past the buffers, a mode which we do not use. So
//! these would stay for good, up to 64 MiB each. And nobody ever synced them, so a store could not
//! tell after a power cut that it had ended in order.

use crate::database::Database;
use rocksdb::properties::SSTABLES;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tracing::{info, warn};

const ENDING: &str = ".blob";
const COUNT: &str = "rocksdb.num-blob-files";
/// How the text that names all files of a family begins its line about one of records.
const LINE: &str = "blob_file_number: ";
/// The footer has a fixed length, and begins with this number.
const FOOTER: u64 = 32;
const MAGIC: u32 = 0x0024_8f37;

/// The names of all blob files in a folder.
pub(crate) fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        names.extend(name.to_str().filter(|name| name.ends_with(ENDING)).map(str::to_owned));
    }
    Ok(names)
}

/// Removes those of the named files that were never finished. Nobody may be writing to them: they
/// are from before the database was opened (it gives no number out again), or its work has ended.
/// A failure only costs space, and a comparison after a power cut.
pub(crate) fn remove_unfinished(database: &Database, folder: &Path, names: &[String]) {
    let known = match known(database) {
        Ok(Some(known)) => known,
        Ok(None) => {
            warn!("RocksDB does not say which blob files it knows; unfinished ones are kept");
            return;
        }
        Err(error) => {
            warn!(%error, "can not tell which blob files were never finished");
            return;
        }
    };
    for name in names {
        let number = name.strip_suffix(ENDING).and_then(|number| number.parse().ok());
        let Some(number) = number else { continue };
        // One that is known and has no footer was cut since: what it held is missed when it is
        // read, as damaged, and that it is gone would look like a failure of the disk.
        if known.contains(&number) {
            continue;
        }
        let path = folder.join(name);
        match is_finished(&path) {
            // RocksDB's to remove, perhaps when the last reader is done.
            Ok(true) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(false) => match fs::remove_file(&path) {
                Ok(()) => info!(name, "removed a blob file that was never finished"),
                Err(error) => warn!(name, %error, "an unfinished blob file can not be removed"),
            },
            Err(error) => warn!(name, %error, "a blob file can not be read"),
        }
    }
}

/// The numbers of the blob files that tables refer to, if that can be told for sure. Only one
/// family has such files.
fn known(database: &Database) -> Result<Option<BTreeSet<u64>>, rocksdb::Error> {
    let (db, family) = (&database.db, database.data());
    let count = db.property_int_value_cf(family, COUNT)?;
    let text = db.property_value_cf(family, SSTABLES)?.unwrap_or_default();
    let known: BTreeSet<u64> = text
        .lines()
        .filter_map(|line| line.strip_prefix(LINE)?.split(' ').next()?.parse().ok())
        .collect();
    // The text is made for people and may change; and a compaction may end in between.
    Ok((count == Some(known.len() as u64)).then_some(known))
}

/// Whether a blob file ends with a footer, the last thing written to it.
fn is_finished(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let Some(at) = file.metadata()?.len().checked_sub(FOOTER) else { return Ok(false) };
    let mut magic = [0; size_of::<u32>()];
    file.read_exact_at(&mut magic, at)?;
    Ok(u32::from_le_bytes(magic) == MAGIC)
}
