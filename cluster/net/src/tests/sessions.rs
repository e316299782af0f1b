//! Sessions: order, limits, back-pressure, and how they end.

use super::support::*;
use crate::{FRAME_BYTES_MAX, NetConfig, Session, SessionError, TrySendError};
use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::time::Duration;

/// A frame whose bytes depend on its number.
fn numbered(number: u64, len: usize) -> Bytes {
    let mut frame = number.to_be_bytes().to_vec();
    frame.resize(len.max(8), number as u8);
    Bytes::from(frame)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_stay_whole_and_in_order_under_load() {
    const FRAMES: u64 = 20_000;
    let seed = seed();
    let pair = pair();
    let mut rng = StdRng::seed_from_u64(seed);
    let lens: Vec<usize> = (0..FRAMES)
        .map(|_| match rng.random_range(0..100) {
            0 => rng.random_range(0..300_000),
            1..20 => rng.random_range(0..20_000),
            _ => rng.random_range(0..600),
        })
        .collect();
    let Session { tx, mut rx } =
        pair.to_two.open_session(STREAM, Bytes::new(), LONG).await.expect("session");
    let sending = lens.clone();
    let sender = tokio::spawn(async move {
        for (number, len) in sending.into_iter().enumerate() {
            tx.send(numbered(number as u64, len)).await.expect("send");
        }
    });
    // Calls on the same connection neither stop nor disturb it.
    let peer = pair.to_two.clone();
    let calls = tokio::spawn(async move {
        for _ in 0..200 {
            echo(&peer).await.expect("echo");
        }
    });
    for (number, len) in lens.into_iter().enumerate() {
        let frame = rx.recv().await.expect("frame").expect("not the end");
        assert!(frame == numbered(number as u64, len), "frame {number} of seed {seed}");
    }
    sender.await.expect("sender");
    calls.await.expect("calls");
    // The sender is gone, so the other side finished, and so did its echo.
    assert_eq!(rx.recv().await, Ok(None));
    assert_eq!(rx.recv().await, Ok(None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_frame_passes_and_a_larger_one_is_refused() {
    let pair = pair();
    let mut session = pair.to_two.open_session(STREAM, "x".into(), LONG).await.expect("session");
    let over =
        SessionError::TooLarge { len: FRAME_BYTES_MAX as u64 + 1, max: FRAME_BYTES_MAX as u64 };
    let large = Bytes::from(vec![5; FRAME_BYTES_MAX + 1]);
    assert_eq!(session.tx.send(large.clone()).await, Err(over.clone()));
    assert!(matches!(session.tx.try_send(large.clone()),
        Err(TrySendError::Session(error)) if error == over));
    // The session goes on.
    session.tx.send(large.slice(1..)).await.expect("send");
    session.tx.send(Bytes::new()).await.expect("send");
    let echoed = session.rx.recv().await.expect("frame").expect("not the end");
    assert!(echoed == large[1..]);
    assert_eq!(session.rx.recv().await, Ok(Some(Bytes::new())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_pauses_stops_its_sender_and_nothing_is_lost() {
    const FRAME: usize = 100_000;
    let config = NetConfig {
        stream_window: 1 << 20,
        send_window: 2 << 20,
        session_queue_bytes: 1 << 20,
        ..patient()
    };
    let pair = pair_with(&config);
    let mut sessions = catch_sessions(&pair.two, STREAM);
    let ours = pair.to_two.open_session(STREAM, "x".into(), LONG).await.expect("session");
    let (_, _, mut theirs) = sessions.recv().await.expect("session");

    // Nobody reads. Fill until it stays full: at least one full second without room.
    let (mut taken, mut full) = (0u64, 0);
    while full < 100 {
        match ours.tx.try_send(numbered(taken, FRAME)) {
            Ok(()) => (taken, full) = (taken + 1, 0),
            Err(TrySendError::Full(frame)) => {
                assert_eq!(frame, numbered(taken, FRAME));
                full += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let held = taken * FRAME as u64;
    let bound = u64::from(config.session_queue_bytes) + config.send_window + config.stream_window;
    assert!(held <= bound + FRAME as u64, "{held} bytes taken, bound {bound}");
    assert!(ours.tx.queued_bytes() <= config.session_queue_bytes as usize);
    assert!(held >= config.stream_window, "the bound is not from a dead session");

    // Another session and calls pass by.
    echo(&pair.to_two).await.expect("echo");
    let other = pair.to_two.open_session(STREAM, "y".into(), LONG).await.expect("session");
    let (_, _, mut other_end) = sessions.recv().await.expect("session");
    other.tx.send("hello".into()).await.expect("send");
    assert_eq!(other_end.rx.recv().await, Ok(Some("hello".into())));

    // A send that waits goes through once the reader goes on.
    let waiting = tokio::spawn(async move { ours.tx.send(numbered(taken, FRAME)).await });
    for number in 0..=taken {
        let frame = theirs.rx.recv().await.expect("frame").expect("not the end");
        assert!(frame == numbered(number, FRAME), "frame {number}");
    }
    waiting.await.expect("task").expect("sent");
    assert_eq!(theirs.rx.recv().await, Ok(None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_ends_both_halves_on_both_sides_with_a_reason() {
    let pair = pair();
    let mut sessions = catch_sessions(&pair.two, STREAM);
    let mut ours = pair.to_two.open_session(STREAM, "x".into(), LONG).await.expect("session");
    let (_, _, mut theirs) = sessions.recv().await.expect("session");
    ours.tx.send("one".into()).await.expect("send");
    assert_eq!(theirs.rx.recv().await, Ok(Some("one".into())));
    let waiting = ours.tx.clone();
    let waiting = tokio::spawn(async move { waiting.closed().await });
    pair.two.close().await;
    let lost = ours.rx.recv().await.expect_err("broken");
    assert!(matches!(&lost, SessionError::Lost { reason } if reason.contains("node stops")));
    assert_eq!(ours.rx.recv().await, Err(lost.clone()), "stays broken");
    assert_eq!(waiting.await.expect("task"), lost);
    assert_eq!(ours.tx.send("two".into()).await, Err(lost.clone()));
    assert!(matches!(ours.tx.try_send("two".into()), Err(TrySendError::Session(e)) if e == lost));
    assert!(matches!(theirs.rx.recv().await, Err(SessionError::Lost { .. })));
    assert!(matches!(theirs.tx.closed().await, SessionError::Lost { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn halves_end_one_by_one() {
    let pair = pair();
    let mut sessions = catch_sessions(&pair.two, STREAM);
    let Session { tx, mut rx } =
        pair.to_two.open_session(STREAM, "x".into(), LONG).await.expect("session");
    let (_, _, theirs) = sessions.recv().await.expect("session");
    // We stop sending, with the last words still on their way.
    for number in 0..100 {
        tx.send(numbered(number, 50_000)).await.expect("send");
    }
    drop(tx);
    let Session { tx: their_tx, rx: mut their_rx } = theirs;
    for number in 0..100 {
        assert_eq!(their_rx.recv().await, Ok(Some(numbered(number, 50_000))));
    }
    assert_eq!(their_rx.recv().await, Ok(None));
    // The other direction still works.
    their_tx.send("still here".into()).await.expect("send");
    assert_eq!(rx.recv().await, Ok(Some("still here".into())));
    // Then we stop listening.
    drop(rx);
    assert_eq!(their_tx.closed().await, SessionError::Ended { code: 0 });
    their_tx.send("anyone?".into()).await.expect_err("nobody listens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_outlives_the_handle_it_was_opened_with() {
    let Pair { one: _one, two: _two, to_two, ca: _ca } = pair();
    let mut session = to_two.open_session(STREAM, "x".into(), LONG).await.expect("session");
    drop(to_two);
    for number in 0..50 {
        session.tx.send(numbered(number, 5000)).await.expect("send");
        assert_eq!(session.rx.recv().await, Ok(Some(numbered(number, 5000))));
    }
}
