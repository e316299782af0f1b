//! The log file of a node process: opened for it, kept from growing without end, quoted when the
//! node ends too early.

use anyhow::Context;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// At a start, a log larger than this becomes `node.log.1`, in place of an older one.
const LOG_BYTES_MAX: u64 = 16 << 20;
const TAIL_BYTES: u64 = 8 << 10;
const TAIL_LINES: usize = 3;

/// A log, and where in it the newest start begins.
#[derive(Debug)]
pub(super) struct NodeLog {
    path: PathBuf,
    begin: u64,
}

impl NodeLog {
    pub(super) fn open(path: PathBuf) -> anyhow::Result<(Self, File)> {
        let open = || -> std::io::Result<(u64, File)> {
            if fs::metadata(&path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
                fs::rename(&path, path.with_extension("log.1"))?;
            }
            let file = OpenOptions::new().append(true).create(true).open(&path)?;
            Ok((file.metadata()?.len(), file))
        };
        let (begin, file) = open().with_context(|| format!("open log {}", path.display()))?;
        Ok((Self { path, begin }, file))
    }

    /// The last lines since the newest start, on one line.
    pub(super) fn tail(&self) -> String {
        let quoted = match read_tail(&self.path, self.begin) {
            Ok(text) => {
                let lines: Vec<_> =
                    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
                lines[lines.len().saturating_sub(TAIL_LINES)..].join(" | ")
            }
            Err(error) => {
                return format!("its log {} can not be read: {error}", self.path.display());
            }
        };
        if quoted.is_empty() {
            format!("its log {} has nothing", self.path.display())
        } else {
            format!("its log {} ends: {quoted}", self.path.display())
        }
    }
}

fn read_tail(path: &Path, begin: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(begin.max(length.saturating_sub(TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::io::Write;

    #[test]
    fn only_the_newest_start_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.log");
        fs::write(&path, "old\n").unwrap();
        let (log, mut file) = NodeLog::open(path).unwrap();
        assert!(log.tail().ends_with("has nothing"), "{}", log.tail());
        file.write_all(b"a\nb\n\nc\nd\n").unwrap();
        assert!(log.tail().ends_with("ends: b | c | d"), "{}", log.tail());
    }

    #[test]
    fn a_large_log_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.log");
        File::create(&path).unwrap().set_len(LOG_BYTES_MAX + 1).unwrap();
        NodeLog::open(path.clone()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(fs::metadata(dir.path().join("node.log.1")).unwrap().len(), LOG_BYTES_MAX + 1);
    }
}
