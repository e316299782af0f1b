//! Splitting a secret among custodians so that every part can be verified: Feldman's scheme.
//!
//! The secret is a scalar of secp256k1, a group of prime order. The dealer draws a polynomial
//! `f` of degree `t - 1` with `f(0)` the secret, gives custodian `i` the part `f(i)`, and
//! publishes the commitments `C_j = a_j * G` to its coefficients. Anyone can check
//! `f(i) * G = sum of i^j * C_j`; any `t` parts give the secret, fewer say nothing about it beyond
//! `C_0` (whose discrete logarithm it is).
//!
//! F1. No part is used before it was verified against the commitments, and a bad one is named.
//! F2. Commitments have exactly as many points as the threshold, or parts of a polynomial of
//!     another degree would verify and not combine.

use super::derive::{MasterKey, WrappingKey, hkdf};
use crate::secret::note_use;
use k256::elliptic_curve::PrimeField;
use k256::elliptic_curve::group::{Group, GroupEncoding};
use k256::{ProjectivePoint, Scalar};
use rand::CryptoRng;
use serde::{Deserialize, Serialize};
use std::fmt;
use vsss_rs::{
    FeldmanVerifierSet, IdentifierPrimeField, Polynomial, PrimeFieldShare, ReadableShareSet, Share,
    ShareElement, ValueGroup,
};
use zeroize::{Zeroize, Zeroizing};

type RawShare = PrimeFieldShare<Scalar>;
type RawPoint = ValueGroup<ProjectivePoint>;

const FORMAT: u8 = 1;
const SCALAR_LEN: usize = 32;
const POINT_LEN: usize = 33;
const PART_LEN: usize = 3 + SCALAR_LEN;
const MASTER_LABEL: &[u8] = b"smalti master key v1";
const WRAPPING_LABEL: &[u8] = b"smalti wrapping key v1";
const EPOCH_LABEL: &[u8] = b"smalti epoch master key v1";

/// A secret to be split. Wiped when dropped.
pub struct Secret(pub(super) Scalar);

/// One custodian's part of a secret. Wiped when dropped; travels and rests only encrypted.
#[derive(Clone)]
pub struct KeyPart {
    threshold: u8,
    index: u8,
    value: Scalar,
}

/// The public side of a dealing: what every part is verified against.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Commitments(pub(super) Vec<ProjectivePoint>);

/// A split secret.
#[derive(Clone, Debug)]
pub struct Dealing {
    /// One part for each custodian, with indices from 1.
    pub parts: Vec<KeyPart>,
    /// What the parts are verified against.
    pub commitments: Commitments,
}

/// What is wrong with a part, a set of parts, or a dealing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartError {
    /// No such split.
    #[error("a secret can not be split into {parts} parts of which {threshold} are needed")]
    Split {
        /// Parts needed.
        threshold: u8,
        /// Parts made.
        parts: u8,
    },
    /// The bytes are not a key part of a known format.
    #[error("the bytes are not a key part")]
    BadPart,
    /// The bytes are not commitments of a known format.
    #[error("the bytes are not key part commitments")]
    BadCommitments,
    /// The bytes are no proof.
    #[error("the bytes are not a proof of a key part")]
    BadProof,
    /// A part for the place of the secret itself.
    #[error("a key part has index 0")]
    ZeroIndex,
    /// A part without a value.
    #[error("key part {index} is zero")]
    ZeroPart {
        /// The bad part.
        index: u8,
    },
    /// The part belongs to a dealing of another threshold than the commitments.
    #[error("key part {index} needs {threshold} commitments, not {commitments}")]
    Length {
        /// The bad part.
        index: u8,
        /// The threshold of its dealing.
        threshold: u8,
        /// How many commitments there are.
        commitments: usize,
    },
    /// The part is not the one that was dealt: altered, or of another dealing.
    #[error("key part {index} does not match the commitments")]
    Mismatch {
        /// The bad part.
        index: u8,
    },
    /// A part was given twice.
    #[error("key part {index} is given twice")]
    Duplicate {
        /// The repeated part.
        index: u8,
    },
    /// Fewer parts than the threshold.
    #[error("{have} key parts are too few: {need} are needed")]
    NotEnough {
        /// How many are needed.
        need: usize,
        /// How many were given.
        have: usize,
    },
    /// Verified parts gave a secret that is not the committed one.
    #[error("the combined secret does not match its commitment")]
    Combined,
}

impl Secret {
    /// Draws a secret.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        loop {
            let scalar = IdentifierPrimeField::<Scalar>::random(&mut *rng).0;
            if scalar != Scalar::ZERO {
                return Self(scalar);
            }
        }
    }

    /// The master key that this secret stands for.
    pub fn master_key(&self) -> MasterKey {
        MasterKey::new(*self.symmetric_key(MASTER_LABEL))
    }

    /// The master key of one key epoch, of this master secret and the epoch's wrapping secret together: so
    /// the keys that come from it can not be derived again once that is destroyed, though the master secret
    /// stays.
    pub fn epoch_master_key(&self, wrapping: &Self) -> MasterKey {
        let mut both = Zeroizing::new([0; 2 * SCALAR_LEN]);
        both[..SCALAR_LEN].copy_from_slice(&self.0.to_repr());
        both[SCALAR_LEN..].copy_from_slice(&wrapping.0.to_repr());
        MasterKey::new(*hkdf(EPOCH_LABEL, &*both, &[]))
    }

    /// The wrapping key that this secret stands for.
    pub fn wrapping_key(&self) -> WrappingKey {
        WrappingKey::new(*self.symmetric_key(WRAPPING_LABEL))
    }

    fn symmetric_key(&self, label: &[u8]) -> Zeroizing<[u8; 32]> {
        let bytes: Zeroizing<[u8; SCALAR_LEN]> = Zeroizing::new(self.0.to_repr().into());
        hkdf(label, &*bytes, &[])
    }
}

/// Splits `secret` into `parts` parts, any `threshold` of which give it back.
///
/// ```
/// use smalti_storage::keys::{Secret, get_key_parts, verify_part};
///
/// let mut rng = rand::rng();
/// let secret = Secret::random(&mut rng);
/// let dealing = get_key_parts(&secret, 2, 3, &mut rng)?;
/// assert_eq!(dealing.parts.len(), 3);
/// for part in &dealing.parts {
///     verify_part(part, &dealing.commitments)?;
/// }
/// # Ok::<(), smalti_storage::keys::PartError>(())
/// ```
///
/// # Errors
/// Unless `2 <= threshold <= parts`. One part alone must never be the secret.
pub fn get_key_parts(
    secret: &Secret,
    threshold: u8,
    parts: u8,
    rng: &mut impl CryptoRng,
) -> Result<Dealing, PartError> {
    let refused = PartError::Split { threshold, parts };
    if threshold < 2 || threshold > parts {
        return Err(refused);
    }
    // The library's own splitting drops its polynomial, which holds the secret, without wiping
    // it; so the polynomial is filled and evaluated here, where it is.
    let degree = usize::from(threshold);
    let mut polynomial = Zeroizing::new(<Vec<RawShare> as Polynomial<RawShare>>::create(degree));
    polynomial.fill(&IdentifierPrimeField(secret.0), rng, degree).map_err(|_| refused)?;
    let commitments = polynomial
        .coefficients()
        .iter()
        .enumerate()
        // Coefficient 0 is the secret and stands as a value; the library keeps the others as
        // identifiers.
        .map(|(i, c)| if i == 0 { c.value().0 } else { c.identifier().0 })
        .map(|coefficient| ProjectivePoint::generator() * coefficient)
        .collect();
    let commitments = Commitments(commitments);
    let parts: Vec<KeyPart> = (1..=parts)
        .map(|index| {
            let value = polynomial.evaluate(&identifier(index), degree).0;
            KeyPart { threshold, index, value }
        })
        .collect();
    // A part or coefficient of zero has chance 2^-256; dealing it would make it unusable.
    parts.iter().try_for_each(|part| verify_part(part, &commitments))?;
    Ok(Dealing { parts, commitments })
}

/// Checks that `part` is the one that was dealt.
///
/// # Errors
/// Names the part and what is wrong with it.
pub fn verify_part(part: &KeyPart, commitments: &Commitments) -> Result<(), PartError> {
    let index = part.index;
    if index == 0 {
        return Err(PartError::ZeroIndex);
    }
    if part.value == Scalar::ZERO {
        return Err(PartError::ZeroPart { index });
    }
    if usize::from(part.threshold) != commitments.0.len() {
        let (threshold, commitments) = (part.threshold, commitments.0.len());
        return Err(PartError::Length { index, threshold, commitments });
    }
    let share = Zeroizing::new(part.raw());
    commitments.raw().verify_share(&*share).map_err(|_| PartError::Mismatch { index })
}

/// Gives back the secret of a dealing from `threshold` or more of its parts; the secret's
/// [`Secret::master_key`] or [`Secret::wrapping_key`] is the symmetric key it was split for.
///
/// Every part is verified before any is used, surplus ones included.
///
/// ```
/// use smalti_storage::keys::{PartError, Secret, get_key_parts, reconstruct_symmetric_key};
///
/// let mut rng = rand::rng();
/// let secret = Secret::random(&mut rng);
/// let dealing = get_key_parts(&secret, 2, 3, &mut rng)?;
///
/// let back = reconstruct_symmetric_key(&dealing.parts[1..], &dealing.commitments)?;
/// assert_eq!(back.wrapping_key().expose(), secret.wrapping_key().expose());
///
/// let alone = reconstruct_symmetric_key(&dealing.parts[..1], &dealing.commitments);
/// assert_eq!(alone.err(), Some(PartError::NotEnough { need: 2, have: 1 }));
/// # Ok::<(), PartError>(())
/// ```
///
/// # Errors
/// Names the first part that is bad or repeated, or says how many are missing.
pub fn reconstruct_symmetric_key(
    parts: &[KeyPart],
    commitments: &Commitments,
) -> Result<Secret, PartError> {
    for (i, part) in parts.iter().enumerate() {
        verify_part(part, commitments)?;
        if parts[..i].iter().any(|earlier| earlier.index == part.index) {
            return Err(PartError::Duplicate { index: part.index });
        }
    }
    let (need, have) = (commitments.0.len(), parts.len());
    if have < need {
        return Err(PartError::NotEnough { need, have });
    }
    let shares: Zeroizing<Vec<RawShare>> =
        Zeroizing::new(parts.iter().take(need).map(KeyPart::raw).collect());
    let secret = Secret(shares.combine().map_err(|_| PartError::Combined)?.0);
    // A wrong secret would derive wrong keys that encrypt as well as the right ones, and nobody
    // could open the data again; so the last step is checked as well.
    if commitments.are_of(&secret) { Ok(secret) } else { Err(PartError::Combined) }
}

fn identifier(index: u8) -> IdentifierPrimeField<Scalar> {
    IdentifierPrimeField(Scalar::from(u64::from(index)))
}

impl KeyPart {
    /// Which part of the dealing this is, counted from 1.
    pub const fn index(&self) -> u8 {
        self.index
    }

    /// How many parts of the dealing are needed.
    pub const fn threshold(&self) -> u8 {
        self.threshold
    }

    /// The secret bytes of the part, to be stored sealed: `format | threshold | index | scalar`.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(PART_LEN));
        bytes.extend_from_slice(&[FORMAT, self.threshold, self.index]);
        bytes.extend_from_slice(&self.value.to_repr());
        bytes
    }

    /// Reads a part. It is well formed, not verified.
    ///
    /// # Errors
    /// When the bytes are not a part of a known format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PartError> {
        let [FORMAT, threshold, index, value @ ..] = bytes else {
            return Err(PartError::BadPart);
        };
        let value = <[u8; SCALAR_LEN]>::try_from(value).map_err(|_| PartError::BadPart)?;
        let value = Option::from(Scalar::from_repr(value.into())).ok_or(PartError::BadPart)?;
        Ok(Self { threshold: *threshold, index: *index, value })
    }

    fn raw(&self) -> RawShare {
        RawShare::with_identifier_and_value(
            identifier(self.index),
            IdentifierPrimeField(self.value),
        )
    }
}

impl Commitments {
    /// How many parts of the dealing are needed.
    pub const fn threshold(&self) -> usize {
        self.0.len()
    }

    /// The public bytes: `format | threshold | one compressed point for each coefficient`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT, self.0.len() as u8];
        self.0.iter().for_each(|point| bytes.extend_from_slice(&point.to_bytes()));
        bytes
    }

    /// Reads commitments.
    ///
    /// # Errors
    /// When the bytes are not of a known format, their count is not the threshold they name, or
    /// one is not a point of the curve or is the identity.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PartError> {
        let bad = PartError::BadCommitments;
        let [FORMAT, threshold, points @ ..] = bytes else {
            return Err(bad);
        };
        if *threshold < 2 || points.len() != usize::from(*threshold) * POINT_LEN {
            return Err(bad);
        }
        let (points, _) = points.as_chunks::<POINT_LEN>();
        points
            .iter()
            .map(|bytes| {
                let point =
                    Option::from(ProjectivePoint::from_bytes(&(*bytes).into())).ok_or(bad)?;
                if ProjectivePoint::IDENTITY == point { Err(bad) } else { Ok(point) }
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether they are to a dealing of this secret.
    pub fn are_of(&self, secret: &Secret) -> bool {
        self.0.first() == Some(&(ProjectivePoint::generator() * secret.0))
    }

    /// The library's form: the generator, then the commitments. Ours never names its generator,
    /// because a chosen one would let a dealer commit to nothing.
    fn raw(&self) -> Vec<RawPoint> {
        let points: Vec<RawPoint> = self.0.iter().copied().map(ValueGroup).collect();
        <Vec<RawPoint> as FeldmanVerifierSet<RawShare, RawPoint>>::with_generator_and_verifiers(
            ValueGroup(ProjectivePoint::generator()),
            &points,
        )
    }
}

impl TryFrom<Vec<u8>> for Commitments {
    type Error = PartError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, PartError> {
        Self::from_bytes(&bytes)
    }
}

impl From<Commitments> for Vec<u8> {
    fn from(commitments: Commitments) -> Self {
        commitments.to_bytes()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
        note_use();
    }
}

impl Drop for KeyPart {
    fn drop(&mut self) {
        self.value.zeroize();
        note_use();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl fmt::Debug for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPart({} of a threshold of {}, redacted)", self.index, self.threshold)
    }
}

impl fmt::Debug for Commitments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Commitments(threshold {})", self.0.len())
    }
}

mod proof;
mod reshare;

pub use proof::PartProof;
pub use reshare::{Dealer, combine_commitments, combine_parts, reshare_part, verify_dealer};

#[cfg(test)]
mod tests;
