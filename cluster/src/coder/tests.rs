//! The queue in steps; that no wake-up is lost is `crate::tests::schedules`.

use super::queue::{BYTES, FRAMES, FrameQueue};
use bytes::Bytes;
use futures::FutureExt;
use smalti_rowcommit::msg::{Ask, Frame, Request, Update};
use smalti_storage::ids::{Epoch, GroupNo, Incarnation, RowAddr, Slot, Ver, VolumeNo, Wid};

fn frame(session: u64, id: u64, bytes: usize) -> Frame {
    let ask = Ask::PrepData {
        row: RowAddr { group: GroupNo(0), stripe: 0, index: 0 },
        slot: Slot(0),
        update: Update::default(),
        base: Ver::NONE,
        wid: Wid { generation: 1, seq: id },
        record: Bytes::from(vec![0; bytes]),
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

/// The number of the next frame, if the queue has one now; `Some(None)`: the session has ended.
fn next(queue: &FrameQueue, session: u64) -> Option<Option<u64>> {
    queue.next(session).now_or_never().map(|frame| frame.map(|frame| frame.requests[0].id))
}

#[test]
fn frames_of_the_session_come_in_order_and_others_not_at_all() {
    let queue = FrameQueue::default();
    queue.push(frame(1, 1, 10));
    assert_eq!(next(&queue, 1), Some(None));
    queue.begin(2);
    for (session, id) in [(1, 2), (2, 3), (3, 4), (2, 5)] {
        queue.push(frame(session, id, 10));
    }
    assert_eq!(next(&queue, 2), Some(Some(3)));
    assert_eq!(next(&queue, 2), Some(Some(5)));
    assert_eq!(next(&queue, 2), None);
    queue.push(frame(2, 6, 10));
    queue.begin(3);
    assert_eq!(next(&queue, 2), Some(None));
    assert_eq!(next(&queue, 3), None);
}

#[test]
fn too_many_bytes_end_the_session_and_let_go_of_all() {
    let queue = FrameQueue::default();
    queue.begin(1);
    queue.push(frame(1, 0, 0));
    queue.flushed();
    let each = BYTES / 4;
    for id in 1..=3 {
        queue.push(frame(1, id, each));
    }
    assert_eq!(next(&queue, 1), Some(Some(0)));
    assert!(queue.ended(1).now_or_never().is_none());
    queue.push(frame(1, 4, each));
    queue.push(frame(1, 5, each));
    assert!(queue.ended(1).now_or_never().is_some());
    assert_eq!(next(&queue, 1), Some(None));
    // Nothing follows the gap.
    queue.push(frame(1, 6, 10));
    assert_eq!(next(&queue, 1), Some(None));
    assert_eq!(queue.waiting(), (0, 0));
}

#[test]
fn so_do_too_many_frames() {
    let queue = FrameQueue::default();
    queue.begin(1);
    queue.push(frame(1, 0, 0));
    queue.flushed();
    for id in 1..=FRAMES as u64 {
        queue.push(frame(1, id, 0));
    }
    assert!(queue.ended(1).now_or_never().is_none());
    queue.push(frame(1, 9999, 0));
    assert!(queue.ended(1).now_or_never().is_some());
}

#[test]
fn what_goes_again_fits_however_much_it_is_and_then_as_much_as_ever() {
    let queue = FrameQueue::default();
    queue.begin(1);
    // A flush of before, which has nothing of this session.
    queue.flushed();
    let each = BYTES / 2;
    for id in 0..4 {
        queue.push(frame(1, id, each));
        // The task may have begun to send meanwhile.
        assert_eq!(next(&queue, 1), Some(Some(id)));
    }
    for id in 4..8 {
        queue.push(frame(1, id, each));
    }
    queue.flushed();
    queue.push(frame(1, 8, each));
    assert!(queue.ended(1).now_or_never().is_none());
    queue.push(frame(1, 9, each));
    assert!(queue.ended(1).now_or_never().is_some());
}
