//! Keys: how they are derived, wrapped, split among custodians and kept at rest.
//!
//! ```text
//! master secret  --split t of m--> custodians     --HKDF--> MasterKey
//!   MasterKey    --derive_shard_key(shard, time)--> ShardKey, one for each column and key epoch
//!   MasterKey    --derive_place_key(volume)-------> PlaceKey
//! wrapping secret --split t of m--> custodians    --HKDF--> WrappingKey
//!   WrappingKey  --encrypt_shard_key--> WrappedKey, public metadata
//! ShardKey       --HKDF(session salt, stripe, slot)--> session key (in `seal`)
//! ```
//!
//! The master secret is put together only to derive new keys, the wrapping secret only to attach a
//! volume; neither is ever stored whole. [`mod@derive`] makes keys, [`wrap`] binds them to their place
//! in the metadata, [`share`] splits secrets verifiably, [`rest`] seals parts on disk, and [`recovery`]
//! seals secrets for people who hold shares of one that opens them.

pub mod derive;
mod name;
mod random;
pub mod recovery;
pub mod rest;
pub mod share;
pub mod wrap;

pub use derive::{MasterKey, ShardId, ShardKey, WrappingKey, derive_place_key, derive_shard_key};
pub use name::{Dealt, NotDealt, SecretName, ShareName};
pub use random::{NoRandomness, system_rng};
pub use recovery::{
    RECOVERY_ENVELOPE_LEN, RecoveryError, RecoveryShare, RecoveryShareError,
    combine_recovery_shares, open_for_recovery, seal_for_recovery,
};
pub use rest::{KeyProvider, RestError, RestKey, open_at_rest, seal_at_rest};
pub use share::{
    Commitments, Dealer, Dealing, KeyPart, PartError, PartProof, Secret, combine_commitments,
    combine_parts, get_key_parts, reconstruct_symmetric_key, reshare_part, verify_dealer,
    verify_part,
};
pub use wrap::{
    KeyBinding, KeyError, WrappedKey, decrypt_place_key, decrypt_shard_key, encrypt_place_key,
    encrypt_shard_key,
};
