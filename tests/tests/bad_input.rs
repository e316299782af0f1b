//! Wrong input of every kind: a clear line, a code, and nothing lost.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::cluster::{COMMAND_LIMIT, smalti};
use smalti_tests::nbd::{Address, Client, Error, Stream, Target};
use smalti_tests::pattern::{next_random, seed};
use smalti_tests::process::{Output, until};
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);

/// One line `error: ...` with one of these words, and an exit code that is not 0.
fn refused(out: &Output, words: &[&str]) -> Result<()> {
    ensure!([1, 2].contains(&out.code()), "`{}` exited with {}", out.line, out.code());
    let text = out.stderr.trim();
    let lower = text.to_lowercase();
    ensure!(
        words.iter().any(|w| lower.contains(w)),
        "`{}` does not speak of {words:?}: {text}",
        out.line
    );
    ensure!(!text.contains("panicked"), "`{}` panicked: {text}", out.line);
    let first = text.lines().next().unwrap_or_default();
    ensure!(
        first.starts_with("smalti: ") || first.starts_with("error: "),
        "`{}` begins otherwise: {text}",
        out.line
    );
    // What the argument parser refuses comes with a hint to --help; all else is one line.
    let parser = text.contains("--help");
    ensure!(parser || text.lines().count() == 1, "`{}` says more than a line: {text}", out.line);
    ensure!(out.took < Duration::from_secs(30), "`{}` took {:?}", out.line, out.took);
    Ok(())
}

#[test]
fn bad_commands_are_refused_before_anything_is_made() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("smt").tempdir_in("/tmp")?;
    let dir = folder.path().join("c").display().to_string();
    let file = folder.path().join("plain").display().to_string();
    std::fs::write(&file, "a file, not a folder")?;
    let garbage = folder.path().join("garbage.toml").display().to_string();
    std::fs::write(&garbage, [0xff, 0xfe, 0, 1, 2, 3, b'=', b'\n'])?;
    let empty = folder.path().join("empty.toml").display().to_string();
    std::fs::write(&empty, "")?;

    let up = ["up", "--dir", &dir, "--detach", "--volume", "v"];
    let table: Vec<(Vec<&str>, &[&str])> = vec![
        (vec!["--nodes", "3", "--size", "1G", "--data", "3", "--parity", "2"], &["node", "store"]),
        (vec!["--nodes", "3", "--size", "1G", "--data", "0", "--parity", "1"], &["data"]),
        (vec!["--nodes", "3", "--size", "1G", "--data", "3", "--parity", "0"], &["parity"]),
        (vec!["--nodes", "3", "--size", "1G", "--data", "300", "--parity", "9"], &["data", "node"]),
        (vec!["--nodes", "3", "--size", "0"], &["size"]),
        (vec!["--nodes", "3", "--size", "1000"], &["size", "multiple"]),
        (vec!["--nodes", "3", "--size", "-5G"], &["size", "-5"]),
        (vec!["--nodes", "3", "--size", "lots"], &["size"]),
        (vec!["--nodes", "3", "--size", "99999999999999999999G"], &["size", "large"]),
        (vec!["--nodes", "0", "--size", "1G"], &["node"]),
        (vec!["--nodes", "1", "--size", "1G"], &["node"]),
        (vec!["--nodes", "2", "--size", "1G"], &["node"]),
    ];
    for (words, expected) in &table {
        let all: Vec<&str> = up.iter().chain(words).copied().collect();
        refused(&smalti(&all, LIMIT)?, expected)?;
        let cluster_json = folder.path().join("c/cluster.json");
        ensure!(!cluster_json.exists(), "{all:?} left a cluster behind");
    }
    let bad_name = ["up", "--nodes", "3", "--dir", &dir, "--detach", "--size", "1G", "--volume"];
    for name in ["", "a/b", "a b", "a\nb"] {
        let all: Vec<&str> = bad_name.iter().copied().chain([name]).collect();
        refused(&smalti(&all, LIMIT)?, &["name", "volume"])?;
    }
    let other: Vec<(Vec<&str>, &[&str])> = vec![
        (vec!["up", "--nodes", "3", "--dir", &file, "--detach"], &["director", "folder", "exist"]),
        (vec!["status", "--dir", &dir], &["cluster.json", "no cluster", "cluster"]),
        (vec!["down", "--dir", &dir], &["cluster.json", "no cluster", "cluster"]),
        (vec!["serve", "--config", "/absent/file.toml"], &["/absent/file.toml"]),
        (vec!["serve", "--config", &garbage], &["garbage.toml"]),
        (vec!["serve", "--config", &empty], &["empty.toml"]),
        (vec!["serve", "--config", folder.path().to_str().context("path")?], &["smt"]),
        (vec!["fly"], &["fly"]),
        (vec!["status", "--api", "127.0.0.1:1"], &["127.0.0.1:1", "connect"]),
    ];
    for (words, expected) in &other {
        refused(&smalti(words, LIMIT)?, expected)?;
    }
    Ok(())
}

fn delete(dir: &str, volume: &str, words: &[&str]) -> Result<Output> {
    let all = ["volume", "delete", volume, "--yes", "--dir", dir];
    smalti(&[&all[..], words].concat(), COMMAND_LIMIT)
}

/// Through every node a client keeps its volume from being deleted, but not by force.
fn deleted_once_nobody_is_attached(cluster: &Cluster, dir: &str) -> Result<()> {
    for (name, force) in [("one", false), ("two", true)] {
        cluster.command(&["volume", "create", name, "--size", "16M"])?;
        // One is its gateway's node, the others reach it from theirs.
        for node in 0..3 {
            let target = Target { export: name.to_owned(), ..cluster.target(node) };
            let mut client = Client::connect(&target, COMMAND_LIMIT)?;
            client.write(0, &[7; 512], 0)?;
            refused(&delete(dir, name, &[])?, &["attached"])?;
            client.write(512, &[7; 512], 0)?;
        }
        let target = Target { export: name.to_owned(), ..cluster.target(1) };
        let mut hanging = force.then(|| Client::connect(&target, COMMAND_LIMIT)).transpose()?;
        let words: &[&str] = if force { &["--force"] } else { &[] };
        delete(dir, name, words)?.ok()?;
        if let Some(client) = &mut hanging {
            ensure!(client.write(0, &[7; 512], 0).is_err(), "a deleted volume takes writes");
        }
    }
    Ok(())
}

#[test]
fn bad_input_to_a_working_cluster_loses_nothing() -> Result<()> {
    let test = "bad_input_to_a_working_cluster_loses_nothing";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let mut cluster = Cluster::up(Spec::three(test, "256M"))?;
    let load = Load::start(LoadConfig::new(cluster.targets(), 0, seed));
    load.progress(100, LIMIT)?;

    let dir = cluster.dir().display().to_string();
    let create = ["volume", "create", "--dir", &dir];
    let table: [(&[&str], &[&str]); 6] = [
        (&["v", "--size", "1G"], &["exist", "taken", "already"]),
        (&["w", "--size", "1G", "--data", "5", "--parity", "1"], &["node", "store"]),
        (&["w", "--size", "0"], &["size"]),
        (&["w", "--size", "513"], &["size", "multiple"]),
        (&["a/b", "--size", "1G"], &["name"]),
        (&["w", "--size", "1G", "--data", "0", "--parity", "3"], &["data"]),
    ];
    for (words, expected) in table {
        let all: Vec<&str> = create.iter().chain(words).copied().collect();
        refused(&smalti(&all, COMMAND_LIMIT)?, expected)?;
    }
    for words in [vec!["volume", "show", "absent"], vec!["volume", "delete", "absent", "--yes"]] {
        let all: Vec<&str> = words.into_iter().chain(["--dir", &dir]).collect();
        refused(&smalti(&all, COMMAND_LIMIT)?, &["absent"])?;
    }
    ensure!(cluster.file()?.volumes == ["v"], "a refused volume is listed");
    refused(&delete(&dir, "v", &[])?, &["attached"])?;
    load.progress(50, LIMIT)?;
    deleted_once_nobody_is_attached(&cluster, &dir)?;

    let mut random = seed;
    for round in 0..24 {
        for node in 0..3 {
            nbd_garbage(&cluster, node, round, &mut random)?;
            stray_datagrams(&cluster, node, &mut random)?;
        }
    }
    half_open_connections(&cluster, &load)?;
    load.progress(50, LIMIT)?;
    ensure!(load.reconnects() == 0, "a good client was cut off");
    ensure!(load.server_errors() == 0, "a good client got an error");
    for node in 0..3 {
        ensure!(cluster.is_running(node), "node {node} ended");
    }
    say(test, "garbage on every socket did not touch the working client");
    let mut loaded = load.finish()?;
    busy_port(&mut cluster, 2)?;
    broken_config(&mut cluster, 1)?;
    // So short an absence may go unnoticed: the health alone does not say that the node is back.
    let target = cluster.target(1);
    until("the node takes clients again", LIMIT, || {
        Ok(Client::connect(&target, COMMAND_LIMIT).ok().map(drop))
    })?;
    cluster.wait_ok()?;
    loaded.verify(&target)?;
    cluster.finish()
}

fn bytes(random: &mut u64, len: usize) -> Vec<u8> {
    (0..len.div_ceil(8)).flat_map(|_| next_random(random).to_le_bytes()).take(len).collect()
}

/// Garbage in every phase of the protocol. What the server says is its own choice, as long as it
/// neither hangs nor falls.
fn nbd_garbage(cluster: &Cluster, node: usize, round: usize, random: &mut u64) -> Result<()> {
    let address = if round.is_multiple_of(2) {
        cluster.target(node).address
    } else {
        cluster.tcp_target(node).address
    };
    let api = Address::Tcp(cluster.nodes()[node].api.trim_start_matches("http://").to_owned());
    let have = 0x4948_4156_454f_5054_u64.to_be_bytes();
    let option = |kind: u32, len: u32, data: &[u8]| {
        let head = [&have[..], &kind.to_be_bytes(), &len.to_be_bytes()].concat();
        [&3_u32.to_be_bytes()[..], &head, data].concat()
    };
    let len = 1 + next_random(random) as usize % 5000;
    let noise = bytes(random, len);
    let message = match round % 8 {
        0 => noise,
        1 => option(7, u32::MAX, &noise),
        2 => option(7, 12, &[0, 0, 0, 200, 0, 0, 0, 0, 0, 0, 0, 0]),
        3 => option(next_random(random) as u32, 40, &noise[..noise.len().min(40)]),
        4 => option(10, 8, &[0xff; 8]),
        5 => [0xff; 64].to_vec(),
        6 => {
            // Past the handshake: a request with a wrong magic, after a good export.
            let mut go = option(7, 7, &[0, 0, 0, 1, b'v', 0, 0]);
            go.extend(&noise);
            go
        }
        _ => {
            // A write of 4 GiB that never comes.
            let mut go = option(7, 7, &[0, 0, 0, 1, b'v', 0, 0]);
            go.extend(0x2560_9513_u32.to_be_bytes());
            go.extend([0, 0, 0, 1]);
            go.extend([0; 16]);
            go.extend(u32::MAX.to_be_bytes());
            go.extend(&noise);
            go
        }
    };
    for address in [address, api] {
        let mut stream = match Stream::connect(&address, Duration::from_millis(100)) {
            Ok(stream) => stream,
            // The API may listen on a Unix socket only.
            Err(_) if matches!(address, Address::Tcp(_)) => continue,
            Err(error) => return Err(error).with_context(|| format!("connect to {address:?}")),
        };
        // Refusing early shows as a failed write or read here: both are fine.
        if stream.write_all(&message).is_ok() {
            let mut reply = vec![0; 4096];
            while stream.read(&mut reply).is_ok_and(|n| n > 0) {}
        }
    }
    Ok(())
}

fn stray_datagrams(cluster: &Cluster, node: usize, random: &mut u64) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    for _ in 0..8 {
        let len = 1 + next_random(random) as usize % 1400;
        let mut datagram = bytes(random, len);
        // Long-header and short-header QUIC packets, and neither.
        datagram[0] = [0xc0, 0x40, datagram[0]][next_random(random) as usize % 3];
        socket.send_to(&datagram, &cluster.nodes()[node].quic)?;
    }
    Ok(())
}

/// Many clients that connect and say nothing leave room for the ones that do.
fn half_open_connections(cluster: &Cluster, load: &Load) -> Result<()> {
    let address = cluster.target(0).address;
    let silent: Vec<Stream> =
        (0..100).filter_map(|_| Stream::connect(&address, Duration::from_secs(1)).ok()).collect();
    ensure!(silent.len() >= 50, "only {} silent connections were taken", silent.len());
    load.progress(50, LIMIT).context("with silent connections open")?;
    drop(silent);
    until("a new client is served", LIMIT, || match Client::connect(&cluster.target(0), LIMIT) {
        Ok(_) => Ok(Some(())),
        Err(Error::Protocol(text)) => anyhow::bail!("protocol broken: {text}"),
        Err(_) => Ok(None),
    })
}

/// A node whose port is taken says so and ends; once the port is free it starts.
fn busy_port(cluster: &mut Cluster, node: usize) -> Result<()> {
    cluster.kill(node)?;
    let entry = cluster.nodes()[node].clone();
    // The kernel takes a moment to close what a killed process had open.
    let tcp = until("the NBD port is free", LIMIT, || Ok(TcpListener::bind(&entry.nbd.tcp).ok()))?;
    let argv: Vec<&str> = entry.argv[1..].iter().map(String::as_str).collect();
    let out = smalti(&argv, COMMAND_LIMIT).context("a node whose NBD port is taken")?;
    drop(tcp);
    ensure!(out.code() == 1, "busy NBD port: exit code {}", out.code());
    let port = entry.nbd.tcp.rsplit(':').next().context("a port")?;
    ensure!(out.stderr.contains(port), "busy NBD port is not named: {}", out.stderr);
    let udp = until("the QUIC port is free", LIMIT, || Ok(UdpSocket::bind(&entry.quic).ok()))?;
    let out = smalti(&argv, COMMAND_LIMIT).context("a node whose QUIC port is taken")?;
    drop(udp);
    ensure!(out.code() == 1, "busy QUIC port: exit code {}", out.code());
    let port = entry.quic.rsplit(':').next().context("a port")?;
    ensure!(out.stderr.contains(port), "busy QUIC port is not named: {}", out.stderr);
    cluster.start(node)
}

/// A truncated or garbled config file is refused by name; the right one starts the node.
fn broken_config(cluster: &mut Cluster, node: usize) -> Result<()> {
    let argv = cluster.nodes()[node].argv.clone();
    let at = argv.iter().position(|w| w == "--config").context("argv has --config")?;
    let path = argv.get(at + 1).context("--config has a value")?.clone();
    let right = std::fs::read(&path)?;
    cluster.kill(node)?;
    let words: Vec<&str> = argv[1..].iter().map(String::as_str).collect();
    let half = right[..right.len() / 2].to_vec();
    let noise = [&right[..right.len() / 3], &[0xff, 0, 0xfe], &right[right.len() / 3..]].concat();
    for wrong in [half, noise, Vec::new()] {
        std::fs::write(&path, &wrong)?;
        let out = smalti(&words, COMMAND_LIMIT).context("a node with a broken config")?;
        let told = cluster.status().context("the other nodes can not be asked");
        std::fs::write(&path, &right)?;
        told?;
        ensure!([1, 2].contains(&out.code()), "broken config: exit code {}", out.code());
        ensure!(out.stderr.contains(&path), "broken config is not named: {}", out.stderr);
    }
    cluster.start(node)
}
