//! Running other programs: always with a time limit, never through an inherited pipe.
//!
//! Output goes to unlinked temporary files and not through pipes, because `smalti up --detach`
//! leaves node processes behind which would hold a pipe open for ever.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How often a condition is looked at while waiting for it.
pub const POLL: Duration = Duration::from_millis(20);

/// What a finished program left.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, invalid UTF-8 replaced.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Output {
    /// Standard output if the program exited with 0, else an error with the end of its output.
    ///
    /// # Errors
    /// When the exit status is not 0.
    pub fn ok(self) -> Result<String> {
        ensure!(
            self.status.success(),
            "`{}` ended with {}\n{}\n{}",
            self.line,
            self.status,
            tail(&self.stdout, 20),
            tail(&self.stderr, 20)
        );
        Ok(self.stdout)
    }

    /// The exit code, or -1 when a signal ended the program.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

/// The last `lines` lines of a text.
#[must_use]
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The command as one would type it.
#[must_use]
pub fn line_of(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// A started program whose output is being collected.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Child,
    stdout: File,
    stderr: File,
    started: Instant,
}

/// Starts `command` with its output collected and no input.
///
/// # Errors
/// When it cannot be started.
pub fn start(command: &mut Command) -> Result<Running> {
    let line = line_of(command);
    let stdout = tempfile::tempfile().context("make a file for output")?;
    let stderr = tempfile::tempfile().context("make a file for output")?;
    let child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .with_context(|| format!("start `{line}`"))?;
    Ok(Running { line, child, stdout, stderr, started: Instant::now() })
}

impl Running {
    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the program is still going.
    ///
    /// # Errors
    /// When its state cannot be asked.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// How long ago it was started.
    #[must_use]
    pub fn ran(&self) -> Duration {
        self.started.elapsed()
    }

    /// What it has printed on standard output so far.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn stdout_so_far(&mut self) -> Result<String> {
        read_all(&mut self.stdout)
    }

    /// The same of its standard error.
    ///
    /// # Errors
    /// When it can not be read.
    pub fn stderr_so_far(&mut self) -> Result<String> {
        read_all(&mut self.stderr)
    }

    /// Waits for the end; kills the program when `limit` has passed since its start.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn wait(mut self, limit: Duration) -> Result<Output> {
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if self.started.elapsed() > limit {
                self.child.kill()?;
                self.child.wait()?;
                bail!(
                    "`{}` did not end within {limit:?}\n{}\n{}",
                    self.line,
                    tail(&read_all(&mut self.stdout)?, 20),
                    tail(&read_all(&mut self.stderr)?, 20)
                );
            }
            std::thread::sleep(POLL);
        };
        let (stdout, stderr) = (read_all(&mut self.stdout)?, read_all(&mut self.stderr)?);
        Ok(Output {
            line: std::mem::take(&mut self.line),
            status,
            stdout,
            stderr,
            took: self.started.elapsed(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // A program left behind by a failing test must not outlive it; that it ended by
            // itself in between is the only way this can fail.
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

fn read_all(file: &mut File) -> Result<String> {
    // The child shares the file offset: put it back at the end or its next write would overwrite.
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    file.seek(SeekFrom::End(0))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs `command` to its end.
///
/// # Errors
/// When it cannot be started or does not end within `limit`; not when it fails.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    start(command)?.wait(limit)
}

/// Runs a command line given as words and returns its standard output.
///
/// # Errors
/// When it cannot be started, does not end within `limit`, or ends with other than 0.
pub fn sh(words: &[&str], limit: Duration) -> Result<String> {
    let (program, args) = words.split_first().context("empty command")?;
    run(Command::new(program).args(args), limit)?.ok()
}

/// Waits until `condition` gives a value.
///
/// # Errors
/// When the condition fails, or gave nothing before `limit` had passed.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        ensure!(started.elapsed() < limit, "waited {limit:?} in vain until {what}");
        std::thread::sleep(POLL);
    }
}

/// The command line of a living process; `None` when there is no such process or it is a zombie.
#[must_use]
pub fn cmdline(pid: u32) -> Option<Vec<String>> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    if bytes.is_empty() {
        return None;
    }
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
    Some(bytes.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect())
}

/// Sends a signal to the process `pid`.
///
/// # Errors
/// When there is no such process or it is not ours.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let raw = Pid::from_raw(i32::try_from(pid)?).context("process id 0")?;
    kill_process(raw, signal).with_context(|| format!("send {signal:?} to process {pid}"))
}
