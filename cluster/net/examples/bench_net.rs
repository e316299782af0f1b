//! Measures the transport between two processes on loopback.
//!
//! `bench_net [MIB] [DATAGRAM] [lan|cubic|bbr] [IN_FLIGHT] [BUFFER]`: how much to move in each
//! direction (default 1024 MiB), the largest datagram to try, the congestion control, how much may
//! be on its way at once, and the size of the socket's buffers, these in bytes.

#![allow(clippy::print_stdout, reason = "a tool that prints its figures")]

use bytes::Bytes;
use smalti_net::{
    AllowAll, BoxFuture, ClusterCa, Congestion, Endpoint, NetConfig, NodeCredentials, Peer,
    Service, Session, SessionHandler,
};
use smalti_storage::ids::{ClusterId, NodeId};
use std::{
    error::Error,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const CALL_ECHO: u8 = 1;
const SESSION_ECHO: u8 = 2;
const SESSION_SINK: u8 = 3;
const SESSION_SOURCE: u8 = 4;
const BLOCK: usize = 4096;
const FRAME: usize = 256 << 10;
const WAIT: Duration = Duration::from_secs(60);

struct Echo;

impl Service for Echo {
    fn call(&self, _: NodeId, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(async move { request })
    }
}

/// Echoes, swallows or produces frames; the hello of the last two is the number of frames.
struct Frames(u8);

impl SessionHandler for Frames {
    fn session(&self, _: NodeId, hello: Bytes, session: Session) {
        let kind = self.0;
        tokio::spawn(async move {
            let Session { tx, mut rx } = session;
            let count = hello.as_ref().try_into().map_or(0, u64::from_be_bytes);
            match kind {
                SESSION_ECHO => {
                    while let Ok(Some(frame)) = rx.recv().await {
                        if tx.send(frame).await.is_err() {
                            break;
                        }
                    }
                }
                SESSION_SINK => {
                    for _ in 0..count {
                        if !matches!(rx.recv().await, Ok(Some(_))) {
                            return;
                        }
                    }
                    let _ = tx.send(Bytes::from_static(b"done")).await;
                }
                _ => {
                    let frame = Bytes::from(vec![7; FRAME]);
                    for _ in 0..count {
                        if tx.send(frame.clone()).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
    }
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let [mode, folder, rest @ ..] = args.as_slice()
        && mode == "serve"
    {
        return runtime.block_on(serve(Path::new(folder), config(rest)?));
    }
    let mib: u64 = args.first().map_or(Ok(1024), |text| text.parse())?;
    runtime.block_on(measure(mib, args.get(1..).unwrap_or_default()))
}

fn config(args: &[String]) -> Outcome<NetConfig> {
    let mut config = NetConfig::default();
    if let Some(datagram) = args.first() {
        config.datagram_max = datagram.parse()?;
    }
    if let Some(in_flight) = args.get(2) {
        config.in_flight_max = in_flight.parse()?;
    }
    if let Some(buffer) = args.get(3) {
        config.socket_buffer = buffer.parse()?;
    }
    config.congestion = match args.get(1).map(String::as_str) {
        None | Some("lan") => Congestion::Lan,
        Some("cubic") => Congestion::Cubic,
        Some("bbr") => Congestion::Bbr,
        Some(other) => return Err(format!("unknown congestion control {other}").into()),
    };
    Ok(config)
}

fn bind(folder: &Path, config: NetConfig) -> Outcome<Endpoint> {
    let credentials = NodeCredentials::load(folder)?;
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(Endpoint::bind(addr, &credentials, Arc::new(AllowAll), config)?)
}

/// The other process: serves until its standard input ends.
async fn serve(folder: &Path, config: NetConfig) -> Outcome<()> {
    let endpoint = bind(folder, config)?;
    endpoint.serve(CALL_ECHO, Arc::new(Echo));
    for kind in [SESSION_ECHO, SESSION_SINK, SESSION_SOURCE] {
        endpoint.accept_sessions(kind, Arc::new(Frames(kind)));
    }
    println!("{}", endpoint.local_addr());
    std::io::stdout().flush()?;
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()))
        .await??;
    endpoint.close().await;
    Ok(())
}

async fn measure(mib: u64, settings: &[String]) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let ca = ClusterCa::generate(ClusterId::default())?;
    for (name, node) in [("a", 1), ("b", 2)] {
        std::fs::create_dir(folder.path().join(name))?;
        ca.issue(NodeId(node), name)?.save(&folder.path().join(name))?;
    }
    let mut server = Command::new(std::env::current_exe()?)
        .arg("serve")
        .arg(folder.path().join("b"))
        .args(settings)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(server.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let endpoint = bind(&folder.path().join("a"), config(settings)?)?;
    let peer = endpoint.peer(NodeId(2), line.trim().parse()?);
    let started = Instant::now();
    peer.connect(WAIT).await?;
    println!("connect               {:>10.2} ms", started.elapsed().as_secs_f64() * 1e3);

    for depth in [1, 32] {
        calls(&peer, depth).await?;
        echoes(&peer, depth).await?;
    }
    let frames = mib * (1 << 20) / FRAME as u64;
    let out = push(&peer, frames);
    report("push", frames, timed(out).await?);
    report("pull", frames, timed(pull(&peer, frames)).await?);
    let both = async { tokio::try_join!(push(&peer, frames), pull(&peer, frames)).map(drop) };
    let mut beside = Vec::new();
    let took = tokio::select! {
        took = timed(both) => took?,
        error = call_all_the_time(&peer, &mut beside) => return error,
    };
    report("both at once", frames * 2, took);
    beside.sort_unstable();
    let at = |part: usize| beside.get(beside.len() * part / 100).copied().unwrap_or_default();
    println!("calls beside it       median {:?}, 99 % within {:?}", at(50), at(99));
    println!("{:?}", peer.stats().ok_or("connection lost")?);

    endpoint.close().await;
    drop(server.stdin.take());
    server.wait()?;
    Ok(())
}

async fn timed(work: impl Future<Output = Outcome<()>>) -> Outcome<Duration> {
    let started = Instant::now();
    work.await?;
    Ok(started.elapsed())
}

fn report(what: &str, frames: u64, took: Duration) {
    let mib = (frames * FRAME as u64) as f64 / f64::from(1 << 20);
    println!("{what:<21} {:>10.0} MiB/s  ({mib:.0} MiB)", mib / took.as_secs_f64());
}

fn latency(what: &str, depth: usize, count: usize, took: Duration) {
    let per_second = count as f64 / took.as_secs_f64();
    let each = took.as_secs_f64() * 1e6 * depth as f64 / count as f64;
    println!("{what:<8} 4 KiB, depth {depth:<3}{per_second:>8.0} /s   {each:>7.1} us each");
}

async fn calls(peer: &Peer, depth: usize) -> Outcome<()> {
    let each = 20_000 / depth;
    let request = Bytes::from(vec![7; BLOCK]);
    let started = Instant::now();
    let workers: Vec<_> = (0..depth)
        .map(|_| {
            let (peer, request) = (peer.clone(), request.clone());
            tokio::spawn(async move {
                for _ in 0..each {
                    peer.call(CALL_ECHO, request.clone(), WAIT).await?;
                }
                Outcome::Ok(())
            })
        })
        .collect();
    for worker in workers {
        worker.await??;
    }
    latency("call", depth, each * depth, started.elapsed());
    Ok(())
}

/// Calls one by one until it is dropped or fails, and notes how long each took.
async fn call_all_the_time(peer: &Peer, took: &mut Vec<Duration>) -> Outcome<()> {
    let request = Bytes::from(vec![7; BLOCK]);
    loop {
        let started = Instant::now();
        peer.call(CALL_ECHO, request.clone(), WAIT).await?;
        took.push(started.elapsed());
    }
}

async fn echoes(peer: &Peer, depth: usize) -> Outcome<()> {
    const COUNT: usize = 40_000;
    let Session { tx, mut rx } = peer.open_session(SESSION_ECHO, Bytes::new(), WAIT).await?;
    let block = Bytes::from(vec![7; BLOCK]);
    let started = Instant::now();
    for _ in 0..depth {
        tx.send(block.clone()).await?;
    }
    for answered in 0..COUNT {
        rx.recv().await?.ok_or("session ended")?;
        if answered + depth < COUNT {
            tx.send(block.clone()).await?;
        }
    }
    latency("session", depth, COUNT, started.elapsed());
    Ok(())
}

async fn push(peer: &Peer, frames: u64) -> Outcome<()> {
    let hello = Bytes::copy_from_slice(&frames.to_be_bytes());
    let Session { tx, mut rx } = peer.open_session(SESSION_SINK, hello, WAIT).await?;
    let frame = Bytes::from(vec![7; FRAME]);
    for _ in 0..frames {
        tx.send(frame.clone()).await?;
    }
    rx.recv().await?.ok_or("session ended")?;
    Ok(())
}

async fn pull(peer: &Peer, frames: u64) -> Outcome<()> {
    let hello = Bytes::copy_from_slice(&frames.to_be_bytes());
    let Session { tx: _tx, mut rx } = peer.open_session(SESSION_SOURCE, hello, WAIT).await?;
    for _ in 0..frames {
        rx.recv().await?.ok_or("session ended")?;
    }
    Ok(())
}
