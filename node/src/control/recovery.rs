//! Recovery shares, and what was opened with them.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;
use zeroize::Zeroizing;

/// The line that a person keeps. Wiped when dropped, and never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShareLine(Zeroizing<String>);

impl ShareLine {
    /// As it was typed.
    pub fn new(line: Zeroizing<String>) -> Self {
        Self(line)
    }
}

impl AsRef<str> for ShareLine {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ShareLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShareLine(redacted)")
    }
}

/// What is to be done with recovery shares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecoverKeys {
    /// As many as are needed, each as it was printed.
    #[schema(value_type = Vec<String>)]
    pub shares: Vec<ShareLine>,
    /// Only say what could be opened.
    #[serde(default)]
    pub check: bool,
    /// Names of the nodes that are to be custodians; the present ones if left out.
    #[serde(default)]
    pub nodes: Option<Vec<String>>,
    /// Shares of custodians that are to be needed; as many as now if left out.
    #[serde(default)]
    pub threshold: Option<u8>,
}

/// `smalti key recover --json`: what was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecoveryReport {
    /// Nothing was changed.
    pub check: bool,
    /// Secrets that the shares open.
    pub opened: u32,
    /// Secrets that they do not, and why.
    pub problems: Vec<String>,
    /// Secrets that were dealt anew.
    pub dealt: u32,
    /// The share epoch of that.
    pub share_epoch: u32,
    /// Names of the custodians that have new shares.
    pub custodians: Vec<String>,
}

/// Shares that people have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecoveryFacts {
    /// How many open everything.
    pub needed: u8,
    /// How many there are.
    pub total: u8,
}
