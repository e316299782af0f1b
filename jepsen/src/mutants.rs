//! The mutation gate: with a rule of the protocol switched off, some check of the simulator must
//! fail within a number of seeds. A mutant that survives is a blind spot, or a rule too many.

use crate::sim::{Mode, run};
use smalti_map::mutant::{Mutant, set};
use smalti_rowcommit::invariant::BROKEN;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Mutants that only a rare mix of faults shows: more than a few hundred seeds.
const SLOW: &[Mutant] = &[
    Mutant::NoLease,
    Mutant::LeaseQuorumShort,
    Mutant::NoConfirm,
    Mutant::ObeyUnregistered,
    Mutant::DeltaUnverified,
    Mutant::LearnerUnheard,
    Mutant::LeftoversIgnored,
    Mutant::ObeyAnyone,
    Mutant::ReuseEpoch,
    Mutant::CountUnverified,
    Mutant::DeltaWithoutBase,
    Mutant::LateWholeRow,
    Mutant::PrepareAfterAbort,
    Mutant::GrowUnanswered,
    Mutant::GrowthUnbound,
    Mutant::ShrinkSameEpoch,
    Mutant::NoBarrier,
    Mutant::HearRestarted,
    Mutant::IndexOfCrashed,
    Mutant::ThawLost,
    Mutant::PutBackInSync,
    Mutant::BelieveAnyRun,
    Mutant::ShrinkUnheard,
    Mutant::HastenOn,
    Mutant::DoubtedToData,
    Mutant::IndexDecidedOnly,
    Mutant::WatermarkOffline,
    Mutant::SettleByOffline,
    Mutant::OneParityTells,
    Mutant::RepairByOne,
];

/// Mutants that did not die in a thousand seeds and more. They are blind spots of the simulator, or
/// rules that others cover; docs/testing.md says which. None counts, and the gate leaves them out:
/// they are hunted by name.
const UNSEEN: &[Mutant] = &[
    Mutant::VetOffline,
    Mutant::AdmitUnsettled,
    Mutant::OfflineSameEpoch,
    Mutant::CommitBelowMin,
    Mutant::ShrinkInPart,
    Mutant::DenyRepaired,
    Mutant::NoBootWait,
    Mutant::PromiseOverLease,
    Mutant::ConfirmBefore,
    Mutant::TakeNewer,
    Mutant::ListUndecided,
    Mutant::IndexOfDeleted,
    Mutant::WalkUndecided,
    Mutant::WalkUntouched,
    Mutant::LeaseBeforeBytes,
    Mutant::LeaseFromAnswer,
    Mutant::ServeAfterRelease,
    Mutant::ForgetPromise,
    Mutant::AcceptUnbound,
    Mutant::KeepVectors,
    Mutant::TrustUnreadable,
    Mutant::UnreadableForgotten,
    Mutant::PrepareUnsettled,
    Mutant::RepairAllOrNone,
    Mutant::KeepOutdated,
    Mutant::DenyNothing,
    Mutant::SuspectTold,
    Mutant::StrayForgotten,
    Mutant::SuspectEvidence,
    Mutant::TrustSuspects,
    Mutant::InstallCommitted,
    Mutant::DoubtOlder,
    Mutant::LateFrames,
    Mutant::PrepareBelowWatermark,
    Mutant::PrepareBelowHead,
    Mutant::WatermarkOutOfSync,
    Mutant::WalkUnopened,
    Mutant::LearnerAbortForgotten,
    Mutant::InstallBlindly,
];

/// Rules that nothing within the bounds needs: hunted where more rots than the code can bear.
const BEYOND: &[Mutant] = &[Mutant::AbsentIfUnread, Mutant::ThawLost];

/// The mutants of the gate, or those of them that die soon.
pub fn mutants(fast: bool) -> Vec<Mutant> {
    let left_out = |mutant: &Mutant| UNSEEN.contains(mutant) || (fast && SLOW.contains(mutant));
    Mutant::ALL.iter().copied().filter(|mutant| !left_out(mutant)).collect()
}

/// Those that it leaves out.
pub fn unseen() -> &'static [Mutant] {
    UNSEEN
}

/// How a mutant died.
#[derive(Clone, Debug)]
pub struct Death {
    /// Seeds it took, the last included.
    pub seeds: u64,
    /// The seed that killed it.
    pub seed: u64,
    /// Which check, in a word.
    pub check: String,
    /// What the check said.
    pub why: String,
}

/// Runs seeds with a rule switched off (or with none) until a check fails.
pub fn hunt(mutant: Option<Mutant>, seeds: Range<u64>) -> Option<Death> {
    let from = seeds.start;
    seeds.into_iter().find_map(|seed| {
        let why = failure(mutant, seed)?;
        let check = check_of(&why).to_string();
        Some(Death { seeds: seed - from + 1, seed, check, why })
    })
}

/// What goes wrong in one seed. A panic is a failed check too: an assertion, or the world broken
/// beyond what the code was written for.
fn failure(mutant: Option<Mutant>, seed: u64) -> Option<String> {
    let beyond = mutant.is_some_and(|mutant| BEYOND.contains(&mutant));
    let mode = if beyond { Mode::Beyond } else { Mode::Within };
    set(mutant);
    let ended = catch_unwind(AssertUnwindSafe(|| run(seed, mode, false)));
    set(None);
    match ended {
        Ok(report) => report.failure,
        Err(cause) => {
            let text = cause.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
            let text = text.unwrap_or("of no text");
            let invariant = text.strip_prefix(BROKEN);
            let named = invariant.map(|broken| broken.replacen(" is broken", "", 1));
            Some(named.unwrap_or_else(|| format!("panic: {text}")))
        }
    }
}

/// The check that a failure comes from, by how it begins.
fn check_of(why: &str) -> &str {
    let invariant = why.split(':').next().filter(|word| {
        word.strip_prefix(['I', 'N'])
            .is_some_and(|no| !no.is_empty() && no.bytes().all(|b| b.is_ascii_digit()))
    });
    let known = [
        ("block ", "history"),
        ("row ", "rest"),
        ("still undecided", "rest"),
        ("not whole", "healing"),
        ("was whole", "healing"),
        ("the epoch moves on", "healing"),
        ("reads of a whole", "healing"),
        ("no end", "healing"),
        ("an operation failed", "errors"),
        ("the map is broken", "map"),
        ("a snapshot ended", "snapshots"),
        ("node ", "alarms"),
        ("panic", "panic"),
    ];
    let named = || known.iter().find(|(begin, _)| why.starts_with(begin)).map(|(_, name)| *name);
    invariant.or_else(named).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_told_apart() {
        assert_eq!(check_of("I5: something was acknowledged"), "I5");
        assert_eq!(check_of("I: no such"), "other");
        assert_eq!(check_of("block (r, d0): values 1 and 2 were both current"), "history");
        assert_eq!(check_of("panic: index out of bounds"), "panic");
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = Mutant::ALL.iter().map(|m| m.name()).collect();
        assert_eq!(names.len(), Mutant::ALL.len());
    }
}
