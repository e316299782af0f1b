//! Back-pressure: what is not read does not cost memory.

use std::time::Duration;

use smalti_nbd::proto::wire;
use smalti_nbd::{ExportInfo, Limits};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc::Receiver;

use crate::support::{Asked, Call, Harness, MIB, memory, next, request, scripted, until, within};

const KIB: u32 = 1024;

/// Small enough to be reached with few requests.
fn tight() -> Limits {
    Limits {
        request_bytes_max: 64 * KIB,
        connection_bytes_max: 128 * KIB as usize,
        total_bytes_max: 192 * KIB as usize,
        requests_in_flight_max: 4,
        ..Limits::default()
    }
}

/// Takes the calls that come, and checks that there are no more than expected.
async fn exactly(calls: &mut Receiver<Call>, count: usize) -> Vec<Call> {
    let mut got = Vec::new();
    for _ in 0..count {
        got.push(next(calls).await);
    }
    // The server has read all it is going to read once it is idle; give it several chances to be
    // wrong. A slow machine can only make this pass too easily, never fail.
    for _ in 0..50 {
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(calls.try_recv().is_err(), "more calls than allowed");
    }
    got
}

#[tokio::test]
async fn requests_in_flight_are_counted_until_their_reply_has_left() {
    let (export, mut calls) = scripted(ExportInfo::new("v", MIB));
    let harness = Harness::new([export], tight());
    let (mut client, _) = harness.open(false).await;
    for cookie in 0..10 {
        client.request(wire::CMD_FLUSH, 0, cookie, 0, 0).await;
    }
    let mut waiting = exactly(&mut calls, 4).await;
    for cookie in 0..6 {
        waiting.remove(0).done();
        assert_eq!(client.simple().await, (0, cookie));
        waiting.push(next(&mut calls).await);
    }
    for cookie in 6..10 {
        waiting.remove(0).done();
        assert_eq!(client.simple().await, (0, cookie));
    }
}

#[tokio::test]
async fn refused_requests_count_too() {
    let harness = Harness::new([memory("v", MIB)], tight());
    let (mut client, task) = harness.open(false).await;
    // Replies nobody reads fill the socket; after that the server must stop reading.
    let bad = request(99, 0, 1, 0, 0).repeat(1000);
    let (mut from, mut to) = client.stream.into_split();
    let writer = tokio::spawn(async move {
        for _ in 0..200 {
            if tokio::io::AsyncWriteExt::write_all(&mut to, &bad).await.is_err() {
                return;
            }
        }
    });
    let mut replies = vec![0; 16 * 200_000];
    within(from.read_exact(&mut replies)).await.unwrap();
    assert!(replies.chunks(16).all(|reply| reply == &replies[..16]));
    writer.await.unwrap();
    drop(from);
    within(task).await.unwrap();
    harness.idle().await;
    client = harness.open(false).await.0;
    client.alive().await;
}

#[tokio::test]
async fn bytes_in_flight_are_limited_per_connection() {
    let (export, mut calls) = scripted(ExportInfo::new("v", MIB));
    let harness = Harness::new([export], tight());
    let (mut client, _) = harness.open(false).await;
    for cookie in 0..3 {
        client.request(wire::CMD_READ, 0, cookie, 0, 64 * KIB).await;
    }
    let mut waiting = exactly(&mut calls, 2).await;
    assert_eq!(harness.server.bytes_in_flight(), 128 * KIB as usize);
    waiting.remove(0).data(vec![0; 64 * KIB as usize]);
    assert_eq!(client.simple().await, (0, 0));
    client.bytes(64 * KIB as usize).await;
    waiting.push(next(&mut calls).await);
    for (cookie, call) in (1..).zip(waiting) {
        call.data(vec![0; 64 * KIB as usize]);
        assert_eq!(client.simple().await, (0, cookie));
        client.bytes(64 * KIB as usize).await;
    }
    until("all bytes are given back", || harness.server.bytes_in_flight() == 0).await;
}

#[tokio::test]
async fn bytes_in_flight_are_limited_over_all_connections() {
    let (export, mut calls) = scripted(ExportInfo::new("v", MIB));
    let harness = Harness::new([export], tight());
    let (mut one, _) = harness.open(false).await;
    let (mut two, _) = harness.open(false).await;
    for cookie in 0..2 {
        one.request(wire::CMD_READ, 0, cookie, 0, 64 * KIB).await;
    }
    let mut first = exactly(&mut calls, 2).await;
    two.write(0, 7, 0, &vec![1; 64 * KIB as usize]).await;
    let write = next(&mut calls).await;
    two.request(wire::CMD_READ, 0, 8, 4096, 512).await;
    exactly(&mut calls, 0).await;
    assert_eq!(harness.server.bytes_in_flight(), 192 * KIB as usize);
    // What one connection gives back, the other takes.
    first.remove(0).data(vec![0; 64 * KIB as usize]);
    assert_eq!(one.simple().await, (0, 0));
    one.bytes(64 * KIB as usize).await;
    let read = next(&mut calls).await;
    assert_eq!(read.asked, Asked::Read(4096, 512));
    read.data(vec![5; 512]);
    assert_eq!(two.simple().await, (0, 8));
    two.bytes(512).await;
    write.done();
    assert_eq!(two.simple().await, (0, 7));
    // A connection that leaves gives back everything, even while it waits in the queue.
    drop((one, first));
    drop(two);
    harness.idle().await;
}

#[tokio::test]
async fn a_stalled_client_is_cut_off_only_when_others_need_its_memory() {
    let limits = Limits {
        connection_bytes_max: 192 * KIB as usize,
        stall_timeout: Duration::from_millis(40),
        ..tight()
    };
    let harness = Harness::new([memory("v", MIB)], limits);
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let (mut client, task) = harness.open(false).await;
        // The head of a write whose payload never comes.
        client.request(wire::CMD_WRITE, 0, 1, 0, 64 * KIB).await;
        client.send(&[1; 1000]).await;
        stalled.push((client, task));
    }
    until("all memory is taken", || harness.server.bytes_in_flight() == 192 * KIB as usize).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(stalled.iter().all(|(_, task)| !task.is_finished()), "nobody needed the memory");

    let (mut client, _) = harness.open(false).await;
    client.write(0, 2, 0, &[2; 4096]).await;
    assert_eq!(client.simple().await, (0, 2), "served once the stalled ones were cut off");
    until("a stalled client is cut off", || stalled.iter().any(|(_, task)| task.is_finished()))
        .await;
    drop((client, stalled));
    harness.idle().await;
}

#[tokio::test]
async fn a_client_that_sends_a_byte_now_and_then_has_stalled() {
    let limits = Limits {
        connection_bytes_max: 192 * KIB as usize,
        stall_timeout: Duration::from_millis(200),
        ..tight()
    };
    let harness = Harness::new([memory("v", MIB)], limits);
    let mut dripping = Vec::new();
    for _ in 0..3 {
        let (mut client, task) = harness.open(false).await;
        client.request(wire::CMD_WRITE, 0, 1, 0, 64 * KIB).await;
        client.send(&[1; 1000]).await;
        dripping.push((client, task));
    }
    until("all memory is taken", || harness.server.bytes_in_flight() == 192 * KIB as usize).await;
    let (mut client, _) = harness.open(false).await;
    client.write(0, 2, 0, &[2; 4096]).await;
    let answer = {
        let mut served = std::pin::pin!(within(client.simple()));
        loop {
            tokio::select! {
                answer = &mut served => break answer,
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
            for (dripping, task) in &mut dripping {
                if !task.is_finished() {
                    dripping.drip().await;
                }
            }
        }
    };
    assert_eq!(answer, (0, 2), "served once a dripping one was cut off");
    drop((client, dripping));
    harness.idle().await;
}

#[tokio::test]
async fn a_client_that_reads_no_replies_is_cut_off_when_others_need_its_memory() {
    let limits = Limits {
        request_bytes_max: MIB as u32,
        connection_bytes_max: 4 * MIB as usize,
        total_bytes_max: 4 * MIB as usize,
        stall_timeout: Duration::from_millis(40),
        ..Limits::default()
    };
    let harness = Harness::new([memory("v", MIB)], limits);
    let (mut deaf, _) = harness.open(false).await;
    for cookie in 0..4 {
        deaf.request(wire::CMD_READ, 0, cookie, 0, MIB as u32).await;
    }
    until("replies fill the socket", || harness.server.bytes_in_flight() >= 3 * MIB as usize).await;
    let (mut client, _) = harness.open(false).await;
    client.request(wire::CMD_READ, 0, 9, 0, MIB as u32).await;
    assert_eq!(client.simple().await, (0, 9));
    client.bytes(MIB as usize).await;
    drop((client, deaf));
    harness.idle().await;
}

#[tokio::test]
async fn connections_are_limited() {
    let harness =
        Harness::new([memory("v", MIB)], Limits { connections_max: 2, ..Limits::default() });
    let (mut one, _) = harness.open(false).await;
    let (_two, _) = harness.open(false).await;
    let (mut three, _) = harness.connect();
    three.gone().await;
    one.alive().await;
    drop(one);
    until("a place is free", || harness.server.connections() == 1).await;
    let (mut four, _) = harness.open(false).await;
    four.alive().await;
}
