//! Files with certificates and keys: written whole or not at all, keys for their owner's eyes.

use crate::error::CredentialError;
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};
use zeroize::Zeroizing;

/// A certificate or key file is a few KiB; more is not one.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Secrecy {
    /// Certificates: mode 0644.
    Public,
    /// Private keys: mode 0600.
    Private,
}

impl Secrecy {
    const fn mode(self) -> u32 {
        match self {
            Self::Public => 0o644,
            Self::Private => 0o600,
        }
    }
}

/// Puts `text` at `path` durably: a crash leaves the old file or the new one, never a torn one.
pub(crate) fn write(path: &Path, text: &str, secrecy: Secrecy) -> Result<(), CredentialError> {
    let failed = |source| CredentialError::Io { path: path.to_owned(), source };
    let temporary = path.with_extension("new");
    // A leftover of an earlier crash may have another mode, and `create_new` sets ours only on
    // files that it makes.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(secrecy.mode())
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new("."))).and_then(|f| f.sync_all()).map_err(failed)
}

/// Reads a file that [`write()`] made. A private one that others may read is refused: its secret
/// may be out already, and quietly going on would hide that.
pub(crate) fn read(path: &Path, secrecy: Secrecy) -> Result<Zeroizing<String>, CredentialError> {
    let failed = |source| CredentialError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if secrecy == Secrecy::Private && metadata.permissions().mode() & 0o077 != 0 {
        return Err(CredentialError::Exposed { path: path.to_owned() });
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(CredentialError::NotPem { what: "file of this size" });
    }
    // Sized first, so that no half-read copy of a key is left behind by a growing buffer.
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize));
    Read::by_ref(&mut file).take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}
