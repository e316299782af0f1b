//! Clients other people wrote, against a server in this process.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use smalti_nbd::test_support::{FixedExports, MemoryExport};
use smalti_nbd::{Export, ExportInfo, Limits, Listener, Server};
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::MIB;

const INSTALL: &str =
    "apt-get install -y --no-install-recommends libnbd-bin python3-libnbd fio qemu-utils";
/// The interpreter the distribution's `nbd` module belongs to.
const PYTHON: &str = "/usr/bin/python3";

/// A server with a thread of its own, on a Unix socket and a TCP port.
struct Served {
    folder: TempDir,
    port: u16,
    exports: Arc<FixedExports>,
    server: Server,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    runtime: Runtime,
}

impl Served {
    fn new(exports: impl IntoIterator<Item = ExportInfo>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let exports =
            exports.into_iter().map(|info| Arc::new(MemoryExport::new(info)) as Arc<dyn Export>);
        let exports = Arc::new(FixedExports::new(exports));
        let server = Server::new(exports.clone(), Limits::default()).unwrap();
        let stop = CancellationToken::new();
        let folder = tempfile::tempdir().unwrap();
        let _inside = runtime.enter();
        let unix = Listener::unix(UnixListener::bind(folder.path().join("s")).unwrap());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        tcp.set_nonblocking(true).unwrap();
        let tcp = Listener::Tcp(TcpListener::from_std(tcp).unwrap());
        let tasks = [unix, tcp]
            .into_iter()
            .map(|listener| {
                let (server, stop) = (server.clone(), stop.clone());
                runtime.spawn(async move { server.serve(listener, stop).await })
            })
            .collect();
        drop(_inside);
        Self { folder, port, exports, server, stop, tasks, runtime }
    }

    fn one(size: u64) -> Self {
        Self::new([ExportInfo::new("vol", size)])
    }

    fn unix(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.folder.path().join("s").display())
    }

    fn tcp(&self, name: &str) -> String {
        format!("nbd://127.0.0.1:{}/{name}", self.port)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Runs a client to success and returns what it printed.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.try_run(program, arguments);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}\n{out}\n{err}",
            output.status
        );
        out
    }

    fn try_run(&self, program: &str, arguments: &[&str]) -> Output {
        let run = Command::new(program)
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output();
        run.unwrap_or_else(|error| {
            panic!("client program {program} cannot be started ({error}); install it: {INSTALL}")
        })
    }

    fn python(&self, script: &str) -> String {
        assert!(
            self.try_run(PYTHON, &["-c", "import nbd"]).status.success(),
            "{PYTHON} has no module nbd; install it: {INSTALL}"
        );
        self.run(PYTHON, &["-c", script, &self.unix("vol")])
    }

    /// Stops the server and checks that nothing is left.
    fn end(self) {
        self.stop.cancel();
        for task in self.tasks {
            self.runtime.block_on(task).unwrap();
        }
        assert_eq!((self.server.connections(), self.server.bytes_in_flight()), (0, 0));
        assert_eq!(self.exports.attached(), 0);
    }
}

/// Bytes that look random and are the same every time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..length / 8).flat_map(|_| next().to_le_bytes()).collect()
}

fn noise_file(path: &Path, length: usize) {
    std::fs::write(path, noise(length)).unwrap();
}

#[test]
fn nbdinfo_sees_every_export_and_flag() {
    let served = Served::new([
        ExportInfo { description: Some("first".into()), ..ExportInfo::new("one", 3 * MIB + 17) },
        ExportInfo { read_only: true, multi_conn: false, ..ExportInfo::new("two", MIB) },
    ]);
    for uri in [served.unix("one"), served.tcp("one")] {
        assert_eq!(served.run("nbdinfo", &["--size", &uri]).trim(), (3 * MIB + 17).to_string());
        let told = served.run("nbdinfo", &[&uri]);
        for line in [
            "protocol: newstyle-fixed without TLS, using structured packets",
            "export=\"one\"",
            "description: first",
            "base:allocation",
            "is_read_only: false",
            "block_size_minimum: 1",
            "block_size_preferred: 4096",
            "block_size_maximum: 33554432",
        ] {
            assert!(told.contains(line), "{line} is missing in:\n{told}");
        }
        for what in ["multi-conn", "flush", "fua", "trim", "zero", "fast-zero", "df", "cache"] {
            served.run("nbdinfo", &["--can", what, &uri]);
        }
        served.run("nbdinfo", &["--can", "structured-reply", &uri]);
        let read_only = served.try_run("nbdinfo", &["--is", "read-only", &uri]);
        assert_eq!(read_only.status.code(), Some(2));
    }
    let two = served.unix("two");
    served.run("nbdinfo", &["--is", "read-only", &two]);
    for what in ["multi-conn", "trim", "zero", "write"] {
        let answer = served.try_run("nbdinfo", &["--can", what, &two]);
        assert_eq!(answer.status.code(), Some(2), "{what}");
    }
    let list = served.run("nbdinfo", &["--list", &served.tcp("")]);
    assert!(list.contains("export=\"one\"") && list.contains("export=\"two\""), "{list}");
    let unknown = served.try_run("nbdinfo", &[&served.unix("three")]);
    assert!(!unknown.status.success());
    served.end();
}

#[test]
fn nbdcopy_carries_an_image_there_and_back() {
    let served = Served::one(64 * MIB);
    let uri = served.unix("vol");
    let (image, back) = (served.path("image"), served.path("back"));
    noise_file(Path::new(&image), 48 << 20);
    std::fs::File::options().write(true).open(&image).unwrap().set_len(64 << 20).unwrap();
    let fast = ["--flush", "--connections=4", "--requests=32"];
    served.run("nbdcopy", &[&fast[..], &[&image, &uri]].concat());
    served.run("nbdcopy", &[&uri, &back]);
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&back).unwrap());
    served.run("nbdcopy", &["--synchronous", &served.tcp("vol"), &back]);
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&back).unwrap());
    let map = served.run("nbdinfo", &["--map", &uri]);
    let words: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words, [["0", "50331648", "0", "data"], ["50331648", "16777216", "3", "hole,zero"]]);
    served.end();
}

#[test]
fn libnbd_commands_and_flags_one_by_one() {
    let served = Served::one(64 * MIB);
    let out = served.python(
        r#"
import errno, nbd, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
assert h.get_size() == 64 << 20
assert h.get_structured_replies_negotiated()

h.pwrite(b"x" * 1000, 333)
h.pwrite(b"y" * 70000, 100000, nbd.CMD_FLAG_FUA)
assert h.pread(1000, 333) == b"x" * 1000
assert h.pread(70000, 100000) == b"y" * 70000
whole = []
h.pread_structured(1 << 20, 0, lambda data, at, kind, error: whole.append((at, len(data), kind)),
                   nbd.CMD_FLAG_DF)
assert whole == [(0, 1 << 20, nbd.READ_DATA)], whole
h.zero(500, 333)
assert h.pread(1000, 333) == bytes(500) + b"x" * 500
h.zero(65536, 131072, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(65536, 131072) == bytes(65536)
h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO)
h.trim(64 << 20, 0, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
h.flush()

h.pwrite(b"z" * 65536, 2 << 20)
seen = []
h.block_status(64 << 20, 0, lambda name, at, extents, error: seen.append((name, at, extents)))
assert seen == [("base:allocation", 0,
                 [2 << 20, 3, 65536, 0, (62 << 20) - 65536, 3])], seen
seen.clear()
h.block_status(8 << 20, 1 << 20, lambda n, at, e, error: seen.append(e), nbd.CMD_FLAG_REQ_ONE)
assert seen == [[1 << 20, 3]], seen

pieces = []
def piece(data, at, kind, error): pieces.append((at, len(data), kind))
h.pread_structured(3 << 20, 0, piece)
assert pieces == [(0, 2 << 20, nbd.READ_HOLE), (2 << 20, 65536, nbd.READ_DATA),
                  ((2 << 20) + 65536, (1 << 20) - 65536, nbd.READ_HOLE)], pieces

def fails(number, call, *args):
    try: call(*args)
    except nbd.Error as error: assert error.errno == number, (error, call, args)
    else: raise AssertionError(("no error", call, args))

h.set_strict_mode(0)
size = 64 << 20
fails("ENOSPC", h.pwrite, b"12", size - 1)
fails("ENOSPC", h.pwrite, b"12" * 50000, size)
fails("ENOSPC", h.zero, 2, size - 1)
fails("EINVAL", h.pread, 2, size - 1)
fails("EINVAL", h.pread, 1, 1 << 60)
fails("EINVAL", h.trim, 2, size - 1)
fails("EINVAL", h.cache, 2, size - 1)
fails("EINVAL", h.block_status, 2, size - 1, lambda *a: 0)
fails("EINVAL", h.pread, (32 << 20) + 1, 0)
fails("EINVAL", h.pwrite, bytes((32 << 20) + 1), 0)
fails("EINVAL", h.flush, 1 << 9)
fails("EINVAL", h.pread, 1, 0, 1 << 9)
fails("EINVAL", h.pread, 1, 0, nbd.CMD_FLAG_REQ_ONE)
fails("EINVAL", h.trim, 1, 0, nbd.CMD_FLAG_NO_HOLE)
fails("ENOTSUP", h.zero, 1, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
assert h.pread(3, 2 << 20) == b"zzz"

buffers = {}
done = []
for i in range(64):
    buffers[i] = nbd.Buffer.from_bytearray(bytearray([i + 1]) * (1 + i * 997))
    h.aio_pwrite(buffers[i], i << 17, completion=lambda error, i=i: done.append((i, error.value)) or 1)
while len(done) < 64: h.poll(-1)
assert sorted(done) == [(i, 0) for i in range(64)], done
for i in range(64):
    n = 1 + i * 997
    assert h.pread(n + 1, i << 17)[:n] == bytes([i + 1]) * n, i
h.shutdown()
print("done")
"#,
    );
    assert_eq!(out, "done\n");
    served.end();
}

#[test]
fn qemu_io_finds_its_patterns() {
    let served = Served::one(64 * MIB);
    for uri in [served.unix("vol"), served.tcp("vol")] {
        let commands = [
            "write -P 7 0 64k",
            "write -z 64k 64k",
            "write -f -P 9 1M 2M",
            "discard 128k 64k",
            "flush",
            "read -P 7 0 64k",
            "read -P 0 64k 64k",
            "read -P 9 1M 2M",
            "write -P 5 1234 4321",
            "read -P 5 1234 4321",
            "read -P 7 5555 1000",
            "aio_write -P 3 4M 64k",
            "aio_write -P 4 5M 30M",
            "aio_flush",
            "read -P 3 4M 64k",
            "read -P 4 5M 30M",
            "write -z -u 5M 30M",
            "read -P 0 5M 30M",
        ];
        let mut arguments = vec!["-f", "raw"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        arguments.push(&uri);
        let out = served.run("qemu-io", &arguments);
        assert!(!out.contains("failed") && !out.contains("error"), "{out}");
        assert!(out.matches("bytes at offset").count() >= 13, "{out}");
    }
    served.end();
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let served = Served::one(64 * MIB);
    let uri = served.unix("vol");
    let (raw, image) = (served.path("raw"), served.path("image.qcow2"));
    noise_file(Path::new(&raw), 20 << 20);
    std::fs::File::options().write(true).open(&raw).unwrap().set_len(64 << 20).unwrap();
    served.run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &image]);
    served.run("qemu-img", &["convert", "-n", "-f", "qcow2", "-O", "raw", &image, &uri]);
    served.run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &image, &uri]);
    let back = served.path("back.qcow2");
    served.run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, &back]);
    served.run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &raw, &back]);
    let map = served.run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    assert!(map.contains(r#""start": 0, "length": 20971520"#), "{map}");
    let flush = ["--flush-interval=8", "-d", "8", "-c", "500"];
    let bench = ["bench", "-f", "raw", "-w", "-t", "none", "-s", "4096"];
    served.run("qemu-img", &[&bench[..], &flush, &[&uri]].concat());
    served.end();
}

#[test]
fn fio_verifies_what_it_wrote() {
    let served = Served::one(128 * MIB);
    let uri = served.unix("vol");
    let uri = format!("--uri={uri}");
    let shared = [
        "--name=v",
        "--ioengine=nbd",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--randrepeat=0",
        &uri,
    ];
    let jobs: [&[&str]; 3] = [
        &[
            "--rw=randrw",
            "--bsrange=512-128k",
            "--blockalign=512",
            "--iodepth=16",
            "--size=64M",
            "--fsync=32",
        ],
        &["--rw=randwrite", "--bs=4k", "--iodepth=64", "--size=64M"],
        &["--rw=write", "--bs=4M", "--iodepth=8", "--size=128M"],
    ];
    for job in jobs {
        let out = served.run("fio", &[&shared[..], job].concat());
        assert!(out.contains("err= 0"), "{out}");
    }
    served.end();
}
