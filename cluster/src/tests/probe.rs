//! What links hand to sessions and what writers make of it, noted at both ends, and whether the
//! contract of [`crate::transport`] explains it.

use smalti_rowcommit::msg::{Answer, Frame, Reject, Reply};
use smalti_storage::ids::{StoreId, VolumeNo};
use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// By store and volume; stores have an identity of their own in every test, so one place for all
/// tests of the process will do.
static NOTES: Mutex<BTreeMap<(StoreId, VolumeNo), Notes>> = Mutex::new(BTreeMap::new());

/// What happened between one coder and one store.
#[derive(Debug, Default)]
struct Notes {
    /// Per session, what goes through the writer: frames given to the link, ...
    sent: BTreeMap<u64, Vec<u64>>,
    /// ... frames that came to the writer, in order, and what it did, ...
    served: Vec<(u64, u64, Did)>,
    /// ... its answers, ...
    answered: BTreeMap<u64, Vec<u64>>,
    /// ... and all replies that came back, those to reads among them.
    heard: BTreeMap<u64, Vec<u64>>,
}

/// What a writer made of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Did {
    Served,
    /// Nobody whom it obeys: it is as if the frame had not come.
    Refused,
    /// Of an older session.
    Dropped,
}

impl Did {
    fn of(reply: Option<&Reply>) -> Self {
        let stale = |answer: &Answer| matches!(answer, Answer::Rejected(Reject::StaleEpoch { .. }));
        match reply {
            None => Self::Dropped,
            Some(reply) if reply.answers.iter().all(|(_, answer)| stale(answer)) => Self::Refused,
            Some(_) => Self::Served,
        }
    }
}

fn notes() -> MutexGuard<'static, BTreeMap<(StoreId, VolumeNo), Notes>> {
    NOTES.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn print(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Whether a frame goes through the writer, and so has a place in the order.
pub(crate) fn is_ordered(frame: &Frame) -> bool {
    frame.requests.is_empty() || !frame.requests.iter().all(|request| request.ask.is_read())
}

/// A coder gave a frame to its link.
pub(crate) fn sent(store: StoreId, frame: &Frame) {
    if is_ordered(frame) {
        let print = print(frame);
        let mut all = notes();
        let notes = all.entry((store, frame.volume)).or_default();
        notes.sent.entry(frame.session).or_default().push(print);
    }
}

/// A writer took a frame, whose print is given, and made this of it.
pub(crate) fn served(
    store: StoreId,
    volume: VolumeNo,
    session: u64,
    frame: u64,
    reply: Option<&Reply>,
) {
    let mut all = notes();
    let notes = all.entry((store, volume)).or_default();
    notes.served.push((session, frame, Did::of(reply)));
    if let Some(reply) = reply {
        notes.answered.entry(session).or_default().push(print(reply));
    }
}

/// A link got a reply.
pub(crate) fn heard(store: StoreId, reply: &Reply) {
    let mut all = notes();
    let notes = all.entry((store, reply.volume)).or_default();
    notes.heard.entry(reply.session).or_default().push(print(reply));
}

/// What was found of some stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) sessions: usize,
    pub(super) frames: usize,
    pub(super) replies: usize,
    /// Frames of an older session that the writer turned away.
    pub(super) late: usize,
    /// Of all events in their order.
    pub(super) print: u64,
}

/// Forgets what was noted of these stores, after a look at whether the contract was kept.
pub(super) fn check(stores: &[StoreId]) -> Result<Found, String> {
    let mut all = notes();
    let keys: Vec<_> = all.keys().filter(|(store, _)| stores.contains(store)).copied().collect();
    let mut found = Found::default();
    for key in keys {
        let Some(notes) = all.remove(&key) else { continue };
        let index = stores.iter().position(|store| *store == key.0);
        check_one(&notes, &mut found)
            .map_err(|why| format!("store {index:?}, volume {}: {why}", key.1))?;
    }
    Ok(found)
}

fn check_one(notes: &Notes, found: &mut Found) -> Result<(), String> {
    let mut newest = 0;
    let mut taken: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (session, print, did) in &notes.served {
        if *did == Did::Served && *session < newest {
            return Err(format!("T3: session {session} was served after {newest} began"));
        }
        match did {
            Did::Served => newest = newest.max(*session),
            Did::Refused => {}
            Did::Dropped => found.late += 1,
        }
        taken.entry(*session).or_default().push(*print);
    }
    for (session, prints) in &taken {
        let sent = notes.sent.get(session).map_or(&[][..], Vec::as_slice);
        is_prefix(prints, sent).map_err(|why| format!("T1: frames of session {session}: {why}"))?;
    }
    for (session, prints) in &notes.heard {
        // Replies to reads come when they come; those of the writer have an order.
        let answered = notes.answered.get(session).map_or(&[][..], Vec::as_slice);
        let ordered: Vec<u64> =
            prints.iter().filter(|print| answered.contains(print)).copied().collect();
        is_prefix(&ordered, answered)
            .map_err(|why| format!("T1: replies of session {session}: {why}"))?;
        found.replies += prints.len();
    }
    found.sessions += notes.sent.len();
    found.frames += notes.served.len();
    let events = (&notes.sent, &notes.served, &notes.heard);
    found.print = print(&(found.print, events));
    Ok(())
}

fn is_prefix(got: &[u64], sent: &[u64]) -> Result<(), String> {
    match got.iter().zip(sent).position(|(got, sent)| got != sent) {
        Some(at) => {
            let what = match sent.iter().position(|print| *print == got[at]) {
                Some(later) if later > at => format!("{} before it were lost", later - at),
                Some(earlier) => format!("it is number {earlier} once more"),
                None => "nobody sent it".into(),
            };
            Err(format!("number {at} of {} is out of order: {what}", sent.len()))
        }
        None if got.len() > sent.len() => Err("more came than were sent".into()),
        None => Ok(()),
    }
}
