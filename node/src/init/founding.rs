//! What the first node proposes to found the cluster. Public: addresses, and the commitments that
//! shares of the master secret are verified against.

use crate::config::NodeConfig;
use crate::files;
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use smalti_storage::ids::{ClusterId, NodeId};
use smalti_storage::keys::Commitments;
use std::net::SocketAddr;
use std::path::Path;

const FILE_BYTES_MAX: u64 = 1 << 20;

/// `founding.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Founding {
    /// Format; 1.
    pub version: u32,
    /// The cluster.
    pub cluster: ClusterId,
    /// Its first members, by number.
    pub nodes: Vec<FoundingNode>,
    /// Custody of the master secret.
    pub custody: FoundingCustody,
    /// What every secret is to be sealed to besides, if people have recovery shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<FoundingRecovery>,
}

/// A first member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoundingNode {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its QUIC address.
    pub quic: SocketAddr,
    /// Its control API.
    pub api: SocketAddr,
    /// Its NBD service.
    pub nbd: SocketAddr,
}

/// Who holds which share, and what shares are verified against.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoundingCustody {
    /// Shares needed.
    pub threshold: u8,
    /// Holders, by share.
    pub holders: Vec<FoundingHolder>,
    /// The commitments, as [`Commitments`] are encoded, in hexadecimal digits.
    #[serde(with = "hex")]
    pub commitments: Vec<u8>,
    /// The master secret, sealed to the recovery secret, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "hex")]
    pub sealed_for_recovery: Vec<u8>,
}

/// The public side of the recovery secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoundingRecovery {
    /// Shares needed.
    pub threshold: u8,
    /// Shares there are.
    pub shares: u8,
    /// The commitments, as [`Commitments`] are encoded, in hexadecimal digits.
    #[serde(with = "hex")]
    pub commitments: Vec<u8>,
}

/// A custodian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoundingHolder {
    /// The custodian's node.
    pub node: NodeId,
    /// The number of its share, from 1.
    pub share: u8,
}

impl Founding {
    pub(super) fn of(
        configs: &[NodeConfig],
        commitments: &Commitments,
        (threshold, count): (u8, u8),
        recovery: Option<(FoundingRecovery, Vec<u8>)>,
    ) -> Self {
        let (recovery, sealed) = recovery.unzip();
        let node = |config: &NodeConfig| FoundingNode {
            id: config.node,
            name: config.name.clone(),
            quic: config.addresses.quic,
            api: config.addresses.api,
            nbd: config.addresses.nbd,
        };
        let holders = (1..=count)
            .zip(configs)
            .map(|(share, config)| FoundingHolder { node: config.node, share })
            .collect();
        Self {
            version: 1,
            cluster: configs.first().map(|config| config.cluster).unwrap_or_default(),
            nodes: configs.iter().map(node).collect(),
            custody: FoundingCustody {
                threshold,
                holders,
                commitments: commitments.to_bytes(),
                sealed_for_recovery: sealed.unwrap_or_default(),
            },
            recovery,
        }
    }

    /// Reads the file and checks that it is whole.
    ///
    /// # Errors
    /// It can not be read, is of another version, or its custody does not hold together.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let load = || -> anyhow::Result<Self> {
            let founding: Self =
                serde_json::from_slice(&files::read_bounded(path, FILE_BYTES_MAX)?)?;
            ensure!(founding.version == 1, "version {} is not known", founding.version);
            let custody = &founding.custody;
            let commitments = Commitments::from_bytes(&custody.commitments)?;
            ensure!(
                commitments.threshold() == usize::from(custody.threshold)
                    && custody.holders.len() >= commitments.threshold(),
                "its custody does not hold together"
            );
            Ok(founding)
        };
        load().with_context(|| format!("load the founding file {}", path.display()))
    }

    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        files::write_atomic(path, &serde_json::to_vec_pretty(self)?, files::PUBLIC)
    }
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
        let pairs = digits.filter(|digits| digits.len().is_multiple_of(2));
        let pairs = pairs.ok_or_else(|| D::Error::custom("not hexadecimal digits in pairs"))?;
        Ok(pairs.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
    }
}
