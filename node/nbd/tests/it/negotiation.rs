//! Every option, and everything a client can do wrong before it has an export.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use smalti_nbd::proto::wire;
use smalti_nbd::{BoxFuture, Export, ExportInfo, Exports, Limits, OpenError, Peer, Server};
use tokio::net::UnixStream;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::support::{Client, Harness, MIB, OptionReply, info, memory, meta, scripted, text};

const ACK: OptionReply = OptionReply { kind: wire::REP_ACK, data: Vec::new() };

fn two() -> Harness {
    Harness::new([memory("a", MIB), memory("b", 2 * MIB)], Limits::default())
}

async fn greeted(harness: &Harness) -> Client<UnixStream> {
    let (mut client, _) = harness.connect();
    client.greet(3).await;
    client
}

#[tokio::test]
async fn unknown_client_flags_end_the_connection() {
    for flags in [4, 7, 0x8000_0000] {
        let harness = Harness::memory();
        let (mut client, _) = harness.connect();
        client.greet(flags).await;
        client.gone().await;
        harness.idle().await;
    }
}

#[tokio::test]
async fn old_clients_may_only_name_an_export() {
    let harness = Harness::memory();
    let (mut client, _) = harness.connect();
    client.greet(0).await;
    client.send_option(wire::OPT_LIST, &[]).await;
    client.gone().await;

    let (mut client, _) = harness.connect();
    client.greet(0).await;
    client.send_option(wire::OPT_EXPORT_NAME, b"v").await;
    assert_eq!(client.take().await, MIB.to_be_bytes());
    // Everything but DF, which needs structured replies.
    assert_eq!(client.take().await, 0b1101_0110_1101_u16.to_be_bytes());
    assert_eq!(client.take().await, [0; 124]);
    client.alive().await;
    assert_eq!(harness.exports.attached(), 1);
}

#[tokio::test]
async fn export_name_without_zeroes_and_with_structured_replies() {
    let harness = Harness::memory();
    let mut client = greeted(&harness).await;
    assert_eq!(client.option(wire::OPT_STRUCTURED_REPLY, &[]).await, [ACK]);
    client.send_option(wire::OPT_EXPORT_NAME, b"").await;
    assert_eq!(client.take().await, MIB.to_be_bytes());
    assert_eq!(client.take().await, 0b1101_1110_1101_u16.to_be_bytes());
    client.alive().await;
}

#[tokio::test]
async fn export_name_has_no_way_to_fail_but_leaving() {
    let harness = Harness::memory();
    for name in [b"other".as_slice(), b"\xff", &[b'x'; 5000], &[b'x'; 70_000]] {
        let mut client = greeted(&harness).await;
        // The server may close before it has read everything.
        let header = [b"IHAVEOPT\0\0\0\x01".as_slice(), &(name.len() as u32).to_be_bytes()];
        client.send(&header.concat()).await;
        let _sent_or_closed = tokio::io::AsyncWriteExt::write_all(&mut client.stream, name).await;
        client.gone().await;
    }
    harness.idle().await;
}

#[tokio::test]
async fn lists_every_export() {
    let mut client = greeted(&two()).await;
    let entry = |name: &str| OptionReply { kind: wire::REP_SERVER, data: text(name) };
    assert_eq!(client.option(wire::OPT_LIST, &[]).await, [entry("a"), entry("b"), ACK]);
    let (kind, _) = client.option_error(wire::OPT_LIST, b"x").await;
    assert_eq!(kind, wire::REP_ERR_INVALID);
    assert_eq!(client.option(wire::OPT_LIST, &[]).await.len(), 3, "still talking");
}

#[tokio::test]
async fn info_describes_and_go_attaches() {
    let described = ExportInfo {
        description: Some("a test".into()),
        preferred_block_bytes: 65536,
        read_only: true,
        ..ExportInfo::new("v", 12345)
    };
    let (export, _calls) = scripted(described);
    let harness = Harness::new([export], Limits::default());
    let mut client = greeted(&harness).await;
    let reply = |data: &[u8]| OptionReply { kind: wire::REP_INFO, data: data.to_vec() };
    let size = reply(&[0, 0, 0, 0, 0, 0, 0, 0, 0x30, 0x39, 0b101, 0b1111]);
    let blocks = reply(&[0, 3, 0, 0, 0, 1, 0, 1, 0, 0, 2, 0, 0, 0]);
    let name = reply(b"\0\x01v");
    let text = reply(b"\0\x02a test");

    let plain = client.option(wire::OPT_INFO, &info("", &[])).await;
    assert_eq!(plain, [size.clone(), blocks.clone(), ACK]);
    let all = info("v", &[wire::INFO_DESCRIPTION, wire::INFO_NAME, 0x7777, wire::INFO_BLOCK_SIZE]);
    let full = [size, blocks, name, text, ACK];
    assert_eq!(client.option(wire::OPT_INFO, &all).await, full);
    assert_eq!(harness.exports.attached(), 0, "a description attaches nothing");
    assert_eq!(client.option(wire::OPT_GO, &all).await, full);
    assert_eq!(harness.exports.attached(), 1);
    drop(client);
    harness.idle().await;
}

#[tokio::test]
async fn the_empty_name_needs_exactly_one_export() {
    let mut client = greeted(&two()).await;
    for option in [wire::OPT_INFO, wire::OPT_GO] {
        let (kind, said) = client.option_error(option, &info("", &[])).await;
        assert_eq!((kind, said.as_str()), (wire::REP_ERR_UNKNOWN, "no such export"));
    }
    let mut client = greeted(&Harness::new([], Limits::default())).await;
    let (kind, _) = client.option_error(wire::OPT_GO, &info("", &[])).await;
    assert_eq!(kind, wire::REP_ERR_UNKNOWN);
}

#[tokio::test]
async fn every_reason_not_to_open_has_its_reply() {
    let harness = two();
    harness.exports.refuse("a", OpenError::Policy { reason: "not for you".into() });
    harness.exports.refuse("b", OpenError::Unavailable { reason: "sealed".into() });
    let mut client = greeted(&harness).await;
    for option in [wire::OPT_INFO, wire::OPT_GO] {
        let mut error = async |name| client.option_error(option, &info(name, &[])).await;
        assert_eq!(error("a").await, (wire::REP_ERR_POLICY, "not for you".into()));
        assert_eq!(error("b").await, (wire::REP_ERR_SHUTDOWN, "sealed".into()));
        assert_eq!(error("c").await.0, wire::REP_ERR_UNKNOWN);
    }
    assert_eq!(harness.exports.attached(), 0);
}

#[tokio::test]
async fn malformed_options_are_refused_and_the_talk_goes_on() {
    let harness = Harness::memory();
    let mut client = greeted(&harness).await;
    let mut short = info("v", &[1, 2]);
    short.pop();
    let long = [info("v", &[]), vec![0]].concat();
    let lying = [&u32::MAX.to_be_bytes()[..], b"v\0\0"].concat();
    for payload in [&[][..], &[0, 0, 0], &short, &long, &lying] {
        for option in [wire::OPT_INFO, wire::OPT_GO] {
            let (kind, _) = client.option_error(option, payload).await;
            assert_eq!(kind, wire::REP_ERR_INVALID, "{payload:?}");
        }
    }
    let name = "x".repeat(4097);
    let (kind, _) = client.option_error(wire::OPT_GO, &info(&name, &[])).await;
    assert_eq!(kind, wire::REP_ERR_TOO_BIG);
    for option in [wire::OPT_STRUCTURED_REPLY, wire::OPT_STARTTLS] {
        let (kind, _) = client.option_error(option, b"x").await;
        assert_eq!(kind, wire::REP_ERR_INVALID);
    }
    assert_eq!(client.option_error(wire::OPT_STARTTLS, &[]).await.0, wire::REP_ERR_POLICY);
    for option in [0, 4, 11, 99, u32::MAX] {
        let (kind, _) = client.option_error(option, b"whatever").await;
        assert_eq!(kind, wire::REP_ERR_UNSUP, "{option}");
    }
    assert_eq!(client.option(wire::OPT_GO, &info("v", &[])).await.last(), Some(&ACK));
    client.alive().await;
}

#[tokio::test]
async fn metadata_contexts() {
    let harness = two();
    let mut client = greeted(&harness).await;
    let base = "base:allocation";
    for option in [wire::OPT_LIST_META_CONTEXT, wire::OPT_SET_META_CONTEXT] {
        let (kind, _) = client.option_error(option, &meta("a", &[base])).await;
        assert_eq!(kind, wire::REP_ERR_INVALID, "structured replies come first");
    }
    assert_eq!(client.option(wire::OPT_STRUCTURED_REPLY, &[]).await, [ACK]);
    let shown = |id: u32| OptionReply {
        kind: wire::REP_META_CONTEXT,
        data: [&id.to_be_bytes(), base.as_bytes()].concat(),
    };
    for queries in [&[][..], &["base:"], &[base], &["x:", base]] {
        let replies = client.option(wire::OPT_LIST_META_CONTEXT, &meta("a", queries)).await;
        assert_eq!(replies, [shown(0), ACK], "{queries:?}");
    }
    assert_eq!(client.option(wire::OPT_LIST_META_CONTEXT, &meta("a", &["x:"])).await, [ACK]);
    for queries in [&[][..], &["base:"], &["qemu:dirty-bitmap:b"]] {
        let replies = client.option(wire::OPT_SET_META_CONTEXT, &meta("a", queries)).await;
        assert_eq!(replies, [ACK], "{queries:?}");
    }
    let set = meta("a", &["qemu:x", base]);
    assert_eq!(client.option(wire::OPT_SET_META_CONTEXT, &set).await, [shown(1), ACK]);
    let (kind, _) = client.option_error(wire::OPT_SET_META_CONTEXT, &meta("c", &[base])).await;
    assert_eq!(kind, wire::REP_ERR_UNKNOWN);
    let too_many = meta("a", &[""; 300]);
    let (kind, _) = client.option_error(wire::OPT_SET_META_CONTEXT, &too_many).await;
    assert_eq!(kind, wire::REP_ERR_TOO_BIG);
}

#[tokio::test]
async fn a_context_counts_for_its_export_and_its_last_selection_only() {
    let harness = two();
    let base = "base:allocation";
    let cases: [(&[Vec<u8>], bool); 5] = [
        (&[meta("a", &[base])], true),
        (&[meta("b", &[base])], false),
        (&[meta("a", &[base]), meta("a", &["x:"])], false),
        (&[meta("a", &[base]), meta("nobody", &[base])], false),
        (&[meta("a", &[base]), vec![1, 2, 3]], false),
    ];
    for (selections, works) in cases {
        let mut client = greeted(&harness).await;
        client.option(wire::OPT_STRUCTURED_REPLY, &[]).await;
        for selection in selections {
            client.option(wire::OPT_SET_META_CONTEXT, selection).await;
        }
        client.option(wire::OPT_GO, &info("a", &[])).await;
        client.request(wire::CMD_BLOCK_STATUS, 0, 1, 0, 4096).await;
        let chunk = client.chunk().await;
        if works {
            assert_eq!(chunk.kind, wire::REPLY_BLOCK_STATUS);
        } else {
            assert_eq!(chunk.error().0, 22, "{selections:?}");
        }
    }
}

#[tokio::test]
async fn abort_is_acknowledged() {
    let harness = Harness::memory();
    let mut client = greeted(&harness).await;
    assert_eq!(client.option(wire::OPT_ABORT, &[]).await, [ACK]);
    client.gone().await;
    harness.idle().await;
}

#[tokio::test]
async fn options_without_magic_end_the_connection() {
    let harness = Harness::memory();
    let mut client = greeted(&harness).await;
    client.send(b"IHAVEOPX\0\0\0\x03\0\0\0\0").await;
    client.gone().await;
}

#[tokio::test]
async fn the_number_of_options_is_limited() {
    let limits = Limits { options_max: 3, ..Limits::default() };
    let harness = Harness::new([memory("v", MIB)], limits);
    let mut client = greeted(&harness).await;
    for _ in 0..3 {
        client.option(wire::OPT_LIST, &[]).await;
    }
    client.gone().await;
}

#[tokio::test]
async fn oversize_options_are_skipped_up_to_a_bound() {
    let limits = Limits { option_drain_bytes_max: 100_000, ..Limits::default() };
    let harness = Harness::new([memory("v", MIB)], limits);
    let mut client = greeted(&harness).await;
    let (kind, _) = client.option_error(wire::OPT_GO, &vec![0xab; 100_000]).await;
    assert_eq!(kind, wire::REP_ERR_TOO_BIG);
    assert_eq!(client.option(wire::OPT_LIST, &[]).await.len(), 2, "still in step");
    client.send(b"IHAVEOPT\0\0\0\x03\0\x01\x86\xa1").await;
    client.gone().await;
    let mut client = greeted(&harness).await;
    client.send(b"IHAVEOPT\0\0\0\x03\xff\xff\xff\xff").await;
    client.gone().await;
    harness.idle().await;
}

#[tokio::test]
async fn a_negotiation_has_one_time_limit() {
    let limits = Limits { handshake_timeout: Duration::from_millis(100), ..Limits::default() };
    let harness = Harness::new([memory("v", MIB)], limits);
    let (mut silent, _) = harness.connect();
    assert_eq!(silent.take().await, *b"NBDMAGICIHAVEOPT\0\x03");
    silent.gone().await;

    // A byte now and then, or an option now and then, does not stretch it.
    let mut busy = greeted(&harness).await;
    let flood = async {
        loop {
            busy.send_option(wire::OPT_LIST, &[]).await;
            while busy.option_reply(wire::OPT_LIST).await.kind != wire::REP_ACK {}
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(std::panic::AssertUnwindSafe(flood).catch_unwind().await.is_err(), "cut off");
    harness.idle().await;
}

/// Exports that take their time to open.
struct Slow {
    delay: Duration,
}

impl Exports for Slow {
    fn list(&self) -> BoxFuture<Vec<String>> {
        async { vec!["v".to_owned()] }.boxed()
    }

    fn describe(&self, _name: &str) -> BoxFuture<Result<ExportInfo, OpenError>> {
        async { Ok(ExportInfo::new("v", MIB)) }.boxed()
    }

    fn open(&self, _name: &str) -> BoxFuture<Result<Arc<dyn Export>, OpenError>> {
        let delay = self.delay;
        async move {
            sleep(delay).await;
            Ok(memory("v", MIB))
        }
        .boxed()
    }
}

async fn slow(delay: Duration, limits: Limits) -> Client<UnixStream> {
    let server = Server::new(Arc::new(Slow { delay }), limits).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        server.serve_stream(theirs, Peer::Other("test"), &CancellationToken::new()).await;
    });
    let mut client = Client::new(ours);
    client.greet(3).await;
    client
}

#[tokio::test]
async fn opening_takes_the_servers_time_and_not_the_clients() {
    let limits = Limits { handshake_timeout: Duration::from_millis(300), ..Limits::default() };
    let mut client = slow(Duration::from_millis(600), limits).await;
    assert_eq!(client.option(wire::OPT_GO, &info("v", &[])).await.last(), Some(&ACK));
    client.alive().await;
}

#[tokio::test]
async fn opening_has_its_own_limit() {
    let limits = Limits { open_timeout: Duration::from_millis(20), ..Limits::default() };
    let mut client = slow(Duration::from_secs(3600), limits).await;
    let (kind, said) = client.option_error(wire::OPT_GO, &info("v", &[])).await;
    assert_eq!(kind, wire::REP_ERR_SHUTDOWN);
    assert_eq!(said, "the export did not answer in time");
    let replies = client.option(wire::OPT_INFO, &info("v", &[])).await;
    assert_eq!(replies.last(), Some(&ACK), "still talking");
}
