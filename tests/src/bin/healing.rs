//! How fast a store is brought up to date on a local 2+1 cluster, and what clients notice of it.
//!
//! A node is frozen for ten seconds under random writes, killed for as long, and loses its whole store,
//! under the same writes and without any. Environment: `SECS` (10) a measurement, `SIZE` (1G).
#![allow(clippy::print_stdout, reason = "printing the figures is what it is for")]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::process::Signal;
use smalti_tests::fio::{self, Figures};
use smalti_tests::process::until;
use smalti_tests::settings::number;
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(900);
/// For how long a node is away.
const AWAY: Duration = Duration::from_secs(10);
/// Which node is.
const NODE: usize = 2;
/// Bytes of a record.
const RECORD: f64 = 4160.0;
const MIB: f64 = (1 << 20) as f64;
/// What is written to see what the disk can do.
const PROBE: usize = 256;

/// How a node comes to lack something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Frozen,
    Killed,
    Emptied,
}

/// What became of one.
struct Healed {
    took: Duration,
    rows: u64,
}

impl Healed {
    fn mib_s(&self) -> f64 {
        self.rows as f64 * RECORD / MIB / self.took.as_secs_f64()
    }
}

/// 4k random writes, eight at a time, for so long.
fn writes(uri: &str, size: &str, secs: u64) -> Result<Figures> {
    let (size, secs_word) = (format!("--size={size}"), format!("--runtime={secs}"));
    let options = [
        "--name=w",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=8",
        "--randrepeat=0",
        "--time_based",
        "--output-format=json",
        &size,
        &secs_word,
    ];
    Ok(fio::run(uri, &options, Duration::from_secs(secs * 3 + 120))?.write)
}

fn rows(cluster: &Cluster) -> Result<u64> {
    let status = cluster.status()?;
    Ok(status.volumes.first().context("a volume")?.rows_repaired)
}

/// Takes the node away and back, and waits until all is in sync.
fn heal(cluster: &mut Cluster, loss: Loss) -> Result<Healed> {
    let before = rows(cluster)?;
    match loss {
        Loss::Frozen => cluster.signal(NODE, Signal::STOP)?,
        Loss::Killed | Loss::Emptied => cluster.kill(NODE)?,
    }
    if loss == Loss::Emptied {
        let store = cluster.nodes()[NODE].dir.join("data/store");
        fs::remove_dir_all(&store).with_context(|| format!("empty {}", store.display()))?;
    } else {
        thread::sleep(AWAY);
    }
    match loss {
        Loss::Frozen => cluster.signal(NODE, Signal::CONT)?,
        Loss::Killed | Loss::Emptied => cluster.start(NODE)?,
    }
    let mut began = Instant::now();
    if loss == Loss::Emptied {
        // It is given a moment to come back with what it had.
        until("the rebuild begins", LIMIT, || Ok((rows(cluster)? > before).then_some(())))?;
        began = Instant::now();
    }
    until("all is in sync", LIMIT, || Ok((cluster.status()?.health == "ok").then_some(())))?;
    Ok(Healed { took: began.elapsed(), rows: rows(cluster)?.saturating_sub(before) })
}

/// Sequential writes with a sync at the end: what one store can be given at most.
fn disk(dir: &Path) -> Result<f64> {
    let path = dir.join("probe");
    let block = vec![0x5a; 1 << 20];
    let mut file = File::create(&path)?;
    let began = Instant::now();
    for _ in 0..PROBE {
        file.write_all(&block)?;
    }
    file.sync_data()?;
    let rate = PROBE as f64 / began.elapsed().as_secs_f64();
    fs::remove_file(&path)?;
    Ok(rate)
}

fn main() -> Result<()> {
    let secs = number("SECS", 10)?.max(1);
    let size: &'static str = std::env::var("SIZE").unwrap_or_else(|_| "1G".to_owned()).leak();
    let spec = Spec { geometry: Some((2, 1)), ..Spec::three("healing", size) };
    let mut cluster = Cluster::up(spec)?;
    let uri = cluster.uri(0);
    let fill = ["--name=fill", "--ioengine=nbd", "--rw=write", "--bs=1M", "--iodepth=16"];
    let sized = format!("--size={size}");
    let options = [&fill[..], &[sized.as_str(), "--output-format=json"]].concat();
    let filled = fio::run(&uri, &options, LIMIT)?.write;
    let probe = disk(&cluster.scratch()?)?;
    println!(
        "{} cores, volume {size}, 2+1, full; filled with {:.0} MiB/s; the disk takes {probe:.0} MiB/s \
         in sequence, synced\n",
        thread::available_parallelism()?,
        filled.mib_s
    );
    let alone = writes(&uri, size, secs)?;
    println!(
        "4k random writes, depth 8, all in sync: {:.0} IOPS, p50 {:.2} ms, p99 {:.2} ms\n",
        alone.iops,
        alone.p50_us / 1e3,
        alone.p99_us / 1e3
    );
    println!("| what | clients | rows copied | in | MiB/s | writes | p99 | of p99 alone |");
    println!("|---|---|---|---|---|---|---|---|");
    for (name, loss, busy) in [
        ("away for 10 s, frozen", Loss::Frozen, true),
        ("away for 10 s, killed", Loss::Killed, true),
        ("store lost", Loss::Emptied, false),
        ("store lost", Loss::Emptied, true),
    ] {
        cluster.wait_ok()?;
        let load = busy.then(|| {
            // Beyond the end of what is measured, or nobody would be there to be disturbed.
            let (uri, secs) = (uri.clone(), secs + 2 * AWAY.as_secs());
            thread::spawn(move || writes(&uri, size, secs))
        });
        if busy {
            thread::sleep(Duration::from_secs(1));
        }
        let healed = heal(&mut cluster, loss)?;
        let figures = match load.map(thread::JoinHandle::join) {
            Some(joined) => Some(joined.map_err(|_| anyhow!("the load panicked"))??),
            None => None,
        };
        println!(
            "| {name:<21} | {} | {:>7} | {:>6.1} s | {:>4.0} | {} | {} | {} |",
            if busy { "4k writes" } else { "none     " },
            healed.rows,
            healed.took.as_secs_f64(),
            healed.mib_s(),
            figures.map_or("-".into(), |f| format!("{:.0} IOPS", f.iops)),
            figures.map_or("-".into(), |f| format!("{:.2} ms", f.p99_us / 1e3)),
            figures.map_or("-".into(), |f| format!("{:.2}", f.p99_us / alone.p99_us)),
        );
    }
    cluster.finish()
}
