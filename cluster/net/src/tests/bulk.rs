//! Much data and many small requests at once, with datagrams of every size: nothing may hang.

use super::support::*;
use crate::{NetConfig, Peer, Session};
use bytes::Bytes;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

const FRAME: usize = 256 << 10;

/// Small requests that go beside the bulk, or after it when that was quick.
const CALLS_MIN: usize = 500;

/// Sends `mib` MiB to an echo session and takes them back; the contents are checked.
async fn both_ways(peer: &Peer, mib: usize) {
    let Session { tx, mut rx } =
        peer.open_session(STREAM, Bytes::new(), LONG).await.expect("session");
    let frames = mib * (1 << 20) / FRAME;
    let pattern: Bytes = (0..FRAME + 256).map(|i| (i * 7 % 256) as u8).collect();
    let expected = pattern.clone();
    let sender = tokio::spawn(async move {
        for number in 0..frames {
            let from = number % 256;
            tx.send(pattern.slice(from..from + FRAME)).await.expect("send");
        }
    });
    for number in 0..frames {
        let frame = tokio::time::timeout(LONG, rx.recv())
            .await
            .unwrap_or_else(|_| panic!("hangs at frame {number}: {:?}", peer.stats()));
        let from = number % 256;
        let frame = frame.expect("frame").expect("not the end");
        assert!(frame == expected[from..from + FRAME], "frame {number} differs");
    }
    sender.await.expect("sender");
}

async fn run(datagram_max: u16, mib: usize) {
    let pair = pair_with(&NetConfig { datagram_max, ..patient() });
    let done = AtomicBool::new(false);
    let small = async {
        let mut calls = 0;
        while !done.load(Ordering::Relaxed) || calls < CALLS_MIN {
            let request = Bytes::from(vec![calls as u8; 4096]);
            let answer = pair.to_two.call(ECHO, request.clone(), LONG).await.expect("call");
            assert!(answer == request);
            calls += 1;
        }
        calls
    };
    let large = async {
        both_ways(&pair.to_two, mib).await;
        done.store(true, Ordering::Relaxed);
    };
    let (calls, ()) = tokio::join!(small, large);
    let stats = pair.to_two.stats().expect("connected");
    println!("{mib} MiB each way and {calls} calls in datagrams up to {datagram_max}: {stats:?}");
    // Batches that the kernel refuses look like loss. QUIC may get through all the same, many
    // times slower, so that the contents alone do not tell.
    assert!(stats.lost * 20 < stats.sent, "{stats:?}");
    // Probing must get all the way there: loopback carries anything.
    until("probed", || async {
        echo(&pair.to_two).await.expect("echo");
        let found = pair.to_two.stats().expect("connected").datagram_bytes;
        found > datagram_max - datagram_max / 32 - 20
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_each_way_with_the_default_datagrams() {
    run(NetConfig::default().datagram_max, 1024).await;
}

/// Sizes at which batches of datagrams would not fit one send, were they not bounded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_from_the_smallest_to_the_largest() {
    for datagram_max in [1_200, 6_551, 16_000, 32_760, 65_507] {
        tokio::time::timeout(4 * LONG, run(datagram_max, 96))
            .await
            .unwrap_or_else(|_| panic!("hangs with datagrams of {datagram_max}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_socket_buffer_is_slow_but_works() {
    let config = NetConfig { socket_buffer: 64 << 10, ..patient() };
    let pair = pair_with(&config);
    both_ways(&pair.to_two, 32).await;
    assert!(pair.to_two.stats().expect("connected").round_trip < Duration::from_secs(5));
}
