//! The file beside a node's config that says how its passphrase becomes a key. There is no secret in it; but whoever
//! has it and a share file can try passphrases, each at the price that it names.

use super::passphrase::{Passphrase, UnlockError};
use crate::files;
use anyhow::{Context, ensure};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use data_encoding::HEXLOWER;
use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smalti_storage::keys::{KeyProvider, RestError, RestKey};
use std::ops::RangeInclusive;
use std::path::Path;
use zeroize::Zeroizing;

const FORMAT: u32 = 1;
const ALGORITHM: &str = "argon2id";
const FILE_BYTES_MAX: u64 = 4096;
const SALT_LEN: usize = 16;
const SUM_LEN: usize = 8;

/// What the check is bound to. It is sealed nothing: whether it opens tells the right key.
const CHECK: &[u8] = b"custody passphrase";

/// What new files ask for: the second recommendation of RFC 9106, on one lane, for one core does it.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 1;

/// Less than new files ask for was not written by this program. More than a node has to spare is not tried: whoever
/// can change the file must not bring the node down with it.
const MEMORY_KIB_RANGE: RangeInclusive<u32> = MEMORY_KIB..=1 << 20;
const PASSES_RANGE: RangeInclusive<u32> = PASSES..=16;
const LANES_RANGE: RangeInclusive<u32> = LANES..=16;

/// How a passphrase becomes a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stretch {
    format: u32,
    algorithm: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    /// Random, in hexadecimal, as are the next two.
    salt: String,
    /// Nothing, sealed under the key.
    check: String,
    /// Tells a damaged file from a wrong passphrase: the beginning of the SHA-256 of all before.
    sum: String,
}

/// A file that can not be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum Unusable {
    #[error("format {0} is not known; this program knows {FORMAT}")]
    Format(u32),
    #[error("it is damaged: its sum is not that of what is in it")]
    Damaged,
    #[error("{0} is not an algorithm of this program; it knows {ALGORITHM}")]
    Algorithm(String),
    #[error("{name} {value} is not from {} to {}", range.start(), range.end())]
    Range { name: &'static str, value: u32, range: RangeInclusive<u32> },
}

impl Stretch {
    /// Draws a salt for a passphrase, and puts the file at `path`.
    pub(super) fn create(path: &Path, passphrase: &Passphrase) -> anyhow::Result<RestKey> {
        let mut salt = [0; SALT_LEN];
        SysRng.try_fill_bytes(&mut salt).context("draw a salt")?;
        let mut new = Self {
            format: FORMAT,
            algorithm: ALGORITHM.into(),
            memory_kib: MEMORY_KIB,
            passes: PASSES,
            lanes: LANES,
            salt: HEXLOWER.encode(&salt),
            check: String::new(),
            sum: String::new(),
        };
        let key = new.derive(passphrase)?;
        new.check = HEXLOWER.encode(&key.seal(CHECK, b"")?);
        new.sum = new.summed();
        let mut text = serde_json::to_string_pretty(&new)?;
        text.push('\n');
        files::write_atomic(path, text.as_bytes(), files::PRIVATE)?;
        Ok(key)
    }

    /// Reads the file at `path`.
    pub(super) fn load(path: &Path) -> anyhow::Result<Self> {
        let bytes = files::read_bounded(path, FILE_BYTES_MAX)?;
        let of = || format!("use {}", path.display());
        let read: Self = serde_json::from_slice(&bytes).with_context(of)?;
        read.check_usable().with_context(of)?;
        Ok(read)
    }

    fn check_usable(&self) -> Result<(), Unusable> {
        // The format first: what else there is depends on it.
        if self.format != FORMAT {
            return Err(Unusable::Format(self.format));
        }
        if self.sum != self.summed() {
            return Err(Unusable::Damaged);
        }
        if self.algorithm != ALGORITHM {
            return Err(Unusable::Algorithm(self.algorithm.clone()));
        }
        for (name, value, range) in [
            ("memory_kib", self.memory_kib, MEMORY_KIB_RANGE),
            ("passes", self.passes, PASSES_RANGE),
            ("lanes", self.lanes, LANES_RANGE),
        ] {
            if !range.contains(&value) {
                return Err(Unusable::Range { name, value, range });
            }
        }
        Ok(())
    }

    fn summed(&self) -> String {
        let Self { format, algorithm, memory_kib, passes, lanes, salt, check, sum: _ } = self;
        let text = format!("{format} {algorithm} {memory_kib} {passes} {lanes} {salt} {check}");
        let digest = Sha256::digest(text.as_bytes());
        HEXLOWER.encode(digest.get(..SUM_LEN).unwrap_or(&digest))
    }

    /// The key, if the passphrase is the right one. Takes a good part of a second, and the memory.
    pub(super) fn open(&self, passphrase: &Passphrase) -> Result<RestKey, UnlockError> {
        let failed = |error: anyhow::Error| UnlockError::Failed(format!("{error:#}"));
        let key = self.derive(passphrase).map_err(failed)?;
        let check = HEXLOWER.decode(self.check.as_bytes()).map_err(|error| failed(error.into()))?;
        match key.open(CHECK, &check) {
            Ok(_) => Ok(key),
            Err(RestError::Refused) => Err(UnlockError::Wrong),
            Err(error) => Err(failed(error.into())),
        }
    }

    fn derive(&self, passphrase: &Passphrase) -> anyhow::Result<RestKey> {
        let mut key = Zeroizing::new([0; super::KEY_LEN]);
        let salt = HEXLOWER.decode(self.salt.as_bytes()).context("read the salt")?;
        ensure!(salt.len() == SALT_LEN, "the salt has {} bytes, not {SALT_LEN}", salt.len());
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(key.len()))
            .map_err(|error| anyhow::anyhow!("argon2: {error}"))?;
        // It holds what the key follows from: wiped, and asked for in a way that may fail.
        let mut memory = Zeroizing::new(Vec::new());
        memory.try_reserve_exact(params.block_count()).context("have the memory that it takes")?;
        memory.resize(params.block_count(), Block::default());
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(
                passphrase.expose().as_bytes(),
                &salt,
                &mut *key,
                &mut memory[..],
            )
            .map_err(|error| anyhow::anyhow!("argon2: {error}"))?;
        Ok(RestKey::new(*key))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::custody::PassphraseKey;
    use std::fs;
    use std::time::{Duration, Instant};

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text.to_owned()).unwrap()
    }

    fn sample() -> Stretch {
        let mut stretch = Stretch {
            format: FORMAT,
            algorithm: ALGORITHM.into(),
            memory_kib: MEMORY_KIB,
            passes: PASSES,
            lanes: LANES,
            salt: "000102030405060708090a0b0c0d0e0f".into(),
            check: "00".into(),
            sum: String::new(),
        };
        stretch.sum = stretch.summed();
        stretch
    }

    #[test]
    fn only_the_passphrase_opens_and_each_file_has_a_key_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        let right = passphrase("correct horse battery");
        let key = Stretch::create(&one, &right).unwrap();
        let again = Stretch::load(&one).unwrap().open(&right).unwrap();
        assert_eq!(again.expose(), key.expose());
        let wrong = Stretch::load(&one).unwrap().open(&passphrase("correct horse batterz"));
        assert_eq!(wrong.unwrap_err(), UnlockError::Wrong);
        let other = Stretch::create(&other, &right).unwrap();
        assert_ne!(other.expose(), key.expose(), "the salt is drawn");
        let text = fs::read_to_string(&one).unwrap();
        assert!(!text.contains("horse"), "{text}");
        let (key, again) = (HEXLOWER.encode(key.expose()), HEXLOWER.encode(again.expose()));
        assert!(!text.contains(&key) && !text.contains(&again), "{text}");
    }

    /// Computed by another implementation: argon2-cffi, `hash_secret_raw(b"correct horse battery",
    /// bytes(range(16)), 3, 65536, 1, 32, Type.ID, 19)`.
    #[test]
    fn the_key_is_what_argon2id_says() {
        let key = sample().derive(&passphrase("correct horse battery")).unwrap();
        let expected = "904b42492da04031a468a6d1d51689848c15e5c88d8587b0186dce574b8c4bcc";
        assert_eq!(HEXLOWER.encode(key.expose()), expected);
    }

    #[test]
    fn a_damaged_file_is_told_from_a_wrong_passphrase() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let right = passphrase("correct horse battery");
        Stretch::create(&path, &right).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let load = |text: &str| {
            fs::write(&path, text).unwrap();
            PassphraseKey::load(&path).map(drop).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(load(&text), Ok(()));
        for at in 0..text.trim_end().len() {
            assert!(load(&text[..at]).is_err(), "cut at {at}");
        }
        let digits = text.char_indices().filter(|(_, c)| c.is_ascii_digit()).map(|(at, _)| at);
        for at in digits {
            let other = if &text[at..=at] == "7" { "8" } else { "7" };
            let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            // The name of the algorithm has one as well.
            let error = load(&changed).unwrap_err();
            let told = error.contains("damaged") || error.contains("format");
            assert!(told || error.contains("invalid"), "{at}: {error}");
        }
    }

    #[test]
    fn what_is_too_weak_or_too_much_is_not_tried() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let refused = |change: &dyn Fn(&mut Stretch)| {
            let mut stretch = sample();
            change(&mut stretch);
            stretch.sum = stretch.summed();
            fs::write(&path, serde_json::to_string(&stretch).unwrap()).unwrap();
            let (began, error) = (Instant::now(), Stretch::load(&path).err());
            assert!(began.elapsed() < Duration::from_secs(1), "nothing is tried");
            error.map(|error| format!("{error:#}")).unwrap_or_default()
        };
        assert_eq!(refused(&|_| {}), "");
        let gib = 1 << 20;
        for (memory, said) in [(MEMORY_KIB - 1, true), (8, true), (gib, false), (100 * gib, true)] {
            let error = refused(&|stretch| stretch.memory_kib = memory);
            assert_eq!(error.contains("memory_kib"), said, "{memory}: {error}");
        }
        for (passes, said) in [(0, true), (2, true), (16, false), (17, true), (u32::MAX, true)] {
            let error = refused(&|stretch| stretch.passes = passes);
            assert_eq!(error.contains("passes"), said, "{passes}: {error}");
        }
        for lanes in [0, 17] {
            let error = refused(&|stretch| stretch.lanes = lanes);
            assert!(error.contains("lanes"), "{error}");
        }
        let error = refused(&|stretch| stretch.algorithm = "argon2i".into());
        assert!(error.contains("argon2i is not an algorithm"), "{error}");
        let error = refused(&|stretch| stretch.format = 2);
        assert!(error.contains("format 2 is not known"), "{error}");
    }
}
