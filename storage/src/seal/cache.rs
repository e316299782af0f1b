//! Session keys ready for use, bounded.
//!
//! Deriving a session key and expanding it costs about as much as sealing a block, and neighbouring
//! blocks share one; so expanded keys are kept. Each part of the cache has two generations: what
//! is used moves to the young one, and when that is full, the old one is dropped and the young one
//! becomes old. So a part holds at most twice its limit, and what was used since the last turn is
//! never dropped.

use crate::ids::{GroupNo, KeyEpochNo, Slot, VolumeId};
use crate::keys::ShardKey;
use crate::keys::derive::hkdf;
use crate::record::v1::FORMAT;
use crate::secret::wipe_shallow;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

/// Parts, each with its own lock, so that threads rarely meet.
const PARTS: usize = 16;
/// Ciphers in one generation of one part. 16 * 2 * 128 ciphers of about 1 KiB are 4 MiB.
const PER_GENERATION: usize = 128;

const LABEL: &[u8] = b"smalti session key v1";

/// What a session key belongs to, within one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Session {
    pub(super) salt: [u8; 16],
    pub(super) key_epoch: KeyEpochNo,
    // Not in the derivation, where the column's key stands for it; but a stripe asked for under
    // a wrong group must not find the cipher of the right one.
    pub(super) group: GroupNo,
    pub(super) stripe: u64,
    pub(super) slot: Slot,
}

/// What seals and opens under one session key.
pub(super) struct Cipher(Aes256Gcm);

impl Cipher {
    /// Encrypts one block into `out`, and answers the tag.
    pub(super) fn encrypt(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        plaintext: &[u8],
        out: &mut [u8],
    ) -> [u8; 16] {
        let buffer = InOutBuf::new(plaintext, out).expect("both are one block long");
        self.0
            .encrypt_inout_detached(&nonce.into(), aad, buffer)
            .expect("a block is below the limit of GCM")
            .into()
    }

    /// Decrypts one block into `out`; says whether it is authentic, and leaves `out` as it was if not.
    pub(super) fn decrypt(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        ciphertext: &[u8],
        tag: [u8; 16],
        out: &mut [u8],
    ) -> bool {
        let buffer = InOutBuf::new(ciphertext, out).expect("both are one block long");
        self.0.decrypt_inout_detached(&nonce.into(), aad, buffer, &tag.into()).is_ok()
    }
}

type Ciphers = HashMap<Session, Arc<Cipher>>;

#[derive(Default)]
struct Part {
    young: Ciphers,
    old: Ciphers,
}

/// The ciphers of one set of volume keys.
#[derive(Default)]
pub(super) struct SessionCache {
    parts: [Mutex<Part>; PARTS],
}

impl SessionCache {
    /// The cipher of a session, made from its column's key if it is not here.
    pub(super) fn cipher(&self, session: Session, volume: VolumeId, key: &ShardKey) -> Arc<Cipher> {
        // Slots of one stripe and neighbouring stripes go to different parts.
        let part = (session.stripe as usize).wrapping_mul(7).wrapping_add(session.slot.index());
        let part = &self.parts[part % PARTS];
        if let Some(cipher) = lock(part).find(&session) {
            return cipher;
        }
        // Derived without the lock: two threads may do it at once and get the same.
        let cipher = session.derive(volume, key);
        // This is done while clients work, and the thread may not wait for long; a key's schedule is moved.
        wipe_shallow();
        lock(part).insert(session, Arc::clone(&cipher));
        cipher
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.parts
            .iter()
            .map(|part| {
                let part = lock(part);
                part.young.len() + part.old.len()
            })
            .sum()
    }
}

fn lock(part: &Mutex<Part>) -> std::sync::MutexGuard<'_, Part> {
    // A panic can at worst have left a cipher out.
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Part {
    fn find(&mut self, session: &Session) -> Option<Arc<Cipher>> {
        if let Some(cipher) = self.young.get(session) {
            return Some(Arc::clone(cipher));
        }
        let cipher = self.old.remove(session)?;
        self.insert(*session, Arc::clone(&cipher));
        Some(cipher)
    }

    fn insert(&mut self, session: Session, cipher: Arc<Cipher>) {
        if self.young.len() >= PER_GENERATION {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(session, cipher);
    }
}

impl Session {
    #[inline(never)]
    fn derive(&self, volume: VolumeId, key: &ShardKey) -> Arc<Cipher> {
        let info: [&[u8]; 6] = [
            LABEL,
            &[FORMAT],
            volume.0.as_bytes(),
            &self.key_epoch.0.to_be_bytes(),
            &self.stripe.to_be_bytes(),
            &[self.slot.0],
        ];
        Arc::new(Cipher(Aes256Gcm::new((&*hkdf(&self.salt, key.expose(), &info)).into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(stripe: u64) -> Session {
        Session {
            salt: [1; 16],
            key_epoch: KeyEpochNo(1),
            group: GroupNo(0),
            stripe,
            slot: Slot(0),
        }
    }

    #[test]
    fn it_stays_bounded_and_keeps_what_is_used() {
        let cache = SessionCache::default();
        let key = ShardKey::new([2; 32]);
        let hot = cache.cipher(session(0), VolumeId::default(), &key);
        for stripe in 1..20_000 {
            cache.cipher(session(stripe), VolumeId::default(), &key);
            let again = cache.cipher(session(0), VolumeId::default(), &key);
            assert!(Arc::ptr_eq(&hot, &again), "dropped while in use");
        }
        assert!(cache.len() <= PARTS * 2 * PER_GENERATION, "{} ciphers", cache.len());
        assert!(cache.len() >= PARTS * PER_GENERATION, "{} ciphers", cache.len());
    }
}
