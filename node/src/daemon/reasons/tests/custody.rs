//! What may be the matter with custodians, and what is to be told then.

use super::cases::Case;
use super::*;

/// Those that are away, that lack shares, and that can not use them.
pub(super) const CUSTODY: &[Case] = &[
    (
        |r| down(r, &[2, 3]),
        Degraded,
        "custody",
        &["sealed: 1 of 2 custodians reachable, of 3 in all", "attached anew"],
        &["start n2, n3"],
        false,
    ),
    (
        |r| {
            down(r, &[2, 3]);
            half(r, 2, &[4], &[1]);
            half(r, 3, &[4], &[1]);
        },
        Degraded,
        "custody",
        &["1 of 2 custodians"],
        &["check the network to n2, n3"],
        false,
    ),
    (
        |r| down(r, &[2]),
        Degraded,
        "custody",
        &["2 of 3 custodians reachable, and as many are needed"],
        &["start n2"],
        false,
    ),
    (
        |r| {
            r.lacking.insert(NodeId(3), 4);
        },
        Degraded,
        "node n3",
        &["4 of its key shares are missing"],
        &["new ones by themselves"],
        false,
    ),
    (
        |r| {
            r.barred.insert(NodeId(2), "locked: `smalti key unlock` there".into());
        },
        Degraded,
        "node n2",
        &["the custodian of n2 is locked: `smalti key unlock` there"],
        &["not lost", "by themselves"],
        true,
    ),
    (
        |r| {
            for node in [1, 3] {
                r.barred.insert(NodeId(node), "locked".into());
            }
        },
        Degraded,
        "custody",
        &["sealed: 1 of 2 custodians reachable"],
        &["give the custodians of n1, n3 their keys"],
        true,
    ),
    (
        |r| {
            down(r, &[3]);
            r.barred.insert(NodeId(2), "locked".into());
        },
        Degraded,
        "custody",
        &["sealed: 1 of 2 custodians reachable"],
        &["start n3, or give the custodians of n2 their keys"],
        false,
    ),
    (
        |r| r.custody_problem = Some("n2: timed out".into()),
        Degraded,
        "custody",
        &["0 secrets are yet to be dealt on", "n2: timed out"],
        &["tried again by itself"],
        false,
    ),
];
