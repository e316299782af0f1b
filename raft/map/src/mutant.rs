//! Mutants: rules of the protocol that can be switched off, one at a time, to see that the
//! simulator notices (`make mutants`). They stand here because this is the lowest crate with
//! rules of the protocol in it; most belong to RowCommit.
//!
//! Without the feature `mutants` the switch is a constant, and nothing of it is left in a program.
//! With it a thread has at most one living mutant, so that simulations on two threads do not meet.

macro_rules! mutants {
    ($($(#[doc = $rule:literal])+ $variant:ident = $name:literal,)+) => {
        /// One rule of the protocol, broken. Each says which, and what should come of it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mutant {
            $($(#[doc = $rule])+ $variant,)+
        }

        #[cfg(feature = "mutants")]
        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its name on the command line and in reports.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What it breaks, in words.
            pub fn rule(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($rule),+).trim_ascii(),)+
                }
            }
        }
    };
}

mutants! {
    // Leases and epochs.
    /// A restarted store promises at once, though what it granted before it went down may still
    /// be believed in: the old coordinator answers from the past.
    NoBootWait = "no-boot-wait",
    /// A store promises another coordinator although a lease it granted is out.
    PromiseOverLease = "promise-over-lease",
    /// One lease fewer than meets every later in-sync set is enough for an answer.
    LeaseQuorumShort = "lease-quorum-short",
    /// A read is answered without a look at the leases.
    NoLease = "no-lease",
    /// A read is answered before any store has confirmed the epoch.
    NoConfirm = "no-confirm",
    /// A round of confirmations that began before the read counts for it.
    ConfirmBefore = "confirm-before",
    /// Leases are judged by the time of the last tick, from before the bytes were in hand.
    LeaseBeforeBytes = "lease-before-bytes",
    /// A lease is counted from when it was heard of, not from when it was asked for.
    LeaseFromAnswer = "lease-from-answer",
    /// A coordinator that gave its leases back goes on serving.
    ServeAfterRelease = "serve-after-release",
    /// A store that has promised an epoch still serves the one its map tells of.
    ForgetPromise = "forget-promise",
    /// A store makes its promise without waiting for its disk.
    PromiseUnsynced = "promise-unsynced",
    /// A store obeys, and gives up what it holds, by a map from before its start.
    ObeyUnregistered = "obey-unregistered",
    /// What a store accepts in an epoch does not bind it to that epoch.
    AcceptUnbound = "accept-unbound",
    /// A store obeys whoever was the coordinator in any epoch it promised or before.
    ObeyAnyone = "obey-anyone",
    /// A coordinator that was released acts in the same epoch again, and counts versions anew.
    ReuseEpoch = "reuse-epoch",

    // Takeover.
    /// A takeover looks at the rows once any store has promised.
    DecideEarly = "decide-early",
    /// A takeover leaves undecided rows as they are.
    LeaveUndecided = "leave-undecided",
    /// A takeover undoes whatever is undecided, also what may have been acknowledged.
    UndoAll = "undo-all",
    /// A takeover completes the oldest constructible version of a row instead of the newest.
    ForwardOldest = "forward-oldest",
    /// A takeover installs as committed, so that one within it finds neither the old version nor
    /// enough of the new one.
    InstallCommitted = "install-committed",
    /// A takeover counts records that do not verify as if they were there.
    CountUnverified = "count-unverified",
    /// What a store came up with after a crash is taken for decided by later watermarks, and it tells
    /// of these as if it had heard of them before.
    SuspectTold = "suspect-told",
    /// A version that others know undone is completed when a disk comes up with it again.
    DenyNothing = "deny-nothing",
    /// What a store that went back in time held undecided then is kept.
    KeepOutdated = "keep-outdated",
    /// What a slot holds undecided that can not be read is left to it.
    TrustUnreadable = "trust-unreadable",
    /// What can not be read of a row is taken for what was never written.
    AbsentIfUnread = "absent-if-unread",
    /// What is undecided of a lost row is left to watermarks.
    ThawLost = "thaw-lost",
    /// A takeover leaves no mark on a slot that could not tell what it holds.
    UnreadableForgotten = "unreadable-forgotten",
    /// A store that is in sync takes updates after a crash before it has promised an epoch.
    PrepareUnsettled = "prepare-unsettled",
    /// A row's older version is not held for decided when there is a newer one.
    DoubtOlder = "doubt-older",
    /// Watermarks speak of groups that are offline, to their stores.
    WatermarkOffline = "watermark-offline",
    /// A takeover believes watermarks of groups that were offline.
    SettleByOffline = "settle-by-offline",
    /// A store that may have forgotten something is told that it was compared though a group of it could not
    /// be.
    VetOffline = "vet-offline",
    /// Who comes back and is missed by an offline group catches up elsewhere before it has promised.
    AdmitUnsettled = "admit-unsettled",
    /// Serving begins without `Activate` in the map.
    ServeUnactivated = "serve-unactivated",
    /// Serving begins before what the takeover decided is done.
    ServeUnsettled = "serve-unsettled",
    /// Vectors are kept over an election although somebody came between.
    KeepVectors = "keep-vectors",

    // Snapshots.
    /// A store lets go of versions that a snapshot holds.
    ForgetHeld = "forget-held",
    /// A store keeps what only deleted snapshots needed.
    KeepDeleted = "keep-deleted",
    /// A slot is not repaired at all when one of the states it lacks is lost.
    RepairAllOrNone = "repair-all-or-none",
    /// Versions are issued while a snapshot is being made.
    IssueFrozen = "issue-frozen",
    /// A snapshot is proposed while updates are undecided.
    SnapUndecided = "snap-undecided",
    /// Rows are compared by their newest versions alone.
    WalkNewestOnly = "walk-newest-only",
    /// A repair puts the newest version right and forgets those of snapshots.
    RepairNewestOnly = "repair-newest-only",

    // Writing.
    /// A write is acknowledged without the slot whose growth is proposed.
    AckWithoutGrowing = "ack-without-growing",
    /// A write is acknowledged without the last parity slot.
    AckWithoutParity = "ack-without-parity",
    /// Writes are acknowledged while fewer than `min_insync` are in sync.
    AckBelowMin = "ack-below-min",
    /// What is under way when too few are in sync is committed all the same.
    CommitBelowMin = "commit-below-min",
    /// A write is acknowledged without the stores whose link is down, before the map says so.
    AckWithoutSilent = "ack-without-silent",
    /// A store answers a prepare before it is durable.
    AckUnsynced = "ack-unsynced",
    /// A parity slot adds a difference to whatever version it has.
    DeltaWithoutBase = "delta-without-base",
    /// A parity slot adds a difference to a record that does not verify.
    DeltaUnverified = "delta-unverified",
    /// A parity slot does not look whether its new record has the fingerprint it must have.
    FingerprintUnchecked = "fingerprint-unchecked",
    /// A late duplicate of a client write is applied over a newer one.
    OldWriteApplied = "old-write-applied",
    /// A parity slot takes a late copy of a whole row that every data slot refuses.
    LateWholeRow = "late-whole-row",
    /// The watermark passes versions that are not decided.
    WatermarkAhead = "watermark-ahead",
    /// A refused update is not waited for until it is undone everywhere.
    AbortUnawaited = "abort-unawaited",
    /// What waits to be sent of a refused update may still be sent after its abort.
    PrepareAfterAbort = "prepare-after-abort",
    /// A coordinator takes writes of a gateway that a later election has let in.
    TakeNewer = "take-newer",
    /// A list of blocks takes what is not decided for what a block has.
    ListUndecided = "list-undecided",
    /// A list of blocks says that there is nothing where a slot is out of sync.
    ListInsync = "list-insync",
    /// Two updates of one row run at once.
    UpdatesTogether = "updates-together",
    /// Reads of a row go on while it is updated.
    ReadBesideUpdate = "read-beside-update",
    /// A store takes frames of a session that a newer one has replaced.
    LateFrames = "late-frames",
    /// A store accepts prepares that its watermark has passed.
    PrepareBelowWatermark = "prepare-below-watermark",
    /// A store accepts a prepare that is older than what it holds.
    PrepareBelowHead = "prepare-below-head",
    /// The pre-image is collected as soon as its successor is prepared.
    CollectEarly = "collect-early",
    /// A store believes the watermark also where it is out of sync.
    WatermarkOutOfSync = "watermark-out-of-sync",

    // Reading.
    /// A row's vector is taken from slots that are out of sync as well.
    VectorOutOfSync = "vector-out-of-sync",
    /// One parity slot tells a row's vector, though others are in sync.
    OneParityTells = "one-parity-tells",
    /// What a slot in sync is to hold is taken from parity slots alone, without asking the slot itself.
    RepairByOne = "repair-by-one",
    /// A slot that contradicts what another one said of it is taken for wrong.
    BelieveOne = "believe-one",
    /// A store answers with bytes that do not verify.
    ReadUnverified = "read-unverified",

    // Coming back.
    /// A slot that comes back is grown without a walk over its rows.
    GrowUncompared = "grow-uncompared",
    /// A slot is grown while rows of it are known to be behind.
    GrowBehind = "grow-behind",
    /// A slot is grown while what it was sent is not answered.
    GrowUnanswered = "grow-unanswered",
    /// That a learner refused an update is forgotten.
    LearnerUnheard = "learner-unheard",
    /// Updates do not go to learners.
    LearnerUnsent = "learner-unsent",
    /// The walk begins while updates from before the learner came are in flight.
    NoBarrier = "no-barrier",
    /// The walk begins while frames of an older session may still arrive.
    WalkUnopened = "walk-unopened",
    /// An aborted whole row on a learner does not put the row behind.
    LearnerAbortForgotten = "learner-abort-forgotten",
    /// A slot whose growth is proposed stops counting when its link breaks.
    GrowthUnbound = "growth-unbound",
    /// A repair is written over whatever the slot holds by then.
    InstallBlindly = "install-blindly",

    /// An index of changed rows begins without those that are undecided then.
    IndexDecidedOnly = "index-decided-only",
    /// An index goes on to name a store that may have deleted what it held.
    IndexOfDeleted = "index-of-deleted",
    /// An index tells anybody what he lacks, also who was out before it began.
    IndexOfAnybody = "index-of-anybody",
    /// A store that took something while it was out of sync does not remember it over a restart.
    StrayForgotten = "stray-forgotten",
    /// The index of a store that crashed is believed, and what it says of itself.
    IndexOfCrashed = "index-of-crashed",
    /// What a learner holds undecided itself is not among the rows it lacks.
    LeftoversIgnored = "leftovers-ignored",
    /// A whole row that is still undecided counts as equal on a learner.
    WalkUndecided = "walk-undecided",
    /// Nor is an update that was under way when the pages were asked for, or refused since, for behind.
    WalkUntouched = "walk-untouched",

    // Disks that forget.
    /// One parity slot is believed for a row's vector, whatever became of it in a crash.
    TrustSuspects = "trust-suspects",
    /// A store that came up again after a crash is heard before the map tells of it.
    HearRestarted = "hear-restarted",
    /// Suspects are called vetted without a comparison.
    VetUnseen = "vet-unseen",
    /// A takeover builds a row's vector from parity slots alone.
    ParityAlone = "parity-alone",
    /// What only suspects hold for undecided is evidence like any other.
    SuspectEvidence = "suspect-evidence",

    // Scrub.
    /// Records that verify are taken for right, whether they are a codeword or not.
    ScrubNoCode = "scrub-no-code",
    /// Only the newest state of a row is held against the others, and not what snapshots hold.
    ScrubNoSnaps = "scrub-no-snaps",
    /// What looks wrong on a page is believed, though its row may have changed while it was read.
    ScrubOneLook = "scrub-one-look",
    /// A record that verifies and has wrong bytes counts among what its slot is repaired from.
    ScrubMiscoded = "scrub-miscoded",

    // The map.
    /// Commands are accepted whatever epoch they were planned against.
    NoEpochCompare = "no-epoch-compare",
    /// That groups are offline does not raise the epoch.
    OfflineSameEpoch = "offline-same-epoch",
    /// In-sync sets shrink below the number of data slots.
    ShrinkBelowData = "shrink-below-data",
    /// A shrink does not raise the epoch.
    ShrinkSameEpoch = "shrink-same-epoch",
    /// A slot grows in though its store has been started anew since it was compared.
    GrowAnyStart = "grow-any-start",
    /// A store is called clean whatever run its disk is of.
    BelieveAnyRun = "believe-any-run",
    /// A store whose disk is of another run stays in sync, and others are taken out in its stead.
    PutBackInSync = "put-back-in-sync",
    /// Where not all silent stores can be spared some of them are taken out.
    ShrinkInPart = "shrink-in-part",
    /// In-sync sets shrink to as many as data slots although one of those may have forgotten something.
    DoubtedToData = "doubted-to-data",
    /// Who held a slot before it moved is never let go of.
    KeepHolders = "keep-holders",
    /// Slots go to nodes that are to be emptied.
    PlanToDraining = "plan-to-draining",
    /// A plan gives a node two slots of a group.
    PlanTwoOnANode = "plan-two-on-a-node",
    /// A plan moves slots that make nothing more even.
    PlanForNothing = "plan-for-nothing",
    /// A suspect denies what it may have had by a repair.
    DenyRepaired = "deny-repaired",
    /// Silent stores are taken out no later because those that remain may have gone back.
    HastenOn = "hasten-on",
    /// Silent stores are taken out although those that remain were not heard of late.
    ShrinkUnheard = "shrink-unheard",
}

#[cfg(feature = "mutants")]
std::thread_local! {
    static LIVING: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Breaks a rule on this thread from now on, or none.
#[cfg(feature = "mutants")]
pub fn set(mutant: Option<Mutant>) {
    LIVING.set(mutant);
}

/// Whether this rule is broken.
#[cfg(feature = "mutants")]
pub fn lives(mutant: Mutant) -> bool {
    LIVING.get() == Some(mutant)
}

/// Whether this rule is broken: never, in a build for use.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn lives(_: Mutant) -> bool {
    false
}
