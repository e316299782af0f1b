//! Disks that are done without for a while, because they were far slower than others.
//!
//! What is not written to can not be measured: a disk that is out of sync has its time to recover, and is
//! tried again then. One that was slow again gets twice the time, so that a failing disk costs a
//! resync now and then and no more.

use crate::shard_store::SlowDisk;
use smalti_storage::ids::StoreId;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// No more than 64 times the first time.
const DOUBLINGS: u32 = 6;

/// One that was well for so many times its time begins anew.
const WELL: u32 = 5;

/// The slow disks of late.
#[derive(Debug, Default)]
pub(super) struct SlowStores {
    marks: BTreeMap<StoreId, Mark>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    disk: SlowDisk,
    since: Instant,
    /// How often it has been marked before.
    times: u32,
}

impl Mark {
    fn lasts(&self, time: Duration) -> Duration {
        time * (1 << self.times.min(DOUBLINGS))
    }
}

impl SlowStores {
    /// Takes in which disks are slow now; tells those that are to be done without. `time` is for how
    /// long at first.
    pub(super) fn note(
        &mut self,
        slow: &[SlowDisk],
        time: Duration,
    ) -> BTreeMap<StoreId, SlowDisk> {
        let now = Instant::now();
        self.marks.retain(|_, mark| now.duration_since(mark.since) < mark.lasts(time) * (1 + WELL));
        for disk in slow {
            let fresh = Mark { disk: *disk, since: now, times: 0 };
            let mark = self.marks.entry(disk.store).or_insert(fresh);
            if now.duration_since(mark.since) >= mark.lasts(time) {
                *mark = Mark { times: mark.times + 1, ..fresh };
            }
        }
        let marked = self.marks.iter().filter(|(_, m)| now.duration_since(m.since) < m.lasts(time));
        marked.map(|(store, mark)| (*store, mark.disk)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const TIME: Duration = Duration::from_secs(120);

    fn slow(no: u128) -> SlowDisk {
        let (takes, others) = (Duration::from_millis(300), Duration::from_millis(2));
        SlowDisk { store: StoreId(Uuid::from_u128(no)), takes, others }
    }

    async fn after(secs: u64) {
        tokio::time::advance(Duration::from_secs(secs)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_is_slow_again_is_out_for_twice_as_long() {
        let mut stores = SlowStores::default();
        assert!(stores.note(&[], TIME).is_empty());
        assert_eq!(stores.note(&[slow(1)], TIME).len(), 1);
        after(119).await;
        // It has nothing to do, so nothing is known of it; another one is slow.
        assert_eq!(stores.note(&[slow(2)], TIME).len(), 2);
        after(1).await;
        assert_eq!(stores.note(&[], TIME).into_keys().collect::<Vec<_>>(), [slow(2).store]);
        after(60).await;
        assert_eq!(stores.note(&[slow(1)], TIME).len(), 2);
        after(239).await;
        assert_eq!(stores.note(&[], TIME).into_keys().collect::<Vec<_>>(), [slow(1).store]);
        after(1).await;
        assert!(stores.note(&[], TIME).is_empty());
        // After five times that it is as it was.
        after(5 * 240).await;
        assert_eq!(stores.note(&[slow(1)], TIME).len(), 1);
        after(120).await;
        assert!(stores.note(&[], TIME).is_empty());
    }
}
