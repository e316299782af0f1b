//! How large the world is that is looked at, and which of its rules are broken on purpose.

use std::fmt;
use std::str::FromStr;

/// What bounds one exhaustive run. Two runs of the same bounds visit the same states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// n: the blocks of the row.
    pub data: u8,
    /// k.
    pub parity: u8,
    /// What clients do: writes begin in this order, reads at any time.
    pub ops: Vec<Plan>,
    /// The row was never written before the first state; else it was, as a whole, and everybody
    /// knows.
    pub fresh: bool,
    /// Processes that die, each losing what it had not synced. They may come back.
    pub crashes: u8,
    /// Elections without a reason; those that a coordinator proposes come on top.
    pub elections: u8,
    /// Nodes that those elections may choose; none stands for all.
    pub elected: Vec<u8>,
    /// Sessions that break and lose all that was under way in them.
    pub drops: u8,
    /// Steps of time: one is longer than anybody's patience, two are longer than a lease.
    pub passes: u8,
    /// Coordinators sleep while time passes, so that none loses its patience.
    pub asleep: bool,
    /// Stores that were taken out may come back as learners and grow in.
    pub catchup: bool,
    /// A batch becomes durable in a step of its own, so that a crash can come before it.
    pub split_sync: bool,
    /// The rule that is broken.
    pub broken: Option<Broken>,
}

/// One operation of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Whether it writes.
    pub write: bool,
    /// The data slots.
    pub slots: Vec<u8>,
}

/// A rule of the protocol that the world around the core does not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Broken {
    /// A store answers before its batch is durable.
    AnswerBeforeSync,
    /// A store that restarts promises at once, though what it granted may still be valid.
    NoBootWait,
    /// The clock of a store that is asked to promise is far ahead: its grants have expired.
    GrantExpiresEarly,
    /// What a store promises is not written down.
    PromiseNotKept,
}

impl Bounds {
    /// A volume of `data + parity` slots without any fault, two writes and one read of its row.
    pub fn new(data: u8, parity: u8) -> Self {
        let first = Plan { write: true, slots: vec![0] };
        let second = Plan { write: true, slots: vec![data - 1] };
        let read = Plan { write: false, slots: (0..data).collect() };
        Self {
            data,
            parity,
            ops: vec![first, second, read],
            fresh: false,
            crashes: 0,
            elections: 0,
            elected: Vec::new(),
            drops: 0,
            passes: 0,
            asleep: false,
            catchup: false,
            split_sync: true,
            broken: None,
        }
    }

    pub(super) fn may_elect(&self, node: usize) -> bool {
        self.elected.is_empty() || self.elected.iter().any(|at| usize::from(*at) == node)
    }

    /// The operations that write.
    pub(super) fn writes(&self) -> impl Iterator<Item = usize> {
        self.ops.iter().enumerate().filter(|(_, plan)| plan.write).map(|(op, _)| op)
    }

    pub(super) fn slots(&self) -> usize {
        usize::from(self.data + self.parity)
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ops: Vec<String> = self.ops.iter().map(Plan::to_string).collect();
        write!(f, "--geometry {}+{} --ops {}", self.data, self.parity, ops.join(","))?;
        write!(f, " --crashes {} --elections {}", self.crashes, self.elections)?;
        for node in &self.elected {
            write!(f, " --elect {node}")?;
        }
        write!(f, " --drops {} --passes {}", self.drops, self.passes)?;
        if self.asleep {
            f.write_str(" --asleep")?;
        }
        if self.fresh {
            f.write_str(" --fresh")?;
        }
        if self.catchup {
            f.write_str(" --catchup")?;
        }
        if !self.split_sync {
            f.write_str(" --whole-sync")?;
        }
        match self.broken {
            Some(broken) => write!(f, " --broken {}", broken.name()),
            None => Ok(()),
        }
    }
}

impl Broken {
    fn name(self) -> &'static str {
        match self {
            Self::AnswerBeforeSync => "answer-before-sync",
            Self::NoBootWait => "no-boot-wait",
            Self::GrantExpiresEarly => "grant-expires-early",
            Self::PromiseNotKept => "promise-not-kept",
        }
    }
}

/// `w0` writes slot 0, `w01` the slots 0 and 1 at once, `r0` reads slot 0.
impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let write = match text.chars().next() {
            Some('w') => true,
            Some('r') => false,
            _ => return Err(format!("{text} is neither w... nor r...")),
        };
        let digit = |c: char| c.to_digit(10).and_then(|digit| u8::try_from(digit).ok());
        let slots: Option<Vec<u8>> = text.chars().skip(1).map(digit).collect();
        match slots {
            Some(slots) if !slots.is_empty() => Ok(Self { write, slots }),
            _ => Err(format!("{text} names no slots")),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.write { "w" } else { "r" })?;
        self.slots.iter().try_for_each(|slot| write!(f, "{slot}"))
    }
}
