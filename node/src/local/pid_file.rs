//! The pid file of a node: locked for as long as the node runs, so it also says whether it does.

use crate::files;
use anyhow::{Context, bail};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A killed process may take a moment to give up its lock, and a look at the lock holds it shortly.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The lock on a node's data folder. Given up when dropped or when the process ends.
#[derive(Debug)]
pub struct PidFile(File);

impl PidFile {
    /// Takes the lock and puts this process's id in the file. Blocks for up to five seconds.
    ///
    /// # Errors
    /// Another process runs the node, or the file can not be made.
    pub fn acquire(data_dir: &Path) -> anyhow::Result<Self> {
        let path = path(data_dir);
        let failed = || format!("lock {}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(files::PUBLIC)
            .open(&path)
            .with_context(failed)?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        while !try_lock(&file).with_context(failed)? {
            if Instant::now() >= deadline {
                let pid = read_pid(&mut file).map_or("unknown".into(), |pid| pid.to_string());
                bail!("{} is in use by another process ({pid})", data_dir.display());
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        // Never empty on the way: that would say that this process has ended in order.
        let write = |file: &mut File| -> std::io::Result<()> {
            let line = format!("{}\n", std::process::id());
            file.rewind()?;
            file.write_all(line.as_bytes())?;
            file.set_len(line.len() as u64)
        };
        write(&mut file).with_context(|| format!("write {}", path.display()))?;
        Ok(Self(file))
    }

    /// Gives the lock up, and leaves the file empty for a sign that the node has ended in order.
    ///
    /// # Errors
    /// The file can not be written.
    pub fn leave(self) -> anyhow::Result<()> {
        self.0.set_len(0).context("empty the node's pid file")
    }

    /// Whether the last process of the node ended in order, if none runs.
    pub fn was_left(data_dir: &Path) -> bool {
        fs::metadata(path(data_dir)).is_ok_and(|file| file.len() == 0)
    }

    /// The process that runs the node with that data folder, if one does. A process that has only
    /// just taken the lock is given five seconds to say who it is; blocks for as long.
    ///
    /// # Errors
    /// The file can not be read, or is locked by a process that has not put its id in it.
    pub fn holder(data_dir: &Path) -> anyhow::Result<Option<u32>> {
        let path = path(data_dir);
        let look = || -> anyhow::Result<Option<u32>> {
            let mut file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let deadline = Instant::now() + LOCK_TIMEOUT;
            while !try_lock(&file)? {
                // Until the holder has written its id the file is empty or names an earlier one.
                let lives = |pid: &u32| Path::new("/proc").join(pid.to_string()).exists();
                if let Some(pid) = read_pid(&mut file).filter(lives) {
                    return Ok(Some(pid));
                }
                if Instant::now() >= deadline {
                    bail!("its holder has not put its id in it");
                }
                std::thread::sleep(LOCK_PAUSE);
            }
            Ok(None)
        };
        look().with_context(|| format!("look at {}", path.display()))
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("node.pid")
}

fn try_lock(file: &File) -> std::io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Whether a process is `... serve --config CONFIG`, by whatever path that leads to the same file. A process
/// that has ended, even if nobody has asked for its status yet, has no command line.
pub(super) fn is_node(pid: u32, config_path: &Path) -> bool {
    let Ok(cmdline) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut words = cmdline.split(|byte| *byte == 0).skip(1).map(OsStr::from_bytes);
    if words.next() != Some(OsStr::new("serve")) {
        return false;
    }
    let named = match words.next().map(OsStr::as_bytes) {
        Some(b"--config") => words.next(),
        Some(word) => word.strip_prefix(b"--config=").map(OsStr::from_bytes),
        None => None,
    };
    named.is_some_and(|named| {
        let from = fs::read_link(format!("/proc/{pid}/cwd"));
        let leads_there = |from: PathBuf| is_same_file(&from.join(named), config_path);
        Path::new(named) == config_path || from.is_ok_and(leads_there)
    })
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// Whether a process has ended or is about to: it has no command line any more, and its files may still
/// be open.
pub(super) fn is_ending(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|cmdline| cmdline.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_holder_is_known_while_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(PidFile::holder(dir.path()).unwrap(), None);
        let held = PidFile::acquire(dir.path()).unwrap();
        assert_eq!(PidFile::holder(dir.path()).unwrap(), Some(std::process::id()));
        drop(held);
        assert_eq!(PidFile::holder(dir.path()).unwrap(), None);
        assert!(!PidFile::was_left(dir.path()));
        PidFile::acquire(dir.path()).unwrap().leave().unwrap();
        assert_eq!(PidFile::holder(dir.path()).unwrap(), None);
        assert!(PidFile::was_left(dir.path()));
        let held = PidFile::acquire(dir.path()).unwrap();
        assert!(!PidFile::was_left(dir.path()));
        drop(held);
    }

    #[test]
    fn a_holder_that_is_late_to_say_who_it_is_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        for before in ["", "4194305\n"] {
            let mut file = File::create(path(dir.path())).unwrap();
            file.write_all(before.as_bytes()).unwrap();
            assert!(try_lock(&file).unwrap());
            let asked = std::thread::scope(|scope| {
                let asking = scope.spawn(|| PidFile::holder(dir.path()));
                std::thread::sleep(3 * LOCK_PAUSE);
                file.set_len(0).unwrap();
                file.rewind().unwrap();
                writeln!(file, "{}", std::process::id()).unwrap();
                asking.join().unwrap()
            });
            assert_eq!(asked.unwrap(), Some(std::process::id()));
        }
    }

    #[test]
    fn a_second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _held = PidFile::acquire(dir.path()).unwrap();
        let error = PidFile::acquire(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("({})", std::process::id())), "{error}");
    }

    #[test]
    fn only_the_very_node_is_taken_for_it() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read x; exit", "serve", "--config", "/a"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert!(!is_node(child.id(), Path::new("/a")));
        let until = |ending: bool| {
            let deadline = Instant::now() + LOCK_TIMEOUT;
            while is_ending(child.id()) != ending {
                assert!(Instant::now() < deadline, "ending {ending}");
                std::thread::sleep(LOCK_PAUSE);
            }
        };
        // It has no command line either while it is being started.
        until(false);
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        // Nobody has asked for its status.
        until(true);
        child.wait().unwrap();
        assert!(!is_ending(child.id()), "there is no such process");
        assert!(!is_node(child.id(), Path::new("/a")));
        assert!(!is_node(std::process::id(), Path::new("/a")));
    }

    #[test]
    fn a_node_is_known_by_whatever_path_its_config_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (config, other) = (dir.path().join("node.toml"), dir.path().join("other.toml"));
        File::create(&config).unwrap();
        File::create(&other).unwrap();
        // A script of that name has the command line of a node, and waits to be killed.
        fs::write(dir.path().join("serve"), "read x\n").unwrap();
        let whole = format!("--config={}", config.display());
        for words in [&["--config", "node.toml"][..], &["--config=./node.toml"], &[&whole]] {
            let mut child = std::process::Command::new("sh")
                .arg("serve")
                .args(words)
                .current_dir(dir.path())
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + LOCK_TIMEOUT;
            while is_ending(child.id()) && Instant::now() < deadline {
                std::thread::sleep(LOCK_PAUSE);
            }
            let known = is_node(child.id(), &config);
            let mistaken = is_node(child.id(), &other);
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(known && !mistaken, "{words:?}");
        }
    }
}
