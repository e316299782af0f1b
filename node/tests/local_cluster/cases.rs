//! The cases.

use rustix::process::{Pid, Signal, kill_process};
use smalti_node::cli::Target;
use smalti_node::client::{ApiAddress, Client};
use smalti_node::cluster_file::{ClusterFile, NodeEntry};
use smalti_node::control::{CreateVolume, StatusReport, VolumeDetail};
use smalti_node::local::{self, UpOptions, VolumeWish};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);

/// `up` looks this often whether nodes that others started have ended, and then some.
const LOOKED: Duration = Duration::from_millis(1500);

pub(crate) type Case = (&'static str, fn());

pub(crate) const ALL: &[Case] = &[
    ("detached_cluster_resumes_with_its_addresses", detached_cluster_resumes_with_its_addresses),
    ("a_killed_node_starts_again_by_its_argv", a_killed_node_starts_again_by_its_argv),
    ("a_running_cluster_is_not_started_twice", a_running_cluster_is_not_started_twice),
    ("what_differs_from_the_folder_is_refused", what_differs_from_the_folder_is_refused),
    ("a_node_that_fails_at_start_is_quoted", a_node_that_fails_at_start_is_quoted),
    ("a_majority_that_fails_at_start_ends_it", a_majority_that_fails_at_start_ends_it),
    ("a_node_that_is_never_ready_ends_the_wait", a_node_that_is_never_ready_ends_the_wait),
    ("a_degraded_cluster_is_left_running", a_degraded_cluster_is_left_running),
    ("an_older_cluster_that_stalls_is_left_running", an_older_cluster_that_stalls_is_left_running),
    ("foreground_stops_its_nodes_in_order", foreground_stops_its_nodes_in_order),
    ("foreground_ends_when_taken_down", foreground_ends_when_taken_down),
    (
        "foreground_ends_when_nodes_that_others_started_are_taken_down",
        foreground_ends_when_nodes_that_others_started_are_taken_down,
    ),
    ("a_frozen_node_is_stopped_too", a_frozen_node_is_stopped_too),
    ("a_stranger_is_never_signalled", a_stranger_is_never_signalled),
];

/// A cluster's folder; whatever runs in it is killed when the case ends, however it ends.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("c")
    }

    fn options(&self) -> UpOptions {
        UpOptions {
            program: std::env::current_exe().unwrap(),
            nodes: Some(3),
            dir: self.dir(),
            volume: Some(wish("v", Some("64M"), None)),
            recovery: None,
            detach: true,
            wait: LIMIT,
        }
    }

    fn file(&self) -> ClusterFile {
        ClusterFile::read(&self.dir()).unwrap().unwrap()
    }

    fn pids(&self) -> Vec<u32> {
        self.file().nodes.iter().map(|node| node.pid).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.dir().join("local.json").exists()
            && let Err(error) = down(&self.dir())
        {
            eprintln!("take down at the end: {error}");
        }
    }
}

fn wish(name: &str, size: Option<&str>, geometry: Option<(u8, u8)>) -> VolumeWish {
    VolumeWish {
        name: name.into(),
        size: size.map(|s| s.parse().unwrap()),
        geometry,
        min_insync: None,
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

fn up(options: UpOptions) -> Result<(), String> {
    block_on(local::up(options)).map_err(|error| format!("{error:#}"))
}

fn down(dir: &Path) -> Result<(), String> {
    block_on(local::down(dir)).map_err(|error| format!("{error:#}"))
}

fn words(pid: u32) -> Vec<String> {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8(text).unwrap();
    text.split_terminator('\0').map(Into::into).collect()
}

fn runs(node: &NodeEntry) -> bool {
    words(node.pid).get(1..) == Some(&node.argv[1..])
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(pid: u32, what: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), what).unwrap();
}

fn status(address: ApiAddress) -> Option<StatusReport> {
    block_on(Client::new(address).get("/v1/status", Duration::from_secs(5))).ok()
}

fn session(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // After the name, which is in parentheses: state, parent, group, session.
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().to_owned()
}

fn detached_cluster_resumes_with_its_addresses() {
    let home = Home::new();
    up(home.options()).unwrap();
    let first = home.file();
    assert_eq!(first.volumes, ["v"]);
    assert_eq!(first.nodes.len(), 3);
    for node in &first.nodes {
        assert!(runs(node), "{node:?}");
        assert_eq!(session(node.pid), node.pid.to_string());
        assert_eq!(node.dir, home.dir().join(&node.name));
        let report = status(ApiAddress::Tcp(node.api.to_string())).unwrap();
        assert_eq!(report.volumes[0].size, 64 << 20);
    }
    down(&home.dir()).unwrap();
    assert!(first.nodes.iter().all(|node| !runs(node)));
    down(&home.dir()).unwrap();

    // The number of nodes and the volume's size need not be repeated.
    let volume = Some(wish("v", None, None));
    up(UpOptions { nodes: None, volume, ..home.options() }).unwrap();
    let again = home.file();
    for (before, after) in first.nodes.iter().zip(&again.nodes) {
        assert!(runs(after));
        assert_eq!(NodeEntry { pid: before.pid, ..after.clone() }, *before);
    }
    assert_eq!(again.volumes, ["v"]);
}

fn a_killed_node_starts_again_by_its_argv() {
    let home = Home::new();
    up(home.options()).unwrap();
    let node = home.file().nodes[1].clone();
    signal(node.pid, Signal::KILL);
    // At once: the killed process may still hold its lock and its ports for a moment.
    let mut child = Command::new(&node.argv[0])
        .args(&node.argv[1..])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("cluster.json has the new process", || home.pids()[1] == child.id());
    until("the node answers", || status(ApiAddress::Tcp(node.api.to_string())).is_some());

    let request = CreateVolume {
        name: "w".into(),
        size: 1 << 20,
        data: None,
        parity: None,
        shard_size: None,
        min_insync: None,
        read_mode: None,
    };
    let client = Client::new(ApiAddress::Tcp(node.api.to_string()));
    block_on(client.post::<_, VolumeDetail>("/v1/volumes", &request, LIMIT)).unwrap();
    assert_eq!(home.file().volumes, ["v", "w"]);

    down(&home.dir()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn a_running_cluster_is_not_started_twice() {
    let home = Home::new();
    up(home.options()).unwrap();
    let before = home.file();
    let error = up(home.options()).unwrap_err();
    assert!(error.contains("its nodes run already: n1 ("), "{error}");
    assert!(error.contains("smalti down --dir"), "{error}");
    assert_eq!(home.file(), before);
    assert!(before.nodes.iter().all(runs));
    // Nor a single node of it.
    let output =
        Command::new(&before.nodes[0].argv[0]).args(&before.nodes[0].argv[1..]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && text.contains("in use by another process"), "{text}");
    assert_eq!(home.pids()[0], before.nodes[0].pid);
    assert!(status(ApiAddress::Unix(home.dir().join("n1/api.sock"))).is_some());
}

fn what_differs_from_the_folder_is_refused() {
    let home = Home::new();
    up(home.options()).unwrap();
    down(&home.dir()).unwrap();
    let error = up(UpOptions { nodes: Some(4), ..home.options() }).unwrap_err();
    assert!(error.contains("has 3 nodes, not 4"), "{error}");
    for (volume, expected) in [
        (wish("v", Some("128M"), None), "has 64 MiB (67108864 bytes), not 128 MiB"),
        (wish("v", None, Some((1, 1))), "has 2+1 shards, not 1+1 as asked"),
        (wish("w", None, None), "volume w is missing and needs a --size"),
        (wish("v", None, Some((3, 1))), "3+1 shards need 4 nodes, there are 3"),
    ] {
        let error = up(UpOptions { volume: Some(volume), ..home.options() }).unwrap_err();
        assert!(error.contains(expected), "{error}");
        // What was started for the question is stopped again.
        up(UpOptions { volume: None, ..home.options() }).unwrap();
        assert_eq!(home.file().volumes, ["v"]);
        down(&home.dir()).unwrap();
    }
}

fn a_node_that_fails_at_start_is_quoted() {
    let home = Home::new();
    up(home.options()).unwrap();
    down(&home.dir()).unwrap();
    for name in ["n2.fail", "degraded"] {
        fs::write(home.dir().join(name), "").unwrap();
    }
    let error = up(home.options()).unwrap_err();
    assert!(error.starts_with("node n2 ended (exit status: 1) while starting"), "{error}");
    assert!(error.contains("the disk is on fire"), "{error}");
    // The others are a majority, and serve.
    assert!(error.contains("; the other nodes run: see `smalti why --dir "), "{error}");
    let nodes = home.file().nodes;
    assert_eq!(nodes.iter().map(runs).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(home.file().volumes, ["v"]);
    down(&home.dir()).unwrap();
    for name in ["n2.fail", "degraded"] {
        fs::remove_file(home.dir().join(name)).unwrap();
    }
    up(home.options()).unwrap();
}

fn a_majority_that_fails_at_start_ends_it() {
    let home = Home::new();
    up(home.options()).unwrap();
    let nodes = home.file().nodes;
    down(&home.dir()).unwrap();
    for name in ["n1.fail", "n2.fail"] {
        fs::write(home.dir().join(name), "").unwrap();
    }
    let error = up(home.options()).unwrap_err();
    assert!(error.contains("node n1 ended (exit status: 1) while starting"), "{error}");
    assert!(error.contains("node n2 ended (exit status: 1) while starting"), "{error}");
    assert!(nodes.iter().all(|node| !runs(node)));
    assert_eq!(ClusterFile::read(&home.dir()).unwrap(), None);
    for name in ["n1.fail", "n2.fail"] {
        fs::remove_file(home.dir().join(name)).unwrap();
    }
    up(home.options()).unwrap();
}

fn a_node_that_is_never_ready_ends_the_wait() {
    let home = Home::new();
    up(home.options()).unwrap();
    down(&home.dir()).unwrap();
    fs::write(home.dir().join("n3.slow"), "").unwrap();
    let error = up(UpOptions { wait: Duration::from_secs(1), ..home.options() }).unwrap_err();
    assert!(error.contains("not healthy after 1 s: n3: the node is starting"), "{error}");
    fs::remove_file(home.dir().join("n3.slow")).unwrap();
    up(home.options()).unwrap();
}

fn a_degraded_cluster_is_left_running() {
    let home = Home::new();
    up(home.options()).unwrap();
    down(&home.dir()).unwrap();
    fs::write(home.dir().join("degraded"), "").unwrap();
    let error = up(UpOptions { wait: Duration::from_secs(1), ..home.options() }).unwrap_err();
    assert!(error.contains("still degraded after 1 s"), "{error}");
    assert!(home.file().nodes.iter().all(runs));
}

fn an_older_cluster_that_stalls_is_left_running() {
    let home = Home::new();
    up(home.options()).unwrap();
    down(&home.dir()).unwrap();
    fs::write(home.dir().join("stalled"), "").unwrap();
    // What it lacks may be at nodes that joined from elsewhere.
    let error = up(UpOptions { wait: Duration::from_secs(1), ..home.options() }).unwrap_err();
    assert!(
        error.starts_with("not healthy after 1 s: health is stalled; the nodes run"),
        "{error}"
    );
    assert!(home.file().nodes.iter().all(runs));
}

fn foreground(home: &Home) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["up", home.dir().to_str().unwrap(), "60", "v"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn foreground_stops_its_nodes_in_order() {
    let home = Home::new();
    let mut child = foreground(&home);
    until("cluster.json appears", || ClusterFile::path(&home.dir()).exists());
    let nodes = home.file().nodes;
    let error = up(home.options()).unwrap_err();
    assert!(error.contains("another `smalti up` is at work"), "{error}");

    signal(nodes[0].pid, Signal::KILL);
    let mut told = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    while !told.contains("node n1 ended") {
        assert!(lines.read_line(&mut told).unwrap() > 0, "{told}");
    }
    assert!(nodes[1..].iter().all(runs));
    assert!(!runs(&home.file().nodes[0]), "a killed node is not started again");
    signal(child.id(), Signal::INT);
    lines.read_to_string(&mut told).unwrap();
    assert!(child.wait().unwrap().success(), "{told}");
    let text = told;
    assert!(text.contains("3 nodes up, healthy"), "{text}");
    assert!(text.contains(&format!("nbd://{}/v", nodes[2].nbd.tcp)), "{text}");
    assert!(text.contains(&format!("nbd+unix:///v?socket={}", nodes[0].nbd.unix.display())));
    assert_eq!(text.matches("node n1 ended (signal: 9 (SIGKILL))").count(), 1, "{text}");
    assert!(text.ends_with("stopped n2, n3\n"), "{text}");
    assert!(!nodes.iter().any(runs));
}

fn foreground_ends_when_taken_down() {
    let home = Home::new();
    let mut child = foreground(&home);
    until("cluster.json appears", || ClusterFile::path(&home.dir()).exists());
    down(&home.dir()).unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
}

fn foreground_ends_when_nodes_that_others_started_are_taken_down() {
    let home = Home::new();
    let mut child = foreground(&home);
    until("cluster.json appears", || ClusterFile::path(&home.dir()).exists());
    let mut text = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut restarted = Vec::new();
    for node in home.file().nodes {
        signal(node.pid, Signal::KILL);
        while !text.contains(&format!("node {} ended", node.name)) {
            assert!(lines.read_line(&mut text).unwrap() > 0, "{text}");
        }
        let mut again = Command::new(&node.argv[0]);
        again.args(&node.argv[1..]).stdout(Stdio::null()).stderr(Stdio::null());
        restarted.push(again.spawn().unwrap());
        until("the node answers", || status(ApiAddress::Tcp(node.api.to_string())).is_some());
    }
    // One ended in order, and all others are killed: that is no `down`.
    let nodes = home.file().nodes;
    signal(nodes[0].pid, Signal::TERM);
    assert!(restarted.remove(0).wait().unwrap().success());
    for (node, process) in nodes[1..].iter().zip(&mut restarted) {
        signal(node.pid, Signal::KILL);
        process.wait().unwrap();
    }
    std::thread::sleep(LOOKED);
    assert!(child.try_wait().unwrap().is_none(), "they may be started again");
    down(&home.dir()).unwrap();
    lines.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
}

fn a_frozen_node_is_stopped_too() {
    let home = Home::new();
    up(home.options()).unwrap();
    let nodes = home.file().nodes;
    signal(nodes[0].pid, Signal::STOP);
    // It is the first to be asked, and the others are asked after it.
    let path = home.0.path().join("link");
    std::os::unix::fs::symlink(home.dir(), &path).unwrap();
    let target = Target::in_dir(&path).unwrap();
    let report: StatusReport = block_on(target.read("/v1/status")).unwrap();
    assert_eq!(report.nodes.len(), 3);
    let request = CreateVolume {
        name: "w".into(),
        size: 1 << 20,
        data: None,
        parity: None,
        shard_size: None,
        min_insync: None,
        read_mode: None,
    };
    let made: VolumeDetail = block_on(target.post("/v1/volumes", &request)).unwrap();
    assert_eq!(made.volume.name, "w");
    // By whatever path the folder is reached.
    down(&path).unwrap();
    assert!(!nodes.iter().any(runs));
}

fn a_stranger_is_never_signalled() {
    let home = Home::new();
    up(home.options()).unwrap();
    let node = home.file().nodes[0].clone();
    down(&home.dir()).unwrap();
    // A process that holds the node's lock under another command line.
    let pid_file = node.dir.join("data/node.pid");
    let mut stranger = Command::new("flock")
        .arg(&pid_file)
        .args(["sh", "-c", "echo $$ > \"$0\"; echo; read x"])
        .arg(&pid_file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    stranger.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    for error in [down(&home.dir()).unwrap_err(), up(home.options()).unwrap_err()] {
        assert!(error.contains("stop it yourself"), "{error}");
    }
    assert!(stranger.try_wait().unwrap().is_none());
    drop(stranger.stdin.take());
    assert_eq!(stranger.wait().unwrap().code(), Some(1));
}
