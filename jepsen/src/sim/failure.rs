//! What a check says when it fails.

use smalti_storage::ids::RowAddr;

/// Why a run failed, and about which row, if it is about one: that is where to look first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) why: String,
    pub(crate) row: Option<RowAddr>,
}

impl Failure {
    pub(crate) fn at(row: RowAddr, why: String) -> Self {
        Self { why, row: Some(row) }
    }
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self { why, row: None }
    }
}

impl From<&str> for Failure {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}
