//! What a power cut leaves.

use crate::disk::{Disk, File, NameChange, Named, Names};
use crate::rng::Draw;
use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

/// What the kernel writes at once, and so what may be there or not by itself.
const PAGE: usize = 4096;

/// Which promises the disk keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What was synced is there.
    Honest,
    /// One file or several end before what was synced, or are gone.
    Lying,
    /// One bit of what was synced is another one.
    Rotten,
}

/// The files a cut leaves.
#[derive(Clone, Debug, Default)]
pub struct Image {
    folders: Vec<String>,
    files: BTreeMap<String, Vec<u8>>,
    /// What became of each file that is not simply as it was, for people.
    pub notes: Vec<String>,
    /// Files that lack what was synced.
    pub harmed: Vec<String>,
}

/// What becomes of bytes that were not synced.
#[derive(Clone, Copy, Debug)]
enum Tail {
    Kept,
    Lost,
    /// The file ends somewhere in between.
    Cut,
    /// It ends somewhere, and some pages hold zeroes: the length was written before them.
    Holes,
    /// As holes, with what was on the disk before, as a file system may show that does not order
    /// its writes.
    Garbage,
}

const TAILS: [Tail; 5] = [Tail::Kept, Tail::Lost, Tail::Cut, Tail::Holes, Tail::Garbage];

impl Disk {
    /// What a cut now leaves, drawn from a seed.
    pub fn image(&self, seed: u64, mode: Mode) -> Image {
        let mut draw = Draw::new(seed);
        let names = self.names_left(&mut draw);
        let mut image = Image::default();
        // One fate for all, as when nothing was written since a moment, or each its own.
        let common = draw.chance(50).then(|| *draw.pick(&TAILS));
        for (name, named) in &names {
            if !has_folder(&names, name) {
                continue;
            }
            match named {
                Named::Folder => image.folders.push(name.clone()),
                Named::File(file) => {
                    let file = &self.files[file];
                    let tail = common.unwrap_or_else(|| *draw.pick(&TAILS));
                    let left = file.left(tail, &mut draw);
                    if left != file.content {
                        let (synced, len) = (file.durable.len(), file.content.len());
                        let to = left.len();
                        image.notes.push(format!("{name}: {tail:?}, {synced}..{len} -> {to}"));
                    }
                    image.files.insert(name.clone(), left);
                }
            }
        }
        match mode {
            Mode::Honest => {}
            Mode::Lying => self.lie(&names, &mut image, &mut draw),
            Mode::Rotten => self.rot(&names, &mut image, &mut draw),
        }
        image
    }

    /// The names that are there: all changes, none that was not synced, a journal's first ones, or
    /// any of them with the names of the synced files before them.
    fn names_left(&self, draw: &mut Draw) -> Names {
        let mut names = self.durable.clone();
        let count = self.pending.len();
        let (kept, chance) = match draw.below(4) {
            0 => (count, 100),
            1 => (0, 100),
            2 => (draw.between(0, count), 100),
            _ => (count, 50),
        };
        let pending = &self.pending[..kept];
        let drawn: Vec<bool> = pending.iter().map(|_| draw.chance(chance)).collect();
        let last = drawn.iter().rposition(|kept| *kept).unwrap_or(0);
        for (at, change) in pending.iter().enumerate() {
            let of_synced =
                |file| self.files.get(file).is_some_and(|file| !file.durable.is_empty());
            let goes_along =
                matches!(change, NameChange::Add(_, Named::File(file)) if of_synced(file));
            if drawn[at] || (at < last && goes_along) {
                change.apply(&mut names);
            }
        }
        names
    }

    /// Takes from up to three files what the disk had said was there.
    fn lie(&self, names: &Names, image: &mut Image, draw: &mut Draw) {
        let kinds = self.synced(names, image);
        if kinds.is_empty() {
            return;
        }
        for _ in 0..*draw.pick(&[1, 1, 1, 2, 3]) {
            let (name, durable) = pick(&kinds, draw);
            let synced = durable.len();
            if draw.chance(10) {
                image.files.remove(name);
                image.notes.push(format!("{name}: gone, of {synced} synced"));
            } else {
                let to = match draw.below(10) {
                    0 => 0,
                    1..=5 => synced - 1 - draw.below(synced.min(9000)),
                    _ => draw.below(synced),
                };
                image.files.insert(name.to_owned(), durable[..to].to_vec());
                image.notes.push(format!("{name}: cut to {to} of {synced} synced"));
            }
            image.harmed.push(name.to_owned());
        }
    }

    /// Turns one bit over.
    fn rot(&self, names: &Names, image: &mut Image, draw: &mut Draw) {
        let kinds = self.synced(names, image);
        if kinds.is_empty() {
            return;
        }
        let (name, durable) = pick(&kinds, draw);
        let (at, bit) = (draw.below(durable.len()), draw.below(8));
        if let Some(byte) = image.files.get_mut(name).and_then(|bytes| bytes.get_mut(at)) {
            *byte ^= 1 << bit;
            image.notes.push(format!("{name}: bit {bit} of byte {at} of {}", durable.len()));
            image.harmed.push(name.to_owned());
        }
    }

    /// The files of which something was synced, by kind: by name most would be tables.
    fn synced<'a>(&'a self, names: &'a Names, image: &Image) -> Vec<Vec<(&'a str, &'a [u8])>> {
        let mut kinds: BTreeMap<&str, Vec<(&str, &[u8])>> = BTreeMap::new();
        for (name, named) in names {
            let Named::File(file) = named else { continue };
            let durable = &self.files[file].durable;
            if image.files.contains_key(name) && !durable.is_empty() {
                kinds.entry(kind(name)).or_default().push((name, durable));
            }
        }
        kinds.into_values().collect()
    }
}

/// One of the files; half the time the newest of its kind, which is the one in use.
fn pick<'a>(kinds: &[Vec<(&'a str, &'a [u8])>], draw: &mut Draw) -> (&'a str, &'a [u8]) {
    let of_kind = draw.pick(kinds);
    if draw.chance(50) { of_kind[of_kind.len() - 1] } else { *draw.pick(of_kind) }
}

impl File {
    fn left(&self, tail: Tail, draw: &mut Draw) -> Vec<u8> {
        if self.is_durable() {
            return self.content.clone();
        }
        let (synced, len) = (self.durable.len(), self.content.len());
        match tail {
            Tail::Kept => return self.content.clone(),
            Tail::Lost => return self.durable.clone(),
            Tail::Cut | Tail::Holes | Tail::Garbage => {}
        }
        let end = draw.between(synced.min(len), synced.max(len));
        let mut left = self.durable.clone();
        left.resize(end, 0);
        for page in (0..end).step_by(PAGE) {
            let stop = end.min(page + PAGE);
            // Written over in place: the page is the old one or the new one.
            let old = page..stop.min(synced).min(len);
            if draw.chance(50) && old.start < old.end {
                left[old.clone()].copy_from_slice(&self.content[old]);
            }
            let fresh = page.max(synced)..stop;
            if fresh.start >= fresh.end {
                continue;
            }
            match tail {
                Tail::Holes if draw.chance(40) => {}
                // In a page of which something was synced only zeroes can stand behind that.
                Tail::Garbage if fresh.start > synced && draw.chance(40) => {
                    left[fresh].fill_with(|| (draw.any() & 0xff) as u8);
                }
                _ => left[fresh.clone()].copy_from_slice(&self.content[fresh]),
            }
        }
        left
    }
}

impl Image {
    /// Makes the image below a folder.
    ///
    /// # Errors
    /// When it can not be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        // In the order of names a folder comes before what is in it.
        for name in &self.folders {
            fs::create_dir(folder.join(name))?;
        }
        for (name, bytes) in &self.files {
            fs::write(folder.join(name), bytes)?;
        }
        Ok(())
    }

    /// The content of one file.
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }
}

/// Whether all folders above a name are there.
fn has_folder(names: &Names, name: &str) -> bool {
    let mut name = name;
    while let Some((folder, _)) = name.rsplit_once('/') {
        if names.get(folder) != Some(&Named::Folder) {
            return false;
        }
        name = folder;
    }
    true
}

/// What a file is for, by its name: the ending, or the name without its number.
fn kind(name: &str) -> &str {
    let file = name.rsplit_once('/').map_or(name, |(_, file)| file);
    match file.rsplit_once('.') {
        Some((_, ending)) => ending,
        None => file.trim_end_matches(|c: char| c.is_ascii_digit()),
    }
}
