//! The record is complete, and images keep the promises of the crate.

use smalti_powercut::{Disk, Draw, Event, Fault, Kind, Mode, Record, Watch, scratch};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Writes in all ways there are; ends with one synced file, `b`, and one that is not, `c`.
fn write_all_ways(folder: &Path) -> io::Result<()> {
    let mut a = File::create(folder.join("a"))?;
    a.write_all(b"one ")?;
    let pieces = [IoSlice::new(b"two"), IoSlice::new(b""), IoSlice::new(b" three")];
    let taken = a.write_vectored(&pieces)?;
    a.write_all(&b"two three"[taken..])?;
    a.write_all_at(b"ONE", 0)?;
    a.seek(SeekFrom::Start(20))?;
    a.write_all(b"after a hole")?;
    a.set_len(30)?;
    a.sync_data()?;
    fs::rename(folder.join("a"), folder.join("b"))?;
    sync_folder(folder)?;
    fs::create_dir(folder.join("sub"))?;
    let mut c = OpenOptions::new().append(true).create(true).open(folder.join("sub/c"))?;
    c.write_all(&[7; 9000])?;
    c.write_all(&[8; 9000])?;
    fs::write(folder.join("gone"), "soon")?;
    fs::remove_file(folder.join("gone"))
}

fn recorded() -> (TempDir, Record) {
    let folder = scratch().expect("a folder");
    let watch = Watch::begin(folder.path()).expect("watched");
    write_all_ways(folder.path()).expect("written");
    let record = watch.record();
    (folder, record)
}

#[test]
fn a_record_has_all_that_was_written() {
    let (folder, record) = recorded();
    let seen = Disk::after(&record, record.events.len()).seen();
    let names: Vec<&str> = seen.keys().map(String::as_str).collect();
    assert_eq!(names, ["b", "sub/c"]);
    for (name, content) in seen {
        assert_eq!(fs::read(folder.path().join(&name)).expect("a file"), content, "{name}");
    }
    let syncs = |event: &&Event| matches!(event, Event::Sync { .. } | Event::SyncDir { .. });
    assert_eq!(record.events.iter().filter(syncs).count(), 2);
}

#[test]
fn a_call_fails_by_its_name_after_others() {
    let folder = scratch().expect("a folder");
    let watch = Watch::begin(folder.path()).expect("watched");
    let write = |name: &str| {
        let mut file = File::create(folder.path().join(name))?;
        file.write_all(b"some")?;
        file.sync_data()
    };
    watch.fail_after(&["open b", "fdatasync a"], Duration::from_millis(20));
    write("a1").expect("nobody has opened b yet");
    write("b").expect("not the call that is to fail");
    assert_eq!(watch.hit(), None);
    let start = Instant::now();
    assert_eq!(write("a2").expect_err("fails").raw_os_error(), Some(libc::EIO));
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert_eq!(watch.hit().as_deref(), Some("fdatasync a2"));
    write("a3").expect("once only");
}

#[test]
fn nothing_is_recorded_of_other_folders_or_later() {
    let folder = scratch().expect("a folder");
    let other = scratch().expect("a folder");
    let watch = Watch::begin(folder.path()).expect("watched");
    write_all_ways(other.path()).expect("written");
    assert_eq!(watch.record().events, []);
    drop(watch);
    write_all_ways(folder.path()).expect("written");
    assert!(Watch::begin(folder.path()).is_err(), "it is not empty any more");
}

#[test]
fn honest_images_keep_what_was_synced() {
    let (_folder, record) = recorded();
    let disk = Disk::after(&record, record.events.len());
    let b = disk.seen()["b"].clone();
    let mut lens = std::collections::BTreeSet::new();
    let (mut without, mut torn) = (0, 0);
    for seed in 0..500 {
        let image = disk.image(seed, Mode::Honest);
        assert_eq!(image.file("b"), Some(b.as_slice()), "seed {seed}");
        assert_eq!(image.file("a"), None, "seed {seed}: the rename was durable");
        match image.file("sub/c") {
            None => without += 1,
            Some(bytes) => {
                lens.insert(bytes.len());
                let whole =
                    bytes.iter().zip(0..).all(|(byte, at)| *byte == 7 + u8::from(at >= 9000));
                torn += u32::from(!whole);
            }
        }
    }
    assert!(without > 50 && torn > 20 && lens.len() > 50, "{without} {torn} {}", lens.len());
    assert!(lens.contains(&0) && lens.contains(&18_000), "both ends happen");
}

#[test]
fn an_image_is_a_function_of_its_seed() {
    let (_folder, record) = recorded();
    for seed in 0..50 {
        let point = Draw::new(seed).below(record.events.len() + 1);
        let make = || Disk::after(&record, point).image(seed, Mode::Lying);
        assert_eq!(format!("{:?}", make()), format!("{:?}", make()));
    }
}

#[test]
fn a_lying_image_lacks_what_was_synced() {
    let (_folder, record) = recorded();
    let disk = Disk::after(&record, record.events.len());
    for seed in 0..200 {
        let image = disk.image(seed, Mode::Lying);
        assert_eq!(image.harmed[0], "b", "only that was synced");
        assert!(image.file("b").is_none_or(|bytes| bytes.len() < 30), "seed {seed}");
    }
}

#[test]
fn after_each_event_the_rename_happened_or_not() {
    let (_folder, record) = recorded();
    for point in 0..=record.events.len() {
        let disk = Disk::after(&record, point);
        for seed in 0..40 {
            let image = disk.image(seed, Mode::Honest);
            assert!(image.file("a").is_none() || image.file("b").is_none());
            let folder = scratch().expect("a folder");
            image.write(folder.path()).expect("written");
        }
    }
}

#[test]
fn the_nth_call_fails_as_told() {
    let run = |fault: Option<Fault>| {
        let folder = scratch().expect("a folder");
        let watch = Watch::begin(folder.path()).expect("watched");
        fault.inspect(|fault| watch.fail(*fault));
        let result = write_all_ways(folder.path());
        (result.map_err(|error| error.raw_os_error()), watch.calls(), watch.hit())
    };
    let (result, calls, hit) = run(None);
    assert_eq!((result, hit), (Ok(()), None));
    assert!(calls > 15, "{calls}");
    for kind in [Kind::Once(libc::EIO), Kind::Forever(libc::ENOSPC)] {
        let error = if let Kind::Once(error) | Kind::Forever(error) = kind { error } else { 0 };
        for nth in 1..=calls {
            let (result, _, hit) = run(Some(Fault { nth, kind }));
            assert_eq!(result, Err(Some(error)), "{hit:?}");
            assert!(hit.is_some());
        }
    }
    // Whoever writes takes a short write for what it is.
    for nth in 1..=calls {
        let (result, _, hit) = run(Some(Fault { nth, kind: Kind::Short }));
        assert_eq!(result, Ok(()), "{hit:?}");
    }
}

#[test]
fn what_a_failed_sync_was_for_need_not_be_there_after_the_next() {
    let folder = scratch().expect("a folder");
    let watch = Watch::begin(folder.path()).expect("watched");
    let mut file = File::create(folder.path().join("log")).expect("made");
    sync_folder(folder.path()).expect("synced");
    file.write_all(b"first ").expect("written");
    file.sync_data().expect("synced");
    watch.fail(Fault { nth: watch.calls() + 2, kind: Kind::Once(libc::EIO) });
    file.write_all(b"second ").expect("written");
    assert_eq!(file.sync_data().map_err(|error| error.raw_os_error()), Err(Some(libc::EIO)));
    file.write_all(b"third").expect("written");
    file.sync_data().expect("the next one passes");
    let record = watch.record();
    let disk = Disk::after(&record, record.events.len());
    let contents: std::collections::BTreeSet<Vec<u8>> = (0..99)
        .map(|seed| disk.image(seed, Mode::Honest).file("log").expect("there").into())
        .collect();
    assert!(contents.contains(b"first \0\0\0\0\0\0\0third".as_slice()), "{contents:?}");
    assert!(
        contents
            .iter()
            .all(|content| content.starts_with(b"first ") && content.ends_with(b"third"))
    );
}
