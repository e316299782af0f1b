//! How fast a store is brought up to date on a local 2+1 cluster, and what clients notice of it.
//!
//! A node is frozen for ten seconds under random writes, killed for as long, and loses its whole store;
//! while it comes back clients are silent or write on. Then all is scrubbed under writes, and another volume; all
//! stores take dead records out of their files under writes, and a node joins.
//! Environment: `SECS` (10) a measurement, `SIZE` (1G), `ONLY` a part of a case's name, `STRICT=1` exits 1 when
//! clients wait for longer than they may meanwhile, or a join moves more than it has to.
#![allow(clippy::print_stdout, reason = "printing the figures is what it is for")]

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;
use smalti_tests::fio::{self, Figures};
use smalti_tests::nbd::{Client, Target};
use smalti_tests::pattern::{PIECE, piece};
use smalti_tests::process::until;
use smalti_tests::settings::number;
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(900);
/// For how long a node is away, and for how long once.
const AWAY: Duration = Duration::from_secs(10);
const LONG_AWAY: Duration = Duration::from_secs(30);
/// With repairs or scrubs 99 of 100 writes take at most this many times as long as without.
const BEARABLE: f64 = 2.0;
/// A join moves at most this many times what it has to, and not less.
const MOVED_MOST: f64 = 1.05;
const MOVED_LEAST: f64 = 0.9;
/// Between two looks whether all is well. To ask starts a process, which on few processors clients feel: while
/// they are measured it is done less often.
const ASK_EVERY: Duration = Duration::from_millis(200);
const ASK_SELDOM: Duration = Duration::from_secs(1);
/// Which node is.
const NODE: usize = 2;
/// Bytes of a record.
const RECORD: f64 = 4160.0;
const MIB: f64 = (1 << 20) as f64;
/// What is written to see what the disk can do.
const PROBE: usize = 256;
/// Another volume, and its size.
const OTHER: &str = "w";
const OTHER_SIZE: &str = "2G";
const OTHER_MIB: u64 = 2048;
/// What is done with it.
const OTHERS: &str = "another volume scrubbed, busy";
const COLLECTS: &str = "dead records taken out, busy";

/// How a node comes to lack something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Frozen,
    Killed,
    Emptied,
}

/// What became of one.
struct Healed {
    from: SystemTime,
    to: SystemTime,
    took: Duration,
    rows: u64,
}

impl Healed {
    fn mib_s(&self) -> f64 {
        self.rows as f64 * RECORD / MIB / self.took.as_secs_f64()
    }
}

/// Who writes at random, 4k, eight at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clients {
    None,
    /// Only while the node is away.
    WhileAway,
    /// All the time.
    Busy,
}

/// A rebuild without clients puts at least this part of what the disk takes in sequence on one store.
const REBUILT_LEAST: f64 = 0.15;
/// Or at least this part of what clients that write in sequence put on one store: where the disk is fast, processors
/// are what limits both.
const REBUILT_OF_FILLED: f64 = 0.75;
/// An outage of ten seconds moves at most this part of the rows that a rebuild does.
const RESYNCED_MOST: f64 = 0.34;

const WRITES: [&str; 8] = [
    "--name=w",
    "--ioengine=nbd",
    "--rw=randwrite",
    "--bs=4k",
    "--iodepth=8",
    "--randrepeat=0",
    "--time_based",
    "--output-format=json",
];

fn writes(uri: &str, size: &str, secs: u64, more: &[&str]) -> Result<Figures> {
    let (size, secs_word) = (format!("--size={size}"), format!("--runtime={secs}"));
    let options = [&WRITES[..], &[&size, &secs_word], more].concat();
    Ok(fio::run(uri, &options, Duration::from_secs(secs * 3 + 120))?.write)
}

/// What clients noticed: writes a second, and in what time 99 of 100 of them ended, in milliseconds; the
/// latter also of those right after. A machine that others share is not the same a minute later.
struct Noticed {
    iops: f64,
    p99: f64,
    p99_after: f64,
}

impl Noticed {
    fn ratio(&self) -> f64 {
        self.p99 / self.p99_after
    }
}

/// Writes until it is told to stop, noting when each one ended and how long it took.
struct Writes {
    stop: Arc<AtomicBool>,
    secs: u64,
    logs: PathBuf,
    thread: JoinHandle<Result<()>>,
}

impl Writes {
    fn start(uri: String, size: &'static str, secs: u64, logs: PathBuf) -> Result<Self> {
        fs::create_dir_all(&logs)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, folder) = (Arc::clone(&stop), logs.clone());
        let thread = thread::spawn(move || {
            for round in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let log = format!("--write_lat_log={}", folder.join(round.to_string()).display());
                writes(&uri, size, secs, &[&log, "--log_unix_epoch=1"])?;
            }
            Ok(())
        });
        Ok(Self { stop, secs, logs, thread })
    }

    /// What there was to notice in that time, which has just ended.
    fn finish(self, from: SystemTime, to: SystemTime) -> Result<Noticed> {
        thread::sleep(Duration::from_secs(self.secs));
        let end = SystemTime::now();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the load panicked"))??;
        let since =
            |at: SystemTime| Ok::<_, anyhow::Error>(at.duration_since(UNIX_EPOCH)?.as_millis());
        let mut writes: Vec<(u128, u64)> = Vec::new();
        for entry in fs::read_dir(&self.logs)? {
            let path = entry?.path();
            if !path.to_string_lossy().contains("_clat.") {
                continue;
            }
            for line in fs::read_to_string(&path)?.lines() {
                let mut words = line.split(", ");
                let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
                let both = number().zip(number());
                let (at, nanos) = both.with_context(|| format!("fio's log: {line}"))?;
                writes.push((u128::from(at), nanos));
            }
        }
        fs::remove_dir_all(&self.logs)?;
        let figures = |from, to| -> Result<(f64, f64)> {
            let (from, to) = (since(from)?, since(to)?);
            let meanwhile = writes.iter().filter(|(at, _)| (from..=to).contains(at));
            let mut took: Vec<u64> = meanwhile.map(|(_, nanos)| *nanos).collect();
            took.sort_unstable();
            let p99 = took.get(took.len() * 99 / 100).context("nothing was written meanwhile")?;
            let secs = to.saturating_sub(from) as f64 / 1e3;
            Ok((took.len() as f64 / secs, *p99 as f64 / 1e6))
        };
        let ((iops, p99), (_, p99_after)) = (figures(from, to)?, figures(to, end)?);
        Ok(Noticed { iops, p99, p99_after })
    }
}

fn rows(cluster: &Cluster) -> Result<u64> {
    let status = cluster.status()?;
    Ok(status.volumes.first().context("a volume")?.rows_repaired)
}

/// Takes the node away and back, and waits until all is in sync.
fn heal(
    cluster: &mut Cluster,
    loss: Loss,
    ask_every: Duration,
    away: impl FnOnce() -> Result<()>,
) -> Result<Healed> {
    let before = rows(cluster)?;
    match loss {
        Loss::Frozen => cluster.signal(NODE, Signal::STOP)?,
        Loss::Killed | Loss::Emptied => cluster.kill(NODE)?,
    }
    if loss == Loss::Emptied {
        let store = cluster.nodes()[NODE].dir.join("data/store");
        fs::remove_dir_all(&store).with_context(|| format!("empty {}", store.display()))?;
    } else {
        away()?;
    }
    match loss {
        Loss::Frozen => cluster.signal(NODE, Signal::CONT)?,
        Loss::Killed | Loss::Emptied => cluster.start(NODE)?,
    }
    let (mut began, mut from) = (Instant::now(), SystemTime::now());
    if loss == Loss::Emptied {
        // It is given a moment to come back with what it had.
        until("the rebuild begins", LIMIT, || Ok((rows(cluster)? > before).then_some(())))?;
        (began, from) = (Instant::now(), SystemTime::now());
    }
    until("all is in sync", LIMIT, || {
        thread::sleep(ask_every);
        Ok(cluster.status()?.is_at_rest().then_some(()))
    })?;
    let (took, to) = (began.elapsed(), SystemTime::now());
    Ok(Healed { from, to, took, rows: rows(cluster)?.saturating_sub(before) })
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
    let alone = writes(&uri, size, secs, &[])?;
    println!(
        "4k random writes, depth 8, all in sync: {:.0} IOPS, p50 {:.2} ms, p99 {:.2} ms\n",
        alone.iops,
        alone.p50_us / 1e3,
        alone.p99_us / 1e3
    );
    println!("| what | rows copied | in | MiB/s | writes meanwhile | p99 | right after | ratio |");
    println!("|---|---|---|---|---|---|---|---|");
    let only = std::env::var("ONLY").unwrap_or_default();
    let cases = [
        ("away for 10 s, then idle", Loss::Frozen, AWAY, Clients::WhileAway),
        ("away for 30 s, then idle", Loss::Frozen, LONG_AWAY, Clients::WhileAway),
        ("away for 10 s, frozen, busy", Loss::Frozen, AWAY, Clients::Busy),
        ("away for 10 s, killed, busy", Loss::Killed, AWAY, Clients::Busy),
        ("store lost, idle", Loss::Emptied, AWAY, Clients::None),
        ("store lost, busy", Loss::Emptied, AWAY, Clients::Busy),
    ];
    let mut good = true;
    let (mut rebuilt, mut resynced) = (None, None);
    for (name, loss, away_for, clients) in
        cases.into_iter().filter(|(name, ..)| name.contains(&only))
    {
        cluster.wait_ok()?;
        let busy = clients == Clients::Busy;
        let logs = cluster.scratch()?.join("logs");
        let load = busy.then(|| Writes::start(uri.clone(), size, secs, logs)).transpose()?;
        let away = || match clients {
            Clients::WhileAway => writes(&uri, size, away_for.as_secs(), &[]).map(drop),
            Clients::None | Clients::Busy => {
                thread::sleep(away_for);
                Ok(())
            }
        };
        let ask_every = if busy { ASK_SELDOM } else { ASK_EVERY };
        let healed = heal(&mut cluster, loss, ask_every, away)?;
        let noticed = load.map(|load| load.finish(healed.from, healed.to)).transpose()?;
        good &= print_row(name, &healed, noticed.as_ref());
        match (loss, clients) {
            (Loss::Emptied, Clients::None) => rebuilt = Some((healed.mib_s(), healed.rows)),
            (Loss::Frozen, Clients::WhileAway) if away_for == AWAY => resynced = Some(healed.rows),
            _ => {}
        }
    }
    if "scrub, busy".contains(&only) {
        cluster.wait_ok()?;
        let before = rows(&cluster)?;
        let load = Writes::start(uri.clone(), size, secs, cluster.scratch()?.join("logs"))?;
        let (began, from) = (Instant::now(), SystemTime::now());
        let scrub = cluster.facts(&["scrub", "v"])?["v"].clone();
        let (took, to) = (began.elapsed(), SystemTime::now());
        let noticed = load.finish(from, to)?;
        let read = scrub["rows"].as_u64().context("rows")?;
        let healed = Healed { from, to, took, rows: rows(&cluster)?.saturating_sub(before) };
        good &= print_row("scrub, busy", &healed, Some(&noticed));
        println!("\nThe scrub read {read} rows.");
    }
    let (others, collects) = (OTHERS.contains(&only), COLLECTS.contains(&only));
    if others || collects {
        let mut other = make_other(&mut cluster)?;
        if others {
            good &= scrub_other(&cluster, &uri, size, secs)?;
        }
        if collects {
            good &= collect(&mut cluster, &mut other, &uri, size, secs)?;
        }
        // What comes after is measured of one volume.
        drop(other);
        cluster.command(&["volume", "delete", OTHER, "--yes"])?;
    }
    judge(&mut cluster)?;
    if let (Some((_, all)), Some(changed)) = (rebuilt, resynced) {
        let part = changed as f64 / all as f64;
        println!("\nAn outage of {AWAY:?} moved {part:.2} of the rows that a rebuild does.");
        good &= part <= RESYNCED_MOST;
    }
    if let Some((rate, _)) = rebuilt {
        // Of two data slots each block goes to one.
        let filled = filled.mib_s / 2.0;
        good &= rate >= (probe * REBUILT_LEAST).min(filled * REBUILT_OF_FILLED);
        let (of_disk, of_fill) = (100.0 * rate / probe, 100.0 * rate / filled);
        println!(
            "\nWithout clients a rebuild puts on one store {of_disk:.0} % of what the disk takes, and {of_fill:.0} % \
             of what clients that write in sequence put on each."
        );
    }
    if "a node joins, idle".contains(&only) {
        let moved = join(&mut cluster)?;
        ensure!(moved > MOVED_LEAST, "a seat has moved: it is not known how much was copied");
        good &= moved <= MOVED_MOST;
    }
    cluster.finish()?;
    ensure!(
        good || number("STRICT", 0)? == 0,
        "clients waited for too long, a rebuild was too slow, or too much was moved"
    );
    Ok(())
}

/// Whether all stores hold the same: the volume reads alike with each node away, and no row is wrong.
///
/// # Errors
/// When it does not.
fn judge(cluster: &mut Cluster) -> Result<()> {
    cluster.wait_ok()?;
    let scrub = cluster.facts(&["scrub", "v"])?["v"].clone();
    ensure!(scrub["wrong"] == 0 && scrub["unclear"] == 0, "{scrub}");
    let whole = contents(cluster, 0)?;
    for node in 0..cluster.nodes().len() {
        cluster.kill(node)?;
        let through = (node + 1) % cluster.nodes().len();
        let without = contents(cluster, through)?;
        ensure!(without == whole, "without node {node} the volume holds something else");
        // Else the `ok` of before might be taken for that of after.
        cluster.wait_degraded()?;
        cluster.start(node)?;
        cluster.wait_ok()?;
    }
    println!("\nEvery row is right, and with each node away the volume reads the same.");
    Ok(())
}

/// What tells one content of the volume from another.
fn contents(cluster: &Cluster, node: usize) -> Result<u64> {
    let mut client = Client::connect(&cluster.target(node), LIMIT)?;
    let mut bytes = vec![0; PIECE];
    let mut hasher = DefaultHasher::new();
    for at in 0..client.size() / PIECE as u64 {
        client.read(at * PIECE as u64, &mut bytes)?;
        hasher.write(&bytes);
    }
    Ok(hasher.finish())
}

/// Whether clients bore it.
fn print_row(name: &str, healed: &Healed, noticed: Option<&Noticed>) -> bool {
    let word = |word: &dyn Fn(&Noticed) -> String| noticed.map_or("-".to_owned(), word);
    println!(
        "| {name:<28} | {:>7} | {:>6.1} s | {:>4.0} | {} | {} | {} | {} |",
        healed.rows,
        healed.took.as_secs_f64(),
        healed.mib_s(),
        word(&|noticed| format!("{:.0} IOPS", noticed.iops)),
        word(&|noticed| format!("{:.2} ms", noticed.p99)),
        word(&|noticed| format!("{:.2} ms", noticed.p99_after)),
        word(&|noticed| format!("{:.2}", noticed.ratio())),
    );
    noticed.is_none_or(|noticed| noticed.ratio() <= BEARABLE)
}

/// Another volume, full, with another node's gateway and coordinator.
fn make_other(cluster: &mut Cluster) -> Result<Client> {
    cluster.wait_ok()?;
    cluster.command(&["volume", "create", OTHER, "--size", OTHER_SIZE])?;
    let target = Target { export: OTHER.to_owned(), ..cluster.target(1) };
    let mut other = Client::connect(&target, LIMIT)?;
    for at in 0..OTHER_MIB {
        other.write(at * PIECE as u64, &piece(1, at), 0)?;
    }
    other.flush()?;
    Ok(other)
}

/// A volume that nobody uses is scrubbed, over and over, and clients of another one write.
fn scrub_other(cluster: &Cluster, uri: &str, size: &'static str, secs: u64) -> Result<bool> {
    let load = Writes::start(uri.to_owned(), size, secs, cluster.scratch()?.join("logs"))?;
    thread::sleep(Duration::from_secs(1));
    let (began, from) = (Instant::now(), SystemTime::now());
    let mut scrubs = 0;
    while began.elapsed() < Duration::from_secs(secs) {
        cluster.facts(&["scrub", OTHER])?;
        scrubs += 1;
    }
    let (took, to) = (began.elapsed(), SystemTime::now());
    let noticed = load.finish(from, to)?;
    let done = Healed { from, to, took, rows: 0 };
    let good = print_row(OTHERS, &done, Some(&noticed));
    println!("\nThat volume was scrubbed {scrubs} times.");
    Ok(good)
}

/// Most of another volume is trimmed, and every store moves what lives out of its older files.
fn collect(
    cluster: &mut Cluster,
    other: &mut Client,
    uri: &str,
    size: &'static str,
    secs: u64,
) -> Result<bool> {
    const BEGUN: &str = "takes dead records out";
    const DONE: &str = "took dead records out";
    let logged = |words| -> Result<Vec<usize>> {
        (0..cluster.nodes().len()).map(|node| cluster.logged(node, words)).collect()
    };
    let more = |words, than: &[usize]| -> Result<usize> {
        thread::sleep(ASK_EVERY);
        Ok(logged(words)?.iter().zip(than).filter(|(now, then)| now > then).count())
    };
    let (begun, done) = (logged(BEGUN)?, logged(DONE)?);
    let load = Writes::start(uri.to_owned(), size, secs, cluster.scratch()?.join("logs"))?;
    // A little less than half of what a store has is dead then; the load does the rest.
    for at in (0..OTHER_MIB).filter(|at| at % 8 > 1) {
        other.trim(at * PIECE as u64, PIECE as u32)?;
    }
    until(
        "a store takes dead records out",
        LIMIT,
        || Ok((more(BEGUN, &begun)? > 0).then_some(())),
    )?;
    let (began, from) = (Instant::now(), SystemTime::now());
    until("all stores have taken dead records out", LIMIT, || {
        Ok((more(DONE, &done)? == done.len()).then_some(()))
    })?;
    let (took, to) = (began.elapsed(), SystemTime::now());
    let noticed = load.finish(from, to)?;
    let done = Healed { from, to, took, rows: 0 };
    Ok(print_row(COLLECTS, &done, Some(&noticed)))
}

/// A fourth node joins and takes its share: no more should travel than it has in the end. How many times as
/// much did.
fn join(cluster: &mut Cluster) -> Result<f64> {
    cluster.wait_ok()?;
    let (before, had) = (rows(cluster)?, cluster.slots()?);
    let dir = cluster.scratch()?.join("n4");
    let node = cluster.join(&dir, "n4")?;
    until("it begins to take its share", LIMIT, || Ok((rows(cluster)? > before).then_some(())))?;
    let (began, from) = (Instant::now(), SystemTime::now());
    until("it has its share", LIMIT, || {
        thread::sleep(ASK_EVERY);
        cluster.at_rest()
    })?;
    let (took, to) = (began.elapsed(), SystemTime::now());
    let healed = Healed { from, to, took, rows: rows(cluster)?.saturating_sub(before) };
    let has = cluster.slots()?;
    // A slot has as many rows as any other one, but for chance.
    let (slots, share) = (had.iter().sum::<u64>(), has.last().copied().unwrap_or(0));
    let all: u64 = cluster.facts(&["scrub", "v"])?["v"]["rows"].as_u64().context("rows")?;
    // All rows that were scrubbed, of all three slots.
    let ideal = all as f64 * 3.0 * share as f64 / slots as f64;
    let moved = healed.rows as f64 / ideal;
    println!(
        "\nA fourth node joins: {} rows copied in {:.1} s, {:.0} MiB/s, {moved:.2} of what it has in the end. It \
         has {share} of {slots} slots; a fair share is {:.1}. Slots before {had:?}, after {has:?}.",
        healed.rows,
        healed.took.as_secs_f64(),
        healed.mib_s(),
        slots as f64 / has.len() as f64,
    );
    // What joined is not the cluster's to stop.
    cluster.stop(node)?;
    Ok(moved)
}
