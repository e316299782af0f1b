//! Records that are not what they should be: refused by name and counted, never shown.

use super::*;
use smalti_storage::record::{ABSENT, RECORD_LEN};

struct Volume {
    rows: MemoryRows,
    gateway: Gateway,
}

fn volume() -> Volume {
    let rows = MemoryRows::default();
    let gateway = gateway(&rows, 1 << 20);
    Volume { rows, gateway }
}

impl Volume {
    fn record(&self, block: u64) -> Bytes {
        self.rows.records()[&self.gateway.inner.place(block)].clone()
    }

    fn put(&self, block: u64, record: Bytes) {
        self.rows.put(self.gateway.inner.place(block), record);
    }

    async fn write(&self, block: u64, seed: u8) {
        self.gateway.write(block * 4096, patterned(4096, seed)).await.unwrap();
    }

    /// Every way to reach a block fails, and nothing is written.
    async fn assert_refused(&self, block: u64, error: GatewayError) {
        let writes = self.rows.write_calls().len();
        let (at, gateway) = (block * 4096, &self.gateway);
        assert_eq!(read(gateway, at, 4096).await, Err(error));
        assert_eq!(read(gateway, 0, 1 << 20).await, Err(error), "as part of a large read");
        assert_eq!(gateway.write(at + 1, patterned(9, 9)).await, Err(error));
        assert_eq!(gateway.zero(at + 1, 9).await, Err(error));
        assert_eq!(self.rows.write_calls().len(), writes);
    }
}

#[tokio::test]
async fn changed_records_are_forged() {
    let volume = volume();
    volume.write(7, 1).await;
    let good = volume.record(7);
    for at in [0, 1, 2, 6, 10, 14, 19, 20, 36, 47, 48, 63, 64, RECORD_LEN - 1] {
        let mut bad = good.to_vec();
        bad[at] ^= 0x10;
        volume.put(7, bad.into());
        let error = read(&volume.gateway, 7 * 4096, 4096).await;
        let expected = if (6..10).contains(&at) {
            GatewayError::NoKey { block: 7 }
        } else {
            GatewayError::Forged { block: 7 }
        };
        assert_eq!(error, Err(expected), "byte {at}");
    }
    volume.put(7, good.slice(1..));
    volume.assert_refused(7, GatewayError::Forged { block: 7 }).await;
    // One names a key epoch that is not there, and was read once more.
    assert_eq!(volume.gateway.stats().forged, 14 + 1 + 4);
    volume.put(7, good);
    assert_eq!(read(&volume.gateway, 7 * 4096, 4096).await.unwrap(), patterned(4096, 1));
}

#[tokio::test]
async fn swapped_blocks_are_forged() {
    let volume = volume();
    for block in 0..32 {
        volume.write(block, block as u8).await;
    }
    for other in 1..32 {
        let (a, b) = (volume.record(0), volume.record(other));
        volume.put(0, b.clone());
        volume.put(other, a.clone());
        volume.assert_refused(0, GatewayError::Forged { block: 0 }).await;
        let at = other * 4096;
        let forged = Err(GatewayError::Forged { block: other });
        assert_eq!(read(&volume.gateway, at, 4096).await, forged);
        volume.put(0, a);
        volume.put(other, b);
    }
    assert!(read(&volume.gateway, 0, 1 << 20).await.is_ok());
}

#[tokio::test]
async fn replayed_records_are_stale() {
    let volume = volume();
    volume.write(7, 1).await;
    let old = volume.record(7);
    volume.write(7, 2).await;
    let new = volume.record(7);
    let stale = GatewayError::Stale { block: 7 };
    volume.put(7, old.clone());
    volume.assert_refused(7, stale).await;
    for absent in [Bytes::new(), Bytes::from_static(&ABSENT)] {
        volume.put(7, absent);
        volume.assert_refused(7, stale).await;
        let status = volume.gateway.block_status(0, 1 << 20, 9).await;
        assert_eq!(status, Err(stale), "a hole where data was");
        assert_eq!(volume.gateway.zero(0, 1 << 20).await, Err(stale));
    }
    volume.put(7, new.clone());
    assert_eq!(read(&volume.gateway, 7 * 4096, 4096).await.unwrap(), patterned(4096, 2));

    volume.gateway.zero(7 * 4096, 4096).await.unwrap();
    assert_eq!(read(&volume.gateway, 7 * 4096, 4096).await.unwrap(), [0; 4096]);
    volume.put(7, new);
    volume.assert_refused(7, stale).await;
    assert!(volume.gateway.stats().stale >= 4 * 4);

    // A gateway that never wrote the block cannot know; the coordinator's versions have to.
    let config = GatewayConfig { generation: 6, ..config(1 << 20) };
    let next = with_config(&volume.rows, config);
    assert_eq!(read(&next, 7 * 4096, 4096).await.unwrap(), patterned(4096, 2));
}

#[tokio::test]
async fn records_of_another_volume_are_forged() {
    let volume = volume();
    volume.write(3, 1).await;
    let mut identity = identity();
    identity.volume.0 = uuid::Uuid::from_u128(5);
    let other = with_config(&volume.rows, GatewayConfig { identity, ..config(1 << 20) });
    assert_eq!(read(&other, 3 * 4096, 10).await, Err(GatewayError::Forged { block: 3 }));
}

#[tokio::test]
async fn a_client_is_told_where() {
    let volume = volume();
    volume.write(7, 1).await;
    volume.put(7, Bytes::from(vec![1; RECORD_LEN]));
    let device: Arc<dyn BlockDevice> = Arc::new(volume.gateway);
    let info = smalti_nbd::ExportInfo::new("name", 1 << 20);
    let export = crate::NbdExport::new(info.clone(), device, 2 * 4096);
    use smalti_nbd::{DeviceErrorKind, Export, ZeroFlags};
    assert_eq!(export.info(), info);
    let error = export.read(0, 1 << 20).await.unwrap_err();
    assert_eq!((error.kind(), error.offset()), (DeviceErrorKind::Io, Some(7 * 4096)));
    assert!(error.message().contains("block 7"), "{error}");
    let flags = ZeroFlags { fast_only: true, ..ZeroFlags::default() };
    export.write_zeroes(6 * 4096 - 1, 4097, flags).await.unwrap();
    export.trim(7 * 4096, 4096, true).await.unwrap();
    assert_eq!(export.read(0, 1 << 20).await.unwrap(), ReadReply::zero(1 << 20));
    export.write(1, patterned(5, 1), true).await.unwrap();
    let extents = export.block_status(0, 1 << 20, 9).await.unwrap();
    assert_eq!(
        extents.iter().map(|e| (e.length, e.hole)).collect::<Vec<_>>(),
        [(4096, false), ((1 << 20) - 4096, true)]
    );
    export.flush().await.unwrap();
    export.cache(0, 4096).await.unwrap();
    let error = export.write(1 << 20, patterned(5, 1), false).await.unwrap_err();
    assert_eq!(error.kind(), DeviceErrorKind::Invalid);
}

#[tokio::test]
async fn without_room_a_trim_leaves_parts_of_rows_alone() {
    use smalti_nbd::{DeviceErrorKind, Export, ZeroFlags};
    let volume = volume();
    volume.write(1, 1).await;
    let rows = volume.rows.clone();
    let info = smalti_nbd::ExportInfo::new("name", 1 << 20);
    let export = crate::NbdExport::new(info, Arc::new(volume.gateway), 2 * 4096);
    rows.fail(Some((OpError::NoSpace, false)));
    export.trim(4096, 4096, false).await.unwrap();
    for whole in [0, 4096] {
        let error = export.trim(whole, 3 * 4096, false).await.unwrap_err();
        assert_eq!(error.kind(), DeviceErrorKind::NoSpace);
    }
    let error = export.write_zeroes(4096, 4096, ZeroFlags::default()).await.unwrap_err();
    assert_eq!(error.kind(), DeviceErrorKind::NoSpace);
    rows.fail(Some((OpError::Invalid, false)));
    export.trim(4096, 4096, false).await.unwrap_err();
}
