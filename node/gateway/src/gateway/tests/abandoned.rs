//! Futures that are dropped half way.

use super::*;
use tokio::task::yield_now;

/// Polls a call until it has begun at the coordinator.
async fn begin(rows: &MemoryRows, call: &mut crate::BoxFuture<Result<(), GatewayError>>) {
    let under_way = rows.writes_under_way();
    while rows.writes_under_way() == under_way {
        assert!(call.as_mut().now_or_never().is_none());
        yield_now().await;
    }
}

#[tokio::test]
async fn a_write_goes_on_under_its_lock_when_nobody_waits() {
    for length in [3000, 40 * 4096, 1100 * 4096] {
        let rows = MemoryRows::default();
        let gateway = gateway(&rows, 8 << 20);
        rows.set_open(false);
        let mut first = gateway.write(1000, patterned(length, 1));
        begin(&rows, &mut first).await;
        drop(first);
        let mut second = gateway.write(2000, patterned(100, 2));
        let mut apart = gateway.write(7 << 20, patterned(100, 3));
        begin(&rows, &mut apart).await;
        for _ in 0..50 {
            assert!(second.as_mut().now_or_never().is_none(), "the range is not free yet");
            yield_now().await;
        }
        rows.set_open(true);
        second.await.unwrap();
        apart.await.unwrap();
        let mut expected = vec![0; 1000];
        // The pieces that had begun; here all of them.
        expected.extend_from_slice(&patterned(length, 1));
        expected[2000..2100].copy_from_slice(&patterned(100, 2));
        assert_eq!(read(&gateway, 0, 1000 + length).await.unwrap(), expected);
        assert_eq!(rows.violations(), [""; 0]);
        assert_eq!(gateway.inner.locks.len(), 0);
    }
}

#[tokio::test]
async fn zeroing_that_is_given_up_ends_what_it_began_and_begins_no_more() {
    let rows = MemoryRows::default();
    let gateway = gateway(&rows, 64 << 20);
    gateway.write(0, patterned(32 << 20, 1)).await.unwrap();
    rows.set_open(false);
    let mut zero = gateway.zero(0, 32 << 20);
    begin(&rows, &mut zero).await;
    drop(zero);
    let mut write = gateway.write(5, patterned(10, 2));
    for _ in 0..50 {
        assert!(write.as_mut().now_or_never().is_none(), "the range is not free yet");
        yield_now().await;
    }
    rows.set_open(true);
    write.await.unwrap();
    let left = read(&gateway, 0, 32 << 20).await.unwrap();
    assert_eq!(left[5..15], patterned(10, 2), "the write was undone");
    assert_eq!(left[31 << 20..], patterned(32 << 20, 1)[31 << 20..], "a late piece began");
    assert_eq!(rows.violations(), [""; 0]);
}

#[tokio::test]
async fn what_was_not_admitted_never_happens() {
    let rows = MemoryRows::default();
    let limits = GatewayLimits { write_blocks_in_flight: 16, ..GatewayLimits::default() };
    let gateway = with_config(&rows, GatewayConfig { limits, ..config(1 << 20) });
    rows.set_open(false);
    let mut first = gateway.write(0, patterned(4096, 1));
    begin(&rows, &mut first).await;
    let mut second = gateway.write(8192, patterned(4096, 2));
    let mut third = gateway.write(8192, patterned(4096, 3));
    assert!(second.as_mut().now_or_never().is_none());
    assert!(third.as_mut().now_or_never().is_none());
    assert_eq!(rows.writes_under_way(), 1, "one write fills the gateway");
    drop(second);
    rows.set_open(true);
    first.await.unwrap();
    third.await.unwrap();
    assert_eq!(rows.write_calls(), [1, 1]);
    assert_eq!(read(&gateway, 8192, 4096).await.unwrap(), patterned(4096, 3));
    // Larger than all that is ever admitted.
    gateway.write(0, patterned(1 << 20, 4)).await.unwrap();
    assert_eq!(gateway.inner.locks.len(), 0);
}

#[tokio::test]
async fn a_read_that_is_given_up_leaves_nothing() {
    let rows = MemoryRows::with_jitter(3);
    let gateway = gateway(&rows, 8 << 20);
    gateway.write(0, patterned(8 << 20, 1)).await.unwrap();
    for polls in 0..30 {
        let mut read = gateway.read(100, 6 << 20);
        for _ in 0..polls {
            if let Some(reply) = read.as_mut().now_or_never() {
                assert_eq!(reply.unwrap().len(), 6 << 20);
                break;
            }
            yield_now().await;
        }
    }
    gateway.write(0, patterned(4096, 2)).await.unwrap();
    assert_eq!(read(&gateway, 0, 4096).await.unwrap(), patterned(4096, 2));
}
