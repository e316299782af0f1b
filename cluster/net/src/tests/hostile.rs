//! Members that lie: whatever they send, the node lives, holds little, and serves the others.

use super::support::*;
use crate::{FRAME_BYTES_MAX, NetConfig, Session, SessionError, wire::code};
use bytes::Bytes;
use quinn::{Connection, ReadError, ReadToEndError, RecvStream, SendStream, VarInt};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use smalti_storage::ids::NodeId;
use std::time::Duration;

async fn stream(connection: &Connection, bytes: &[u8]) -> (SendStream, RecvStream) {
    let (mut send, recv) = connection.open_bi().await.expect("stream");
    send.write_all(bytes).await.expect("write");
    (send, recv)
}

/// The status byte with which the node answers `bytes`.
async fn status(connection: &Connection, bytes: &[u8]) -> u8 {
    let (_send, mut recv) = stream(connection, bytes).await;
    let answer = recv.read_to_end(2000).await.expect("answer");
    answer[0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_starts_are_answered_with_what_is_wrong() {
    let pair = pair();
    let credentials = pair.ca.issue(NodeId(3), "liar").expect("issue");
    let (_endpoint, connection) = raw(&credentials, &pair.two).await;
    for (bytes, expected) in [
        ([1, 1, ECHO, 0, 0, 0, 0], 0),
        ([1, 1, 99, 0, 0, 0, 0], 1),
        ([2, 1, 99, 0, 0, 0, 0], 1),
        ([1, 1, ECHO, 0xff, 0xff, 0xff, 0xff], 2),
        ([1, 1, ECHO, 4, 0, 0, 1], 2),
        ([2, 1, STREAM, 0, 1, 0, 1], 2),
        ([1, 2, ECHO, 0, 0, 0, 0], 3),
        ([9, 1, ECHO, 0, 0, 0, 0], 3),
        ([0; 7], 3),
        ([0xff; 7], 3),
    ] {
        assert_eq!(status(&connection, &bytes).await, expected, "{bytes:?}");
    }
    echo(&pair.to_two).await.expect("the others are served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_early_ends_and_resets_harm_nobody() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let pair = pair();
    let credentials = pair.ca.issue(NodeId(3), "liar").expect("issue");
    for _ in 0..8 {
        let (_endpoint, connection) = raw(&credentials, &pair.two).await;
        for _ in 0..150 {
            let mut bytes = vec![0u8; rng.random_range(0..3000)];
            rng.fill(&mut bytes[..]);
            // Half of them get past the first check.
            if rng.random_bool(0.5) && bytes.len() > 7 {
                bytes[0] = rng.random_range(1..3);
                bytes[1] = 1;
                bytes[2] = if bytes[0] == 1 { ECHO } else { STREAM };
                bytes[3..5].fill(0);
            }
            let (mut send, mut recv) = stream(&connection, &bytes).await;
            match rng.random_range(0..4) {
                0 => drop(send.finish()),
                1 => drop(send.reset(VarInt::from_u32(77))),
                2 => drop(recv.stop(VarInt::from_u32(78))),
                _ => {}
            }
        }
        if rng.random_bool(0.5) {
            connection.close(VarInt::from_u32(9), b"gone");
        }
        echo(&pair.to_two).await.expect("the others are served");
    }
    until("their connections are cleaned up", || async { pair.two.guest_count() == 1 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announced_bytes_that_never_come_hold_no_memory_and_no_place_for_ever() {
    let config = NetConfig { request_timeout: Duration::from_millis(200), ..patient() };
    let pair = pair_with(&config);
    let credentials = pair.ca.issue(NodeId(3), "liar").expect("issue");
    let (_endpoint, connection) = raw(&credentials, &pair.two).await;
    // 64 MiB each: many times what the node would hold for one connection.
    let mut open = Vec::new();
    for _ in 0..30 {
        open.push(stream(&connection, &[1, 1, ECHO, 4, 0, 0, 0, 1, 2, 3]).await);
    }
    let before = resident_kib();
    echo(&pair.to_two).await.expect("the others are served");
    for (_, recv) in &mut open {
        // Each is given up in its turn, without an answer.
        let end = tokio::time::timeout(LONG, recv.read_to_end(100)).await.expect("given up");
        assert!(end.is_err(), "{end:?}");
    }
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 500 << 10, "{grown} KiB for bytes that never came");
}

/// Memory of this process in KiB. Other tests run in it too, so only large jumps mean anything.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_for_room_instead_of_piling_up() {
    // Room for exactly one request of the largest size; the second may only be read after it.
    let config = NetConfig { requests_bytes_max: 64 << 20, ..patient() };
    let pair = pair_with(&config);
    let credentials = pair.ca.issue(NodeId(3), "three").expect("issue");
    let (_endpoint, connection) = raw(&credentials, &pair.two).await;
    let head = [1, 1, ECHO, 4, 0, 0, 0];
    let (mut first, _first_answer) = stream(&connection, &head).await;
    first.write_all(&[0; 1000]).await.expect("write");
    until("the first has all the room", || async {
        let (mut second, mut answer) = stream(&connection, &[1, 1, ECHO, 0, 0, 0, 1, 9]).await;
        second.finish().expect("finish");
        let wait = Duration::from_millis(200);
        tokio::time::timeout(wait, answer.read_to_end(100)).await.is_err()
    })
    .await;
    let (mut second, mut answer) = stream(&connection, &[1, 1, ECHO, 0, 0, 0, 1, 9]).await;
    second.finish().expect("finish");
    // Other connections have room of their own.
    echo(&pair.to_two).await.expect("the others are served");
    first.reset(VarInt::from_u32(1)).expect("reset");
    let answer = tokio::time::timeout(LONG, answer.read_to_end(100)).await.expect("room again");
    assert_eq!(answer.expect("answer"), [0, 0, 0, 0, 1, 9]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_with_an_impossible_frame_ends_both_ways() {
    let pair = pair();
    let mut sessions = catch_sessions(&pair.two, STREAM);
    let credentials = pair.ca.issue(NodeId(3), "liar").expect("issue");
    let (_endpoint, connection) = raw(&credentials, &pair.two).await;
    let mut bytes = vec![2, 1, STREAM, 0, 0, 0, 0, 0, 0, 0, 2, b'o', b'k'];
    bytes.extend((FRAME_BYTES_MAX as u32 + 1).to_be_bytes());
    let (send, mut recv) = stream(&connection, &bytes).await;
    let (from, _, Session { tx, mut rx }) = sessions.recv().await.expect("session");
    assert_eq!(from, NodeId(3));
    assert_eq!(rx.recv().await, Ok(Some(Bytes::from_static(b"ok"))));
    let error = rx.recv().await.expect_err("too large");
    assert!(matches!(error, SessionError::TooLarge { .. }));
    assert_eq!(tx.closed().await, error);
    let stopped = send.stopped().await.expect("told to stop");
    assert_eq!(stopped, Some(code::PROTOCOL));
    let end = recv.read_to_end(100).await;
    assert!(matches!(end, Err(ReadToEndError::Read(ReadError::Reset(code::PROTOCOL)))), "{end:?}");

    // And one that stops in the middle of a frame.
    let (mut send, _recv) = stream(&connection, &[2, 1, STREAM, 0, 0, 0, 0, 0, 0, 0, 9, 1]).await;
    send.finish().expect("finish");
    let (_, _, mut cut) = sessions.recv().await.expect("session");
    assert_eq!(cut.rx.recv().await, Err(SessionError::Truncated));
    echo(&pair.to_two).await.expect("the others are served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_of_noise_do_not_disturb() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let pair = pair();
    let noise = std::net::UdpSocket::bind(any_port()).expect("bind");
    for round in 0..2000 {
        let mut bytes = vec![0u8; rng.random_range(1..1500)];
        rng.fill(&mut bytes[..]);
        // A full socket buffer is noise enough.
        let _ = noise.send_to(&bytes, pair.two.local_addr());
        if round % 200 == 0 {
            echo(&pair.to_two).await.expect("served");
        }
    }
    echo(&pair.to_two).await.expect("served");
    assert_eq!(pair.two.guest_count(), 1);
}
