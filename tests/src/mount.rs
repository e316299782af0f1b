//! A kernel filesystem on a volume: nbdfuse shows it as a file, a loop device as a disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{self, Running, sh, until};

const LIMIT: Duration = Duration::from_secs(60);

/// Why this machine cannot do it, or `None` when it can.
#[must_use]
pub fn missing() -> Option<String> {
    if !Path::new("/dev/fuse").exists() {
        return Some("no /dev/fuse".to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("loop devices and mounts need root".to_owned());
    }
    match sh(&["losetup", "-f"], LIMIT) {
        Ok(_) => None,
        Err(error) => Some(format!("no loop device: {error:#}")),
    }
}

/// A file system of its own in memory, so that it can be full. Unmounted and removed at drop.
#[derive(Debug)]
pub struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts one of so many MiB.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn mount(mib: u32) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("smd").tempdir_in("/tmp")?;
        let (size, path) = (format!("size={mib}m"), folder.path().display().to_string());
        sh(&["mount", "-t", "tmpfs", "-o", &size, "none", &path], LIMIT)?;
        Ok(Self { folder })
    }

    /// Makes it so many MiB.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn resize(&self, mib: u32) -> Result<()> {
        let size = format!("remount,size={mib}m");
        sh(&["mount", "-o", &size, &self.path().display().to_string()], LIMIT).map(drop)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.folder.path());
    }
}

/// A folder that shows what is in another one, as one that a disk is mounted on. Unmounted at drop.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// Shows `folder` at `at`.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn bind(folder: &Path, at: &Path) -> Result<Self> {
        let [from, to] = [folder, at].map(|path| path.display().to_string());
        sh(&["mount", "--bind", &from, &to], LIMIT)?;
        Ok(Self { at: at.to_owned() })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.at);
    }
}

fn unmount(path: &Path) {
    let path = path.display().to_string();
    if let Err(error) = sh(&["umount", "-l", &path], LIMIT) {
        eprintln!("umount {path}: {error:#}");
    }
}

/// A volume as a loop device. Everything is taken down again at drop.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
    fuse: Option<Running>,
    device: Option<String>,
    mounted: bool,
}

impl Disk {
    /// Shows the volume behind `uri` as a block device; `folder` is for mount points.
    ///
    /// # Errors
    /// When nbdfuse or losetup fails.
    pub fn attach(uri: &str, folder: &Path) -> Result<Self> {
        for sub in ["fm", "mnt"] {
            std::fs::create_dir_all(folder.join(sub))?;
        }
        let mut disk =
            Self { folder: folder.to_path_buf(), fuse: None, device: None, mounted: false };
        let fm = disk.text("fm");
        let mut fuse = process::start(Command::new("setsid").args(["nbdfuse", &fm, uri]))?;
        let file = disk.text("fm/nbd");
        let shown = until("nbdfuse shows the volume", LIMIT, || {
            Ok((Path::new(&file).exists() || !fuse.is_running()?).then_some(()))
        });
        disk.fuse = Some(fuse);
        shown?;
        let device = sh(&["losetup", "-f", "--show", "--direct-io=on", &file], LIMIT)?;
        disk.device = Some(device.trim().to_owned());
        Ok(disk)
    }

    fn text(&self, sub: &str) -> String {
        self.folder.join(sub).display().to_string()
    }

    /// The block device.
    ///
    /// # Errors
    /// When there is none.
    pub fn device(&self) -> Result<&str> {
        self.device.as_deref().context("no loop device")
    }

    /// The mount point.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.join("mnt")
    }

    /// Mounts the filesystem on the device.
    ///
    /// # Errors
    /// When mount fails.
    pub fn mount(&mut self) -> Result<()> {
        sh(&["mount", self.device()?, &self.text("mnt")], LIMIT)?;
        self.mounted = true;
        Ok(())
    }

    /// Unmounts it.
    ///
    /// # Errors
    /// When umount fails.
    pub fn unmount(&mut self) -> Result<()> {
        sh(&["umount", &self.text("mnt")], LIMIT)?;
        self.mounted = false;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // In the order of making them, backwards. Lazily where a broken volume would hang: what
        // cannot be taken down is said, as it stays on the machine.
        let mut steps: Vec<Vec<String>> = Vec::new();
        if self.mounted {
            steps.push(vec!["umount".into(), "-l".into(), self.text("mnt")]);
        }
        if let Some(device) = self.device.take() {
            steps.push(vec!["losetup".into(), "-d".into(), device]);
        }
        steps.push(vec!["fusermount3".into(), "-u".into(), "-z".into(), self.text("fm")]);
        for step in steps {
            let words: Vec<&str> = step.iter().map(String::as_str).collect();
            if let Err(error) = sh(&words, LIMIT) {
                eprintln!("taking down a disk: {error:#}");
            }
        }
        if let Some(fuse) = self.fuse.take()
            && let Err(error) = fuse.wait(LIMIT)
        {
            eprintln!("taking down a disk: {error:#}");
        }
    }
}
