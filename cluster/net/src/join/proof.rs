//! What a joiner proves, and how that is checked.
//!
//! The key that signs for a token follows from its secret; the cluster keeps the public one. So what is
//! kept can check a proof and not make one: a node that reads the map, or that answers a joiner, can
//! not join with it. (A code under a hash of the secret would be checked with what it is made with.)

use super::{token::JoinToken, wire::Ask};
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm};
use ring::{
    hmac,
    signature::{ECDSA_P256_SHA256_ASN1, ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use zeroize::Zeroizing;

const EXPORTER: &[u8] = b"EXPORTER-smalti-join";
const SEED: &[u8] = b"smalti join proof v1";
const TOKEN: &[u8] = b"smalti join token v1";
const KEY: &[u8] = b"smalti join key v1";
/// A point on P-256, not compressed.
const POINT_LEN: usize = 65;
const POINT_UNCOMPRESSED: u8 = 4;

/// The public key of a joiner, or of a node that wants another certificate: P-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinerKey(Vec<u8>);

impl JoinerKey {
    /// A key as it is on the wire; that it is on the curve shows when it is used.
    pub fn from_point(point: &[u8]) -> Option<Self> {
        let is_point = point.len() == POINT_LEN && point.first() == Some(&POINT_UNCOMPRESSED);
        is_point.then(|| Self(point.to_vec()))
    }

    /// As it is on the wire.
    pub fn as_point(&self) -> &[u8] {
        &self.0
    }
}

impl PublicKeyData for JoinerKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// What both ends of one connection know, and nobody else.
pub(super) type Binding = Zeroizing<[u8; 32]>;

pub(super) fn binding(connection: &quinn::Connection) -> Option<Binding> {
    let mut binding = Zeroizing::new([0; 32]);
    connection.export_keying_material(&mut *binding, EXPORTER, b"").ok()?;
    Some(binding)
}

fn statement(purpose: &[u8], binding: &Binding, ask: &[u8]) -> Vec<u8> {
    // Each part but the last has a known length, so no two statements are the same bytes.
    let length = [purpose.len() as u8];
    [&length, purpose, binding.as_slice(), ask].concat()
}

impl JoinToken {
    fn signing_key(&self) -> Option<Ed25519KeyPair> {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &*self.secret);
        let id = self.id.0;
        let seed = hmac::sign(&secret, &[SEED, &self.pin, id.as_bytes()].concat());
        Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).ok()
    }

    /// What the cluster is to know of the token: it checks proofs, and makes none.
    pub fn proof_key(&self) -> Option<[u8; 32]> {
        self.signing_key()?.public_key().as_ref().try_into().ok()
    }
}

/// Signs an ask with the token's secret, for one connection.
pub(super) fn prove_token(token: &JoinToken, binding: &Binding, ask: &[u8]) -> Option<Vec<u8>> {
    Some(token.signing_key()?.sign(&statement(TOKEN, binding, ask)).as_ref().to_vec())
}

pub(super) fn is_token_proven(
    proof_key: &[u8; 32],
    binding: &Binding,
    ask: &[u8],
    proof: &[u8],
) -> bool {
    let key = UnparsedPublicKey::new(&ED25519, proof_key);
    key.verify(&statement(TOKEN, binding, ask), proof).is_ok()
}

/// Signs an ask with the joiner's own key.
pub(super) fn prove_key(
    key: &impl rcgen::SigningKey,
    binding: &Binding,
    ask: &[u8],
) -> Option<Vec<u8>> {
    key.sign(&statement(KEY, binding, ask)).ok()
}

/// The joiner's key, if it is one and has signed.
pub(super) fn proven_key(
    ask: &Ask,
    binding: &Binding,
    bytes: &[u8],
    proof: &[u8],
) -> Option<JoinerKey> {
    let key = JoinerKey::from_point(&ask.public_key)?;
    // This finds points out that are not on the curve.
    let point = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.as_point());
    point.verify(&statement(KEY, binding, bytes), proof).ok()?;
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_one_token_one_connection_and_one_ask() {
        let draw = || JoinToken::draw([1; 32], vec![([127, 0, 0, 1], 1).into()]).expect("drawn");
        let (token, other) = (draw(), draw());
        let binding = |byte| Zeroizing::new([byte; 32]);
        let key = token.proof_key().expect("a key");
        let proof = prove_token(&token, &binding(1), b"ask").expect("signed");
        assert!(is_token_proven(&key, &binding(1), b"ask", &proof));
        assert!(!is_token_proven(&key, &binding(2), b"ask", &proof));
        assert!(!is_token_proven(&key, &binding(1), b"asks", &proof));
        let other_key = other.proof_key().expect("a key");
        assert!(!is_token_proven(&other_key, &binding(1), b"ask", &proof));
        assert!(!is_token_proven(&key, &binding(1), b"ask", &[]));
        // What the map has is not what a proof is made with.
        assert_ne!(&key, &*token.secret);
        let again = JoinToken::parse(&token.to_text()).expect("a token");
        assert_eq!(again.proof_key(), Some(key));
        let elsewhere = JoinToken { pin: [2; 32], ..token };
        assert_ne!(elsewhere.proof_key(), Some(key));
    }
}
