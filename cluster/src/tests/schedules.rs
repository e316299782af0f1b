//! The link's queue under any schedule: what shuttle draws, and prints when it fails.
//!
//! The file is compiled a second time here, onto shuttle's lock instead of the standard one.

mod sync {
    pub(super) use shuttle::sync::{Mutex, MutexGuard};
}

#[expect(clippy::duplicate_mod, reason = "the same code onto another lock")]
#[path = "../coder/queue.rs"]
mod queue;

use bytes::Bytes;
use futures::future::{Either, select};
use queue::{BYTES, FrameQueue};
use shuttle::future::block_on;
use shuttle::sync::mpsc;
use shuttle::thread;
use smalti_rowcommit::msg::{Ask, Frame, Request, Update};
use smalti_storage::ids::{Epoch, GroupNo, Incarnation, RowAddr, Slot, Ver, VolumeNo, Wid};
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;

const SCHEDULES: usize = 3000;

fn frame(session: u64, id: u64, record: &Bytes) -> Frame {
    let ask = Ask::PrepData {
        row: RowAddr { group: GroupNo(0), stripe: 0, index: 0 },
        slot: Slot(0),
        update: Update::default(),
        base: Ver::NONE,
        wid: Wid { generation: 1, seq: id },
        record: record.clone(),
    };
    Frame {
        volume: VolumeNo(1),
        epoch: Epoch(1),
        incarnation: Incarnation(1),
        session,
        watermark: Ver::NONE,
        requests: vec![Request { id, ask }],
    }
}

/// Takes frames until the session has ended, as a link does; every other time it is stuck and
/// waits for the end alone.
fn take(queue: &FrameQueue, session: u64, stuck_after: usize) -> Vec<u64> {
    block_on(async {
        let mut taken = Vec::new();
        loop {
            if taken.len() == stuck_after {
                queue.ended(session).await;
                return taken;
            }
            let (next, ended) = (pin!(queue.next(session)), pin!(queue.ended(session)));
            match select(next, ended).await {
                Either::Left((Some(frame), _)) => {
                    assert_eq!(frame.session, session);
                    taken.push(frame.requests[0].id);
                }
                Either::Left((None, _)) | Either::Right(_) => return taken,
            }
        }
    })
}

/// A coder that sends without a pause, and too much, to whatever session it has heard of last. The
/// link gets of each session the beginning and no more, and hears of its end.
#[test]
fn a_session_ends_once_it_is_too_much_and_nothing_follows_a_gap() {
    // Never read and never written: it takes no memory.
    let record = Bytes::from(vec![0; BYTES / 2]);
    shuttle::check_random(
        move || {
            let queue = Arc::new(FrameQueue::default());
            let (tell, told) = mpsc::channel();
            let (theirs, record) = (Arc::clone(&queue), record.clone());
            let coder = thread::spawn(move || {
                let (mut id, mut session) = (0, 0);
                loop {
                    match told.try_recv() {
                        Ok(next) => session = next,
                        Err(TryRecvError::Empty) => {}
                        Err(TryRecvError::Disconnected) => return,
                    }
                    id += 1;
                    theirs.push(frame(session, id, &record));
                    theirs.flushed();
                    // Nothing in the loop waits, and the others must have their turn.
                    thread::yield_now();
                }
            });
            let mut last = 0;
            for session in 1..=3 {
                queue.begin(session);
                tell.send(session).expect("the coder lives");
                let taken = take(&queue, session, session as usize - 1);
                queue.end();
                assert_eq!(queue.waiting(), (0, 0));
                assert!(taken.windows(2).all(|pair| pair[1] == pair[0] + 1), "{taken:?}");
                assert!(taken.first().is_none_or(|first| *first > last), "{taken:?}, {last}");
                last = taken.last().copied().unwrap_or(last);
            }
            drop(tell);
            coder.join().expect("no panic");
        },
        SCHEDULES,
    );
}

/// Nothing is lost and nobody sleeps on while a frame waits.
#[test]
fn every_frame_of_a_session_that_lasts_arrives() {
    shuttle::check_random(
        || {
            let queue = Arc::new(FrameQueue::default());
            queue.begin(1);
            let theirs = Arc::clone(&queue);
            let coder = thread::spawn(move || {
                for id in 0..6 {
                    theirs.push(frame(1, id, &Bytes::new()));
                    theirs.flushed();
                }
            });
            let taken = take_some(&queue, 6);
            assert_eq!(taken, (0..6).collect::<Vec<_>>());
            coder.join().expect("no panic");
        },
        SCHEDULES,
    );
}

fn take_some(queue: &FrameQueue, count: usize) -> Vec<u64> {
    block_on(async {
        let mut taken = Vec::new();
        while taken.len() < count {
            let (next, ended) = (pin!(queue.next(1)), pin!(queue.ended(1)));
            match select(next, ended).await {
                Either::Left((Some(frame), _)) => taken.push(frame.requests[0].id),
                _ => panic!("it lasts"),
            }
        }
        taken
    })
}
