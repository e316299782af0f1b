//! What a custodian does with what it is asked: judged by the map, noted, done with the shares on its disk. It
//! sends nothing and knows no time but the one it is given.

use super::audit::{AuditEvent, AuditLog, Note};
use super::judge::{self, Brought, Names};
use super::limits::{BURST, Limits};
use super::wire::{Answer, Ask, DealerBytes, ENTRIES_MAX, SECRETS_MAX, ShareBytes};
use super::{Holdings, Vault, VaultError};
use smalti_map::{ClusterMap, Custodians};
use smalti_storage::ids::NodeId;
use smalti_storage::keys::{
    Commitments, Dealer, Dealing, Dealt, KeyPart, PartProof, RestError, SecretName, ShareName,
    combine_commitments, combine_parts, reshare_part, system_rng, verify_dealer, verify_part,
};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a share that was read is taken to be there.
const VERIFIED_FOR: Duration = Duration::from_secs(3600);

/// Whoever asks for the same again within this time has it already: that costs it nothing, and is noted once. A
/// volume of several key epochs is opened in more than one try where one of its custodians is slow.
const REPEATED_WITHIN: Duration = Duration::from_secs(10);
/// Dealings of one secret for one share epoch of which a custodian keeps a share. There are as many as
/// tries to recover it.
const DEALINGS_MAX: usize = 8;

/// Who asks, when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) map: &'a ClusterMap,
    pub(crate) from: NodeId,
    pub(crate) now: Instant,
    /// Unix seconds.
    pub(crate) time: u64,
}

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is answered.
    Answer(Answer),
    /// Each of these is to be asked; if all keep what they are given, the answer is that it was dealt on.
    Deal { gifts: Vec<(NodeId, Ask)>, commitments: Vec<u8> },
}

/// What was taken of a dealer, until it is combined or the custodians change again.
struct Taken {
    share_epoch: u32,
    part: KeyPart,
    commitments: Commitments,
}

/// One custodian.
pub(crate) struct Core {
    me: NodeId,
    vault: Vault,
    audit: AuditLog,
    limits: Limits,
    /// In memory only: whoever forgets it is given it anew.
    taken: BTreeMap<(ShareName, u8), Taken>,
    /// What was dealt on, for which share epoch: the same again to whoever asks again. Others would make what
    /// was taken useless, and fill the logs.
    dealt: BTreeMap<(ShareName, u32), Dealing>,
    /// Who was given what just now.
    released: BTreeMap<(NodeId, ShareName), Instant>,
    /// The shares of the map after which nothing was left to destroy.
    swept: Option<Names>,
    /// Shares that are noted as destroyed, until they are.
    condemned: BTreeSet<ShareName>,
    /// Shares that were read and verified, and since when that is believed.
    verified: (BTreeSet<ShareName>, Option<Instant>),
    /// Shares that it has said to be missing.
    missed: BTreeSet<ShareName>,
    /// What it has said to keep it from using its shares.
    told: String,
}

/// Why a share is not known to be here.
enum Unheld {
    /// Its key is out of reach.
    Unopened(RestError),
    /// It is not there, or is not what it should be.
    Lost(String),
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Core {
    /// The custodian whose shares are in `vault`; its log is with them.
    pub(crate) fn open(me: NodeId, vault: Vault, time: u64) -> Self {
        let audit = AuditLog::open(vault.folder(), time);
        Self {
            me,
            vault,
            audit,
            limits: Limits::default(),
            taken: BTreeMap::new(),
            dealt: BTreeMap::new(),
            released: BTreeMap::new(),
            swept: None,
            condemned: BTreeSet::new(),
            verified: (BTreeSet::new(), None),
            missed: BTreeSet::new(),
            told: String::new(),
        }
    }

    /// Where its log is.
    pub(crate) fn audit_path(&self) -> PathBuf {
        self.audit.path()
    }

    pub(crate) fn ask(&mut self, context: &Context<'_>, ask: Ask) -> Outcome {
        let before = |share| self.released.get(&(context.from, share));
        let repeated = ask
            .release_of()
            .and_then(before)
            .is_some_and(|at| context.now.saturating_duration_since(*at) < REPEATED_WITHIN);
        // That it is asked too often is not noted, or the log would grow by it.
        if ask.is_counted()
            && !repeated
            && let Err(wait) = self.limits.take(context.from, context.now, burst(context.map))
        {
            let seconds = wait.as_secs_f32().max(0.1);
            return refused(format!("asked too often: again in {seconds:.1} s"));
        }
        let (event_share, counted) = (ask.share(), ask.is_counted());
        let outcome = match ask {
            Ask::Keep { secret, share_epoch, share, commitments } => {
                self.keep(context, secret, share_epoch, &share, &commitments)
            }
            Ask::Release { share } => self.release(context, &share, repeated),
            Ask::DealOn { share, share_epoch } => self.deal_on(context, &share, share_epoch),
            Ask::Take { from, share_epoch, dealer, share, commitments } => {
                self.take(context, from, share_epoch, (dealer, &share, &commitments))
            }
            Ask::Combine { from, share_epoch, dealers } => {
                self.combine(context, &from, share_epoch, &dealers)
            }
            Ask::Prove { challenge, shares } => return self.prove(context, &challenge, &shares),
            Ask::Audit { after } => {
                return match self.audit.after(after, ENTRIES_MAX) {
                    Ok(lines) => Outcome::Answer(Answer::Entries(lines)),
                    Err(error) => refused(format!("its log can not be read: {error}")),
                };
            }
        };
        outcome.unwrap_or_else(|why| {
            tracing::warn!(from = %context.from, %why, "custodian refused");
            if counted {
                let share = event_share.map(|share| share.to_string());
                let (event, node) = (AuditEvent::Refused, Some(context.from));
                let note = Note { event, node, share, detail: Some(why.clone()) };
                if let Err(error) = self.audit.append(note, context.time) {
                    tracing::error!(%error, "the audit log can not be written");
                }
            }
            refused(why)
        })
    }

    /// Destroys shares of key epochs that have ended, and of dealings that the map took another one instead
    /// of.
    pub(crate) fn sweep(&mut self, map: &ClusterMap, time: u64) -> Result<(), String> {
        let now = map.custodians.share_epoch;
        self.taken.retain(|(of, _), taken| taken.share_epoch >= now && judge::is_of_use(map, of));
        self.dealt.retain(|(of, epoch), _| *epoch >= now && judge::is_of_use(map, of));
        let names = judge::names(map);
        if self.swept.as_ref() == Some(&names) {
            return Ok(());
        }
        let mut kept = self.vault.names().map_err(|error| error.to_string())?;
        kept.retain(|share| !judge::is_wanted(map, share));
        // K7.
        let (spared, unwanted): (BTreeSet<_>, BTreeSet<_>) =
            kept.into_iter().partition(|share| !self.has_successor(map, share));
        let is_wanted = |share: &ShareName| judge::is_wanted(map, share) || spared.contains(share);
        for share in unwanted {
            if !self.condemned.contains(&share) {
                self.note(AuditEvent::Destroyed, None, &share, None, time)?;
                self.condemned.insert(share);
            }
        }
        for share in self.vault.retain(is_wanted).map_err(|error| error.to_string())? {
            tracing::info!(%share, "share destroyed");
        }
        self.condemned.clear();
        self.swept = Some(names).filter(|_| spared.is_empty());
        Ok(())
    }

    /// Whether this custodian can do without a share: its secret has ended or is with others, or it has the
    /// share that the map names instead.
    fn has_successor(&self, map: &ClusterMap, share: &ShareName) -> bool {
        let Some(custody) = map.custody_of(&share.secret) else { return true };
        let Some(index) = custody.share_of(self.me) else { return true };
        let share = custody.share_name(share.secret);
        verify_held(&self.vault, &share, index, &custody.commitments).is_ok()
    }

    /// The shares that the map says it has.
    fn own_shares<'a>(
        &self,
        map: &'a ClusterMap,
    ) -> impl Iterator<Item = (ShareName, u8, &'a [u8])> + use<'a> {
        let me = self.me;
        map.custodies().filter_map(move |(secret, custody)| {
            let index = custody.share_of(me)?;
            Some((custody.share_name(secret), index, custody.commitments.as_slice()))
        })
    }

    /// What is known before there is a map.
    pub(crate) fn first_holdings(&mut self) -> Holdings {
        let problem = self.tell(self.vault.ready().err());
        Holdings { lacking: 0, problem }
    }

    /// Whether it has the shares that the map says it has. Each is read again once in a while, for a disk may lose
    /// what it had. One whose key is out of reach is not lost.
    pub(crate) fn holdings(&mut self, map: &ClusterMap, now: Instant) -> Holdings {
        let named: BTreeMap<_, _> = self
            .own_shares(map)
            .map(|(share, index, commitments)| (share, (index, commitments)))
            .collect();
        let (verified, since) = &mut self.verified;
        if since.is_none_or(|since| now.saturating_duration_since(since) >= VERIFIED_FOR) {
            (*verified, *since) = (BTreeSet::new(), Some(now));
        }
        verified.retain(|share| named.contains_key(share));
        let mut lacking = 0;
        let mut barred = self.vault.ready().err();
        for (share, (index, commitments)) in named {
            if verified.contains(&share) {
                continue;
            }
            match verify_held(&self.vault, &share, index, commitments) {
                Ok(()) => {
                    verified.insert(share);
                    self.missed.remove(&share);
                }
                Err(Unheld::Unopened(error)) => barred = barred.or(Some(error)),
                Err(Unheld::Lost(why)) => {
                    lacking += 1;
                    if self.missed.insert(share) {
                        tracing::warn!(%share, why, "a share is not here that should be");
                    }
                }
            }
        }
        Holdings { lacking, problem: self.tell(barred) }
    }

    /// What keeps it from using its shares, as in "it is ..."; logged when it changes.
    fn tell(&mut self, barred: Option<RestError>) -> String {
        let problem = match barred {
            None if self.audit.is_failed() => {
                "not able to write its audit log: the log of its node says why".into()
            }
            None => String::new(),
            Some(RestError::Locked) => RestError::Locked.to_string(),
            Some(error) => format!("without its key: {error}"),
        };
        if self.told != problem {
            match problem.as_str() {
                "" => tracing::info!("the custodian of this node can use its shares"),
                problem => tracing::warn!("the custodian of this node is {problem}"),
            }
            self.told.clone_from(&problem);
        }
        problem
    }

    fn note(
        &mut self,
        event: AuditEvent,
        node: Option<NodeId>,
        share: &ShareName,
        detail: Option<String>,
        time: u64,
    ) -> Result<(), String> {
        let note = Note { event, node, share: Some(share.to_string()), detail };
        self.audit.append(note, time).map_err(|error| format!("the audit log: {error}"))
    }

    /// Keeps a share beside any other dealing of that secret, until the map says which one counts. Of one
    /// dealing the first share stays, or whoever has another one could put his in its place.
    fn keep_part(
        &mut self,
        context: &Context<'_>,
        event: AuditEvent,
        share: &ShareName,
        part: &KeyPart,
        detail: Option<&str>,
    ) -> Result<Outcome, String> {
        // It may come late, when the secret has other shares by now.
        self.swept = None;
        match self.vault.find(share) {
            // It may not have been durable when that failed before.
            Ok(held) if held.to_bytes() == part.to_bytes() => {
                self.vault.sync().map_err(|error| error.to_string())?;
            }
            Ok(_) => return Err("another share of that dealing is kept".into()),
            Err(VaultError::Absent) => {
                let detail = detail.map(str::to_owned);
                self.note(event, Some(context.from), share, detail, context.time)?;
                self.vault.keep(share, part).map_err(|error| error.to_string())?;
            }
            Err(error) => return Err(error.to_string()),
        }
        Ok(Outcome::Answer(Answer::Kept))
    }

    fn keep(
        &mut self,
        context: &Context<'_>,
        secret: SecretName,
        share_epoch: u32,
        share: &ShareBytes,
        commitments: &[u8],
    ) -> Result<Outcome, String> {
        let name = ShareName { secret, share_epoch, dealing: Dealt::of(commitments) };
        let part = KeyPart::from_bytes(&share.0).map_err(|error| error.to_string())?;
        let commitments = read_commitments(commitments)?;
        verify_part(&part, &commitments).map_err(|error| error.to_string())?;
        let brought = (&part, &commitments);
        let detail = match judge::keep(context.map, context.from, self.me, &name, brought)? {
            Brought::New => None,
            Brought::Other => {
                self.check_room(&name)?;
                None
            }
            Brought::Anew => {
                self.check_room(&name)?;
                Some("dealt anew for recovery")
            }
        };
        self.keep_part(context, AuditEvent::Kept, &name, &part, detail)
    }

    /// Whoever brings shares that nobody wants must not fill the disk with them.
    fn check_room(&self, share: &ShareName) -> Result<(), String> {
        let kept = self.vault.names().map_err(|error| error.to_string())?;
        let of_that = |kept: &&ShareName| {
            (kept.secret, kept.share_epoch) == (share.secret, share.share_epoch) && *kept != share
        };
        match kept.iter().filter(of_that).count() {
            count if count >= DEALINGS_MAX => Err(format!(
                "{count} shares of that secret are kept for share epoch {} already: they go when the custodians \
                 are named again",
                share.share_epoch
            )),
            _ => Ok(()),
        }
    }

    fn release(
        &mut self,
        context: &Context<'_>,
        share: &ShareName,
        repeated: bool,
    ) -> Result<Outcome, String> {
        judge::release(context.map, context.from, share)?;
        let part = self.vault.find(share).map_err(|error| error.to_string())?;
        if !repeated {
            self.note(AuditEvent::Released, Some(context.from), share, None, context.time)?;
            let age = |at: &Instant| context.now.saturating_duration_since(*at);
            self.released.retain(|_, at| age(at) < REPEATED_WITHIN);
            self.released.insert((context.from, *share), context.now);
        }
        tracing::info!(from = %context.from, %share, "share released");
        Ok(Outcome::Answer(Answer::Released(ShareBytes(part.to_bytes()))))
    }

    fn deal_on(
        &mut self,
        context: &Context<'_>,
        share: &ShareName,
        share_epoch: u32,
    ) -> Result<Outcome, String> {
        let (plan, old) = judge::deal_on(context.map, context.from, share, share_epoch)?;
        let part = self.vault.find(share).map_err(|error| error.to_string())?;
        verify_part(&part, &old).map_err(|error| error.to_string())?;
        let index = part.index();
        let again = self.dealt.contains_key(&(*share, share_epoch));
        let dealing = match self.dealt.entry((*share, share_epoch)) {
            Entry::Occupied(dealt) => dealt.into_mut(),
            Entry::Vacant(place) => place.insert(deal(&part, plan)?),
        };
        let commitments = dealing.commitments.to_bytes();
        let gift = |(to, part): (NodeId, &KeyPart)| {
            let (share_bytes, commitments) = (ShareBytes(part.to_bytes()), commitments.clone());
            let ask = Ask::Take {
                from: *share,
                share_epoch,
                dealer: index,
                share: share_bytes,
                commitments,
            };
            (to, ask)
        };
        let gifts = plan.nodes().zip(&dealing.parts).map(gift).collect();
        if !again {
            let detail = Some(format!("for share epoch {share_epoch}"));
            let noted =
                self.note(AuditEvent::DealtOn, Some(context.from), share, detail, context.time);
            if let Err(why) = noted {
                // Or it would be dealt on the next time without a note.
                self.dealt.remove(&(*share, share_epoch));
                return Err(why);
            }
        }
        Ok(Outcome::Deal { gifts, commitments })
    }

    fn take(
        &mut self,
        context: &Context<'_>,
        from: ShareName,
        share_epoch: u32,
        (index, share, commitments): (u8, &ShareBytes, &[u8]),
    ) -> Result<Outcome, String> {
        let (plan, old) = judge::deal_on(context.map, context.from, &from, share_epoch)?;
        judge::dealer(context.map, context.from, &from, index)?;
        let own = judge::own_share(plan, self.me)?;
        let commitments = read_commitments(commitments)?;
        let words = |error: smalti_storage::keys::PartError| error.to_string();
        let part = KeyPart::from_bytes(&share.0).map_err(words)?;
        if part.index() != own {
            return Err(format!("share {} is given, {own} is to be here", part.index()));
        }
        if commitments.threshold() != usize::from(plan.threshold) {
            return Err(format!("dealt for a threshold of {}", commitments.threshold()));
        }
        verify_dealer(&old, &Dealer { index, commitments: commitments.clone() }).map_err(words)?;
        verify_part(&part, &commitments).map_err(words)?;
        self.taken.insert((from, index), Taken { share_epoch, part, commitments });
        Ok(Outcome::Answer(Answer::Kept))
    }

    fn combine(
        &mut self,
        context: &Context<'_>,
        from: &ShareName,
        share_epoch: u32,
        dealers: &[DealerBytes],
    ) -> Result<Outcome, String> {
        let (plan, old) = judge::deal_on(context.map, context.from, from, share_epoch)?;
        let own = judge::own_share(plan, self.me)?;
        let dealers = read_dealers(dealers)?;
        let combined = combine_commitments(&old, &dealers).map_err(|error| error.to_string())?;
        let dealing = Dealt::of(&combined.to_bytes());
        let name = ShareName { secret: from.secret, share_epoch, dealing };
        // Asked again, after the answer was lost.
        let is_good = |part: KeyPart| part.index() == own && verify_part(&part, &combined).is_ok();
        if self.vault.find(&name).is_ok_and(is_good) {
            self.vault.sync().map_err(|error| error.to_string())?;
            return Ok(Outcome::Answer(Answer::Kept));
        }
        let given = dealers.iter().map(|dealer| {
            let taken = self.taken.get(&(*from, dealer.index));
            let taken = taken.filter(|taken| taken.commitments == dealer.commitments);
            let taken = taken.filter(|taken| taken.share_epoch == share_epoch);
            let index = dealer.index;
            Ok(taken.ok_or_else(|| format!("nothing was taken of dealer {index}"))?.part.clone())
        });
        let given: Vec<KeyPart> = given.collect::<Result<_, String>>()?;
        let part = combine_parts(&old, &dealers, &given).map_err(|error| error.to_string())?;
        let outcome = self.keep_part(context, AuditEvent::Combined, &name, &part, None)?;
        self.taken.retain(|(of, _), _| of != from);
        Ok(outcome)
    }

    fn prove(&self, context: &Context<'_>, challenge: &[u8; 32], shares: &[ShareName]) -> Outcome {
        if !context.map.nodes.contains_key(&context.from) || shares.len() > SECRETS_MAX {
            return refused("no proofs for that".into());
        }
        let mut rng = match system_rng() {
            Ok(rng) => rng,
            Err(error) => return refused(error.to_string()),
        };
        let mut prove = |share: &ShareName| {
            let part = self.vault.find(share).map_err(|error| error.to_string())?;
            let challenge = proof_challenge(challenge, share, self.me);
            Ok(PartProof::new(&part, &challenge, &mut rng).to_bytes())
        };
        Outcome::Answer(Answer::Proofs(shares.iter().map(&mut prove).collect()))
    }
}

impl Ask {
    /// The share that it is about.
    fn share(&self) -> Option<ShareName> {
        match self {
            Self::Release { share } | Self::DealOn { share, .. } => Some(*share),
            Self::Take { from, .. } | Self::Combine { from, .. } => Some(*from),
            Self::Keep { secret, share_epoch, commitments, .. } => Some(ShareName {
                secret: *secret,
                share_epoch: *share_epoch,
                dealing: Dealt::of(commitments),
            }),
            Self::Prove { .. } | Self::Audit { .. } => None,
        }
    }

    /// The share that is to be given out.
    fn release_of(&self) -> Option<ShareName> {
        let Self::Release { share } = self else { return None };
        Some(*share)
    }

    /// Whether it is of those that nobody needs often.
    fn is_counted(&self) -> bool {
        matches!(self, Self::Release { .. } | Self::Keep { .. })
    }
}

/// What a node may have at once: all of what there is, for it may have to take over every volume.
fn burst(map: &ClusterMap) -> u32 {
    BURST.max(u32::try_from(map.custodies().count()).unwrap_or(u32::MAX))
}

fn verify_held(
    vault: &Vault,
    share: &ShareName,
    index: u8,
    commitments: &[u8],
) -> Result<(), Unheld> {
    let part = vault.find(share).map_err(|error| match error {
        VaultError::Provider(error) => Unheld::Unopened(error),
        error => Unheld::Lost(error.to_string()),
    })?;
    if part.index() != index {
        return Err(Unheld::Lost(format!("it is share {}, not {index}", part.index())));
    }
    let commitments = read_commitments(commitments).map_err(Unheld::Lost)?;
    verify_part(&part, &commitments).map_err(|error| Unheld::Lost(error.to_string()))
}

/// What a proof is made for: the question, of whom it is asked, and for which share.
pub(crate) fn proof_challenge(challenge: &[u8; 32], share: &ShareName, of: NodeId) -> Vec<u8> {
    [&challenge[..], &of.0.to_be_bytes(), share.to_string().as_bytes()].concat()
}

pub(crate) fn read_dealers(dealers: &[DealerBytes]) -> Result<Vec<Dealer>, String> {
    let read = |dealer: &DealerBytes| {
        Ok(Dealer { index: dealer.index, commitments: read_commitments(&dealer.commitments)? })
    };
    dealers.iter().map(read).collect()
}

pub(crate) fn read_commitments(bytes: &[u8]) -> Result<Commitments, String> {
    Commitments::from_bytes(bytes).map_err(|error| error.to_string())
}

fn deal(part: &KeyPart, plan: &Custodians) -> Result<Dealing, String> {
    let parts = u8::try_from(plan.holders.len()).map_err(|_| "too many custodians".to_owned())?;
    let mut rng = system_rng().map_err(|error| error.to_string())?;
    reshare_part(part, plan.threshold, parts, &mut rng).map_err(|error| error.to_string())
}

fn refused(why: String) -> Outcome {
    Outcome::Answer(Answer::Refused(why))
}
