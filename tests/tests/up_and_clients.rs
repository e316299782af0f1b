//! `smalti up` and every client we know, through every node.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::clients;
use smalti_tests::cluster::smalti;
use smalti_tests::files;
use smalti_tests::fio;
use smalti_tests::nbd::{Client, Error, Target};
use smalti_tests::process::sh;
use smalti_tests::report::say;
use smalti_tests::{Cluster, Spec};

const GIB: u64 = 1 << 30;
const LIMIT: Duration = Duration::from_secs(240);

#[test]
fn up_and_clients() -> Result<()> {
    let test = "up_and_clients";
    let cluster = Cluster::up(Spec::three(test, "1G"))?;
    contract(&cluster)?;
    for node in 0..3 {
        exports(&cluster, node)?;
    }
    let uris: Vec<String> = (0..3).map(|n| cluster.uri(n)).collect();
    empty_map(&uris[0])?;
    for (node, uri) in uris.iter().enumerate() {
        let text = clients::python_checks(uri).with_context(|| format!("node {node}"))?;
        say(test, &format!("node {node}: libnbd: {}", text.trim()));
        qemu_patterns(uri, &uris[(node + 1) % 3])?;
    }
    say(test, "qemu-io patterns hold, each read back through another node too");
    images(&cluster, &uris)?;
    say(test, "images by qemu-img and nbdcopy are identical through every node");
    for (node, uri) in uris.iter().enumerate() {
        let offset = format!("{}M", 256 + node * 160);
        let done = fio::verified(uri, "128M", &offset, LIMIT)?;
        let said = format!("node {node}: fio verified {} writes", done.write.total);
        say(test, &said);
    }
    cluster.finish()
}

/// The documented files and fields are there and true.
fn contract(cluster: &Cluster) -> Result<()> {
    let file = cluster.file()?;
    let distinct = |values: Vec<String>| values.into_iter().collect::<BTreeSet<_>>().len() == 3;
    ensure!(distinct(file.nodes.iter().map(|n| n.name.clone()).collect()), "names");
    ensure!(distinct(file.nodes.iter().map(|n| n.id.to_string()).collect()), "ids");
    ensure!(distinct(file.nodes.iter().map(|n| n.pid.to_string()).collect()), "pids");
    ensure!(distinct(file.nodes.iter().map(|n| n.quic.clone()).collect()), "quic addresses");
    for (index, node) in file.nodes.iter().enumerate() {
        ensure!(cluster.is_running(index), "pid {} is not {:?}", node.pid, node.argv);
        ensure!(node.dir.starts_with(cluster.dir()), "{} is elsewhere", node.dir.display());
        ensure!(node.dir.is_dir(), "{} is no folder", node.dir.display());
        let host = node.nbd.tcp.rsplit_once(':').context("nbd.tcp is host:port")?.0;
        ensure!(["127.0.0.1", "localhost", "[::1]"].contains(&host), "listens on {host}");
    }
    let status = cluster.wait_ok()?;
    ensure!(status.nodes.len() == 3 && status.volumes.len() == 1, "{}", status.brief());
    let volume = &status.volumes[0];
    ensure!((volume.data, volume.parity) == (2, 1), "geometry {}+{}", volume.data, volume.parity);
    ensure!(status.custody.total >= status.custody.needed && status.custody.needed >= 2);
    ensure!(status.custody.reachable == status.custody.total, "{:?}", status.custody);
    cluster.leader()?;
    Ok(())
}

/// Both sockets of a node serve the volume by its name, and no other name.
fn exports(cluster: &Cluster, node: usize) -> Result<()> {
    for target in [cluster.target(node), cluster.tcp_target(node)] {
        let export = clients::nbdinfo(&target.uri())?;
        ensure!(export["export-name"] == "v", "{export}");
        ensure!(export["export-size"] == GIB, "{export}");
        for flag in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"] {
            ensure!(export[flag] == true, "{flag} is not true: {export}");
        }
        ensure!(export["is_read_only"] == false, "{export}");
        let listed = clients::exports(&target.uri())?;
        ensure!(listed == ["v"], "node {node} lists {listed:?}");
        let absent = Target { export: "absent".to_owned(), ..target };
        match Client::connect(&absent, LIMIT) {
            Err(Error::Refused(_)) => {}
            other => anyhow::bail!("an absent export: {other:?}"),
        }
    }
    Ok(())
}

fn empty_map(uri: &str) -> Result<()> {
    let map = clients::map(uri)?;
    ensure!(map.iter().map(|e| e.length).sum::<u64>() == GIB, "the map does not cover it: {map:?}");
    ensure!(map.iter().all(|e| e.kind & 2 != 0), "a new volume must show as zeros: {map:?}");
    Ok(())
}

fn qemu_patterns(uri: &str, other: &str) -> Result<()> {
    let (zeroed, trimmed) = ("write -z 200M 64k", "discard 204M 64k");
    clients::qemu_io(
        uri,
        &[
            "write -P 7 200M 8M",
            "write -P 8 -f 201M 4k",
            "write -P 9 202M 512",
            zeroed,
            trimmed,
            "flush",
        ],
    )?;
    let reads = [
        "read -P 0 200M 64k",
        "read -P 7 205000k 1k",
        "read -P 8 201M 4k",
        "read -P 9 202M 512",
        "read -P 7 207M 1M",
        "read -P 7 211812864 3584",
        "read -P 0 204M 64k",
    ];
    clients::qemu_io(uri, &reads)?;
    clients::qemu_io(other, &reads).context("through another node")?;
    Ok(())
}

/// Real disk images in and out, in through one node and out through the others.
fn images(cluster: &Cluster, uris: &[String]) -> Result<()> {
    let scratch = cluster.scratch()?;
    let (raw, qcow, back) = (scratch.join("i.raw"), scratch.join("i.qcow2"), scratch.join("b"));
    let text = |p: &std::path::Path| p.display().to_string();
    for (node, uri) in uris.iter().enumerate() {
        files::ext4_image(&raw, GIB, node as u64 * 1000)?;
        std::fs::remove_file(&qcow).ok();
        sh(&["qemu-img", "convert", "-O", "qcow2", &text(&raw), &text(&qcow)], LIMIT)?;
        clients::qemu_img_write(&qcow, "qcow2", uri)?;
        for other in uris {
            clients::qemu_img_compare(&qcow, "qcow2", other)
                .with_context(|| format!("written through {uri}, read through {other}"))?;
        }
    }
    for node in 0..3 {
        files::ext4_image(&raw, GIB, 77 + node as u64 * 1000)?;
        let four = ["nbdcopy", "--flush", "--connections=4", "--requests=32"];
        sh(&[&four[..], &[&text(&raw), &uris[node]]].concat(), LIMIT)?;
        sh(&["nbdcopy", &uris[(node + 1) % 3], &text(&back)], LIMIT)?;
        files::same(&raw, &back, None)
            .with_context(|| format!("nbdcopy in through node {node}"))?;
        std::fs::remove_file(&back)?;
        let api = cluster.nodes()[(node + 2) % 3].api.clone();
        let export = ["volume", "export", "v", &text(&back), "--api", &api];
        smalti(&export, LIMIT)?.ok()?;
        files::same(&raw, &back, None).with_context(|| format!("export in by node {node}"))?;
        ensure!(smalti(&export, LIMIT)?.code() == 1, "an export replaced a file");
        std::fs::remove_file(&back)?;
    }
    Ok(())
}
