//! Space comes back on a full disk: by trims, and by deleting a volume, with no restart.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use smalti_tests::cluster::{COMMAND_LIMIT, smalti};
use smalti_tests::mount::{self, SmallDisk};
use smalti_tests::nbd::{Client, Error, Target};
use smalti_tests::pattern::{BLOCK, PIECE, fill, piece, seed};
use smalti_tests::process::{POLL, until};
use smalti_tests::report::{say, skip};
use smalti_tests::{Cluster, Spec};

const TEST: &str = "space";
const LIMIT: Duration = Duration::from_secs(60);
/// Space that clients gave back can be written again within this.
const BACK_LIMIT: Duration = Duration::from_secs(40);
/// So is the space of a deleted volume.
const FREE_LIMIT: Duration = Duration::from_secs(60);
/// MiB of the disk of all three stores.
const DISK: u32 = 1500;
/// MiB of a volume: more than fit on the disk.
const PIECES: u64 = 2048;
/// A disk is full when nothing was accepted for so long: longer than a store takes to look for garbage.
const FULL_FOR: Duration = Duration::from_secs(3);
/// After so many MiB the level is looked at.
const LOOK_EVERY: u64 = 8;
/// Pieces written again once there is room.
const AGAIN: u64 = 60;
/// How much of what a deleted volume took must be free in the end.
const BACK_PERCENT: u64 = 85;
/// ENOSPC, as NBD numbers it.
const NO_SPACE: u32 = 28;

#[test]
fn space_comes_back() -> Result<()> {
    if let Some(reason) = mount::missing() {
        return skip(TEST, &reason);
    }
    let seed = seed();
    say(TEST, &format!("seed {seed}"));
    let disk = SmallDisk::mount(DISK)?;
    let cluster = Cluster::up_in(disk.path(), Spec::three(TEST, "2G"))?;
    let mut client = Client::connect(&cluster.target(0), LIMIT)?;

    let (written, warned) = fill_up(&cluster, &disk, &mut client, seed)?;
    warned.context("full without a warning that it is nearly full")?;
    let kept = trim_half(&cluster, &disk, &mut client, seed, written)?;
    delete_another(&cluster, &disk, &mut client, seed, written)?;
    for (node, from) in [(1, 0), (2, written / 2)] {
        let mut client = Client::connect(&cluster.target(node), LIMIT)?;
        verify(&mut client, seed, &kept[usize::try_from(from)?..])
            .with_context(|| format!("through node {node}"))?;
    }
    say(TEST, "all that was kept, written anew and trimmed reads right");
    drop(client);
    cluster.finish()
}

/// What a piece of the volume is to be: by the first or second write, or zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    at: u64,
    write: Option<u64>,
}

/// Trims every other MiB, so that no file of a store is dead as a whole; waits until there is room,
/// and writes a part of them anew.
fn trim_half(
    cluster: &Cluster,
    disk: &SmallDisk,
    client: &mut Client,
    seed: u64,
    written: u64,
) -> Result<Vec<Piece>> {
    let full = used(disk)?;
    let begun = Instant::now();
    let trimmed: Vec<u64> = (0..written).step_by(2).collect();
    for at in &trimmed {
        client.trim(at * PIECE as u64, PIECE as u32).with_context(|| format!("trim MiB {at}"))?;
    }
    // Not a row as a whole: there is no room for new parity, and no error either.
    client.trim(PIECE as u64 + 512, 3 * BLOCK as u32).context("trim parts of rows")?;
    let accepted = writable(client, 0, begun)?;
    wait_ok(cluster)?;
    let (took, freed) = (begun.elapsed(), full.saturating_sub(used(disk)?));
    say(
        TEST,
        &format!(
            "{} MiB trimmed while full: writes after {:.1} s; ok after {:.1} s, with {freed} MiB \
             freed, {:.2} per MiB trimmed",
            trimmed.len(),
            accepted.as_secs_f64(),
            took.as_secs_f64(),
            freed as f64 / trimmed.len() as f64
        ),
    );
    for at in trimmed.iter().take(usize::try_from(AGAIN)?) {
        client.write(at * PIECE as u64, &second(seed, *at), 0).context("write anew")?;
    }
    // The one with parts of rows trimmed is whole again; the rest of it was never touched.
    client.write(PIECE as u64, &piece(seed, 1), 0).context("write what was trimmed in parts")?;
    let kept: Vec<Piece> = (0..written)
        .map(|at| {
            let write = match at % 2 {
                1 => Some(1),
                _ if at / 2 < AGAIN => Some(2),
                _ => None,
            };
            Piece { at, write }
        })
        .collect();
    verify(client, seed, &kept)?;
    Ok(kept)
}

/// Fills the disk by another volume and deletes that.
fn delete_another(
    cluster: &Cluster,
    disk: &SmallDisk,
    client: &mut Client,
    seed: u64,
    written: u64,
) -> Result<()> {
    let before = used(disk)?;
    let dir = cluster.dir().display().to_string();
    smalti(&["volume", "create", "w", "--size", "2G", "--dir", &dir], COMMAND_LIMIT)?.ok()?;
    let target = Target { export: "w".to_owned(), ..cluster.target(1) };
    let mut other = Client::connect(&target, LIMIT)?;
    // There is little room from the first: it may be full before anybody can look.
    fill_up(cluster, disk, &mut other, seed)?;
    // The first volume's clients are told so as well.
    until("the first volume is refused too", LIMIT, || match write_new(client, written) {
        Err(Error::Server(NO_SPACE)) => Ok(Some(())),
        Ok(()) => Ok(None),
        Err(error) => bail!("refused with {error}, not ENOSPC"),
    })?;
    drop(other);
    let taken = used(disk)?.saturating_sub(before);
    let begun = Instant::now();
    smalti(&["volume", "delete", "w", "--yes", "--dir", &dir], COMMAND_LIMIT)?.ok()?;
    let accepted = writable(client, written, begun)?;
    let took = comes_back(disk, before + taken, taken, begun)?;
    wait_ok(cluster)?;
    let back = (before + taken).saturating_sub(used(disk)?);
    say(
        TEST,
        &format!(
            "a volume that took {taken} MiB deleted while full: writes after {:.1} s, {back} MiB \
             freed within {:.1} s",
            accepted.as_secs_f64(),
            took.as_secs_f64()
        ),
    );
    Ok(())
}

/// Writes piece after piece until one is refused for lack of space for good: logs that are let go of
/// may make room for some more. The stores say then that they are full. Answers how many pieces were taken,
/// and at which one the stores were seen to be nearly full.
fn fill_up(
    cluster: &Cluster,
    disk: &SmallDisk,
    client: &mut Client,
    seed: u64,
) -> Result<(u64, Option<u64>)> {
    let mut warned = None;
    let mut refused: Option<Instant> = None;
    let mut at = 0;
    while at < PIECES {
        match client.write(at * PIECE as u64, &piece(seed, at), 0) {
            Ok(()) => (at, refused) = (at + 1, None),
            Err(Error::Server(NO_SPACE)) => {
                if refused.get_or_insert_with(Instant::now).elapsed() < FULL_FOR {
                    sleep(POLL);
                    continue;
                }
                let status = cluster.wait_status("it is full", LIMIT, |s| s.health == "stalled")?;
                let found = levels(cluster)?;
                ensure!(
                    found.split(' ').any(|level| level == "full"),
                    "{found}, {}",
                    status.brief()
                );
                let used = used(disk)?;
                let nearly = warned.map_or("not seen".to_owned(), |at| format!("at {at} MiB"));
                say(TEST, &format!("nearly full {nearly}, ENOSPC at {at}: {used} MiB used"));
                return Ok((at, warned));
            }
            Err(error) => bail!("refused with {error}, not ENOSPC"),
        }
        if at.is_multiple_of(LOOK_EVERY)
            && warned.is_none()
            && levels(cluster)?.contains("near_full")
        {
            let why = cluster.command(&["why"])?;
            ensure!(why.contains("nearly full"), "`why` does not tell: {why}");
            warned = Some(at);
        }
    }
    bail!("the disk does not get full");
}

/// Waits until a block is accepted at the place of a piece; it is one of zeroes in the end.
fn writable(client: &mut Client, at: u64, begun: Instant) -> Result<Duration> {
    until("there is room again", BACK_LIMIT, || match write_new(client, at) {
        Ok(()) => Ok(Some(())),
        Err(Error::Server(NO_SPACE)) => Ok(None),
        Err(error) => bail!("refused with {error}, not ENOSPC"),
    })?;
    let took = begun.elapsed();
    client.trim(at * PIECE as u64, PIECE as u32).context("trim what was written to see")?;
    Ok(took)
}

fn write_new(client: &mut Client, at: u64) -> Result<(), Error> {
    client.write(at * PIECE as u64, &[0x5a; 2 * BLOCK], 0)
}

/// Waits until enough of so many MiB is free again; returns how long that took.
fn comes_back(disk: &SmallDisk, full: u64, given: u64, begun: Instant) -> Result<Duration> {
    let mut left = full;
    let back = until("the space is free", FREE_LIMIT, || {
        left = used(disk)?;
        Ok((full.saturating_sub(left) * 100 >= given * BACK_PERCENT).then_some(()))
    });
    back.with_context(|| format!("{full} MiB when full, {given} given back, {left} left"))?;
    Ok(begun.elapsed())
}

/// MiB used on the disk.
fn used(disk: &SmallDisk) -> Result<u64> {
    let found = rustix::fs::statvfs(disk.path())?;
    Ok(((found.f_blocks - found.f_bfree) * found.f_frsize) >> 20)
}

/// All stores have room, and the cluster says that all is well.
fn wait_ok(cluster: &Cluster) -> Result<()> {
    let mut last = String::new();
    let seen = until("all stores have room", LIMIT, || {
        last = levels(cluster)?;
        Ok(last.split(' ').all(|level| level == "ok").then_some(()))
    });
    seen.with_context(|| last.clone())?;
    cluster.wait_ok().map(drop)
}

/// How full each store says that its disk is, in words.
fn levels(cluster: &Cluster) -> Result<String> {
    let nodes = cluster.facts(&["node", "list"])?;
    let stores = nodes.as_array().context("a list of nodes")?.iter();
    let states: Option<Vec<&str>> =
        stores.map(|node| node["stores"][0]["disk"]["state"].as_str()).collect();
    Ok(states.with_context(|| format!("a store without a disk: {nodes}"))?.join(" "))
}

/// A piece as the second write makes it.
fn second(seed: u64, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; PIECE];
    let first = at * (PIECE / BLOCK) as u64;
    for (block, buf) in (first..).zip(bytes.chunks_mut(BLOCK)) {
        fill(seed, block, 2, buf);
    }
    bytes
}

fn verify(client: &mut Client, seed: u64, pieces: &[Piece]) -> Result<()> {
    let mut buf = vec![0; PIECE];
    for Piece { at, write } in pieces {
        client.read(at * PIECE as u64, &mut buf).with_context(|| format!("MiB {at}"))?;
        let right = match write {
            None => buf.iter().all(|byte| *byte == 0),
            Some(1) => buf == piece(seed, *at),
            Some(_) => buf == second(seed, *at),
        };
        ensure!(right, "MiB {at} is not as by {write:?}");
    }
    Ok(())
}
