//! Where passphrases come from: a file, the terminal, which does not show them, or a line of stdin. Never the command
//! line, which every user of the machine sees.

use crate::custody::{PASSPHRASE_MAX, Passphrase};
use crate::files;
use anyhow::{Context, anyhow, ensure};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::Path;

/// With the end of its line.
const LINE_MAX: u64 = PASSPHRASE_MAX as u64 + 2;

/// Reads the passphrase that is asked for.
pub(super) fn read(file: Option<&Path>, question: &str) -> anyhow::Result<Passphrase> {
    let text = match file {
        Some(path) => from_file(path)?,
        None => line(question)?,
    };
    Passphrase::new(text).map_err(|error| anyhow!(error))
}

/// Reads a new one: from the terminal twice, for nobody sees what was typed.
pub(super) fn read_new(file: Option<&Path>, question: &str) -> anyhow::Result<Passphrase> {
    let passphrase = read(file, question)?;
    passphrase.check_new().map_err(|error| anyhow!(error))?;
    if file.is_none() && std::io::stdin().is_terminal() {
        ensure!(read(None, "The same again:")? == passphrase, "they are not the same");
    }
    Ok(passphrase)
}

fn from_file(path: &Path) -> anyhow::Result<String> {
    let bytes = files::read_private(path, LINE_MAX)?;
    let text = std::str::from_utf8(&bytes).with_context(|| format!("read {}", path.display()))?;
    Ok(text.to_owned())
}

fn line(question: &str) -> anyhow::Result<String> {
    let _hidden = if std::io::stdin().is_terminal() { Some(Hidden::ask(question)?) } else { None };
    // Sized first, so that a growing buffer leaves no copy of the secret behind.
    let mut text = String::with_capacity(usize::try_from(LINE_MAX)?);
    let read = std::io::stdin().lock().take(LINE_MAX).read_line(&mut text);
    read.context("read the passphrase from stdin")?;
    Ok(text)
}

/// A terminal that does not show what is typed, until this is dropped. (Of a process that is ended by a signal the
/// shell puts it right.)
struct Hidden(Termios);

impl Hidden {
    fn ask(question: &str) -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).context("look at the terminal")?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        // What was typed ahead was shown, and is forgotten.
        tcsetattr(&stdin, OptionalActions::Flush, &quiet).context("hide what is typed")?;
        let hidden = Self(before);
        let mut stderr = std::io::stderr();
        write!(stderr, "{question} ").and_then(|()| stderr.flush()).context("ask")?;
        Ok(hidden)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let shown = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
        if let Err(error) = shown {
            tracing::warn!(%error, "the terminal may not show what is typed: `stty echo`");
        }
        // The end of the line was not shown either; if this is not, nothing is lost.
        let _ = writeln!(std::io::stderr());
    }
}
