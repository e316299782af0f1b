//! How fast one core locates, seals, opens and codes. Plain timing, best of a few runs:
//! `cargo bench -p smalti-storage`.
#![allow(clippy::print_stdout, missing_docs, reason = "a tool that prints its result")]

use smalti_storage::code::Code;
use smalti_storage::geometry::{Geometry, Layout, PlaceKey};
use smalti_storage::ids::{ClusterId, KeyEpochNo, Slot, VolumeId, Wid};
use smalti_storage::keys::ShardKey;
use smalti_storage::record::{ABSENT, BLOCK_LEN, RECORD_LEN};
use smalti_storage::seal::{EpochKeys, SealIdentity, SealPlace, Sealer, VolumeKeys};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

/// Prints the time of one call: the best of five rounds, which is the least disturbed one.
fn measure(name: &str, bytes: usize, calls: u64, mut call: impl FnMut(u64)) {
    let round = |call: &mut dyn FnMut(u64)| {
        let start = Instant::now();
        (0..calls).for_each(call);
        start.elapsed().as_nanos() as f64 / calls as f64
    };
    let best = (0..5).map(|_| round(&mut call)).fold(f64::INFINITY, f64::min);
    println!("{name:<44} {best:>9.0} ns {:>7.2} GB/s", bytes as f64 / best);
}

fn main() {
    let geometry = Geometry::new(4, 2, 1 << 20, 32).expect("valid");
    let layout = Layout::new(geometry, &PlaceKey::new([1; 32]));
    measure("locate", 0, 1_000_000, |i| {
        black_box(layout.locate(i * 977));
    });

    let columns = (0..geometry.columns()).map(|i| ShardKey::new([i as u8; 32])).collect();
    let epoch = EpochKeys::new(&geometry, columns).expect("all columns");
    let keys = VolumeKeys::new(PlaceKey::new([1; 32]), KeyEpochNo(1), [(KeyEpochNo(1), epoch)]);
    let identity = SealIdentity { cluster: ClusterId::default(), volume: VolumeId::default() };
    let sealer = Sealer::new(identity, Arc::new(keys.expect("whole")), [2; 16]);
    let plaintext = vec![3; BLOCK_LEN];
    let place = |block| {
        let at = layout.locate(block);
        let wid = Wid { generation: 1, seq: block };
        SealPlace { block, row: at.row, slot: at.slot, snap: 0, wid }
    };
    for (name, step) in [("neighbouring blocks", 1), ("far blocks, no session kept", 1 << 14)] {
        measure(&format!("locate and seal, {name}"), BLOCK_LEN, 50_000, |i| {
            let sealed = sealer.seal(&place(i * step), &plaintext, [0; 4]);
            black_box(sealed.expect("seals"));
        });
    }
    let one = place(77);
    let record = sealer.seal(&one, &plaintext, [0; 4]).expect("seals");
    let mut out = vec![0; BLOCK_LEN];
    measure("seal", BLOCK_LEN, 50_000, |_| {
        black_box(sealer.seal(&one, &plaintext, [0; 4]).expect("seals"));
    });
    measure("open", BLOCK_LEN, 50_000, |_| {
        sealer.open_into(77, one.row, one.slot, &record, &mut out).expect("opens");
    });
    measure("open absent", BLOCK_LEN, 50_000, |_| {
        sealer.open_into(77, one.row, one.slot, &ABSENT, &mut out).expect("opens");
    });

    for (n, k) in [(2, 1), (2, 2), (3, 2), (4, 2), (8, 3)] {
        let code = Code::new(n, k).expect("valid");
        let record = vec![7; RECORD_LEN];
        let data = vec![&record[..]; usize::from(n)];
        let row = RECORD_LEN * usize::from(n);
        measure(&format!("{n}+{k} encode a row"), row, 20_000, |_| {
            black_box(code.encode(&data).expect("encodes"));
        });
        measure(&format!("{n}+{k} delta"), RECORD_LEN, 20_000, |_| {
            black_box(code.delta(Slot(0), &record).expect("data slot"));
        });
        let parity = code.encode(&data).expect("encodes");
        let have: Vec<(Slot, &[u8])> = (1..n)
            .map(|slot| (Slot(slot), &record[..]))
            .chain([(Slot(n), &parity[0][..])])
            .collect();
        measure(&format!("{n}+{k} rebuild one record"), RECORD_LEN, 20_000, |_| {
            black_box(code.reconstruct(&have, &[Slot(0)]).expect("enough"));
        });
    }
}
