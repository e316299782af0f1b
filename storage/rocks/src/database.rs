//! Opening RocksDB, and what its errors mean to us.

use crate::blobs;
use crate::drops::Numbers;
use crate::label::{Directory, Label};
use crate::options::{
    DATA, DATA_COMPACTION_MAX, META, META_COMPACTION_MAX, PREP, RocksOptions, STATE, WalCheck,
};
use crate::reclaim::BLOBS_SIZE;
use crate::value;
use rocksdb::properties::{
    AGGREGATED_TABLE_PROPERTIES, BACKGROUND_ERRORS,
    CUR_SIZE_ALL_MEM_TABLES as WAITING_BUFFERS_SIZE, NUM_DELETES_ACTIVE_MEM_TABLE,
    NUM_DELETES_IMM_MEM_TABLES, SIZE_ALL_MEM_TABLES as BUFFERS_SIZE,
    TOTAL_SST_FILES_SIZE as TABLES_SIZE,
};
use rocksdb::statistics::Ticker;
use rocksdb::{ColumnFamily, DB, ErrorKind, FlushOptions, Options, WriteOptions};
use serde::{Deserialize, Serialize};
use smalti_rewriting::{Pace, limit_compactions};
use smalti_storage::ids::{Incarnation, RowSlot, StoreId};
use smalti_storage::store::StoreError;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tracing::warn;

/// The key in the state family under which the store's own record lies.
const RUN: &[u8] = b"run";
const WRITE_STOPPED: &str = "rocksdb.is-write-stopped";
const DELAYED_RATE: &str = "rocksdb.actual-delayed-write-rate";
const FIRST_LEVEL_FILES: &str = "rocksdb.num-files-at-level0";
/// A second compaction begins at 11 files that wait for one, and writers are slowed down at 20.
const FILES_BEHIND: u32 = 14;
/// How the text about all tables of a family begins where it tells of deletions.
const TABLE_DELETIONS: &str = "# deletions=";

/// The open database with its families.
pub(crate) struct Database {
    pub(crate) db: DB,
    /// What it was opened with; the counters hang on it.
    options: Options,
    /// How fast it compacts.
    pub(crate) pace: Arc<Pace>,
    /// Deleted records that no compaction has met, about: their space is not counted as garbage.
    pub(crate) unmet: AtomicU64,
    /// Of drops.
    pub(crate) numbers: Numbers,
}

/// Ties the database to its label, and counts starts should the label be lost or restored.
#[derive(Serialize, Deserialize)]
struct Run {
    store: StoreId,
    incarnation: Incarnation,
}

/// A database that is open but does not serve yet.
pub(crate) struct Started {
    pub(crate) database: Database,
    pub(crate) incarnation: Incarnation,
    /// Whether everything the last run left is there, as far as RocksDB can tell.
    pub(crate) whole: bool,
    /// Whether something of it is missing. If neither, a start before this one was broken off.
    pub(crate) lacks: bool,
}

impl Database {
    /// Opens the database of a labelled directory and begins its next incarnation, durably.
    pub(crate) fn start(
        directory: &Directory,
        label: &Label,
        options: &RocksOptions,
    ) -> Result<Started, StoreError> {
        let path = directory.database();
        let new = label.incarnation == Incarnation(0);
        check_logs(directory, label, &path)?;
        if !new {
            check_families(directory, &path)?;
        }
        let mut records_whole = true;
        if let Some(ending) = &label.clean {
            records_whole = directory.has_blobs_of(ending)?;
            if !records_whole {
                warn!(store = %label.store, "records of the store were lost since a clean end");
            }
        }
        if !new {
            // From here on the manifest is no longer the one of the label.
            let begun = match &label.clean {
                Some(ending) => ending.manifest.clone(),
                None => directory.beginning()?,
            };
            let (begun, opening) = (Some(begun), true);
            directory.write(&Label { clean: None, begun, opening, ..label.clone() })?;
        }
        let blobs = if new { Ok(Vec::new()) } else { blobs::names(&path) };
        let blobs =
            blobs.map_err(|error| StoreError::Io(format!("{}: {error}", path.display())))?;
        let open = |wals| {
            let mut settings = options.database(new, wals);
            let pace = Arc::<Pace>::default();
            limit_compactions(&mut settings, &pace);
            let db = DB::open_cf_descriptors(&settings, &path, options.families()?)?;
            let (unmet, numbers) = (AtomicU64::new(0), Numbers::default());
            Ok(Self { db, options: settings, pace, unmet, numbers })
        };
        let (database, log_whole) = match open(WalCheck::On) {
            Ok(database) => (database, true),
            // What an earlier start replayed of it may be there in part: each family by itself, for those are
            // entries of their own in the manifest.
            Err(error) if lost_wal(&error) && directory.was_replayed(label)? => {
                return Err(directory.damaged(one_line(&error)));
            }
            Err(error) if lost_wal(&error) => {
                // Serving what is left is right for a suspect store: its peers compare.
                warn!(store = %label.store, %error, "store log was shortened");
                (open(WalCheck::Off).map_err(|error| not_opened(directory, &error))?, false)
            }
            Err(error) => return Err(not_opened(directory, &error)),
        };
        let run = database.run(directory)?;
        if let Some(run) = &run
            && run.store != label.store
        {
            let other = run.store;
            return Err(directory.refuse(format_args!("holds the data of another store ({other})")));
        }
        blobs::remove_unfinished(&database, &path, &blobs);
        // It begins a run before the label tells of it.
        let begun = run.as_ref().map(|run| run.incarnation);
        let lacks =
            !log_whole || !records_whole || !new && begun.is_none_or(|no| no < label.incarnation);
        let whole = !lacks && (new || begun == Some(label.incarnation));
        let last = run.map_or(label.incarnation, |run| run.incarnation.max(label.incarnation));
        let incarnation = Incarnation(last.0 + 1);
        database.begin(label.store, incarnation)?;
        database.numbers.begin(incarnation);
        Ok(Started { database, incarnation, whole, lacks })
    }

    /// Whether writers wait for compactions, or soon will.
    pub(crate) fn is_behind(&self) -> bool {
        let figure = |name| self.db.property_int_value_cf(self.data(), name).ok().flatten();
        let held_up = figure(WRITE_STOPPED).unwrap_or(0) + figure(DELAYED_RATE).unwrap_or(0) > 0;
        let files = |family: &ColumnFamily| {
            let text = self.db.property_value_cf(family, FIRST_LEVEL_FILES).ok().flatten();
            text.and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        held_up || [self.meta(), self.data()].into_iter().any(|of| files(of) >= FILES_BEHIND)
    }

    /// Notes which start of which store this is, durably.
    pub(crate) fn begin(&self, store: StoreId, incarnation: Incarnation) -> Result<(), StoreError> {
        let bytes = value::encode(RUN, &Run { store, incarnation });
        let put = self.db.put_cf_opt(self.state(), RUN, bytes, &synced());
        put.map_err(|error| failed(&error))
    }

    fn run(&self, directory: &Directory) -> Result<Option<Run>, StoreError> {
        let found = self.db.get_pinned_cf(self.state(), RUN).map_err(|error| failed(&error))?;
        let run = found.map(|bytes| value::decode(RUN, &bytes)).transpose();
        run.map_err(|_| directory.damaged("its state does not verify"))
    }

    /// Whether a write-out or compaction failed behind our back.
    pub(crate) fn check_background(&self) -> Result<(), StoreError> {
        let errors = self.db.property_int_value(BACKGROUND_ERRORS);
        match errors.map_err(|error| failed(&error))? {
            None | Some(0) => Ok(()),
            Some(count) => {
                let what = format!("{count} errors in the background, see db/LOG");
                // It takes no writes from then on, and says why; nothing has this key.
                let refused = self.db.delete_cf_opt(self.state(), b"nothing", &synced()).err();
                let damaged = |error: &rocksdb::Error| {
                    error.kind() == ErrorKind::Corruption
                        || lacks_file(error)
                        || can_not_read(error)
                };
                Err(match refused.filter(damaged) {
                    Some(error) => StoreError::Damaged(format!("{what}: {}", one_line(&error))),
                    None => StoreError::Io(what),
                })
            }
        }
    }

    /// Bytes of its tables, blobs and buffers, about.
    pub(crate) fn used(&self) -> Result<u64, StoreError> {
        let figure = |family, name| {
            let bytes = self.db.property_int_value_cf(family, name);
            bytes.map(|bytes| bytes.unwrap_or(0)).map_err(|error| failed(&error))
        };
        let blobs = self.db.property_int_value_cf(self.data(), BLOBS_SIZE);
        let mut used = blobs.map_err(|error| failed(&error))?.unwrap_or(0);
        for family in [self.meta(), self.data()] {
            for name in [TABLES_SIZE, BUFFERS_SIZE] {
                used = used.saturating_add(figure(family, name)?);
            }
        }
        Ok(used)
    }

    /// What writing the buffers out, and compacting tables then, writes before anything is let go of: in
    /// bytes, about and at most.
    pub(crate) fn unwritten(&self) -> Result<u64, rocksdb::Error> {
        let figure = |family, name| {
            self.db.property_int_value_cf(family, name).map(|bytes| bytes.unwrap_or(0))
        };
        let mut buffers = 0;
        for family in [self.meta(), self.data(), self.prep(), self.state()] {
            buffers += figure(family, WAITING_BUFFERS_SIZE)?;
        }
        let meta = figure(self.meta(), TABLES_SIZE)?.min(META_COMPACTION_MAX);
        let data = figure(self.data(), TABLES_SIZE)?.min(DATA_COMPACTION_MAX);
        // Tables have indexes and filters, which buffers have not.
        Ok(buffers + buffers / 16 + meta.max(data))
    }

    /// Deletions of records in tables and buffers: each of one that no compaction has met.
    pub(crate) fn deletions(&self) -> Result<u64, rocksdb::Error> {
        let mut found = 0;
        for name in [NUM_DELETES_ACTIVE_MEM_TABLE, NUM_DELETES_IMM_MEM_TABLES] {
            found += self.db.property_int_value_cf(self.data(), name)?.unwrap_or(0);
        }
        let text = self
            .db
            .property_value_cf(self.data(), AGGREGATED_TABLE_PROPERTIES)?
            .unwrap_or_default();
        // The text is made for people and may change: then only those since the start are known.
        let told = text.split(';').find_map(|part| part.trim().strip_prefix(TABLE_DELETIONS));
        Ok(found + told.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0))
    }

    /// Writes the buffers of all families out, and so lets go of the logs.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        let families = [self.meta(), self.data(), self.prep(), self.state()];
        let flushed = self.db.flush_cfs_opt(&families, &FlushOptions::default());
        flushed.map_err(|error| failed(&error))
    }

    /// Changes an option while the database is open.
    ///
    /// When a write of the manifest has failed, the next start may find the entry in it or not, so
    /// RocksDB keeps what the entry names. RocksDB 11.8 forgets that when options are changed: that
    /// goes the way of a manifest write, writes nothing, and is taken for one that went well. Then
    /// the files are deleted, and a manifest that has the entry can not be opened any more. So
    /// nothing is deleted meanwhile, nor after a failure: the next start does that. It is looked at
    /// afterwards, for the change may have waited behind the write that failed; that one is counted
    /// by then, as its thread keeps the lock in between.
    pub(crate) fn set_option(
        &self,
        family: &ColumnFamily,
        name: &str,
        value: &str,
    ) -> Result<(), StoreError> {
        self.db.disable_file_deletions().map_err(|error| failed(&error))?;
        let set = self.db.set_options_cf(family, &[(name, value)]);
        self.check_background()?;
        self.db.enable_file_deletions().map_err(|error| failed(&error))?;
        set.map_err(|error| failed(&error))
    }

    /// How often the log was synced since the start.
    pub(crate) fn log_syncs(&self) -> u64 {
        self.options.get_ticker_count(Ticker::WalFileSynced)
    }

    pub(crate) fn meta(&self) -> &ColumnFamily {
        self.family(META)
    }

    pub(crate) fn data(&self) -> &ColumnFamily {
        self.family(DATA)
    }

    pub(crate) fn prep(&self) -> &ColumnFamily {
        self.family(PREP)
    }

    pub(crate) fn state(&self) -> &ColumnFamily {
        self.family(STATE)
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("opened with all families, and none is ever dropped")
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").finish_non_exhaustive()
    }
}

pub(crate) fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

/// A failure that ends the store.
pub(crate) fn failed(error: &rocksdb::Error) -> StoreError {
    match error.kind() {
        ErrorKind::Corruption => StoreError::Damaged(one_line(error)),
        _ if lacks_file(error) || can_not_read(error) => StoreError::Damaged(one_line(error)),
        _ => StoreError::Io(one_line(error)),
    }
}

/// Whether one of the files is gone that the manifest names. No other one takes its place, however often
/// the store is opened.
fn lacks_file(error: &rocksdb::Error) -> bool {
    error.kind() == ErrorKind::IOError && error.as_ref().contains("No such file or directory")
}

/// Whether the disk does not give back what is written there, as of a bad sector. It will not the next time
/// either, and everything else on it may be well; a disk that is gone as a whole fails the next write.
fn can_not_read(error: &rocksdb::Error) -> bool {
    let text: &str = error.as_ref();
    let reads = ["While pread", "While reading file"].iter().any(|call| text.contains(call));
    error.kind() == ErrorKind::IOError && reads && text.contains("Input/output error")
}

/// A failure to read something of `at`: bytes that are damaged, or that the disk does not give back, can be
/// replaced; anything else ends the store.
pub(crate) fn read_failed(error: &rocksdb::Error, at: RowSlot, what: &'static str) -> StoreError {
    match error.kind() {
        ErrorKind::Corruption => {
            warn!(%at, what, %error, "stored bytes are damaged");
            StoreError::Corrupt { at, what }
        }
        _ if can_not_read(error) => {
            warn!(%at, what, %error, "stored bytes can not be read");
            StoreError::Corrupt { at, what }
        }
        _ => failed(error),
    }
}

/// Reads the manifest through before RocksDB opens it for writing, which would replace it.
fn check_families(directory: &Directory, path: &Path) -> Result<(), StoreError> {
    let found =
        DB::list_cf(&Options::default(), path).map_err(|error| not_opened(directory, &error))?;
    let missing =
        [META, DATA, PREP, STATE].into_iter().find(|name| !found.iter().any(|f| f == name));
    match missing {
        Some(name) => {
            Err(directory.damaged(format_args!("the manifest does not know the {name} family")))
        }
        None => Ok(()),
    }
}

/// Keeps RocksDB from what it would read for ever.
fn check_logs(directory: &Directory, label: &Label, path: &Path) -> Result<(), StoreError> {
    let found = smalti_wal::check(path)
        .map_err(|error| StoreError::Io(format!("{}: {error}", path.display())))?;
    if let Some(name) = found.manifest {
        return Err(directory.damaged(name));
    }
    if found.replaced > 0 {
        warn!(store = %label.store, records = found.replaced, "store log is damaged");
    }
    Ok(())
}

fn not_opened(directory: &Directory, error: &rocksdb::Error) -> StoreError {
    let text = one_line(error);
    match error.kind() {
        ErrorKind::IOError if text.contains("While lock file") || text.contains("lock hold by") => {
            directory.refuse("is in use")
        }
        ErrorKind::Corruption => directory.damaged(text),
        ErrorKind::IOError if text.contains("No such file") => directory.damaged(text),
        ErrorKind::IOError => failed(error),
        // Not of this program, or too large for this machine.
        _ => directory.refuse(format_args!("can not be opened: {text}")),
    }
}

/// Whether a log that the manifest says was synced is missing or shorter than it says.
fn lost_wal(error: &rocksdb::Error) -> bool {
    let text = error.as_ref();
    error.kind() == ErrorKind::Corruption
        && (text.contains("Missing WAL") || text.contains("Size mismatch: WAL"))
}

fn one_line(error: &rocksdb::Error) -> String {
    error.as_ref().lines().next().unwrap_or("unknown error").to_owned()
}
