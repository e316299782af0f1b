//! What may be asked of a new volume, and what it gets when less is asked.

use smalti_storage::ids::SlotSet;
use thiserror::Error;

const NAME_MAX: usize = 64;
/// Slots of a group are kept in a set of this many.
const SLOTS_MAX: u32 = SlotSet::first(32).len();
/// Fewer nodes can not lose one and go on.
pub const NODES_MIN: usize = 3;

/// Data and parity slots of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// n.
    pub data: u8,
    /// k.
    pub parity: u8,
}

/// Why a volume can not be as asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The name has a wrong length or letter.
    #[error("`{0}` is not a volume name: 1 to 64 of a-z A-Z 0-9 . _ -, not beginning with . or -")]
    Name(String),
    /// Data or parity is zero.
    #[error("a volume needs at least 1 data and 1 parity shard, not {data}+{parity}")]
    NoShards {
        /// n as asked.
        data: u8,
        /// k as asked.
        parity: u8,
    },
    /// More slots than a group can have.
    #[error("{data}+{parity} shards are more than {SLOTS_MAX}")]
    TooManyShards {
        /// n as asked.
        data: u8,
        /// k as asked.
        parity: u8,
    },
    /// Every slot of a row needs a node of its own.
    #[error("{data}+{parity} shards need {} nodes, there are {nodes}", data + parity)]
    TooFewNodes {
        /// n as asked.
        data: u8,
        /// k as asked.
        parity: u8,
        /// Nodes there are.
        nodes: usize,
    },
    /// Only one of the two numbers.
    #[error("data and parity shards are given together or not at all")]
    HalfGeometry,
    /// No group can be asked for so many or so few.
    #[error("a volume of {data}+{parity} shards can need {data} to {} slots in sync, not {asked}", data + parity)]
    MinInsync {
        /// Slots as asked.
        asked: u8,
        /// n.
        data: u8,
        /// k.
        parity: u8,
    },
    /// The shard size is not possible.
    #[error("shard size {0} is not a power of two from 64 KiB to 64 MiB")]
    ShardSize(u32),
    /// No cluster has so few nodes.
    #[error("a cluster needs at least {NODES_MIN} nodes, there are {0}")]
    SmallCluster(usize),
}

impl Geometry {
    /// The default for a number of nodes: 3 nodes 2+1, 4 nodes 2+2, 5 nodes 3+2, more 4+2.
    ///
    /// # Errors
    /// Fewer than three nodes.
    pub fn for_nodes(nodes: usize) -> Result<Self, SpecError> {
        let (data, parity) = match nodes {
            0..NODES_MIN => return Err(SpecError::SmallCluster(nodes)),
            3 => (2, 1),
            4 => (2, 2),
            5 => (3, 2),
            _ => (4, 2),
        };
        Ok(Self { data, parity })
    }

    /// What was asked, or the default for `nodes`, checked against `nodes`.
    ///
    /// # Errors
    /// Only one of the numbers, a zero, too many, or more slots than nodes.
    pub fn asked(data: Option<u8>, parity: Option<u8>, nodes: usize) -> Result<Self, SpecError> {
        match given(data, parity)? {
            Some(geometry) => geometry.fitting(nodes),
            None => Self::for_nodes(nodes),
        }
    }

    /// Checks how many slots of a group have to be in sync for it to take writes, if that was said.
    ///
    /// # Errors
    /// Fewer than n, for less can not be read, or more than there are.
    pub fn check_min_insync(self, asked: Option<u8>) -> Result<(), SpecError> {
        let Self { data, parity } = self;
        match asked {
            Some(asked) if !(data..=data + parity).contains(&asked) => {
                Err(SpecError::MinInsync { asked, data, parity })
            }
            _ => Ok(()),
        }
    }

    fn fitting(self, nodes: usize) -> Result<Self, SpecError> {
        let Self { data, parity } = self;
        if usize::from(data) + usize::from(parity) > nodes {
            return Err(SpecError::TooFewNodes { data, parity, nodes });
        }
        Ok(self)
    }
}

/// The geometry that was given, if any, checked by itself.
///
/// # Errors
/// Only one of the numbers, a zero, or more than 32 slots.
pub fn given(data: Option<u8>, parity: Option<u8>) -> Result<Option<Geometry>, SpecError> {
    let (data, parity) = match (data, parity) {
        (None, None) => return Ok(None),
        (Some(data), Some(parity)) => (data, parity),
        _ => return Err(SpecError::HalfGeometry),
    };
    if data == 0 || parity == 0 {
        return Err(SpecError::NoShards { data, parity });
    }
    if u32::from(data) + u32::from(parity) > SLOTS_MAX {
        return Err(SpecError::TooManyShards { data, parity });
    }
    Ok(Some(Geometry { data, parity }))
}

/// Checks the name of a volume.
///
/// # Errors
/// Empty, longer than 64 bytes, or with other characters than the rule allows.
pub fn check_name(name: &str) -> Result<(), SpecError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let good = (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with(['.', '-']);
    if good { Ok(()) } else { Err(SpecError::Name(name.chars().take(NAME_MAX).collect())) }
}

/// Checks the mean size of a shard.
///
/// # Errors
/// No power of two, or out of range.
pub fn check_shard_size(bytes: u32) -> Result<(), SpecError> {
    // One rule for it, that of the geometry; the other numbers are possible ones.
    match smalti_storage::geometry::Geometry::new(1, 1, bytes, 1) {
        Ok(_) => Ok(()),
        Err(_) => Err(SpecError::ShardSize(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_the_number_of_nodes() {
        let geometry = |nodes| Geometry::for_nodes(nodes).map(|g| (g.data, g.parity));
        assert_eq!(geometry(2), Err(SpecError::SmallCluster(2)));
        assert_eq!(geometry(3), Ok((2, 1)));
        assert_eq!(geometry(4), Ok((2, 2)));
        assert_eq!(geometry(5), Ok((3, 2)));
        assert_eq!(geometry(6), Ok((4, 2)));
        assert_eq!(geometry(30), Ok((4, 2)));
    }

    #[test]
    fn geometries_that_can_not_be_are_refused() {
        let asked = |data, parity, nodes| Geometry::asked(data, parity, nodes).map(|_| ());
        assert_eq!(asked(Some(2), Some(1), 3), Ok(()));
        assert_eq!(
            asked(Some(4), Some(2), 5),
            Err(SpecError::TooFewNodes { data: 4, parity: 2, nodes: 5 })
        );
        assert_eq!(asked(Some(2), None, 3), Err(SpecError::HalfGeometry));
        assert_eq!(asked(Some(2), Some(0), 3), Err(SpecError::NoShards { data: 2, parity: 0 }));
        let huge = SpecError::TooManyShards { data: 255, parity: 255 };
        assert_eq!(asked(Some(255), Some(255), 999), Err(huge));
    }

    #[test]
    fn slots_in_sync_are_from_data_to_all() {
        let geometry = Geometry { data: 3, parity: 2 };
        for asked in [None, Some(3), Some(4), Some(5)] {
            assert_eq!(geometry.check_min_insync(asked), Ok(()));
        }
        for asked in [0, 2, 6] {
            let error = SpecError::MinInsync { asked, data: 3, parity: 2 };
            assert_eq!(geometry.check_min_insync(Some(asked)), Err(error));
        }
    }

    #[test]
    fn names_follow_the_rule() {
        for name in ["a", "Disk_1", "0", "a.b-c", &"x".repeat(64)] {
            assert_eq!(check_name(name), Ok(()));
        }
        for name in ["", ".a", "-a", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn shard_sizes_are_powers_of_two_in_range() {
        assert_eq!(check_shard_size(smalti_storage::geometry::SHARD_SIZE_DEFAULT), Ok(()));
        for bad in [0, 4096, 65537, 68 << 10, (64 << 20) + 4096] {
            assert_eq!(check_shard_size(bad), Err(SpecError::ShardSize(bad)));
        }
    }
}
