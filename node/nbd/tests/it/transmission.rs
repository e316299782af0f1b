//! Commands as the device sees them, and the checks before it.

use smalti_nbd::proto::wire;
use smalti_nbd::{ExportInfo, Limits, ZeroFlags};
use tokio::io::AsyncWriteExt;

use crate::support::{Asked, Harness, MIB, memory, next, request, scripted};

const FUA: u16 = wire::CMD_FLAG_FUA;

#[tokio::test]
async fn commands_reach_the_device_with_their_flags() {
    let (export, mut calls) = scripted(ExportInfo::new("v", 1 << 40));
    let harness = Harness::new([export], Limits::default());
    let (mut client, _) = harness.open(true).await;
    let zero = |may_trim, fast_only, fua| ZeroFlags { may_trim, fast_only, fua };
    let big = u32::MAX;
    let wide = u64::from(big);
    use wire::{
        CMD_CACHE, CMD_FLAG_FAST_ZERO, CMD_FLAG_NO_HOLE, CMD_FLUSH, CMD_TRIM, CMD_WRITE_ZEROES,
    };
    let cases = [
        (CMD_FLUSH, 0, 0, 0, Asked::Flush),
        (CMD_FLUSH, FUA, 0, 0, Asked::Flush),
        (CMD_TRIM, 0, 5, big, Asked::Trim(5, wide, false)),
        (CMD_TRIM, FUA, 1 << 39, 7, Asked::Trim(1 << 39, 7, true)),
        (CMD_CACHE, 0, 6, big, Asked::Cache(6, wide)),
        (CMD_WRITE_ZEROES, 0, 1, big, Asked::Zero(1, wide, zero(true, false, false))),
        (CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE, 1, 2, Asked::Zero(1, 2, zero(false, false, false))),
        (
            CMD_WRITE_ZEROES,
            CMD_FLAG_FAST_ZERO | FUA,
            1,
            2,
            Asked::Zero(1, 2, zero(true, true, true)),
        ),
    ];
    for (cookie, (command, flags, offset, length, asked)) in (100..).zip(cases) {
        client.request(command, flags, cookie, offset, length).await;
        let call = next(&mut calls).await;
        assert_eq!(call.asked, asked);
        call.done();
        assert_eq!(client.simple().await, (0, cookie));
    }
    for (flags, fua) in [(0, false), (FUA, true)] {
        client.write(flags, 9, 77, b"hello").await;
        let call = next(&mut calls).await;
        assert_eq!(call.asked, Asked::Write(77, "hello".into(), fua));
        call.done();
        assert_eq!(client.simple().await, (0, 9));
    }
    for (flags, most) in [(0, 8192), (wire::CMD_FLAG_REQ_ONE, 1)] {
        client.request(wire::CMD_BLOCK_STATUS, flags, 1, 3, big).await;
        let call = next(&mut calls).await;
        assert_eq!(call.asked, Asked::Status(3, wide, most));
        drop(call);
        assert_eq!(client.chunk().await.error().0, 108, "a dropped call is an error");
    }
}

#[tokio::test]
async fn payloads_of_every_size_arrive_whole() {
    for structured in [false, true] {
        let harness = Harness::new([memory("v", 64 * MIB)], Limits::default());
        let (mut client, _) = harness.open(structured).await;
        // Around the sizes where reading changes its ways, and the largest allowed.
        let sizes = [1, 511, 4096, 32_767, 32_768, 32_769, 131_071, 131_072, 1 << 20, 32 << 20];
        for (cookie, size) in (1..).zip(sizes) {
            let data: Vec<u8> = (0..size).map(|at: u32| (at % 251) as u8 ^ size as u8).collect();
            let offset = cookie * 13;
            client.write(0, cookie, offset, &data).await;
            assert_eq!(client.simple().await, (0, cookie));
            client.request(wire::CMD_READ, 0, cookie, offset, size).await;
            if structured {
                let chunk = client.chunk().await;
                assert_eq!((chunk.done, chunk.kind), (true, wire::REPLY_OFFSET_DATA));
                assert_eq!(chunk.payload[..8], offset.to_be_bytes());
                assert!(chunk.payload[8..] == data, "{size} bytes differ");
            } else {
                assert_eq!(client.simple().await, (0, cookie));
                assert!(client.bytes(data.len()).await == data, "{size} bytes differ");
            }
        }
        drop(client);
        harness.idle().await;
    }
}

#[tokio::test]
async fn requests_may_come_byte_by_byte_or_all_at_once() {
    let harness = Harness::memory();
    let (mut client, _) = harness.open(false).await;
    let mut all = Vec::new();
    for cookie in 0..40u64 {
        let data = vec![cookie as u8 + 1; 3000];
        all.extend(request(wire::CMD_WRITE, 0, cookie, cookie * 3000, 3000));
        all.extend(&data);
    }
    for byte in &all[..7000] {
        client.send(&[*byte]).await;
    }
    client.send(&all[7000..]).await;
    for cookie in 0..40 {
        assert_eq!(client.simple().await, (0, cookie));
    }
    client.request(wire::CMD_READ, 0, 99, 0, 120_000).await;
    assert_eq!(client.simple().await, (0, 99));
    let expected: Vec<u8> = (1..=40).flat_map(|byte| [byte; 3000]).collect();
    assert!(client.bytes(120_000).await == expected);
}

#[tokio::test]
async fn replies_come_in_the_order_of_the_device() {
    let (export, mut calls) = scripted(ExportInfo::new("v", MIB));
    let harness = Harness::new([export], Limits::default());
    let (mut client, _) = harness.open(false).await;
    for cookie in 0..5 {
        client.request(wire::CMD_READ, 0, cookie, cookie * 10, 4).await;
    }
    let mut waiting = Vec::new();
    for cookie in 0..5 {
        let call = next(&mut calls).await;
        assert_eq!(call.asked, Asked::Read(cookie * 10, 4));
        waiting.push((cookie, call));
    }
    for pick in [3, 0, 2, 1, 0] {
        let (cookie, call) = waiting.remove(pick);
        call.data(vec![cookie as u8; 4]);
        assert_eq!(client.simple().await, (0, cookie));
        assert_eq!(client.take().await, [cookie as u8; 4]);
    }
}

#[tokio::test]
async fn ranges_outside_the_export_never_reach_the_device() {
    let (export, mut calls) = scripted(ExportInfo::new("v", MIB));
    let harness = Harness::new([export], Limits::default());
    let (mut client, _) = harness.open(true).await;
    for (command, errno) in [
        (wire::CMD_READ, 22),
        (wire::CMD_TRIM, 22),
        (wire::CMD_CACHE, 22),
        (wire::CMD_BLOCK_STATUS, 22),
        (wire::CMD_WRITE_ZEROES, 28),
    ] {
        for offset in [MIB - 1, MIB, 1 << 63, u64::MAX - 1, u64::MAX] {
            client.request(command, 0, 5, offset, 2).await;
            let chunk = client.chunk().await;
            assert_eq!(chunk.error(), (errno, "past the end of the export".into()));
            assert!(chunk.done && chunk.cookie == 5);
        }
    }
    for offset in [MIB - 1, u64::MAX] {
        client.write(0, 6, offset, b"xy").await;
        assert_eq!(client.chunk().await.error().0, 28);
    }
    client.request(wire::CMD_FLUSH, 0, 7, 0, 0).await;
    let call = next(&mut calls).await;
    assert_eq!(call.asked, Asked::Flush, "the first call the device sees");
}

#[tokio::test]
async fn unknown_commands_and_flags_are_refused_one_by_one() {
    let harness = Harness::memory();
    let (mut client, _) = harness.open(false).await;
    for command in [8, 9, 0x7fff, 0xffff] {
        client.request(command, 0, 1, 0, 512).await;
        assert_eq!(client.simple().await, (22, 1));
    }
    for flags in [wire::CMD_FLAG_DF, 1 << 5, 1 << 15] {
        client.request(wire::CMD_READ, flags, 2, 0, 512).await;
        assert_eq!(client.simple().await, (22, 2));
    }
    client.write(1 << 5, 3, 0, &[9; 600]).await;
    assert_eq!(client.simple().await, (22, 3));
    client.request(wire::CMD_FLUSH, 0, 4, 0, 1).await;
    assert_eq!(client.simple().await, (22, 4));
    client.request(wire::CMD_BLOCK_STATUS, 0, 5, 0, 512).await;
    assert_eq!(client.simple().await, (22, 5));
    client.alive().await;
}

#[tokio::test]
async fn requests_of_no_bytes_succeed_without_the_device() {
    for structured in [false, true] {
        let (export, mut calls) = scripted(ExportInfo::new("v", MIB));
        let harness = Harness::new([export], Limits::default());
        let (mut client, _) = harness.open(structured).await;
        for command in [wire::CMD_WRITE, wire::CMD_TRIM, wire::CMD_CACHE, wire::CMD_WRITE_ZEROES] {
            client.request(command, 0, 8, MIB, 0).await;
            assert_eq!(client.simple().await, (0, 8), "{command}");
        }
        client.request(wire::CMD_READ, 0, 9, 0, 0).await;
        if structured {
            let chunk = client.chunk().await;
            assert_eq!((chunk.done, chunk.kind), (true, wire::REPLY_NONE));
            assert_eq!(chunk.payload, b"");
        } else {
            assert_eq!(client.simple().await, (0, 9));
        }
        client.request(wire::CMD_FLUSH, 0, 7, 0, 0).await;
        assert_eq!(next(&mut calls).await.asked, Asked::Flush);
    }
}

#[tokio::test]
async fn read_only_exports_refuse_every_change() {
    let info = ExportInfo { read_only: true, ..ExportInfo::new("v", MIB) };
    let (export, mut calls) = scripted(info);
    let harness = Harness::new([export], Limits::default());
    let (mut client, _) = harness.open(true).await;
    for size in [0, 10, 100_000] {
        client.write(0, 1, 0, &vec![1; size]).await;
        assert_eq!(client.chunk().await.error(), (1, "the export is read-only".into()));
    }
    for command in [wire::CMD_TRIM, wire::CMD_WRITE_ZEROES] {
        client.request(command, 0, 1, 0, 10).await;
        assert_eq!(client.chunk().await.error().0, 1);
    }
    client.request(wire::CMD_READ, 0, 7, 0, 3).await;
    let call = next(&mut calls).await;
    assert_eq!(call.asked, Asked::Read(0, 3), "the first call the device sees");
    call.data("abc");
    assert_eq!(client.chunk().await.payload, b"\0\0\0\0\0\0\0\0abc");
}

#[tokio::test]
async fn requests_over_the_limit_are_refused_and_their_payload_skipped() {
    let limits = Limits { drain_bytes_max: 40 << 20, ..Limits::default() };
    let harness = Harness::new([memory("v", 64 * MIB)], limits);
    let (mut client, _) = harness.open(false).await;
    let over = (32 << 20) + 1;
    for length in [over, u32::MAX] {
        client.request(wire::CMD_READ, 0, 1, 0, length).await;
        assert_eq!(client.simple().await, (22, 1));
    }
    client.write(0, 2, 0, &vec![7; over as usize]).await;
    assert_eq!(client.simple().await, (22, 2));
    client.alive().await;
    client.request(wire::CMD_WRITE, 0, 3, 0, u32::MAX).await;
    client.gone().await;
    harness.idle().await;
}

#[tokio::test]
async fn a_request_without_magic_ends_the_connection() {
    let harness = Harness::memory();
    let (mut client, _) = harness.open(false).await;
    let mut bytes = request(wire::CMD_READ, 0, 1, 0, 1);
    bytes[3] ^= 1;
    client.send(&bytes).await;
    client.gone().await;
    harness.idle().await;
}

#[tokio::test]
async fn disconnecting_waits_for_what_is_in_flight() {
    let (export, mut calls) = scripted(ExportInfo::new("v", MIB));
    let harness = Harness::new([export], Limits::default());
    let (mut client, task) = harness.open(false).await;
    client.request(wire::CMD_READ, 0, 1, 0, 3).await;
    client.request(wire::CMD_DISC, 0xffff, 2, 3, 4).await;
    client.request(wire::CMD_READ, 0, 3, 0, 3).await;
    let call = next(&mut calls).await;
    call.data("abc");
    assert_eq!(client.simple().await, (0, 1));
    assert_eq!(client.take().await, *b"abc");
    client.gone().await;
    task.await.unwrap();
    assert!(calls.try_recv().is_err(), "nothing after goodbye is served");
    harness.idle().await;
}

#[tokio::test]
async fn a_half_closed_client_still_gets_its_replies() {
    let (export, mut calls) = scripted(ExportInfo::new("v", MIB));
    let harness = Harness::new([export], Limits::default());
    let (mut client, _) = harness.open(false).await;
    client.request(wire::CMD_READ, 0, 1, 0, 3).await;
    let call = next(&mut calls).await;
    client.stream.shutdown().await.unwrap();
    call.data("abc");
    assert_eq!(client.simple().await, (0, 1));
    assert_eq!(client.take().await, *b"abc");
    client.gone().await;
    harness.idle().await;
}
