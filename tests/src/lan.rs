//! Machines of a network of their own: a network namespace for each, joined by a bridge, with links that
//! can be cut in one direction or both.
//!
//! A namespace lives as long as the process that holds it, which ends with the test however that
//! ends. Nothing of this is seen outside.

use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{self, until};

const LIMIT: Duration = Duration::from_secs(10);
/// An address nobody has: what is sent there is lost without a word.
const NOWHERE: &str = "02:00:00:00:00:fe";

/// Why there can be no such network here.
#[must_use]
pub fn missing() -> Option<String> {
    let tries: [&[&str]; 3] =
        [&["unshare", "--net", "true"], &["ip", "-V"], &["nsenter", "--version"]];
    tries.iter().find_map(|words| {
        let tried = process::run(Command::new(words[0]).args(&words[1..]), LIMIT);
        let failed = match tried.and_then(process::Output::ok) {
            Ok(_) => return None,
            Err(error) => format!("{error:#}"),
        };
        Some(format!("no network namespaces: {}", failed.lines().next().unwrap_or_default()))
    })
}

/// A network namespace.
#[derive(Debug)]
struct Space {
    holder: Child,
    /// Closed with this process, at which the holder ends.
    _open: ChildStdin,
}

impl Space {
    fn make() -> Result<Self> {
        let mut holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("start unshare")?;
        let open = holder.stdin.take().context("its stdin")?;
        let space = Self { holder, _open: open };
        let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net"));
        let (own, pid) = (of("self")?, space.holder.id().to_string());
        until("a namespace is there", LIMIT, || Ok((of(&pid)? != own).then_some(())))?;
        space.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(space)
    }

    /// The words before a command that is to run in it. What is run becomes the process itself.
    fn enter(&self) -> Vec<String> {
        let pid = self.holder.id().to_string();
        ["nsenter", "--net", "--target", &pid, "--"].map(str::to_owned).to_vec()
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        let enter = self.enter();
        process::run(Command::new(&enter[0]).args(&enter[1..]).args(words), LIMIT)?.ok()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // It may have ended; reaped it is in any case.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Machines that reach each other.
#[derive(Debug)]
pub struct Lan {
    machines: Vec<Space>,
    _hub: Space,
}

impl Lan {
    /// So many machines.
    ///
    /// # Errors
    /// When the system does not let us; see [`missing`].
    pub fn make(machines: usize) -> Result<Self> {
        ensure!(machines < 200, "{machines} machines are too many for one network");
        let hub = Space::make()?;
        hub.run(&["ip", "link", "add", "hub", "type", "bridge"])?;
        hub.run(&["ip", "link", "set", "hub", "up"])?;
        let mut spaces = Vec::new();
        for no in 0..machines {
            let machine = Space::make()?;
            let (port, pid) = (format!("port{no}"), machine.holder.id().to_string());
            let peer = ["peer", "name", "eth0", "netns", &pid];
            let link = [&["ip", "link", "add", &port, "type", "veth"][..], &peer].concat();
            hub.run(&link)?;
            hub.run(&["ip", "link", "set", &port, "master", "hub", "up"])?;
            let address = format!("{}/24", Self::ip(no));
            machine.run(&["ip", "address", "add", &address, "dev", "eth0"])?;
            machine.run(&["ip", "link", "set", "eth0", "up"])?;
            spaces.push(machine);
        }
        Ok(Self { machines: spaces, _hub: hub })
    }

    /// The address of a machine.
    #[must_use]
    pub fn ip(machine: usize) -> String {
        format!("10.77.0.{}", machine + 1)
    }

    /// The words before a command that is to run on a machine.
    #[must_use]
    pub fn enter(&self, machine: usize) -> Vec<String> {
        self.machines[machine].enter()
    }

    /// From now on what one machine sends to another is lost; the other way is as it was.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn cut_one_way(&self, from: usize, to: usize) -> Result<()> {
        let ip = Self::ip(to);
        let words = ["neigh", "replace", &ip, "lladdr", NOWHERE, "dev", "eth0", "nud", "permanent"];
        self.machines[from].run(&[&["ip"], &words[..]].concat()).map(drop)
    }

    /// Nothing gets from one to the other, in either direction.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn cut(&self, one: usize, other: usize) -> Result<()> {
        self.cut_one_way(one, other)?;
        self.cut_one_way(other, one)
    }

    /// Ends what a cut did, of either kind.
    ///
    /// # Errors
    /// When there was none, or the system refuses.
    pub fn mend(&self, one: usize, other: usize) -> Result<()> {
        for (from, to) in [(one, other), (other, one)] {
            let ip = Self::ip(to);
            self.machines[from].run(&["ip", "neigh", "flush", "to", &ip, "nud", "all"])?;
        }
        Ok(())
    }
}
