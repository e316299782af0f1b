//! A descriptor's number is given out again, and what it stood for is another file then.
#![expect(unsafe_code, reason = "closes as programs of C do, past the calls that are recorded")]

use smalti_powercut::{Disk, Event, Watch, scratch};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::path::Path;
use std::thread;

/// Closes a file as RocksDB closes what it reads from the beginning to the end: a stream's close
/// goes past the program's own `close`.
fn close_as_stream(file: File) {
    let fd = file.into_raw_fd();
    // SAFETY: a descriptor of our own, which the stream takes.
    let stream = unsafe { libc::fdopen(fd, c"r".as_ptr()) };
    assert!(!stream.is_null(), "a stream");
    // SAFETY: the stream was made above and is used no more.
    assert_eq!(unsafe { libc::fclose(stream) }, 0);
}

#[test]
fn a_number_given_out_again_is_not_the_old_file() {
    let (folder, other) = (scratch().expect("a folder"), scratch().expect("a folder"));
    let watch = Watch::begin(folder.path()).expect("watched");
    fs::write(folder.path().join("a"), "right").expect("written");
    let a = File::open(folder.path().join("a")).expect("opened");
    // The number stays taken, so that nobody else gets it in between.
    let number = a.as_raw_fd();
    let b = File::create(other.path().join("b")).expect("made");
    // SAFETY: both are open; what was open as `a` is closed by that.
    assert_eq!(unsafe { libc::dup2(b.as_raw_fd(), number) }, number);
    (&a).write_all(b"wrong").expect("written");
    assert_eq!(fs::read(other.path().join("b")).expect("read"), b"wrong");
    let record = watch.record();
    let seen = Disk::after(&record, record.events.len()).seen();
    assert_eq!(seen["a"], b"right");
}

#[test]
fn a_second_number_of_a_file_is_the_file() {
    let folder = scratch().expect("a folder");
    let watch = Watch::begin(folder.path()).expect("watched");
    let mut a = File::create(folder.path().join("a")).expect("made");
    // SAFETY: it is open, and whoever gets the number owns it.
    let number = unsafe { libc::fcntl(a.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
    // SAFETY: the number is nobody else's.
    let mut again = unsafe { File::from_raw_fd(number) };
    a.write_all(b"one ").expect("written");
    drop(a);
    again.write_all(b"two").expect("written");
    again.sync_all().expect("synced");
    let record = watch.record();
    assert_eq!(Disk::after(&record, record.events.len()).seen()["a"], b"one two");
    assert!(matches!(record.events.last(), Some(Event::Sync { .. })), "{:?}", record.events);
}

#[test]
fn a_file_in_place_of_a_removed_one_is_another() {
    let (folder, other) = (scratch().expect("a folder"), scratch().expect("a folder"));
    let watch = Watch::begin(folder.path()).expect("watched");
    for no in 0..200 {
        let name = folder.path().join("a");
        fs::write(&name, [no]).expect("written");
        if no % 2 == 0 {
            fs::remove_file(&name).expect("removed");
        } else {
            fs::rename(&name, folder.path().join("b")).expect("renamed");
        }
        // File systems give the numbers of removed files out again.
        fs::write(other.path().join("c"), [77; 9]).expect("written");
        fs::remove_file(other.path().join("c")).expect("removed");
    }
    let record = watch.record();
    let seen = Disk::after(&record, record.events.len()).seen();
    assert_eq!(seen, BTreeMap::from([("b".to_owned(), vec![199])]));
}

/// Makes, writes and removes files; every way to give a descriptor back is among them.
fn be_busy(folder: &Path) {
    for round in 0..500_u32 {
        let name = folder.join((round % 7).to_string());
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let mut file = options.open(&name).expect("made");
        file.write_all(&round.to_be_bytes()).expect("written");
        let mut again = file.try_clone().expect("cloned");
        drop(file);
        again.write_all(b"more").expect("written");
        close_as_stream(again);
        close_as_stream(File::open(&name).expect("opened"));
        assert!(fs::read_dir(folder).expect("a folder").count() > 0);
        if round % 3 == 0 {
            fs::remove_file(&name).expect("removed");
        }
    }
}

#[test]
fn threads_beside_a_watched_folder_are_not_in_its_record() {
    let others = [(); 3].map(|()| scratch().expect("a folder"));
    let watched = [(); 2].map(|()| scratch().expect("a folder"));
    let watches = watched.each_ref().map(|folder| Watch::begin(folder.path()).expect("watched"));
    thread::scope(|scope| {
        for folder in others.iter().chain(&watched) {
            scope.spawn(|| be_busy(folder.path()));
        }
    });
    for (folder, watch) in watched.iter().zip(&watches) {
        let record = watch.record();
        let seen = Disk::after(&record, record.events.len()).seen();
        let files = fs::read_dir(folder.path()).expect("a folder").map(|file| {
            let file = file.expect("a file");
            let name = file.file_name().into_string().expect("text");
            (name, fs::read(file.path()).expect("read"))
        });
        assert_eq!(seen, files.collect());
    }
}
