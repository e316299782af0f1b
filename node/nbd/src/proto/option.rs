//! The negotiation: option headers and payloads in, greetings and option replies out.

use bytes::{BufMut, BytesMut};

use super::wire;

/// Names a client may ask metadata contexts by in one option.
const QUERIES_MAX: usize = 256;

/// What precedes the payload of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub option: u32,
    /// Bytes of payload that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Bytes of the header.
    pub const BYTES: usize = 16;

    /// Reads a header; `None` if it does not start with the magic number.
    pub fn parse(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u64()? == wire::IHAVEOPT).then_some(())?;
        Some(Self { option: fields.u32()?, length: fields.u32()? })
    }
}

/// An option with its payload understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientOption {
    /// Open this export, or be gone.
    ExportName(String),
    /// End the negotiation.
    Abort,
    /// List the exports.
    List,
    /// Switch to TLS.
    StartTls,
    /// Describe an export.
    Info(InfoRequest),
    /// Open an export.
    Go(InfoRequest),
    /// Switch structured replies on.
    StructuredReply,
    /// List metadata contexts.
    ListMetaContext(MetaQuery),
    /// Select metadata contexts.
    SetMetaContext(MetaQuery),
    /// Any other number.
    Unknown(u32),
}

/// Payload of `OPT_INFO` and `OPT_GO`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InfoRequest {
    /// The export, or an empty name for the default one.
    pub name: String,
    /// The client asks for the canonical name.
    pub wants_name: bool,
    /// The client asks for the description.
    pub wants_description: bool,
}

/// Payload of `OPT_LIST_META_CONTEXT` and `OPT_SET_META_CONTEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaQuery {
    /// The export, or an empty name for the default one.
    pub export: String,
    /// The contexts asked for.
    pub queries: Vec<String>,
}

impl MetaQuery {
    /// Whether `base:allocation` is asked for by its name.
    pub fn selects_allocation(&self) -> bool {
        self.queries.iter().any(|query| query == wire::BASE_ALLOCATION)
    }

    /// Whether a listing shows `base:allocation`: everything, its namespace, or itself.
    pub fn lists_allocation(&self) -> bool {
        self.queries.is_empty()
            || self.queries.iter().any(|query| query == "base:" || query == wire::BASE_ALLOCATION)
    }
}

/// An option that cannot be understood, with the reply that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionFault {
    /// Answered with `REP_ERR_INVALID`.
    Invalid(&'static str),
    /// Answered with `REP_ERR_TOO_BIG`.
    TooBig(&'static str),
}

impl OptionFault {
    /// The kind of reply.
    pub fn reply(self) -> u32 {
        match self {
            Self::Invalid(_) => wire::REP_ERR_INVALID,
            Self::TooBig(_) => wire::REP_ERR_TOO_BIG,
        }
    }

    /// The text for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Invalid(text) | Self::TooBig(text) => text,
        }
    }
}

impl ClientOption {
    /// Reads the payload of option number `option`.
    ///
    /// # Errors
    /// Says which reply the client gets when lengths or strings are wrong.
    pub fn parse(option: u32, payload: &[u8]) -> Result<Self, OptionFault> {
        let empty = |value: Self| match payload {
            [] => Ok(value),
            _ => Err(OptionFault::Invalid("this option takes no payload")),
        };
        match option {
            wire::OPT_EXPORT_NAME => string(payload).map(Self::ExportName),
            wire::OPT_ABORT => Ok(Self::Abort),
            wire::OPT_LIST => empty(Self::List),
            wire::OPT_STARTTLS => empty(Self::StartTls),
            wire::OPT_STRUCTURED_REPLY => empty(Self::StructuredReply),
            wire::OPT_INFO => info_request(payload).map(Self::Info),
            wire::OPT_GO => info_request(payload).map(Self::Go),
            wire::OPT_LIST_META_CONTEXT => meta_query(payload).map(Self::ListMetaContext),
            wire::OPT_SET_META_CONTEXT => meta_query(payload).map(Self::SetMetaContext),
            other => Ok(Self::Unknown(other)),
        }
    }
}

const SHORT: OptionFault = OptionFault::Invalid("the payload is shorter than it says");
const LONG: OptionFault = OptionFault::Invalid("the payload is longer than it says");

fn info_request(payload: &[u8]) -> Result<InfoRequest, OptionFault> {
    let mut fields = Fields(payload);
    let mut request = InfoRequest { name: fields.string()?, ..InfoRequest::default() };
    let count = fields.u16().ok_or(SHORT)?;
    for _ in 0..count {
        match fields.u16().ok_or(SHORT)? {
            wire::INFO_NAME => request.wants_name = true,
            wire::INFO_DESCRIPTION => request.wants_description = true,
            // The others are sent anyway, or unknown and to be ignored.
            _ => {}
        }
    }
    fields.end()?;
    Ok(request)
}

fn meta_query(payload: &[u8]) -> Result<MetaQuery, OptionFault> {
    let mut fields = Fields(payload);
    let export = fields.string()?;
    let count = fields.u32().ok_or(SHORT)? as usize;
    if count > QUERIES_MAX {
        return Err(OptionFault::TooBig("too many metadata contexts in one option"));
    }
    let queries = (0..count).map(|_| fields.string()).collect::<Result<_, _>>()?;
    fields.end()?;
    Ok(MetaQuery { export, queries })
}

fn string(bytes: &[u8]) -> Result<String, OptionFault> {
    if bytes.len() > wire::STRING_BYTES_MAX {
        return Err(OptionFault::TooBig("a string is longer than 4096 bytes"));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(OptionFault::Invalid("a string is not text in UTF-8")),
    }
}

/// Big-endian fields taken one by one from the front.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn string(&mut self) -> Result<String, OptionFault> {
        let length = self.u32().ok_or(SHORT)? as usize;
        string(self.bytes(length).ok_or(SHORT)?)
    }

    fn end(&self) -> Result<(), OptionFault> {
        if self.0.is_empty() { Ok(()) } else { Err(LONG) }
    }
}

/// What the server sends first.
pub fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    let mut out = &mut bytes[..];
    out.put_u64(wire::NBD_MAGIC);
    out.put_u64(wire::IHAVEOPT);
    out.put_u16(wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
    bytes
}

/// Appends one reply to an option. `payload` comes from this server and is short.
pub fn option_reply(out: &mut BytesMut, option: u32, kind: u32, payload: &[u8]) {
    out.reserve(20 + payload.len());
    out.put_u64(wire::OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(u32::try_from(payload.len()).expect("replies are built here and short"));
    out.put_slice(payload);
}

/// Payload of `INFO_EXPORT`.
pub fn export_info(size: u64, flags: u16) -> [u8; 12] {
    let mut bytes = [0; 12];
    let mut out = &mut bytes[..];
    out.put_u16(wire::INFO_EXPORT);
    out.put_u64(size);
    out.put_u16(flags);
    bytes
}

/// Payload of `INFO_BLOCK_SIZE`: any offset and length is fine, so the minimum is 1.
pub fn block_size_info(preferred: u32, maximum: u32) -> [u8; 14] {
    let mut bytes = [0; 14];
    let mut out = &mut bytes[..];
    out.put_u16(wire::INFO_BLOCK_SIZE);
    out.put_u32(1);
    out.put_u32(preferred);
    out.put_u32(maximum);
    bytes
}

/// Payload of `INFO_NAME` and `INFO_DESCRIPTION`, cut to the longest string allowed.
pub fn text_info(kind: u16, text: &str) -> Vec<u8> {
    let text = &text[..text.floor_char_boundary(wire::STRING_BYTES_MAX)];
    let mut bytes = Vec::with_capacity(2 + text.len());
    bytes.put_u16(kind);
    bytes.put_slice(text.as_bytes());
    bytes
}

/// The whole answer to `OPT_EXPORT_NAME`.
pub fn export_name_reply(size: u64, flags: u16, no_zeroes: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(134);
    bytes.put_u64(size);
    bytes.put_u16(flags);
    if !no_zeroes {
        bytes.put_bytes(0, 124);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sized(text: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(text.len()).expect("short").to_be_bytes().to_vec();
        bytes.extend_from_slice(text);
        bytes
    }

    #[test]
    fn go_names_an_export_and_what_to_tell() {
        let mut payload = sized(b"vol");
        payload.extend_from_slice(&[0, 3, 0, 1, 0, 3, 0xff, 0xff]);
        let expected = InfoRequest { name: "vol".into(), wants_name: true, ..Default::default() };
        assert_eq!(ClientOption::parse(wire::OPT_GO, &payload), Ok(ClientOption::Go(expected)));
    }

    #[test]
    fn every_wrong_length_is_refused() {
        let mut go = sized(b"vol");
        go.extend_from_slice(&[0, 1, 0, 3]);
        for end in 0..go.len() {
            assert_eq!(ClientOption::parse(wire::OPT_GO, &go[..end]), Err(SHORT), "{end}");
        }
        go.push(0);
        assert_eq!(ClientOption::parse(wire::OPT_INFO, &go), Err(LONG));

        let mut meta = sized(b"vol");
        meta.extend_from_slice(&[0, 0, 0, 1]);
        meta.extend_from_slice(&sized(b"base:allocation"));
        let parse = |bytes: &[u8]| ClientOption::parse(wire::OPT_SET_META_CONTEXT, bytes);
        assert!(parse(&meta).is_ok());
        for end in 0..meta.len() {
            assert_eq!(parse(&meta[..end]), Err(SHORT), "{end}");
        }
        meta.push(0);
        assert_eq!(parse(&meta), Err(LONG));

        for option in [wire::OPT_LIST, wire::OPT_STARTTLS, wire::OPT_STRUCTURED_REPLY] {
            assert!(matches!(ClientOption::parse(option, &[0]), Err(OptionFault::Invalid(_))));
        }
    }

    #[test]
    fn strings_must_be_text_and_not_too_long() {
        let parse = |bytes: &[u8]| ClientOption::parse(wire::OPT_EXPORT_NAME, bytes);
        assert_eq!(parse(b""), Ok(ClientOption::ExportName(String::new())));
        assert!(matches!(parse(b"a\0b"), Err(OptionFault::Invalid(_))));
        assert!(matches!(parse(&[0xff, 0xfe]), Err(OptionFault::Invalid(_))));
        assert!(parse(&[b'a'; 4096]).is_ok());
        assert!(matches!(parse(&[b'a'; 4097]), Err(OptionFault::TooBig(_))));
    }

    #[test]
    fn meta_queries_match_by_the_rules_of_their_option() {
        let query = |names: &[&str]| MetaQuery {
            export: String::new(),
            queries: names.iter().map(|&name| name.to_owned()).collect(),
        };
        assert!(query(&[]).lists_allocation() && !query(&[]).selects_allocation());
        assert!(query(&["base:"]).lists_allocation() && !query(&["base:"]).selects_allocation());
        let named = query(&["qemu:dirty-bitmap:x", wire::BASE_ALLOCATION]);
        assert!(named.lists_allocation() && named.selects_allocation());
        assert!(!query(&["qemu:"]).lists_allocation());
    }

    #[test]
    fn counts_that_lie_allocate_nothing() {
        let mut payload = sized(b"");
        payload.extend_from_slice(&u32::MAX.to_be_bytes());
        let parsed = ClientOption::parse(wire::OPT_SET_META_CONTEXT, &payload);
        assert!(matches!(parsed, Err(OptionFault::TooBig(_))));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let info = text_info(wire::INFO_DESCRIPTION, &"é".repeat(3000));
        assert_eq!(info.len(), 2 + 4096);
        assert!(std::str::from_utf8(&info[2..]).is_ok());
        let odd = text_info(wire::INFO_DESCRIPTION, &format!("a{}", "é".repeat(3000)));
        assert_eq!(odd.len(), 2 + 4095);
    }

    proptest! {
        #[test]
        fn random_payloads_never_panic(
            option in 0u32..16, payload in proptest::collection::vec(any::<u8>(), 0..512),
        ) {
            let held = match ClientOption::parse(option, &payload) {
                Ok(ClientOption::ExportName(name)) => name.len(),
                Ok(ClientOption::Info(request) | ClientOption::Go(request)) => request.name.len(),
                Ok(
                    ClientOption::SetMetaContext(query) | ClientOption::ListMetaContext(query),
                ) => query.export.len() + query.queries.iter().map(String::len).sum::<usize>(),
                _ => 0,
            };
            prop_assert!(held <= payload.len());
        }

        #[test]
        fn nearly_right_payloads_never_panic(
            option in prop::sample::select(vec![6u32, 7, 9, 10]),
            name in "[a-z]{0,8}",
            at in 0usize..64, byte in any::<u8>(),
            queries in proptest::collection::vec("[a-z:]{0,20}", 0..5),
        ) {
            let mut payload = sized(name.as_bytes());
            if option < 9 {
                payload.extend_from_slice(&[0, 2, 0, 1, 0, 2]);
            } else {
                payload.extend_from_slice(&(queries.len() as u32).to_be_bytes());
                queries.iter().for_each(|query| payload.extend_from_slice(&sized(query.as_bytes())));
            }
            prop_assert!(ClientOption::parse(option, &payload).is_ok());
            let at = at % payload.len();
            payload[at] = byte;
            let _either_way = ClientOption::parse(option, &payload);
        }

        #[test]
        fn headers_without_magic_are_refused(bytes in any::<[u8; 16]>()) {
            let parsed = OptionHeader::parse(&bytes);
            prop_assert_eq!(parsed.is_some(), bytes.starts_with(b"IHAVEOPT"));
        }
    }
}
