use super::*;
use rocksdb::{DB, FlushOptions};
use std::thread;
use std::time::{Duration, Instant};

const VALUE: usize = 4 << 10;
const VALUES: u32 = 512;

fn filled(pace: &Arc<Pace>) -> (tempfile::TempDir, DB) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_disable_auto_compactions(true);
    options.set_compression_type(rocksdb::DBCompressionType::None);
    limit_compactions(&mut options, pace);
    let db = DB::open(&options, folder.path()).expect("it opens");
    for round in 0..2_u8 {
        for no in 0..VALUES {
            db.put(no.to_be_bytes(), vec![round; VALUE]).expect("put");
        }
        db.flush_opt(&FlushOptions::default()).expect("flush");
    }
    (folder, db)
}

fn compact(db: &DB) -> Duration {
    let begun = Instant::now();
    db.compact_range(None::<&[u8]>, None::<&[u8]>);
    begun.elapsed()
}

#[test]
fn compactions_wait_and_buffers_do_not() {
    let pace = Arc::new(Pace::default());
    pace.set(Some(0));
    // Two buffers are written out meanwhile.
    let (_folder, db) = filled(&pace);
    assert_eq!(pace.wanted(), 0, "buffers have to pass");
    pace.set(Some(4 << 20));
    // 2 MiB at 4 MiB a second.
    let took = compact(&db);
    assert!(pace.wanted() >= u64::from(VALUES) * VALUE as u64, "{}", pace.wanted());
    assert!(took >= Duration::from_millis(400), "{took:?}");
}

#[test]
fn what_is_held_goes_on_when_the_rate_changes_or_is_forgotten() {
    let pace = Arc::new(Pace::default());
    let (_folder, db) = filled(&pace);
    pace.set(Some(0));
    thread::scope(|scope| {
        let compaction = scope.spawn(|| compact(&db));
        while pace.wanted() == 0 {
            thread::yield_now();
        }
        assert!(!compaction.is_finished());
        pace.set(None);
        compaction.join().expect("it ends");
    });
    // Nobody says anything any more.
    pace.set(Some(0));
    db.put(1_u32.to_be_bytes(), vec![2; VALUE]).expect("put");
    db.flush_opt(&FlushOptions::default()).expect("flush");
    let took = compact(&db);
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(30), "{took:?}");
}

#[test]
fn the_pace_is_let_go_with_the_last_database() {
    let pace = Arc::new(Pace::default());
    let (_folder, db) = filled(&pace);
    assert!(Arc::strong_count(&pace) > 1);
    drop(db);
    assert_eq!(Arc::strong_count(&pace), 1);
}
