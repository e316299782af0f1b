//! The parts of a new cluster: made aside, moved to their places.

use super::founding::Founding;
use super::recovery::{Drawn, RecoveryShares, RecoveryWish};
use super::{CONFIG_FILE, MAKING, MARKER, Marker, custodians};
use crate::config::{
    Addresses, CredentialsConfig, CustodyConfig, NodeConfig, PeerConfig, ProviderConfig, Sockets,
    Tunables, VERSION,
};
use crate::custody::{Passphrase, PassphraseKey, create_key, open_with};
use crate::files;
use anyhow::{Context, bail};
use smalti_cluster::custodian::Vault;
use smalti_map::FIRST_SHARE_EPOCH;
use smalti_net::ClusterCa;
use smalti_storage::ids::{ClusterId, NodeId};
use smalti_storage::keys::{
    Commitments, Dealing, Dealt, Secret, SecretName, ShareName, get_key_parts, verify_part,
};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// The authority's folder, beside those of the nodes.
pub(super) const AUTHORITY: &str = "ca";
pub(super) const NBD_SOCKET: &str = "nbd.sock";
const FOUNDING_FILE: &str = "founding.json";
/// Other key providers take its place later.
const CUSTODY_KEY: &str = "custody.key";
const CUSTODY_STRETCH: &str = "custody.argon2";

/// A node that is there from the beginning.
#[derive(Clone, Debug)]
pub(super) struct Founder {
    /// Its name, and that of its folder.
    pub(super) name: String,
    /// Where it listens.
    pub(super) addresses: Addresses,
}

/// What is to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    /// The cluster.
    pub(super) cluster: ClusterId,
    /// Its first nodes, by number.
    pub(super) founders: &'a [Founder],
    /// What marks the folder as a cluster on this machine; none if its parts go to several machines.
    pub(super) marker: Option<&'a Marker>,
    /// Under which every node's shares are sealed; else each has a key file.
    pub(super) passphrase: Option<&'a Passphrase>,
    /// The recovery shares that people are to get.
    pub(super) recovery: Option<RecoveryWish>,
}

impl Parts<'_> {
    /// Makes the folder and all in it. What fails before anything has its place leaves nothing. `hand_out` gives
    /// people their recovery shares: before anything has its place, so that there is no cluster whose shares
    /// nobody was given.
    pub(super) fn place(
        &self,
        dir: &Path,
        hand_out: impl FnOnce(Option<RecoveryShares>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("make {}", dir.display()))?;
        let making = dir.join(MAKING);
        files::make_private_dir(&making)?;
        if let Err(error) = self.make(&making).and_then(hand_out) {
            fs::remove_dir_all(&making).context("clean up after a failure to make the cluster")?;
            return Err(error.context("make the parts of the cluster"));
        }
        let nodes = self.founders.iter().map(|founder| founder.name.as_str());
        let parts = std::iter::once(AUTHORITY).chain(nodes);
        for name in parts.chain(self.marker.map(|_| MARKER)) {
            // The marker must not be in place while a part might not be.
            files::sync_dir(dir).context("sync the cluster's folder")?;
            fs::rename(making.join(name), dir.join(name))
                .with_context(|| format!("move {name} to its place"))?;
        }
        // Without a marker it is this that tells a folder that is whole.
        files::sync_dir(dir).context("sync the cluster's folder")?;
        fs::remove_dir(&making).with_context(|| format!("remove {}", making.display()))?;
        files::sync_dir(dir).context("sync the cluster's folder")
    }

    fn make(&self, making: &Path) -> anyhow::Result<Option<RecoveryShares>> {
        let ca = ClusterCa::generate(self.cluster).context("make the cluster's authority")?;
        files::make_private_dir(&making.join(AUTHORITY))?;
        ca.save(&making.join(AUTHORITY))?;

        let (threshold, count) = custodians(self.founders.len());
        let (dealing, drawn) = {
            let mut rng = rand::rng();
            let secret = Secret::random(&mut rng);
            let dealing = get_key_parts(&secret, threshold, count, &mut rng)
                .context("split the master secret")?;
            let draw = |wish: RecoveryWish| {
                wish.draw(self.cluster, &secret, &dealing.commitments, &mut rng)
            };
            let drawn = self.recovery.map(draw).transpose()?;
            (dealing, drawn)
        };
        let (recovery, shares) =
            drawn.map(|Drawn { public, sealed, shares }| ((public, sealed), shares)).unzip();
        let configs = self.configs();
        for (index, config) in configs.iter().enumerate() {
            let folder = making.join(&config.name);
            make_node(&folder, config, &ca)
                .and_then(|()| keep_share(&folder, config, &dealing, (index, self.passphrase)))
                .with_context(|| format!("make node {}", config.name))?;
        }
        let [first, ..] = configs.as_slice() else { bail!("there is no first node") };
        let founding = Founding::of(&configs, &dealing.commitments, (threshold, count), recovery);
        founding.write(&making.join(&first.name).join(FOUNDING_FILE))?;
        for config in &configs {
            files::sync_dir(&making.join(&config.name))?;
        }
        if let Some(marker) = self.marker {
            let text = serde_json::to_vec_pretty(marker)?;
            files::write_atomic(&making.join(MARKER), &text, files::PUBLIC)?;
        }
        Ok(shares)
    }

    fn configs(&self) -> Vec<NodeConfig> {
        let peers: Vec<PeerConfig> = (1..)
            .zip(self.founders)
            .map(|(id, founder)| PeerConfig {
                id: NodeId(id),
                name: founder.name.clone(),
                quic: founder.addresses.quic,
            })
            .collect();
        let config = |(index, me): (usize, &PeerConfig)| NodeConfig {
            version: VERSION,
            cluster: self.cluster,
            node: me.id,
            name: me.name.clone(),
            data_dir: "data".into(),
            local_cluster: self.marker.map(|_| "..".into()),
            founding: (index == 0).then(|| FOUNDING_FILE.into()),
            // One node is enough to let others join, and the key is to be in one place.
            authority: (index == 0).then(|| Path::new("..").join(AUTHORITY)),
            certificate_seconds: None,
            addresses: self.founders[index].addresses,
            sockets: Sockets { nbd: NBD_SOCKET.into(), api: "api.sock".into() },
            tunables: Tunables::default(),
            peers: peers.iter().filter(|peer| peer.id != me.id).cloned().collect(),
            custody: CustodyConfig {
                shares_dir: "shares".into(),
                provider: match self.passphrase {
                    Some(_) => ProviderConfig::Passphrase(CUSTODY_STRETCH.into()),
                    None => ProviderConfig::KeyFile(CUSTODY_KEY.into()),
                },
            },
            credentials: CredentialsConfig { dir: "tls".into() },
        };
        peers.iter().enumerate().map(config).collect()
    }
}

fn make_node(folder: &Path, config: &NodeConfig, ca: &ClusterCa) -> anyhow::Result<()> {
    files::make_private_dir(folder)?;
    for inner in [&config.data_dir, &config.custody.shares_dir, &config.credentials.dir] {
        files::make_private_dir(&folder.join(inner))?;
    }
    ca.issue(config.node, &config.name)?.save(&folder.join(&config.credentials.dir))?;
    let (path, text) = (folder.join(CONFIG_FILE), config.to_toml()?);
    // It has to be read again when the node starts: better refused here than there.
    NodeConfig::parse(&path, &text)?;
    files::write_atomic(&path, text.as_bytes(), files::PUBLIC)
}

/// Every node gets a key provider, for shares may be dealt to it later; the first ones get their
/// shares of the master secret.
fn keep_share(
    folder: &Path,
    config: &NodeConfig,
    dealing: &Dealing,
    (index, passphrase): (usize, Option<&Passphrase>),
) -> anyhow::Result<()> {
    let custody = config.custody.clone().resolve(folder);
    match (&custody.provider, passphrase) {
        (ProviderConfig::Passphrase(path), Some(passphrase)) => {
            PassphraseKey::create(path, passphrase)?;
        }
        (ProviderConfig::KeyFile(path), _) => drop(create_key(path)?),
        _ => bail!("no key can be made for {:?}", custody.provider),
    }
    let Some(part) = dealing.parts.get(index) else { return Ok(()) };
    let vault = || -> anyhow::Result<Vault> {
        let provider = open_with(&custody, passphrase)?;
        Ok(Vault::new(custody.shares_dir.clone(), config.cluster, config.node, provider.key))
    };
    let share = master_share(&dealing.commitments);
    vault()?.keep(&share, part)?;
    // The master secret is gone when this returns. What can not be opened now never can be.
    verify_part(&vault()?.find(&share)?, &dealing.commitments)?;
    Ok(())
}

/// The name of every founder's share of the master secret.
pub(super) fn master_share(commitments: &Commitments) -> ShareName {
    let dealing = Dealt::of(&commitments.to_bytes());
    ShareName { secret: SecretName::Master, share_epoch: FIRST_SHARE_EPOCH, dealing }
}
