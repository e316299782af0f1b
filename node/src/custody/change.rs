//! Another key provider instead of the present one, while the node is stopped.
//!
//! ```text
//! note before and after -> make the new key -> seal all shares anew, aside -> look whether they open
//!     -> node.toml names the new ones -> destroy the old ones -> remove the note
//! ```
//!
//! Cut off at any moment, the config names either all that was before or all that comes after; whichever it is not, the
//! note tells, and that is destroyed by the next start of the node or the next change ([`settle`]).

use super::{Passphrase, PassphraseKey, Provider, create_key, open, open_with};
use crate::config::{CustodyConfig, NodeConfig, ProviderConfig};
use crate::files;
use crate::local::PidFile;
use anyhow::{Context, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use smalti_cluster::custodian::Vault;
use std::fs::{self, DirEntry, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

const NOTE: &str = "custody.change";
const NOTE_FORMAT: u32 = 1;
const NOTE_BYTES_MAX: u64 = 64 << 10;
const CONFIG_BYTES_MAX: u64 = 1 << 20;
const SHARES: &str = "shares";
const SHARE_EXTENSION: &str = "share";
/// Of shares that were begun and not kept.
const DRAFT_EXTENSION: &str = "new";

/// What is to seal the shares.
#[derive(Clone, Debug)]
pub enum NewProvider {
    /// A new key file.
    KeyFile,
    /// A passphrase.
    Passphrase(Passphrase),
    /// A credential of this name.
    Credential(String),
}

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Custody as the config names it now.
    pub custody: CustodyConfig,
    /// Shares that were sealed anew.
    pub shares: usize,
    /// A key of before that is out of the node's folder, or no file, and so is left to whoever put it there.
    pub left: Option<String>,
}

/// A change that has begun. Paths in the folder of the note are relative to it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    format: u32,
    before: CustodyConfig,
    after: CustodyConfig,
}

/// Called at each step; in tests a process dies there.
type Hook<'a> = &'a mut dyn FnMut() -> anyhow::Result<()>;

impl Change {
    /// Seals all shares of a stopped node anew. `old` is asked for the passphrase of before where there is one.
    ///
    /// # Errors
    /// The node runs, a share does not open, a key can not be had, or the disk fails. The node then is as it was,
    /// unless it is said that it changed.
    pub fn make(
        config_path: &Path,
        new: &NewProvider,
        old: impl FnOnce() -> anyhow::Result<Passphrase>,
    ) -> anyhow::Result<Self> {
        let node = Stopped::lock(config_path)?;
        let made = node.change(new, old, &mut || Ok(()));
        if let Err(error) = &made {
            // Whichever of both is of no use now, by the config.
            let clean = NodeConfig::load(&node.config_path)
                .map_err(anyhow::Error::from)
                .and_then(|config| settle(&config.custody));
            clean.with_context(|| format!("clean up after what failed: {error:#}"))?;
        }
        node.unlock()?;
        made
    }
}

/// A node that can not start meanwhile.
struct Stopped {
    config_path: PathBuf,
    config: NodeConfig,
    lock: PidFile,
    /// Whether it had ended in order.
    was_left: bool,
}

impl Stopped {
    fn lock(config_path: &Path) -> anyhow::Result<Self> {
        let config_path = std::path::absolute(config_path).context("find the config")?;
        let config = NodeConfig::load(&config_path)?;
        let was_left = PidFile::was_left(&config.data_dir);
        let lock = PidFile::acquire(&config.data_dir).context("stop the node first")?;
        Ok(Self { config_path, config, lock, was_left })
    }

    fn unlock(self) -> anyhow::Result<()> {
        if self.was_left { self.lock.leave() } else { Ok(()) }
    }

    fn change(
        &self,
        new: &NewProvider,
        old: impl FnOnce() -> anyhow::Result<Passphrase>,
        at: Hook<'_>,
    ) -> anyhow::Result<Change> {
        let before = &self.config.custody;
        settle(before).context("end an earlier change of key providers")?;
        let provider = open(before)?;
        if let Some(lock) = &provider.lock {
            lock.unlock(&old()?).context("open the shares as they are")?;
        }
        let after = after(before, new)?;
        let folder = note_folder(before)?;
        Note::new(before, &after, folder).write(folder)?;
        at()?;
        match (&after.provider, new) {
            (ProviderConfig::KeyFile(path), _) => drop(create_key(path)?),
            (ProviderConfig::Passphrase(path), NewProvider::Passphrase(passphrase)) => {
                PassphraseKey::create(path, passphrase)?;
            }
            _ => {}
        }
        at()?;
        let passphrase = match new {
            NewProvider::Passphrase(passphrase) => Some(passphrase),
            _ => None,
        };
        // From where the node will have it.
        let opened = || open_with(&after, passphrase);
        let from = self.vault(before, provider);
        let to = self.vault(&after, opened()?);
        copy(&from, &to, at)?;
        let shares = compare(&from, &self.vault(&after, opened()?))?;
        at()?;
        self.switch(&after).context("name the new key provider in the config")?;
        at()?;
        let told =
            || anyhow!("the key provider has changed; what was before is yet to be destroyed");
        settle_at(&after, at).with_context(told)?;
        let left = match &before.provider {
            ProviderConfig::Credential(name) => Some(format!("the credential {name}")),
            provider => provider
                .file()
                .filter(|path| !is_within(path, folder))
                .map(|path| path.display().to_string()),
        };
        Ok(Change { custody: after, shares, left })
    }

    fn vault(&self, custody: &CustodyConfig, provider: Provider) -> Vault {
        let (cluster, node) = (self.config.cluster, self.config.node);
        Vault::new(custody.shares_dir.clone(), cluster, node, provider.key)
    }

    /// From this moment on the new ones count.
    fn switch(&self, after: &CustodyConfig) -> anyhow::Result<()> {
        let path = &self.config_path;
        let folder = files::parent(path);
        let bytes = files::read_bounded(path, CONFIG_BYTES_MAX)?;
        let text = std::str::from_utf8(&bytes).context("read the config")?;
        let old = NodeConfig::parse(path, text)?;
        let new = NodeConfig { custody: after.clone().relative_to(folder), ..old };
        let text = rewritten(path, text, &new)?;
        let mode = fs::metadata(path)?.permissions().mode() & 0o777;
        files::write_atomic(path, text.as_bytes(), mode)
    }
}

/// The config with other custody. What else is there stays as it is written, comments too, where it is written in the
/// usual way.
fn rewritten(path: &Path, text: &str, new: &NodeConfig) -> anyhow::Result<String> {
    let fields = ["shares_dir", "key_file", "passphrase_file", "credential"];
    let is_field = |line: &&str| {
        let key = line.split_once('=').map(|(key, _)| key.trim());
        key.is_some_and(|key| fields.contains(&key))
    };
    let wanted = new.to_toml()?;
    let table = |text: &'_ str| -> (usize, usize) {
        let header = text.lines().position(|line| line.trim() == "[custody]");
        let from = header.map_or(0, |header| header + 1);
        let next = text.lines().skip(from).position(|line| line.trim_start().starts_with('['));
        (from, next.map_or_else(|| text.lines().count(), |next| from + next))
    };
    let (from, to) = table(&wanted);
    let custody = wanted.lines().take(to).skip(from).filter(is_field);
    let (from, to) = table(text);
    let lines = text.lines().take(from);
    let kept = text.lines().take(to).skip(from).filter(|line| !is_field(line));
    let lines = lines.chain(custody).chain(kept).chain(text.lines().skip(to));
    let edited: String = lines.flat_map(|line| [line, "\n"]).collect();
    if NodeConfig::parse(path, &edited).is_ok_and(|config| config == *new) {
        return Ok(edited);
    }
    let whole = match text.trim_start().starts_with('{') {
        true => serde_json::to_string_pretty(new)?,
        false => wanted,
    };
    let read = NodeConfig::parse(path, &whole)?;
    ensure!(read == *new, "the config would not be read as it is meant");
    Ok(whole)
}

/// Where everything will be.
fn after(before: &CustodyConfig, new: &NewProvider) -> anyhow::Result<CustodyConfig> {
    let folder = note_folder(before)?;
    let free = |stem: &str, end: &str| -> anyhow::Result<PathBuf> {
        let name = |no: u32| match no {
            1 => format!("{stem}{end}"),
            no => format!("{stem}-{no}{end}"),
        };
        // Whatever is there is not ours to replace.
        let free = (1..=u32::from(u8::MAX)).map(|no| folder.join(name(no)));
        let mut free = free.filter(|path| fs::symlink_metadata(path).is_err());
        free.next().with_context(|| format!("{} has no free name", folder.display()))
    };
    let provider = match new {
        NewProvider::KeyFile => ProviderConfig::KeyFile(free("custody", ".key")?),
        NewProvider::Passphrase(_) => ProviderConfig::Passphrase(free("custody", ".argon2")?),
        NewProvider::Credential(name) => ProviderConfig::Credential(name.clone()),
    };
    ensure!(
        !matches!(new, NewProvider::Credential(_)) || provider != before.provider,
        "the shares are sealed under that credential: put the new key in one of another name"
    );
    Ok(CustodyConfig { shares_dir: free(SHARES, "")?, provider })
}

/// Seals every share anew, and takes along what else is there: the audit log.
fn copy(from: &Vault, to: &Vault, at: Hook<'_>) -> anyhow::Result<()> {
    files::make_private_dir(to.folder())?;
    for share in from.names()? {
        let part = from.find(&share).with_context(|| {
            format!("the {share} does not open: start the node once, and it gets a new one")
        })?;
        to.keep(&share, &part)?;
        at()?;
    }
    for entry in others(from.folder())? {
        let (path, target) = (entry.path(), to.folder().join(entry.file_name()));
        let copy = || -> std::io::Result<()> {
            fs::copy(&path, &target)?;
            File::open(&target)?.sync_all()
        };
        copy().with_context(|| format!("copy {}", path.display()))?;
    }
    to.sync()?;
    files::sync_dir(files::parent(to.folder())).context("sync the folder of the shares")
}

/// Files that are no shares.
fn others(folder: &Path) -> anyhow::Result<Vec<DirEntry>> {
    let list = || -> anyhow::Result<Vec<DirEntry>> {
        let mut others = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            ensure!(entry.file_type()?.is_file(), "{} is no file", entry.path().display());
            let path = entry.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if !matches!(extension, Some(SHARE_EXTENSION | DRAFT_EXTENSION)) {
                others.push(entry);
            }
        }
        Ok(others)
    };
    list().with_context(|| format!("look at {}", folder.display()))
}

/// Makes sure that every share opens where it is now, and counts them.
fn compare(from: &Vault, to: &Vault) -> anyhow::Result<usize> {
    let shares = from.names()?;
    for share in &shares {
        let (old, new) = (from.find(share)?, to.find(share)?);
        ensure!(old.to_bytes() == new.to_bytes(), "the {share} is another one when it is read");
    }
    Ok(shares.len())
}

impl Note {
    fn new(before: &CustodyConfig, after: &CustodyConfig, folder: &Path) -> Self {
        let within = |custody: &CustodyConfig| custody.clone().relative_to(folder);
        Self { format: NOTE_FORMAT, before: within(before), after: within(after) }
    }

    fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        files::write_atomic(&folder.join(NOTE), &text, files::PRIVATE)
    }

    fn read(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = folder.join(NOTE);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = files::read_bounded(&path, NOTE_BYTES_MAX)?;
        let note: Self =
            serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?;
        ensure!(note.format == NOTE_FORMAT, "{} is of format {}", path.display(), note.format);
        Ok(Some(note))
    }
}

/// The folder that the shares' own is in.
fn note_folder(custody: &CustodyConfig) -> anyhow::Result<&Path> {
    let shares = &custody.shares_dir;
    ensure!(shares.file_name().is_some(), "{} is no folder of its own", shares.display());
    Ok(files::parent(shares))
}

/// Destroys what a change that was cut off has left, the new or the old: whatever is not in use. The node must not
/// run, or be about to start.
///
/// # Errors
/// The disk fails, or the config names neither; then nothing is touched.
pub fn settle(current: &CustodyConfig) -> anyhow::Result<()> {
    settle_at(current, &mut || Ok(()))
}

fn settle_at(current: &CustodyConfig, at: Hook<'_>) -> anyhow::Result<()> {
    let folder = note_folder(current)?;
    let Some(note) = Note::read(folder)? else { return Ok(()) };
    let (before, after) = (note.before.resolve(folder), note.after.resolve(folder));
    let (used, unused) = match () {
        () if *current == after => (after, before),
        () if *current == before => (before, after),
        () => bail!(
            "{} tells of a change between key providers of which the config names neither: make it name \
             one of them",
            folder.join(NOTE).display()
        ),
    };
    let gone = |done: std::io::Result<()>, path: &Path| match done {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("destroy {}", path.display()))
        }
        _ => Ok(()),
    };
    // The key first: without it what is left of the shares is worth nothing.
    if let Some(key) = unused.provider.file()
        && Some(key) != used.provider.file()
        && is_within(key, folder)
    {
        gone(fs::remove_file(key), key)?;
        files::sync_dir(files::parent(key)).context("sync the folder of the key")?;
        at()?;
    }
    if unused.shares_dir != used.shares_dir && is_within(&unused.shares_dir, folder) {
        gone(fs::remove_dir_all(&unused.shares_dir), &unused.shares_dir)?;
        files::sync_dir(folder).context("sync the folder of the shares")?;
        at()?;
    }
    gone(fs::remove_file(folder.join(NOTE)), &folder.join(NOTE))?;
    files::sync_dir(folder).context("sync the folder of the shares")
}

/// Whether a path leads nowhere but into `folder`: elsewhere things may be others' as well.
fn is_within(path: &Path, folder: &Path) -> bool {
    let inner = path.strip_prefix(folder);
    inner.is_ok_and(|inner| inner.components().all(|part| matches!(part, Component::Normal(_))))
}

#[cfg(test)]
mod tests;
