#![allow(clippy::unwrap_used, reason = "tests")]

use super::parts::master_share;
use super::*;
use crate::config::NodeConfig;
use crate::custody::load_key;
use smalti_cluster::custodian::{Vault, VaultError};
use smalti_net::{ClusterCa, NodeCredentials};
use smalti_storage::ids::NodeId;
use smalti_storage::keys::{Commitments, KeyPart, PartError, reconstruct_symmetric_key};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

fn load(dir: &Path, name: &str) -> NodeConfig {
    NodeConfig::load(&dir.join(name).join(CONFIG_FILE)).unwrap()
}

fn share(config: &NodeConfig, commitments: &Commitments) -> Option<KeyPart> {
    let key = load_key(config.custody.provider.file().unwrap()).unwrap();
    let shares = config.custody.shares_dir.clone();
    let vault = Vault::new(shares, config.cluster, config.node, Arc::new(key));
    match vault.find(&master_share(commitments)) {
        Err(VaultError::Absent) => None,
        found => Some(found.unwrap()),
    }
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|p| if p.is_dir() { [vec![p.clone()], walk(&p)].concat() } else { vec![p] })
        .collect()
}

#[test]
fn a_new_cluster_is_whole() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("a/b");
    let marker = make(&dir, 3).unwrap();
    assert_eq!(inspect(&dir).unwrap(), DirState::Made(marker.clone()));
    assert_eq!(marker.nodes, ["n1", "n2", "n3"]);
    ClusterCa::load(&dir.join("ca")).unwrap();

    let mut ports = BTreeSet::new();
    for (index, name) in marker.nodes.iter().enumerate() {
        let config = load(&dir, name);
        assert_eq!((config.cluster, &config.name), (marker.cluster, name));
        assert_eq!(config.node, NodeId(index as u64 + 1));
        assert_eq!(config.founding.is_some(), index == 0);
        let authority = config.authority.as_deref().map(ClusterCa::load);
        assert_eq!(
            authority.map(|ca| ca.unwrap().cluster()),
            (index == 0).then_some(marker.cluster)
        );
        let identity = NodeCredentials::load(&config.credentials.dir).unwrap().identity();
        assert_eq!((identity.cluster, identity.node), (config.cluster, config.node));
        ports.extend([config.addresses.quic, config.addresses.api, config.addresses.nbd]);
        for peer in &config.peers {
            let other = load(&dir, &peer.name);
            assert_eq!((peer.id, peer.quic), (other.node, other.addresses.quic));
        }
        assert_eq!(config.peers.len(), 2);
    }
    assert_eq!(ports.len(), 9);
    assert_eq!(make(&dir, 3).unwrap_err().to_string(), format!("{} is not empty", dir.display()));
}

#[test]
fn secrets_are_for_their_owner_only() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("c");
    make(&dir, 3).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let mut secrets = 0;
    for path in walk(&dir).into_iter().chain([dir.clone()]) {
        if path.is_dir() {
            assert_eq!(mode(&path), 0o700, "{}", path.display());
        } else if path.extension().is_some_and(|e| e == "key" || e == "share") {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            secrets += 1;
        }
    }
    // The authority's key; and per node its TLS key, its custodian key and its share.
    assert_eq!(secrets, 1 + 3 * 3);
}

#[test]
fn any_threshold_of_custodians_opens_the_master_secret_and_fewer_do_not() {
    for (nodes, needed, total) in [(3, 2, 3), (4, 2, 3), (5, 3, 5), (6, 3, 5)] {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("c");
        let marker = make(&dir, nodes).unwrap();
        let configs: Vec<_> = marker.nodes.iter().map(|name| load(&dir, name)).collect();
        let founding = Founding::load(configs[0].founding.as_ref().unwrap()).unwrap();
        assert_eq!(founding.nodes.len(), nodes);
        assert_eq!(usize::from(founding.custody.threshold), needed);
        let commitments = Commitments::from_bytes(&founding.custody.commitments).unwrap();
        let share = |config| share(config, &commitments);
        let parts: Vec<_> = configs.iter().filter_map(share).collect();
        assert_eq!(parts.len(), total, "{nodes} nodes");
        for (part, holder) in parts.iter().zip(&founding.custody.holders) {
            let holds = &configs[usize::try_from(holder.node.0).unwrap() - 1];
            assert_eq!(share(holds).unwrap().index(), part.index());
            assert_eq!(part.index(), holder.share);
        }
        let first = reconstruct_symmetric_key(&parts[..needed], &commitments).unwrap();
        let last = reconstruct_symmetric_key(&parts[total - needed..], &commitments).unwrap();
        assert_eq!(first.master_key().expose(), last.master_key().expose());
        let fewer = reconstruct_symmetric_key(&parts[..needed - 1], &commitments);
        assert!(matches!(fewer, Err(PartError::NotEnough { .. })));
    }
}

#[test]
fn half_made_and_foreign_folders_are_recognised() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("c");
    assert_eq!(inspect(&dir).unwrap(), DirState::Free);
    fs::create_dir(&dir).unwrap();
    assert_eq!(inspect(&dir).unwrap(), DirState::Free);
    fs::write(dir.join("x"), "").unwrap();
    assert_eq!(inspect(&dir).unwrap(), DirState::Foreign);
    assert!(make(&dir, 3).is_err());
    fs::remove_file(dir.join("x")).unwrap();

    // As a crash leaves it: parts made, some in place, no marker.
    fs::create_dir(dir.join(MAKING)).unwrap();
    assert_eq!(inspect(&dir).unwrap(), DirState::HalfMade);
    fs::create_dir(dir.join("n1")).unwrap();
    assert_eq!(inspect(&dir).unwrap(), DirState::HalfMade);
    assert!(make(&dir, 3).is_err());
}

#[test]
fn numbers_and_folders_that_can_not_be_are_refused_before_anything_is_made() {
    let home = tempfile::tempdir().unwrap();
    for nodes in [0, 1, 2, 33] {
        let dir = home.path().join("c");
        assert!(make(&dir, nodes).is_err());
        assert!(!dir.exists());
    }
    let long = home.path().join("x".repeat(100));
    let error = make(&long, 3).unwrap_err().to_string();
    assert!(error.contains("a folder with a shorter path"), "{error}");
    assert!(!long.exists());
}

#[test]
fn a_damaged_marker_is_told() {
    let home = tempfile::tempdir().unwrap();
    for text in [
        "",
        "{}",
        r#"{"version":2,"cluster":"00000000-0000-0000-0000-000000000001","nodes":["n1","n2","n3"]}"#,
        r#"{"version":1,"cluster":"00000000-0000-0000-0000-000000000001","nodes":["n1","../n2","n3"]}"#,
    ] {
        fs::write(home.path().join(MARKER), text).unwrap();
        let error = format!("{:#}", inspect(home.path()).unwrap_err());
        assert!(error.contains(MARKER), "{error}");
    }
}
