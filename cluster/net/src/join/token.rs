//! The text by which an operator lets a machine join: whom to believe, where to go, what to prove.
//!
//! ```text
//! version u8 = 1 | pin 32 | id 16 | secret 32 | count u8 | addresses | checksum 4
//! address: 4 or 6 u8 | IP | port u16              checksum: the first bytes of a SHA-256
//! ```
//! in base32 behind a prefix: a word that terminals select whole. The checksum is for slips of people.

use data_encoding::BASE32_NOPAD;
use ring::{digest, rand::SecureRandom};
use smalti_storage::ids::TokenId;
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};
use uuid::Uuid;
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const PREFIX: &str = "smalti1";
const CHECKSUM: usize = 4;
/// More nodes than this need not be tried.
const ADDRESSES_MAX: usize = 8;
const TEXT_BYTES_MAX: usize = 1024;

/// A token to join with. Its secret is wiped when it is dropped, and `Debug` does not show it.
#[derive(Clone)]
pub struct JoinToken {
    /// SHA-256 of the public key of the authority that is to be believed.
    pub pin: [u8; 32],
    /// Under which the cluster knows it.
    pub id: TokenId,
    /// Where to join, in the order in which to try.
    pub addresses: Vec<SocketAddr>,
    pub(super) secret: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Something else.
    #[error("this is no join token: one begins with {PREFIX}")]
    Other,
    /// Characters are missing, or wrong.
    #[error("the join token is not whole: it was cut short or mistyped")]
    Damaged,
    /// Of a later program, perhaps.
    #[error("join tokens of version {0} are not known to this program")]
    Version(u8),
    /// Whole, and still it can not be.
    #[error("the join token names no address to join at")]
    NoAddress,
    /// A new one can not be made.
    #[error(
        "a join token has 1 to {ADDRESSES_MAX} addresses, and the system a source of randomness"
    )]
    NotMade,
}

impl JoinToken {
    /// Draws a new one.
    ///
    /// # Errors
    /// The number of addresses can not be, or the system has no randomness.
    pub fn draw(pin: [u8; 32], addresses: Vec<SocketAddr>) -> Result<Self, TokenError> {
        if !(1..=ADDRESSES_MAX).contains(&addresses.len()) {
            return Err(TokenError::NotMade);
        }
        let random = ring::rand::SystemRandom::new();
        let mut secret = Zeroizing::new([0; 32]);
        let mut id = [0; 16];
        random.fill(&mut *secret).map_err(|_| TokenError::NotMade)?;
        random.fill(&mut id).map_err(|_| TokenError::NotMade)?;
        let id = TokenId(uuid::Builder::from_random_bytes(id).into_uuid());
        Ok(Self { pin, id, addresses, secret })
    }

    /// The text. Whoever has it can join once: keep it out of logs and command lines.
    pub fn to_text(&self) -> Zeroizing<String> {
        // Sized first, so that a growing buffer leaves no copy of the secret behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(TEXT_BYTES_MAX));
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.pin);
        bytes.extend_from_slice(self.id.0.as_bytes());
        bytes.extend_from_slice(&*self.secret);
        // A token is made with, or read from, a few addresses.
        bytes.push(self.addresses.len() as u8);
        for address in &self.addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend_from_slice(&ip.octets());
                }
            }
            bytes.extend_from_slice(&address.port().to_be_bytes());
        }
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES_MAX));
        text.push_str(PREFIX);
        BASE32_NOPAD.encode_append(&bytes, &mut text);
        text.make_ascii_lowercase();
        text
    }

    /// Reads a text; white space around it does not matter.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::Other)?;
        if text.len() > TEXT_BYTES_MAX || body.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(TokenError::Damaged);
        }
        let upper = Zeroizing::new(body.to_ascii_uppercase());
        let bytes = BASE32_NOPAD.decode(upper.as_bytes()).map_err(|_| TokenError::Damaged)?;
        let bytes = Zeroizing::new(bytes);
        let (content, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(TokenError::Damaged)?;
        if checksum(content) != *sum {
            return Err(TokenError::Damaged);
        }
        Self::read(content)
    }

    fn read(content: &[u8]) -> Result<Self, TokenError> {
        let damaged = TokenError::Damaged;
        let (version, rest) = content.split_first().ok_or(damaged)?;
        if *version != VERSION {
            return Err(TokenError::Version(*version));
        }
        let (pin, rest) = rest.split_first_chunk::<32>().ok_or(damaged)?;
        let (id, rest) = rest.split_first_chunk::<16>().ok_or(damaged)?;
        let (secret, rest) = rest.split_first_chunk::<32>().ok_or(damaged)?;
        let (count, mut rest) = rest.split_first().ok_or(damaged)?;
        let mut addresses = Vec::new();
        for _ in 0..*count {
            let (family, after) = rest.split_first().ok_or(damaged)?;
            let (ip, after): (IpAddr, _) = match family {
                4 => after.split_first_chunk::<4>().map(|(ip, r)| ((*ip).into(), r)),
                6 => after.split_first_chunk::<16>().map(|(ip, r)| ((*ip).into(), r)),
                _ => None,
            }
            .ok_or(damaged)?;
            let (port, after) = after.split_first_chunk::<2>().ok_or(damaged)?;
            addresses.push(SocketAddr::new(ip, u16::from_be_bytes(*port)));
            rest = after;
        }
        if !rest.is_empty() {
            return Err(damaged);
        }
        if !(1..=ADDRESSES_MAX).contains(&addresses.len()) {
            return Err(TokenError::NoAddress);
        }
        let id = TokenId(Uuid::from_bytes(*id));
        Ok(Self { pin: *pin, id, addresses, secret: Zeroizing::new(*secret) })
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    let digest = digest::digest(&digest::SHA256, bytes);
    sum.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> JoinToken {
        JoinToken {
            pin: [1; 32],
            id: TokenId(Uuid::from_u128(2)),
            addresses: vec![([192, 0, 2, 7], 900).into(), ([0, 1, 2, 3, 4, 5, 6, 7], 901).into()],
            secret: Zeroizing::new([3; 32]),
        }
    }

    /// As version 1 writes it. Never change it: operators hold such texts.
    const FIXTURE: &str = "smalti1aeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaaaaaaaaaaaaaaaaaaaaaaaaaqdambqgaydambqgaydambqgaydambqgaydambqgaydambqgaydambajqaaaidqhbagaaaaaaiaaiaagaaeaacqabqaa4bylh5ujjxa";

    #[test]
    fn stays_readable() {
        assert_eq!(sample().to_text().as_str(), FIXTURE);
        let read = JoinToken::parse(&format!(" {FIXTURE}\n")).expect("a token");
        let expected = sample();
        assert_eq!(
            (read.pin, read.id, &read.addresses),
            (expected.pin, expected.id, &expected.addresses)
        );
        assert_eq!(*read.secret, *expected.secret);
    }

    #[test]
    fn no_slip_of_a_finger_passes() {
        for length in 0..FIXTURE.len() {
            assert!(JoinToken::parse(&FIXTURE[..length]).is_err(), "cut to {length}");
            for other in ["a", "7", "A", "0"] {
                let wrong = format!("{}{other}{}", &FIXTURE[..length], &FIXTURE[length + 1..]);
                assert!(
                    wrong == FIXTURE || JoinToken::parse(&wrong).is_err(),
                    "{other} at {length}"
                );
            }
        }
        assert_eq!(JoinToken::parse("smalti").err(), Some(TokenError::Other));
        assert_eq!(JoinToken::parse("smalti1").err(), Some(TokenError::Damaged));
        let long = format!("smalti1{}", "a".repeat(4096));
        assert_eq!(JoinToken::parse(&long).err(), Some(TokenError::Damaged));
    }

    #[test]
    fn what_is_whole_and_can_not_be_is_told() {
        let seal = |content: &[u8]| {
            let whole = [content, &checksum(content)].concat();
            format!("{PREFIX}{}", BASE32_NOPAD.encode(&whole).to_ascii_lowercase())
        };
        let mut content = vec![1; 82];
        content[81] = 0;
        assert_eq!(JoinToken::parse(&seal(&content)).err(), Some(TokenError::NoAddress));
        content[0] = 2;
        assert_eq!(JoinToken::parse(&seal(&content)).err(), Some(TokenError::Version(2)));
        content[0] = 1;
        content.extend([4; 8]);
        assert_eq!(JoinToken::parse(&seal(&content)).err(), Some(TokenError::Damaged));
    }

    #[test]
    fn the_secret_is_not_printed() {
        let token = sample();
        assert_eq!(format!("{token:?}"), format!("JoinToken {{ id: {:?}, .. }}", token.id));
    }

    #[test]
    fn two_are_never_alike() {
        let draw = || JoinToken::draw([1; 32], vec![([127, 0, 0, 1], 1).into()]).expect("drawn");
        let (one, two) = (draw(), draw());
        assert_ne!(*one.secret, *two.secret);
        assert_ne!(one.id, two.id);
        assert!(JoinToken::draw([1; 32], vec![]).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(smalti1)?[a-z2-7]{0,300}") {
            if let Ok(token) = JoinToken::parse(&text) {
                let again = token.to_text();
                prop_assert_eq!(again.as_str(), text);
            }
        }
    }
}
