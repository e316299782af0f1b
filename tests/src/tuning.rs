//! Other times and limits than the defaults.

use anyhow::{Result, ensure};
use std::fs;

use crate::cluster::Cluster;

impl Cluster {
    /// Gives every node another value of a tunable, one node after the other.
    ///
    /// # Errors
    /// When a config does not name it, or the cluster is not well afterwards.
    pub fn retune(&mut self, name: &str, value: u64) -> Result<()> {
        for node in 0..self.nodes().len() {
            self.stop(node)?;
            let config = self.config(node)?;
            let text = fs::read_to_string(&config)?;
            let tunes =
                |line: &&str| line.split('=').next().is_some_and(|word| word.trim() == name);
            let old = text.lines().filter(tunes).count();
            ensure!(old == 1, "{old} lines of {} are about {name}", config.display());
            let new = |line: &str| match tunes(&line) {
                true => format!("{name} = {value}\n"),
                false => format!("{line}\n"),
            };
            fs::write(&config, text.lines().map(new).collect::<String>())?;
            self.start(node)?;
            self.wait_ok()?;
        }
        Ok(())
    }
}
