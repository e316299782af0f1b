//! Files that are written whole or not at all, and secrets only their owner may read.

use anyhow::{Context, ensure};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use zeroize::Zeroizing;

/// Mode of files anyone may read.
pub const PUBLIC: u32 = 0o644;
/// Mode of files with secrets.
pub const PRIVATE: u32 = 0o600;

/// Puts `bytes` at `path` durably: after a crash the file is the old one or the new one.
///
/// # Errors
/// Any step that fails, naming the file.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let folder = parent(path);
    let name = path.file_name().context("the path has no file name")?.to_string_lossy();
    // The process id keeps two writers from sharing one temporary file.
    let temporary = folder.join(format!(".{name}.{}.new", std::process::id()));
    let write = || -> std::io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_dir(folder)
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Makes new names in a folder durable.
///
/// # Errors
/// When the folder can not be opened or synced.
pub fn sync_dir(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The folder of a path, `.` for a bare name.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a folder only its owner may enter; its parent must exist and it must not.
///
/// # Errors
/// When it can not be made, naming it.
pub fn make_private_dir(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new().mode(0o700).create(path).with_context(|| format!("make {}", path.display()))
}

/// Reads a file of at most `max` bytes.
///
/// # Errors
/// When it can not be read or is larger, naming it.
pub fn read_bounded(path: &Path, max: u64) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let read = || -> anyhow::Result<Zeroizing<Vec<u8>>> {
        // Sized first, so that a growing buffer leaves no copy of a secret behind.
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        ensure!(length <= max, "{length} bytes are more than the {max} it may have");
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length)? + 1));
        file.take(max + 1).read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 <= max, "it has more than {max} bytes");
        Ok(bytes)
    };
    read().with_context(|| format!("read {}", path.display()))
}

/// Reads a secret of at most `max` bytes; refuses a file that others than its owner may read,
/// because its secret may be out already.
///
/// # Errors
/// As [`read_bounded`], or when its mode is wider than 0600.
pub fn read_private(path: &Path, max: u64) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mode = fs::metadata(path)
        .with_context(|| format!("read {}", path.display()))?
        .permissions()
        .mode()
        & 0o777;
    ensure!(
        mode & 0o077 == 0,
        "read {}: its mode is {mode:o}, so others may have read it; it must be 600",
        path.display()
    );
    read_bounded(path, max)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn files_are_replaced_whole_with_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"one", PRIVATE).unwrap();
        write_atomic(&path, b"two", PRIVATE).unwrap();
        assert_eq!(*read_private(&path, 3).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(read_bounded(&path, 2).is_err());
    }

    #[test]
    fn exposed_secrets_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"one", PUBLIC).unwrap();
        let error = read_private(&path, 100).unwrap_err().to_string();
        assert!(error.contains("its mode is 644"), "{error}");
    }
}
