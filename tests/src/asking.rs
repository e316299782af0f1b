//! Asking a running cluster, by the command line.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{COMMAND_LIMIT, Cluster, smalti};
use crate::ports::free_address;
use crate::process::until;
use crate::status::Status;

/// A command that waits for the cluster, as a drain does, ends within this.
const LIMIT: Duration = Duration::from_secs(120);

impl Cluster {
    /// What `smalti` prints when it asks the cluster.
    ///
    /// # Errors
    /// When it fails.
    pub fn command(&self, words: &[&str]) -> Result<String> {
        let dir = self.dir().display().to_string();
        smalti(&[words, &["--dir", &dir]].concat(), LIMIT)?.ok()
    }

    /// What a node that does not run says last when it is started and refuses to: it ends with the code
    /// of an error.
    ///
    /// # Errors
    /// When it starts, or ends in another way.
    pub fn refusal(&self, node: usize) -> Result<String> {
        let words: Vec<&str> = self.nodes()[node].argv[1..].iter().map(String::as_str).collect();
        let out = smalti(&words, COMMAND_LIMIT).context("a node that is to refuse does not end")?;
        ensure!(out.code() == 1, "exit code {}: {}", out.code(), out.stderr);
        let said = out.stderr.lines().rfind(|line| !line.is_empty());
        Ok(said.unwrap_or_default().to_owned())
    }

    /// What was seen last, and why it is so.
    pub(crate) fn explain(&self, last: &str) -> String {
        let why = self.command(&["why"]).unwrap_or_else(|error| format!("{error:#}"));
        format!("last status: {last}\n{why}")
    }

    /// The same as JSON.
    ///
    /// # Errors
    /// When it fails, or prints no JSON.
    pub fn facts(&self, words: &[&str]) -> Result<Value> {
        let text = self.command(&[words, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("{words:?} as JSON: {text}"))
    }

    /// What `smalti` prints when it asks one node.
    ///
    /// # Errors
    /// When it fails.
    pub fn ask(&self, node: usize, words: &[&str]) -> Result<String> {
        let api = format!("unix:{}", self.nodes()[node].dir.join("api.sock").display());
        smalti(&[words, &["--api", &api]].concat(), COMMAND_LIMIT)?.ok()
    }

    /// The same as JSON.
    ///
    /// # Errors
    /// When it fails, or prints no JSON.
    pub fn ask_facts(&self, node: usize, words: &[&str]) -> Result<Value> {
        let text = self.ask(node, &[words, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("{words:?} as JSON: {text}"))
    }

    /// Has a node join by a token, and starts it. `dir` is to be its folder.
    ///
    /// # Errors
    /// When it is refused, or does not start.
    pub fn join(&mut self, dir: &Path, name: &str) -> Result<usize> {
        let token = self.command(&["token", "create", "--name", name])?;
        let dir_text = dir.to_str().context("a path in UTF-8")?;
        let listen = free_address()?;
        let words = ["join", token.trim(), "--dir", dir_text, "--listen", &listen];
        smalti(&words, LIMIT)?.ok()?;
        let node = self.adopt(dir)?;
        self.start(node)?;
        Ok(node)
    }

    /// Slots by node, as `node list` counts them.
    ///
    /// # Errors
    /// When that can not be asked.
    pub fn slots(&self) -> Result<Vec<u64>> {
        let nodes = self.facts(&["node", "list"])?;
        let nodes = nodes.as_array().context("nodes")?;
        nodes.iter().map(|node| node["slots"].as_u64().context("slots")).collect()
    }

    /// Something once nothing moves, nothing is left to move, and everybody is well.
    ///
    /// # Errors
    /// When the status can not be asked.
    pub fn at_rest(&self) -> Result<Option<()>> {
        Ok(self.status()?.is_at_rest().then_some(()))
    }

    /// Waits until by what one node sees there are so many volumes, every node is up, and all is at
    /// rest: for clusters that `smalti up` did not make.
    ///
    /// # Errors
    /// When it is not in time; the last status is in the message.
    pub fn wait_well(&self, node: usize, volumes: usize) -> Result<()> {
        let mut last = "nothing".to_owned();
        let waited = until("the cluster is well", LIMIT, || {
            // One that has only just been started does not answer yet; the deadline decides.
            let status = self.ask_facts(node, &["status"]);
            last = status.as_ref().map_or_else(|error| format!("{error:#}"), Value::to_string);
            let Ok(status) = status else { return Ok(None) };
            let status: Status = serde_json::from_value(status).context("a status")?;
            let up = status.nodes.iter().filter(|node| node.state == "up").count();
            let has = status.volumes.len() == volumes;
            Ok((has && up == self.nodes().len() && status.is_at_rest()).then_some(()))
        });
        waited.with_context(|| format!("last status: {last}"))
    }
}
