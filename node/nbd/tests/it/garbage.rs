//! Random bytes and random requests, over streams that cut everything into small pieces.

use std::collections::HashMap;

use proptest::prelude::*;
use smalti_nbd::Limits;
use smalti_nbd::proto::wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::support::{Client, Harness, MIB, memory, request, within};

fn block_on<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(what)
}

/// Sends bytes while reading whatever comes back, then hangs up and waits for the server to end.
async fn throw(harness: &Harness, client: Client<UnixStream>, bytes: Vec<u8>) {
    let (mut from, mut to) = client.stream.into_split();
    let writer = async {
        // The server may hang up first; that is an answer too.
        let _sent_or_closed = to.write_all(&bytes).await;
        drop(to);
    };
    let reader = async {
        let mut sink = Vec::new();
        let _ended_or_reset = from.read_to_end(&mut sink).await;
    };
    within(async { tokio::join!(writer, reader) }).await;
    harness.idle().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn garbage_instead_of_a_negotiation(
        flags in any::<u32>(),
        fixed: bool,
        options in proptest::collection::vec(
            (any::<bool>(), 0u32..13, proptest::collection::vec(any::<u8>(), 0..80)), 0..12),
        tail in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        block_on(async {
            let harness = Harness::memory();
            let (mut client, task) = harness.connect();
            client.greet(if fixed { 3 } else { flags }).await;
            let mut bytes = Vec::new();
            for (named, option, payload) in options {
                // Half of them about an export that exists, to get further.
                let payload =
                    if named { [&[0, 0, 0, 1, b'v', 0, 0][..], &payload].concat() } else { payload };
                bytes.extend_from_slice(b"IHAVEOPT");
                bytes.extend_from_slice(&option.to_be_bytes());
                bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
                bytes.extend_from_slice(&payload);
            }
            bytes.extend_from_slice(&tail);
            throw(&harness, client, bytes).await;
            task.await.expect("the server did not panic");
        });
    }

    #[test]
    fn garbage_instead_of_requests(
        structured: bool,
        requests in proptest::collection::vec(
            (0u16..12, any::<u16>(), any::<u64>(), any::<u32>(), 0u8..8), 0..40),
        tail in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        block_on(async {
            let limits = Limits { drain_bytes_max: 1 << 20, ..Limits::default() };
            let harness = Harness::new([memory("v", MIB)], limits);
            let (client, task) = harness.open(structured).await;
            let mut bytes = Vec::new();
            for (command, flags, offset, length, tame) in requests {
                let flags = if tame & 1 == 0 { flags & 0x1f } else { flags };
                let offset = if tame & 2 == 0 { offset % (2 * MIB) } else { offset };
                let length = if tame & 4 == 0 { length % 5000 } else { length };
                bytes.extend(request(command, flags, offset, offset, length));
                if command == wire::CMD_WRITE && tame & 4 == 0 {
                    bytes.extend(std::iter::repeat_n(tame, length as usize));
                }
            }
            bytes.extend_from_slice(&tail);
            throw(&harness, client, bytes).await;
            task.await.expect("the server did not panic");
        });
    }
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, usize, u8),
    Zero(u64, u32),
    Read(u64, u32),
}

fn op() -> impl Strategy<Value = Op> {
    let offset = 0..MIB - 300_000;
    prop_oneof![
        (offset.clone(), 1usize..100_000, 1u8..)
            .prop_map(|(at, size, byte)| { Op::Write(at, size, byte) }),
        (offset.clone(), 1u32..300_000).prop_map(|(at, size)| Op::Zero(at, size)),
        (offset, 1u32..300_000).prop_map(|(at, size)| Op::Read(at, size)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Reads return what was written, however the stream cuts requests and replies.
    #[test]
    fn bytes_survive_any_cutting(
        ops in proptest::collection::vec(op(), 1..12), pipe in 1usize..100_000, structured: bool,
    ) {
        block_on(async {
            let harness = Harness::memory();
            // At least so much that the test does not take for ever.
            let (ours, theirs) = tokio::io::duplex(pipe.max(61));
            let task = harness.serve(theirs);
            let mut client = Client::new(ours);
            client.negotiate("v", structured).await;
            let mut model = vec![0u8; MIB as usize];
            let mut expected = HashMap::new();
            let mut bytes = Vec::new();
            for (cookie, op) in (0u64..).zip(&ops) {
                match *op {
                    Op::Write(at, size, byte) => {
                        bytes.extend(request(wire::CMD_WRITE, 0, cookie, at, size as u32));
                        bytes.extend(std::iter::repeat_n(byte, size));
                        model[at as usize..at as usize + size].fill(byte);
                        expected.insert(cookie, None);
                    }
                    Op::Zero(at, size) => {
                        bytes.extend(request(wire::CMD_WRITE_ZEROES, 0, cookie, at, size));
                        model[at as usize..(at + u64::from(size)) as usize].fill(0);
                        expected.insert(cookie, None);
                    }
                    Op::Read(at, size) => {
                        bytes.extend(request(wire::CMD_READ, 0, cookie, at, size));
                        let range = at as usize..(at + u64::from(size)) as usize;
                        // The memory device answers in order, so the model holds in flight too.
                        expected.insert(cookie, Some((at, model[range].to_vec())));
                    }
                }
            }
            let (from, mut to) = tokio::io::split(client.stream);
            let writer = async { to.write_all(&bytes).await.expect("the server reads on") };
            let reader = async {
                let mut from = Client::new(tokio::io::join(from, tokio::io::empty()));
                let mut got: HashMap<u64, Vec<u8>> = HashMap::new();
                while !expected.is_empty() {
                    let (cookie, done) = read_reply(&mut from, &expected, &mut got).await;
                    if done {
                        let want = expected.remove(&cookie).expect("an answer to a request");
                        if let Some((_, data)) = want {
                            assert!(got.remove(&cookie) == Some(data), "request {cookie} differs");
                        }
                    }
                }
            };
            tokio::join!(writer, reader);
            drop(to);
            harness.stop.cancel();
            within(task).await.expect("the server did not panic");
        });
    }
}

type Expected = HashMap<u64, Option<(u64, Vec<u8>)>>;

/// Reads one simple reply or one chunk; says whose it is and whether it was the last.
async fn read_reply<S>(
    from: &mut Client<S>,
    expected: &Expected,
    got: &mut HashMap<u64, Vec<u8>>,
) -> (u64, bool)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let magic = u32::from_be_bytes(from.take().await);
    if magic == wire::SIMPLE_REPLY_MAGIC {
        assert_eq!(u32::from_be_bytes(from.take().await), 0);
        let cookie = u64::from_be_bytes(from.take().await);
        if let Some((_, data)) = &expected[&cookie] {
            got.insert(cookie, from.bytes(data.len()).await);
        }
        return (cookie, true);
    }
    assert_eq!(magic, wire::STRUCTURED_REPLY_MAGIC);
    let done = u16::from_be_bytes(from.take().await) == 1;
    let kind = u16::from_be_bytes(from.take().await);
    let cookie = u64::from_be_bytes(from.take().await);
    let length = u32::from_be_bytes(from.take().await) as usize;
    let payload = from.bytes(length).await;
    let (at, data) = expected[&cookie].as_ref().expect("chunks answer reads");
    let into = got.entry(cookie).or_insert_with(|| vec![0xee; data.len()]);
    let from = (u64::from_be_bytes(payload[..8].try_into().unwrap()) - at) as usize;
    match kind {
        wire::REPLY_OFFSET_DATA => into[from..from + length - 8].copy_from_slice(&payload[8..]),
        wire::REPLY_OFFSET_HOLE => {
            let size = u32::from_be_bytes(payload[8..].try_into().unwrap()) as usize;
            into[from..from + size].fill(0);
        }
        other => panic!("chunk of kind {other}"),
    }
    (cookie, done)
}
