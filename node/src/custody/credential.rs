//! A key that systemd gives to the service, from wherever that keeps it: encrypted to the machine's TPM, say.

use super::{KEY_LEN, read_key};
use crate::files;
use anyhow::{Context, ensure};
use smalti_storage::keys::RestKey;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// Modes that let others read, or somebody else change it. Not reading by the group: where systemd lets the service's
/// user read by an access list, the bits of the group show the widest of that list, and no group may.
const FORBIDDEN: u32 = 0o027;

/// Reads a credential of this process.
pub(super) fn load(name: &str) -> anyhow::Result<RestKey> {
    load_from(std::env::var_os(DIRECTORY), name)
}

fn load_from(directory: Option<OsString>, name: &str) -> anyhow::Result<RestKey> {
    let directory = directory.filter(|directory| !directory.is_empty()).with_context(|| {
        format!(
            "{DIRECTORY} is not set: the credential {name} is there only in a service that systemd starts \
             with LoadCredential= or LoadCredentialEncrypted="
        )
    })?;
    let path = Path::new(&directory).join(name);
    let of = || format!("read the credential {}", path.display());
    let mode = fs::metadata(&path).with_context(of)?.permissions().mode() & 0o777;
    ensure!(
        mode & FORBIDDEN == 0,
        "{}: its mode is {mode:o}, so others may have read or changed it; systemd makes it 400 or 440",
        of()
    );
    read_key(&files::read_bounded(&path, KEY_LEN as u64)?, &path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_credential_is_read_as_systemd_gives_it_and_not_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("smalti");
        let load = |name: &str| load_from(Some(dir.path().into()), name);
        let error = |name: &str| format!("{:#}", load(name).unwrap_err());
        assert!(error("smalti").contains("No such file"), "{}", error("smalti"));
        for (mode, taken) in
            [(0o400, true), (0o600, true), (0o440, true), (0o404, false), (0o460, false)]
        {
            files::write_atomic(&path, &[7; 32], mode).unwrap();
            // Made with the mode as far as the process may give it: set it whatever that is.
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            match taken {
                true => assert_eq!(load("smalti").unwrap().expose(), &[7; 32]),
                false => assert!(error("smalti").contains(&format!("its mode is {mode:o}"))),
            }
        }
        for length in [0, 31, 33] {
            files::write_atomic(&path, &vec![1; length], 0o400).unwrap();
            let text = error("smalti");
            assert!(text.contains("bytes"), "{text}");
        }
        for unset in [None, Some(OsString::new())] {
            let text = load_from(unset, "smalti").unwrap_err().to_string();
            assert!(text.starts_with("CREDENTIALS_DIRECTORY is not set"), "{text}");
        }
    }
}
