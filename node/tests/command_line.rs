//! The program's own process: exit codes, one line per error, and what it prints.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use serde_json::Value;
use smalti_node::api::{ApiServer, ApiState};
use smalti_node::control::Health;
use smalti_storage::ids::ClusterId;
use std::process::{Command, Output};
use std::sync::Arc;
use support::FakeControl;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

fn smalti(words: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_smalti");
    Command::new(program).args(words).env_remove("SMALTI_LOG").output().unwrap()
}

fn fails(words: &[&str], code: i32) -> String {
    let output = smalti(words);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{words:?}");
    stderr
}

fn fails_in_one_line(words: &[&str]) -> String {
    let stderr = fails(words, 1);
    assert_eq!(stderr.lines().count(), 1, "{words:?}: {stderr}");
    assert!(stderr.starts_with("smalti: "), "{words:?}: {stderr}");
    stderr
}

#[test]
fn usage_errors_exit_2() {
    for words in [
        &["status"][..],
        &["up"],
        &["volume", "create", "v", "--size", "0", "--dir", "d"],
        &["volume", "create", "v", "--size", "513", "--dir", "d"],
        &["no-such-command"],
    ] {
        assert!(fails(words, 2).contains("error"), "{words:?}");
    }
}

#[test]
fn what_is_not_done_is_told_in_one_line() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let none = path("none");
    let text = fails_in_one_line(&["status", "--dir", &none]);
    assert!(text.contains("holds no cluster"), "{text}");
    let text = fails_in_one_line(&["down", "--dir", &none]);
    assert!(text.starts_with("smalti: take the cluster down: "), "{text}");
    let text = fails_in_one_line(&["status", "--api", &format!("unix:{none}")]);
    assert!(text.starts_with("smalti: get status: connect to unix:"), "{text}");
    let text = fails_in_one_line(&["serve", "--config", &none]);
    assert!(text.starts_with("smalti: read config "), "{text}");

    let config = path("node.toml");
    std::fs::write(&config, "version = 1\nnode = \"x\"\n").unwrap();
    let text = fails_in_one_line(&["serve", "--config", &config]);
    assert!(text.contains("node.toml line 2: invalid type"), "{text}");

    let file = path("file");
    std::fs::write(&file, "").unwrap();
    for dir in [&file, home.path().to_str().unwrap()] {
        fails_in_one_line(&["up", "--dir", dir]);
    }
    let new = path("new");
    let text = fails_in_one_line(&["up", "--nodes", "2", "--dir", &new]);
    assert!(text.contains("2 nodes are too few"), "{text}");
    let volume = ["--volume", "v", "--size", "1G", "--data", "3", "--parity", "1"];
    let text = fails_in_one_line(&[&["up", "--nodes", "3", "--dir", &new][..], &volume].concat());
    assert!(text.contains("3+1 shards need 4 nodes, there are 3"), "{text}");
    let text = fails_in_one_line(&["up", "--nodes", "3", "--dir", &new, "--volume", "v"]);
    assert!(text.contains("needs a --size"), "{text}");
    assert!(!std::path::Path::new(&new).exists());

    let half = path("half");
    std::fs::create_dir_all(format!("{half}/.making/n1")).unwrap();
    let text = fails_in_one_line(&["up", "--dir", &half]);
    assert!(text.contains("half made"), "{text}");
}

/// Runs commands against a stand-in for a node.
async fn with_node<T: Send + 'static>(
    health: Health,
    run: impl FnOnce(&str) -> T + Send + 'static,
) -> T {
    let dir = tempfile::tempdir().unwrap();
    let cluster = ClusterId(Uuid::from_u128(5));
    let mut control = FakeControl::new(cluster, 3, &dir.path().join("volumes.json"));
    control.health = health;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let any = ([127, 0, 0, 1], 0).into();
    let server = ApiServer::bind(any, &dir.path().join("api.sock")).await.unwrap();
    let address = server.tcp_address().unwrap().to_string();
    server.start(ApiState::new(Arc::new(control), None, tasks.clone()), &tasks, &stop);
    tokio::task::spawn_blocking(move || run(&address)).await.unwrap()
}

fn succeeds(words: &[&str], api: &str) -> String {
    let output = smalti(&[words, &["--api", api]].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{words:?}: {stderr}");
    assert!(stderr.is_empty(), "{words:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_from_creation_to_deletion() {
    with_node(Health::Ok, |api| {
        assert_eq!(succeeds(&["volume", "list"], api), "no volumes\n");
        let made = succeeds(&["volume", "create", "v", "--size", "1.5G", "--json"], api);
        let made: Value = serde_json::from_str(&made).unwrap();
        assert_eq!((&made["name"], &made["size"]), (&"v".into(), &(3u64 << 29).into()));
        assert_eq!((&made["data"], &made["parity"]), (&2.into(), &1.into()));
        let text = fails_in_one_line(&["volume", "create", "v", "--size", "1G", "--api", api]);
        assert_eq!(text, "smalti: create volume: there is a volume v already\n");

        let listed = succeeds(&["volume", "list"], api);
        assert!(listed.contains("1.5 GiB") && listed.contains("2+1"), "{listed}");
        let shown = succeeds(&["volume", "show", "v"], api);
        assert!(shown.contains("writes need  2 of 3 slots"), "{shown}");
        assert!(shown.contains("n1  n2  n3"), "{shown}");

        let other = "00000000-0000-0000-0000-000000000001";
        fails_in_one_line(&["volume", "delete", "v", "--id", other, "--api", api]);
        let text = fails_in_one_line(&["volume", "delete", "v", "--api", api]);
        assert!(text.contains("--yes"), "{text}");
        let said = succeeds(&["volume", "delete", "v", "--yes"], api);
        assert!(said.starts_with("v is deleted with its keys"), "{said}");
        let text = fails_in_one_line(&["volume", "show", "v", "--api", api]);
        assert_eq!(text, "smalti: show volume: there is no volume v\n");
        fails_in_one_line(&["volume", "delete", "v", "--api", api]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_are_shown_for_people_and_for_scripts() {
    with_node(Health::Degraded, |api| {
        succeeds(&["volume", "create", "v", "--size", "1G"], api);
        let status = succeeds(&["status"], api);
        for words in ["health    degraded", "leader    n1, term 3", "3 of 3 custodians", "n2"] {
            assert!(status.contains(words), "{words} in {status}");
        }
        let wrong = "n3: store 00000000-0000-0000-0000-000000000003 had 4 wrong records";
        let told: Vec<&str> =
            status.lines().filter(|line| line.contains("wrong records")).collect();
        assert_eq!(told, [wrong], "{status}");
        let why = succeeds(&["why"], api);
        assert!(why.contains("degraded: volume v: a slot is behind"), "{why}");
        let nodes = succeeds(&["node", "list"], api);
        assert_eq!(nodes.lines().count(), 4, "{nodes}");
        let keys = succeeds(&["key", "status"], api);
        assert!(keys.contains("2 of 3"), "{keys}");
        for words in [
            &["status"][..],
            &["why"],
            &["volume", "list"],
            &["volume", "show", "v"],
            &["node", "list"],
            &["key", "status"],
        ] {
            let text = succeeds(&[words, &["--json"]].concat(), api);
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(value.is_object() || value.is_array(), "{words:?}");
        }
    })
    .await;
}
