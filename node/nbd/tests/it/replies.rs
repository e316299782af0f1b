//! What the device answers, in simple and structured replies.

use bytes::Bytes;
use smalti_nbd::proto::wire;
use smalti_nbd::{DeviceError, DeviceErrorKind, ExportInfo, Extent, Limits, ReadReply, Segment};
use tokio::net::UnixStream;
use tokio::sync::mpsc::Receiver;

use crate::support::{Call, Chunk, Client, Harness, MIB, next, scripted};

async fn opened(structured: bool) -> (Client<UnixStream>, Receiver<Call>, Harness) {
    let (export, calls) = scripted(ExportInfo::new("v", 1 << 40));
    let harness = Harness::new([export], Limits::default());
    let (client, _) = harness.open(structured).await;
    (client, calls, harness)
}

#[tokio::test]
async fn every_kind_of_failure_has_its_number() {
    let kinds = [
        (DeviceErrorKind::NotPermitted, 1),
        (DeviceErrorKind::Io, 5),
        (DeviceErrorKind::NoMemory, 12),
        (DeviceErrorKind::Invalid, 22),
        (DeviceErrorKind::NoSpace, 28),
        (DeviceErrorKind::Overflow, 75),
        (DeviceErrorKind::NotSupported, 95),
        (DeviceErrorKind::ShuttingDown, 108),
    ];
    for structured in [false, true] {
        let (mut client, mut calls, _harness) = opened(structured).await;
        for (kind, errno) in kinds {
            for command in [wire::CMD_READ, wire::CMD_TRIM, wire::CMD_FLUSH] {
                let length = if command == wire::CMD_FLUSH { 0 } else { 512 };
                client.request(command, 0, 3, 0, length).await;
                next(&mut calls).await.fail(DeviceError::new(kind, "as told").at(1 << 50));
                if structured {
                    let chunk = client.chunk().await;
                    assert_eq!((chunk.kind, chunk.done), (wire::REPLY_ERROR, true));
                    assert_eq!(chunk.error(), (errno, "as told".into()));
                    assert_eq!(chunk.cookie, 3);
                } else {
                    assert_eq!(client.simple().await, (errno, 3));
                }
            }
        }
    }
}

#[tokio::test]
async fn a_failed_read_says_where() {
    let (mut client, mut calls, _harness) = opened(true).await;
    let error = DeviceError::new(DeviceErrorKind::Io, "row lost").at(4100);
    client.request(wire::CMD_READ, 0, 3, 4096, 512).await;
    next(&mut calls).await.fail(error.clone());
    let chunk = client.chunk().await;
    assert_eq!((chunk.kind, chunk.done), (wire::REPLY_ERROR_OFFSET, true));
    assert_eq!(chunk.error(), (5, "row lost".into()));
    assert_eq!(chunk.payload[14..], 4100u64.to_be_bytes());
    // Never outside of what was asked for, and never for anything but a read.
    client.request(wire::CMD_READ, 0, 3, 0, 4100).await;
    next(&mut calls).await.fail(error.clone());
    assert_eq!(client.chunk().await.kind, wire::REPLY_ERROR);
    client.request(wire::CMD_TRIM, 0, 3, 4096, 512).await;
    next(&mut calls).await.fail(error);
    assert_eq!(client.chunk().await.kind, wire::REPLY_ERROR);
}

fn mixed() -> ReadReply {
    [
        Segment::Zero(1000),
        Segment::Data(Bytes::from(vec![1; 100])),
        Segment::Zero(100),
        Segment::Data(Bytes::from(vec![2; 50])),
        Segment::Zero(70_000),
        Segment::Data(Bytes::from(vec![3; 10])),
    ]
    .into_iter()
    .collect()
}

fn mixed_bytes() -> Vec<u8> {
    let parts = [(0, 1000), (1, 100), (0, 100), (2, 50), (0, 70_000), (3, 10)];
    parts.iter().flat_map(|&(byte, count)| std::iter::repeat_n(byte, count)).collect()
}

const MIXED: u32 = 71_260;

#[tokio::test]
async fn reads_are_cut_at_long_zero_runs() {
    let (mut client, mut calls, _harness) = opened(true).await;
    client.request(wire::CMD_READ, 0, 3, 5000, MIXED).await;
    next(&mut calls).await.read(mixed());
    let data = mixed_bytes();
    let chunk = |done, kind, offset: u64, rest: &[u8]| Chunk {
        done,
        kind,
        cookie: 3,
        payload: [&offset.to_be_bytes(), rest].concat(),
    };
    let (hole, full) = (wire::REPLY_OFFSET_HOLE, wire::REPLY_OFFSET_DATA);
    assert_eq!(client.chunk().await, chunk(false, hole, 5000, &1000u32.to_be_bytes()));
    assert_eq!(client.chunk().await, chunk(false, full, 6000, &data[1000..1250]));
    assert_eq!(client.chunk().await, chunk(false, hole, 6250, &70_000u32.to_be_bytes()));
    assert_eq!(client.chunk().await, chunk(true, full, 76_250, &[3; 10]));
    client.request(wire::CMD_READ, 0, 3, 0, 4096).await;
    next(&mut calls).await.read(ReadReply::zero(4096));
    assert_eq!(client.chunk().await, chunk(true, hole, 0, &4096u32.to_be_bytes()));
    client.request(wire::CMD_READ, 0, 3, 0, 100).await;
    next(&mut calls).await.read(ReadReply::zero(100));
    assert_eq!(client.chunk().await, chunk(true, full, 0, &[0; 100]), "too short to be a hole");
}

#[tokio::test]
async fn a_read_that_must_not_be_cut_is_one_chunk() {
    let (mut client, mut calls, _harness) = opened(true).await;
    client.request(wire::CMD_READ, wire::CMD_FLAG_DF, 3, 0, MIXED).await;
    next(&mut calls).await.read(mixed());
    let chunk = client.chunk().await;
    assert_eq!((chunk.done, chunk.kind), (true, wire::REPLY_OFFSET_DATA));
    assert!(chunk.payload[8..] == mixed_bytes());
    client.request(wire::CMD_READ, wire::CMD_FLAG_DF, 3, 0, 100).await;
    next(&mut calls).await.read(ReadReply::zero(100));
    let chunk = client.chunk().await;
    assert_eq!((chunk.done, chunk.kind), (true, wire::REPLY_OFFSET_HOLE));
}

#[tokio::test]
async fn simple_reads_spell_zeroes_out() {
    let (mut client, mut calls, _harness) = opened(false).await;
    client.request(wire::CMD_READ, 0, 3, 0, MIXED).await;
    next(&mut calls).await.read(mixed());
    assert_eq!(client.simple().await, (0, 3));
    assert!(client.bytes(MIXED as usize).await == mixed_bytes());
}

#[tokio::test]
async fn a_read_of_the_wrong_length_is_an_error_and_not_a_reply() {
    for structured in [false, true] {
        let (mut client, mut calls, _harness) = opened(structured).await;
        for wrong in [0, 3, 5, 4096] {
            client.request(wire::CMD_READ, 0, 3, 0, 4).await;
            next(&mut calls).await.data(vec![1; wrong]);
            if structured {
                assert_eq!(client.chunk().await.error().0, 5);
            } else {
                assert_eq!(client.simple().await, (5, 3));
            }
        }
    }
}

#[tokio::test]
async fn block_status_is_joined_cut_and_checked() {
    let (mut client, mut calls, _harness) = opened(true).await;
    let extent = |length, hole, zero| Extent { length, hole, zero };
    let map = vec![
        extent(4096, false, false),
        extent(4096, false, false),
        extent(10, true, true),
        extent(u64::MAX, false, true),
    ];
    let status = |parts: &[(u32, u32)]| {
        let mut payload = 1u32.to_be_bytes().to_vec();
        for (length, state) in parts {
            payload.extend(length.to_be_bytes());
            payload.extend(state.to_be_bytes());
        }
        Chunk { done: true, kind: wire::REPLY_BLOCK_STATUS, cookie: 3, payload }
    };
    for (flags, length, parts) in [
        (0, 100_000, &[(8192, 0), (10, 3), (91_798, 2)][..]),
        (0, u32::MAX, &[(8192, 0), (10, 3), (4_294_959_093, 2)]),
        (0, 5000, &[(5000, 0)]),
        (wire::CMD_FLAG_REQ_ONE, 100_000, &[(8192, 0)]),
        (wire::CMD_FLAG_REQ_ONE, 100, &[(100, 0)]),
    ] {
        client.request(wire::CMD_BLOCK_STATUS, flags, 3, 0, length).await;
        next(&mut calls).await.status(map.clone());
        assert_eq!(client.chunk().await, status(parts));
    }
    for broken in [vec![], vec![extent(0, true, true)]] {
        client.request(wire::CMD_BLOCK_STATUS, 0, 3, 0, 4096).await;
        next(&mut calls).await.status(broken);
        assert_eq!(client.chunk().await.error().0, 5);
    }
    let many = (0..20_000).map(|at| extent(1, at % 2 == 0, false)).collect();
    client.request(wire::CMD_BLOCK_STATUS, 0, 3, 0, 1 << 20).await;
    next(&mut calls).await.status(many);
    assert_eq!(client.chunk().await.payload.len(), 4 + 8 * 8192);
}

#[tokio::test]
async fn success_without_data_is_short_even_with_structured_replies() {
    let harness = Harness::memory();
    let (mut client, _) = harness.open(true).await;
    client.write(0, 1, 0, b"abc").await;
    assert_eq!(client.simple().await, (0, 1));
    client.request(wire::CMD_WRITE_ZEROES, wire::CMD_FLAG_FAST_ZERO, 2, 0, MIB as u32).await;
    assert_eq!(client.simple().await, (0, 2));
    let slow = wire::CMD_FLAG_FAST_ZERO | wire::CMD_FLAG_NO_HOLE;
    client.request(wire::CMD_WRITE_ZEROES, slow, 3, 0, 10).await;
    assert_eq!(client.chunk().await.error(), (95, "only holes are made fast".into()));
}
