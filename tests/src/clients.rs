//! Other people's NBD clients, and what each must say about a volume.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::{self, sh};

/// Any single client run ends within this.
pub const CLIENT_LIMIT: Duration = Duration::from_secs(300);

/// A file of the `scripts` folder.
#[must_use]
pub fn script(name: &str) -> PathBuf {
    // Cargo says it to what it runs. What was compiled in may be another clone, which had the target
    // folder before this one.
    let folder = std::env::var_os("CARGO_MANIFEST_DIR");
    let folder = folder.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&folder).join("scripts").join(name)
}

/// What an export says it can do, by nbdinfo.
///
/// # Errors
/// When nbdinfo fails or prints no such export.
pub fn nbdinfo(uri: &str) -> Result<Value> {
    let text = sh(&["nbdinfo", "--json", uri], CLIENT_LIMIT)?;
    let info: Value = serde_json::from_str(&text).context("parse nbdinfo's output")?;
    info["exports"].get(0).cloned().with_context(|| format!("nbdinfo shows no export: {text}"))
}

/// Names of all exports, by nbdinfo.
///
/// # Errors
/// When nbdinfo fails.
pub fn exports(uri: &str) -> Result<Vec<String>> {
    let text = sh(&["nbdinfo", "--json", "--list", uri], CLIENT_LIMIT)?;
    let info: Value = serde_json::from_str(&text).context("parse nbdinfo's output")?;
    let exports = info["exports"].as_array().context("nbdinfo lists no exports")?;
    Ok(exports.iter().filter_map(|e| e["export-name"].as_str().map(str::to_owned)).collect())
}

/// One extent of the allocation map.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Bit 0: hole; bit 1: reads as zeros.
    #[serde(rename = "type")]
    pub kind: u32,
}

/// The allocation map, by nbdinfo.
///
/// # Errors
/// When nbdinfo fails.
pub fn map(uri: &str) -> Result<Vec<Extent>> {
    let text = sh(&["nbdinfo", "--json", "--map", uri], CLIENT_LIMIT)?;
    serde_json::from_str(&text).context("parse nbdinfo's map")
}

/// Runs qemu-io commands on a raw volume.
///
/// # Errors
/// When qemu-io fails or a pattern did not match: that, qemu-io only prints.
pub fn qemu_io(uri: &str, commands: &[&str]) -> Result<String> {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]);
    commands.iter().for_each(|c| {
        command.args(["-c", c]);
    });
    let out = process::run(command.arg(uri), CLIENT_LIMIT)?;
    let all = format!("{}{}", out.stdout, out.stderr);
    out.ok()?;
    for bad in ["Pattern verification failed", "failed:", "error"] {
        ensure!(!all.contains(bad), "qemu-io {commands:?}: {all}");
    }
    Ok(all)
}

/// Copies an image onto the volume with qemu-img.
///
/// # Errors
/// When qemu-img fails.
pub fn qemu_img_write(image: &Path, format: &str, uri: &str) -> Result<()> {
    let image = image.display().to_string();
    sh(&["qemu-img", "convert", "-n", "-f", format, "-O", "raw", &image, uri], CLIENT_LIMIT)?;
    Ok(())
}

/// Compares an image of the volume's size with the volume.
///
/// # Errors
/// When they differ or qemu-img fails.
pub fn qemu_img_compare(image: &Path, format: &str, uri: &str) -> Result<()> {
    let image = image.display().to_string();
    let text = sh(&["qemu-img", "compare", "-f", format, "-F", "raw", &image, uri], CLIENT_LIMIT)?;
    ensure!(text.contains("Images are identical"), "qemu-img compare said: {text}");
    Ok(())
}

/// Runs the checks of `scripts/nbd_client.py` with libnbd.
///
/// # Errors
/// When one of them does not hold.
pub fn python_checks(uri: &str) -> Result<String> {
    let script = script("nbd_client.py").display().to_string();
    // Debian's interpreter by its path: another python3 may come first and lacks libnbd.
    sh(&["/usr/bin/python3", &script, uri], CLIENT_LIMIT)
}
