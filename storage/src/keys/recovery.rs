//! Recovery: every split secret, sealed once more for people who hold shares of a secret that opens them all.
//!
//! The recovery secret `R` is drawn and split when a cluster is made, by the same scheme as all others, over
//! people instead of custodians; then it is forgotten. Its public point `C_0 = R * G`, which is the first
//! of the commitments to it, is in the map. Whoever makes a secret seals it to that point by ECIES:
//!
//! ```text
//! e    drawn            E = e * G                       key = HKDF(label, x of e * C_0, E | C_0)
//! envelope              format (1) | E (33) | AES-256-GCM(key, secret) (32) | tag (16)
//! additional data       label | format | cluster (16) | name of the secret
//! opening               key from x of R * E
//! ```
//!
//! A key seals one secret, for `e` is drawn for each; so the nonce is a constant.
//!
//! V1. What opens is believed only if it is the secret that the commitments of its custody are to.
//! V2. An envelope of another secret or another cluster does not open in its place.
//! V3. Nobody can tell from outside whether an envelope holds what it should: a drill with shares can.

mod text;

pub use text::{RecoveryShare, RecoveryShareError, combine_recovery_shares};

use super::derive::hkdf;
use super::name::SecretName;
use super::share::{Commitments, Secret};
use crate::ids::ClusterId;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use k256::elliptic_curve::PrimeField;
use k256::elliptic_curve::group::{Group, GroupEncoding};
use k256::{ProjectivePoint, Scalar};
use rand::CryptoRng;
use zeroize::{Zeroize, Zeroizing};

const FORMAT: u8 = 1;
const LABEL: &[u8] = b"smalti recovery envelope v1";
const POINT_LEN: usize = 33;
const SCALAR_LEN: usize = 32;
const TAG_LEN: usize = 16;
const HEAD_LEN: usize = 1 + POINT_LEN;
const NONCE: [u8; 12] = [0; 12];

/// Bytes of an envelope.
pub const RECOVERY_ENVELOPE_LEN: usize = HEAD_LEN + SCALAR_LEN + TAG_LEN;

/// Why an envelope did not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// Not as long as an envelope.
    #[error("a recovery envelope has {RECOVERY_ENVELOPE_LEN} bytes, not {0}")]
    Length(usize),
    /// Sealed by a newer program.
    #[error("recovery envelope format {0} is not known")]
    Format(u8),
    /// The recovery secret, the place or the bytes are not those it was sealed with.
    #[error(
        "the recovery envelope does not authenticate: of another cluster or secret, or altered"
    )]
    Refused,
    /// It opens, and what was sealed is something else than it should be.
    #[error("the recovery envelope holds another secret")]
    Another,
}

/// Seals a secret to the public point of the recovery secret, of which `recovery` are the commitments. What
/// comes back is public.
///
/// ```
/// use smalti_storage::ids::ClusterId;
/// use smalti_storage::keys::{
///     RecoveryError, Secret, SecretName, get_key_parts, open_for_recovery, seal_for_recovery,
/// };
///
/// let mut rng = rand::rng();
/// let recovery = Secret::random(&mut rng);
/// let public = get_key_parts(&recovery, 3, 5, &mut rng)?.commitments;
///
/// let (cluster, name) = (ClusterId::default(), SecretName::Master);
/// let secret = Secret::random(&mut rng);
/// let custody = get_key_parts(&secret, 2, 3, &mut rng)?.commitments;
/// let envelope = seal_for_recovery(&secret, cluster, name, &public, &mut rng);
///
/// let back = open_for_recovery(&recovery, &envelope, cluster, name, &custody).unwrap();
/// assert_eq!(back.master_key().expose(), secret.master_key().expose());
///
/// let other = Secret::random(&mut rng);
/// let refused = open_for_recovery(&other, &envelope, cluster, name, &custody);
/// assert_eq!(refused.err(), Some(RecoveryError::Refused));
/// # Ok::<(), smalti_storage::keys::PartError>(())
/// ```
pub fn seal_for_recovery(
    secret: &Secret,
    cluster: ClusterId,
    name: SecretName,
    recovery: &Commitments,
    rng: &mut impl CryptoRng,
) -> Vec<u8> {
    seal_with(&Secret::random(rng), secret, cluster, name, recovery)
}

fn seal_with(
    ephemeral: &Secret,
    secret: &Secret,
    cluster: ClusterId,
    name: SecretName,
    recovery: &Commitments,
) -> Vec<u8> {
    let to = *recovery.0.first().expect("commitments are two at least");
    let point = ProjectivePoint::generator() * ephemeral.0;
    let key = key(to * ephemeral.0, &point, &to);
    // Full capacity first: a growing vector would leave copies of the secret behind.
    let mut out = Vec::with_capacity(RECOVERY_ENVELOPE_LEN);
    out.push(FORMAT);
    out.extend_from_slice(&point.to_bytes());
    let mut plaintext = secret.0.to_repr();
    out.extend_from_slice(&plaintext);
    plaintext.zeroize();
    let tag = Aes256Gcm::new((&*key).into())
        .encrypt_inout_detached(
            &NONCE.into(),
            &additional_data(cluster, name),
            (&mut out[HEAD_LEN..]).into(),
        )
        .expect("32 bytes are far below the limit of GCM");
    out.extend_from_slice(&tag);
    out
}

/// Opens what [`seal_for_recovery`] made for the same cluster and secret. `custody`: the commitments of the
/// secret's custody.
///
/// # Errors
/// When it does not open, or holds another secret than `custody` is to.
pub fn open_for_recovery(
    recovery: &Secret,
    envelope: &[u8],
    cluster: ClusterId,
    name: SecretName,
    custody: &Commitments,
) -> Result<Secret, RecoveryError> {
    let envelope: &[u8; RECOVERY_ENVELOPE_LEN] =
        envelope.try_into().map_err(|_| RecoveryError::Length(envelope.len()))?;
    let [format, rest @ ..] = envelope;
    if *format != FORMAT {
        return Err(RecoveryError::Format(*format));
    }
    let refused = RecoveryError::Refused;
    let (point, rest) = rest.split_first_chunk::<POINT_LEN>().ok_or(refused)?;
    let (body, tag) = rest.split_first_chunk::<SCALAR_LEN>().ok_or(refused)?;
    let tag: &[u8; TAG_LEN] = tag.try_into().map_err(|_| refused)?;
    let point: ProjectivePoint =
        Option::from(ProjectivePoint::from_bytes(&(*point).into())).ok_or(refused)?;
    // Its product with anything is known.
    if point == ProjectivePoint::IDENTITY {
        return Err(refused);
    }
    let key = key(point * recovery.0, &point, &(ProjectivePoint::generator() * recovery.0));
    let mut plaintext = Zeroizing::new(*body);
    Aes256Gcm::new((&*key).into())
        .decrypt_inout_detached(
            &NONCE.into(),
            &additional_data(cluster, name),
            plaintext.as_mut_slice().into(),
            tag.into(),
        )
        .map_err(|_| refused)?;
    let scalar: Option<Scalar> = Scalar::from_repr((*plaintext).into()).into();
    let secret = Secret(scalar.ok_or(RecoveryError::Another)?);
    if custody.are_of(&secret) { Ok(secret) } else { Err(RecoveryError::Another) }
}

/// The key of one envelope. Both points go in, so that whoever does not know `R` can not make an envelope of
/// another one that opens with the same key.
fn key(
    mut shared: ProjectivePoint,
    ephemeral: &ProjectivePoint,
    to: &ProjectivePoint,
) -> Zeroizing<[u8; 32]> {
    let mut compressed = shared.to_bytes();
    // What follows on the sign is x.
    let key = hkdf(LABEL, &compressed[1..], &[&ephemeral.to_bytes(), &to.to_bytes()]);
    compressed.zeroize();
    shared.zeroize();
    key
}

/// What an envelope is bound to. Of one length for each kind of secret, so no two are alike.
fn additional_data(cluster: ClusterId, name: SecretName) -> Vec<u8> {
    let mut data = [LABEL, &[FORMAT], cluster.0.as_bytes()].concat();
    match name {
        SecretName::Master => data.push(0),
        SecretName::Wrapping { volume, key_epoch } => {
            data.push(1);
            data.extend_from_slice(volume.0.as_bytes());
            data.extend_from_slice(&key_epoch.0.to_be_bytes());
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{KeyEpochNo, VolumeId};
    use crate::keys::get_key_parts;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use uuid::Uuid;

    const CLUSTER: ClusterId =
        ClusterId(Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff));

    fn wrapping(volume: u128, key_epoch: u32) -> SecretName {
        let volume = VolumeId(Uuid::from_u128(volume));
        SecretName::Wrapping { volume, key_epoch: KeyEpochNo(key_epoch) }
    }

    struct Case {
        recovery: Secret,
        public: Commitments,
        secret: Secret,
        custody: Commitments,
    }

    fn case(seed: u64) -> Case {
        let mut rng = StdRng::seed_from_u64(seed);
        let (recovery, secret) = (Secret::random(&mut rng), Secret::random(&mut rng));
        let public = get_key_parts(&recovery, 3, 5, &mut rng).expect("a split").commitments;
        let custody = get_key_parts(&secret, 2, 3, &mut rng).expect("a split").commitments;
        Case { recovery, public, secret, custody }
    }

    #[test]
    fn every_bit_and_the_place_of_an_envelope_count() {
        let Case { recovery, public, secret, custody } = case(1);
        let mut rng = StdRng::seed_from_u64(2);
        let name = wrapping(7, 3);
        let envelope = seal_for_recovery(&secret, CLUSTER, name, &public, &mut rng);
        assert_eq!(envelope.len(), RECOVERY_ENVELOPE_LEN);
        let open = |envelope: &[u8], cluster, name| {
            open_for_recovery(&recovery, envelope, cluster, name, &custody).map(|_| ())
        };
        assert_eq!(open(&envelope, CLUSTER, name), Ok(()));
        let refused = Err(RecoveryError::Refused);
        let other = ClusterId(Uuid::from_u128(1));
        assert_eq!(open(&envelope, other, name), refused);
        for name in [wrapping(7, 4), wrapping(8, 3), SecretName::Master] {
            assert_eq!(open(&envelope, CLUSTER, name), refused);
        }
        for bit in 8..envelope.len() * 8 {
            let mut bad = envelope.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&bad, CLUSTER, name), refused, "bit {bit}");
        }
        let mut newer = envelope.clone();
        newer[0] = 2;
        assert_eq!(open(&newer, CLUSTER, name), Err(RecoveryError::Format(2)));
        let cut = &envelope[..RECOVERY_ENVELOPE_LEN - 1];
        assert_eq!(open(cut, CLUSTER, name), Err(RecoveryError::Length(cut.len())));
        assert_eq!(open(&[], CLUSTER, name), Err(RecoveryError::Length(0)));
        // The identity, whose product with anything everybody knows.
        let mut nothing = envelope.clone();
        nothing[1..HEAD_LEN].fill(0);
        assert_eq!(open(&nothing, CLUSTER, name), refused);
        let again = seal_for_recovery(&secret, CLUSTER, name, &public, &mut rng);
        assert_ne!(again[1..HEAD_LEN], envelope[1..HEAD_LEN], "each has a key of its own");
    }

    #[test]
    fn what_opens_is_not_believed_if_it_is_another_secret() {
        let (one, other) = (case(3), case(4));
        let mut rng = StdRng::seed_from_u64(5);
        let name = SecretName::Master;
        let wrong = seal_for_recovery(&other.secret, CLUSTER, name, &one.public, &mut rng);
        let opened = open_for_recovery(&one.recovery, &wrong, CLUSTER, name, &one.custody);
        assert_eq!(opened.err(), Some(RecoveryError::Another));
        let theirs = seal_for_recovery(&one.secret, CLUSTER, name, &other.public, &mut rng);
        let opened = open_for_recovery(&one.recovery, &theirs, CLUSTER, name, &one.custody);
        assert_eq!(opened.err(), Some(RecoveryError::Refused));
    }

    /// Envelopes of today are opened by every later build. The expected bytes come from an independent
    /// implementation.
    #[test]
    fn old_envelopes_keep_opening() {
        let small = |value: u64| Secret(Scalar::from(value));
        let mut rng = StdRng::seed_from_u64(6);
        let public = get_key_parts(&small(5), 2, 2, &mut rng).expect("a split").commitments;
        let custody = get_key_parts(&small(7), 2, 2, &mut rng).expect("a split").commitments;
        let known = [(SecretName::Master, MASTER), (wrapping(0xf1, 2), WRAPPING)];
        for (name, expected) in known {
            let envelope = seal_with(&small(3), &small(7), CLUSTER, name, &public);
            let hex: String = envelope.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, expected);
            let back = open_for_recovery(&small(5), &envelope, CLUSTER, name, &custody);
            assert_eq!(back.map(|secret| secret.0), Ok(Scalar::from(7u64)));
        }
    }

    const MASTER: &str = "\
        0102f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9a0f76b7cae6905\
        349248002b2c80ebbfd2af8ba91fb858889f9d9d644f6c529da0a3076761b57450381a0107bb8b9b14";
    const WRAPPING: &str = "\
        0102f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9a0f76b7cae6905\
        349248002b2c80ebbfd2af8ba91fb858889f9d9d644f6c529de164d843bd79979112d43bab040d5e58";
}
