//! What every volume and every store is told of repairs elsewhere, and of how clients bear them: so those of
//! one volume back off for clients of another one, whichever nodes coordinate them.

use super::Member;
use crate::coder::CoderMsg;
use crate::shard_store::{ShardStoreMsg, StoreHandle};
use smalti_rowcommit::governor::Burden;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// With what other nodes answer ten times a second it gets everywhere within a quarter of one.
const EVERY: Duration = Duration::from_millis(50);

fn sum(burdens: impl IntoIterator<Item = Burden>) -> Burden {
    burdens.into_iter().fold(Burden::default(), Burden::and)
}

/// Without the one at `but`.
fn all_but(burdens: &[Burden], but: usize) -> Burden {
    sum(burdens.iter().enumerate().filter(|(at, _)| *at != but).map(|(_, burden)| *burden))
}

impl Member {
    pub(super) async fn keep_told(self) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.inner.stop.clone();
        // Once more after it has ended, so that everybody hears of that.
        let mut told = false;
        while stop.run_until_cancelled(every.tick()).await.is_some() {
            let coders = self.coders();
            let mut burdens: Vec<Burden> = coders.iter().map(|coder| coder.burden()).collect();
            let rewrites = self.inner.stores.iter().any(StoreHandle::rewrites);
            let stores = Burden { at_work: rewrites, ..Burden::default() };
            let here = sum(burdens.iter().copied()).and(stores);
            self.inner.burden.send_replace(here);
            let elsewhere = self.beats().burden();
            let any = here.and(elsewhere).at_work;
            if !any && !std::mem::replace(&mut told, any) {
                continue;
            }
            told = any;
            burdens.push(elsewhere);
            for (at, coder) in coders.iter().enumerate() {
                let around = CoderMsg::Around(all_but(&burdens, at).and(stores));
                // It may have ended meanwhile.
                let _ = coder.actor().cast(around);
            }
            let around = sum(burdens);
            for store in &self.inner.store_actors {
                // Likewise.
                let _ = store.cast(ShardStoreMsg::Around(around));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hears_of_all_the_others() {
        let busy = Burden { busy: true, ..Burden::default() };
        let waits = Burden { waits: true, ..busy };
        let at_work = Burden { at_work: true, ..Burden::default() };
        let all = [busy, waits, at_work];
        assert_eq!(all_but(&all, 0), Burden { at_work: true, busy: true, waits: true });
        assert_eq!(all_but(&all, 1), Burden { at_work: true, busy: true, waits: false });
        assert_eq!(all_but(&all, 2), waits);
        assert_eq!(sum(all), all_but(&all, 0));
        assert_eq!(all_but(&[busy], 0), Burden::default());
    }
}
