use super::*;
use crate::geometry::{Geometry, PlaceKey};
use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::LazyLock;
use uuid::Uuid;

const ROW: RowAddr = RowAddr { group: GroupNo(1), stripe: 7, index: 3 };
const PLACE: SealPlace = SealPlace {
    block: 4242,
    row: ROW,
    slot: Slot(1),
    snap: 6,
    wid: Wid { generation: 5, seq: 99 },
};

fn identity(cluster: u128, volume: u128) -> SealIdentity {
    let (cluster, volume) = (Uuid::from_u128(cluster), Uuid::from_u128(volume));
    SealIdentity { cluster: ClusterId(cluster), volume: VolumeId(volume) }
}

/// Keys of 4 groups and 2 data slots in the given epochs, the last of them current.
fn keys(epochs: &[u32]) -> Arc<VolumeKeys> {
    let geometry = Geometry::new(2, 1, 1 << 20, 4).expect("valid");
    let epoch = |epoch: &u32| {
        let keys = (0..8).map(|column| ShardKey::new([*epoch as u8 * 16 + column; 32])).collect();
        (KeyEpochNo(*epoch), EpochKeys::new(&geometry, keys).expect("eight columns"))
    };
    let current = KeyEpochNo(*epochs.last().expect("one epoch"));
    let place = PlaceKey::new([3; 32]);
    Arc::new(VolumeKeys::new(place, current, epochs.iter().map(epoch)).expect("whole"))
}

fn sealer() -> Sealer {
    Sealer::new(identity(1, 2), keys(&[1, 2]), [8; 16])
}

fn block(fill: u8) -> Vec<u8> {
    (0..BLOCK_LEN).map(|i| (i as u8).wrapping_mul(31) ^ fill).collect()
}

fn open(sealer: &Sealer, record: &[u8]) -> Result<Opened, OpenError> {
    sealer.open(PLACE.block, PLACE.row, PLACE.slot, record)
}

fn nonce_and_salt(record: &[u8]) -> ([u8; 12], [u8; 16]) {
    let record = Record::decode(record).expect("a record");
    let header = record.header().expect("present");
    (header.nonce, header.salt)
}

#[test]
fn sealed_blocks_open() {
    let sealer = sealer();
    let record = sealer.seal(&PLACE, &block(1), [1, 2, 3, 4]).expect("seals");
    assert_eq!(record.len(), RECORD_LEN);
    assert_eq!(open(&sealer, &record), Ok(Opened::Data(block(1))));
    let mut out = vec![0xaa; BLOCK_LEN];
    let header = sealer.open_into(PLACE.block, ROW, PLACE.slot, &record, &mut out).expect("opens");
    let header = header.expect("present");
    assert_eq!(out, block(1));
    assert_eq!((header.snap, header.wid, header.key_epoch), (6, PLACE.wid, KeyEpochNo(2)));
    assert_eq!(header.nonce, [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
    // Another attach of the same volume opens it too: the salt is in the record.
    let other = Sealer::new(identity(1, 2), keys(&[1, 2, 3]), [9; 16]);
    assert_eq!(open(&other, &record), Ok(Opened::Data(block(1))));
}

#[test]
fn absent_records_open_as_zeroes() {
    let mut out = vec![0xaa; BLOCK_LEN];
    let absent = crate::record::ABSENT;
    assert_eq!(open(&sealer(), &absent), Ok(Opened::Absent));
    assert_eq!(sealer().open_into(1, ROW, Slot(0), &absent, &mut out), Ok(None));
    assert_eq!(out, [0; BLOCK_LEN]);
}

#[test]
fn a_record_opens_only_as_what_it_is() {
    let sealer = sealer();
    let record = sealer.seal(&PLACE, &block(2), [0; 4]).expect("seals");
    let forged = |block| Err(OpenError::Forged(block));
    assert_eq!(sealer.open(4243, ROW, Slot(1), &record), forged(4243), "block");
    assert_eq!(sealer.open(4242, ROW, Slot(0), &record), forged(4242), "slot");
    let row = RowAddr { stripe: 8, ..ROW };
    assert_eq!(sealer.open(4242, row, Slot(1), &record), forged(4242), "stripe");
    let row = RowAddr { group: GroupNo(2), ..ROW };
    assert_eq!(sealer.open(4242, row, Slot(1), &record), forged(4242), "group");
    for (identity, what) in [(identity(1, 3), "volume"), (identity(4, 2), "cluster")] {
        let other = Sealer::new(identity, keys(&[1, 2]), [8; 16]);
        assert_eq!(open(&other, &record), forged(4242), "{what}");
    }
    // Fields of the header, rewritten by someone who can write the disk.
    let rewrite = |at: usize, byte: u8| {
        let mut record = record.to_vec();
        assert_ne!(record[at], byte);
        record[at] = byte;
        open(&sealer, &record)
    };
    assert_eq!(rewrite(5, 7), forged(4242), "snapshot");
    assert_eq!(rewrite(9, 1), forged(4242), "key epoch");
    assert_eq!(rewrite(13, 4), forged(4242), "generation");
    assert_eq!(rewrite(19, 98), forged(4242), "write sequence");
    assert_eq!(rewrite(9, 3), Err(OpenError::NoEpoch(KeyEpochNo(3), 4242)));
}

#[test]
fn a_failed_opening_leaves_the_buffer_alone() {
    let sealer = sealer();
    let record = sealer.seal(&PLACE, &block(3), [0; 4]).expect("seals");
    let mut out = vec![0x77; BLOCK_LEN];
    let error = sealer.open_into(1, ROW, Slot(1), &record, &mut out);
    assert_eq!(error, Err(OpenError::Forged(1)));
    assert_eq!(out, [0x77; BLOCK_LEN]);
    let short = sealer.open_into(4242, ROW, Slot(1), &record, &mut out[1..]);
    assert_eq!(short, Err(OpenError::Length(BLOCK_LEN - 1)));
}

#[test]
fn places_that_are_none_are_refused() {
    let sealer = sealer();
    let record = sealer.seal(&PLACE, &block(4), [0; 4]).expect("seals");
    for (group, slot) in [(4, 0), (0, 2), (u16::MAX, 255)] {
        let (group, slot) = (GroupNo(group), Slot(slot));
        let row = RowAddr { group, ..ROW };
        let place = SealPlace { row, slot, ..PLACE };
        let refused = sealer.seal(&place, &block(4), [0; 4]);
        assert_eq!(refused, Err(SealError::NoColumn { group, slot }));
        let refused = sealer.open(4242, row, slot, &record);
        assert_eq!(refused, Err(OpenError::NoColumn { group, slot }));
    }
    assert_eq!(sealer.seal(&PLACE, &[0; 4095], [0; 4]), Err(SealError::Length(4095)));
    let wid = Wid { generation: 1, seq: 1 << 48 };
    let refused = sealer.seal(&SealPlace { wid, ..PLACE }, &block(4), [0; 4]);
    assert_eq!(refused, Err(SealError::Record(RecordError::Sequence(1 << 48))));
    let length = OpenError::Record(RecordError::Length(9));
    assert_eq!(open(&sealer, &record[..9]), Err(length));
}

#[test]
fn every_flipped_bit_of_header_and_tag_is_caught() {
    let sealer = sealer();
    let record = sealer.seal(&PLACE, &block(5), [0; 4]).expect("seals");
    for bit in (0..HEADER_LEN * 8).chain((HEADER_LEN * 8..RECORD_LEN * 8).step_by(1021)) {
        let mut bad = record.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&sealer, &bad).is_err(), "bit {bit}");
    }
}

#[test]
fn the_salt_is_renewed_before_the_counter_ends() {
    let sealer = sealer();
    sealer.state().salt.sealed.store(BLOCKS_PER_SALT - 1, Ordering::Relaxed);
    let last = sealer.seal(&PLACE, &block(6), [0; 4]).expect("the last of this salt");
    assert_eq!(nonce_and_salt(&last).0[..8], (BLOCKS_PER_SALT - 1).to_be_bytes());
    for _ in 0..3 {
        let refused = sealer.seal(&PLACE, &block(6), [0; 4]);
        assert_eq!(refused, Err(SealError::SaltUsedUp));
    }
    assert_eq!(sealer.sealed(), BLOCKS_PER_SALT);
    assert_eq!(sealer.resalt([8; 16]), Err(SealError::SaltRepeated));
    assert_eq!(sealer.resalt([10; 16]), Ok(()));
    assert_eq!(sealer.sealed(), 0);
    let first = sealer.seal(&PLACE, &block(7), [0; 4]).expect("a fresh salt");
    assert_eq!(nonce_and_salt(&first), ([0; 12], [10; 16]));
    assert_eq!(open(&sealer, &last), Ok(Opened::Data(block(6))), "old records still open");
    assert_eq!(open(&sealer, &first), Ok(Opened::Data(block(7))));
}

#[test]
fn rotation_seals_anew_and_destruction_ends_opening() {
    let sealer = Sealer::new(identity(1, 2), keys(&[1]), [8; 16]);
    let old = sealer.seal(&PLACE, &block(8), [0; 4]).expect("seals");
    sealer.set_keys(keys(&[1, 2]));
    let new = sealer.seal(&PLACE, &block(9), [0; 4]).expect("seals");
    assert_eq!(open(&sealer, &old), Ok(Opened::Data(block(8))));
    assert_eq!(open(&sealer, &new), Ok(Opened::Data(block(9))));
    assert_eq!(sealer.keys().current(), KeyEpochNo(2));
    sealer.set_keys(keys(&[2]));
    assert_eq!(open(&sealer, &old), Err(OpenError::NoEpoch(KeyEpochNo(1), 4242)));
    assert_eq!(open(&sealer, &new), Ok(Opened::Data(block(9))));
}

/// Four threads seal the same block thousands of times while the salt changes under them: no
/// (salt, nonce) pair appears twice even with the same random bytes, and every record opens.
#[test]
fn no_two_seals_share_a_nonce() {
    let sealer = sealer();
    let pairs: Vec<([u8; 12], [u8; 16])> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4u8)
            .map(|thread| {
                let sealer = &sealer;
                scope.spawn(move || {
                    let plaintext = block(thread);
                    (0..1000u32)
                        .map(|round| {
                            if round % 100 == 50 {
                                let mut salt = [thread; 16];
                                salt[0] = (round / 100) as u8;
                                salt[1] = 0xee;
                                sealer.resalt(salt).expect("all salts differ");
                            }
                            let record = sealer.seal(&PLACE, &plaintext, [0; 4]).expect("seals");
                            let opened = open(sealer, &record).expect("opens");
                            assert_eq!(opened, Opened::Data(plaintext.clone()));
                            nonce_and_salt(&record)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(pairs.len(), 4000);
    assert_eq!(pairs.iter().collect::<HashSet<_>>().len(), 4000);
}

/// Records on disk are opened by every later build. Made by an independent implementation of HKDF
/// and AES-GCM from the layout in the module's header; the ciphertext is checked by its ends.
#[test]
fn old_records_keep_opening() {
    let sealer = sealer();
    let record = sealer.seal(&PLACE, &block(0), [0xde, 0xad, 0xbe, 0xef]).expect("seals");
    let hex: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex[..FIXED_HEAD.len()], *FIXED_HEAD);
    assert_eq!(hex[hex.len() - FIXED_TAIL.len()..], *FIXED_TAIL);
    assert_eq!(open(&sealer, &record), Ok(Opened::Data(block(0))));
}

const FIXED_HEAD: &str = "0101000000060000000200000005000000000063080808080808080808080808\
    080808080000000000000000deadbeefb81141153f3bc370493b231ef4d2c873\
    eba16312e27ea80a223f2979abbbc9c5efc6f0c9ad4af75f775fb0eb009e1bcf";
const FIXED_TAIL: &str = "c7df5247d892f6852a90905108ac5b875ef5a538614dbcc7ccc631291192eee5";

#[test]
fn nothing_secret_is_printed() {
    let text = format!("{:?} {:?}", sealer(), Opened::Data(block(1)));
    assert!(text.starts_with("Sealer { identity: ") && text.ends_with(".. } Data(redacted)"));
}

static SHARED: LazyLock<Sealer> = LazyLock::new(sealer);

proptest! {
    #[test]
    fn any_block_anywhere_round_trips_and_any_flip_is_caught(
        address: u64,
        (group, stripe, index, slot) in (0u16..4, any::<u64>(), any::<u32>(), 0u8..2),
        snap: u32,
        (generation, seq) in (any::<u32>(), 0u64..1 << 48),
        fill: u8,
        random: [u8; 4],
        flip in 0usize..RECORD_LEN * 8,
    ) {
        let row = RowAddr { group: GroupNo(group), stripe, index };
        let wid = Wid { generation, seq };
        let place = SealPlace { block: address, row, slot: Slot(slot), snap, wid };
        let plaintext = block(fill);
        let record = SHARED.seal(&place, &plaintext, random).expect("seals");
        let opened = SHARED.open(address, row, Slot(slot), &record);
        prop_assert_eq!(opened, Ok(Opened::Data(plaintext)));
        let mut bad = record.to_vec();
        bad[flip / 8] ^= 1 << (flip % 8);
        prop_assert!(SHARED.open(address, row, Slot(slot), &bad).is_err(), "bit {}", flip);
    }
}
