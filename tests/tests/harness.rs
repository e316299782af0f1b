//! The harness itself, against nbdkit's memory plugin: it passes what is right and, more to the
//! point, catches what is wrong.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smalti_tests::clients;
use smalti_tests::files;
use smalti_tests::fio;
use smalti_tests::mount;
use smalti_tests::nbd::{Client, Target};
use smalti_tests::pattern::{BLOCK, seed};
use smalti_tests::process::{sh, until};
use smalti_tests::{Load, LoadConfig};

const LIMIT: Duration = Duration::from_secs(60);

/// A stand-in server that ends with the test.
struct StandIn {
    child: Child,
    target: Target,
    folder: tempfile::TempDir,
}

impl StandIn {
    fn start(words: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("smt").tempdir()?;
        let mut stand_in = Self {
            child: Self::spawn(&folder.path().join("n.sock"), words)?,
            target: Target::unix(folder.path().join("n.sock"), "v"),
            folder,
        };
        stand_in.ready()?;
        Ok(stand_in)
    }

    fn spawn(socket: &Path, words: &[&str]) -> Result<Child> {
        let mut command = Command::new("nbdkit");
        command.arg("-f").arg("-U").arg(socket).args(words);
        Ok(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?)
    }

    fn ready(&mut self) -> Result<()> {
        until("nbdkit listens", LIMIT, || Ok(Client::connect(&self.target, LIMIT).ok().map(drop)))
    }

    fn stop(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        std::fs::remove_file(self.folder.path().join("n.sock"))?;
        Ok(())
    }

    fn again(&mut self, words: &[&str]) -> Result<()> {
        self.child = Self::spawn(&self.folder.path().join("n.sock"), words)?;
        self.ready()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn config(server: &StandIn) -> LoadConfig {
    LoadConfig::new(vec![server.target.clone()], 0, seed())
}

#[test]
fn verified_load_passes_and_catches_a_changed_block() -> Result<()> {
    let server = StandIn::start(&["memory", "64M"])?;
    let load = Load::start(config(&server));
    load.progress(500, LIMIT)?;
    let mut loaded = load.finish()?;
    ensure!(loaded.times.count() >= 2000 && loaded.server_errors == 0);
    let blocks = loaded.verify(&server.target)?;
    ensure!(blocks > 100, "only {blocks} blocks written");

    let mut client = Client::connect(&server.target, LIMIT)?;
    let mut data = vec![0; BLOCK];
    // One that holds something: the load trims blocks too, and losing nothing is no loss.
    let mut numbers = loaded.model.block_numbers().into_iter();
    let victim = loop {
        let victim = numbers.next().context("a block with contents")? * BLOCK as u64;
        client.read(victim, &mut data)?;
        if data.iter().any(|byte| *byte != 0) {
            break victim;
        }
    };
    data[1000] ^= 0x10;
    client.write(victim, &data, 0)?;
    ensure!(loaded.verify(&server.target).is_err(), "a flipped bit passed");
    client.trim(victim, BLOCK as u32)?;
    let lost = loaded.verify(&server.target).expect_err("a lost block passed").to_string();
    ensure!(lost.contains("holds write 0"), "unexpected finding: {lost}");
    Ok(())
}

#[test]
fn verified_load_catches_a_change_while_it_runs() -> Result<()> {
    let server = StandIn::start(&["memory", "64M"])?;
    let load = Load::start(config(&server));
    load.progress(300, LIMIT)?;
    let mut client = Client::connect(&server.target, LIMIT)?;
    client.trim(0, 4 * 512 * BLOCK as u32)?;
    ensure!(load.progress(2000, LIMIT).is_err(), "lost blocks passed");
    ensure!(load.finish().is_err(), "lost blocks passed at the end");
    Ok(())
}

#[test]
fn load_follows_a_server_that_comes_back_and_measures_the_pause() -> Result<()> {
    // The file plugin keeps its data over a restart.
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    std::fs::File::create(&disk)?.set_len(64 << 20)?;
    let file = format!("file={}", disk.display());
    let mut server = StandIn::start(&["file", &file])?;
    let mut load = Load::start(config(&server));
    load.progress(200, LIMIT)?;
    load.window();
    server.stop()?;
    let away = std::time::Instant::now();
    while away.elapsed() < Duration::from_millis(700) {
        ensure!(load.server_errors() == 0);
        std::thread::sleep(Duration::from_millis(10));
    }
    server.again(&["file", &file])?;
    load.progress(200, LIMIT)?;
    let pause = load.window().longest();
    ensure!(pause >= Duration::from_millis(650), "pause {pause:?} is too short");
    ensure!(pause < Duration::from_secs(5), "pause {pause:?} is too long");
    let mut loaded = load.finish()?;
    ensure!(loaded.reconnects >= 4, "{} reconnects", loaded.reconnects);
    loaded.verify(&server.target)?;
    Ok(())
}

#[test]
fn errors_are_counted_and_retried() -> Result<()> {
    let words = ["--filter=error", "memory", "64M", "error-pwrite=EIO", "error-pwrite-rate=5%"];
    let server = StandIn::start(&words)?;
    let load = Load::start(config(&server));
    load.progress(300, LIMIT)?;
    let mut loaded = load.finish()?;
    ensure!(loaded.server_errors > 0, "injected errors were not seen");
    loaded.verify(&server.target)?;
    Ok(())
}

#[test]
fn other_clients_and_fio_run_and_judge() -> Result<()> {
    let server = StandIn::start(&["memory", "128M"])?;
    let uri = server.target.uri();
    ensure!(clients::nbdinfo(&uri)?["export-size"] == 128 << 20);
    ensure!(clients::map(&uri)?.iter().all(|e| e.kind == 3), "a new volume is one hole");
    clients::qemu_io(&uri, &["write -P 7 0 64k", "read -P 7 0 64k"])?;
    ensure!(clients::qemu_io(&uri, &["read -P 8 0 64k"]).is_err(), "a wrong pattern passed");
    let image = server.folder.path().join("i.raw");
    files::ext4_image(&image, 128 << 20, 5)?;
    clients::qemu_img_write(&image, "raw", &uri)?;
    clients::qemu_img_compare(&image, "raw", &uri)?;
    clients::qemu_io(&uri, &["write -P 9 64M 512"])?;
    ensure!(clients::qemu_img_compare(&image, "raw", &uri).is_err(), "a difference passed");
    let outcome = fio::verified(&uri, "8M", "0", LIMIT)?;
    ensure!(outcome.write.total > 100 && outcome.write.p50_us > 0.0, "{outcome:?}");
    sh(&["nbdcopy", "--flush", &image.display().to_string(), &uri], LIMIT)?;
    Ok(())
}

#[test]
fn python_checks_hold_on_a_right_server_and_fail_on_a_wrong_one() -> Result<()> {
    let server = StandIn::start(&["memory", "64M"])?;
    let text = clients::python_checks(&server.target.uri())?;
    ensure!(text.contains("checks hold"), "{text}");
    let deaf = StandIn::start(&["--filter=nozero", "memory", "64M", "zeromode=none"])?;
    ensure!(clients::python_checks(&deaf.target.uri()).is_err(), "a server without zero passed");
    Ok(())
}

#[test]
fn a_disk_comes_and_goes() -> Result<()> {
    if let Some(reason) = mount::missing() {
        return smalti_tests::report::skip("a_disk_comes_and_goes", &reason);
    }
    let server = StandIn::start(&["memory", "128M"])?;
    let folder = tempfile::Builder::new().prefix("smt").tempdir()?;
    let mut disk = mount::Disk::attach(&server.target.uri(), folder.path())?;
    sh(&["mkfs.ext4", "-q", "-F", disk.device()?], LIMIT)?;
    disk.mount()?;
    std::fs::write(disk.path().join("a"), "text")?;
    disk.unmount()?;
    sh(&["e2fsck", "-fn", disk.device()?], LIMIT)?;
    Ok(())
}
