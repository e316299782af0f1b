//! Showing that one has a part, without showing it: Schnorr's proof of knowledge of a discrete logarithm,
//! made non-interactive by hashing (RFC 8235), for the part's public point.

use super::{Commitments, KeyPart, POINT_LEN, PartError, SCALAR_LEN};
use k256::elliptic_curve::PrimeField;
use k256::elliptic_curve::group::{Group, GroupEncoding};
use k256::{ProjectivePoint, Scalar};
use rand::CryptoRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

const LABEL: &[u8] = b"smalti part proof v1";
const PROOF_LEN: usize = POINT_LEN + SCALAR_LEN;

/// A proof that its maker has one part of a dealing. It tells nothing else, and is worth nothing for another
/// challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartProof {
    nonce: ProjectivePoint,
    response: Scalar,
}

impl PartProof {
    /// Proves to have `part`, for a challenge that whoever asks has drawn.
    pub fn new(part: &KeyPart, challenge: &[u8], rng: &mut impl CryptoRng) -> Self {
        let mut secret = super::Secret::random(rng);
        let nonce = ProjectivePoint::generator() * secret.0;
        let public = ProjectivePoint::generator() * part.value;
        let response = secret.0 + hash(&public, &nonce, part.index, challenge) * part.value;
        secret.0.zeroize();
        Self { nonce, response }
    }

    /// Checks that it was made with part `index` of the dealing, for this challenge.
    ///
    /// # Errors
    /// [`PartError::Mismatch`] if it was not.
    pub fn verify(
        &self,
        index: u8,
        commitments: &Commitments,
        challenge: &[u8],
    ) -> Result<(), PartError> {
        if index == 0 {
            return Err(PartError::ZeroIndex);
        }
        let public = commitments.public_part(index);
        let expected = self.nonce + public * hash(&public, &self.nonce, index, challenge);
        if ProjectivePoint::generator() * self.response != expected {
            return Err(PartError::Mismatch { index });
        }
        Ok(())
    }

    /// `compressed point (33) | scalar (32)`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PROOF_LEN);
        bytes.extend_from_slice(&self.nonce.to_bytes());
        bytes.extend_from_slice(&self.response.to_repr());
        bytes
    }

    /// Reads a proof. It is well formed, not verified.
    ///
    /// # Errors
    /// When the bytes are not one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PartError> {
        let bad = PartError::BadProof;
        let bytes: &[u8; PROOF_LEN] = bytes.try_into().map_err(|_| bad)?;
        let (point, scalar) = bytes.split_first_chunk::<POINT_LEN>().ok_or(bad)?;
        let scalar: [u8; SCALAR_LEN] = scalar.try_into().map_err(|_| bad)?;
        let nonce = Option::from(ProjectivePoint::from_bytes(&(*point).into())).ok_or(bad)?;
        let response = Option::from(Scalar::from_repr(scalar.into())).ok_or(bad)?;
        Ok(Self { nonce, response })
    }
}

/// The verifier's part of the protocol: 128 bits, as many as the group's strength has.
fn hash(public: &ProjectivePoint, nonce: &ProjectivePoint, index: u8, challenge: &[u8]) -> Scalar {
    let mut hash = Sha256::new();
    hash.update(LABEL);
    hash.update(public.to_bytes());
    hash.update(nonce.to_bytes());
    hash.update([index]);
    hash.update(challenge);
    let mut half = [0; 16];
    half.copy_from_slice(&hash.finalize()[..16]);
    Scalar::from(u128::from_be_bytes(half))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Secret, get_key_parts};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn only_the_part_proves_itself_and_only_for_its_challenge() {
        let mut rng = StdRng::seed_from_u64(1);
        let dealing = get_key_parts(&Secret::random(&mut rng), 2, 3, &mut rng).expect("a split");
        let other = get_key_parts(&Secret::random(&mut rng), 2, 3, &mut rng).expect("a split");
        for part in &dealing.parts {
            let index = part.index();
            let proof = PartProof::new(part, b"now", &mut rng);
            let bytes = proof.to_bytes();
            let proof = PartProof::from_bytes(&bytes).expect("well formed");
            assert_eq!(proof.verify(index, &dealing.commitments, b"now"), Ok(()));
            let bad = Err(PartError::Mismatch { index });
            assert_eq!(proof.verify(index, &dealing.commitments, b"then"), bad);
            assert_eq!(proof.verify(index, &other.commitments, b"now"), bad);
            let next = index % 3 + 1;
            let bad = Err(PartError::Mismatch { index: next });
            assert_eq!(proof.verify(next, &dealing.commitments, b"now"), bad);
            assert_eq!(proof.verify(0, &dealing.commitments, b"now"), Err(PartError::ZeroIndex));
            for at in 0..bytes.len() {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1;
                let Ok(proof) = PartProof::from_bytes(&bytes) else { continue };
                assert!(proof.verify(index, &dealing.commitments, b"now").is_err(), "byte {at}");
            }
            assert_eq!(PartProof::from_bytes(&bytes[1..]), Err(PartError::BadProof));
        }
        // The nonce is fresh each time, or two proofs would give the part away.
        let part = &dealing.parts[0];
        let (one, two) =
            (PartProof::new(part, b"x", &mut rng), PartProof::new(part, b"x", &mut rng));
        assert_ne!(one.nonce, two.nonce);
    }
}
