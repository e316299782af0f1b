//! Writing to the user: facts to stdout, one line about what was not done to stderr.

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// Prints facts as JSON, or as `show` puts them for people.
pub(super) fn facts<T: Serialize>(
    json: bool,
    facts: &T,
    show: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    if json {
        let mut text = serde_json::to_string_pretty(facts).context("print JSON")?;
        text.push('\n');
        print(&text)
    } else {
        print(&show(facts))
    }
}

/// Prints to stdout.
///
/// # Errors
/// When stdout does not take it, a closed pipe included: what was not printed was not told.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("print")
}

/// A bar on the terminal, and none elsewhere.
pub(super) fn bar(message: String) -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    ProgressBar::with_draw_target(None, target).with_message(message)
}

/// The one line on stderr: `smalti: what: why`.
pub fn error_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("smalti: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line() {
        let error = anyhow::anyhow!("broken\n  pipe").context("print");
        assert_eq!(error_line(&error), "smalti: print: broken pipe");
    }
}
