//! `smalti volume export`: all of a volume into a file or to stdout.

use super::args::VolumeExportArgs;
use crate::control::VolumeDetail;
use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::File;
use std::io::{IsTerminal, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Runs of zeroes of this length are left out of the file: it then takes no more than the volume.
const HOLE: usize = 64 << 10;

pub(super) async fn run(args: VolumeExportArgs) -> anyhow::Result<()> {
    export(args).await.context("export volume")
}

async fn export(args: VolumeExportArgs) -> anyhow::Result<()> {
    let target = args.target.resolve()?;
    let path = format!("/v1/volumes/{}", args.name);
    let detail: VolumeDetail = target.read(&path).await?;
    let size = detail.volume.size;
    let mut sink = if args.file == Path::new("-") {
        Sink::Stdout
    } else {
        Sink::File(SparseFile::create(&args.file, args.force)?)
    };
    let bar = progress(size);
    let mut take = |bytes: &[u8]| {
        bar.inc(bytes.len() as u64);
        sink.take(bytes)
    };
    let taken = target.download(&format!("{path}/image"), &mut take).await?;
    bar.finish_and_clear();
    ensure!(taken == size, "the volume has {size} bytes, and {taken} came");
    sink.finish(size)
}

fn progress(size: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(size).with_style(style)
}

enum Sink {
    Stdout,
    File(SparseFile),
}

impl Sink {
    fn take(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Stdout => std::io::stdout().lock().write_all(bytes).context("write to stdout"),
            Self::File(file) => file.take(bytes),
        }
    }

    fn finish(self, size: u64) -> anyhow::Result<()> {
        match self {
            Self::Stdout => std::io::stdout().lock().flush().context("write to stdout"),
            Self::File(file) => file.finish(size),
        }
    }
}

/// A file that appears under its name only when it is whole, with holes where zeroes are. For its
/// owner alone: what it holds was encrypted.
struct SparseFile {
    path: PathBuf,
    draft: NamedTempFile,
    force: bool,
}

impl SparseFile {
    fn create(path: &Path, force: bool) -> anyhow::Result<Self> {
        match path.symlink_metadata() {
            Ok(_) if !force => bail!("{} exists; --force replaces it", path.display()),
            Ok(found) if !found.is_file() => {
                bail!("{} is not a plain file and is not replaced", path.display())
            }
            _ => {}
        }
        let name = path.file_name().context("the path names no file")?.to_string_lossy();
        let draft = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .suffix(".part")
            .tempfile_in(folder(path))
            .with_context(|| format!("create a file beside {}", path.display()))?;
        Ok(Self { path: path.to_owned(), draft, force })
    }

    fn take(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let file = self.draft.as_file_mut();
        for piece in bytes.chunks(HOLE) {
            let written = if piece.iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Current(piece.len() as i64)).map(drop)
            } else {
                file.write_all(piece)
            };
            written.with_context(|| format!("write {}", self.path.display()))?;
        }
        Ok(())
    }

    fn finish(self, size: u64) -> anyhow::Result<()> {
        let Self { path, draft, force } = self;
        let failed = || format!("write {}", path.display());
        let file = draft.as_file();
        file.set_len(size).and_then(|()| file.sync_all()).with_context(failed)?;
        if force {
            draft.persist(&path).with_context(failed)?;
        } else {
            draft.persist_noclobber(&path).with_context(failed)?;
        }
        File::open(folder(&path)).and_then(|folder| folder.sync_all()).with_context(failed)
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_appears_when_it_is_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("v.img");
        let names = || std::fs::read_dir(folder.path()).expect("a folder").count();
        let mut contents = vec![0; 5 * HOLE + 100];
        contents[HOLE + 5] = 1;
        contents[4 * HOLE] = 2;

        let mut file = SparseFile::create(&path, false).expect("new");
        file.take(&contents[..HOLE * 2 + 17]).expect("taken");
        drop(file);
        assert_eq!(names(), 0, "nothing is left of a failed export");

        let mut file = SparseFile::create(&path, false).expect("new");
        for piece in contents.chunks(100_003) {
            file.take(piece).expect("taken");
        }
        assert!(!path.exists());
        file.finish(contents.len() as u64).expect("finished");
        assert_eq!(std::fs::read(&path).expect("it is there"), contents);
        assert_eq!(names(), 1);
        let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(SparseFile::create(&path, false).is_err(), "it is not replaced");
        SparseFile::create(&path, true).expect("but by force");
        // One that appeared meanwhile is not, and neither is what is no file.
        let other = folder.path().join("other.img");
        let file = SparseFile::create(&other, false).expect("new");
        std::fs::write(&other, "mine").expect("written");
        assert!(file.finish(0).is_err());
        assert_eq!(std::fs::read(&other).expect("it is there"), b"mine");
        assert!(SparseFile::create(folder.path(), true).is_err());
    }
}
