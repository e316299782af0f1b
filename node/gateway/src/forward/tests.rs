#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::device::BlockDevice;
use crate::error::GatewayError;
use crate::gateway::{Gateway, GatewayConfig, GatewayLimits};
use crate::test_support::{MemoryRows, identity, volume_keys};
use futures::{Stream, StreamExt, stream};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use smalti_nbd::{ReadReply, Segment};
use smalti_rowcommit::Time;
use smalti_rowcommit::coordinator::OpError;
use smalti_storage::geometry::Geometry;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::task::{JoinHandle, yield_now};
use uuid::Uuid;

const SIZE: usize = 16 << 20;

struct Node {
    rows: MemoryRows,
    device: Arc<dyn BlockDevice>,
    server: Arc<ForwardServer>,
}

struct Session {
    client: ForwardClient,
    serving: JoinHandle<Result<ServeEnd, ServeError>>,
    /// Frames that the client has sent.
    sent: Arc<AtomicUsize>,
    /// Cuts the way to the client.
    cut: JoinHandle<()>,
}

fn node(rows: MemoryRows, limits: ForwardLimits) -> Node {
    let geometry = Geometry::new(2, 1, 64 << 10, 4).unwrap();
    let config = GatewayConfig {
        geometry,
        size: SIZE as u64,
        identity: identity(),
        generation: 1,
        first_seq: 1,
        snap: 0,
        now: Time::default(),
        limits: GatewayLimits::default(),
    };
    let random = Box::new(StdRng::seed_from_u64(1));
    let gateway = Gateway::new(config, volume_keys(&geometry), Arc::new(rows.clone()), random);
    Node { rows, device: Arc::new(gateway), server: Arc::new(ForwardServer::new(limits)) }
}

fn frames(mut queue: mpsc::Receiver<Bytes>) -> impl Stream<Item = Bytes> + Send + 'static {
    stream::poll_fn(move |cx| queue.poll_recv(cx))
}

struct Counting {
    queue: mpsc::Sender<Bytes>,
    sent: Arc<AtomicUsize>,
}

impl FrameTx for Counting {
    fn send(&self, frame: Bytes) -> BoxFuture<Result<(), FrameClosed>> {
        let (queue, sent) = (self.queue.clone(), Arc::clone(&self.sent));
        async move {
            queue.send(frame).await.map_err(|_| FrameClosed)?;
            sent.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        .boxed()
    }
}

impl Node {
    fn serve(
        &self,
        client: u128,
        incoming: impl Stream<Item = Bytes> + Send + 'static,
        outgoing: mpsc::Sender<Bytes>,
    ) -> JoinHandle<Result<ServeEnd, ServeError>> {
        let (server, device) = (Arc::clone(&self.server), Arc::clone(&self.device));
        tokio::spawn(async move {
            let client = ClientId(Uuid::from_u128(client));
            server.serve(client, device, incoming, Arc::new(outgoing)).await
        })
    }

    fn connect(&self, client: u128) -> Session {
        let (to_server, at_server) = mpsc::channel(4);
        let (to_client, mut from_server) = mpsc::channel(4);
        let (relay, at_client) = mpsc::channel(4);
        let cut = tokio::spawn(async move {
            while let Some(frame) = from_server.recv().await {
                if relay.send(frame).await.is_err() {
                    return;
                }
            }
        });
        let serving = self.serve(client, frames(at_server), to_client);
        let limits = ForwardLimits::default();
        let sent = Arc::new(AtomicUsize::new(0));
        let counting = Counting { queue: to_server, sent: Arc::clone(&sent) };
        let client = ForwardClient::new(&limits, frames(at_client), Arc::new(counting));
        Session { client, serving, sent, cut }
    }
}

fn bytes_of(reply: &ReadReply) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in reply.segments() {
        match segment {
            Segment::Data(data) => bytes.extend_from_slice(data),
            Segment::Zero(length) => bytes.resize(bytes.len() + *length as usize, 0),
        }
    }
    bytes
}

fn patterned(length: usize, seed: u8) -> Bytes {
    (0..length).map(|i| (i * 7 + i / 256) as u8 ^ seed | 1).collect()
}

/// Polls a call until a write has begun at the coordinator.
async fn begin(rows: &MemoryRows, call: &mut BoxFuture<Result<(), GatewayError>>) {
    while rows.writes_under_way() == 0 {
        assert!(call.as_mut().now_or_never().is_none());
        yield_now().await;
    }
}

#[tokio::test]
async fn a_forwarded_device_is_the_device() {
    let node = node(MemoryRows::with_jitter(1), ForwardLimits::default());
    let session = node.connect(1);
    let device = &session.client;
    let data = patterned(9 << 20, 1);
    device.write(5000, data.clone()).await.unwrap();
    assert_eq!(bytes_of(&device.read(5000, 9 << 20).await.unwrap()), data);
    assert_eq!(bytes_of(&node.device.read(5000, 9 << 20).await.unwrap()), data);
    device.zero(1 << 20, 12 << 20).await.unwrap();
    let left = bytes_of(&device.read(0, 2 << 20).await.unwrap());
    assert_eq!(left[5000..1 << 20], data[..(1 << 20) - 5000]);
    assert!(left[..5000].iter().chain(&left[1 << 20..]).all(|byte| *byte == 0));
    let extents = device.block_status(0, SIZE as u64, 9).await.unwrap();
    assert_eq!(
        extents.iter().map(|e| (e.length, e.hole)).collect::<Vec<_>>(),
        [(4096, true), ((1 << 20) - 4096, false), (15 << 20, true)]
    );
    device.flush().await.unwrap();
    assert_eq!(device.read(0, 0).await.unwrap().len(), 0);
    device.write(0, Bytes::new()).await.unwrap();
    let invalid = Err(GatewayError::Invalid);
    assert_eq!(device.write(SIZE as u64, patterned(1, 1)).await, invalid);
    assert_eq!(device.write(u64::MAX, patterned(1, 1)).await, invalid);
    node.rows.fail(Some((OpError::Fenced, false)));
    assert_eq!(device.write(0, patterned(1, 1)).await, Err(GatewayError::Fenced));
    node.rows.fail(None);
    assert_eq!(node.rows.violations(), [""; 0]);

    assert!(!session.client.has_ended());
    drop(session.client);
    assert_eq!(session.serving.await.unwrap(), Ok(ServeEnd::Ended));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Calls take effect in their order through a session too, even those that nobody waits for.
    #[test]
    fn calls_take_effect_in_their_order(
        ops in proptest::collection::vec((0u64..20_000, 1usize..9000, any::<u8>(), 0..4u8), 1..40),
        seed: u64,
    ) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let node = node(MemoryRows::with_jitter(seed), ForwardLimits::default());
            let session = node.connect(1);
            let mut model = vec![0; 40_000];
            let mut waiting = Vec::new();
            for (i, (offset, length, fill, how)) in ops.into_iter().enumerate() {
                let range = offset as usize..offset as usize + length;
                let mut call = if how == 3 {
                    model[range].fill(0);
                    session.client.zero(offset, length as u64)
                } else {
                    model[range].copy_from_slice(&patterned(length, fill));
                    session.client.write(offset, patterned(length, fill))
                };
                let mut done = None;
                while session.sent.load(Ordering::Relaxed) <= i {
                    done = call.as_mut().now_or_never();
                    yield_now().await;
                }
                match done {
                    Some(done) => done.unwrap(),
                    // Sent, and now perhaps nobody waits for it any more.
                    None => waiting.extend((how > 0).then_some(call)),
                }
            }
            for call in waiting {
                call.await.unwrap();
            }
            // The server sees to the end of all that was sent.
            drop(session.client);
            assert_eq!(session.serving.await.unwrap(), Ok(ServeEnd::Ended));
            assert_eq!(bytes_of(&node.device.read(0, 40_000).await.unwrap()), model);
            assert_eq!(node.rows.violations(), [""; 0]);
        });
    }
}

#[tokio::test]
async fn what_is_under_way_when_the_session_ends_is_told_so() {
    let node = node(MemoryRows::default(), ForwardLimits::default());
    let session = node.connect(1);
    node.rows.set_open(false);
    let mut write = session.client.write(0, patterned(100, 1));
    begin(&node.rows, &mut write).await;
    let ended = session.client.ended();
    session.cut.abort();
    assert_eq!(write.await, Err(GatewayError::Disconnected));
    ended.await;
    assert!(session.client.has_ended());
    assert_eq!(session.client.read(0, 1).await, Err(GatewayError::Disconnected));
    assert_eq!(session.client.flush().await, Err(GatewayError::Disconnected));
    node.rows.set_open(true);
    // The reply finds no way out, which ends the serving half.
    assert_eq!(session.serving.await.unwrap(), Ok(ServeEnd::Ended));
    assert_eq!(bytes_of(&node.device.read(0, 100).await.unwrap()), patterned(100, 1));
}

#[tokio::test]
async fn a_dropped_client_fails_its_calls() {
    let node = node(MemoryRows::default(), ForwardLimits::default());
    let session = node.connect(1);
    node.rows.set_open(false);
    let mut write = session.client.write(0, patterned(100, 1));
    begin(&node.rows, &mut write).await;
    drop(session.client);
    assert_eq!(write.await, Err(GatewayError::Disconnected));
}

#[tokio::test]
async fn a_new_session_waits_for_the_requests_of_the_old() {
    // Whether the old session ends by itself, or its task is dropped, or it knows of nothing.
    for how in 0..3 {
        let node = node(MemoryRows::default(), ForwardLimits::default());
        let old = node.connect(1);
        node.rows.set_open(false);
        let mut write = old.client.write(0, patterned(100, 1));
        begin(&node.rows, &mut write).await;
        match how {
            0 => old.cut.abort(),
            1 => old.serving.abort(),
            _ => {}
        }
        let new = node.connect(1);
        let other = node.connect(2);
        let mut again = new.client.write(50, patterned(100, 2));
        let mut read = new.client.read(1 << 20, 10);
        for _ in 0..50 {
            // Another client is served, so the server is not merely slow.
            other.client.read(1 << 20, 10).await.unwrap();
            assert!(again.as_mut().now_or_never().is_none());
            assert!(read.as_mut().now_or_never().is_none(), "served before the old one ended");
        }
        if how == 2 {
            // It takes no more, however long it lives; this call was never started.
            let mut late = old.client.read(0, 10);
            assert!(late.as_mut().now_or_never().is_none());
        }
        node.rows.set_open(true);
        again.await.unwrap();
        read.await.unwrap();
        if how != 1 {
            let end = old.serving.await.unwrap();
            assert_eq!(end, Ok(ServeEnd::Superseded));
        }
        let mut expected = patterned(100, 1).to_vec();
        expected.truncate(50);
        expected.extend_from_slice(&patterned(100, 2));
        assert_eq!(bytes_of(&node.device.read(0, 150).await.unwrap()), expected);
        assert_eq!(node.rows.violations(), [""; 0]);
    }
}

#[tokio::test]
async fn of_many_new_sessions_the_newest_is_served() {
    let node = node(MemoryRows::default(), ForwardLimits::default());
    let old = node.connect(1);
    node.rows.set_open(false);
    let mut write = old.client.write(0, patterned(100, 1));
    begin(&node.rows, &mut write).await;
    let mut sessions = Vec::new();
    for _ in 0..10 {
        let session = node.connect(1);
        // Its turn in the queue is taken when the server task runs.
        node.connect(2).client.flush().await.unwrap();
        sessions.push(session);
    }
    let newest = sessions.pop().unwrap();
    for session in sessions {
        assert_eq!(session.serving.await.unwrap(), Ok(ServeEnd::Superseded));
    }
    node.rows.set_open(true);
    assert_eq!(bytes_of(&newest.client.read(0, 100).await.unwrap()), patterned(100, 1));
}

#[tokio::test]
async fn replies_that_nobody_takes_are_in_nobodys_way() {
    let node = node(MemoryRows::default(), ForwardLimits::default());
    let (replies, mut untaken) = mpsc::channel(1);
    let requests = (0..9).map(|id| BlockRequest { id, op: BlockOp::Flush }.encode());
    let endless = stream::iter(requests.collect::<Vec<_>>()).chain(stream::pending());
    let old = node.serve(1, endless, replies);
    while untaken.is_empty() {
        yield_now().await;
    }
    let new = node.connect(1);
    new.client.write(0, patterned(100, 1)).await.unwrap();
    assert_eq!(old.await.unwrap(), Ok(ServeEnd::Superseded));
    assert!(untaken.recv().await.is_some());
}

#[tokio::test]
async fn too_many_clients_are_refused_until_one_leaves() {
    let limits = ForwardLimits { clients: 2, ..ForwardLimits::default() };
    let node = node(MemoryRows::default(), limits);
    let (first, second) = (node.connect(1), node.connect(2));
    first.client.flush().await.unwrap();
    second.client.flush().await.unwrap();
    let third = node.connect(3);
    assert_eq!(third.serving.await.unwrap(), Err(ServeError::TooManyClients));
    drop(first.client);
    assert_eq!(first.serving.await.unwrap(), Ok(ServeEnd::Ended));
    node.connect(3).client.flush().await.unwrap();
}

#[tokio::test]
async fn requests_under_way_are_bounded() {
    let limits = ForwardLimits { requests: 4, ..ForwardLimits::default() };
    let node = node(MemoryRows::default(), limits);
    let session = node.connect(1);
    node.rows.set_open(false);
    let mut writes: Vec<_> =
        (0..40).map(|i| session.client.write(i * 4096, patterned(4096, 1))).collect();
    let other = node.connect(2);
    for _ in 0..100 {
        for write in &mut writes {
            assert!(write.as_mut().now_or_never().is_none());
        }
        other.client.read(0, 10).await.unwrap();
    }
    assert_eq!(node.rows.writes_under_way(), 4);
    node.rows.set_open(true);
    for write in writes {
        write.await.unwrap();
    }
    assert_eq!(node.rows.write_calls().len(), 40);
}

#[tokio::test]
async fn a_client_that_speaks_nonsense_is_given_up() {
    let node = node(MemoryRows::default(), ForwardLimits::default());
    let good = BlockRequest { id: 1, op: BlockOp::Flush }.encode();
    for (frame, error) in [
        (Bytes::new(), WireError::Header),
        (Bytes::from_static(&[9; 100]), WireError::Version(9)),
        (BlockReply { id: 1, result: Ok(BlockAnswer::Done) }.encode(), WireError::Kind(2)),
        ([&good[..], b"x"].concat().into(), WireError::Payload),
    ] {
        let (replies, mut answered) = mpsc::channel(4);
        let serving = node.serve(1, stream::iter([good.clone(), frame]), replies);
        assert_eq!(serving.await.unwrap(), Err(ServeError::Wire(error)));
        assert_eq!(answered.recv().await.unwrap()[1], 2, "what came before is answered");
        assert_eq!(answered.recv().await, None);
    }
}

#[tokio::test]
async fn requests_over_the_limit_are_invalid() {
    let node = node(MemoryRows::default(), ForwardLimits::default());
    let large = REQUEST_BYTES_MAX + 1;
    let data = Bytes::from(vec![1; large as usize]);
    let ops = [
        BlockOp::Read { offset: 0, length: large },
        BlockOp::Read { offset: 0, length: u32::MAX },
        BlockOp::Write { offset: 0, data },
        BlockOp::Zero { offset: 0, length: u64::MAX },
        BlockOp::Status { offset: 0, length: 0, extents_max: u32::MAX },
    ];
    let requests = ops.into_iter().zip(0..).map(|(op, id)| BlockRequest { id, op }.encode());
    let (replies, mut answered) = mpsc::channel(16);
    let serving = node.serve(1, stream::iter(requests.collect::<Vec<_>>()), replies);
    assert_eq!(serving.await.unwrap(), Ok(ServeEnd::Ended));
    let mut ids = Vec::new();
    while let Some(frame) = answered.recv().await {
        let reply = BlockReply::decode(&frame).unwrap();
        assert_eq!(reply.result, Err(GatewayError::Invalid));
        ids.push(reply.id);
    }
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_server_that_speaks_nonsense_is_given_up() {
    let data = ReadReply::data(Bytes::from_static(b"abc"));
    let answers = [
        BlockReply { id: 1, result: Ok(BlockAnswer::Done) }.encode(),
        BlockReply { id: 0, result: Ok(BlockAnswer::Done) }.encode(),
        BlockReply { id: 0, result: Ok(BlockAnswer::Status(Vec::new())) }.encode(),
        BlockReply { id: 0, result: Ok(BlockAnswer::Read(data)) }.encode(),
        BlockRequest { id: 0, op: BlockOp::Flush }.encode(),
        Bytes::from_static(&[1, 2, 3]),
    ];
    for answer in answers {
        let (to_server, mut at_server) = mpsc::channel::<Bytes>(4);
        let (to_client, at_client) = mpsc::channel(4);
        let limits = ForwardLimits::default();
        let client = ForwardClient::new(&limits, frames(at_client), Arc::new(to_server));
        let mut read = client.read(0, 4);
        let mut hanging = client.write(9, patterned(9, 9));
        assert!(read.as_mut().now_or_never().is_none());
        assert!(hanging.as_mut().now_or_never().is_none());
        at_server.recv().await.unwrap();
        // Number 1 is the write, so its reply is no nonsense; a second one is.
        to_client.send(answer.clone()).await.unwrap();
        to_client.send(answer).await.unwrap();
        assert_eq!(read.await, Err(GatewayError::Disconnected));
        client.ended().await;
        assert_eq!(client.flush().await, Err(GatewayError::Disconnected));
    }
}

#[tokio::test]
async fn a_call_given_up_before_it_was_sent_leaves_no_trace() {
    let (to_server, mut at_server) = mpsc::channel::<Bytes>(1);
    let (to_client, at_client) = mpsc::channel(4);
    let limits = ForwardLimits { requests: 2, ..ForwardLimits::default() };
    let client = ForwardClient::new(&limits, frames(at_client), Arc::new(to_server));
    let mut sent = client.flush();
    assert!(sent.as_mut().now_or_never().is_none());
    for _ in 0..5 {
        let mut unsent = client.write(0, patterned(9, 9));
        assert!(unsent.as_mut().now_or_never().is_none(), "the queue is full");
    }
    let frame = at_server.recv().await.unwrap();
    let id = BlockRequest::decode(&frame).unwrap().id;
    let mut last = client.flush();
    assert!(last.as_mut().now_or_never().is_none());
    assert_eq!(BlockRequest::decode(&at_server.recv().await.unwrap()).unwrap().op, BlockOp::Flush);
    to_client.send(BlockReply { id, result: Ok(BlockAnswer::Done) }.encode()).await.unwrap();
    sent.await.unwrap();
}
