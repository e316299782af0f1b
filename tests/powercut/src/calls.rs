//! Each call that changes something fails once, in a process of its own.

use crate::disk::Disk;
use crate::image::Mode;
use crate::scratch;
use crate::watch::{Fault, Kind, Watch};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const FOLDER: &str = "SMALTI_FAULTS_FOLDER";
const FAULT: &str = "SMALTI_FAULTS_FAULT";
/// Set: every call is let fail, not a sample.
const ALL: &str = "SMALTI_FAULTS_ALL";
const SAMPLE: u64 = 40;
/// What the process worked in, and what a power cut at its end leaves of that.
const LIVE: &str = "live";
const CUT: &str = "cut";

/// How a disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// One call fails, the next ones pass.
    Once,
    /// From one call on all fail.
    Gone,
    /// From one call on there is no space.
    Full,
    /// One write takes only half of its bytes, and says so.
    Short,
}

impl Failing {
    const ALL: [Self; 4] = [Self::Once, Self::Gone, Self::Full, Self::Short];

    fn name(self) -> &'static str {
        match self {
            Self::Once => "eio",
            Self::Gone => "gone",
            Self::Full => "full",
            Self::Short => "short",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Once => Kind::Once(libc::EIO),
            Self::Gone => Kind::Forever(libc::EIO),
            Self::Full => Kind::Forever(libc::ENOSPC),
            Self::Short => Kind::Short,
        }
    }
}

/// What a process with a failing disk said.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// The marks it set, in order.
    pub marks: Vec<u64>,
    /// The error it stopped with, if it did.
    pub stopped: Option<String>,
    /// The call that failed, if there was one.
    pub hit: Option<String>,
    calls: u64,
}

/// The tests of a store on a failing disk: one for each way to fail, and `process_with_a_failing_disk`,
/// which they start as a process. `$work` is what [`child`] does there, `$check` answers what
/// [`each`] has checked afterwards.
#[macro_export]
macro_rules! failing_disks {
    ($name:literal, $work:expr, $check:expr) => {
        #[test]
        fn process_with_a_failing_disk() {
            $crate::child($work);
        }

        fn each_call(failing: $crate::Failing) {
            // As the test harness calls it: without the crate.
            let (_, here) = module_path!().split_once("::").expect("a module");
            let child = format!("{here}::process_with_a_failing_disk");
            $crate::each($name, &child, failing, $check);
        }

        #[test]
        fn a_call_that_fails_once_loses_nothing() {
            each_call($crate::Failing::Once);
        }

        #[test]
        fn a_disk_that_goes_away_loses_nothing() {
            each_call($crate::Failing::Gone);
        }

        #[test]
        fn a_disk_that_fills_up_loses_nothing() {
            each_call($crate::Failing::Full);
        }

        #[test]
        fn a_short_write_loses_nothing() {
            each_call($crate::Failing::Short);
        }
    };
}

/// To be called by a test that the others start as a process: works below a folder, sets marks
/// and answers the error it stopped with. Does nothing when the test is run like any other.
///
/// # Panics
/// When the process can not do its part; the test that started it notices.
pub fn child(work: impl FnOnce(&Path, &dyn Fn(u64)) -> Result<(), String>) {
    let (Some(folder), Ok(fault)) = (std::env::var_os(FOLDER), std::env::var(FAULT)) else {
        return;
    };
    let folder = Path::new(&folder);
    let (name, nth) = fault.split_once(' ').expect("kind and number");
    let failing = Failing::ALL.into_iter().find(|failing| failing.name() == name);
    let nth = nth.parse().expect("a number");
    let watch = Watch::begin(&folder.join(LIVE)).expect("watched");
    watch.fail(Fault { nth, kind: failing.expect("a kind").kind() });
    let say = |line: &str| {
        // A line of its own, whatever the test harness has written before.
        writeln!(std::io::stdout(), "\n{line}").expect("the parent reads");
    };
    let result = work(&folder.join(LIVE), &|mark| say(&format!("mark {mark}")));
    if let Err(error) = result {
        say(&format!("stopped {error}"));
    }
    say(&format!("calls {}", watch.calls()));
    if let Some(hit) = watch.hit() {
        say(&format!("hit {hit}"));
    }
    let record = watch.record();
    drop(watch);
    let left = Disk::after(&record, record.events.len()).image(nth, Mode::Honest);
    left.write(&folder.join(CUT)).expect("the image is written");
}

/// Starts the test `child` as a process once for every call of its work, or for every so many,
/// lets that call fail, and has what is left checked: the folder as it is, and what a power cut
/// leaves of it. Goes on until there is no such call.
///
/// # Panics
/// When a check does, or a process fails instead of saying what happened.
pub fn each(name: &str, child: &str, failing: Failing, check: impl Fn(&Path, &Said)) {
    let whole = scratch().expect("a folder");
    let said = run(whole.path(), child, failing, u64::MAX);
    assert_eq!((said.stopped, said.hit), (None, None), "without a fault");
    let step = if std::env::var_os(ALL).is_some() { 1 } else { SAMPLE };
    // Another sample each time.
    let mut nth = 1 + u64::from(std::process::id()) % step;
    let (mut failed, mut stopped) = (0, 0);
    let mut survived: BTreeMap<String, u32> = BTreeMap::new();
    loop {
        let folder = scratch().expect("a folder");
        let said = run(folder.path(), child, failing, nth);
        // Threads take turns, so their number is not always the same.
        let Some(hit) = said.hit.clone() else { break };
        failed += 1;
        match &said.stopped {
            Some(why) => {
                assert!(!why.is_empty() && !why.contains('\n'), "{nth}, {hit}: {why}");
                stopped += 1;
            }
            None => {
                // What an acknowledgement waits for. A sync in the background is noticed with the
                // next change, and there may be none.
                let vital = hit.starts_with("fdatasync ")
                    && (hit.ends_with(".log") || hit.ends_with("/WITNESS"));
                let passes = failing == Failing::Short;
                assert!(passes || !vital, "{name}: {hit} failed, and it went on");
                let call = hit.chars().filter(|c| !c.is_ascii_digit()).collect();
                *survived.entry(call).or_default() += 1;
            }
        }
        for left in [LIVE, CUT] {
            eprintln!("{name}, {failing:?} {nth}, {hit}, {left}: {:?}", said.stopped);
            check(&folder.path().join(left), &said);
        }
        nth += step;
    }
    eprintln!(
        "{name}, {failing:?}: {failed} of {} calls failed, {stopped} stopped it; it did without \
         {survived:?}",
        said.calls
    );
    assert!(failed > 0, "no call was met");
    assert_eq!(stopped > 0, failing != Failing::Short, "a short write stops nobody, all else does");
}

fn run(folder: &Path, child: &str, failing: Failing, nth: u64) -> Said {
    for name in [LIVE, CUT] {
        std::fs::create_dir(folder.join(name)).expect("a folder");
    }
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", child, "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .env(FAULT, format!("{} {nth}", failing.name()))
        .stdin(Stdio::null())
        .output()
        .expect("the child starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{failing:?} {nth}: {}\n{text}\n{errors}", output.status);
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let mut said = Said::default();
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("mark", mark)) => said.marks.push(number(mark)),
            Some(("stopped", why)) => said.stopped = Some(why.to_owned()),
            Some(("calls", calls)) => said.calls = number(calls),
            Some(("hit", hit)) => said.hit = Some(hit.to_owned()),
            _ => {}
        }
    }
    assert!(said.calls > 0, "it did nothing: {text}\n{errors}");
    said
}
