//! What the gateway costs: processor time per request over rows in memory, on one thread.
//! `cargo run --release -p smalti-gateway --example bench_gateway`.
#![allow(clippy::print_stdout, missing_docs, reason = "a tool that prints its result")]

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustix::time::{ClockId, clock_gettime};
use smalti_gateway::test_support::{MemoryRows, identity, volume_keys};
use smalti_gateway::{BlockDevice, Gateway, GatewayConfig, GatewayLimits};
use smalti_rowcommit::Time;
use smalti_storage::geometry::{BlockPlace, Geometry, Layout};
use smalti_storage::ids::Wid;
use smalti_storage::seal::{SealPlace, Sealer};
use std::future::ready;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

const SIZE: u64 = 64 << 20;
const ROUNDS: u64 = 7;

/// Processor time of this thread, in nanoseconds. The machine may be busy with other things.
fn processor_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Prints the cost of one call, from the best round.
async fn measure<F: Future>(name: &str, bytes: u64, calls: u64, mut call: impl FnMut(u64) -> F) {
    let (mut best_cpu, mut best_wall) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        let (cpu, wall) = (processor_ns(), Instant::now());
        for i in 0..calls {
            black_box(call(i).await);
        }
        best_cpu = best_cpu.min((processor_ns() - cpu) as f64 / calls as f64);
        best_wall = best_wall.min(wall.elapsed().as_nanos() as f64 / calls as f64);
    }
    let rate = bytes as f64 / best_cpu * 1e9 / f64::from(1 << 20);
    println!(
        "{name:<34} {:>9.2} us cpu {:>9.2} us wall {:>9.0}/s {rate:>8.0} MiB/s",
        best_cpu / 1e3,
        best_wall / 1e3,
        1e9 / best_cpu,
    );
}

fn main() {
    // One thread, so that its clock has everything, tasks included.
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let geometry = Geometry::default_for_nodes(3).expect("three nodes");
    let config = GatewayConfig {
        geometry,
        size: SIZE,
        identity: identity(),
        generation: 1,
        first_seq: 1,
        snap: 0,
        now: Time::default(),
        limits: GatewayLimits::default(),
    };
    let rows = Arc::new(MemoryRows::default());
    let random = Box::new(StdRng::seed_from_u64(1));
    let gateway = &Gateway::new(config, volume_keys(&geometry), rows, random);
    let data: Bytes = vec![0x5a; 1 << 20].into();
    let small = data.slice(..4096);
    let tiny = data.slice(..512);
    // A spread that touches all blocks, not one after another.
    let at = |i: u64, size: u64| i.wrapping_mul(0x9e37_79b9) % (SIZE / size) * size;

    // What no gateway can do without.
    let layout = Layout::new(geometry, volume_keys(&geometry).place());
    let sealer = &Sealer::new(identity(), volume_keys(&geometry), [1; 16]);
    measure("256 blocks located and sealed", 1 << 20, 64, |i| {
        for block in i * 256..(i + 1) * 256 {
            let BlockPlace { row, slot } = layout.locate(block);
            let wid = Wid { generation: 1, seq: block };
            let place = SealPlace { block, row, slot, snap: 0, wid };
            black_box(sealer.seal(&place, &small, [0; 4]).expect("seals"));
        }
        ready(())
    })
    .await;
    measure("1 MiB writes", 1 << 20, 64, |i| gateway.write(i << 20, data.clone())).await;
    measure("1 MiB reads", 1 << 20, 64, |i| gateway.read(i << 20, 1 << 20)).await;
    measure("64 KiB writes", 64 << 10, 1024, |i| gateway.write(i << 16, data.slice(..64 << 10)))
        .await;
    measure("64 KiB reads", 64 << 10, 1024, |i| gateway.read(i << 16, 64 << 10)).await;
    measure("4 KiB writes, in order", 4096, 16384, |i| gateway.write(i << 12, small.clone())).await;
    measure("4 KiB reads, in order", 4096, 16384, |i| gateway.read(i << 12, 4096)).await;
    measure("4 KiB writes, random", 4096, 16384, |i| gateway.write(at(i, 4096), small.clone()))
        .await;
    measure("4 KiB reads, random", 4096, 16384, |i| gateway.read(at(i, 4096), 4096)).await;
    measure("512 B writes, random", 512, 16384, |i| gateway.write(at(i, 512), tiny.clone())).await;
    measure("1 MiB zeroing, then absent", 1 << 20, 64, |i| gateway.zero(i << 20, 1 << 20)).await;
    measure("1 MiB reads, absent", 1 << 20, 64, |i| gateway.read(i << 20, 1 << 20)).await;
    measure("4 KiB reads, absent", 4096, 16384, |i| gateway.read(at(i, 4096), 4096)).await;
}
