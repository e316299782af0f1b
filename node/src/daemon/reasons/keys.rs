//! What is to be told of keys that may have leaked.

use super::{Reasons, Report};
use crate::control::Health;

impl Report {
    /// While something is under them, or to be made instead of them.
    pub(super) fn revoked_reasons(&self, reasons: &mut Reasons) {
        let revoked =
            self.keys().volumes.into_iter().filter_map(|keys| Some((keys.revoked?, keys)));
        for (revoked, keys) in revoked {
            let blocks = revoked.blocks.map(|blocks| format!("{blocks} blocks"));
            let problem = format!(
                "its key epochs up to {} were revoked, and {} are under them yet",
                revoked.through.0,
                blocks.unwrap_or_else(|| "records".into())
            );
            let remedy = "they are sealed anew before anything else; `smalti key status` tells what is in the way";
            let subject = format!("volume {}", keys.volume);
            reasons.add(Health::Degraded, subject, problem, self.or_first(remedy));
        }
        if self.map.custodians.new_master {
            let problem = "the master secret was revoked, and there is no other one yet";
            let remedy = "it is made as soon as all custodians answer";
            let (problem, remedy) = (problem.into(), self.or_first(remedy));
            reasons.add(Health::Degraded, "custody".into(), problem, remedy);
        }
    }
}
