#![allow(clippy::unwrap_used, reason = "tests")]

mod abandoned;
mod model;
mod refused;

use super::{Gateway, GatewayConfig, GatewayLimits};
use crate::device::BlockDevice;
use crate::error::GatewayError;
use crate::test_support::{MemoryRows, identity, volume_keys};
use bytes::Bytes;
use futures::FutureExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use smalti_nbd::{ReadReply, Segment};
use smalti_rowcommit::Time;
use smalti_rowcommit::coordinator::OpError;
use smalti_storage::geometry::Geometry;
use smalti_storage::record::Record;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn geometry() -> Geometry {
    Geometry::new(3, 2, 64 << 10, 4).unwrap()
}

fn config(size: u64) -> GatewayConfig {
    GatewayConfig {
        geometry: geometry(),
        size,
        identity: identity(),
        generation: 5,
        first_seq: 1,
        snap: 0,
        now: Time::default(),
        limits: GatewayLimits::default(),
    }
}

fn with_config(rows: &MemoryRows, config: GatewayConfig) -> Gateway {
    let random = Box::new(StdRng::seed_from_u64(1));
    Gateway::new(config, volume_keys(&geometry()), Arc::new(rows.clone()), random)
}

fn gateway(rows: &MemoryRows, size: u64) -> Gateway {
    with_config(rows, config(size))
}

/// The bytes of a reply, zero runs written out.
pub(crate) fn bytes_of(reply: &ReadReply) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(reply.len());
    for segment in reply.segments() {
        match segment {
            Segment::Data(data) => bytes.extend_from_slice(data),
            Segment::Zero(length) => bytes.resize(bytes.len() + *length as usize, 0),
        }
    }
    bytes
}

async fn read(gateway: &Gateway, offset: u64, length: usize) -> Result<Vec<u8>, GatewayError> {
    gateway.read(offset, length as u32).await.map(|reply| bytes_of(&reply))
}

fn patterned(length: usize, seed: u8) -> Bytes {
    (0..length).map(|i| (i * 7 + i / 256) as u8 ^ seed | 1).collect()
}

#[tokio::test]
async fn a_large_request_is_few_calls_cut_at_rows() {
    let rows = MemoryRows::default();
    let gateway = gateway(&rows, 64 << 20);
    let data = patterned(1 << 20, 1);
    gateway.write(4096 * 5, data.clone()).await.unwrap();
    assert_eq!(rows.write_calls(), [256], "one call for an aligned MiB");
    assert_eq!(read(&gateway, 4096 * 5, 1 << 20).await.unwrap(), data);
    assert_eq!(rows.read_calls(), 1);

    let data = patterned(9 << 20, 2);
    let offset = (20 << 20) + 4096;
    gateway.write(offset, data.clone()).await.unwrap();
    let mut calls = rows.write_calls().split_off(1);
    assert_eq!(calls.iter().sum::<usize>(), 9 * 256);
    // 1 block into block 5121 = 3 * 1707; rows of three blocks stay whole.
    calls.sort_unstable();
    assert_eq!(calls, [258, 1023, 1023]);
    let reply = gateway.read(offset, 9 << 20).await.unwrap();
    assert_eq!(bytes_of(&reply), data);
    assert_eq!(rows.violations(), [""; 0]);
}

#[tokio::test]
async fn full_blocks_need_no_read_and_a_read_no_copy_of_what_is_absent() {
    let rows = MemoryRows::default();
    let gateway = gateway(&rows, 1 << 20);
    gateway.write(8192, patterned(8192, 3)).await.unwrap();
    gateway.write(8192 + 8192 + 4096, patterned(4096, 4)).await.unwrap();
    assert_eq!(rows.read_calls(), 0);
    let reply = gateway.read(100, 30_000).await.unwrap();
    let shape: Vec<(bool, usize)> = reply
        .segments()
        .map(|segment| (matches!(segment, Segment::Data(_)), segment.len()))
        .collect();
    let expected = [(false, 8092), (true, 8192), (false, 4096), (true, 4096), (false, 5524)];
    assert_eq!(shape, expected);
    assert_eq!(gateway.read(0, 0).await.unwrap().len(), 0);
}

#[tokio::test]
async fn ranges_outside_are_invalid() {
    let rows = MemoryRows::default();
    let gateway = gateway(&rows, 10_000);
    let invalid = Some(GatewayError::Invalid);
    for (offset, length) in [(0, 10_001), (10_000, 1), (u64::MAX, 2), (u64::MAX - 9, 10)] {
        assert_eq!(gateway.read(offset, length).await.err(), invalid);
        assert_eq!(gateway.write(offset, vec![1; length as usize].into()).await.err(), invalid);
        assert_eq!(gateway.zero(offset, length.into()).await.err(), invalid);
        assert_eq!(gateway.block_status(offset, length.into(), 1).await.err(), invalid);
    }
    assert_eq!(gateway.zero(1, u64::MAX).await.err(), invalid);
    assert_eq!(gateway.block_status(0, 0, 1).await.err(), invalid);
    assert_eq!(gateway.block_status(0, 1, 0).await.err(), invalid);
    gateway.write(10_000, Bytes::new()).await.unwrap();
    gateway.set_size(20_000);
    gateway.write(10_000, patterned(10_000, 5)).await.unwrap();
    assert_eq!(read(&gateway, 10_000, 10_000).await.unwrap(), patterned(10_000, 5));

    let endless = with_config(&rows, GatewayConfig { size: u64::MAX, ..config(0) });
    let last = (1 << 62) - 5000;
    endless.write(last, patterned(5000, 6)).await.unwrap();
    assert_eq!(read(&endless, last, 5000).await.unwrap(), patterned(5000, 6));
    assert_eq!(endless.write(last + 1, patterned(5000, 6)).await.err(), invalid);
}

#[tokio::test]
async fn zeroing_leaves_absent_records_and_writes_nothing_where_nothing_is() {
    let rows = MemoryRows::default();
    let gateway = gateway(&rows, 64 << 20);
    gateway.zero(0, 64 << 20).await.unwrap();
    gateway.zero(777, 4096).await.unwrap();
    assert_eq!(rows.write_calls(), [0usize; 0], "an empty volume was written to");
    gateway.write(4096 * 100, patterned(4096 * 50, 7)).await.unwrap();
    gateway.write(4096 * 3000, patterned(4096, 8)).await.unwrap();
    assert_eq!(rows.records().len(), 51);
    gateway.zero(4096 * 100 + 1, 32 << 20).await.unwrap();
    assert_eq!(rows.records().len(), 1, "all but the first block, of which a byte is left");
    let left = read(&gateway, 4096 * 100, 8192).await.unwrap();
    assert_eq!(left[0], patterned(1, 7)[0]);
    assert!(left[1..].iter().all(|byte| *byte == 0));
    gateway.zero(4096 * 100, 1).await.unwrap();
    assert_eq!(rows.records().len(), 0, "a block zeroed byte by byte is absent too");
    assert_eq!(rows.violations(), [""; 0]);
}

#[tokio::test]
async fn errors_of_the_coordinator_are_told_apart() {
    let rows = MemoryRows::default();
    let gateway = gateway(&rows, 1 << 20);
    for (op, expected) in [
        (OpError::Fenced, GatewayError::Fenced),
        (OpError::NoSpace, GatewayError::NoSpace),
        (OpError::Unreadable, GatewayError::Unreadable),
        (OpError::Invalid, GatewayError::Invalid),
    ] {
        rows.fail(Some((op, false)));
        assert_eq!(gateway.write(0, patterned(4096, 1)).await, Err(expected));
        assert_eq!(gateway.write(0, patterned(1 << 20, 1)).await, Err(expected));
        assert_eq!(gateway.write(1, patterned(1, 1)).await, Err(expected));
        assert_eq!(gateway.zero(0, 1 << 20).await, Err(expected));
        assert_eq!(gateway.zero(0, 4096).await, Err(expected));
        assert_eq!(read(&gateway, 0, 1 << 20).await, Err(expected));
        assert_eq!(gateway.block_status(0, 4096, 1).await, Err(expected));
        assert_eq!(expected.is_retry_elsewhere(), op == OpError::Fenced);
    }
    rows.fail(None);
    assert_eq!(gateway.inner.locks.len(), 0);
    assert_eq!(read(&gateway, 0, 4096).await.unwrap(), [0; 4096]);
    gateway.flush().await.unwrap();
}

#[tokio::test]
async fn a_failed_zeroing_may_or_may_not_have_happened() {
    let rows = MemoryRows::default();
    let gateway = gateway(&rows, 1 << 20);
    for kept in [true, false] {
        gateway.write(0, patterned(4096, 1)).await.unwrap();
        rows.fail(Some((OpError::NoSpace, kept)));
        assert_eq!(gateway.zero(0, 4096).await, Err(GatewayError::NoSpace));
        rows.fail(None);
        let expected = if kept { Bytes::from_static(&[0; 4096]) } else { patterned(4096, 1) };
        assert_eq!(read(&gateway, 0, 4096).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn no_salt_seals_too_much_or_too_long_and_no_nonce_returns() {
    let rows = MemoryRows::default();
    let limits = GatewayLimits { blocks_per_salt: 100, ..GatewayLimits::default() };
    let gateway = with_config(&rows, GatewayConfig { limits, ..config(4 << 20) });
    for _ in 0..3 {
        gateway.write(0, patterned(200 * 4096, 1)).await.unwrap();
    }
    assert!(gateway.stats().resalted >= 5, "{:?}", gateway.stats());
    gateway.write(200 * 4096, patterned(200 * 4096, 2)).await.unwrap();
    let before = gateway.stats().resalted;
    gateway.tick(Time::default().after(DAY - Duration::from_secs(1))).unwrap();
    assert_eq!(gateway.stats().resalted, before);
    gateway.tick(Time::default().after(DAY)).unwrap();
    assert_eq!(gateway.stats().resalted, before + 1);
    gateway.tick(Time::default().after(DAY + Duration::from_secs(1))).unwrap();
    assert_eq!(gateway.stats().resalted, before + 1, "the new salt is young");
    gateway.write(400 * 4096, patterned(4096, 3)).await.unwrap();

    let mut nonces = BTreeSet::new();
    let mut salts = BTreeSet::new();
    for record in rows.records().values() {
        let header = *Record::decode(record).unwrap().header().unwrap();
        assert!(nonces.insert((header.salt, header.nonce)), "a nonce came back");
        salts.insert(header.salt);
    }
    assert_eq!(nonces.len(), 401);
    assert!(salts.len() >= 4);
    let data = read(&gateway, 0, 400 * 4096).await.unwrap();
    assert_eq!(data[..200 * 4096], patterned(200 * 4096, 1));
    assert_eq!(data[200 * 4096..], patterned(200 * 4096, 2));
}

#[tokio::test]
async fn a_random_source_that_repeats_itself_stops_the_change_of_salt() {
    let rows = MemoryRows::default();
    let random = Box::new(Stuck);
    let keys = volume_keys(&geometry());
    let gateway = Gateway::new(config(1 << 20), keys, Arc::new(rows), random);
    assert_eq!(gateway.tick(Time::default().after(DAY)), Err(GatewayError::Internal));
}

/// A random source that is broken.
struct Stuck;

impl rand::TryRng for Stuck {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(4)
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(4)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        bytes.fill(4);
        Ok(())
    }
}

impl rand::TryCryptoRng for Stuck {}

#[tokio::test]
async fn held_writes_end_before_and_begin_after() {
    let rows = MemoryRows::default();
    let gateway = gateway(&rows, 1 << 20);
    rows.set_open(false);
    let mut before = gateway.write(0, patterned(4096, 1));
    assert!(before.as_mut().now_or_never().is_none());
    let mut hold = Box::pin(gateway.hold_writes());
    assert!(hold.as_mut().now_or_never().is_none(), "a write is under way");
    let mut after = gateway.write(8192, patterned(4096, 2));
    assert!(after.as_mut().now_or_never().is_none());
    rows.set_open(true);
    before.await.unwrap();
    let held = hold.await;
    assert!(after.as_mut().now_or_never().is_none(), "it would carry the old snapshot");
    held.set_snap(9);
    drop(held);
    after.await.unwrap();
    let snaps: BTreeSet<u32> = rows
        .records()
        .values()
        .map(|record| Record::decode(record).unwrap().header().unwrap().snap)
        .collect();
    assert_eq!(snaps, BTreeSet::from([0, 9]));
}

#[tokio::test]
async fn keys_go_with_the_gateway_and_its_last_write() {
    let rows = MemoryRows::default();
    let keys = volume_keys(&geometry());
    let weak = Arc::downgrade(&keys);
    let random = Box::new(StdRng::seed_from_u64(1));
    let gateway = Gateway::new(config(1 << 20), keys, Arc::new(rows.clone()), random);
    assert_eq!(format!("{gateway:?}").matches("7, 7, 7").count(), 0);
    rows.set_open(false);
    let mut write = gateway.write(5, patterned(20, 1));
    while rows.writes_under_way() == 0 {
        assert!(write.as_mut().now_or_never().is_none());
    }
    drop((gateway, write));
    assert!(weak.upgrade().is_some(), "the write is still under way");
    rows.set_open(true);
    while weak.upgrade().is_some() {
        tokio::task::yield_now().await;
    }
    assert_eq!(rows.records().len(), 1);
}
