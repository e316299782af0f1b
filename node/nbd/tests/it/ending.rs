//! How connections end: clients that vanish, devices that fail, servers that stop.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use smalti_nbd::proto::wire;
use smalti_nbd::test_support::FixedExports;
use smalti_nbd::{Export, ExportInfo, Limits, Listener, Server};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::support::{Asked, Client, Harness, MIB, memory, next, scripted, until, within};

#[tokio::test]
async fn a_vanished_clients_writes_go_on() {
    let (export, mut calls) = scripted(ExportInfo::new("v", MIB));
    let harness = Harness::new([export], Limits::default());
    let (mut client, task) = harness.open(false).await;
    client.write(0, 1, 0, &[7; 100]).await;
    client.write(0, 2, 512, &[8; 50_000]).await;
    let (one, two) = (next(&mut calls).await, next(&mut calls).await);
    drop(client);
    one.done();
    // The first reply hits a closed socket; the second write must not be dropped for it.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!two.is_dropped());
    }
    assert_eq!(harness.exports.attached(), 1, "attached until the last call has ended");
    two.done();
    within(task).await.unwrap();
    harness.idle().await;
}

#[tokio::test]
async fn a_client_that_vanishes_within_a_payload_writes_nothing() {
    for size in [1000, 100_000] {
        let (export, mut calls) = scripted(ExportInfo::new("v", MIB));
        let harness = Harness::new([export], Limits::default());
        let (mut client, task) = harness.open(false).await;
        client.request(wire::CMD_WRITE, 0, 1, 0, size).await;
        client.send(&vec![1; size as usize - 1]).await;
        drop(client);
        within(task).await.unwrap();
        harness.idle().await;
        assert!(calls.try_recv().is_err());
    }
}

#[tokio::test]
async fn a_device_that_never_answers_is_left_after_a_while() {
    let (export, mut calls) = scripted(ExportInfo::new("v", MIB));
    let limits = Limits { drain_timeout: Duration::from_millis(50), ..Limits::default() };
    let harness = Harness::new([export], limits);
    let (mut client, task) = harness.open(false).await;
    client.request(wire::CMD_FLUSH, 0, 1, 0, 0).await;
    let call = next(&mut calls).await;
    client.request(wire::CMD_DISC, 0, 2, 0, 0).await;
    client.gone().await;
    within(task).await.unwrap();
    assert!(call.is_dropped());
    harness.idle().await;
}

/// Listens on both kinds of socket and serves until told to stop.
struct Listening {
    server: Server,
    exports: Arc<FixedExports>,
    stop: CancellationToken,
    tcp: std::net::SocketAddr,
    unix: std::path::PathBuf,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

async fn listening(export: Arc<dyn Export>, limits: Limits) -> Listening {
    let folder = tempfile::tempdir().unwrap();
    let unix = folder.path().join("s");
    let exports = Arc::new(FixedExports::new([export]));
    let server = Server::new(exports.clone(), limits).unwrap();
    let stop = CancellationToken::new();
    let tcp_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = tcp_listener.local_addr().unwrap();
    let unix_listener = UnixListener::bind(&unix).unwrap();
    let tasks = [Listener::Tcp(tcp_listener), Listener::unix(unix_listener)]
        .into_iter()
        .map(|listener| {
            let (server, stop) = (server.clone(), stop.clone());
            tokio::spawn(async move { server.serve(listener, stop).await })
        })
        .collect();
    Listening { server, exports, stop, tcp, unix, tasks, _folder: folder }
}

#[tokio::test]
async fn stopping_finishes_what_is_in_flight_and_takes_nothing_new() {
    let (export, mut calls) = scripted(ExportInfo::new("v", MIB));
    let listening = listening(export, Limits::default()).await;
    let mut one = Client::new(TcpStream::connect(listening.tcp).await.unwrap());
    one.negotiate("v", true).await;
    let mut two = Client::new(UnixStream::connect(&listening.unix).await.unwrap());
    two.negotiate("", false).await;
    let mut idle = Client::new(UnixStream::connect(&listening.unix).await.unwrap());
    idle.negotiate("", false).await;
    let mut negotiating = Client::new(UnixStream::connect(&listening.unix).await.unwrap());
    negotiating.greet(3).await;
    assert_eq!((listening.server.connections(), listening.exports.attached()), (4, 3));
    one.request(wire::CMD_READ, 0, 1, 0, 3).await;
    two.write(0, 2, 0, b"xyz").await;
    let mut waiting = vec![next(&mut calls).await, next(&mut calls).await];
    waiting.sort_by_key(|call| matches!(call.asked, Asked::Write(..)));

    listening.stop.cancel();
    idle.gone().await;
    negotiating.gone().await;
    until("the listeners are closed", || listening.server.connections() == 2).await;
    assert!(TcpStream::connect(listening.tcp).await.is_err());
    assert!(UnixStream::connect(&listening.unix).await.is_err());
    assert!(listening.tasks.iter().all(|task| !task.is_finished()));

    waiting.remove(0).data("abc");
    let chunk = one.chunk().await;
    assert_eq!((chunk.kind, &chunk.payload[8..]), (wire::REPLY_OFFSET_DATA, &b"abc"[..]));
    one.gone().await;
    waiting.remove(0).done();
    assert_eq!(two.simple().await, (0, 2));
    two.gone().await;
    for task in listening.tasks {
        within(task).await.unwrap();
    }
    assert_eq!((listening.server.connections(), listening.exports.attached()), (0, 0));
}

#[tokio::test]
async fn the_last_replies_survive_requests_nobody_reads() {
    let (export, mut calls) = scripted(ExportInfo::new("v", 64 * MIB));
    let listening = listening(export, Limits::default()).await;
    let mut client = Client::new(TcpStream::connect(listening.tcp).await.unwrap());
    client.negotiate("v", false).await;
    client.request(wire::CMD_READ, 0, 1, 0, 2 * MIB as u32).await;
    let call = next(&mut calls).await;
    listening.stop.cancel();
    for cookie in 2..1000 {
        client.request(wire::CMD_FLUSH, 0, cookie, 0, 0).await;
    }
    call.data(vec![7; 2 * MIB as usize]);
    assert_eq!(client.simple().await, (0, 1));
    assert!(client.bytes(2 * MIB as usize).await.iter().all(|&byte| byte == 7));
    let mut rest = Vec::new();
    within(client.stream.read_to_end(&mut rest)).await.expect("an orderly end, not a reset");
    assert_eq!(rest, b"");
    drop(client);
    for task in listening.tasks {
        within(task).await.unwrap();
    }
    assert!(calls.try_recv().is_err());
}

#[tokio::test]
async fn stopping_has_a_deadline() {
    let limits = Limits { stop_timeout: Duration::from_millis(50), ..Limits::default() };
    // A client that left before, with a request in flight, does not make it longer.
    for leaves in [false, true] {
        let (export, mut calls) = scripted(ExportInfo::new("v", MIB));
        let listening = listening(export, limits.clone()).await;
        let mut client = Client::new(UnixStream::connect(&listening.unix).await.unwrap());
        client.negotiate("v", false).await;
        client.request(wire::CMD_FLUSH, 0, 1, 0, 0).await;
        let call = next(&mut calls).await;
        if leaves {
            client.request(wire::CMD_DISC, 0, 2, 0, 0).await;
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                assert!(!call.is_dropped());
            }
        }
        listening.stop.cancel();
        for task in listening.tasks {
            within(task).await.unwrap();
        }
        assert!(call.is_dropped());
        client.gone().await;
    }
}

#[tokio::test]
async fn only_allowed_users_may_connect() {
    let folder = tempfile::tempdir().unwrap();
    let me = std::fs::metadata(folder.path()).unwrap().uid();
    for (uids, allowed) in [(vec![me], true), (vec![me + 1], false), (vec![], false)] {
        let path = folder.path().join(format!("s{}", uids.len() + usize::from(allowed) * 10));
        let listener = UnixListener::bind(&path).unwrap();
        let harness = Harness::memory();
        let (server, stop) = (harness.server.clone(), harness.stop.clone());
        let listener = Listener::Unix { listener, uids: Some(uids) };
        let task = tokio::spawn(async move { server.serve(listener, stop).await });
        let mut client = Client::new(UnixStream::connect(&path).await.unwrap());
        if allowed {
            client.negotiate("v", false).await;
            client.alive().await;
        } else {
            client.gone().await;
        }
        harness.stop.cancel();
        within(task).await.unwrap();
    }
}

#[tokio::test]
async fn a_panic_ends_its_connection_and_no_other() {
    /// Panics when flushed.
    struct Bomb(Arc<dyn Export>);
    use smalti_nbd::{BoxFuture, DeviceError, Extent, ReadReply, ZeroFlags};
    type Answer<T> = BoxFuture<Result<T, DeviceError>>;
    impl Export for Bomb {
        fn info(&self) -> ExportInfo {
            self.0.info()
        }
        fn read(&self, offset: u64, length: u32) -> Answer<ReadReply> {
            self.0.read(offset, length)
        }
        fn write(&self, offset: u64, data: bytes::Bytes, fua: bool) -> Answer<()> {
            self.0.write(offset, data, fua)
        }
        fn flush(&self) -> Answer<()> {
            async { panic!("as the test wants") }.boxed()
        }
        fn trim(&self, offset: u64, length: u64, fua: bool) -> Answer<()> {
            self.0.trim(offset, length, fua)
        }
        fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> Answer<()> {
            self.0.write_zeroes(offset, length, flags)
        }
        fn block_status(&self, offset: u64, length: u64, most: usize) -> Answer<Vec<Extent>> {
            self.0.block_status(offset, length, most)
        }
        fn cache(&self, offset: u64, length: u64) -> Answer<()> {
            self.0.cache(offset, length)
        }
    }

    let listening = listening(Arc::new(Bomb(memory("v", MIB))), Limits::default()).await;
    let mut other = Client::new(UnixStream::connect(&listening.unix).await.unwrap());
    other.negotiate("v", false).await;
    let mut client = Client::new(UnixStream::connect(&listening.unix).await.unwrap());
    client.negotiate("v", false).await;
    client.request(wire::CMD_FLUSH, 0, 1, 0, 0).await;
    let mut rest = Vec::new();
    within(client.stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"", "no reply to a request nobody knows the outcome of");
    until("it is detached", || listening.exports.attached() == 1).await;
    other.request(wire::CMD_READ, 0, 3, 0, 1).await;
    assert_eq!(other.simple().await, (0, 3));
    assert_eq!(other.take().await, [0]);
    until("its bytes are given back", || listening.server.bytes_in_flight() == 0).await;
    listening.stop.cancel();
    for task in listening.tasks {
        within(task).await.unwrap();
    }
}
