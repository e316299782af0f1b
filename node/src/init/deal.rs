//! `smalti init`: the folders of the first nodes of a cluster over several machines.
//!
//! They are made on one machine, for the master secret is dealt there and then forgotten, and are
//! carried from it to theirs.

use super::parts::{AUTHORITY, Founder, Parts};
use super::{
    CONFIG_FILE, DirState, MARKER, NODES_MAX, RecoveryShares, RecoveryWish, check_socket_paths,
    inspect,
};
use crate::config::Addresses;
use crate::custody::Passphrase;
use crate::local::DirLock;
use crate::volume_spec::{self, NODES_MIN};
use anyhow::{Context, bail, ensure};
use smalti_storage::ids::ClusterId;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use uuid::Uuid;

/// Where control APIs are served unless it is said.
pub const API_PORT: u16 = 10_709;
/// Where NBD is served unless it is said: the port that is registered for it.
pub const NBD_PORT: u16 = 10_809;

/// `NAME=IP:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedAddress {
    /// The node.
    pub name: String,
    /// Where other nodes reach it, over UDP.
    pub quic: SocketAddr,
}

impl FromStr for NamedAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "a name and an address, as in n1=192.0.2.1:9000".to_owned();
        let (name, quic) = text.split_once('=').ok_or_else(form)?;
        let quic = quic.parse().map_err(|_| form())?;
        Ok(Self { name: name.to_owned(), quic })
    }
}

/// What `smalti init` is asked.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// Where the folders are made.
    pub dir: PathBuf,
    /// The first nodes, by number.
    pub nodes: Vec<NamedAddress>,
    /// The port of the first control API on a machine; its further nodes take those that follow.
    pub api_port: u16,
    /// The same for NBD.
    pub nbd_port: u16,
    /// Under which the shares of all nodes are sealed; else each has a key file.
    pub passphrase: Option<Passphrase>,
    /// The recovery shares that people are to get.
    pub recovery: Option<RecoveryWish>,
}

/// What was dealt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dealt {
    /// The cluster.
    pub cluster: ClusterId,
    /// Folders of the nodes.
    pub nodes: Vec<PathBuf>,
    /// Folder of the authority.
    pub authority: PathBuf,
    /// Whether each needs its passphrase after it has started.
    pub locked: bool,
    /// What people are to be given.
    pub recovery: Option<RecoveryShares>,
}

/// Makes the folders. `hand_out` is given what is dealt, recovery shares among it, before the folders have their
/// places.
///
/// # Errors
/// Something can not be as asked, a file can not be written, or `hand_out` fails: one line.
pub fn deal(
    options: &InitOptions,
    hand_out: impl FnOnce(&Dealt) -> anyhow::Result<()>,
) -> anyhow::Result<Dealt> {
    let founders = founders(options)?;
    let dir = std::path::absolute(&options.dir).context("find the folder")?;
    let longest = founders.iter().map(|founder| founder.name.as_str()).max_by_key(|n| n.len());
    check_socket_paths(&dir, longest.unwrap_or_default())?;
    check_free(&dir)?;
    let make = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    make.with_context(|| format!("make {}", dir.display()))?;
    let _lock = DirLock::take(&dir, "smalti init")?;
    // Whoever had the lock before may have been at work.
    check_free(&dir)?;
    let cluster = ClusterId(Uuid::new_v4());
    let passphrase = options.passphrase.as_ref();
    let nodes = founders.iter().map(|founder| dir.join(&founder.name)).collect();
    let (authority, locked) = (dir.join(AUTHORITY), passphrase.is_some());
    let mut dealt = Dealt { cluster, nodes, authority, locked, recovery: None };
    let (founders, recovery) = (founders.as_slice(), options.recovery);
    let parts = Parts { cluster, founders, marker: None, passphrase, recovery };
    parts.place(&dir, |shares| {
        dealt.recovery = shares;
        hand_out(&dealt)
    })?;
    Ok(dealt)
}

fn check_free(dir: &Path) -> anyhow::Result<()> {
    match inspect(dir)? {
        DirState::Free => Ok(()),
        DirState::HalfMade => bail!(
            "{} is half made: an earlier `smalti init` or `smalti up` was cut off while making it; it \
             holds no data and nothing of it was used: remove it and start again",
            dir.display()
        ),
        DirState::Made(_) | DirState::Foreign => {
            bail!("{} is not empty: choose another folder", dir.display())
        }
    }
}

impl Dealt {
    /// What is to be done next, for people.
    pub fn next_steps(&self) -> String {
        let mut text = format!(
            "dealt the first {} nodes of cluster {}\n\
             1. copy each folder to its machine, as its owner only (as `rsync -a` or `scp -rp` does), and \
             delete it here:\n",
            self.nodes.len(),
            self.cluster
        );
        for node in &self.nodes {
            text.push_str(&format!("     {}\n", node.display()));
        }
        text.push_str(
            "2. start each from where its folder is then, in any order; they serve when more than half of \
             them run:\n",
        );
        for name in self.nodes.iter().filter_map(|node| node.file_name()) {
            let config = Path::new(name).join(CONFIG_FILE);
            text.push_str(&format!("     smalti serve --config {}\n", config.display()));
        }
        if self.locked {
            text.push_str(
                "   and give each the passphrase, after each start; shares of volumes are not given before:\n     \
                 smalti key unlock --dir FOLDER\n",
            );
        }
        text.push_str(&format!(
            "3. {} has the key that makes members: put it away. To let machines join later, put it \
             beside the folder of the first node, or where `authority` in a node.toml says, and use \
             `smalti token create --api unix:FOLDER/api.sock` there\n",
            self.authority.display()
        ));
        text
    }
}

/// The nodes with all their addresses, which are such that they can reach each other.
fn founders(options: &InitOptions) -> anyhow::Result<Vec<Founder>> {
    let nodes = &options.nodes;
    ensure!(
        nodes.len() >= NODES_MIN,
        "{} of at least {NODES_MIN} nodes are named: the master secret is dealt to three, so that two \
         open volumes when one is lost and none can alone, and of fewer than three that agree on the \
         cluster none could be lost",
        nodes.len()
    );
    ensure!(nodes.len() <= NODES_MAX, "{} nodes are more than {NODES_MAX}", nodes.len());
    let (mut names, mut taken) = (BTreeSet::new(), BTreeMap::new());
    for NamedAddress { name, quic } in nodes {
        check_name(name)?;
        ensure!(names.insert(name.as_str()), "two nodes are named {name}");
        check_address(*quic).with_context(|| format!("{name}={quic}"))?;
        let canonical = SocketAddr::new(quic.ip().to_canonical(), quic.port());
        if let Some(other) = taken.insert(canonical, name) {
            bail!("{quic} is the address of {other} and of {name}");
        }
    }
    check_reach(nodes)?;
    loopback_ports(options)
}

fn check_name(name: &str) -> anyhow::Result<()> {
    ensure!(
        volume_spec::check_name(name).is_ok(),
        "{name:?} is not a name: 1 to 64 of a-z A-Z 0-9 . _ -, not first . or -"
    );
    ensure!(name != AUTHORITY, "no node can be named {AUTHORITY}: that is the authority's folder");
    ensure!(name != MARKER, "no node can be named {MARKER}: that marks a cluster of `smalti up`");
    Ok(())
}

fn check_address(quic: SocketAddr) -> anyhow::Result<()> {
    let ip = quic.ip().to_canonical();
    ensure!(quic.port() != 0, "port 0 can not be known to others");
    ensure!(
        !ip.is_unspecified(),
        "others have to reach it there, so it has to be one of its machine's addresses"
    );
    ensure!(
        !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST),
        "that is no address of one machine"
    );
    Ok(())
}

/// Each has to reach each other from the address where it listens.
fn check_reach(nodes: &[NamedAddress]) -> anyhow::Result<()> {
    let differ = |kind: fn(&IpAddr) -> bool| {
        let of = |node: &&NamedAddress| kind(&node.quic.ip().to_canonical());
        nodes.iter().find(of).zip(nodes.iter().find(|node| !of(node)))
    };
    if let Some((inside, outside)) = differ(IpAddr::is_loopback) {
        bail!(
            "{}={} is reached from its own machine only, and {}={} from others: give all of them \
             addresses that all machines reach, or only loopback ones for a trial on one machine",
            inside.name,
            inside.quic,
            outside.name,
            outside.quic
        );
    }
    let differ = nodes.iter().zip(nodes.iter().skip(1));
    if let Some((one, other)) =
        differ.into_iter().find(|(a, b)| a.quic.is_ipv4() != b.quic.is_ipv4())
    {
        bail!(
            "{}={} and {}={} are of IPv4 and of IPv6: a node calls others from where it listens, so \
             all have to be of one kind",
            one.name,
            one.quic,
            other.name,
            other.quic
        );
    }
    Ok(())
}

/// Control API and NBD of each, on loopback. Nodes of one machine, which are those with one IP or with
/// loopback ones, take ports one after the other.
fn loopback_ports(options: &InitOptions) -> anyhow::Result<Vec<Founder>> {
    let mut on_machine: BTreeMap<IpAddr, u16> = BTreeMap::new();
    let mut taken: BTreeMap<(IpAddr, u16), String> = BTreeMap::new();
    let mut founders = Vec::new();
    for NamedAddress { name, quic } in &options.nodes {
        let ip = quic.ip().to_canonical();
        let machine = if ip.is_loopback() { Ipv4Addr::LOCALHOST.into() } else { ip };
        let nth = on_machine.entry(machine).or_default();
        let mut at = |what: &str, first: u16| -> anyhow::Result<SocketAddr> {
            ensure!(first != 0, "{what}: port 0 can not be known to others");
            let port = first.checked_add(*nth);
            let port = port.with_context(|| format!("{what}: there are no ports after 65535"))?;
            let whose = format!("{what} of {name}");
            match taken.insert((machine, port), whose.clone()) {
                None => Ok((Ipv4Addr::LOCALHOST, port).into()),
                Some(other) => bail!("port {port} is that of the {other} and of the {whose}"),
            }
        };
        let (api, nbd) = (at("control API", options.api_port)?, at("NBD", options.nbd_port)?);
        *nth += 1;
        let addresses = Addresses { quic: *quic, api, nbd };
        founders.push(Founder { name: name.clone(), addresses });
    }
    Ok(founders)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::config::NodeConfig;
    use smalti_net::ClusterCa;
    use std::os::unix::fs::PermissionsExt;

    fn options(dir: &Path, nodes: &[&str]) -> InitOptions {
        let nodes = nodes.iter().map(|node| node.parse().unwrap()).collect();
        InitOptions {
            dir: dir.to_owned(),
            nodes,
            api_port: API_PORT,
            nbd_port: NBD_PORT,
            passphrase: None,
            recovery: None,
        }
    }

    fn deal(options: &InitOptions) -> anyhow::Result<Dealt> {
        super::deal(options, |_| Ok(()))
    }

    /// No cluster without its recovery shares handed out, and no share in any file.
    #[test]
    fn recovery_shares_are_handed_out_before_there_is_a_cluster_and_kept_nowhere() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("d");
        let recovery = Some(RecoveryWish::new(5, 3).unwrap());
        let options = InitOptions { recovery, ..options(&dir, &REAL) };
        let failed = super::deal(&options, |_| anyhow::bail!("nobody reads this"));
        assert!(format!("{:#}", failed.unwrap_err()).contains("nobody reads this"));
        assert!(!dir.join("a").exists() && !dir.join(super::super::MAKING).exists());

        let mut given = Vec::new();
        let dealt = super::deal(&options, |dealt| {
            given.extend(dealt.recovery.iter().flat_map(|shares| shares.lines.clone()));
            assert!(!dir.join("a").exists(), "not before they are given");
            Ok(())
        });
        assert_eq!(given.len(), 5);
        assert_eq!(
            format!("{:?}", dealt.unwrap().recovery.unwrap()),
            "RecoveryShares(3 of 5, redacted)"
        );
        let founding = super::super::Founding::load(&dir.join("a/founding.json")).unwrap();
        let public = founding.recovery.unwrap();
        assert_eq!((public.threshold, public.shares), (3, 5));
        let mut files = vec![dir];
        while let Some(path) = files.pop() {
            if path.is_dir() {
                files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            let words = b"smalti-recovery";
            assert!(!bytes.windows(words.len()).any(|found| found == words), "{}", path.display());
        }
    }

    const REAL: [&str; 3] = ["a=192.0.2.1:9000", "b.x=192.0.2.2:9000", "c=192.0.2.3:9001"];

    #[test]
    fn all_nodes_may_be_sealed_under_a_passphrase_from_the_beginning() {
        use crate::custody::{open, open_with};
        use smalti_cluster::custodian::Vault;
        let home = tempfile::tempdir().unwrap();
        let words = Passphrase::new("six random words".into()).unwrap();
        let asked = options(&home.path().join("d"), &REAL);
        let dealt = deal(&InitOptions { passphrase: Some(words.clone()), ..asked }).unwrap();
        assert!(dealt.next_steps().contains("smalti key unlock"), "{}", dealt.next_steps());
        for folder in &dealt.nodes {
            assert!(!folder.join("custody.key").exists());
            let config = NodeConfig::load(&folder.join(CONFIG_FILE)).unwrap();
            let find = |key| {
                let shares = config.custody.shares_dir.clone();
                let vault = Vault::new(shares, config.cluster, config.node, key);
                vault.names().unwrap().iter().map(|share| vault.find(share)).collect::<Vec<_>>()
            };
            let locked = find(open(&config.custody).unwrap().key);
            let [Err(error)] = locked.as_slice() else { panic!("{locked:?}") };
            assert!(error.to_string().starts_with("locked"), "{error}");
            let found = find(open_with(&config.custody, Some(&words)).unwrap().key);
            assert!(matches!(found.as_slice(), [Ok(_)]), "{found:?}");
        }
    }

    #[test]
    fn each_folder_is_a_node_that_can_be_carried_away() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("d/e");
        let dealt = deal(&options(&dir, &REAL)).unwrap();
        assert_eq!(ClusterCa::load(&dealt.authority).unwrap().cluster(), dealt.cluster);
        let mut names: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["a", "b.x", "c", "ca"]);
        for (index, folder) in dealt.nodes.iter().enumerate() {
            let away = home.path().join(format!("away{index}"));
            fs::rename(folder, &away).unwrap();
            assert_eq!(fs::metadata(&away).unwrap().permissions().mode() & 0o777, 0o700);
            let config = NodeConfig::load(&away.join(CONFIG_FILE)).unwrap();
            assert_eq!((config.local_cluster, config.peers.len()), (None, 2));
            assert_eq!(config.founding.is_some_and(|path| path.exists()), index == 0);
            assert!(config.data_dir.starts_with(&away) && config.credentials.dir.exists());
            let ports = (config.addresses.api, config.addresses.nbd);
            let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            assert_eq!(ports, (loopback(API_PORT), loopback(NBD_PORT)));
            assert!(dealt.next_steps().contains(&format!("{}\n", folder.display())));
        }
    }

    #[test]
    fn nodes_of_one_machine_have_ports_of_their_own() {
        let dir = Path::new("/none");
        let of = |nodes: &[&str]| {
            let founders = founders(&options(dir, nodes)).unwrap();
            founders
                .iter()
                .map(|founder| founder.addresses.api.port() - API_PORT)
                .collect::<Vec<_>>()
        };
        assert_eq!(of(&["a=127.0.0.1:1", "b=127.0.0.2:1", "c=127.0.0.1:3"]), [0, 1, 2]);
        assert_eq!(of(&["a=192.0.2.1:1", "b=192.0.2.1:2", "c=192.0.2.3:1"]), [0, 1, 0]);
        assert_eq!(of(&["a=[2001:db8::1]:1", "b=[2001:db8::1]:2", "c=[2001:db8::2]:1"]), [0, 1, 0]);
    }

    #[test]
    fn what_can_not_be_is_refused_before_anything_is_made() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("d");
        let (a, b) = (REAL[0], REAL[1]);
        for (nodes, why) in [
            (&[a, b][..], "2 of at least 3 nodes"),
            (&[a, b, "a=192.0.2.3:1"], "two nodes are named a"),
            (&[a, b, "c=192.0.2.1:9000"], "is the address of a and of c"),
            (&[a, b, "c=192.0.2.3:0"], "port 0"),
            (&[a, b, "c=0.0.0.0:1"], "one of its machine's addresses"),
            (&[a, b, "c=[::]:1"], "one of its machine's addresses"),
            (&[a, b, "c=224.0.0.1:1"], "no address of one machine"),
            (&[a, b, "c=255.255.255.255:1"], "no address of one machine"),
            (&[a, b, "c=127.0.0.1:1"], "reached from its own machine only"),
            (&[a, b, "c=[2001:db8::1]:1"], "IPv4 and of IPv6"),
            (&[a, b, "ca=192.0.2.3:1"], "the authority's folder"),
            (&[a, b, ".c=192.0.2.3:1"], "is not a name"),
            (&[a, b, "../c=192.0.2.3:1"], "is not a name"),
        ] {
            let error = format!("{:#}", deal(&options(&dir, nodes)).unwrap_err());
            assert!(error.contains(why), "{error}");
            assert!(!dir.exists(), "{error}");
        }
        let same = InitOptions { api_port: NBD_PORT, ..options(&dir, &REAL) };
        let error = deal(&same).unwrap_err().to_string();
        assert!(
            error.contains("port 10809 is that of the control API of a and of the NBD"),
            "{error}"
        );
        let local = ["a=127.0.0.1:1", "b=127.0.0.1:2", "c=127.0.0.1:3"];
        let high = InitOptions { api_port: 65_534, ..options(&dir, &local) };
        assert!(deal(&high).unwrap_err().to_string().contains("no ports after 65535"));
        let long = home.path().join("x".repeat(100));
        let error = deal(&options(&long, &REAL)).unwrap_err().to_string();
        assert!(error.contains("a folder with a shorter path") && !long.exists(), "{error}");
    }

    #[test]
    fn other_folders_and_half_made_ones_are_told_apart() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("d");
        let refused = || deal(&options(&dir, &REAL)).unwrap_err().to_string();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("x"), "").unwrap();
        assert!(refused().contains("is not empty"));
        fs::remove_file(dir.join("x")).unwrap();
        // As a crash leaves it: parts made, some in place.
        fs::create_dir(dir.join(super::super::MAKING)).unwrap();
        fs::create_dir(dir.join("a")).unwrap();
        assert!(refused().contains("is half made"));
        fs::remove_dir_all(&dir).unwrap();
        deal(&options(&dir, &REAL)).unwrap();
        assert!(refused().contains("is not empty"));
    }
}
