//! Machines join a cluster by tokens while clients go on, take their share, and leave again.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use smalti_tests::cluster::{program, smalti};
use smalti_tests::files::search;
use smalti_tests::pattern::seed;
use smalti_tests::ports::free_address;
use smalti_tests::process::{Output, run, until};
use smalti_tests::report::say;
use smalti_tests::{Cluster, Load, LoadConfig, Spec};

const LIMIT: Duration = Duration::from_secs(120);

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

fn token(cluster: &Cluster, words: &[&str]) -> Result<String> {
    let words: Vec<&str> = ["token", "create"].iter().chain(words).copied().collect();
    let printed = cluster.command(&words)?;
    let mut lines = printed.lines();
    let token = lines.next().context("a token")?.to_owned();
    ensure!(lines.next().is_none() && token.starts_with("smalti1"), "{printed}");
    Ok(token)
}

fn names(cluster: &Cluster) -> Result<Vec<String>> {
    let nodes = cluster.facts(&["node", "list"])?;
    let nodes = nodes.as_array().context("nodes")?;
    nodes.iter().map(|node| Ok(node["name"].as_str().context("name")?.to_owned())).collect()
}

fn join(token: &str, dir: &Path, listen: &str, more: &[&str]) -> Result<Output> {
    let words = ["join", token, "--dir", text(dir)?, "--listen", listen];
    let words: Vec<&str> = words.iter().chain(more).copied().collect();
    smalti(&words, LIMIT)
}

/// The token goes to stdin, as an operator should have it.
fn join_from_stdin(token: &str, dir: &Path, listen: &str) -> Result<Output> {
    let script = r#"printf '%s\n' "$1" | "$2" join - --dir "$3" --listen "$4""#;
    let program = program()?;
    let words = [token, text(&program)?, text(dir)?, listen];
    run(Command::new("sh").args(["-c", script, "sh"]).args(words), LIMIT)
}

/// The secret of a token as bytes, and as it is spelled: after version, pin and id.
fn secret(token: &str) -> Result<Vec<Vec<u8>>> {
    let body = token.strip_prefix("smalti1").context("a token")?;
    let digit = |letter: u8| match letter {
        b'a'..=b'z' => Ok(letter - b'a'),
        b'2'..=b'7' => Ok(letter - b'2' + 26),
        other => anyhow::bail!("{other} is no letter of a token"),
    };
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for letter in body.bytes() {
        bits = bits << 5 | u32::from(digit(letter)?);
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    let bytes = bytes.get(49..81).context("a whole token")?.to_vec();
    Ok(vec![bytes, body.as_bytes()[79..129].to_vec()])
}

/// Whether a command failed with one line that has these words, and left nothing in a folder.
fn refused(what: &str, output: &Output, words: &str, dir: &Path) -> Result<()> {
    ensure!(!output.status.success(), "{what}: not refused: {}", output.stdout);
    let error = output.stderr.trim_end();
    ensure!(
        error.lines().count() == 1 && error.contains(words),
        "{what}: not one line with {words:?}: {error}"
    );
    ensure!(!dir.exists(), "{what}: {} was left behind", dir.display());
    Ok(())
}

/// Joins and starts a node, and waits until the others have it.
fn add(cluster: &mut Cluster, home: &Path, name: &str) -> Result<usize> {
    let (token, dir) = (token(cluster, &["--name", name])?, home.join(name));
    let output = join_from_stdin(&token, &dir, &free_address()?)?.ok()?;
    let start = format!("smalti serve --config {}", dir.join("node.toml").display());
    ensure!(output.contains(&start) && output.contains(name), "{output}");
    let node = cluster.adopt(&dir)?;
    cluster.start(node)?;
    cluster.wait_status("the new node is up", LIMIT, |s| s.node_state(name) == "up")?;
    Ok(node)
}

#[test]
fn nodes_join_take_their_share_and_leave_while_clients_go_on() -> Result<()> {
    let test = "nodes_join_take_their_share_and_leave_while_clients_go_on";
    let seed = seed();
    say(test, &format!("seed {seed}"));
    let geometry = Some((2, 1));
    let mut cluster = Cluster::up(Spec { geometry, ..Spec::three(test, "128M") })?;
    let home = cluster.scratch()?;
    let mut load = Load::start(LoadConfig::new(cluster.targets(), 0, seed));
    load.progress(100, LIMIT)?;
    let had = cluster.slots()?;

    let began = Instant::now();
    let added: Vec<&str> = vec!["x4", "x5", "x6"];
    for name in &added {
        add(&mut cluster, &home, name)?;
        load.progress(20, LIMIT).with_context(|| format!("{name} has joined"))?;
        say(test, &format!("{name} is up {:?} after the first token", began.elapsed()));
    }
    until("all have their share", LIMIT, || cluster.at_rest())?;
    let has = cluster.slots()?;
    let pause = load.window();
    say(
        test,
        &format!("slots before {had:?}, after {has:?}, {:?}: {}", began.elapsed(), pause.brief()),
    );
    ensure!(has.len() == 6 && has.iter().all(|slots| slots.abs_diff(has[0]) <= 2), "{has:?}");
    let nodes = cluster.facts(&["node", "list"])?;
    let voters = nodes.as_array().context("nodes")?.iter().filter(|node| node["voter"] == true);
    ensure!(voters.count() == 5, "{nodes}");
    // Clients are served by a node that joined, with no founder in between.
    let model = load.finish();
    let mut loaded = model?;
    ensure!(loaded.server_errors == 0, "{} requests failed", loaded.server_errors);
    loaded.verify(&cluster.target(5)).context("through a node that joined")?;

    // All die at once. Of the five that vote only a founder and nodes that joined come back, who know of
    // each other from the map, and agree.
    let voter = |index: usize| nodes[index]["voter"] == true;
    let joined_voters = (3..6).filter(|index| voter(*index)).count();
    ensure!(voter(0) && joined_voters == 2, "{nodes}");
    cluster.kill_together(&[0, 1, 2, 3, 4, 5])?;
    for node in [0, 3, 4, 5] {
        cluster.start(node)?;
    }
    cluster.wait_status("four of six agree", LIMIT, |s| {
        let up = |name: &str| s.node_state(name) == "up";
        !s.raft.leader.is_null() && ["n1", "x4", "x5", "x6"].into_iter().all(up)
    })?;
    cluster.start(1)?;
    cluster.start(2)?;
    cluster.wait_ok()?;
    loaded.verify(&cluster.target(4)).context("after all died")?;

    let mut load =
        Load::start(LoadConfig { base: 4096, ..LoadConfig::new(cluster.targets(), 5, seed) });
    load.progress(50, LIMIT)?;
    load.prefer(0);
    let mut gone = Vec::new();
    for (index, name) in [(5, "x6"), (4, "x5"), (3, "x4")] {
        let said = cluster.command(&["node", "drain", name])?;
        ensure!(said.contains("can be stopped"), "{said}");
        cluster.stop(index)?;
        load.progress(20, LIMIT).context("an empty node is stopped")?;
        until("it is known to be stopped", LIMIT, || {
            Ok((cluster.status()?.node_state(name) == "down").then_some(()))
        })?;
        cluster.command(&["node", "remove", name])?;
        gone.push(index);
    }
    until("three have all", LIMIT, || cluster.at_rest())?;
    ensure!(names(&cluster)? == ["n1", "n2", "n3"]);
    until("the three vote, and nobody else", LIMIT, || {
        let nodes = cluster.facts(&["node", "list"])?;
        let nodes = nodes.as_array().context("nodes")?;
        Ok((nodes.len() == 3 && nodes.iter().all(|node| node["voter"] == true)).then_some(()))
    })?;
    load.progress(50, LIMIT)?;
    say(test, &format!("three are left: {}", load.window().brief()));

    // Whoever was removed has a certificate and all it had, and is nobody.
    let logs: Vec<PathBuf> =
        cluster.nodes()[..3].iter().map(|node| node.dir.join("node.log")).collect();
    let turned_away = |founder: usize| -> Result<usize> {
        let log = std::fs::read_to_string(&logs[founder])?;
        let refusals = log.lines().filter(|line| line.contains("connection refused"));
        Ok(refusals.filter(|line| line.contains("NotAllowed { node: NodeId(6) }")).count())
    };
    // Whoever had not heard of it yet may have turned it away when it was new.
    let before = (0..3).map(turned_away).collect::<Result<Vec<_>>>()?;
    cluster.start(5)?;
    for (founder, before) in before.into_iter().enumerate() {
        until("it is turned away again and again", LIMIT, || {
            Ok((turned_away(founder)? > before + 3).then_some(()))
        })?;
    }
    load.progress(50, LIMIT).context("a removed node is back")?;
    let status = cluster.wait_ok()?;
    ensure!(status.nodes.len() == 3 && status.health == "ok", "{}", status.brief());
    cluster.stop(5)?;
    loaded.verify(&cluster.target(1)).context("what was written while three joined")?;
    let mut loaded = load.finish()?;
    ensure!(loaded.server_errors == 0, "{} requests failed", loaded.server_errors);
    loaded.verify(&cluster.target(2)).context("what was written while three left")?;
    cluster.finish()
}

#[test]
fn what_may_not_join_changes_nothing() -> Result<()> {
    let test = "what_may_not_join_changes_nothing";
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    let home = cluster.scratch()?;
    let dir = home.join("d");
    let listen = free_address()?;
    let try_it = |token: &str, more: &[&str]| join(token, &dir, &listen, more);

    let good = token(&cluster, &[])?;
    let short = &good[..good.len() - 8];
    refused("cut short", &try_it(short, &[])?, "cut short or mistyped", &dir)?;
    let at = good.len() / 2;
    let other = if &good[at..=at] == "a" { "b" } else { "a" };
    let flipped = format!("{}{other}{}", &good[..at], &good[at + 1..]);
    refused("one letter is wrong", &try_it(&flipped, &[])?, "cut short or mistyped", &dir)?;
    refused("no token", &try_it("hello", &[])?, "no join token", &dir)?;
    let founder = cluster.nodes()[1].quic.clone();
    let taken = join(&good, &dir, &founder, &[])?;
    refused("the address of another", &taken, "listen at", &dir)?;
    let api = cluster.nodes()[1].api.clone();
    refused("its API", &try_it(&good, &["--api", &api])?, "bind control API", &dir)?;
    refused("a name in use", &try_it(&good, &["--name", "n2"])?, "a node n2 already", &dir)?;
    refused("no name", &try_it(&good, &["--name", "a b"])?, "is not a name", &dir)?;
    refused("no loopback", &try_it(&good, &["--nbd", "192.0.2.1:9"])?, "loopback", &dir)?;
    let any = join(&good, &dir, "0.0.0.0:9000", &[])?;
    refused("any address", &any, "others have to reach it", &dir)?;
    // An address that the map has and this machine could listen at: that of a node that is down.
    cluster.stop(1)?;
    let taken = join(&good, &dir, &founder, &[])?;
    refused("the address of a node that is down", &taken, "is the address of n2", &dir)?;
    cluster.start(1)?;
    for (what, words, reason) in [
        ("a name in use", &["--name", "n1"][..], "a node n1 already"),
        ("no time", &["--ttl", "8d"][..], "a token lasts"),
    ] {
        let error = token(&cluster, words).err().context(what)?;
        ensure!(format!("{error:#}").contains(reason), "{error:#}");
    }
    let second = format!("unix:{}", cluster.nodes()[1].dir.join("api.sock").display());
    cluster.wait_ok()?;
    let output = smalti(&["token", "create", "--api", &second], LIMIT)?;
    ensure!(output.stderr.contains("does not have the authority's key"), "{}", output.stderr);

    // A token of a cluster that is gone.
    let stranger = Cluster::up(Spec::three("what_may_not_join_changes_nothing_2", "64M"))?;
    let foreign = token(&stranger, &[])?;
    let its_address = stranger.nodes()[0].quic.clone();
    stranger.finish()?;
    refused("nobody is there", &try_it(&foreign, &[])?, "join at", &dir)?;

    // Two at once with one token: one is in.
    let start = |dir: &Path, listen: &str| {
        Command::new(program()?)
            .args(["join", &good, "--dir", text(dir)?, "--listen", listen])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start a joiner")
    };
    let both: Vec<(PathBuf, String)> =
        [("a", free_address()?), ("b", free_address()?)].map(|(d, l)| (home.join(d), l)).into();
    let children: Result<Vec<_>> = both.iter().map(|(dir, listen)| start(dir, listen)).collect();
    let mut inside = 0;
    for (child, (dir, _)) in children?.iter_mut().zip(&both) {
        let success = child.wait()?.success();
        ensure!(dir.exists() == success, "{} is not as it should be", dir.display());
        inside += usize::from(success);
    }
    ensure!(inside == 1, "{inside} of two joined with one token");
    refused("used", &try_it(&good, &[])?, "was used already, by n4", &dir)?;
    ensure!(names(&cluster)? == ["n1", "n2", "n3", "n4"]);
    // It has never started; taken back, the token stays used.
    cluster.command(&["node", "remove", "n4"])?;
    refused("used by one that is gone", &try_it(&good, &[])?, "was used already", &dir)?;

    let named = token(&cluster, &["--name", "y"])?;
    refused("another name", &try_it(&named, &["--name", "z"])?, "a node named y", &dir)?;
    let brief = cluster.facts(&["token", "create", "--ttl", "1s"])?;
    let ends = UNIX_EPOCH + Duration::from_secs(brief["expires"].as_u64().context("expires")?);
    let brief = brief["token"].as_str().context("token")?.to_owned();
    until("the token's time is over", LIMIT, || Ok((SystemTime::now() > ends).then_some(())))?;
    refused("expired", &try_it(&brief, &[])?, "has expired", &dir)?;

    // Neither the log nor the map of any node has what a token is made of.
    let needles = [&good, &named].map(|token| secret(token));
    let needles: Vec<Vec<u8>> = needles.into_iter().collect::<Result<Vec<_>>>()?.concat();
    let searched = search(&[cluster.dir()], &needles)?;
    ensure!(searched.hits.is_empty(), "{:?} have a secret", searched.hits);
    // The search finds what is there.
    let planted = home.join("planted");
    std::fs::create_dir(&planted)?;
    for (name, needle) in ["a", "b", "c", "d"].iter().zip(&needles) {
        std::fs::write(planted.join(name), needle)?;
    }
    ensure!(search(&[planted], &needles)?.hits.len() == 4, "the search is blind");
    ensure!(names(&cluster)? == ["n1", "n2", "n3"]);
    cluster.wait_ok()?;

    // At the address of the cluster that is gone this one answers now.
    let own_address = cluster.nodes()[0].quic.clone();
    cluster.down()?;
    for node in 0..3 {
        let config = cluster.config(node)?;
        let text = std::fs::read_to_string(&config)?.replace(&own_address, &its_address);
        std::fs::write(&config, text)?;
    }
    cluster.run_up()?;
    ensure!(cluster.nodes()[0].quic == its_address);
    refused("another cluster", &try_it(&foreign, &[])?, "another authority", &dir)?;
    ensure!(names(&cluster)? == ["n1", "n2", "n3"]);
    cluster.wait_ok()?;
    cluster.finish()
}

/// Life of a certificate in the test of renewal: of the least there is.
const LIFE: Duration = Duration::from_secs(30);

fn sign_for_a_moment(cluster: &mut Cluster) -> Result<()> {
    let config = cluster.config(0)?;
    let text = std::fs::read_to_string(&config)?;
    let changed = text.replacen("[addresses]", "certificate_seconds = 30\n\n[addresses]", 1);
    ensure!(changed != text, "{text}");
    cluster.stop(0)?;
    std::fs::write(&config, changed)?;
    cluster.start(0)?;
    cluster.wait_ok()?;
    Ok(())
}

#[test]
fn a_node_whose_certificate_expired_comes_back_when_somebody_signs() -> Result<()> {
    let test = "a_node_whose_certificate_expired_comes_back_when_somebody_signs";
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    let home = cluster.scratch()?;
    sign_for_a_moment(&mut cluster)?;
    let joined = add(&mut cluster, &home, "x4")?;
    let (key, away) = (cluster.dir().join("ca/ca.key"), home.join("ca.key"));
    std::fs::rename(&key, &away)?;
    let api = cluster.nodes()[joined].api.clone();
    let why = |words: &str| {
        until(words, LIMIT, || {
            let told = smalti(&["why", "--api", &api], LIMIT)?;
            Ok(told.stdout.contains(words).then_some(told.stdout))
        })
    };
    why("was not renewed")?;
    let told = why("has expired")?;
    ensure!(told.contains("`authority`") && told.contains("never empty"), "{told}");
    // Connections that there are go on; from now on it makes none.
    cluster.kill(joined)?;
    cluster.wait_status("it is down", LIMIT, |s| s.node_state("x4") == "down")?;
    cluster.start(joined)?;
    why("has expired")?;
    ensure!(cluster.status()?.node_state("x4") == "down");

    std::fs::rename(&away, &key)?;
    let back = Instant::now();
    cluster.wait_status("it is back", LIMIT, |s| s.node_state("x4") == "up")?;
    say(test, &format!("back {:?} after the key", back.elapsed()));
    cluster.wait_ok()?;
    cluster.stop(joined)?;
    cluster.finish()
}

#[test]
fn a_certificate_is_renewed_and_used_without_a_restart() -> Result<()> {
    let test = "a_certificate_is_renewed_and_used_without_a_restart";
    let mut cluster = Cluster::up(Spec::three(test, "64M"))?;
    let home = cluster.scratch()?;
    sign_for_a_moment(&mut cluster)?;
    let joined = add(&mut cluster, &home, "x4")?;
    let signed = Instant::now();
    let certificate = home.join("x4/tls/node.crt");
    let key = std::fs::read(home.join("x4/tls/node.key"))?;
    let first = std::fs::read(&certificate)?;
    until("it is renewed", LIMIT, || Ok((std::fs::read(&certificate)? != first).then_some(())))?;
    let took = signed.elapsed();
    ensure!(took > LIFE / 3 && took < LIFE, "renewed after {took:?} of {LIFE:?}");
    ensure!(std::fs::read(home.join("x4/tls/node.key"))? == key, "it has another key");
    // Until the first one is over, in the clock's own time.
    until("the first has expired", LIMIT, || {
        Ok((signed.elapsed() > LIFE + Duration::from_secs(2)).then_some(()))
    })?;
    // A node that starts now has no connection from before, and it takes two to make one.
    for node in [1, 2] {
        cluster.kill(node)?;
        cluster.start(node)?;
        cluster.wait_ok()?;
    }
    let mut load = Load::start(LoadConfig::new(cluster.targets(), joined, seed()));
    load.progress(50, LIMIT)?;
    ensure!(load.window().brief().contains("operations"));
    load.finish()?.verify(&cluster.target(joined))?;
    say(test, &format!("renewed after {took:?} of {LIFE:?}, and used"));
    cluster.stop(joined)?;
    cluster.finish()
}
