//! What every volume and every store is told of repairs elsewhere, and of how clients bear them: so those of
//! one volume back off for clients of another one, whichever nodes coordinate them.

use super::Member;
use super::beats::NodeRepairs;
use crate::coder::{CoderHandle, CoderMsg};
use crate::custodian::Holdings;
use crate::shard_store::{ShardStoreMsg, StoreHandle};
use smalti_rowcommit::governor::Burden;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// With what other nodes answer ten times a second it gets everywhere within a quarter of one.
const EVERY: Duration = Duration::from_millis(50);

fn sum(burdens: &[Burden]) -> Burden {
    burdens.iter().copied().fold(Burden::default(), Burden::and)
}

/// For each of them, all the others together.
fn others(burdens: &[Burden]) -> Vec<Burden> {
    let with = |flag: fn(&Burden) -> bool| burdens.iter().filter(|b| flag(b)).count();
    let (at_work, busy, waits) = (with(|b| b.at_work), with(|b| b.busy), with(|b| b.waits));
    let others = |b: &Burden| Burden {
        at_work: at_work > usize::from(b.at_work),
        busy: busy > usize::from(b.busy),
        waits: waits > usize::from(b.waits),
    };
    burdens.iter().map(others).collect()
}

impl Member {
    pub(super) async fn keep_told(self) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.inner.stop.clone();
        // Once more after it has ended, so that everybody hears of that.
        let mut was_told = false;
        while stop.run_until_cancelled(every.tick()).await.is_some() {
            let coders = self.coders();
            let told = |coder: &CoderHandle| (coder.volume(), coder.told());
            let of: Vec<_> = coders.iter().map(told).collect();
            let mut burdens: Vec<Burden> = of.iter().map(|(_, told)| told.burden).collect();
            let rewrites = self.inner.stores.iter().any(StoreHandle::rewrites);
            let stores = Burden { at_work: rewrites, ..Burden::default() };
            let here = sum(&burdens).and(stores);
            let in_vain = of.into_iter().filter(|(_, told)| !told.in_vain.is_empty());
            let in_vain = in_vain.map(|(volume, told)| (volume, told.in_vain)).collect();
            let Holdings { lacking, problem: shares_problem } =
                self.inner.holdings.borrow().clone();
            self.inner.told.send_replace(NodeRepairs {
                burden: here,
                in_vain,
                lacking,
                shares_problem,
                custody_problem: self.inner.custody_problem.borrow().clone(),
            });
            let elsewhere = self.beats().burden();
            let any = here.and(elsewhere).at_work;
            let before = std::mem::replace(&mut was_told, any);
            if !any && !before {
                continue;
            }
            burdens.push(elsewhere);
            for (coder, around) in coders.iter().zip(others(&burdens)) {
                // It may have ended meanwhile.
                let _ = coder.actor().cast(CoderMsg::Around(around.and(stores)));
            }
            let around = sum(&burdens);
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
        let told = others(&all);
        assert_eq!(told[0], Burden { at_work: true, busy: true, waits: true });
        assert_eq!(told[1], Burden { at_work: true, busy: true, waits: false });
        assert_eq!((told[2], sum(&all)), (waits, told[0]));
        assert_eq!(others(&[busy]), [Burden::default()]);
    }
}
