//! Looking through the memory of a process.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

const PAGE: u64 = 4096;
/// Read at once, in pages.
const CHUNK: u64 = 1024;
/// A needle this long is in memory by chance once in 10^29 looks at a GiB.
pub const PIECE: usize = 16;

/// What the smallest process has to write to, in bytes: less was seen than there is.
const LEAST: usize = 64 * 4096;

/// In an entry of `pagemap`: the page is in memory, or swapped out.
const THERE: u64 = 1 << 63 | 1 << 62;

/// What is looked for.
#[derive(Debug, Default)]
pub struct Needles {
    names: Vec<String>,
    pieces: Vec<(usize, [u8; PIECE])>,
    by_start: HashMap<[u8; 4], Vec<usize>>,
    starts: Vec<u64>,
}

/// Where a piece of a needle was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Which needle.
    pub name: String,
    /// Address.
    pub at: u64,
    /// What the kernel calls that part of memory, or whose stack it is and how far below what is in use there.
    pub region: String,
}

impl Needles {
    /// Looks for some bytes too: for every piece of them, since what is left of something need not be whole.
    pub fn add(&mut self, name: impl Into<String>, bytes: &[u8]) {
        let (pieces, _) = bytes.as_chunks::<PIECE>();
        self.starts.resize((1 << 16) / 64, 0);
        for piece in pieces {
            let start = [piece[0], piece[1], piece[2], piece[3]];
            self.by_start.entry(start).or_default().push(self.pieces.len());
            let bit = usize::from(u16::from_le_bytes([piece[0], piece[1]]));
            self.starts[bit / 64] |= 1 << (bit % 64);
            self.pieces.push((self.names.len(), *piece));
        }
        self.names.push(name.into());
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Tells of every piece of a needle in some bytes: where it is, and the needle's name.
    pub fn look(&self, bytes: &[u8], mut found: impl FnMut(usize, &str)) {
        for (at, window) in bytes.windows(PIECE).enumerate() {
            let bit = usize::from(u16::from_le_bytes([window[0], window[1]]));
            if self.starts[bit / 64] >> (bit % 64) & 1 == 0 {
                continue;
            }
            let start = [window[0], window[1], window[2], window[3]];
            for piece in self.by_start.get(&start).into_iter().flatten() {
                let (name, piece) = &self.pieces[*piece];
                if piece == window {
                    found(at, &self.names[*name]);
                }
            }
        }
    }
}

/// Looks through all that a process may write to. `None` when this process may not do that.
///
/// # Errors
/// When there is no such process.
pub fn scan(pid: u32, needles: &Needles) -> Result<Option<Vec<Found>>> {
    ensure!(!needles.is_empty(), "nothing to look for");
    let open = |name: &str| File::open(format!("/proc/{pid}/{name}"));
    let opened = open("mem").and_then(|memory| Ok((memory, open("pagemap")?)));
    let (memory, pages) = match opened {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("open memory of {pid}")),
    };
    let regions = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let stacks = stacks(pid)?;
    let (mut found, mut looked) = (Vec::new(), 0);
    for line in regions.lines() {
        let Some((begin, end, region)) = writable(line) else { continue };
        let mut kept = Vec::new();
        let mut at = begin;
        while at < end {
            let count = ((end - at) / PAGE).min(CHUNK);
            let (there, next) = next_run(&pages, at, count)?;
            let Some((from, to)) = there else {
                kept.clear();
                at = next;
                continue;
            };
            if from != at {
                kept.clear();
            }
            let mut bytes = vec![0; usize::try_from(to - from)?];
            // What was unmapped since is nobody's memory any more.
            if memory.read_exact_at(&mut bytes, from).is_ok() {
                looked += bytes.len();
                let before = kept.len() as u64;
                // What may begin at the end of the run before.
                let all = [kept, bytes].concat();
                needles.look(&all, |offset, name| {
                    let (name, at) = (name.to_owned(), from - before + offset as u64);
                    let stack = stacks.iter().find(|(top, _)| (begin..end).contains(top));
                    let region = stack.map_or_else(
                        || region.to_owned(),
                        |(top, thread)| {
                            format!(
                                "stack of {thread}, {} below",
                                top.wrapping_sub(at).cast_signed()
                            )
                        },
                    );
                    found.push(Found { name, at, region });
                });
                kept = all[all.len().saturating_sub(PIECE - 1)..].to_vec();
            } else {
                kept = Vec::new();
            }
            at = to;
        }
    }
    ensure!(looked > LEAST, "only {looked} bytes of memory of {pid} were seen");
    Ok(Some(found))
}

/// Up to where the stacks of the threads are in use, and their names. Of a thread that runs just now nobody
/// knows.
fn stacks(pid: u32) -> Result<Vec<(u64, String)>> {
    let mut stacks = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let read =
            |name: &str| std::fs::read_to_string(thread.as_ref().ok()?.path().join(name)).ok();
        let (Some(call), Some(name)) = (read("syscall"), read("comm")) else { continue };
        // The last but one word is the stack pointer.
        let top = call.split_whitespace().rev().nth(1).and_then(|word| word.strip_prefix("0x"));
        if let Some(top) = top.and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
            stacks.push((top, name.trim().to_owned()));
        }
    }
    Ok(stacks)
}

/// The region of a line of `maps`, if the process may write to it.
fn writable(line: &str) -> Option<(u64, u64, &str)> {
    let mut words = line.splitn(6, ' ');
    let (begin, end) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    let name = words.nth(3).unwrap_or_default().trim();
    let number = |text| u64::from_str_radix(text, 16).ok();
    rights.contains('w').then_some((number(begin)?, number(end)?, name))
}

/// The first pages that are there of so many from an address on, and where to go on if there are none.
fn next_run(pages: &File, at: u64, count: u64) -> Result<(Option<(u64, u64)>, u64)> {
    let mut entries = vec![0; usize::try_from(count * 8)?];
    pages.read_exact_at(&mut entries, at / PAGE * 8).context("read pagemap")?;
    let (entries, _) = entries.as_chunks::<8>();
    let there = |entry: &[u8; 8]| u64::from_le_bytes(*entry) & THERE != 0;
    let end = at + count * PAGE;
    let Some(first) = entries.iter().position(there) else { return Ok((None, end)) };
    let length = entries[first..].iter().take_while(|entry| there(entry)).count();
    let from = at + first as u64 * PAGE;
    Ok((Some((from, from + length as u64 * PAGE)), end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_to_have_what_it_has() {
        let mut needles = Needles::default();
        let secret: Vec<u8> = (0..64_u32).map(|i| (i * 37 % 251) as u8 ^ 0x5a).collect();
        needles.add("there", &secret);
        let found = scan(std::process::id(), &needles).expect("scanned").expect("one's own");
        assert!(found.iter().any(|hit| hit.at == secret.as_ptr() as u64), "{found:?}");
        assert!(found.iter().any(|hit| hit.at == secret.as_ptr() as u64 + 48), "{found:?}");
        assert_eq!(needles.len(), 1);
    }
}
