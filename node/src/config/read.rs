//! Reading a config file: what can be wrong with it, and in which line.

use super::{NodeConfig, VERSION};
use smalti_storage::ids::NodeId;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use thiserror::Error;

const FILE_BYTES_MAX: u64 = 1 << 20;
const PEERS_MAX: usize = 255;
const NAME_MAX: usize = 64;
const TIME_MS_MAX: u64 = 3_600_000;
/// Half a minute, of which a third is left to renew in, to ten years.
const CERTIFICATE_SECONDS: RangeInclusive<u64> = 30..=315_360_000;
/// `sun_path` of a Unix socket address is 108 bytes with its final zero.
pub(crate) const SOCKET_PATH_MAX: usize = 107;

/// What is wrong with a config file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It can not be read.
    #[error("read config {}: {problem}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// It is not of the format.
    #[error("config {} line {line}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// One line.
        problem: String,
    },
    /// A value can not be.
    #[error("config {} line {line}: {field}: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// From 1; the line where the field is, or the last one.
        line: usize,
        /// Which field.
        field: &'static str,
        /// One line.
        problem: String,
    },
}

pub(super) fn load(path: &Path) -> Result<NodeConfig, ConfigError> {
    let failed = |problem: String| ConfigError::Read { path: path.to_owned(), problem };
    let mut text = String::new();
    let absolute = std::path::absolute(path).map_err(|error| failed(error.to_string()))?;
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    let config = parse(path, &text)?.resolve(crate::files::parent(&absolute));
    for (field, socket) in [("nbd", &config.sockets.nbd), ("api", &config.sockets.api)] {
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            let line = line_of(&text, field, Some("sockets"));
            let problem =
                format!("{} has {length} bytes, a socket's path may have 107", socket.display());
            return Err(ConfigError::Value { path: path.to_owned(), line, field, problem });
        }
    }
    Ok(config)
}

pub(super) fn parse(path: &Path, text: &str) -> Result<NodeConfig, ConfigError> {
    let syntax = |line: usize, problem: &str| ConfigError::Syntax {
        path: path.to_owned(),
        line,
        problem: one_line(problem),
    };
    let is_json = text.trim_start().starts_with('{');
    let config: NodeConfig = if is_json {
        serde_json::from_str(text).map_err(|error| syntax(error.line(), &error.to_string()))?
    } else {
        toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(text.len(), |span| span.start);
            // A missing field is told at the table it should be in; at the start of the file the
            // end is the more useful place, for that is where a cut file lacks it.
            let missing = error.message().starts_with("missing field");
            let at = if missing && at == 0 { text.len() } else { at };
            syntax(line_at(text, at), error.message())
        })?
    };
    match wrong_value(&config) {
        None => Ok(config),
        Some((table, field, problem)) => Err(ConfigError::Value {
            path: path.to_owned(),
            line: line_of(text, field, table),
            field,
            problem,
        }),
    }
}

type Wrong = (Option<&'static str>, &'static str, String);

fn wrong_value(config: &NodeConfig) -> Option<Wrong> {
    if config.version != VERSION {
        let problem = format!("{} is not a known version; this program knows 1", config.version);
        return Some((None, "version", problem));
    }
    if config.cluster.0.is_nil() {
        return Some((None, "cluster", "the cluster's id is nil".into()));
    }
    if config.node == NodeId(0) {
        return Some((None, "node", "node numbers begin at 1".into()));
    }
    if !is_name(&config.name) {
        return Some((None, "name", name_rule(&config.name)));
    }
    let addresses = &config.addresses;
    for (field, address) in [("api", addresses.api), ("nbd", addresses.nbd)] {
        if !address.ip().is_loopback() {
            let problem = format!("{address} is not a loopback address, and only those are served");
            return Some((Some("addresses"), field, problem));
        }
    }
    if addresses.api == addresses.nbd {
        let problem = format!("{} is also the address of the control API", addresses.nbd);
        return Some((Some("addresses"), "nbd", problem));
    }
    let ports = [("quic", addresses.quic), ("api", addresses.api), ("nbd", addresses.nbd)];
    if let Some((field, _)) = ports.into_iter().find(|(_, address)| address.port() == 0) {
        return Some((Some("addresses"), field, "port 0 can not be known to others".into()));
    }
    let life = config.certificate_seconds;
    if let Some(seconds) = life.filter(|life| !CERTIFICATE_SECONDS.contains(life)) {
        let (least, most) = CERTIFICATE_SECONDS.into_inner();
        let problem = format!("{seconds} is not from {least} to {most}");
        return Some((None, "certificate_seconds", problem));
    }
    wrong_tunable(config).or_else(|| wrong_peer(config))
}

fn wrong_tunable(config: &NodeConfig) -> Option<Wrong> {
    let tunables = &config.tunables;
    let times = [
        ("suspect_timeout_ms", tunables.suspect_timeout_ms),
        ("power_timeout_ms", tunables.power_timeout_ms),
        ("down_out_ms", tunables.down_out_ms),
        ("slow_out_ms", tunables.slow_out_ms),
        ("lease_ms", tunables.lease_ms),
        ("shutdown_timeout_ms", tunables.shutdown_timeout_ms),
    ];
    let (field, value) = times.into_iter().find(|(_, ms)| !(1..=TIME_MS_MAX).contains(ms))?;
    Some((Some("tunables"), field, format!("{value} is not from 1 to {TIME_MS_MAX}")))
}

fn wrong_peer(config: &NodeConfig) -> Option<Wrong> {
    let wrong = |field, problem| Some((Some("peers"), field, problem));
    if config.peers.len() > PEERS_MAX {
        return wrong("id", format!("{} peers are more than {PEERS_MAX}", config.peers.len()));
    }
    let mut ids = BTreeSet::from([config.node]);
    let mut quic: BTreeSet<SocketAddr> = BTreeSet::from([config.addresses.quic]);
    for peer in &config.peers {
        if peer.id == NodeId(0) {
            return wrong("id", "node numbers begin at 1".into());
        }
        if !ids.insert(peer.id) {
            return wrong("id", format!("node {} is there twice", peer.id.0));
        }
        if !is_name(&peer.name) {
            return wrong("name", name_rule(&peer.name));
        }
        if !quic.insert(peer.quic) {
            return wrong("quic", format!("{} is the address of another node too", peer.quic));
        }
    }
    None
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

fn name_rule(name: &str) -> String {
    format!("{name:?} is not a name of 1 to {NAME_MAX} of a-z A-Z 0-9 . _ -")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    let newlines = before.iter().filter(|byte| **byte == b'\n').count();
    // A final newline ends the last line and begins none.
    if offset >= text.len() && text.ends_with('\n') { newlines.max(1) } else { newlines + 1 }
}

/// The line where a field stands. A second look at the text, because a value that parses well
/// carries no place; when it is not found (a default, or JSON on one line) the last line is told.
fn line_of(text: &str, field: &str, table: Option<&str>) -> usize {
    let is_json = text.trim_start().starts_with('{');
    let mut here = table.is_none();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let words = line.trim_matches(['[', ']', '"', '{', ' ', ':']);
        if table.is_some_and(|table| words == table || line.starts_with(&format!("\"{table}\""))) {
            here = true;
        } else if !is_json && line.starts_with('[') {
            here = false;
        }
        let key = line.trim_start_matches(['"', '{', ' ']);
        let rest = key.strip_prefix(field).map(|rest| rest.trim_start_matches(['"', ' ']));
        if here && rest.is_some_and(|rest| rest.starts_with(['=', ':'])) {
            return index + 1;
        }
    }
    text.lines().count().max(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::config::*;
    use smalti_storage::ids::ClusterId;
    use uuid::Uuid;

    fn sample() -> NodeConfig {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let peer = |id: u64| PeerConfig {
            id: NodeId(id),
            name: format!("n{id}"),
            quic: address(7000 + id as u16),
        };
        NodeConfig {
            version: VERSION,
            cluster: ClusterId(Uuid::from_u128(7)),
            node: NodeId(1),
            name: "n1".into(),
            data_dir: "data".into(),
            local_cluster: Some("..".into()),
            founding: Some("founding.json".into()),
            authority: Some("../ca".into()),
            certificate_seconds: None,
            addresses: Addresses { quic: address(7001), api: address(7101), nbd: address(7201) },
            sockets: Sockets { nbd: "nbd.sock".into(), api: "api.sock".into() },
            tunables: Tunables::default(),
            peers: vec![peer(2), peer(3)],
            custody: CustodyConfig {
                shares_dir: "shares".into(),
                provider: ProviderConfig::KeyFile("custody.key".into()),
            },
            credentials: CredentialsConfig { dir: "tls".into() },
        }
    }

    fn problem(text: &str) -> String {
        parse(Path::new("node.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn both_formats_round_trip() {
        let config = sample();
        let path = Path::new("node.toml");
        let toml = config.to_toml().unwrap();
        assert_eq!(parse(path, &toml).unwrap(), config, "{toml}");
        let json = serde_json::to_string_pretty(&config).unwrap();
        assert_eq!(parse(path, &json).unwrap(), config);
    }

    fn providers() -> [(ProviderConfig, &'static str); 3] {
        [
            (ProviderConfig::KeyFile("custody.key".into()), "key_file = \"custody.key\""),
            (
                ProviderConfig::Passphrase("custody.argon2".into()),
                "passphrase_file = \"custody.argon2\"",
            ),
            (ProviderConfig::Credential("smalti".into()), "credential = \"smalti\""),
        ]
    }

    #[test]
    fn a_file_names_one_key_provider() {
        let mut config = sample();
        let path = Path::new("node.toml");
        let with_key_file = config.to_toml().unwrap();
        let (_, key_file) = &providers()[0];
        for (provider, line) in providers() {
            config.custody.provider = provider;
            let text = config.to_toml().unwrap();
            assert!(text.contains(line), "{text}");
            assert_eq!(text, with_key_file.replacen(key_file, line, 1));
            assert_eq!(parse(path, &text).unwrap(), config);
            let json = serde_json::to_string_pretty(&config).unwrap();
            assert_eq!(parse(path, &json).unwrap(), config);
        }
        let table = with_key_file.lines().position(|line| line == "[custody]").unwrap() + 1;
        for (line, expected) in [
            ("", "missing field `key_file`, `passphrase_file` or `credential`"),
            ("key_file = \"a\"\ncredential = \"b\"", "only one of `key_file`"),
            ("passphrase_file = \"a\"\nkey_file = \"b\"", "only one of `key_file`"),
            ("key_file = \"a\"\npin = 1", "unknown field `pin`"),
            ("credential = \"a/b\"", "\"a/b\" is no name of a file"),
            ("credential = \"..\"", "\"..\" is no name of a file"),
            ("credential = \"\"", "\"\" is no name of a file"),
        ] {
            let message = problem(&with_key_file.replacen(key_file, line, 1));
            assert!(message.contains(expected), "{line}: {message}");
            assert!(!message.contains('\n'), "{message}");
            let at = message.strip_prefix("config node.toml line ").unwrap();
            let at: usize = at.split_once(':').unwrap().0.parse().unwrap();
            assert!((table..table + 4).contains(&at), "{line}: {message}");
        }
    }

    #[test]
    fn a_file_cut_short_anywhere_is_refused_in_one_line() {
        for (provider, _) in providers() {
            let mut config = sample();
            config.custody.provider = provider;
            is_refused_when_cut(&config);
        }
    }

    fn is_refused_when_cut(config: &NodeConfig) {
        for text in [config.to_toml().unwrap(), serde_json::to_string_pretty(&config).unwrap()] {
            let whole = text.trim_end().len();
            for length in 0..whole {
                let message = problem(&text[..length]);
                assert!(message.starts_with("config node.toml line "), "{length}: {message}");
                assert!(!message.contains('\n'), "{length}: {message}");
            }
            assert_eq!(parse(Path::new("f"), &text[..whole]).unwrap(), *config);
        }
    }

    #[test]
    fn wrong_fields_are_told_with_their_line() {
        let text = sample().to_toml().unwrap();
        let line = |word: &str| text.lines().position(|l| l.contains(word)).unwrap() + 1;
        let cases = [
            ("version = 1", "version = 2", "version: 2 is not a known version"),
            ("node = 1", "node = 0", "node: node numbers begin at 1"),
            ("node = 1", "node = -1", "invalid value: integer `-1`"),
            ("name = \"n1\"", "name = \"a b\"", "name: \"a b\" is not a name"),
            ("name = \"n1\"", "nmae = \"n1\"", "unknown field `nmae`"),
            ("127.0.0.1:7101", "10.0.0.1:7101", "api: 10.0.0.1:7101 is not a loopback"),
            ("127.0.0.1:7101", "127.0.0.1", "invalid socket address"),
            ("127.0.0.1:7101", "127.0.0.1:0", "api: port 0"),
            ("127.0.0.1:7201", "127.0.0.1:7101", "nbd: 127.0.0.1:7101 is also"),
            (
                "node = 1",
                "node = 1\ncertificate_seconds = 5",
                "certificate_seconds: 5 is not from 30",
            ),
            ("lease_ms = 1500", "lease_ms = 0", "lease_ms: 0 is not from 1"),
            ("lease_ms = 1500", "lease_ms = 1.5", "invalid type: floating point"),
            ("lease_ms = 1500", "lease_ms = 1500 s", "expected"),
            ("id = 2", "id = 2\nport = 5", "unknown field `port`"),
        ];
        for (from, to, expected) in cases {
            assert!(text.contains(from), "{from} in {text}");
            let message = problem(&text.replacen(from, to, 1));
            let at = line(from) + usize::from(to.contains('\n'));
            assert!(message.contains(expected), "{to}: {message}");
            assert!(message.contains(&format!("line {at}: ")), "{to}: {message}, want line {at}");
        }
    }

    #[test]
    fn peers_must_be_distinct() {
        let mut config = sample();
        config.peers[1].id = NodeId(2);
        assert!(problem(&config.to_toml().unwrap()).contains("id: node 2 is there twice"));
        config.peers[1].id = NodeId(1);
        assert!(problem(&config.to_toml().unwrap()).contains("id: node 1 is there twice"));
        config = sample();
        config.peers[0].quic = config.addresses.quic;
        assert!(problem(&config.to_toml().unwrap()).contains("quic: 127.0.0.1:7001 is the"));
    }

    #[test]
    fn defaults_fill_what_is_left_out() {
        let mut config = sample();
        let text = config.to_toml().unwrap();
        let start = text.find("[tunables]").unwrap();
        let end = start + text[start + 1..].find('[').unwrap() + 1;
        let without = format!("{}{}", &text[..start], &text[end..]);
        config.tunables = Tunables::default();
        assert_eq!(parse(Path::new("f"), &without).unwrap(), config);
    }

    #[test]
    fn paths_are_taken_from_the_files_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(&path, sample().to_toml().unwrap()).unwrap();
        let config = load(&path).unwrap();
        assert_eq!(config.data_dir, dir.path().join("data"));
        assert_eq!(config.sockets.api, dir.path().join("api.sock"));
        assert_eq!(config.founding, Some(dir.path().join("founding.json")));
        assert_eq!(config.authority, Some(dir.path().join("../ca")));
        assert_eq!(config.custody.shares_dir, dir.path().join("shares"));
        assert_eq!(config.custody.provider.file(), Some(&*dir.path().join("custody.key")));
        let missing = load(&dir.path().join("none.toml")).unwrap_err().to_string();
        assert!(missing.starts_with("read config "), "{missing}");
    }

    #[test]
    fn a_socket_path_that_no_system_takes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        let mut config = sample();
        config.sockets.nbd = "x".repeat(120).into();
        std::fs::write(&path, config.to_toml().unwrap()).unwrap();
        let message = load(&path).unwrap_err().to_string();
        assert!(message.contains("a socket's path may have 107"), "{message}");
    }
}
