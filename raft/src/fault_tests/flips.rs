//! Bits turned over below the checksums: an error, never another vote, entry or snapshot.

use super::cuts::runtime;
use super::workload::{NODE, open, read, steps, take};
use crate::db::{Db, key};
use crate::log_store::LogStore;
use crate::state_machine::{Published, StateMachine};
use openraft::RaftLogReader;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use std::sync::Arc;

/// Of a large value so many bits are turned over, evenly spread.
const BITS_MAX: usize = 600;

#[test]
fn no_turned_bit_of_a_value_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        take(folder.path(), &steps(3, 120), |_| {}).await.unwrap();
        let before = read(&mut open(folder.path()).await.unwrap()).await.unwrap();
        assert!(before.vote.is_some() && before.snapshot.is_some() && !before.entries.is_empty());

        let db = Arc::new(Db::open(folder.path(), NODE).unwrap());
        let mut log = LogStore::new(Arc::clone(&db));
        let load = || StateMachine::load(Arc::clone(&db), Published::default());
        let mut machine = load().await.unwrap();
        let mut turned = 0;
        for family in ["log", "meta"] {
            for (name, good) in db.raw(family) {
                let bits = good.len() * 8;
                for bit in (0..bits).step_by(bits.div_ceil(BITS_MAX)) {
                    let mut bad = good.clone();
                    bad[bit / 8] ^= 1 << (bit % 8);
                    db.put_raw(family, &name, &bad);
                    turned += 1;
                    let refused = if family == "log" {
                        let index = u64::from_be_bytes(name.as_slice().try_into().unwrap());
                        log.try_get_log_entries(index..=index).await.is_err()
                    } else {
                        match name.as_slice() {
                            key::FORMAT => db.meta::<u32>(key::FORMAT).is_err(),
                            key::NODE => db.meta::<u64>(key::NODE).is_err(),
                            key::WITNESS => db.meta::<bool>(key::WITNESS).is_err(),
                            key::VOTE => log.read_vote().await.is_err(),
                            key::COMMITTED => log.read_committed().await.is_err(),
                            key::PURGED => log.get_log_state().await.is_err(),
                            key::SNAPSHOT_META | key::SNAPSHOT_DATA => {
                                machine.get_current_snapshot().await.is_err()
                                    && load().await.is_err()
                            }
                            other => panic!("a value without a test: {other:?}"),
                        }
                    };
                    assert!(refused, "{family} {name:02x?}, bit {bit} of {bits}");
                }
                db.put_raw(family, &name, &good);
            }
        }
        drop((log, machine, db));
        eprintln!("raft: {turned} bits turned over");
        let after = read(&mut open(folder.path()).await.unwrap()).await.unwrap();
        assert!(after == before, "all is as it was");
    });
}
