//! Handing a split secret on to other custodians, or the same ones anew, without putting it together:
//! verifiable secret redistribution (Desmedt and Jajodia 1997; verified as by Wong, Wang and Wing 2002).
//!
//! Each of `t` custodians, the dealers, splits its own part `f(i)` as if it were a secret, by a polynomial
//! `g_i` of the new degree, and gives new custodian `j` the part `g_i(j)`. With the Lagrange coefficients
//! `l_i` of the dealers at zero, `h = sum of l_i * g_i` is a new polynomial with `h(0) = f(0)`: custodian
//! `j` has `h(j)`, and the commitments to `h` follow from those to the `g_i`, by anybody.
//!
//! F3. Of every dealer the commitment to `g_i(0)` is the public point of its old part, or another secret
//!     could be slipped in. So `h(0) * G` is the old `C_0`; that is checked once more at the end.
//! F4. All new custodians combine the same dealers and the same dealings of theirs, or their parts would be
//!     of different polynomials. The commitments name them.

use super::{Commitments, Dealing, KeyPart, PartError, Secret, get_key_parts, verify_part};
use k256::{ProjectivePoint, Scalar};
use rand::CryptoRng;

/// What one dealer says of its dealing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dealer {
    /// The number of its part of the old dealing.
    pub index: u8,
    /// The commitments of its own dealing.
    pub commitments: Commitments,
}

/// Splits a part among new custodians: `parts` of them, `threshold` of whom are to be needed.
///
/// # Errors
/// As [`get_key_parts`].
pub fn reshare_part(
    part: &KeyPart,
    threshold: u8,
    parts: u8,
    rng: &mut impl CryptoRng,
) -> Result<Dealing, PartError> {
    get_key_parts(&Secret(part.value), threshold, parts, rng)
}

/// Whether what a dealer deals is its part of the old dealing.
///
/// # Errors
/// Names the dealer, when it is something else.
pub fn verify_dealer(old: &Commitments, dealer: &Dealer) -> Result<(), PartError> {
    let index = dealer.index;
    if index == 0 {
        return Err(PartError::ZeroIndex);
    }
    if dealer.commitments.0.first() != Some(&old.public_part(index)) {
        return Err(PartError::Mismatch { index });
    }
    Ok(())
}

/// The commitments of the new dealing, of which each custodian gets its part by [`combine_parts`].
///
/// ```
/// use smalti_storage::keys::{
///     Dealer, Secret, combine_commitments, combine_parts, get_key_parts, reconstruct_symmetric_key,
///     reshare_part,
/// };
///
/// let mut rng = rand::rng();
/// let secret = Secret::random(&mut rng);
/// let old = get_key_parts(&secret, 2, 3, &mut rng)?;
///
/// // From two of three custodians to four, of whom three are needed.
/// let (mut dealers, mut dealt) = (Vec::new(), Vec::new());
/// for part in [&old.parts[0], &old.parts[2]] {
///     let dealing = reshare_part(part, 3, 4, &mut rng)?;
///     dealers.push(Dealer { index: part.index(), commitments: dealing.commitments });
///     dealt.push(dealing.parts);
/// }
/// let commitments = combine_commitments(&old.commitments, &dealers)?;
/// let parts = [0, 1, 3].map(|custodian| {
///     let given = [dealt[0][custodian].clone(), dealt[1][custodian].clone()];
///     combine_parts(&old.commitments, &dealers, &given).unwrap()
/// });
/// let back = reconstruct_symmetric_key(&parts, &commitments)?;
/// assert_eq!(back.master_key().expose(), secret.master_key().expose());
/// # Ok::<(), smalti_storage::keys::PartError>(())
/// ```
///
/// # Errors
/// Unless there are exactly as many dealers as were needed before, each once, each dealing its own part, and
/// all for the same threshold.
pub fn combine_commitments(
    old: &Commitments,
    dealers: &[Dealer],
) -> Result<Commitments, PartError> {
    let (need, have) = (old.threshold(), dealers.len());
    if have != need {
        return Err(PartError::NotEnough { need, have });
    }
    let threshold = dealers.first().map_or(0, |dealer| dealer.commitments.threshold());
    for (i, dealer) in dealers.iter().enumerate() {
        let index = dealer.index;
        verify_dealer(old, dealer)?;
        if dealers[..i].iter().any(|earlier| earlier.index == index) {
            return Err(PartError::Duplicate { index });
        }
        if dealer.commitments.threshold() != threshold {
            let commitments = dealer.commitments.threshold();
            return Err(PartError::Length { index, threshold: threshold as u8, commitments });
        }
    }
    let weights = weights(dealers)?;
    let sum = |degree: usize| {
        let points = dealers.iter().map(|dealer| dealer.commitments.0[degree]);
        points.zip(&weights).map(|(point, weight)| point * weight).sum()
    };
    let combined: Vec<ProjectivePoint> = (0..threshold).map(sum).collect();
    // An identity is no commitment; by chance there is none.
    if combined.first() != old.0.first() || combined.contains(&ProjectivePoint::IDENTITY) {
        return Err(PartError::Combined);
    }
    Ok(Commitments(combined))
}

/// One custodian's part of the new dealing, of what each dealer gave it, in the order of the dealers.
///
/// # Errors
/// As [`combine_commitments`]; when a dealer's part is missing, is not what it committed to, or is of another
/// custodian. A part that does not match is named by its dealer.
pub fn combine_parts(
    old: &Commitments,
    dealers: &[Dealer],
    parts: &[KeyPart],
) -> Result<KeyPart, PartError> {
    let commitments = combine_commitments(old, dealers)?;
    if parts.len() != dealers.len() {
        return Err(PartError::NotEnough { need: dealers.len(), have: parts.len() });
    }
    let index = parts.first().map_or(0, KeyPart::index);
    for (dealer, part) in dealers.iter().zip(parts) {
        let bad = PartError::Mismatch { index: dealer.index };
        if part.index != index || verify_part(part, &dealer.commitments).is_err() {
            return Err(bad);
        }
    }
    let threshold = commitments.threshold() as u8;
    let mut combined = KeyPart { threshold, index, value: Scalar::ZERO };
    for (part, weight) in parts.iter().zip(weights(dealers)?) {
        combined.value += part.value * weight;
    }
    verify_part(&combined, &commitments)?;
    Ok(combined)
}

/// The Lagrange coefficients of the dealers at zero.
fn weights(dealers: &[Dealer]) -> Result<Vec<Scalar>, PartError> {
    let at = |dealer: &Dealer| Scalar::from(u64::from(dealer.index));
    dealers
        .iter()
        .map(|dealer| {
            let others = dealers.iter().filter(|other| other.index != dealer.index);
            let (above, below) = others
                .fold((Scalar::ONE, Scalar::ONE), |(above, below), other| {
                    (above * at(other), below * (at(other) - at(dealer)))
                });
            let inverse: Option<Scalar> = below.invert().into();
            Ok(above * inverse.ok_or(PartError::Combined)?)
        })
        .collect()
}

impl Commitments {
    /// `f(index) * G`, of the part `f(index)` that nobody else may know.
    pub(super) fn public_part(&self, index: u8) -> ProjectivePoint {
        let at = Scalar::from(u64::from(index));
        // Horner, from the highest coefficient.
        self.0.iter().rev().fold(ProjectivePoint::IDENTITY, |sum, point| sum * at + point)
    }

    /// Whether both are to dealings of the same secret.
    pub fn is_of_same_secret(&self, other: &Self) -> bool {
        self.0.first() == other.0.first()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::keys::reconstruct_symmetric_key;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    struct Case {
        secret: Secret,
        old: Dealing,
        dealers: Vec<Dealer>,
        dealt: Vec<Dealing>,
    }

    fn case(seed: u64, from: (u8, u8), to: (u8, u8)) -> Case {
        let mut rng = StdRng::seed_from_u64(seed);
        let secret = Secret::random(&mut rng);
        let old = get_key_parts(&secret, from.0, from.1, &mut rng).expect("a split");
        let mut who: Vec<usize> = (0..usize::from(from.1)).collect();
        rand::seq::SliceRandom::shuffle(&mut who[..], &mut rng);
        who.truncate(usize::from(from.0));
        let dealt: Vec<Dealing> = who
            .iter()
            .map(|i| reshare_part(&old.parts[*i], to.0, to.1, &mut rng).expect("a split"))
            .collect();
        let dealers = who
            .iter()
            .zip(&dealt)
            .map(|(i, dealt)| Dealer {
                index: old.parts[*i].index,
                commitments: dealt.commitments.clone(),
            })
            .collect();
        Case { secret, old, dealers, dealt }
    }

    impl Case {
        fn parts(&self, j: usize) -> Vec<KeyPart> {
            self.dealt.iter().map(|dealt| dealt.parts[j].clone()).collect()
        }

        fn part(&self, j: usize) -> Result<KeyPart, PartError> {
            combine_parts(&self.old.commitments, &self.dealers, &self.parts(j))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn new_parts_give_the_old_secret(
            seed: u64, from in (2u8..5, 0u8..3), to in (2u8..5, 0u8..3),
        ) {
            let (from, to) = ((from.0, from.0 + from.1), (to.0, to.0 + to.1));
            let case = case(seed, from, to);
            let commitments = combine_commitments(&case.old.commitments, &case.dealers).unwrap();
            prop_assert_eq!(commitments.threshold(), usize::from(to.0));
            let parts: Vec<KeyPart> = (0..usize::from(to.1)).map(|j| case.part(j).unwrap()).collect();
            for part in &parts {
                prop_assert_eq!(verify_part(part, &commitments), Ok(()));
                // Nothing of the old dealing is of any use with the new one.
                prop_assert!(verify_part(part, &case.old.commitments).is_err());
            }
            for part in &case.old.parts {
                prop_assert!(verify_part(part, &commitments).is_err());
            }
            let few = &parts[parts.len() - usize::from(to.0)..];
            let back = reconstruct_symmetric_key(few, &commitments).unwrap();
            let keys = (back.master_key(), case.secret.master_key());
            prop_assert_eq!(keys.0.expose(), keys.1.expose());
            prop_assert!(commitments.is_of_same_secret(&case.old.commitments));
        }
    }

    #[test]
    fn what_dealers_do_wrong_is_told_by_their_names() {
        let good = case(1, (2, 3), (2, 3));
        let old = &good.old.commitments;
        let other = case(2, (2, 3), (2, 3));
        let higher = case(1, (2, 3), (3, 3));
        let index = good.dealers[1].index;
        let with = |dealer: Dealer| {
            combine_commitments(old, &[good.dealers[0].clone(), dealer]).map(|_| ())
        };
        assert_eq!(with(good.dealers[1].clone()), Ok(()));
        // Another secret, its own part twice, its part under another number, or for another threshold.
        let foreign = Dealer { index, ..other.dealers[1].clone() };
        assert_eq!(with(foreign), Err(PartError::Mismatch { index }));
        let twice = good.dealers[0].index;
        assert_eq!(with(good.dealers[0].clone()), Err(PartError::Duplicate { index: twice }));
        let third = 6 - twice - index;
        let renamed = Dealer { index: third, ..good.dealers[1].clone() };
        assert_eq!(with(renamed), Err(PartError::Mismatch { index: third }));
        let zero = Dealer { index: 0, ..good.dealers[1].clone() };
        assert_eq!(with(zero), Err(PartError::ZeroIndex));
        let longer = Dealer { index, ..higher.dealers[1].clone() };
        let length = PartError::Length { index, threshold: 2, commitments: 3 };
        assert_eq!(with(longer), Err(length));
        let few = combine_commitments(old, &good.dealers[..1]).err();
        assert_eq!(few, Some(PartError::NotEnough { need: 2, have: 1 }));
        let all = [&good.dealers[..], &good.dealers[..1]].concat();
        let many = combine_commitments(old, &all).err();
        assert_eq!(many, Some(PartError::NotEnough { need: 2, have: 3 }));
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let good = case(3, (3, 4), (2, 3));
        let again = case(4, (3, 4), (2, 3));
        let old = &good.old.commitments;
        let index = good.dealers[2].index;
        let with = |parts: &[KeyPart]| combine_parts(old, &good.dealers, parts).err();
        assert_eq!(with(&good.parts(1)), None);
        let mut parts = good.parts(1);
        parts[2].value += Scalar::ONE;
        assert_eq!(with(&parts), Some(PartError::Mismatch { index }));
        // Of another dealing by the same dealer, and of another custodian.
        parts[2] = again.dealt[2].parts[1].clone();
        assert_eq!(with(&parts), Some(PartError::Mismatch { index }));
        parts[2] = good.dealt[2].parts[0].clone();
        assert_eq!(with(&parts), Some(PartError::Mismatch { index }));
        assert_eq!(with(&parts[..2]), Some(PartError::NotEnough { need: 3, have: 2 }));
    }

    #[test]
    fn another_secret_is_told_from_the_commitments() {
        let (one, other) = (case(5, (2, 3), (2, 2)), case(6, (2, 3), (2, 2)));
        assert!(!one.old.commitments.is_of_same_secret(&other.old.commitments));
        assert!(one.old.commitments.is_of_same_secret(&one.old.commitments));
    }
}
