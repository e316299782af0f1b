//! Whether the disk that a node's store was on is there.
//!
//! A folder that a disk is to be mounted on looks like that of a store that was emptied, and an emptied store is made
//! anew, rebuilt, and forgotten where it was: all that on the disk of the system, because of one mount that failed. So
//! a node whose data has a disk of its own notes that with its credentials, which are elsewhere, and does not start
//! without one.

use anyhow::{Context, bail};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The note. What it holds is for people.
const NOTE: &str = "data-disk";

/// Looks, and notes what there is to note.
///
/// # Errors
/// The disk is not mounted, or something can not be read or written.
pub fn check(data_dir: &Path, credentials: &Path) -> anyhow::Result<()> {
    let store = data_dir.join("store");
    let note = credentials.join(NOTE);
    let apart = device(&store)? != device(credentials)?;
    let failed = || format!("note that the data has a disk of its own: {}", note.display());
    let noted = note.try_exists().with_context(failed)?;
    // One that was copied here is as good as it was there.
    let is_there = store.join("STORE").try_exists().with_context(failed)?;
    match (apart, noted) {
        (true, false) => {
            let text = "The store of this node is on a disk of its own, and the node does not start without \
                        one. Delete this file if the store is to be made anew where it is now.\n";
            if let Err(error) = keep(&note, text) {
                // Where credentials can not be written to, mounts are somebody else's to watch.
                tracing::warn!(%error, note = %note.display(), "it is not noted that the data has a disk of its own");
            }
            Ok(())
        }
        (false, true) if is_there => fs::remove_file(&note).with_context(failed),
        (false, true) => bail!(
            "{} was on a disk of its own, and is not any more: mount it; if the store is to be made anew where the \
             folder is now, delete {}",
            store.display(),
            note.display()
        ),
        _ => Ok(()),
    }
}

fn keep(note: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::File::create(note)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    note.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
}

/// The file system of a path, or of the folder that it is to be made in.
fn device(path: &Path) -> anyhow::Result<u64> {
    let absolute = std::path::absolute(path).with_context(|| path.display().to_string())?;
    let mut at: PathBuf = absolute;
    loop {
        match fs::metadata(&at) {
            Ok(found) => return Ok(found.dev()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && at.pop() => {}
            Err(error) => return Err(error).with_context(|| format!("look at {}", at.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folders {
        data: tempfile::TempDir,
        credentials: tempfile::TempDir,
    }

    /// Data in a folder of this file system, or of another one where there is one.
    fn folders(data: &Path) -> Folders {
        Folders {
            data: tempfile::tempdir_in(data).expect("a folder"),
            credentials: tempfile::tempdir().expect("a folder"),
        }
    }

    fn look(of: &Folders) -> Result<(), String> {
        check(&of.data.path().join("data"), of.credentials.path()).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn an_emptied_folder_is_no_missing_disk() {
        let here = folders(&std::env::temp_dir());
        for _ in 0..2 {
            assert_eq!(look(&here), Ok(()));
        }
        assert!(!here.credentials.path().join(NOTE).exists());
    }

    #[test]
    fn a_disk_that_is_not_mounted_is_told() {
        let shm = Path::new("/dev/shm");
        if !shm.is_dir()
            || device(shm).expect("it is there")
                == device(&std::env::temp_dir()).expect("it is there")
        {
            return;
        }
        let apart = folders(shm);
        assert_eq!(look(&apart), Ok(()));
        let note = apart.credentials.path().join(NOTE);
        assert!(note.exists());
        // The same credentials, and the folder is one of this file system.
        let here = folders(&std::env::temp_dir());
        let unmounted = Folders { data: here.data, credentials: apart.credentials };
        let why = look(&unmounted).expect_err("no disk is there");
        assert!(why.contains("was on a disk of its own") && why.contains("mount it"), "{why}");
        // Whoever copied the store there knows what he does, and so does who deletes the note.
        let store = unmounted.data.path().join("data/store");
        fs::create_dir_all(&store).expect("made");
        fs::write(store.join("STORE"), "a label").expect("written");
        assert_eq!(look(&unmounted), Ok(()));
        assert!(!note.exists());
        fs::remove_dir_all(&store).expect("removed");
        assert_eq!(look(&unmounted), Ok(()));
    }
}
