//! Figures of a local 2+1 cluster through fio's NBD engine, as a table of medians.
//!
//! `smalti-bench [--uri URI] [WORD...]` runs the jobs whose name holds every word, on a fresh
//! cluster of three nodes, or on any NBD server: `--uri` measures a stand-in or a rival in the
//! same run. `--against PROGRAM` runs them on two clusters in turn, the second one's nodes running
//! another `smalti`. Environment: `SECS` (10) a job, `RUNS` (3), `SIZE` (2G), `STRICT=1` exits 1 when a
//! job is below its floor.
#![allow(clippy::print_stdout, reason = "printing the table is what it is for")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use smalti_tests::fio::{self, Figures};
use smalti_tests::settings::number;
use smalti_tests::{Cluster, Spec};

/// One row of the table.
struct Job {
    name: &'static str,
    rw: &'static str,
    block: &'static str,
    depth: u32,
    /// What must be reached on a machine of two cores: operations a second for 4k, MiB a second
    /// for the rest.
    floor: f64,
    /// What Vitastor 3.0.8 with EC 2+1 reached on such a machine, by its own engine over plain TCP
    /// and without encryption, in the same units: what is to be beaten.
    rival: f64,
}

const fn job(
    name: &'static str,
    rw: &'static str,
    block: &'static str,
    depth: u32,
    floor: f64,
    rival: f64,
) -> Job {
    Job { name, rw, block, depth, floor, rival }
}

const JOBS: [Job; 8] = [
    job("4k random write, depth 1", "randwrite", "4k", 1, 800.0, 1020.0),
    job("4k random write, depth 32", "randwrite", "4k", 32, 4000.0, 8008.0),
    job("4k random read, depth 1", "randread", "4k", 1, 4000.0, 5908.0),
    job("4k random read, depth 32", "randread", "4k", 32, 15000.0, 45280.0),
    job("64k write, depth 16", "write", "64k", 16, 120.0, 168.0),
    job("64k read, depth 16", "read", "64k", 16, 200.0, 841.0),
    job("1M write, depth 16", "write", "1M", 16, 250.0, 586.0),
    job("1M read, depth 16", "read", "1M", 16, 400.0, 1040.0),
];

impl Job {
    fn writes(&self) -> bool {
        self.rw.ends_with("write")
    }

    fn is_small(&self) -> bool {
        self.block == "4k"
    }

    fn figure(&self, figures: &Figures) -> f64 {
        if self.is_small() { figures.iops } else { figures.mib_s }
    }
}

/// What is measured.
struct Server {
    uri: String,
    /// The processes whose processor time counts; none if they are not ours.
    pids: Vec<u32>,
}

impl Server {
    fn of(cluster: &Cluster) -> Self {
        let pids = (0..cluster.nodes().len()).map(|node| cluster.pid(node)).collect();
        Self { uri: cluster.uri(0), pids }
    }
}

/// One run of a job.
struct Run {
    figures: Figures,
    cpu_per_thousand: Option<f64>,
}

struct Settings {
    secs: u64,
    runs: usize,
    size: String,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Seconds of processor time that a process has used.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program's name may hold spaces: count from the bracket that ends it.
    let fields: Vec<&str> =
        stat.rsplit_once(") ").context("stat has a name")?.1.split(' ').collect();
    let ticks = |at: usize| -> Result<f64> { Ok(fields.get(at).context("field")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / rustix::param::clock_ticks_per_second() as f64)
}

fn memory_mib(pid: u32, field: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with(field)).context("memory field")?;
    let kib: f64 = line.split_whitespace().nth(1).context("memory figure")?.parse()?;
    Ok(kib / 1024.0)
}

fn cluster_cpu(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| cpu_seconds(*pid)).sum()
}

fn run_once(job: &Job, server: &Server, settings: &Settings) -> Result<Run> {
    let Server { uri, pids } = server;
    let options = [
        "--name=j".to_owned(),
        "--ioengine=nbd".to_owned(),
        format!("--rw={}", job.rw),
        format!("--bs={}", job.block),
        format!("--iodepth={}", job.depth),
        format!("--size={}", settings.size),
        format!("--runtime={}", settings.secs),
        "--time_based".to_owned(),
        "--randrepeat=0".to_owned(),
        "--output-format=json".to_owned(),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let before = cluster_cpu(pids)?;
    let outcome = fio::run(uri, &options, Duration::from_secs(settings.secs * 3 + 120))?;
    let used = cluster_cpu(pids)? - before;
    let figures = if job.writes() { outcome.write } else { outcome.read };
    ensure!(figures.total > 0, "{} did nothing", job.name);
    let per_thousand = used * 1000.0 / figures.total as f64;
    Ok(Run { figures, cpu_per_thousand: (!pids.is_empty()).then_some(per_thousand) })
}

fn fill(uri: &str, size: &str) -> Result<()> {
    let started = Instant::now();
    let size = format!("--size={size}");
    let options = ["--name=fill", "--ioengine=nbd", "--rw=write", "--bs=1M", "--iodepth=16"];
    let options = [&options[..], &[size.as_str(), "--output-format=json"]].concat();
    let outcome = fio::run(uri, &options, Duration::from_secs(1800))?;
    let (rate, took) = (outcome.write.mib_s, started.elapsed());
    println!("filled the volume in {took:.1?} ({rate:.0} MiB/s)\n");
    Ok(())
}

fn print_row(job: &Job, runs: &[Run]) -> bool {
    let of = |get: &dyn Fn(&Run) -> f64| runs.iter().map(get).collect::<Vec<_>>();
    let all = of(&|r| job.figure(&r.figures));
    let (least, most) = all.iter().fold((f64::MAX, 0.0_f64), |(a, b), v| (a.min(*v), b.max(*v)));
    let value = median(all);
    let ratio = value / job.floor;
    println!(
        "| {:<25} | {:>8.0} {:<5} | {:>7.0}-{:<7.0} | {:>8.2} | {:>8.2} | {:>8.2} | {:>7.0} | {:>5.2} {} | {:>5.2} |",
        job.name,
        value,
        if job.is_small() { "IOPS" } else { "MiB/s" },
        least,
        most,
        median(of(&|r| r.figures.p50_us)) / 1e3,
        median(of(&|r| r.figures.p99_us)) / 1e3,
        median(of(&|r| r.figures.max_us)) / 1e3,
        job.floor,
        ratio,
        if ratio >= 1.0 { "ok   " } else { "below" },
        value / job.rival,
    );
    ratio >= 1.0
}

fn measure(server: &Server, jobs: &[&Job], settings: &Settings) -> Result<bool> {
    let Server { uri, pids } = server;
    fill(uri, &settings.size)?;
    println!(
        "| {:<25} | {:<14} | {:<15} | {:<8} | {:<8} | {:<8} | {:<7} | {:<11} | {:<5} |",
        "job",
        "median",
        "least-most",
        "p50 ms",
        "p99 ms",
        "max ms",
        "floor",
        "of floor",
        "of Vitastor"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut good = true;
    let mut cpu = Vec::new();
    for job in jobs {
        let runs = (0..settings.runs)
            .map(|_| run_once(job, server, settings))
            .collect::<Result<Vec<_>>>()?;
        good &= print_row(job, &runs);
        if job.writes() && job.is_small() && !pids.is_empty() {
            let used = runs.iter().filter_map(|r| r.cpu_per_thousand).collect();
            cpu.push((job.name, median(used)));
        }
    }
    println!();
    for (name, seconds) in cpu {
        println!("server CPU per 1000 writes, {name}: {seconds:.3} s");
    }
    Ok(good)
}

/// Runs jobs on two clusters in turn, one of another program, and prints what the first one reaches of the second
/// one's figures.
fn compare(other: PathBuf, jobs: &[&Job], settings: &Settings) -> Result<()> {
    let size: &'static str = settings.size.clone().leak();
    let spec = |test| Spec { geometry: Some((2, 1)), ..Spec::three(test, size) };
    let own = Cluster::up(spec("bench"))?;
    let other = Cluster::up(Spec { program: Some(other), ..spec("against") })?;
    let servers = [Server::of(&own), Server::of(&other)];
    for server in &servers {
        fill(&server.uri, &settings.size)?;
    }
    println!(
        "| {:<25} | {:>8} | {:>8} | {:>5} | {:>9} | {:>9} | {:>5} |",
        "job", "own", "other", "ratio", "own CPU", "other CPU", "ratio"
    );
    println!("|---|---|---|---|---|---|---|");
    for job in jobs {
        let mut runs = [Vec::new(), Vec::new()];
        for round in 0..settings.runs {
            // Each comes first every other time.
            for which in [round % 2, 1 - round % 2] {
                runs[which].push(run_once(job, &servers[which], settings)?);
            }
        }
        let figure =
            |which: usize| median(runs[which].iter().map(|run| job.figure(&run.figures)).collect());
        let cpu = |which: usize| {
            median(runs[which].iter().filter_map(|run| run.cpu_per_thousand).collect())
        };
        println!(
            "| {:<25} | {:>8.0} | {:>8.0} | {:>5.3} | {:>7.3} s | {:>7.3} s | {:>5.3} |",
            job.name,
            figure(0),
            figure(1),
            figure(0) / figure(1),
            cpu(0),
            cpu(1),
            cpu(0) / cpu(1)
        );
    }
    own.finish()?;
    other.finish()
}

/// Takes a flag and its value out of the words.
fn take(words: &mut Vec<String>, flag: &str) -> Result<Option<String>> {
    let Some(at) = words.iter().position(|word| word == flag) else { return Ok(None) };
    ensure!(at + 1 < words.len(), "{flag} needs a value");
    words.remove(at);
    Ok(Some(words.remove(at)))
}

fn main() -> Result<()> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let uri = take(&mut words, "--uri")?;
    let against = take(&mut words, "--against")?;
    let jobs: Vec<&Job> =
        JOBS.iter().filter(|j| words.iter().all(|w| j.name.contains(w.as_str()))).collect();
    let names: Vec<&str> = JOBS.iter().map(|j| j.name).collect();
    ensure!(!jobs.is_empty(), "no job has all of {words:?} in its name: {names:?}");
    let settings = Settings {
        secs: number("SECS", 10)?.max(1),
        runs: number("RUNS", 3)?.max(1) as usize,
        size: std::env::var("SIZE").unwrap_or_else(|_| "2G".to_owned()),
    };
    println!(
        "{} cores, volume {}, {} runs of {} s each, medians",
        std::thread::available_parallelism()?,
        settings.size,
        settings.runs,
        settings.secs
    );
    if let Some(other) = against {
        return compare(other.into(), &jobs, &settings);
    }
    let good = if let Some(uri) = uri {
        measure(&Server { uri, pids: Vec::new() }, &jobs, &settings)?
    } else {
        let size: &'static str = settings.size.clone().leak();
        let spec = Spec { geometry: Some((2, 1)), ..Spec::three("bench", size) };
        let cluster = Cluster::up(spec)?;
        let server = Server::of(&cluster);
        let good = measure(&server, &jobs, &settings)?;
        for (node, pid) in server.pids.iter().enumerate() {
            let (now, most) = (memory_mib(*pid, "VmRSS:")?, memory_mib(*pid, "VmHWM:")?);
            println!("node {node}: {now:.0} MiB resident, {most:.0} MiB at most");
        }
        cluster.finish()?;
        good
    };
    ensure!(good || number("STRICT", 0)? == 0, "a job is below its floor");
    Ok(())
}
