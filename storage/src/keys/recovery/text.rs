//! Shares of the recovery secret as people keep them: one line each, with a checksum that finds a typo.
//!
//! ```text
//! smalti-recovery-2-qpzry-9x8gf-2tvdw-0s3jn-54khc-...
//!                 |  `-- bech32m: format | threshold | first 6 bytes of the cluster | value (32)
//!                 `-- the number of the share, in the checksum as well
//! ```
//!
//! Bech32m (BIP 350) over the text `smalti-recovery-2` and 64 characters, and its 6 of checksum: 89 in all,
//! of which it finds up to four wrong ones for certain and more by 1 - 2^-30, and says which one if it is one. No
//! character of it looks like another: there is no 1, b, i or o. Case, spaces and dashes do not count.

use super::{Commitments, SCALAR_LEN, Secret};
use crate::ids::ClusterId;
use crate::keys::share::{KeyPart, PartError, reconstruct_symmetric_key, verify_part};
use bech32::primitives::correction::CorrectableError;
use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32m, Fe32, Hrp};
use std::fmt;
use zeroize::Zeroizing;

const PREFIX: &str = "smalti-recovery-";
const FORMAT: u8 = 1;
const CLUSTER_LEN: usize = 6;
const HEAD_LEN: usize = 2 + CLUSTER_LEN;
const BYTES: usize = HEAD_LEN + SCALAR_LEN;
/// Characters after the number: five bits each, and the checksum.
const CHARACTERS: usize = BYTES * 8 / 5 + 6;
/// Characters between two dashes.
const GROUP: usize = 5;
/// The format of a [`KeyPart`] in bytes, whose values are these.
const PART_FORMAT: u8 = 1;

/// One person's share of the recovery secret of a cluster.
#[derive(Clone)]
pub struct RecoveryShare {
    cluster: [u8; CLUSTER_LEN],
    part: KeyPart,
}

/// What is wrong with a share, or with all of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryShareError {
    /// Something else.
    #[error("line {line} is no recovery share: one begins with {PREFIX} and its number")]
    Unlike {
        /// Which, from 1.
        line: usize,
    },
    /// Characters are missing, or there are too many.
    #[error("recovery share {share} has {have} characters after its number, not {CHARACTERS}")]
    Length {
        /// Which.
        share: u8,
        /// How many there are.
        have: usize,
    },
    /// A character that no share has.
    #[error("recovery share {share} is mistyped in group {group}: {character:?} is in no share")]
    Character {
        /// Which.
        share: u8,
        /// The group of five, from 1.
        group: usize,
        /// The character.
        character: char,
    },
    /// One character is wrong.
    #[error("recovery share {share} is mistyped, most likely in group {group}")]
    Typo {
        /// Which.
        share: u8,
        /// The group of five, from 1.
        group: usize,
    },
    /// Several are wrong, or the number is.
    #[error("recovery share {share} is mistyped: its checksum does not match")]
    Mistyped {
        /// Which.
        share: u8,
    },
    /// Made by a newer program.
    #[error("recovery share {share} is of format {format}, which is not known")]
    Format {
        /// Which.
        share: u8,
        /// Its format.
        format: u8,
    },
    /// Of another cluster.
    #[error("recovery share {share} is of another cluster, whose identity begins with {begins}")]
    Foreign {
        /// Which.
        share: u8,
        /// The first digits of its cluster's identity.
        begins: String,
    },
    /// The same share again.
    #[error("recovery share {share} is given twice")]
    Twice {
        /// Which.
        share: u8,
    },
    /// Well written, and not what was dealt.
    #[error("recovery share {share} is not what was dealt: {why}")]
    Mismatch {
        /// Which.
        share: u8,
        /// Why not.
        why: PartError,
    },
    /// Fewer than are needed.
    #[error("{have} recovery shares are too few: {need} are needed")]
    TooFew {
        /// How many are needed.
        need: usize,
        /// How many are good.
        have: usize,
    },
    /// Verified shares gave something else than was dealt.
    #[error("the recovery secret does not match its commitment")]
    Combined,
}

impl RecoveryShare {
    /// The share of `cluster` whose part this is.
    pub fn new(cluster: ClusterId, part: KeyPart) -> Self {
        Self { cluster: beginning(cluster), part }
    }

    /// Its number, from 1.
    pub const fn number(&self) -> u8 {
        self.part.index()
    }

    /// How many are needed.
    pub const fn threshold(&self) -> u8 {
        self.part.threshold()
    }

    /// The one line that a person keeps.
    ///
    /// ```
    /// use smalti_storage::ids::ClusterId;
    /// use smalti_storage::keys::{RecoveryShare, Secret, get_key_parts};
    ///
    /// let mut rng = rand::rng();
    /// let dealing = get_key_parts(&Secret::random(&mut rng), 3, 5, &mut rng)?;
    /// let share = RecoveryShare::new(ClusterId::default(), dealing.parts[1].clone());
    /// let line = share.to_text();
    /// assert!(line.starts_with("smalti-recovery-2-"));
    ///
    /// let typed = line.to_uppercase().replace('-', " ");
    /// assert_eq!(RecoveryShare::parse(&typed, 1).unwrap().to_text(), line);
    /// # Ok::<(), smalti_storage::keys::PartError>(())
    /// ```
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; BYTES]);
        (bytes[0], bytes[1]) = (FORMAT, self.part.threshold());
        bytes[2..HEAD_LEN].copy_from_slice(&self.cluster);
        bytes[HEAD_LEN..].copy_from_slice(&self.part.to_bytes()[3..]);
        let prefix = format!("{PREFIX}{}", self.number());
        let hrp = Hrp::parse(&prefix).expect("ASCII and short");
        let code = bech32::encode::<Bech32m>(hrp, &*bytes).expect("far below the longest code");
        let code = Zeroizing::new(code);
        // What stands between is a one, which would look as if it were of the number.
        let characters = &code[prefix.len() + 1..];
        let mut text =
            Zeroizing::new(String::with_capacity(prefix.len() + CHARACTERS + CHARACTERS / GROUP));
        text.push_str(&prefix);
        for (at, character) in characters.chars().enumerate() {
            if at % GROUP == 0 {
                text.push('-');
            }
            text.push(character);
        }
        text
    }

    /// Reads a share as somebody typed it in `line`. It is well written, not verified.
    ///
    /// # Errors
    /// Names the share and says where it is wrong, as far as that can be told.
    pub fn parse(text: &str, line: usize) -> Result<Self, RecoveryShareError> {
        let (share, characters) = split(text).ok_or(RecoveryShareError::Unlike { line })?;
        let have = characters.chars().count();
        if have != CHARACTERS {
            return Err(RecoveryShareError::Length { share, have });
        }
        let strange = |c: char| Fe32::from_char(c).is_err();
        if let Some((at, character)) = characters.chars().enumerate().find(|(_, c)| strange(*c)) {
            return Err(RecoveryShareError::Character { share, group: at / GROUP + 1, character });
        }
        let code = Zeroizing::new(format!("{PREFIX}{share}1{}", &*characters));
        let checked = CheckedHrpstring::new::<Bech32m>(&code).map_err(|error| {
            let from_end = error.correction_context::<Bech32m>().and_then(|context| {
                let mut wrong = context.bch_errors()?;
                let (at, _) = wrong.next()?;
                wrong.next().is_none().then_some(at)
            });
            // Farther from the end than there are characters: in the number, or more than one is wrong.
            match from_end.and_then(|from_end| (CHARACTERS - 1).checked_sub(from_end)) {
                Some(at) => RecoveryShareError::Typo { share, group: at / GROUP + 1 },
                None => RecoveryShareError::Mistyped { share },
            }
        })?;
        let mut bytes = Zeroizing::new([0; BYTES]);
        bytes.iter_mut().zip(checked.byte_iter()).for_each(|(to, byte)| *to = byte);
        let format = bytes[0];
        if format != FORMAT {
            return Err(RecoveryShareError::Format { share, format });
        }
        let mut cluster = [0; CLUSTER_LEN];
        cluster.copy_from_slice(&bytes[2..HEAD_LEN]);
        let mut part = Zeroizing::new([0; 3 + SCALAR_LEN]);
        part[..3].copy_from_slice(&[PART_FORMAT, bytes[1], share]);
        part[3..].copy_from_slice(&bytes[HEAD_LEN..]);
        let part = KeyPart::from_bytes(&*part)
            .map_err(|why| RecoveryShareError::Mismatch { share, why })?;
        Ok(Self { cluster, part })
    }
}

/// The recovery secret of `cluster`, from shares as they were typed, one a line.
///
/// # Errors
/// Everything that is wrong: each bad share by its number. One bad share among enough good ones is told too:
/// whoever gave it should know.
pub fn combine_recovery_shares(
    lines: &[impl AsRef<str>],
    cluster: ClusterId,
    commitments: &Commitments,
) -> Result<Secret, Vec<RecoveryShareError>> {
    let (mut parts, mut problems): (Vec<KeyPart>, _) = (Vec::new(), Vec::new());
    for (line, text) in (1..).zip(lines) {
        match read(text.as_ref(), line, cluster, commitments) {
            Ok(part) if parts.iter().any(|known| known.index() == part.index()) => {
                problems.push(RecoveryShareError::Twice { share: part.index() });
            }
            Ok(part) => parts.push(part),
            Err(problem) => problems.push(problem),
        }
    }
    let (need, have) = (commitments.threshold(), parts.len());
    if have < need {
        problems.push(RecoveryShareError::TooFew { need, have });
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    reconstruct_symmetric_key(&parts, commitments).map_err(|_| vec![RecoveryShareError::Combined])
}

fn read(
    text: &str,
    line: usize,
    cluster: ClusterId,
    commitments: &Commitments,
) -> Result<KeyPart, RecoveryShareError> {
    let RecoveryShare { cluster: of, part } = RecoveryShare::parse(text, line)?;
    let share = part.index();
    if of != beginning(cluster) {
        let begins = of.iter().map(|byte| format!("{byte:02x}")).collect();
        return Err(RecoveryShareError::Foreign { share, begins });
    }
    verify_part(&part, commitments).map_err(|why| RecoveryShareError::Mismatch { share, why })?;
    Ok(part)
}

/// The number and the characters after it, in lower case and without what stands between.
fn split(text: &str) -> Option<(u8, Zeroizing<String>)> {
    let mut plain = Zeroizing::new(String::with_capacity(text.len()));
    let mut number_ends = None;
    let stem = PREFIX.len() - PREFIX.matches('-').count();
    for character in text.trim().chars() {
        if !(character == '-' || character.is_whitespace()) {
            plain.push(character.to_ascii_lowercase());
        } else if plain.len() > stem {
            number_ends.get_or_insert(plain.len());
        }
    }
    let rest = plain.strip_prefix(&*PREFIX.replace('-', ""))?;
    // Without anything between, all but the last ones are of the number.
    let digits = match number_ends {
        Some(end) => end - stem,
        None => rest.len().checked_sub(CHARACTERS)?,
    };
    let (number, characters) = rest.split_at_checked(digits)?;
    let is_number = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    let number = number.parse().ok().filter(|number| is_number && *number > 0)?;
    Some((number, Zeroizing::new(characters.to_owned())))
}

fn beginning(cluster: ClusterId) -> [u8; CLUSTER_LEN] {
    let mut begins = [0; CLUSTER_LEN];
    begins.copy_from_slice(&cluster.0.as_bytes()[..CLUSTER_LEN]);
    begins
}

impl fmt::Debug for RecoveryShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecoveryShare({:?})", self.part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Dealing, get_key_parts};
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use uuid::Uuid;

    const CLUSTER: ClusterId =
        ClusterId(Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff));
    const ALPHABET: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";

    fn deal(seed: u64, threshold: u8, parts: u8) -> Dealing {
        let mut rng = StdRng::seed_from_u64(seed);
        get_key_parts(&Secret::random(&mut rng), threshold, parts, &mut rng).expect("a split")
    }

    fn texts(dealing: &Dealing, cluster: ClusterId) -> Vec<String> {
        let text = |part: &KeyPart| RecoveryShare::new(cluster, part.clone()).to_text().to_string();
        dealing.parts.iter().map(text).collect()
    }

    fn problems(lines: &[String], dealing: &Dealing) -> Vec<RecoveryShareError> {
        combine_recovery_shares(lines, CLUSTER, &dealing.commitments).err().unwrap_or_default()
    }

    #[test]
    fn enough_shares_give_the_secret_and_one_fewer_does_not() {
        let dealing = deal(1, 3, 5);
        let lines = texts(&dealing, CLUSTER);
        let back = combine_recovery_shares(&lines[1..4], CLUSTER, &dealing.commitments);
        assert!(dealing.commitments.are_of(&back.expect("three of three")));
        assert_eq!(problems(&lines, &dealing), []);
        let few = RecoveryShareError::TooFew { need: 3, have: 2 };
        assert_eq!(problems(&lines[..2], &dealing), [few]);
        let few = RecoveryShareError::TooFew { need: 3, have: 0 };
        assert_eq!(problems(&[], &dealing), [few]);
    }

    #[test]
    fn bad_shares_are_told_by_their_numbers() {
        let dealing = deal(2, 2, 4);
        let lines = texts(&dealing, CLUSTER);
        let with = |third: &str| {
            problems(&[lines[0].clone(), lines[1].clone(), third.to_owned()], &dealing)
        };
        assert_eq!(with(&lines[2]), []);
        assert_eq!(with(&lines[1].to_uppercase()), [RecoveryShareError::Twice { share: 2 }]);
        let other = ClusterId(Uuid::from_u128(0xab << 120));
        let begins = "ab0000000000".to_owned();
        let foreign = RecoveryShareError::Foreign { share: 3, begins };
        assert_eq!(with(&texts(&dealing, other)[2]), [foreign]);
        // Of the same cluster, and another secret or threshold.
        let why = PartError::Mismatch { index: 3 };
        let mismatch = RecoveryShareError::Mismatch { share: 3, why };
        assert_eq!(with(&texts(&deal(3, 2, 4), CLUSTER)[2]), [mismatch]);
        let why = PartError::Length { index: 3, threshold: 3, commitments: 2 };
        let mismatch = RecoveryShareError::Mismatch { share: 3, why };
        assert_eq!(with(&texts(&deal(2, 3, 4), CLUSTER)[2]), [mismatch]);
        for unlike in ["hello", "", "smalti-recovery", "smalti-recovery-", "smalti-recovery-0-qq"] {
            assert_eq!(with(unlike), [RecoveryShareError::Unlike { line: 3 }], "{unlike}");
        }
        assert_eq!(
            with(&lines[2][..lines[2].len() - 1]),
            [RecoveryShareError::Length { share: 3, have: CHARACTERS - 1 }]
        );
        // A number that another share has: the checksum knows.
        let renamed = lines[2].replacen("recovery-3", "recovery-4", 1);
        assert!(
            matches!(
                with(&renamed)[..],
                [RecoveryShareError::Mistyped { share: 4 }
                    | RecoveryShareError::Typo { share: 4, .. }]
            ),
            "{:?}",
            with(&renamed)
        );
        // All that is wrong is told at once, and no value of any share.
        let lines = [lines[0].clone(), lines[0].clone(), "x".into()];
        let all: Vec<String> = problems(&lines, &dealing).iter().map(ToString::to_string).collect();
        let expected = [
            "recovery share 1 is given twice",
            "line 3 is no recovery share: one begins with smalti-recovery- and its number",
            "1 recovery shares are too few: 2 are needed",
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn one_wrong_character_is_located() {
        let dealing = deal(4, 3, 5);
        let line = &texts(&dealing, CLUSTER)[4];
        let begin = "smalti-recovery-5-".len();
        for at in (begin..line.len()).filter(|at| &line[*at..=*at] != "-") {
            let group = (at - begin) / (GROUP + 1) + 1;
            for other in ALPHABET.chars().chain("bio1?\u{e9}".chars()) {
                if line[at..].starts_with(other) {
                    continue;
                }
                let typed = format!("{}{other}{}", &line[..at], &line[at + 1..]);
                let problem = RecoveryShare::parse(&typed, 1).map(|_| ());
                let expected = match ALPHABET.contains(other) {
                    true => RecoveryShareError::Typo { share: 5, group },
                    false => RecoveryShareError::Character { share: 5, group, character: other },
                };
                assert_eq!(problem, Err(expected), "{typed}");
            }
        }
    }

    /// What people have on paper is read by every later build: `f(x) = 5 + 3x`, so share 2 is 11.
    #[test]
    fn old_shares_keep_reading() {
        let mut bytes = vec![1, 2, 2];
        bytes.resize(34, 0);
        bytes.push(11);
        let part = KeyPart::from_bytes(&bytes).expect("a part");
        let share = RecoveryShare::new(CLUSTER, part);
        assert_eq!(*share.to_text(), FIXED);
        assert_eq!(*RecoveryShare::parse(FIXED, 1).expect("it reads").part.to_bytes(), bytes);
        assert_eq!(format!("{share:?}"), "RecoveryShare(KeyPart(2 of a threshold of 2, redacted))");
    }

    const FIXED: &str = "\
        smalti-recovery-2-qypqq-yfzxd-z92qq-qqqqq-qqqqq-qqqqq-qqqqq-qqqqq-\
        qqqqq-qqqqq-qqqqq-qqqqq-qqqtp-ylmn6";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_written_is_read_however_it_is_typed(
            value: [u8; 31], threshold in 2u8..=255, number in 1u8..=255, cluster: u128,
            between in "[- \t]{0,3}", upper: bool,
        ) {
            let bytes = [&[1, threshold, number, 0], &value[..]].concat();
            let part = KeyPart::from_bytes(&bytes).expect("below the order");
            let cluster = ClusterId(Uuid::from_u128(cluster));
            let text = RecoveryShare::new(cluster, part).to_text();
            let typed = text.replace('-', &between);
            let typed = if upper { typed.to_uppercase() } else { typed };
            let back = RecoveryShare::parse(&typed, 1).expect("it reads");
            prop_assert_eq!(back.to_text(), text);
            prop_assert_eq!(&*back.part.to_bytes(), &bytes);
            prop_assert_eq!(back.cluster, beginning(cluster));
        }

        #[test]
        fn any_text_fails_cleanly(text in "(smalti-?recovery-?)?.{0,90}") {
            prop_assert!(RecoveryShare::parse(&text, 1).is_err());
        }

        /// Up to four wrong characters never pass.
        #[test]
        fn several_wrong_characters_are_noticed(
            seed: u64, wrong in proptest::collection::vec((any::<prop::sample::Index>(), 1usize..32), 1..=4),
        ) {
            let line = &texts(&deal(seed, 2, 2), CLUSTER)[0];
            let mut typed: Vec<char> = line.chars().collect();
            let begin = "smalti-recovery-1-".len();
            for (at, by) in wrong {
                let at = begin + at.index(typed.len() - begin);
                let Some(old) = ALPHABET.find(typed[at]) else { continue };
                typed[at] = ALPHABET.as_bytes()[(old + by) % 32].into();
            }
            let typed: String = typed.into_iter().collect();
            prop_assert_eq!(RecoveryShare::parse(&typed, 1).is_ok(), typed == *line);
        }
    }
}
