//! Images and folders: making, comparing, and searching byte by byte.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::pattern::next_random;
use crate::process::sh;

/// All plain files below a folder.
///
/// # Errors
/// When a folder cannot be read; a file that vanishes meanwhile is not one.
pub fn walk(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(folder) = waiting.pop() {
        let entries =
            std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Flips a byte here and there, one in about `every`, but not at the file's ends, which are its own; in place,
/// for a node may have it open. How many were flipped.
///
/// # Errors
/// When the file can not be read or written.
pub fn flip(path: &Path, random: &mut u64, every: u64) -> Result<u64> {
    let failed = || format!("flip bytes of {}", path.display());
    let file = OpenOptions::new().read(true).write(true).open(path).with_context(failed)?;
    let end = file.metadata().with_context(failed)?.len().saturating_sub(4096);
    let mut flipped = 0;
    let mut at = 4096 + next_random(random) % every;
    while at < end {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).with_context(failed)?;
        byte[0] ^= 1 << (next_random(random) % 8);
        file.write_all_at(&byte, at).with_context(failed)?;
        flipped += 1;
        at += 1 + next_random(random) % (2 * every);
    }
    Ok(flipped)
}

/// Where a needle was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The file.
    pub file: PathBuf,
    /// Offset in it.
    pub offset: u64,
    /// Which needle.
    pub needle: usize,
}

/// What a search went through.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// Files read.
    pub files: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Everything found.
    pub hits: Vec<Hit>,
}

/// Searches every byte of every file below the folders for any of the needles.
///
/// # Errors
/// When a file cannot be read, or a needle is shorter than two bytes.
pub fn search(folders: &[PathBuf], needles: &[Vec<u8>]) -> Result<Search> {
    const CHUNK: usize = 1 << 20;
    ensure!(needles.iter().all(|n| n.len() >= 2), "needles have at least two bytes");
    let overlap = needles.iter().map(Vec::len).max().unwrap_or(0).saturating_sub(1);
    // The first two bytes decide; what is left to compare is one place in some ten thousand.
    let mut starts = vec![false; 1 << 16];
    needles.iter().for_each(|n| starts[usize::from(n[0]) << 8 | usize::from(n[1])] = true);
    let mut result = Search::default();
    for file in folders.iter().map(|f| walk(f)).collect::<Result<Vec<_>>>()?.concat() {
        let mut input = match File::open(&file) {
            Ok(input) => input,
            // A running store deletes files it has compacted.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("open {}", file.display())),
        };
        let (mut buf, mut kept, mut base) = (vec![0; overlap + CHUNK], 0, 0_u64);
        loop {
            let n = input.read(&mut buf[kept..])?;
            let held = kept + n;
            result.bytes += n as u64;
            for at in 0..held.saturating_sub(1) {
                if !starts[usize::from(buf[at]) << 8 | usize::from(buf[at + 1])] {
                    continue;
                }
                for (i, needle) in needles.iter().enumerate() {
                    // What lies whole in the kept part was found in the round before.
                    let new = at + needle.len() > kept;
                    if new && buf[at..held].starts_with(needle) {
                        let offset = base + at as u64;
                        result.hits.push(Hit { file: file.clone(), offset, needle: i });
                    }
                }
            }
            if n == 0 {
                break;
            }
            let drop = held.saturating_sub(overlap);
            buf.copy_within(drop..held, 0);
            kept = held - drop;
            base += drop as u64;
        }
        result.files += 1;
    }
    Ok(result)
}

/// Fills a file with `bytes` random bytes.
///
/// # Errors
/// When it cannot be written.
pub fn random_file(path: &Path, bytes: usize, seed: u64) -> Result<()> {
    let mut state = seed;
    let mut data = vec![0; bytes];
    data.chunks_mut(8).for_each(|c| {
        let word = next_random(&mut state).to_le_bytes();
        c.copy_from_slice(&word[..c.len()]);
    });
    std::fs::write(path, data).with_context(|| format!("write {}", path.display()))
}

/// Makes a disk image of `size` bytes with a journalled ext4 on it that holds real files.
/// No mount is needed, so no rights either.
///
/// # Errors
/// When mke2fs fails.
pub fn ext4_image(image: &Path, size: u64, seed: u64) -> Result<()> {
    let folder = image.with_extension("tree");
    std::fs::create_dir_all(folder.join("deep/er"))?;
    for i in 0..24_u64 {
        let name = if i.is_multiple_of(3) { format!("deep/er/{i}") } else { format!("f{i}") };
        random_file(&folder.join(name), (i as usize + 1) * 100_003, seed + i)?;
    }
    std::fs::write(folder.join("text"), "the quick brown fox\n".repeat(5000))?;
    File::create(image)?.set_len(size)?;
    let (folder_text, image_text) = (folder.display().to_string(), image.display().to_string());
    sh(
        &["mke2fs", "-q", "-F", "-t", "ext4", "-d", &folder_text, &image_text],
        Duration::from_secs(60),
    )?;
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Compares two files byte by byte, as far as that or to their ends.
///
/// # Errors
/// When they differ, with cmp's word on where.
pub fn same(a: &Path, b: &Path, bytes: Option<usize>) -> Result<()> {
    let (a, b) = (a.display().to_string(), b.display().to_string());
    let limit = bytes.map(|bytes| format!("--bytes={bytes}"));
    let words = ["cmp"].into_iter().chain(limit.as_deref()).chain([a.as_str(), b.as_str()]);
    sh(&words.collect::<Vec<_>>(), Duration::from_secs(120))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_needles_across_chunks_and_nowhere_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let (a, b) = (folder.path().join("a"), folder.path().join("sub/b"));
        std::fs::create_dir(folder.path().join("sub")).expect("a folder");
        let needle = b"needle in a chunk".to_vec();
        let mut data = vec![b'n'; (3 << 20) + 77];
        let places = [0, (1 << 20) - 5, (2 << 20) + 16, data.len() - needle.len()];
        places.iter().for_each(|p| data[*p..*p + needle.len()].copy_from_slice(&needle));
        std::fs::write(&a, &data).expect("written");
        std::fs::write(&b, b"other").expect("written");
        let folders = [folder.path().to_path_buf()];
        let found = search(&folders, &[b"absent".to_vec(), needle]).expect("searched");
        assert_eq!(found.files, 2);
        assert_eq!(found.bytes, data.len() as u64 + 5);
        let offsets: Vec<usize> = found.hits.iter().map(|h| h.offset as usize).collect();
        assert_eq!(offsets, places);
        assert!(found.hits.iter().all(|h| h.file == a && h.needle == 1));
    }
}
