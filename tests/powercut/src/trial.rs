//! Many images of one record, each looked at.

use crate::disk::Disk;
use crate::image::Mode;
use crate::record::{Event, Record};
use crate::rng::Draw;
use crate::scratch;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How many images, when the environment does not say.
const IMAGES: usize = 200;
const IMAGES_ENV: &str = "SMALTI_CUTS";
const SEED_ENV: &str = "SMALTI_CUT_SEED";
/// The longest that one image may take; a start takes a fraction of a second.
const LIMIT: Duration = Duration::from_secs(60);
/// Images of one record; then a new one is made with another seed.
const IMAGES_PER_RECORD: usize = 100;

/// A number of images, drawn from one seed.
#[derive(Clone, Debug)]
pub struct Trial {
    name: &'static str,
    mode: Mode,
    seed: u64,
    images: usize,
    tally: BTreeMap<String, usize>,
}

/// The moment of a cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut<'a> {
    /// The seed the record was made with.
    pub workload: u64,
    /// The folder with what was left.
    pub folder: &'a Path,
    /// The record up to the cut.
    pub record: &'a Record,
    /// How many events of the record there were.
    pub point: usize,
    /// The files that lack what was synced.
    pub harmed: &'a [String],
    notes: &'a [String],
}

impl Cut<'_> {
    /// Whether the manifest of RocksDB ends in what lay on the disk before, where an entry was being
    /// written. RocksDB does not start then, even of an honest disk; the next entry comes seldom,
    /// and file systems that keep their writes in order show no such bytes.
    pub fn has_garbage_in_manifest(&self) -> bool {
        self.notes.iter().any(|note| note.contains("/MANIFEST-") && note.contains(": Garbage"))
    }
}

impl Trial {
    /// `SMALTI_CUTS` images, or 200, of the seed `SMALTI_CUT_SEED`, or a new one.
    ///
    /// # Panics
    /// When the environment says something that is no number.
    pub fn new(name: &'static str, mode: Mode) -> Self {
        let number = |name| {
            let text = std::env::var(name).ok()?;
            Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
        };
        let images = number(IMAGES_ENV).map_or(IMAGES, |images| images as usize);
        // The standard library's only source of randomness.
        let seed = number(SEED_ENV).unwrap_or_else(|| RandomState::new().hash_one(0) >> 16);
        Self { name, mode, seed, images, tally: BTreeMap::new() }
    }

    /// Makes records and images, and has each image checked; the answer says how it came out.
    ///
    /// # Panics
    /// When a check does: it says then which seed it was, and leaves the image where it can be
    /// looked at.
    pub fn run(
        mut self,
        record: impl Fn(u64) -> Record,
        check: impl Fn(Cut<'_>) -> String,
    ) -> BTreeMap<String, usize> {
        let mut draw = Draw::new(self.seed);
        let mut left = self.images;
        while left > 0 {
            let of = draw.any();
            let record = (of, record(of));
            let images = left.min(IMAGES_PER_RECORD);
            left -= images;
            let mut points: Vec<usize> = (0..images).map(|_| point(&record.1, &mut draw)).collect();
            points.sort_unstable();
            let mut disk = Disk::default();
            for point in points {
                disk.advance(&record.1, point);
                self.one(&record, point, &disk, draw.any(), &check);
            }
        }
        let Self { name, seed, images, tally, .. } = self;
        eprintln!("{name}: {images} images of seed {seed}: {tally:?}");
        tally
    }

    fn again(&self) -> String {
        let Self { name, seed, images, .. } = self;
        format!("{name} ({SEED_ENV}={seed} {IMAGES_ENV}={images})")
    }

    fn one(
        &mut self,
        (workload, record): &(u64, Record),
        point: usize,
        disk: &Disk,
        seed: u64,
        check: &impl Fn(Cut<'_>) -> String,
    ) {
        let image = disk.image(seed, self.mode);
        let folder = scratch().expect("a folder for an image");
        image.write(folder.path()).expect("the image is written");
        let _ends =
            Ends::within(LIMIT, format!("{} of event {point}: {:?}", self.again(), image.notes));
        let cut = Cut {
            workload: *workload,
            folder: folder.path(),
            record,
            point,
            harmed: &image.harmed,
            notes: &image.notes,
        };
        match catch_unwind(AssertUnwindSafe(|| check(cut))) {
            Ok(outcome) => *self.tally.entry(outcome).or_default() += 1,
            Err(panic) => {
                let kept = tempfile::Builder::new().prefix("smalti-cut-").tempdir();
                let kept = kept.expect("a folder for the image").keep();
                image.write(&kept).expect("the image is written");
                let (end, kept) = (record.events.len(), kept.display());
                eprintln!("{} failed at event {point} of {end}: {kept}", self.again());
                image.notes.iter().for_each(|note| eprintln!("  {note}"));
                resume_unwind(panic);
            }
        }
    }
}

/// Ends the process if it is not dropped in time: a thread that reads for ever can not be ended.
struct Ends {
    done: Arc<AtomicBool>,
}

impl Ends {
    fn within(limit: Duration, what: String) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&done);
        let start = Instant::now();
        std::thread::spawn(move || {
            while !ended.load(Ordering::Acquire) {
                if start.elapsed() > limit {
                    eprintln!("{what}: does not end within {limit:?}");
                    std::process::abort();
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Self { done }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
    }
}

/// A point to cut at: any, or one near a change of names, where few events decide much.
fn point(record: &Record, draw: &mut Draw) -> usize {
    let end = record.events.len();
    if draw.chance(60) {
        return draw.between(0, end);
    }
    let changes: Vec<usize> = (0..end)
        .filter(|at| {
            matches!(
                record.events[*at],
                Event::MakeDir { .. } | Event::Rename { .. } | Event::Unlink { .. }
            )
        })
        .collect();
    if changes.is_empty() {
        return draw.between(0, end);
    }
    (draw.pick(&changes) + draw.below(20)).saturating_sub(8).min(end)
}
