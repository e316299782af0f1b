//! What joiner and host say to each other: one message each way, a version byte and postcard.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use smalti_storage::ids::{ClusterId, NodeId, TokenId};
use std::net::SocketAddr;

const VERSION: u8 = 1;

/// A joiner's message has a name, three addresses, a public key and two signatures.
pub(super) const ASK_BYTES_MAX: usize = 4 << 10;

/// An answer has certificates and the addresses of at most 255 nodes.
pub(super) const ANSWER_BYTES_MAX: usize = 128 << 10;

/// Letters of a name.
const NAME_MAX: usize = 64;

/// Letters of a refusal that a joiner shows.
const REASON_MAX: usize = 300;

/// Where a joiner will listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAddresses {
    /// For other nodes.
    pub quic: SocketAddr,
    /// Its control API.
    pub api: SocketAddr,
    /// Its NBD service.
    pub nbd: SocketAddr,
}

/// What a joiner wants to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinWish {
    /// Its name; empty for the one it is given.
    pub name: String,
    /// Its addresses.
    pub addresses: JoinAddresses,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ask {
    pub(super) token: TokenId,
    pub(super) wish: JoinWish,
    /// P-256, an uncompressed point.
    pub(super) public_key: Vec<u8>,
}

/// An ask with what proves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Signed {
    pub(super) ask: Vec<u8>,
    pub(super) token_proof: Vec<u8>,
    pub(super) key_proof: Vec<u8>,
}

/// Another node, for a joiner to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinPeer {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where it listens for other nodes.
    pub quic: SocketAddr,
}

/// What a joiner gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinGrant {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its certificate, in PEM.
    pub certificate_pem: String,
    /// The authority's, in PEM.
    pub ca_pem: String,
    /// The other nodes.
    pub peers: Vec<JoinPeer>,
}

/// What a joiner is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    Granted(JoinGrant),
    Refused(String),
    /// A joiner of before knows no such answer, and says that it can not be used.
    Undecided(String),
}

pub(super) fn encode(message: &impl Serialize) -> Option<Vec<u8>> {
    postcard::to_extend(message, vec![VERSION]).ok()
}

/// `None` for bytes that are no such message. They are a few KiB, and so is what they can become.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (&VERSION, body) = bytes.split_first()? else { return None };
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Some(message),
        _ => None,
    }
}

/// Whether a wished name is one, or none, in length and letters: it may be shown and logged. What else
/// names have to be is for who decides.
pub(super) fn is_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    name.len() <= NAME_MAX && name.bytes().all(legal)
}

/// A text from outside as one line of a bounded length.
pub(super) fn one_line(text: &str) -> String {
    text.chars().take(REASON_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The wire of version 1: joiner and host may run different programs.
    #[test]
    fn messages_keep_their_bytes() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let wish = JoinWish {
            name: "x".into(),
            addresses: JoinAddresses { quic: at(1), api: at(2), nbd: at(3) },
        };
        let token = TokenId(Uuid::from_u128(5));
        let ask = Ask { token, wish, public_key: vec![4, 6] };
        let bytes = encode(&ask).expect("encodes");
        assert_eq!(
            hex(&bytes),
            "0110000000000000000000000000000000050178007f00000101007f00000102007f00000103020406"
        );
        assert_eq!(decode::<Ask>(&bytes), Some(ask));
        let signed = Signed { ask: bytes, token_proof: vec![7], key_proof: vec![8, 9] };
        let bytes = encode(&signed).expect("encodes");
        assert_eq!(decode::<Signed>(&bytes), Some(signed));
        let grant = JoinGrant {
            cluster: ClusterId(Uuid::from_u128(6)),
            node: NodeId(4),
            name: "x".into(),
            certificate_pem: "c".into(),
            ca_pem: "a".into(),
            peers: vec![JoinPeer { id: NodeId(1), name: "n1".into(), quic: at(1) }],
        };
        let answers =
            [Answer::Granted(grant), Answer::Refused("no".into()), Answer::Undecided("no".into())];
        for (answer, expected) in answers.iter().zip([
            "01001000000000000000000000000000000006040178016301610101026e31007f00000101",
            "0101026e6f",
            "0102026e6f",
        ]) {
            let bytes = encode(answer).expect("encodes");
            assert_eq!(hex(&bytes), expected);
            assert_eq!(decode::<Answer>(&bytes).as_ref(), Some(answer));
            let longer = [bytes.as_slice(), &[0]].concat();
            assert_eq!(decode::<Answer>(&longer), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let versioned = [&[VERSION], bytes.as_slice()].concat();
            let _ = (decode::<Ask>(&versioned), decode::<Signed>(&versioned));
            let _ = decode::<Answer>(&versioned);
        }
    }

    #[test]
    fn what_a_host_says_is_one_line() {
        assert_eq!(one_line("a\nb\u{1b}c"), "a b c");
        assert_eq!(one_line(&"x".repeat(999)).len(), REASON_MAX);
    }
}
