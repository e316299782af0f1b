//! Against a plain vector of bytes: one by one, and all at once.

use super::*;
use futures::future::join_all;
use proptest::prelude::*;
use proptest::sample::Index;

const SIZE: usize = 24 * 4096 + 1234;

#[derive(Clone, Debug)]
enum Op {
    Write { offset: usize, length: usize, fill: u8 },
    Zero { offset: usize, length: usize },
    Read { offset: usize, length: usize },
    Status { offset: usize, length: usize, extents_max: usize },
}

fn any_range() -> impl Strategy<Value = (usize, usize)> {
    let length = prop_oneof![
        3 => 1usize..200,
        3 => Just(4096usize),
        2 => 1usize..20_000,
        1 => 1usize..SIZE,
    ];
    let align = prop_oneof![Just(1usize), Just(512), Just(4096)];
    (any::<Index>(), length, align).prop_map(|(at, length, align)| {
        let offset = at.index(SIZE) / align * align;
        (offset, length.min(SIZE - offset))
    })
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (any_range(), 1u8..).prop_map(|((offset, length), fill)| {
            Op::Write { offset, length, fill }
        }),
        2 => any_range().prop_map(|(offset, length)| Op::Zero { offset, length }),
        2 => any_range().prop_map(|(offset, length)| Op::Read { offset, length }),
        1 => (any_range(), 1usize..9).prop_map(|((offset, length), extents_max)| {
            Op::Status { offset, length, extents_max }
        }),
    ]
}

fn change(model: &mut [u8], op: &Op) {
    match *op {
        Op::Write { offset, length, fill } => {
            model[offset..offset + length].copy_from_slice(&patterned(length, fill));
        }
        Op::Zero { offset, length } => model[offset..offset + length].fill(0),
        Op::Read { .. } | Op::Status { .. } => {}
    }
}

async fn check_status(gateway: &Gateway, model: &[u8], op: &Op) {
    let Op::Status { offset, length, extents_max } = *op else { return };
    let extents = gateway.block_status(offset as u64, length as u64, extents_max).await.unwrap();
    assert!(!extents.is_empty() && extents.len() <= extents_max);
    let mut at = offset;
    for extent in &extents {
        let end = at + extent.length as usize;
        assert!(extent.length > 0 && extent.hole == extent.zero);
        if extent.hole {
            assert!(model[at..end].iter().all(|byte| *byte == 0), "data in a hole");
        }
        at = end;
    }
    assert!(at <= offset + length);
    assert!(at == offset + length || extents.len() == extents_max);
    assert!(extents.windows(2).all(|pair| pair[0].hole != pair[1].hole));
}

fn runtime(threads: bool) -> tokio::runtime::Runtime {
    if threads {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap()
    } else {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn it_is_a_device_of_bytes(ops in proptest::collection::vec(any_op(), 1..40), seed: u64) {
        runtime(false).block_on(async {
            let rows = MemoryRows::with_jitter(seed);
            let gateway = gateway(&rows, SIZE as u64);
            let mut model = vec![0; SIZE];
            for op in &ops {
                change(&mut model, op);
                match *op {
                    Op::Write { offset, length, fill } => {
                        gateway.write(offset as u64, patterned(length, fill)).await.unwrap();
                    }
                    Op::Zero { offset, length } => {
                        gateway.zero(offset as u64, length as u64).await.unwrap();
                    }
                    Op::Read { offset, length } => {
                        let got = read(&gateway, offset as u64, length).await.unwrap();
                        assert_eq!(got, &model[offset..offset + length]);
                    }
                    Op::Status { .. } => check_status(&gateway, &model, op).await,
                }
            }
            assert_eq!(read(&gateway, 0, SIZE).await.unwrap(), model);
            assert_eq!(rows.violations(), [""; 0]);
            // A second gateway, a later generation: nothing of it is in memory alone.
            let next = with_config(&rows, GatewayConfig { generation: 6, ..config(SIZE as u64) });
            assert_eq!(read(&next, 0, SIZE).await.unwrap(), model);
        });
    }

    /// Changes take effect in the order of the calls, block by block, however they overlap; so
    /// the end is known, and no part of a block is lost to a neighbour's change. Reads in between
    /// see for each byte something that was written there.
    #[test]
    fn overlapping_calls_take_effect_in_their_order(
        ops in proptest::collection::vec(any_op(), 2..40),
        seed: u64,
        threads: bool,
    ) {
        runtime(threads).block_on(async {
            let rows = MemoryRows::with_jitter(seed);
            let gateway = Arc::new(gateway(&rows, SIZE as u64));
            let mut model = vec![0; SIZE];
            // What the device holds after each call.
            let mut changes = vec![model.clone()];
            let mut tasks = Vec::new();
            for op in &ops {
                change(&mut model, op);
                changes.push(model.clone());
                // Called here, in order; polled by tasks in any order.
                let future = match *op {
                    Op::Write { offset, length, fill } => {
                        let write = gateway.write(offset as u64, patterned(length, fill));
                        write.map(|done| done.map(|()| None)).boxed()
                    }
                    Op::Zero { offset, length } => {
                        let zero = gateway.zero(offset as u64, length as u64);
                        zero.map(|done| done.map(|()| None)).boxed()
                    }
                    Op::Read { offset, length } => {
                        let read = gateway.read(offset as u64, length as u32);
                        read.map(move |reply| reply.map(|reply| Some((offset, reply)))).boxed()
                    }
                    Op::Status { offset, length, extents_max } => {
                        let status =
                            gateway.block_status(offset as u64, length as u64, extents_max);
                        status.map(|done| done.map(|_| None)).boxed()
                    }
                };
                tasks.push(tokio::spawn(future));
            }
            for done in join_all(tasks).await {
                let Some((offset, reply)) = done.unwrap().expect("no call fails") else { continue };
                let bytes = bytes_of(&reply);
                let mut unexplained: Vec<usize> = (0..bytes.len()).collect();
                for state in &changes {
                    unexplained.retain(|i| bytes[*i] != state[offset + i]);
                }
                assert_eq!(unexplained, [0usize; 0], "bytes from nowhere");
            }
            assert_eq!(read(&gateway, 0, SIZE).await.unwrap(), model);
            assert_eq!(rows.violations(), [""; 0]);
            assert_eq!(gateway.inner.locks.len(), 0);
            assert_eq!(gateway.stats().stale, 0);
        });
    }
}
