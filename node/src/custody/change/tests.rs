#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::config::{Addresses, CredentialsConfig, Sockets, Tunables, VERSION};
use smalti_storage::ids::{ClusterId, KeyEpochNo, NodeId, VolumeId};
use smalti_storage::keys::{Dealt, Secret, SecretName, ShareName, get_key_parts, open_at_rest};
use std::collections::BTreeSet;
use tempfile::TempDir;
use uuid::Uuid;

const NODE: NodeId = NodeId(2);
const SHARE_COUNT: u32 = 3;
const WORDS: &str = "correct horse battery staple";

/// The folder of a node that does not run, with shares under a key file.
struct Folder {
    dir: TempDir,
    /// What is in every share.
    parts: Vec<(ShareName, Vec<u8>)>,
}

fn cluster() -> ClusterId {
    ClusterId(Uuid::from_u128(7))
}

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(text.to_owned()).unwrap()
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["data", SHARES] {
            files::make_private_dir(&dir.path().join(name)).unwrap();
        }
        create_key(&dir.path().join("custody.key")).unwrap();
        let at = |port| ([127, 0, 0, 1], port).into();
        let config = NodeConfig {
            version: VERSION,
            cluster: cluster(),
            node: NODE,
            name: "n2".into(),
            data_dir: "data".into(),
            local_cluster: None,
            founding: None,
            authority: None,
            certificate_seconds: None,
            addresses: Addresses { quic: at(1), api: at(2), nbd: at(3) },
            sockets: Sockets { nbd: "nbd.sock".into(), api: "api.sock".into() },
            tunables: Tunables::default(),
            peers: Vec::new(),
            custody: CustodyConfig {
                shares_dir: SHARES.into(),
                provider: ProviderConfig::KeyFile("custody.key".into()),
            },
            credentials: CredentialsConfig { dir: "tls".into() },
        };
        let text = config.to_toml().unwrap().replace("[custody]", "# ours\n[custody]\n# inner");
        fs::write(dir.path().join("node.toml"), text).unwrap();
        let mut folder = Self { dir, parts: Vec::new() };
        let vault = folder.vault(open(&folder.config().custody).unwrap());
        let mut rng = rand::rng();
        for no in 0..SHARE_COUNT {
            let dealing = get_key_parts(&Secret::random(&mut rng), 2, 3, &mut rng).unwrap();
            let secret = match no {
                0 => SecretName::Master,
                no => {
                    let volume = VolumeId(Uuid::from_u128(no.into()));
                    SecretName::Wrapping { volume, key_epoch: KeyEpochNo(no) }
                }
            };
            let dealing_of = Dealt::of(&dealing.commitments.to_bytes());
            let share = ShareName { secret, share_epoch: 1, dealing: dealing_of };
            vault.keep(&share, &dealing.parts[1]).unwrap();
            folder.parts.push((share, dealing.parts[1].to_bytes().to_vec()));
        }
        fs::write(folder.path(SHARES).join("audit.log"), "an entry\n").unwrap();
        // A share that was begun when the node was killed.
        fs::write(folder.path(SHARES).join("x.new"), "half").unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config_path(&self) -> PathBuf {
        self.path("node.toml")
    }

    fn config(&self) -> NodeConfig {
        NodeConfig::load(&self.config_path()).unwrap()
    }

    fn vault(&self, provider: Provider) -> Vault {
        Vault::new(self.config().custody.shares_dir, cluster(), NODE, provider.key)
    }

    fn change(&self, new: &NewProvider, old: Option<&str>) -> anyhow::Result<Change> {
        Change::make(&self.config_path(), new, || Ok(passphrase(old.context("not asked for")?)))
    }

    /// What is beside the folders that every node has.
    fn names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "data" && name != "node.toml").collect()
    }

    /// As a node that starts.
    fn start(&self) -> Provider {
        settle(&self.config().custody).unwrap();
        open(&self.config().custody).unwrap()
    }

    /// Starts, and opens every share.
    fn check(&self, words: &str) {
        let provider = self.start();
        if let Some(lock) = &provider.lock {
            lock.unlock(&passphrase(words)).unwrap();
        }
        let vault = self.vault(provider);
        assert_eq!(vault.names().unwrap().len(), self.parts.len());
        for (share, bytes) in &self.parts {
            assert_eq!(&**vault.find(share).unwrap().to_bytes(), &bytes[..]);
        }
        let log = fs::read_to_string(vault.folder().join("audit.log")).unwrap();
        assert_eq!(log, "an entry\n");
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn each_provider_takes_the_place_of_each_and_the_old_key_is_gone() {
    let folder = Folder::new();
    let (key_file, words) = (NewProvider::KeyFile, NewProvider::Passphrase(passphrase(WORDS)));
    let first = fs::read(folder.path("custody.key")).unwrap();
    let sealed: Vec<Vec<u8>> = fs::read_dir(folder.path(SHARES))
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();

    let made = folder.change(&words, None).unwrap();
    assert_eq!((made.shares, made.left), (3, None));
    assert_eq!(folder.names(), set(&["custody.argon2", "shares-2"]));
    folder.check(WORDS);
    let text = fs::read_to_string(folder.config_path()).unwrap();
    let lines = "# ours\n[custody]\nshares_dir = \"shares-2\"\npassphrase_file = \"custody.argon2\"\n# inner";
    assert!(text.contains(lines), "{text}");
    let locked = folder.vault(folder.start()).find(&folder.parts[0].0).unwrap_err();
    assert_eq!(locked.to_string(), "locked: `smalti key unlock` there");

    // The key of before opens nothing of what is there now; it did open what was there.
    let first: [u8; 32] = first.try_into().unwrap();
    let (share, _) = &folder.parts[0];
    let purpose = format!("share|{}|2|master-1-{}.share", cluster(), share.dealing);
    let opens = |bytes: &Vec<u8>| open_at_rest(&first, purpose.as_bytes(), bytes).is_ok();
    assert_eq!(sealed.iter().filter(|bytes| opens(bytes)).count(), 1);
    let now = fs::read_dir(folder.path("shares-2")).unwrap();
    assert!(!now.map(|entry| fs::read(entry.unwrap().path()).unwrap()).any(|bytes| opens(&bytes)));

    let other = NewProvider::Passphrase(passphrase("another passphrase"));
    folder.change(&other, Some(WORDS)).unwrap();
    assert_eq!(folder.names(), set(&["custody-2.argon2", "shares"]));
    folder.check("another passphrase");
    folder.change(&key_file, Some("another passphrase")).unwrap();
    assert_eq!(folder.names(), set(&["custody.key", "shares-2"]));
    folder.check("");
    folder.change(&key_file, None).unwrap();
    assert_eq!(folder.names(), set(&["custody-2.key", "shares"]));
    folder.check("");
}

#[test]
fn whenever_it_is_cut_off_one_or_the_other_opens_all_shares_and_the_rest_is_gone() {
    let mut switched = BTreeSet::new();
    for crash in 1.. {
        let folder = Folder::new();
        let mut step = 0;
        let node = Stopped::lock(&folder.config_path()).unwrap();
        let made = node.change(&NewProvider::KeyFile, || bail!("not asked for"), &mut || {
            step += 1;
            ensure!(step != crash, "cut off");
            Ok(())
        });
        drop(node);
        if made.is_ok() {
            assert!(crash > 5 + SHARE_COUNT, "{crash}");
            break;
        }
        assert!(folder.path(NOTE).exists(), "{crash}");
        folder.check("");
        let (old, new) = (set(&["custody.key", SHARES]), set(&["custody-2.key", "shares-2"]));
        let names = folder.names();
        assert!(names == old || names == new, "{crash}: {names:?}");
        switched.insert(names == new);
        // It can be made again.
        folder.change(&NewProvider::KeyFile, None).unwrap();
        folder.check("");
        assert_eq!(folder.names().len(), 2);
    }
    assert_eq!(switched, [false, true].into());
}

#[test]
fn what_can_not_be_changes_nothing() {
    let folder = Folder::new();
    let words = NewProvider::Passphrase(passphrase(WORDS));
    let credential = NewProvider::Credential("smalti".into());
    let unchanged = |why: &str, error: anyhow::Error| {
        let error = format!("{error:#}");
        assert!(error.contains(why), "{error}");
        folder.check("");
        assert_eq!(folder.names(), set(&["custody.key", SHARES]));
    };
    unchanged("CREDENTIALS_DIRECTORY is not set", folder.change(&credential, None).unwrap_err());

    // The node runs.
    let running = PidFile::acquire(&folder.config().data_dir).unwrap();
    unchanged("stop the node first", folder.change(&words, None).unwrap_err());
    running.leave().unwrap();
    assert!(PidFile::was_left(&folder.config().data_dir));

    let (share, _) = &folder.parts[0];
    let file = folder.path(SHARES).join(format!("master-1-{}.share", share.dealing));
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[1..]).unwrap();
    let error = folder.change(&words, None).unwrap_err();
    fs::write(&file, bytes).unwrap();
    unchanged("does not open: start the node once", error);
    assert!(PidFile::was_left(&folder.config().data_dir), "it ended in order yet");

    folder.change(&words, None).unwrap();
    let error = folder.change(&NewProvider::KeyFile, Some("not the passphrase")).unwrap_err();
    assert!(format!("{error:#}").contains("the passphrase is wrong"), "{error:#}");
    folder.check(WORDS);
    assert_eq!(folder.names(), set(&["custody.argon2", "shares-2"]));
}

#[test]
fn a_note_of_other_providers_touches_nothing() {
    let folder = Folder::new();
    let before = folder.config().custody;
    let after = |no| CustodyConfig {
        shares_dir: folder.path(&format!("shares-{no}")),
        provider: ProviderConfig::KeyFile(folder.path(&format!("custody-{no}.key"))),
    };
    Note::new(&after(5), &after(6), folder.dir.path()).write(folder.dir.path()).unwrap();
    let error = settle(&before).unwrap_err().to_string();
    assert!(error.contains("names neither"), "{error}");
    // A key elsewhere may be that of others, too.
    let elsewhere = tempfile::tempdir().unwrap();
    let key = elsewhere.path().join("custody.key");
    create_key(&key).unwrap();
    let foreign = CustodyConfig { provider: ProviderConfig::KeyFile(key.clone()), ..after(5) };
    Note::new(&foreign, &before, folder.dir.path()).write(folder.dir.path()).unwrap();
    settle(&before).unwrap();
    assert!(key.exists() && !folder.path(NOTE).exists());
    folder.check("");
}

#[test]
fn a_config_in_any_style_is_rewritten_to_what_is_meant() {
    let folder = Folder::new();
    let path = folder.config_path();
    let text = fs::read_to_string(&path).unwrap();
    let old = NodeConfig::parse(&path, &text).unwrap();
    let custody = CustodyConfig {
        shares_dir: "shares-2".into(),
        provider: ProviderConfig::Credential("smalti".into()),
    };
    let new = NodeConfig { custody, ..old.clone() };
    let table = "[custody]\n# inner\nshares_dir = \"shares\"\nkey_file = \"custody.key\"\n";
    assert!(text.contains(table), "{text}");
    let inline = "custody = { shares_dir = \"shares\", key_file = \"custody.key\" }\n";
    let last = format!("{}\n{table}", text.replace(table, ""));
    let styles = [
        (text.clone(), true),
        (last, true),
        (format!("{inline}{}", text.replace(table, "")), false),
        (serde_json::to_string(&old).unwrap(), false),
    ];
    for (text, keeps_comments) in styles {
        assert_eq!(NodeConfig::parse(&path, &text).unwrap(), old, "{text}");
        let rewritten = rewritten(&path, &text, &new).unwrap();
        assert_eq!(NodeConfig::parse(&path, &rewritten).unwrap(), new, "{rewritten}");
        assert_eq!(rewritten.contains("# ours"), keeps_comments, "{rewritten}");
        assert_eq!(text.starts_with('{'), rewritten.starts_with('{'));
    }
}
