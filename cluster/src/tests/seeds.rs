//! Whole clusters on one thread and a paused clock, with faults of the network from a seed.

use super::clients::Client;
use super::cluster::{Cluster, HEALING, Setup};
use super::net::{MemoryNet, Weather};
use super::probe::Found;
use super::rng::Rng;
use crate::clock::simulated;
use smalti_storage::ids::NodeId;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// What is drawn for one seed.
#[derive(Clone, Debug)]
struct Swarm {
    setup: Setup,
    weather: Weather,
    clients: u64,
    rows: u64,
    pause: Duration,
    storm: Duration,
    /// The mean time between two faults.
    fault_every: Duration,
}

impl Swarm {
    fn draw(rng: &mut Rng) -> Self {
        let shapes = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)];
        let (data, parity) = shapes[rng.index(shapes.len())];
        let ms = Duration::from_millis;
        let setup = Setup {
            data,
            parity,
            // With all needed nobody is taken out, and everything waits for the network.
            min_insync: if rng.percent(30) { data + parity } else { data },
            volumes: rng.range(1, 2),
            record_len: 64,
            map_delay: ms(rng.range(1, 40)),
            map_lost: if rng.percent(30) { rng.range(1, 20) } else { 0 },
            suspect_after: ms(500),
        };
        // A small window makes senders wait for readers all the time.
        let windows = [300, 2_000, 20_000, 1 << 20];
        let weather = Weather {
            delay: Duration::from_micros(rng.range(50, 20_000)),
            window: windows[rng.index(windows.len())],
            refused: if rng.percent(40) { rng.range(1, 60) } else { 0 },
        };
        Self {
            setup,
            weather,
            clients: rng.range(1, 6),
            rows: rng.range(1, 8),
            pause: ms(rng.range(0, 40)),
            storm: ms(rng.range(500, 4000)),
            fault_every: ms(rng.range(20, 600)),
        }
    }
}

/// Runs one seed.
fn run(seed: u64) -> Result<(Found, u64), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let result = runtime.block_on(async {
        simulated::begin(Some(Instant::now()));
        world(seed).await
    });
    simulated::begin(None);
    result
}

async fn world(seed: u64) -> Result<(Found, u64), String> {
    let mut rng = Rng::new(seed);
    let swarm = Swarm::draw(&mut rng);
    let net = MemoryNet::new(rng.fork(), swarm.weather);
    let cluster = Cluster::over(&net, swarm.setup.clone(), &mut rng).await;
    let stop = CancellationToken::new();
    let mut clients = Vec::new();
    for coder in &cluster.coders {
        for no in 0..swarm.clients {
            let share = (no, swarm.clients);
            if no < swarm.rows * u64::from(swarm.setup.data) {
                let client = Client::new(&cluster, coder, rng.fork(), share, swarm.rows);
                clients.push(tokio::spawn(client.run(stop.clone(), swarm.pause)));
            }
        }
    }
    storm(&swarm, &net, &mut rng).await;
    net.heal();
    stop.cancel();
    let mut done = Vec::new();
    for client in clients {
        let ended = timeout(HEALING, client).await;
        let ended = ended.map_err(|_| format!("an operation does not end: {swarm:?}"))?;
        done.push(ended.map_err(|error| error.to_string())??);
    }
    cluster.whole().await.map_err(|why| format!("{why}: {swarm:?}"))?;
    let mut ops = 0;
    for client in &done {
        client.check(&cluster).await?;
        ops += client.ops;
    }
    let found = cluster.stop().await?;
    if net.open_count() > 0 {
        return Err(format!("{} sessions are left over", net.open_count()));
    }
    Ok((found, ops))
}

async fn storm(swarm: &Swarm, net: &MemoryNet, rng: &mut Rng) {
    let end = Instant::now() + swarm.storm;
    let every = u64::try_from(swarm.fault_every.as_micros()).unwrap_or(1);
    while Instant::now() < end {
        sleep(Duration::from_micros(rng.below(2 * every))).await;
        let (a, b) = two_nodes(swarm, rng);
        match rng.below(10) {
            0..5 => net.cut(a, b),
            kind => {
                // One direction or both swallow everything for a while, perhaps for so long
                // that the session times out.
                let both = kind >= 8;
                let lasts = Duration::from_millis(rng.range(1, 1500));
                let fatal = rng.percent(30);
                let net = net.clone();
                net.set_hole(a, b, true);
                if both {
                    net.set_hole(b, a, true);
                }
                tokio::spawn(async move {
                    sleep(lasts).await;
                    if fatal {
                        net.cut(a, b);
                    }
                    net.set_hole(a, b, false);
                    if both {
                        net.set_hole(b, a, false);
                    }
                });
            }
        }
    }
}

fn two_nodes(swarm: &Swarm, rng: &mut Rng) -> (NodeId, NodeId) {
    let nodes = swarm.setup.nodes();
    let a = rng.range(1, nodes);
    let b = 1 + (a + rng.below(nodes - 1)) % nodes;
    (NodeId(a), NodeId(b))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run_or_panic(seed: u64) -> (Found, u64) {
    run(seed).unwrap_or_else(|why| {
        let again = "cargo test --release -p smalti-cluster --lib sessions_keep -- --nocapture";
        panic!("seed {seed}: {why}\nagain: SMALTI_SEED={seed} {again}")
    })
}

/// `SMALTI_SEED` runs one seed, `SMALTI_SEEDS` and `SMALTI_FROM` others than the fixed batch.
#[test]
fn sessions_keep_the_contract_whatever_the_network_does() {
    if let Some(seed) = number("SMALTI_SEED") {
        eprintln!("{:?}", run_or_panic(seed));
        return;
    }
    let from = number("SMALTI_FROM").unwrap_or(1);
    let count = number("SMALTI_SEEDS").unwrap_or(300);
    let (mut sum, mut ops) = (Found::default(), 0);
    for seed in from..from + count {
        let (found, of_seed) = run_or_panic(seed);
        sum.sessions += found.sessions;
        sum.frames += found.frames;
        sum.replies += found.replies;
        sum.late += found.late;
        ops += of_seed;
    }
    eprintln!("{count} seeds from {from}: {ops} operations, {sum:?}");
    // A network without faults, or without load, would prove nothing.
    if count >= 100 {
        assert!(sum.late > 0 && sum.sessions as u64 > 5 * count && ops > 20 * count);
    }
}

#[test]
fn a_seed_is_everything() {
    for seed in 1..=20 {
        assert_eq!(run_or_panic(seed), run_or_panic(seed), "seed {seed}");
    }
}
