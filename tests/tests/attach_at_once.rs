//! Clients that attach through every node at the same moment all get the volume.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::cluster::smalti;
use smalti_tests::nbd::{Client, Target};
use smalti_tests::pattern::{BLOCK, fill, seed};
use smalti_tests::report::say;
use smalti_tests::{Cluster, Spec};

const LIMIT: Duration = Duration::from_secs(30);
const NODES: usize = 3;
const ROUNDS: u64 = 30;
const DELAY_STEP: Duration = Duration::from_micros(250);

/// Each round with a new volume: its coordinator was chosen for it and has no client yet, so all
/// other nodes ask for the seat, while its own client comes.
#[test]
fn attach_at_once() -> Result<()> {
    let test = "attach_at_once";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let cluster = Cluster::up(Spec::three(test, "1G"))?;
    for round in 1..=ROUNDS {
        let name = format!("r{round}");
        let dir = cluster.dir().display().to_string();
        let create = ["volume", "create", &name, "--size", "64M", "--dir", &dir];
        smalti(&create, LIMIT)?.ok()?;
        let start = Barrier::new(NODES);
        let attach = |node: usize| -> Result<Client> {
            let target = Target::unix(&cluster.nodes()[node].nbd.unix, &name);
            start.wait();
            thread::sleep(delay(seed, node, round));
            let mut client = Client::connect(&target, LIMIT)?;
            client.write(offset(node), &contents(seed, node, round), 0)?;
            Ok(client)
        };
        let attach = &attach;
        let clients: Result<Vec<Client>> = thread::scope(|scope| {
            let clients: Vec<_> =
                (0..NODES).map(|node| scope.spawn(move || attach(node))).collect();
            let joined = clients.into_iter().map(|client| client.join().expect("no panic"));
            joined.enumerate().map(|(node, done)| done.context(format!("node {node}"))).collect()
        });
        let mut clients = clients.with_context(|| format!("round {round}"))?;
        for (node, client) in clients.iter_mut().enumerate() {
            // What another node's client wrote just now.
            let other = (node + 1) % NODES;
            let mut found = vec![0; BLOCK];
            client.read(offset(other), &mut found)?;
            ensure!(found == contents(seed, other, round), "round {round}: block {other} differs");
        }
    }
    say(test, &format!("{ROUNDS} times three clients at once"));
    cluster.finish()
}

/// Whether the seat moves before, while or after a client asks for it is decided within
/// milliseconds: each round tries other ones.
fn delay(seed: u64, node: usize, round: u64) -> Duration {
    let random = contents(seed, node, round);
    DELAY_STEP * u32::from(random[24] % 16)
}

fn offset(node: usize) -> u64 {
    (node * BLOCK) as u64
}

fn contents(seed: u64, node: usize, round: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    fill(seed, node as u64, round, &mut bytes);
    bytes
}
