//! `smalti volume export`: all of a volume into a file or to stdout.

use super::args::VolumeExportArgs;
use crate::control::VolumeDetail;
use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

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

/// A file that appears under its name only when it is whole, with holes where zeroes are.
struct SparseFile {
    path: PathBuf,
    draft: PathBuf,
    file: File,
    finished: bool,
}

impl SparseFile {
    fn create(path: &Path, force: bool) -> anyhow::Result<Self> {
        if !force && path.symlink_metadata().is_ok() {
            bail!("{} exists; --force replaces it", path.display());
        }
        let mut name = path.file_name().context("the path names no file")?.to_owned();
        name.push(".part");
        let draft = path.with_file_name(name);
        let open = OpenOptions::new().write(true).create_new(true).open(&draft);
        let file = open.with_context(|| format!("create {}", draft.display()))?;
        Ok(Self { path: path.to_owned(), draft, file, finished: false })
    }

    fn take(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let failed = || format!("write {}", self.draft.display());
        for piece in bytes.chunks(HOLE) {
            if piece.iter().all(|byte| *byte == 0) {
                self.file.seek(SeekFrom::Current(piece.len() as i64)).with_context(failed)?;
            } else {
                self.file.write_all(piece).with_context(failed)?;
            }
        }
        Ok(())
    }

    fn finish(mut self, size: u64) -> anyhow::Result<()> {
        let failed = || format!("write {}", self.draft.display());
        self.file.set_len(size).and_then(|()| self.file.sync_all()).with_context(failed)?;
        std::fs::rename(&self.draft, &self.path)
            .with_context(|| format!("rename to {}", self.path.display()))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for SparseFile {
    fn drop(&mut self) {
        if !self.finished {
            // What is left of a failed export would look like the volume.
            let _ = std::fs::remove_file(&self.draft);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(SparseFile::create(&path, false).is_err(), "it is not replaced");
        SparseFile::create(&path, true).expect("but by force");
    }
}
