//! Tokens that let nodes join.

use serde::{Deserialize, Serialize};
use smalti_storage::ids::TokenId;
use std::fmt;
use utoipa::ToSchema;
use zeroize::Zeroizing;

/// How long a token may be used of which nothing else is said.
pub const TOKEN_SECONDS: u64 = 3600;

/// What token is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// For how long it may be used: an hour unless given, a week at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// The only name under which a node may join with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A new token. This is the only time that its text is told.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    /// The text for `smalti join`. Whoever has it can join once.
    #[schema(value_type = String)]
    pub token: Zeroizing<String>,
    /// Under which the cluster knows it.
    #[schema(value_type = String)]
    pub id: TokenId,
    /// Unix seconds from which on it is worth nothing.
    pub expires: u64,
}

impl fmt::Debug for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewToken").field("id", &self.id).finish_non_exhaustive()
    }
}
