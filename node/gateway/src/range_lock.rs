//! Locks on ranges of blocks, exclusive and fair.
//!
//! A new lock waits for every earlier one that it overlaps, held or itself waiting; so nobody is
//! overtaken by somebody in their way, and locks that do not overlap never wait. Each entry counts
//! the earlier entries in its way, and whoever leaves counts itself out of the later ones.
//!
//! Entries stand in one short list that is searched from end to end. That is quicker than a tree
//! for the some hundred writes that are ever called at once; the callers' limits bound them.

use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Default)]
pub(crate) struct RangeLocks {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    waiting: usize,
    entries: Vec<Entry>,
}

struct Entry {
    id: u64,
    range: Range<u64>,
    /// Earlier entries that overlap.
    in_the_way: usize,
    waker: Option<Waker>,
}

/// Holds a range, or its place in the queue for it.
pub(crate) struct RangeGuard {
    locks: Arc<RangeLocks>,
    id: u64,
}

/// Resolves to the guard when the range is free. Dropped before, it leaves the queue.
pub(crate) struct Acquire {
    guard: Option<RangeGuard>,
    granted: bool,
}

impl RangeLocks {
    /// Queues for a range at once, not only when the future is polled.
    pub(crate) fn acquire(self: &Arc<Self>, range: Range<u64>) -> Acquire {
        let mut state = self.lock();
        let in_the_way = state.entries.iter().filter(|entry| overlap(&entry.range, &range)).count();
        let id = state.next_id;
        state.next_id += 1;
        state.waiting += usize::from(in_the_way > 0);
        state.entries.push(Entry { id, range, in_the_way, waker: None });
        let guard = RangeGuard { locks: Arc::clone(self), id };
        Acquire { guard: Some(guard), granted: in_the_way == 0 }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    fn leave(&self, id: u64) {
        let mut wakers = Vec::new();
        let mut state = self.lock();
        let Some(at) = state.entries.iter().position(|entry| entry.id == id) else { return };
        let gone = state.entries.swap_remove(at);
        state.waiting -= usize::from(gone.in_the_way > 0);
        if state.waiting > 0 {
            let mut freed = 0;
            for entry in &mut state.entries {
                if entry.id > id && overlap(&entry.range, &gone.range) {
                    entry.in_the_way -= 1;
                    if entry.in_the_way == 0 {
                        freed += 1;
                        wakers.extend(entry.waker.take());
                    }
                }
            }
            state.waiting -= freed;
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under it can panic half way but a failing allocation.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Future for Acquire {
    type Output = RangeGuard;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RangeGuard> {
        let this = &mut *self;
        let guard = this.guard.as_ref().expect("not polled again after it was ready");
        if !this.granted {
            let mut state = guard.locks.lock();
            let entry = state.entries.iter_mut().find(|entry| entry.id == guard.id);
            let entry = entry.expect("an entry stays until its guard is dropped");
            if entry.in_the_way > 0 {
                entry.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        Poll::Ready(this.guard.take().expect("checked above"))
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        self.locks.leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use proptest::prelude::*;

    fn ready(acquire: &mut Acquire) -> Option<RangeGuard> {
        acquire.now_or_never()
    }

    #[test]
    fn a_lock_waits_for_those_before_it_only() {
        let locks = Arc::new(RangeLocks::default());
        let first = ready(&mut locks.acquire(0..4)).expect("free");
        let mut second = locks.acquire(2..8);
        let mut third = locks.acquire(6..9);
        assert!(ready(&mut second).is_none(), "overlaps a held range");
        assert!(ready(&mut third).is_none(), "would overtake the second");
        let apart = ready(&mut locks.acquire(9..10)).expect("touching is not overlapping");
        drop(first);
        let second = ready(&mut second).expect("nothing before it");
        assert!(ready(&mut third).is_none());
        drop(second);
        let third = ready(&mut third).expect("nothing before it");
        drop((apart, third));
        assert_eq!(locks.len(), 0);
    }

    #[test]
    fn one_who_gives_up_waiting_is_in_nobodys_way() {
        let locks = Arc::new(RangeLocks::default());
        let held = ready(&mut locks.acquire(0..4)).expect("free");
        let mut impatient = locks.acquire(0..8);
        let mut last = locks.acquire(6..9);
        assert!(ready(&mut impatient).is_none() && ready(&mut last).is_none());
        drop(impatient);
        assert!(ready(&mut last).is_some());
        drop(held);
    }

    proptest! {
        /// Against the rule itself, applied to the whole history at each step.
        #[test]
        fn granted_is_who_has_no_earlier_overlap(
            steps in proptest::collection::vec((0u64..20, 1u64..8, any::<u8>()), 1..60),
        ) {
            let locks = Arc::new(RangeLocks::default());
            let mut live: Vec<(Range<u64>, Result<RangeGuard, Acquire>)> = Vec::new();
            for (start, length, choice) in steps {
                if choice % 2 == 0 && !live.is_empty() {
                    let _released = live.remove(usize::from(choice) / 2 % live.len());
                } else {
                    let range = start..start + length;
                    live.push((range.clone(), Err(locks.acquire(range))));
                }
                for i in 0..live.len() {
                    let free = !live[..i].iter().any(|(range, _)| overlap(range, &live[i].0));
                    let granted = match &mut live[i].1 {
                        Ok(_) => true,
                        Err(acquire) => match ready(acquire) {
                            Some(guard) => {
                                live[i].1 = Ok(guard);
                                true
                            }
                            None => false,
                        },
                    };
                    prop_assert_eq!(granted, free);
                }
            }
            live.clear();
            prop_assert_eq!(locks.len(), 0);
        }
    }
}
