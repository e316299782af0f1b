//! Sealing at rest: how a custodian keeps its parts on its own disk.
//!
//! `format (1) | nonce (12) | ciphertext | tag (16)`, AES-256-GCM under a 32-byte key from the
//! node's key provider. The purpose is bound as additional data after the format, so that a sealed
//! part of one share epoch can not be put in the place of another.

use crate::secret::secret_bytes;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use rand::TryRng;
use rand::rngs::SysRng;
use std::fmt;
use zeroize::Zeroizing;

const FORMAT: u8 = 1;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
const HEAD_LEN: usize = 1 + NONCE_LEN;
const LABEL: &[u8] = b"smalti at rest";

/// Why sealed bytes did not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestError {
    /// Shorter than anything that was sealed.
    #[error("{0} sealed bytes are too few")]
    Length(usize),
    /// Sealed by a newer program.
    #[error("at-rest format {0} is not known")]
    Format(u8),
    /// The key, the purpose or the bytes are not those it was sealed with.
    #[error("sealed bytes do not authenticate: wrong key, wrong purpose or altered")]
    Refused,
    /// The key is not there before somebody gives the passphrase.
    #[error("locked: `smalti key unlock` there")]
    Locked,
    /// What seals can not just now, or failed.
    #[error("{0}")]
    Provider(String),
}

impl RestError {
    /// Whether it says nothing of the sealed bytes: they may well open later.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Locked | Self::Provider(_))
    }
}

/// Seals what a custodian keeps on its disk, and opens it again. A key in memory is one ([`RestKey`]); another one
/// never lets its key out of a device or a service, and asks that. The custodian calls it for each share, from a
/// thread that may wait, and keeps nothing that was opened.
///
/// * The purpose is bound: what was sealed for one opens for no other.
/// * Whatever may pass by itself, a device that is not there, is [`RestError::Provider`], and never
///   [`RestError::Refused`]: a custodian whose shares do not open gets new ones, and so do all others.
/// * `Debug` prints no key.
///
/// ```
/// use smalti_storage::keys::{KeyProvider, RestError, RestKey};
/// use std::sync::{Arc, Mutex};
/// use zeroize::Zeroizing;
///
/// /// What asks a device that seals by itself.
/// #[derive(Debug)]
/// struct Device {
///     slot: Mutex<Option<Card>>,
/// }
///
/// /// Stands for one here: a real one has its own protocol.
/// #[derive(Debug)]
/// struct Card(RestKey);
///
/// impl Device {
///     fn ask<T>(&self, what: impl FnOnce(&Card) -> Result<T, RestError>) -> Result<T, RestError> {
///         let slot = self.slot.lock().map_err(|_| RestError::Provider("a thread died".into()))?;
///         what(slot.as_ref().ok_or_else(|| RestError::Provider("the card is out".into()))?)
///     }
/// }
///
/// impl KeyProvider for Device {
///     fn seal(&self, purpose: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, RestError> {
///         self.ask(|card| card.0.seal(purpose, plaintext))
///     }
///
///     fn open(&self, purpose: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, RestError> {
///         self.ask(|card| card.0.open(purpose, sealed))
///     }
///
///     fn ready(&self) -> Result<(), RestError> {
///         self.ask(|_| Ok(()))
///     }
/// }
///
/// let device = Arc::new(Device { slot: Mutex::new(Some(Card(RestKey::new([7; 32])))) });
/// let provider: Arc<dyn KeyProvider> = device.clone();
/// let sealed = provider.seal(b"share 1", b"a share")?;
/// assert_eq!(*provider.open(b"share 1", &sealed)?, b"a share");
/// assert_eq!(provider.open(b"share 2", &sealed), Err(RestError::Refused));
///
/// device.slot.lock().unwrap().take();
/// let out = RestError::Provider("the card is out".into());
/// assert_eq!(provider.ready(), Err(out.clone()));
/// assert_eq!(provider.open(b"share 1", &sealed), Err(out));
/// # Ok::<(), RestError>(())
/// ```
pub trait KeyProvider: Send + Sync + fmt::Debug {
    /// Seals for the disk.
    ///
    /// # Errors
    /// [`RestError::Provider`] when it can not just now.
    fn seal(&self, purpose: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, RestError>;

    /// Opens what [`seal`](Self::seal) made for the same purpose.
    ///
    /// # Errors
    /// When it can not just now, or the bytes are not what was sealed.
    fn open(&self, purpose: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, RestError>;

    /// Whether it can just now, as far as it knows without much ado: the cluster is told why not.
    ///
    /// # Errors
    /// What keeps it from sealing and opening.
    fn ready(&self) -> Result<(), RestError> {
        Ok(())
    }
}

secret_bytes!(
    /// A key that is in memory while the node runs, wherever it comes from: [`seal_at_rest`] under it.
    RestKey
);

impl KeyProvider for RestKey {
    fn seal(&self, purpose: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, RestError> {
        let mut nonce = [0; NONCE_LEN];
        SysRng
            .try_fill_bytes(&mut nonce)
            .map_err(|error| RestError::Provider(error.to_string()))?;
        Ok(seal_at_rest(self.expose(), purpose, plaintext, nonce))
    }

    fn open(&self, purpose: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, RestError> {
        open_at_rest(self.expose(), purpose, sealed)
    }
}

/// Seals `plaintext` for the disk under `key`, bound to `purpose`. `nonce` is 12 fresh random
/// bytes; one key may seal up to 2^32 times.
pub fn seal_at_rest(
    key: &[u8; 32],
    purpose: &[u8],
    plaintext: &[u8],
    nonce: [u8; NONCE_LEN],
) -> Vec<u8> {
    // Full capacity first: a growing vector would leave copies of the plaintext behind.
    let mut out = Vec::with_capacity(HEAD_LEN + plaintext.len() + TAG_LEN);
    out.push(FORMAT);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(plaintext);
    let body = (&mut out[HEAD_LEN..]).into();
    let tag = Aes256Gcm::new(key.into())
        .encrypt_inout_detached(&nonce.into(), &additional_data(purpose), body)
        .expect("what a custodian keeps is far below the limit of GCM");
    out.extend_from_slice(&tag);
    out
}

/// Opens what [`seal_at_rest`] made under the same key and purpose.
///
/// # Errors
/// When the bytes are too few, of an unknown format, or do not authenticate.
pub fn open_at_rest(
    key: &[u8; 32],
    purpose: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, RestError> {
    let short = || RestError::Length(sealed.len());
    let (format, rest) = sealed.split_first().ok_or_else(short)?;
    if *format != FORMAT {
        return Err(RestError::Format(*format));
    }
    let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(short)?;
    let (body, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or_else(short)?;
    let mut plaintext = Zeroizing::new(body.to_vec());
    Aes256Gcm::new(key.into())
        .decrypt_inout_detached(
            nonce.into(),
            &additional_data(purpose),
            plaintext.as_mut_slice().into(),
            tag.into(),
        )
        .map_err(|_| RestError::Refused)?;
    Ok(plaintext)
}

fn additional_data(purpose: &[u8]) -> Vec<u8> {
    [LABEL, &[FORMAT], purpose].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn opening_undoes_sealing(
            key: [u8; 32],
            nonce: [u8; 12],
            purpose in proptest::collection::vec(any::<u8>(), 0..40),
            plaintext in proptest::collection::vec(any::<u8>(), 0..200),
            flip: prop::sample::Index,
        ) {
            let sealed = seal_at_rest(&key, &purpose, &plaintext, nonce);
            let opened = open_at_rest(&key, &purpose, &sealed);
            prop_assert_eq!(opened.as_deref(), Ok(&plaintext));
            let mut other = key;
            other[31] ^= 1;
            prop_assert_eq!(open_at_rest(&other, &purpose, &sealed), Err(RestError::Refused));
            let mut longer = purpose.clone();
            longer.push(0);
            prop_assert_eq!(open_at_rest(&key, &longer, &sealed), Err(RestError::Refused));
            let bit = flip.index((sealed.len() - 1) * 8) + 8;
            let mut bad = sealed;
            bad[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(open_at_rest(&key, &purpose, &bad), Err(RestError::Refused));
        }

        #[test]
        fn any_bytes_fail_cleanly(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(open_at_rest(&[1; 32], b"x", &bytes).is_err());
        }
    }

    #[test]
    fn cut_and_foreign_bytes_are_named() {
        let sealed = seal_at_rest(&[1; 32], b"part", b"", [2; 12]);
        assert_eq!(sealed.len(), 29);
        let open = |bytes: &[u8]| open_at_rest(&[1; 32], b"part", bytes).map(|_| ());
        assert_eq!(open(&sealed), Ok(()));
        assert_eq!(open(&sealed[..28]), Err(RestError::Length(28)));
        assert_eq!(open(&[]), Err(RestError::Length(0)));
        assert_eq!(open(&[2; 60]), Err(RestError::Format(2)));
    }
}
