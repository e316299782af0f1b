//! Calls: answers, refusals, limits, and a peer that comes and goes.

use super::support::*;
use crate::{
    BoxFuture, CallError, CallErrorKind, DownReason, Endpoint, NetConfig, NodeCredentials,
    PeerState, REQUEST_BYTES_MAX, Service, SessionError,
};
use bytes::Bytes;
use smalti_storage::ids::NodeId;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

const NOT_THERE: u8 = 200;
const PANIC: u8 = 201;
const PANIC_AT_ONCE: u8 = 202;
const HUGE: u8 = 203;
const HANG: u8 = 204;
const WHO: u8 = 205;

struct Odd(u8, Arc<Notify>);

impl Service for Odd {
    fn call(&self, from: NodeId, _: Bytes) -> BoxFuture<'_, Bytes> {
        assert!(self.0 != PANIC_AT_ONCE, "on purpose");
        Box::pin(async move {
            match self.0 {
                PANIC => panic!("on purpose"),
                HUGE => Bytes::from(vec![0; REQUEST_BYTES_MAX + 1]),
                WHO => Bytes::from(from.to_string()),
                _ => {
                    self.1.notified().await;
                    Bytes::new()
                }
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_every_size_come_back() {
    let pair = pair();
    for len in [0, 1, 7, 4096, 8952, 65_536, 1 << 20, REQUEST_BYTES_MAX] {
        let request: Bytes = (0..len).map(|i| (i * 31 / 8) as u8).collect();
        let answer = pair.to_two.call(ECHO, request.clone(), LONG).await.expect("echo");
        assert!(answer == request, "{len} bytes differ");
    }
    let many: Vec<_> = (0..300u32)
        .map(|i| {
            let peer = pair.to_two.clone();
            tokio::spawn(async move {
                let request = Bytes::from(i.to_be_bytes().repeat(100));
                assert_eq!(peer.call(ECHO, request.clone(), LONG).await.expect("echo"), request);
            })
        })
        .collect();
    for call in many {
        call.await.expect("call");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_failure_has_its_own_kind() {
    let pair = pair();
    let release = Arc::new(Notify::new());
    for service in [PANIC, PANIC_AT_ONCE, HUGE, HANG, WHO] {
        pair.two.serve(service, Arc::new(Odd(service, release.clone())));
    }
    let call =
        |service, len, timeout| pair.to_two.call(service, Bytes::from(vec![1; len]), timeout);
    let short = Duration::from_millis(300);
    for (what, outcome, kind, acted) in [
        ("unknown", call(NOT_THERE, 9, LONG).await, CallErrorKind::Refused, false),
        ("unknown, large", call(NOT_THERE, 32 << 20, LONG).await, CallErrorKind::Refused, false),
        (
            "too large",
            call(ECHO, REQUEST_BYTES_MAX + 1, LONG).await,
            CallErrorKind::TooLarge,
            false,
        ),
        ("answer too large", call(HUGE, 1, LONG).await, CallErrorKind::TooLarge, true),
        ("panic", call(PANIC, 1, LONG).await, CallErrorKind::Protocol, true),
        ("panic at once", call(PANIC_AT_ONCE, 1, LONG).await, CallErrorKind::Protocol, true),
        ("hangs", call(HANG, 1, short).await, CallErrorKind::Timeout, true),
    ] {
        let error = outcome.expect_err(what);
        assert_eq!((error.kind(), error.may_have_acted()), (kind, acted), "{what}: {error}");
    }
    assert_eq!(call(WHO, 0, LONG).await.expect("who"), "n1");
    // None of it harmed the connection.
    assert_eq!(pair.two.guest_count(), 1);
    let hello = Bytes::from(vec![0; crate::HELLO_BYTES_MAX + 1]);
    let error = pair.to_two.open_session(STREAM, hello, LONG).await.expect_err("long hello");
    assert_eq!(error.kind(), CallErrorKind::TooLarge);
    let error = pair.to_two.open_session(99, Bytes::new(), LONG).await.expect_err("unknown");
    assert_eq!(error.kind(), CallErrorKind::Refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_unreachable_within_the_time_given() {
    let ca = authority();
    let config = NetConfig { connect_timeout: Duration::from_millis(150), ..patient() };
    let one = bind_at(any_port(), &ca.issue(NodeId(1), "one").expect("issue"), config);
    // A port that is taken by somebody who does not speak our language.
    let mute = std::net::UdpSocket::bind(any_port()).expect("bind");
    let peer = one.peer(NodeId(2), mute.local_addr().expect("address"));
    assert_eq!(peer.state(), PeerState::Down(DownReason::Idle));
    for timeout in [20, 200, 3000].map(Duration::from_millis) {
        let error = peer.call(ECHO, Bytes::new(), timeout).await.expect_err("nobody");
        assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
        assert!(!error.may_have_acted());
    }
    assert!(matches!(peer.state(), PeerState::Down(DownReason::Unreachable(_))));
    // Attempts are spaced out: in this time one could dial without end.
    let (started, mut attempts) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_secs(2) {
        peer.connect(LONG).await.expect_err("nobody");
        attempts += 1;
    }
    assert!(attempts <= 2000 / 150, "{attempts} attempts");
}

/// The idle timeout is the shorter one of both sides. With this one it helps nobody.
fn never_idle() -> NetConfig {
    NetConfig { idle_timeout: Duration::from_secs(600), ..patient() }
}

fn restart(addr: SocketAddr, credentials: &NodeCredentials) -> Option<Endpoint> {
    let endpoint = Endpoint::bind(addr, credentials, Members::of(&[1, 2]), never_idle()).ok()?;
    endpoint.serve(ECHO, Arc::new(Echo::default()));
    Some(endpoint)
}

/// Starts the node again at its address; the old socket goes when its driver has ended.
async fn restarted(addr: SocketAddr, credentials: &NodeCredentials) -> Endpoint {
    let deadline = Instant::now() + LONG;
    loop {
        match restart(addr, credentials) {
            Some(endpoint) => return endpoint,
            None => assert!(Instant::now() < deadline, "the address stays taken"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_peer_is_found_again_at_its_address() {
    let ca = authority();
    let credentials = ca.issue(NodeId(2), "two").expect("issue");
    let one = bind(&ca.issue(NodeId(1), "one").expect("issue"));
    let mut two = restart(any_port(), &credentials).expect("bind");
    let addr = two.local_addr();
    let peer = one.peer(NodeId(2), addr);
    for round in 0..3 {
        until("answers", || async { echo(&peer).await.is_ok() }).await;
        assert_eq!(peer.state(), PeerState::Up, "round {round}");
        two.close().await;
        drop(two);
        until_down(&peer).await;
        let error = peer.call(ECHO, Bytes::new(), Duration::from_millis(50)).await;
        assert_eq!(error.expect_err("down").kind(), CallErrorKind::Unreachable);
        two = restarted(addr, &credentials).await;
    }
    until("answers", || async { echo(&peer).await.is_ok() }).await;
}

#[test]
fn a_killed_and_restarted_peer_says_that_old_connections_are_gone() {
    // No word of farewell: the runtime with the endpoint just ends. The idle timeout is long, so
    // only the reset that the new process sends can tell the dialer.
    let ca = authority();
    let credentials = ca.issue(NodeId(2), "two").expect("issue");
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().expect("runtime")
    };
    let here = runtime();
    let there = runtime();
    let two = there.block_on(async { restart(any_port(), &credentials).expect("bind") });
    let addr = two.local_addr();
    let (one, peer) = here.block_on(async {
        let one = bind_at(any_port(), &ca.issue(NodeId(1), "one").expect("issue"), never_idle());
        let peer = one.peer(NodeId(2), addr);
        echo(&peer).await.expect("echo");
        (one, peer)
    });
    // The tasks end first, so nothing is left that could send a farewell when the endpoint goes.
    there.shutdown_timeout(LONG);
    drop(two);
    let again = runtime();
    let two_again = again.block_on(restarted(addr, &credentials));
    here.block_on(async {
        let short = Duration::from_millis(500);
        until("answers", || async {
            peer.call(ECHO, Bytes::from_static(b"x"), short).await.is_ok()
        })
        .await;
    });
    drop((one, two_again));
}

#[test]
fn a_peer_that_vanishes_without_a_word_is_given_up_after_the_idle_timeout() {
    let ca = authority();
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().expect("runtime")
    };
    let (here, there) = (runtime(), runtime());
    let two = there.block_on(async {
        let two = bind(&ca.issue(NodeId(2), "two").expect("issue"));
        two.accept_sessions(STREAM, Arc::new(EchoSessions));
        two
    });
    here.block_on(async {
        let idle_timeout = Duration::from_secs(1);
        let config = NetConfig { idle_timeout, ..patient() };
        let one = bind_at(any_port(), &ca.issue(NodeId(1), "one").expect("issue"), config);
        let peer = one.peer(NodeId(2), two.local_addr());
        let mut session = peer.open_session(STREAM, Bytes::new(), LONG).await.expect("session");
        // Keep-alives hold an idle connection for longer than the timeout.
        tokio::time::sleep(2 * idle_timeout).await;
        assert_eq!(peer.state(), PeerState::Up);
        let end = tokio::task::spawn_blocking(move || there.shutdown_timeout(LONG));
        end.await.expect("shut down");
        let end = tokio::time::timeout(LONG, session.rx.recv()).await.expect("given up");
        let lost = SessionError::Lost { reason: "no sign of life".into() };
        assert_eq!(end, Err(lost.clone()));
        assert_eq!(session.tx.closed().await, lost);
        until_down(&peer).await;
        assert!(matches!(peer.state(), PeerState::Down(DownReason::Lost(_))));
    });
    drop(two);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_share_a_connection_and_the_last_one_closes_it() {
    let pair = pair();
    let second = pair.one.peer(NodeId(2), pair.two.local_addr());
    echo(&pair.to_two).await.expect("echo");
    echo(&second).await.expect("echo");
    assert_eq!(pair.two.guest_count(), 1);
    assert!(second.stats().expect("up").sent > 0);
    // Both sides may dial.
    pair.one.serve(ECHO, Arc::new(Echo::default()));
    echo(&pair.two.peer(NodeId(1), pair.one.local_addr())).await.expect("the other way");
    let Pair { one: _one, two, to_two, .. } = pair;
    drop(to_two);
    echo(&second).await.expect("echo");
    drop(second);
    until("the connection closes", || async { two.guest_count() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_endpoint_refuses_and_does_not_hang() {
    let pair = pair();
    echo(&pair.to_two).await.expect("echo");
    pair.one.close().await;
    let error = echo(&pair.to_two).await.expect_err("closed");
    assert_eq!(error.kind(), CallErrorKind::Unreachable, "{error}");
    until("the other side notices", || async { pair.two.guest_count() == 0 }).await;
    pair.two.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dials_too_often_loses_its_oldest_connection() {
    let pair = pair();
    let credentials = pair.ca.issue(NodeId(3), "three").expect("issue");
    let mut open = Vec::new();
    for _ in 0..patient().connections_per_node_max + 2 {
        open.push(raw(&credentials, &pair.two).await);
    }
    open[0].1.closed().await;
    open[1].1.closed().await;
    until("the rest stays", || async {
        pair.two.guest_count() == patient().connections_per_node_max
    })
    .await;
    echo(&pair.to_two).await.expect("others are not affected");
}
