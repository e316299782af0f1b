//! Shares sealed under a key that follows from a passphrase. The key is in memory only, from when the passphrase was
//! given until the process ends; before that the custodian is locked.

use super::stretch::Stretch;
use anyhow::Context;
use serde::{Deserialize, Deserializer, Serialize};
use smalti_storage::keys::{KeyProvider, RestError, RestKey};
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError, RwLock, TryLockError};
use std::time::Duration;
use zeroize::Zeroizing;

/// Bytes of a new passphrase, at least: fewer are found by trying in the time that Argon2 buys.
const PASSPHRASE_MIN: usize = 12;

/// Bytes of a passphrase.
pub const PASSPHRASE_MAX: usize = 1024;

/// A wrong passphrase is answered after so long, and no other one is tried meanwhile.
const WRONG_PAUSE: Duration = Duration::from_secs(1);

/// A passphrase. Wiped when dropped, and never printed.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// Takes the text, without the end of its line.
    ///
    /// # Errors
    /// It is empty or too long.
    pub fn new(text: String) -> Result<Self, &'static str> {
        let mut text = Zeroizing::new(text);
        let length = text.trim_end_matches(['\r', '\n']).len();
        text.truncate(length);
        match length {
            0 => Err("the passphrase is empty"),
            length if length > PASSPHRASE_MAX => Err("the passphrase has more than 1024 bytes"),
            _ => Ok(Self(text)),
        }
    }

    /// Whether it may be a new one.
    ///
    /// # Errors
    /// It is too short.
    pub fn check_new(&self) -> Result<(), &'static str> {
        match self.0.len() < PASSPHRASE_MIN {
            true => Err("a passphrase has 12 bytes at least, and better six random words"),
            false => Ok(()),
        }
    }

    /// The text. Every use of this is a place to review.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(redacted)")
    }
}

impl<'de> Deserialize<'de> for Passphrase {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Why a custodian stays locked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnlockError {
    /// Of no use.
    #[error("the passphrase is wrong")]
    Wrong,
    /// Somebody else tries just now.
    #[error("another passphrase is being tried; a wrong one takes a second")]
    Busy,
    /// It could not be tried.
    #[error("{0}")]
    Failed(String),
}

/// The provider.
pub struct PassphraseKey {
    stretch: Stretch,
    key: RwLock<Option<RestKey>>,
    /// Held by whoever tries: one at a time, for each takes the memory.
    trying: Mutex<()>,
}

impl fmt::Debug for PassphraseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let locked = self.ready().is_err();
        f.debug_struct("PassphraseKey").field("locked", &locked).finish_non_exhaustive()
    }
}

impl PassphraseKey {
    /// Locked, by the file at `path`.
    ///
    /// # Errors
    /// The file can not be read, is damaged, or asks for too little or too much.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let stretch = Stretch::load(path).context("load what the passphrase is stretched with")?;
        Ok(Self { stretch, key: RwLock::default(), trying: Mutex::default() })
    }

    /// Makes the file at `path` for a passphrase.
    ///
    /// # Errors
    /// The file can not be written, or the system gives no randomness or memory.
    pub fn create(path: &Path, passphrase: &Passphrase) -> anyhow::Result<()> {
        Stretch::create(path, passphrase).context("stretch the passphrase")?;
        Ok(())
    }

    /// Derives the key, and keeps it until the process ends. Blocks for a good part of a second, for more if the
    /// passphrase is wrong.
    ///
    /// # Errors
    /// The passphrase is wrong, or could not be tried.
    pub fn unlock(&self, passphrase: &Passphrase) -> Result<(), UnlockError> {
        let _trying = match self.trying.try_lock() {
            Ok(trying) => trying,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(UnlockError::Busy),
        };
        match self.stretch.open(passphrase) {
            Ok(key) => {
                *self.key.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
                Ok(())
            }
            Err(error) => {
                // Whoever guesses goes no faster for being many.
                std::thread::sleep(WRONG_PAUSE);
                Err(error)
            }
        }
    }

    fn with<T>(&self, what: impl FnOnce(&RestKey) -> Result<T, RestError>) -> Result<T, RestError> {
        let key = self.key.read().unwrap_or_else(PoisonError::into_inner);
        what(key.as_ref().ok_or(RestError::Locked)?)
    }
}

impl KeyProvider for PassphraseKey {
    fn seal(&self, purpose: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, RestError> {
        self.with(|key| key.seal(purpose, plaintext))
    }

    fn open(&self, purpose: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, RestError> {
        self.with(|key| key.open(purpose, sealed))
    }

    fn ready(&self) -> Result<(), RestError> {
        self.with(|_| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::time::Instant;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text.to_owned()).unwrap()
    }

    #[test]
    fn it_is_locked_until_the_passphrase_is_given_and_guessing_is_slow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("custody.argon2");
        PassphraseKey::create(&path, &passphrase("six random words")).unwrap();
        let key = PassphraseKey::load(&path).unwrap();
        assert_eq!(key.ready(), Err(RestError::Locked));
        assert_eq!(key.seal(b"p", b"x"), Err(RestError::Locked));
        assert_eq!(key.open(b"p", b"x"), Err(RestError::Locked));

        let began = Instant::now();
        let tries = std::thread::scope(|scope| {
            let first = scope.spawn(|| key.unlock(&passphrase("six random word")));
            std::thread::sleep(WRONG_PAUSE / 4);
            [key.unlock(&passphrase("six random words")), first.join().unwrap()]
        });
        assert_eq!(tries, [Err(UnlockError::Busy), Err(UnlockError::Wrong)]);
        assert!(began.elapsed() >= WRONG_PAUSE);
        assert_eq!(key.ready(), Err(RestError::Locked));

        assert_eq!(key.unlock(&passphrase("six random words")), Ok(()));
        let sealed = key.seal(b"p", b"x").unwrap();
        assert_eq!(*key.open(b"p", &sealed).unwrap(), b"x");
        // What is open stays open, whatever is given.
        assert_eq!(key.unlock(&passphrase("another one")), Err(UnlockError::Wrong));
        assert_eq!(key.ready(), Ok(()));

        // Another process of the node.
        let again = PassphraseKey::load(&path).unwrap();
        assert_eq!(again.open(b"p", &sealed), Err(RestError::Locked));
        again.unlock(&passphrase("six random words\n")).unwrap();
        assert_eq!(*again.open(b"p", &sealed).unwrap(), b"x");
    }

    #[test]
    fn passphrases_are_bounded_and_never_printed() {
        assert!(Passphrase::new("\r\n".into()).is_err());
        assert!(Passphrase::new("x".repeat(PASSPHRASE_MAX + 1)).is_err());
        let spaced = passphrase(" a b \r\n");
        assert_eq!(spaced.expose(), " a b ");
        assert!(spaced.check_new().is_err());
        assert!(passphrase("twelve bytes").check_new().is_ok());
        assert_eq!(format!("{spaced:?}"), "Passphrase(redacted)");
        let json: Passphrase = serde_json::from_str("\"a b\"").unwrap();
        assert_eq!(json, passphrase("a b"));
        assert!(serde_json::from_str::<Passphrase>("\"\"").is_err());
    }
}
