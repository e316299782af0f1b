//! What a custodian has done with its shares: a log of one line each, in which every entry has the hash of
//! the one before it, so that none can be changed or taken out without all that follow.
//!
//! A1. An entry is durable before what it tells of is done.
//! A2. What was broken off by a crash is cut off: it was not done.
//! A3. A log that does not hold together is put aside, not written on; the new one begins with that.
//! A4. It takes a bounded place: the oldest entries go, and the log says so first.
//! A5. What can not be noted is not done. A log that can not be opened or written does not keep the node from
//!     starting: its custodian does nothing, and says why.

mod log;

pub(crate) use log::AuditLog;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smalti_storage::ids::NodeId;

const LABEL: &[u8] = b"smalti audit v1";

/// What a custodian did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditEvent {
    /// The log begins; `detail` says what was there before.
    Began,
    /// A share of a new secret is kept.
    Kept,
    /// A share was given to a node.
    Released,
    /// A node was refused; `detail` says why.
    Refused,
    /// A share was dealt on to new custodians.
    DealtOn,
    /// A share was made of what others dealt on, and is kept.
    Combined,
    /// A share is destroyed.
    Destroyed,
    /// The oldest entries are not kept any longer; `detail` says up to which.
    Shortened,
}

impl std::fmt::Display for AuditEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Began => "began",
            Self::Kept => "kept",
            Self::Released => "released",
            Self::Refused => "refused",
            Self::DealtOn => "dealt-on",
            Self::Combined => "combined",
            Self::Destroyed => "destroyed",
            Self::Shortened => "shortened",
        })
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Its number, from 1, without gaps.
    pub no: u64,
    /// Unix seconds, by this node's clock.
    pub time: u64,
    /// What was done.
    pub event: AuditEvent,
    /// For whom, or by whose dealing.
    pub node: Option<NodeId>,
    /// With a share of what.
    pub share: Option<String>,
    /// More about it.
    pub detail: Option<String>,
    /// The hash of the entry before, in hexadecimal digits; empty for the first one.
    pub before: String,
}

impl AuditEntry {
    /// Its hash: of all of it, the hash of the one before included.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(LABEL);
        hash.update(self.line());
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// As it is written: JSON, without an end of line.
    pub fn line(&self) -> String {
        serde_json::to_string(self).expect("plain fields can be written")
    }
}

/// What an entry says of those before `first`.
fn shortened(first: u64) -> String {
    format!("entries before {first} are not kept any longer")
}

/// Whether what is missing at the beginning of a log is told of in it.
#[derive(Debug, Default)]
pub struct Beginning {
    first: Option<u64>,
    told: bool,
}

impl Beginning {
    /// Takes the next entry.
    pub fn next(&mut self, entry: &AuditEntry) {
        let first = *self.first.get_or_insert(entry.no);
        let says = |first| entry.detail.as_deref() == Some(&shortened(first));
        self.told |= first == 1 || entry.event == AuditEvent::Shortened && says(first);
    }

    /// Says what is missing, at the end of the log.
    ///
    /// # Errors
    /// When no entry tells of it.
    pub fn check(&self) -> Result<(), String> {
        match self.first {
            Some(first) if !self.told => {
                Err(format!("entries before {first} are missing, and none tells of that"))
            }
            _ => Ok(()),
        }
    }
}

/// What the next entry has to follow on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Number and hash of the entry before; `None`: it may be any, for those before are not known.
    last: Option<(u64, String)>,
}

impl Chain {
    /// The beginning of a log, or of what is kept of one.
    pub const fn anywhere() -> Self {
        Self { last: None }
    }

    /// After an entry; number 0 with no hash is before the first.
    pub(crate) fn after(no: u64, hash: String) -> Self {
        Self { last: Some((no, hash)) }
    }

    /// Number and hash of the last entry.
    pub fn last(&self) -> Option<(u64, &str)> {
        self.last.as_ref().map(|(no, hash)| (*no, hash.as_str()))
    }

    /// Takes the next line.
    ///
    /// # Errors
    /// Says which entry does not follow.
    pub fn next(&mut self, line: &str) -> Result<AuditEntry, String> {
        let expected = self.last.as_ref().map(|(no, _)| no.saturating_add(1));
        let name = expected.map_or_else(|| "the first entry".into(), |no| format!("entry {no}"));
        let entry: AuditEntry = serde_json::from_str(line)
            .map_err(|error| format!("{name} can not be read: {error}"))?;
        // What is not as it would be written has been touched.
        if expected.is_some_and(|no| entry.no != no) || entry.line() != line {
            return Err(format!("{name} is not what was written"));
        }
        let follows = match &self.last {
            Some((_, hash)) => entry.before == *hash,
            None => entry.before.is_empty() == (entry.no == 1) && entry.no > 0,
        };
        if !follows {
            return Err(format!("{name} does not follow on the one before"));
        }
        self.last = Some((entry.no, entry.hash()));
        Ok(entry)
    }
}

/// What is to be noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) event: AuditEvent,
    pub(crate) node: Option<NodeId>,
    pub(crate) share: Option<String>,
    pub(crate) detail: Option<String>,
}
